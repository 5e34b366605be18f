//! What is right for a case, by brute force over the rows on the host.

use rayon::prelude::*;

use super::{Case, GpuRows};
use crate::element::Element;

/// Of the queries of a case.
#[derive(Debug, Clone)]
pub struct Truth {
    /// Of each query of each sequence the keys that are certainly among the top.
    top: Vec<Vec<u32>>,
    /// Attention over all keys in f64 of the first sequence, a query head each.
    pub dense: Vec<Vec<f64>>,
}

impl Truth {
    /// Brute force: the top among the first `visible` keys, dense attention over all of the case.
    ///
    /// # Numerics
    ///
    /// Products of bf16 are exact in f32, sums are f64. A key is certainly among the top if its score is above the k-th by more than an f32 sum
    /// in any order can be wrong.
    ///
    /// # Complexity
    ///
    /// `O(B Hq N D)`, queries in parallel.
    pub fn of(rows: &GpuRows, case: Case, top_k: usize, visible: usize) -> Self {
        let (heads, dim) = (rows.heads, rows.dim);
        let of_query = |query: usize| {
            let head = query % heads;
            let q: Vec<f32> = rows.queries[query * dim..(query + 1) * dim]
                .iter()
                .map(|x| x.to_f32())
                .collect();
            let first = head / (heads / rows.kv_heads) * rows.len * dim;
            let keys = rows.keys[first..first + case.context * dim].chunks_exact(dim);
            let mut largest = 0.0_f64;
            let scores: Vec<f64> = keys
                .map(|key| {
                    let (mut sum, mut size) = (0.0, 0.0);
                    for (a, b) in key.iter().zip(&q) {
                        let product = f64::from(a.to_f32() * b);
                        sum += product;
                        size += product.abs();
                    }
                    largest = largest.max(size);
                    sum
                })
                .collect();
            let mut sorted = scores[..visible].to_vec();
            let last = top_k.min(visible) - 1;
            let (_, tau, _) = sorted.select_nth_unstable_by(last, |a, b| b.total_cmp(a));
            let tau = *tau + 2.0 * dim as f64 * Element::F32.rounding() * largest;
            let top = (0..visible).filter(|&j| scores[j] > tau);
            let top = top.map(|j| j as u32).collect();
            let values = &rows.values[first..first + case.context * dim];
            let dense = (query < heads).then(|| {
                let scale = 1.0 / (dim as f64).sqrt();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let (mut out, mut total) = (vec![0.0; dim], 0.0);
                for (score, value) in scores.iter().zip(values.chunks_exact(dim)) {
                    let weight = (scale * (score - max)).exp();
                    total += weight;
                    for (out, x) in out.iter_mut().zip(value) {
                        *out += weight * x.to_f64();
                    }
                }
                out.iter_mut().for_each(|x| *x /= total);
                out
            });
            (top, dense)
        };
        let queries = (0..case.batch * heads).into_par_iter().map(of_query);
        let (top, dense): (Vec<_>, Vec<_>) = queries.unzip();
        Self {
            top,
            dense: dense.into_iter().flatten().collect(),
        }
    }

    /// Keys among the top that were not attended to, over all queries.
    pub fn missed(&self, attended: &[Vec<u32>]) -> usize {
        let missed = |(top, attended): (&Vec<u32>, &Vec<u32>)| {
            let missed = top.iter().filter(|j| attended.binary_search(j).is_err());
            missed.count()
        };
        let absent = self.top.iter().skip(attended.len()).map(Vec::len);
        self.top
            .iter()
            .zip(attended)
            .map(missed)
            .chain(absent)
            .sum()
    }
}

/// Largest distance of a row from its reference, as a share of the reference's norm.
pub(super) fn worst_error(out: &[f32], reference: &[Vec<f64>]) -> f64 {
    let dim = reference.first().map_or(1, Vec::len);
    let errors = out.chunks(dim).zip(reference).map(|(out, reference)| {
        super::reference::distance(out, reference) / super::reference::norm(reference)
    });
    errors.fold(0.0, |worst: f64, error| {
        if error.is_nan() {
            error
        } else {
            worst.max(error)
        }
    })
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// One KV head whose keys lie on an axis: key `j` scores `j` with the query.
    fn rows() -> GpuRows {
        let row = |x: usize| [bf16::from_f32(x as f32), bf16::ZERO];
        GpuRows {
            source: "by hand",
            heads: 1,
            kv_heads: 1,
            dim: 2,
            len: 100,
            keys: (0..100).flat_map(row).collect(),
            values: (0..100).flat_map(row).collect(),
            queries: row(1).to_vec(),
        }
    }

    #[test]
    fn what_is_not_attended_to_is_missed() {
        let case = Case {
            context: 100,
            batch: 1,
        };
        let truth = Truth::of(&rows(), case, 4, 90);
        // the fourth is the threshold itself
        assert_eq!(truth.missed(&[vec![86, 87, 88, 89]]), 0);
        assert_eq!(truth.missed(&[vec![87, 89]]), 1);
        assert_eq!(truth.missed(&[]), 3);
        // weights fall by e^(1 / sqrt 2) a key: the mean is 99 less the mean of a geometric distribution
        let ratio = (-0.5_f64.sqrt()).exp();
        let expected = 99.0 - ratio / (1.0 - ratio);
        assert!((truth.dense[0][0] - expected).abs() < 1e-9);
        assert!(worst_error(&[expected as f32, 0.0], &truth.dense) < 1e-6);
    }
}
