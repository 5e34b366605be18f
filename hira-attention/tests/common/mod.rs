//! Oracles in f64, and random attention inputs.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

use half::{bf16, f16};
use hira_attention::Precision;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Shape of a problem.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub sequences: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub value_dim: usize,
}

impl Shape {
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Random rows: `[sequences, heads, tokens, dim]`.
pub struct Rows {
    pub heads: usize,
    pub tokens: usize,
    pub dim: usize,
    pub data: Vec<f32>,
}

impl Rows {
    pub fn random(
        rng: &mut StdRng,
        sequences: usize,
        heads: usize,
        tokens: usize,
        dim: usize,
    ) -> Self {
        let count = sequences * heads * tokens * dim;
        // sums of uniforms: close to normal, with a few larger rows
        let data = (0..count).map(|i| {
            let spread = if (i / dim).is_multiple_of(7) {
                3.0
            } else {
                1.0
            };
            spread * (0..4).map(|_| rng.random_range(-1.0..1.0_f32)).sum::<f32>()
        });
        Self {
            heads,
            tokens,
            dim,
            data: data.collect(),
        }
    }

    pub fn row(&self, sequence: usize, head: usize, token: usize) -> &[f32] {
        let start = ((sequence * self.heads + head) * self.tokens + token) * self.dim;
        &self.data[start..start + self.dim]
    }

    /// The tokens `range` of every head, in the same layout.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Vec<f32> {
        let heads = self.data.chunks_exact(self.tokens * self.dim);
        heads
            .flat_map(|head| &head[range.start * self.dim..range.end * self.dim])
            .copied()
            .collect()
    }
}

pub struct Problem {
    pub shape: Shape,
    pub tokens: usize,
    pub q: Rows,
    pub k: Rows,
    pub v: Rows,
}

impl Problem {
    pub fn random(seed: u64, shape: Shape, tokens: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            shape,
            tokens,
            q: Rows::random(&mut rng, shape.sequences, shape.heads, tokens, shape.dim),
            k: Rows::random(&mut rng, shape.sequences, shape.kv_heads, tokens, shape.dim),
            v: Rows::random(
                &mut rng,
                shape.sequences,
                shape.kv_heads,
                tokens,
                shape.value_dim,
            ),
        }
    }

    /// The problem that a cache of this precision holds: its keys and values rounded, by nothing of the library.
    pub fn stored(mut self, precision: Precision) -> Self {
        let round = |x: f32| match precision {
            Precision::F32 => x,
            Precision::F16 => f16::from_f32_const(x).to_f32_const(),
            Precision::Bf16 => bf16::from_f32_const(x).to_f32_const(),
        };
        for rows in [&mut self.k, &mut self.v] {
            rows.data.iter_mut().for_each(|x| *x = round(*x));
        }
        self
    }

    /// Exact scores of a query against the keys that it sees.
    pub fn scores(&self, sequence: usize, head: usize, token: usize) -> Vec<f64> {
        let q = self.q.row(sequence, head, token);
        let kv_head = head / self.shape.group();
        (0..=token)
            .map(|j| {
                let k = self.k.row(sequence, kv_head, j);
                q.iter()
                    .zip(k)
                    .map(|(&a, &b)| f64::from(a) * f64::from(b))
                    .sum()
            })
            .collect()
    }

    /// Attention of one query over the keys that `keep` accepts, and the mass of the others.
    pub fn attend(
        &self,
        sequence: usize,
        head: usize,
        token: usize,
        scale: f64,
        keep: impl Fn(usize, f64) -> bool,
    ) -> (Vec<f64>, f64) {
        let scores = self.scores(sequence, head, token);
        let kv_head = head / self.shape.group();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut out = vec![0.0; self.shape.value_dim];
        let (mut kept, mut dropped) = (0.0, 0.0);
        for (j, &score) in scores.iter().enumerate() {
            let weight = (scale * (score - max)).exp();
            if keep(j, score) {
                kept += weight;
                let value = self.v.row(sequence, kv_head, j);
                out.iter_mut()
                    .zip(value)
                    .for_each(|(o, &x)| *o += weight * f64::from(x));
            } else {
                dropped += weight;
            }
        }
        if kept > 0.0 {
            out.iter_mut().for_each(|o| *o /= kept);
        }
        (out, dropped / (kept + dropped))
    }
}

pub fn distance(a: &[f32], b: &[f64]) -> f64 {
    let squares = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - b).powi(2));
    squares.sum::<f64>().sqrt()
}
