//! Selection against a naive sort.

use std::cmp::Ordering;

use hira_threshold::{kth_largest, select_at_least, select_top_k, select_top_k_with};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// Scores with many ties, both zeros, subnormals and the extremes.
fn score() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => (-3i8..=3).prop_map(f32::from),
        2 => prop_oneof![Just(0.0f32), Just(-0.0)],
        1 => prop_oneof![Just(f32::MIN_POSITIVE / 8.0), Just(-f32::MIN_POSITIVE / 8.0), Just(f32::MAX), Just(f32::MIN)],
        1 => prop_oneof![Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
        2 => -10.0f32..10.0,
    ]
}

/// Distinct positions in any order, each with a score.
fn keys() -> impl Strategy<Value = Vec<(u32, f32)>> {
    prop::collection::btree_map(any::<u32>(), score(), 0..200)
        .prop_map(|map| map.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

fn top_k_naive(mut keys: Vec<(u32, f32)>, k: usize) -> Vec<(u32, f32)> {
    // `partial_cmp` has the two zeros equal.
    keys.sort_by(|a, b| {
        b.1.partial_cmp(&a.1)
            .unwrap_or(Ordering::Equal)
            .then(a.0.cmp(&b.0))
    });
    keys.truncate(k);
    keys.sort_by_key(|key| key.0);
    keys
}

fn bits(keys: impl IntoIterator<Item = (u32, f32)>) -> Vec<(u32, u32)> {
    keys.into_iter()
        .map(|(position, score)| (position, score.to_bits()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("regressions")))]

    #[test]
    fn top_k_is_the_naive_sort(keys in keys(), k in 0usize..210, ascending in any::<bool>()) {
        let mut keys = keys;
        if ascending {
            keys.sort_by_key(|key| key.0);
        }
        let (mut positions, mut scores): (Vec<_>, Vec<_>) = keys.iter().copied().unzip();
        select_top_k(&mut positions, &mut scores, k);
        let selected = bits(positions.into_iter().zip(scores));
        prop_assert_eq!(selected, bits(top_k_naive(keys, k)));
    }

    #[test]
    fn kth_is_the_naive_sort(mut values in prop::collection::vec(score(), 0..200), k in 0usize..210) {
        let mut sorted = values.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let expected = match k {
            0 => f32::INFINITY,
            k => sorted.get(k - 1).copied().unwrap_or(f32::NEG_INFINITY),
        };
        prop_assert_eq!(kth_largest(&mut values, k), expected);
        values.sort_by(|a, b| b.total_cmp(a));
        prop_assert_eq!(bits(values.into_iter().map(|v| (0, v))), bits(sorted.into_iter().map(|v| (0, v))));
    }

    #[test]
    fn at_least_is_the_filter(keys in keys(), tau in score()) {
        let (mut positions, mut scores): (Vec<_>, Vec<_>) = keys.iter().copied().unzip();
        select_at_least(&mut positions, &mut scores, tau);
        let expected = keys.into_iter().filter(|key| key.1 >= tau);
        prop_assert_eq!(bits(positions.into_iter().zip(scores)), bits(expected));
    }

    /// A threshold from the k-th largest score, then top-k among those that reach it, loses nothing.
    #[test]
    fn threshold_then_top_k(keys in keys(), k in 1usize..210) {
        let (mut positions, mut scores): (Vec<_>, Vec<_>) = keys.iter().copied().unzip();
        let tau = kth_largest(&mut scores.clone(), k);
        select_at_least(&mut positions, &mut scores, tau);
        select_top_k(&mut positions, &mut scores, k);
        prop_assert_eq!(bits(positions.into_iter().zip(scores)), bits(top_k_naive(keys, k)));
    }
}

#[test]
fn scratch_is_reused() {
    let mut scratch = Vec::with_capacity(64);
    let before = scratch.as_ptr();
    for k in 0..64 {
        let mut positions: Vec<u32> = (0..64).rev().collect();
        let mut scores = vec![1.0; 64];
        select_top_k_with(&mut positions, &mut scores, k, &mut scratch);
        assert_eq!(positions, (0..k as u32).collect::<Vec<_>>());
    }
    assert_eq!(scratch.as_ptr(), before);
}

#[test]
#[should_panic(expected = "one score a position")]
fn lengths_must_agree() {
    select_at_least(&mut vec![1], &mut vec![], 0.0);
}
