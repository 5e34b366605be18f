//! The right answers: brute force over the canonical scores, in f64.

use hira_attention::HiraAttentionConfig;
use hira_kernels::Kernel;
use hira_threshold::ThresholdRule;
use rayon::prelude::*;

use super::Problem;

/// Attention of one row's queries, `[Hq, D]` each: over what the contenders are to attend to.
#[derive(Debug, Clone)]
pub struct Answers {
    /// Over every key of the problem, if asked for.
    pub all: Option<Vec<f64>>,
    /// Over every key that the row sees.
    pub visible: Vec<f64>,
    /// Over each configuration's selection, sinks and window.
    pub selected: Vec<Vec<f64>>,
}

impl Answers {
    /// Brute force for `row`: one pass of scores a query head, from which every answer is taken.
    ///
    /// # Numerics
    ///
    /// The scores are canonical ones (the same bits on every kernel, so the fastest is used); softmax and sums are in f64.
    ///
    /// # Complexity
    ///
    /// `O(Hq N D)`, heads in parallel.
    pub fn of(problem: &Problem, row: usize, configs: &[&HiraAttentionConfig], all: bool) -> Self {
        let visible = problem.visible(row);
        let dim = problem.dim;
        let queries = problem.queries_of(row).par_chunks_exact(dim).enumerate();
        let heads: Vec<Self> = queries
            .map(|(head, query)| {
                let first = head / problem.group * problem.len * dim;
                let keys = &problem.keys[first..][..problem.len * dim];
                let values = &problem.values[first..][..problem.len * dim];
                let mut scores = vec![0.0; problem.len];
                Kernel::best().scores_into(query, keys, &mut scores);
                let seen = &scores[..visible];
                Self {
                    all: all.then(|| attention(&scores, values, dim, 0..problem.len)),
                    visible: attention(seen, values, dim, 0..visible),
                    selected: configs
                        .iter()
                        .map(|config| attention(seen, values, dim, kept(seen, config)))
                        .collect(),
                }
            })
            .collect();
        let joined = |part: &dyn Fn(&Self) -> Vec<f64>| heads.iter().flat_map(part).collect();
        Self {
            all: all.then(|| joined(&|head| head.all.clone().unwrap_or_default())),
            visible: joined(&|head| head.visible.clone()),
            selected: (0..configs.len())
                .map(|i| joined(&|head| head.selected[i].clone()))
                .collect(),
        }
    }
}

/// Softmax over the scores of some positions, times their values.
fn attention(
    scores: &[f32],
    values: &[f32],
    dim: usize,
    positions: impl IntoIterator<Item = usize>,
) -> Vec<f64> {
    let scale = 1.0 / (dim as f64).sqrt();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    let mut acc = vec![0.0; dim];
    for position in positions {
        let weight = (scale * f64::from(scores[position] - max)).exp();
        sum += weight;
        let value = &values[position * dim..][..dim];
        acc.iter_mut()
            .zip(value)
            .for_each(|(acc, &x)| *acc += weight * f64::from(x));
    }
    acc.iter_mut().for_each(|acc| *acc /= sum);
    acc
}

/// Positions that the rule selects by brute force, with sinks and window, ascending.
fn kept(scores: &[f32], config: &HiraAttentionConfig) -> Vec<usize> {
    let n = scores.len();
    let rule = config.rule().unwrap_or(ThresholdRule::Fixed {
        tau: f32::NEG_INFINITY,
    });
    let window = n.saturating_sub(config.recent_window);
    let mut keep = best(scores, rule.count(n).unwrap_or(n));
    let tau = rule.tau().unwrap_or(f32::NEG_INFINITY);
    keep.retain(|&i| scores[i] >= tau);
    keep.extend(0..config.sink_tokens.min(n));
    keep.extend(window..n);
    keep.sort_unstable();
    keep.dedup();
    keep
}

/// The `count` positions that score highest, ties to the lower position, ascending.
pub(super) fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if count < order.len() {
        // adding 0.0 makes the two zeros one score
        let key = |i: usize| scores[i] + 0.0;
        order.select_nth_unstable_by(count, |&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
        order.truncate(count);
        order.sort_unstable();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_those_of_a_sort_with_ties_to_the_lower_position() {
        let scores = [1.0, 3.0, 2.0, 3.0, -0.0, 0.0, 3.0];
        assert_eq!(best(&scores, 2), [1, 3]);
        assert_eq!(best(&scores, 6), [0, 1, 2, 3, 4, 6]);
        assert_eq!(best(&scores, 9).len(), 7);
        assert!(best(&scores, 0).is_empty());
    }

    #[test]
    fn sinks_and_window_are_kept_beside_the_best() {
        let config = HiraAttentionConfig::new()
            .with_top_k(2)
            .with_sinks_and_window(1, 2);
        assert_eq!(
            kept(&[0.0, 1.0, 5.0, 4.0, 0.0, 0.0], &config),
            [0, 2, 3, 4, 5]
        );
        assert_eq!(kept(&[1.0], &config), [0]);
    }

    #[test]
    fn attention_over_equal_scores_is_the_mean() {
        let values = [1.0, 2.0, 3.0, 6.0, 9.0, 9.0];
        assert_eq!(attention(&[0.5, 0.5], &values, 2, 0..2), [2.0, 4.0]);
    }
}
