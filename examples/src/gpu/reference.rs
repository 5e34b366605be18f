//! Random rows of one attention layer, and the right answers in f64.

use std::ops::Range;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::element::Element;

/// Shape of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerShape {
    /// Sequences.
    pub sequences: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of a KV head.
    pub group: usize,
    /// Dimension of keys.
    pub dim: usize,
    /// Dimension of values.
    pub value_dim: usize,
}

impl LayerShape {
    /// Query heads.
    pub fn heads(&self) -> usize {
        self.kv_heads * self.group
    }
}

/// `[B, H, N, D]`.
#[derive(Debug, Clone)]
pub struct Rows {
    /// Heads.
    pub heads: usize,
    /// Tokens.
    pub tokens: usize,
    /// Dimension.
    pub dim: usize,
    /// Elements.
    pub data: Vec<f32>,
}

impl Rows {
    /// Nearly normal elements, and every seventh row three times as large.
    fn random(rng: &mut StdRng, rows: [usize; 4], element: Element) -> Self {
        let [sequences, heads, tokens, dim] = rows;
        let spread = |i: usize| {
            if (i / dim).is_multiple_of(7) {
                3.0
            } else {
                1.0
            }
        };
        let mut normal = || (0..4).map(|_| rng.random_range(-1.0..1.0_f32)).sum::<f32>();
        let data =
            (0..sequences * heads * tokens * dim).map(|i| element.round(spread(i) * normal()));
        Self {
            heads,
            tokens,
            dim,
            data: data.collect(),
        }
    }

    fn row(&self, sequence: usize, head: usize, token: usize) -> &[f32] {
        let row = (sequence * self.heads + head) * self.tokens + token;
        &self.data[row * self.dim..(row + 1) * self.dim]
    }

    /// Some tokens of every head, in the same layout.
    pub fn slice(&self, range: Range<usize>) -> Vec<f32> {
        let heads = self.data.chunks_exact(self.tokens * self.dim);
        let slice = |head: &[f32]| head[range.start * self.dim..range.end * self.dim].to_vec();
        heads.flat_map(slice).collect()
    }
}

/// A layer's rows.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Its shape.
    pub shape: LayerShape,
    /// Tokens.
    pub tokens: usize,
    /// Queries.
    pub q: Rows,
    /// Keys.
    pub k: Rows,
    /// Values.
    pub v: Rows,
}

/// Exact scores of one query against the keys that it sees.
#[derive(Debug, Clone)]
pub struct Scores {
    /// `q . k`.
    pub exact: Vec<f64>,
    /// A score summed in f32, in any order, differs from the exact one by less: `D 2^-24 sum |q_i k_i|` of the worst key.
    pub rounding: f64,
}

impl Reference {
    /// Random rows of an element type; keys and values as they are `stored`.
    pub fn random(seed: u64, shape: LayerShape, tokens: usize, of: [Element; 2]) -> Self {
        let [element, stored] = of;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rows = |heads, dim, element| {
            Rows::random(&mut rng, [shape.sequences, heads, tokens, dim], element)
        };
        Self {
            shape,
            tokens,
            q: rows(shape.heads(), shape.dim, element),
            k: rows(shape.kv_heads, shape.dim, stored),
            v: rows(shape.kv_heads, shape.value_dim, stored),
        }
    }

    /// Scores of the query of `token`.
    pub fn scores(&self, sequence: usize, head: usize, token: usize) -> Scores {
        let q = self.q.row(sequence, head, token);
        let mut largest = 0.0_f64;
        let exact = (0..=token)
            .map(|j| {
                let k = self.k.row(sequence, head / self.shape.group, j);
                let products = q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b));
                let (sum, size) =
                    products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                largest = largest.max(size);
                sum
            })
            .collect();
        Scores {
            exact,
            rounding: self.shape.dim as f64 * Element::F32.rounding() * largest,
        }
    }

    /// Attention over the keys that `keep` accepts, the largest norm of a value among them, and the softmax mass of the others.
    pub fn attend(
        &self,
        [sequence, head]: [usize; 2],
        scores: &Scores,
        scale: f64,
        keep: impl Fn(usize) -> bool,
    ) -> (Vec<f64>, f64, f64) {
        let max = scores
            .exact
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        let mut out = vec![0.0; self.shape.value_dim];
        let (mut kept, mut dropped, mut largest) = (0.0, 0.0, 0.0_f64);
        for (j, &score) in scores.exact.iter().enumerate() {
            let weight = (scale * (score - max)).exp();
            if !keep(j) {
                dropped += weight;
                continue;
            }
            kept += weight;
            let value = self.v.row(sequence, head / self.shape.group, j);
            let squares = value.iter().map(|&x| f64::from(x) * f64::from(x));
            largest = largest.max(squares.sum::<f64>().sqrt());
            for (out, &x) in out.iter_mut().zip(value) {
                *out += weight * f64::from(x);
            }
        }
        if kept > 0.0 {
            out.iter_mut().for_each(|x| *x /= kept);
        }
        (out, largest, dropped / (kept + dropped))
    }
}

/// Euclidean distance.
pub(super) fn distance(a: &[f32], b: &[f64]) -> f64 {
    let squares = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - b).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Euclidean norm.
pub(super) fn norm(a: &[f64]) -> f64 {
    a.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: LayerShape = LayerShape {
        sequences: 2,
        kv_heads: 2,
        group: 3,
        dim: 16,
        value_dim: 8,
    };

    #[test]
    fn what_is_kept_and_what_is_dropped_is_everything() {
        let of = [Element::F32, Element::Bf16];
        let reference = Reference::random(1, SHAPE, 40, of);
        assert!(
            reference
                .k
                .data
                .iter()
                .all(|&x| Element::Bf16.round(x) == x)
        );
        let scores = reference.scores(1, 4, 30);
        assert_eq!(scores.exact.len(), 31);
        let at = [1, 4];
        let (even, _, odd_mass) = reference.attend(at, &scores, 0.2, |j| j % 2 == 0);
        let (odd, _, even_mass) = reference.attend(at, &scores, 0.2, |j| j % 2 == 1);
        let (all, _, none) = reference.attend(at, &scores, 0.2, |_| true);
        assert!((odd_mass + even_mass - 1.0).abs() < 1e-12 && none == 0.0);
        for ((even, odd), all) in even.iter().zip(&odd).zip(&all) {
            assert!((even * even_mass + odd * odd_mass - all).abs() < 1e-12);
        }
    }

    #[test]
    fn a_slice_is_those_tokens_of_every_head() {
        let reference = Reference::random(2, SHAPE, 9, [Element::F32; 2]);
        let slice = reference.q.slice(4..6);
        assert_eq!(slice.len(), 2 * 6 * 2 * 16);
        assert_eq!(slice[..16], *reference.q.row(0, 0, 4));
        assert_eq!(slice[slice.len() - 16..], *reference.q.row(1, 5, 5));
    }
}
