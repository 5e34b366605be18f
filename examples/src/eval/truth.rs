//! Dense attention of one query in f64, and what a selection keeps of it.

use hira_kernels::Kernel;

/// One query's dense attention over the keys that it sees: the truth that selections and outputs are held against.
///
/// # Numerics
///
/// Dot products, softmax and sums in f64, plain loops. Only the *order* of the keys is that of the canonical score, because that is what
/// Hira's rules select by.
///
/// ```
/// use hira_examples::eval::DenseTruth;
///
/// // Logits 0 and ln 3: weights 1/4 and 3/4.
/// let truth = DenseTruth::of(&[3f32.ln()], &[0.0, 1.0], &[1.0, 5.0], 1.0);
/// assert!((truth.dropped(&[1]) - 0.25).abs() < 1e-6);
/// assert!((truth.error(&[4.5]) - 0.5).abs() < 1e-5);
/// assert_eq!(truth.fewest(0.3), 1);
/// ```
#[derive(Debug, Clone)]
pub struct DenseTruth {
    /// Canonical scores.
    scores: Vec<f32>,
    /// Softmax weights, which sum to 1.
    weights: Vec<f64>,
    output: Vec<f64>,
}

impl DenseTruth {
    /// # Shapes
    ///
    /// `query` `[D]`, `keys` `[N, D]`, `values` `[N, Dv]`, `N` at least 1. A logit is `scale` times a score.
    ///
    /// # Panics
    ///
    /// If there is no key, or the shapes do not fit together.
    pub fn of(query: &[f32], keys: &[f32], values: &[f32], scale: f64) -> Self {
        let dim = query.len();
        assert!(
            !keys.is_empty() && keys.len().is_multiple_of(dim),
            "whole keys"
        );
        let len = keys.len() / dim;
        assert!(values.len().is_multiple_of(len), "a value row for each key");
        let value_dim = values.len() / len;
        let mut scores = vec![0.0; len];
        // the same bits on every kernel
        Kernel::best().scores_into(query, keys, &mut scores);
        let logits: Vec<f64> = keys
            .chunks_exact(dim)
            .map(|key| scale * dot(query, key))
            .collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut weights: Vec<f64> = logits.iter().map(|logit| (logit - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        let mut output = vec![0.0; value_dim];
        for (weight, value) in weights.iter().zip(values.chunks_exact(value_dim)) {
            for (out, &x) in output.iter_mut().zip(value) {
                *out += weight * f64::from(x);
            }
        }
        Self {
            scores,
            weights,
            output,
        }
    }

    /// Keys that the query sees.
    pub fn visible(&self) -> usize {
        self.weights.len()
    }

    /// The dense output.
    pub fn output(&self) -> &[f64] {
        &self.output
    }

    /// The softmax mass of the keys that are not among `positions`, which ascend. Summed over those themselves: `1 - kept` would lose small ones.
    pub fn dropped(&self, positions: &[u32]) -> f64 {
        let mut kept = positions.iter().peekable();
        let mut sum = 0.0;
        for (position, weight) in self.weights.iter().enumerate() {
            if kept.next_if(|&&kept| kept as usize == position).is_none() {
                sum += weight;
            }
        }
        sum
    }

    /// The Euclidean distance of `out` from the dense output.
    pub fn error(&self, out: &[f32]) -> f64 {
        let terms = self.output.iter().zip(out);
        let squares = terms.map(|(truth, out)| (truth - f64::from(*out)).powi(2));
        squares.sum::<f64>().sqrt()
    }

    /// [`error`](Self::error) over the norm of the dense output.
    pub fn relative_error(&self, out: &[f32]) -> f64 {
        let norm = self.output.iter().map(|x| x * x).sum::<f64>().sqrt();
        self.error(out) / norm.max(f64::MIN_POSITIVE)
    }

    /// The fewest keys whose softmax mass is at least `1 - eps`: what an oracle that knows every weight would keep.
    pub fn fewest(&self, eps: f64) -> usize {
        let mut ascending = self.weights.clone();
        ascending.sort_unstable_by(f64::total_cmp);
        let mut dropped = 0.0;
        let most = ascending.iter().take_while(|weight| {
            dropped += **weight;
            dropped <= eps
        });
        self.visible() - most.count()
    }

    /// The set of `attended` keys that is made of the first `sinks`, the last `window`, and the keys of highest score, ascending.
    ///
    /// Every rule of Hira's selects all keys that reach some score (of equal ones the lower positions first). Sets of that kind are nested,
    /// so the number of keys says which one it was.
    pub fn reaching(&self, attended: usize, sinks: usize, window: usize) -> Vec<u32> {
        let visible = self.visible();
        let always = |position: usize| position < sinks || position + window >= visible;
        let (mut set, mut others): (Vec<u32>, Vec<u32>) =
            (0..visible as u32).partition(|&position| always(position as usize));
        let missing = attended.saturating_sub(set.len()).min(others.len());
        if missing > 0 && missing < others.len() {
            let scores = &self.scores;
            others.select_nth_unstable_by(missing - 1, |&a, &b| {
                let order = scores[b as usize].total_cmp(&scores[a as usize]);
                order.then(a.cmp(&b))
            });
        }
        set.extend(&others[..missing]);
        set.sort_unstable();
        set
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for (lane, (&a, &b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += f64::from(a) * f64::from(b);
        }
    }
    let rest = a_rest.iter().zip(b_rest);
    lanes.iter().sum::<f64>()
        + rest
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores 0, 1, .., with the same weights ratio between neighbours.
    fn ladder(len: usize) -> DenseTruth {
        let keys: Vec<f32> = (0..len).map(|i| i as f32).collect();
        DenseTruth::of(&[1.0], &keys, &keys, 2f64.ln())
    }

    #[test]
    fn mass_and_output_are_those_of_the_weights() {
        // weights 1, 2, 4, 8 of 15
        let truth = ladder(4);
        assert!((truth.dropped(&[3]) - 7.0 / 15.0).abs() < 1e-12);
        assert!((truth.dropped(&[0, 2, 3]) - 2.0 / 15.0).abs() < 1e-12);
        assert_eq!(truth.dropped(&[0, 1, 2, 3]), 0.0);
        let output = (2.0 + 8.0 + 24.0) / 15.0;
        assert!((truth.output()[0] - output).abs() < 1e-12);
        assert!((truth.relative_error(&[3.0]) - (3.0 - output) / output).abs() < 1e-12);
    }

    #[test]
    fn the_fewest_keys_are_the_heaviest() {
        let truth = ladder(4);
        for (eps, fewest) in [
            (0.0, 4),
            (0.05, 4),
            (0.07, 3),
            (0.21, 2),
            (0.5, 1),
            (1.1, 0),
        ] {
            assert_eq!(truth.fewest(eps), fewest, "{eps}");
        }
    }

    #[test]
    fn sets_of_a_score_are_told_by_their_size() {
        let keys = [5.0, 1.0, 3.0, 3.0, 0.0, 2.0];
        let truth = DenseTruth::of(&[1.0], &keys, &keys, 1.0);
        assert_eq!(truth.reaching(2, 0, 0), [0, 2]);
        assert_eq!(truth.reaching(3, 0, 0), [0, 2, 3]);
        assert_eq!(truth.reaching(3, 1, 1), [0, 2, 5]);
        assert_eq!(truth.reaching(6, 1, 2), [0, 1, 2, 3, 4, 5]);
        assert_eq!(truth.reaching(0, 1, 1), [0, 5]);
    }
}
