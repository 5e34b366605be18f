//! The sampled rules: their formulas on small samples, and what holds for every sample.

use hira_threshold::{Cut, RuleInput, Threshold, ThresholdRule};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// The threshold that a rule sets; no sampled rule counts.
fn tau(rule: ThresholdRule, sample: &[f32], visible: usize) -> f32 {
    assert!(rule.needs_sample());
    assert_eq!((rule.tau(), rule.count(visible)), (None, None));
    match rule.cut(&RuleInput { visible, sample }) {
        Cut::AtLeast { tau } => tau,
        cut => panic!("{rule}: {cut:?}"),
    }
}

fn adaptive(c: f32) -> ThresholdRule {
    ThresholdRule::Adaptive { c }
}

fn top(k: usize) -> ThresholdRule {
    ThresholdRule::SampleTopK { k }
}

fn mean_max(weight: f32) -> ThresholdRule {
    ThresholdRule::SampleMeanMax { weight }
}

fn budget(percent: f32) -> ThresholdRule {
    ThresholdRule::Budget { percent }
}

const MAX: ThresholdRule = ThresholdRule::SampleMax;
const GAP: ThresholdRule = ThresholdRule::SampleGap;

#[test]
fn formulas() {
    // mean 5, variance (9 + 1 + 1 + 1 + 0 + 0 + 4 + 16) / 8 = 4
    let sample = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
    assert_eq!(tau(adaptive(0.0), &sample, 100), 5.0);
    assert_eq!(tau(adaptive(1.5), &sample, 100), 8.0);
    assert_eq!(tau(adaptive(-1.0), &sample, 100), 3.0);
    assert_eq!(tau(MAX, &sample, 100), 9.0);
    assert_eq!(tau(mean_max(0.0), &sample, 100), 5.0);
    assert_eq!(tau(mean_max(0.25), &sample, 100), 6.0);
    assert_eq!(tau(mean_max(1.0), &sample, 100), 9.0);
    // ranks ceil(k * 8 / 100)
    for (k, expected) in [
        (1, 9.0),
        (12, 9.0),
        (13, 7.0),
        (25, 7.0),
        (26, 5.0),
        (63, 4.0),
        (99, 2.0),
        (100, f32::MIN),
        (usize::MAX, f32::MIN),
    ] {
        assert_eq!(tau(top(k), &sample, 100), expected, "{k}");
    }
    // ranks ceil(percent / 100 * 8)
    for (percent, expected) in [
        (0.1, 9.0),
        (12.5, 9.0),
        (12.6, 7.0),
        (50.0, 5.0),
        (87.5, 4.0),
        (99.9, 2.0),
        (100.0, f32::MIN),
    ] {
        assert_eq!(tau(budget(percent), &sample, 100), expected, "{percent}");
    }
}

#[test]
fn gaps() {
    // sorted 9 7 5 5 | 4 4 4 2: two gaps of 2, the lower one keeps more
    assert_eq!(
        tau(GAP, &[4.0, 9.0, 5.0, 4.0, 2.0, 7.0, 4.0, 5.0], 100),
        7.0
    );
    // sorted 9 8.5 8 3: the gap below the second half's first score does not count
    assert_eq!(tau(GAP, &[3.0, 8.0, 9.0, 8.5], 100), 8.5);
    // sorted 9 8 1: only the first pair lies in the upper half
    assert_eq!(tau(GAP, &[1.0, 8.0, 9.0], 100), 9.0);
    assert_eq!(tau(GAP, &[1.0, 8.0], 100), 8.0);
    assert_eq!(tau(GAP, &[-2.5], 100), -2.5);
    assert_eq!(tau(GAP, &[7.0; 9], 100), 7.0);
    // a gap wider than any f32
    assert_eq!(tau(GAP, &[3e38, -3e38, -3e38, 2.9e38], 100), 2.9e38);
}

#[test]
fn an_empty_sample_keeps_everything() {
    for rule in [
        adaptive(2.0),
        MAX,
        top(1),
        mean_max(0.0),
        mean_max(1.0),
        GAP,
        budget(1.0),
    ] {
        assert_eq!(tau(rule, &[], 1000), f32::MIN, "{rule}");
    }
}

#[test]
fn results_are_finite_and_have_one_zero() {
    let large = [2.0f32.powi(126), -(2.0f32.powi(126))];
    assert_eq!(tau(adaptive(f32::MAX), &large, 10), f32::MAX);
    assert_eq!(tau(adaptive(f32::MIN), &large, 10), f32::MIN);
    for rule in [adaptive(0.0), MAX, top(1), mean_max(0.5), GAP, budget(1.0)] {
        for zeros in [[-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]] {
            assert_eq!(tau(rule, &zeros, 10).to_bits(), 0, "{rule}");
        }
    }
    // the mean hides the largest score altogether: at weight 1 that score itself is meant
    let cancelling = [-1e30, 1e-30];
    assert_eq!(tau(mean_max(1.0), &cancelling, 10), 1e-30);
    assert!(tau(mean_max(1.0f32.next_down()), &cancelling, 10) <= 1e-30);
}

/// `r * (N + 1) / (m + 1)` keys reach the `r`-th largest of a uniform sample: here within four standard errors.
#[test]
fn kept_keys_are_as_many_as_documented() {
    let (visible, sampled, rounds) = (1000, 50, 2000);
    let mut rng = StdRng::seed_from_u64(1);
    let mut scores: Vec<f32> = (0..visible).map(|i| i as f32).collect();
    for (rule, rank) in [
        (MAX, 1),
        (top(20), 1),
        (top(21), 2),
        (top(200), 10),
        (budget(10.0), 5),
    ] {
        let mut kept = 0.0;
        for _ in 0..rounds {
            scores.shuffle(&mut rng);
            let tau = tau(rule, &scores[..sampled], visible);
            // the scores are 0..N, so these many reach tau
            kept += (visible as f32 - tau) as f64;
        }
        let expected = f64::from(rank) * (visible + 1) as f64 / (sampled + 1) as f64;
        // At most r * (N / m)^2 in variance.
        let error = f64::from(rank).sqrt() * visible as f64 / sampled as f64;
        let mean = kept / f64::from(rounds);
        assert!(
            (mean - expected).abs() < 4.0 * error / f64::from(rounds).sqrt(),
            "{rule}: {mean} instead of {expected}"
        );
    }
}

fn sample() -> impl Strategy<Value = Vec<f32>> {
    let score = prop_oneof![
        4 => -10.0f32..10.0,
        2 => (-3i8..3).prop_map(f32::from),
        1 => -1e37f32..1e37,
        1 => Just(-0.0f32),
    ];
    prop::collection::vec(score, 1..80)
}

/// The order of the scores, and a rule that does not depend on it.
fn sorted(sample: &[f32]) -> Vec<f32> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("regressions")))]

    #[test]
    fn order_statistics_do_not_depend_on_the_order(
        sample in sample(),
        seed in any::<u64>(),
        k in 1usize..200,
        percent in 0.1f32..=100.0,
    ) {
        let mut shuffled = sample.clone();
        shuffled.shuffle(&mut StdRng::seed_from_u64(seed));
        for rule in [MAX, GAP, top(k), budget(percent), mean_max(1.0)] {
            let expected = tau(rule, &sample, 150);
            prop_assert_eq!(tau(rule, &shuffled, 150).to_bits(), expected.to_bits());
        }
    }

    #[test]
    fn thresholds_lie_where_they_should(
        sample in sample(),
        weight in 0.0f32..=1.0,
        k in 1usize..150,
        percent in 0.1f32..99.9,
    ) {
        let sorted = sorted(&sample);
        let (largest, smallest) = (sorted[0], sorted[sorted.len() - 1]);
        let mean = tau(adaptive(0.0), &sample, 150);
        prop_assert!(smallest <= mean && mean <= largest);
        let between = tau(mean_max(weight), &sample, 150);
        prop_assert!(mean <= between && between <= largest);
        for rule in [MAX, GAP, top(k), budget(percent)] {
            let tau = tau(rule, &sample, 150);
            prop_assert!(sample.contains(&tau), "{} gives {}", rule, tau);
        }
        prop_assert_eq!(tau(MAX, &sample, 150), largest);
        // At most half of the distinct places in the sample lie at or above the edge of the gap.
        prop_assert!(tau(GAP, &sample, 150) >= sorted[(sorted.len() / 2).saturating_sub(1)]);
    }

    #[test]
    fn more_asked_for_is_more_kept(
        sample in sample(),
        c in (-4.0f32..4.0, -4.0f32..4.0),
        weight in (0.0f32..=1.0, 0.0f32..=1.0),
        k in (1usize..200, 1usize..200),
        percent in (0.1f32..=100.0, 0.1f32..=100.0),
    ) {
        let tau = |rule| tau(rule, &sample, 150);
        prop_assert!(tau(adaptive(c.0.min(c.1))) <= tau(adaptive(c.0.max(c.1))));
        prop_assert!(tau(mean_max(weight.0.min(weight.1))) <= tau(mean_max(weight.0.max(weight.1))));
        prop_assert!(tau(top(k.0.max(k.1))) <= tau(top(k.0.min(k.1))));
        prop_assert!(tau(budget(percent.0.max(percent.1))) <= tau(budget(percent.0.min(percent.1))));
    }

    /// A larger score in the sample never lowers the largest, the ranks or the mean.
    #[test]
    fn larger_scores_do_not_lower_the_threshold(
        sample in sample(),
        at in any::<prop::sample::Index>(),
        by in 0.0f32..5.0,
        k in 1usize..200,
        percent in 0.1f32..=100.0,
    ) {
        let mut raised = sample.clone();
        let i = at.index(sample.len());
        raised[i] += by;
        for rule in [MAX, top(k), budget(percent), adaptive(0.0), mean_max(0.5)] {
            prop_assert!(tau(rule, &sample, 150) <= tau(rule, &raised, 150));
        }
    }

    /// With every key in the sample a counted rule keeps what it aims at, and ties.
    #[test]
    fn a_sample_of_everything_is_exact(sample in sample(), k in 1usize..100, percent in 0.1f32..=100.0) {
        let visible = sample.len();
        let sorted = sorted(&sample);
        for (rule, counted) in [
            (top(k), ThresholdRule::TopK { k }),
            (budget(percent), ThresholdRule::Percentile { percent }),
        ] {
            let count = counted.count(visible).unwrap();
            let tau = tau(rule, &sample, visible);
            let kept = sample.iter().filter(|&&score| score >= tau).count();
            let ties = sorted[count..].iter().take_while(|&&score| score == sorted[count - 1]);
            prop_assert_eq!(kept, count + ties.count());
        }
    }

    /// Against a plain computation in f64, to the last bit or the next.
    #[test]
    fn moments_agree_with_a_plain_computation(seed in any::<u64>(), m in 1usize..300, c in -3.0f32..3.0) {
        let mut rng = StdRng::seed_from_u64(seed);
        let sample: Vec<f32> = (0..m).map(|_| rng.random_range(-4.0f32..9.0)).collect();
        let mean = sample.iter().map(|&s| f64::from(s)).sum::<f64>() / m as f64;
        let square = sample.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>() / m as f64;
        let expected = mean + f64::from(c) * (square - mean * mean).max(0.0).sqrt();
        // The plain variance loses half of the digits of 80 where the sample hardly varies.
        let error = if m == 1 { 1e-5 } else { 1e-6 * expected.abs().max(1.0) };
        prop_assert!((f64::from(tau(adaptive(c), &sample, m)) - expected).abs() <= error);
    }
}
