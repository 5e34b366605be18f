//! Layers with a window: what is forgotten, what stays, and how far one may go back.

use hira_cache::{CacheConfig, CacheError, HiraCache};
use hira_index::IndexConfig;
use proptest::prelude::*;

const DIM: usize = 4;
const VALUE_DIM: usize = 3;
const SEGMENT_LEN: usize = 32;

/// Rows that name their position.
fn rows(positions: std::ops::Range<usize>, dim: usize) -> Vec<f32> {
    let row = |p: usize| (0..dim).map(move |d| (p * 7 + d) as f32 % 1009.0);
    positions.flat_map(row).collect()
}

fn append(cache: &mut HiraCache, layer: usize, tokens: usize) {
    let start = cache.seq_len(layer);
    let positions = start..start + tokens;
    let keys = rows(positions.clone(), DIM);
    cache
        .append(layer, &keys, &rows(positions, VALUE_DIM))
        .unwrap();
}

/// Layer 0 has the window.
fn cache(window: usize, slack: usize, tail_block: usize) -> HiraCache {
    let index = IndexConfig::new(DIM).with_segment_len(SEGMENT_LEN);
    let config = CacheConfig::new(2, 1, 1, DIM, 100_000)
        .with_value_dim(VALUE_DIM)
        .with_index(index)
        .with_tail_block(tail_block)
        .with_windows(vec![Some(window)])
        .with_evict_slack(slack);
    HiraCache::new(config).unwrap()
}

/// The layer holds what a query after its tokens sees, at the positions where it was stored; means are those of `whole`, which forgets nothing.
fn assert_holds(cache: &HiraCache, whole: &HiraCache, window: usize) {
    let (head, all) = (
        &cache.layer(0).unwrap().heads()[0],
        &whole.layer(0).unwrap().heads()[0],
    );
    head.index().validate().unwrap();
    assert_eq!((head.len(), all.evicted()), (all.len(), 0));
    let len = head.len();
    let first = (len + 1).saturating_sub(window).min(len);
    assert!(head.evicted() <= first, "{} {first}", head.evicted());
    for position in head.evicted()..len {
        assert_eq!(head.index().key(position), all.index().key(position));
        assert_eq!(head.values().row(position), all.values().row(position));
    }
    assert!(head.evicted() == 0 || head.index().key(head.evicted() - 1).is_none());
    let mut next = first;
    for run in head.runs(first..len) {
        assert_eq!(run.start, next);
        next += run.len;
    }
    assert_eq!(next, len);
    let block = head.means().block_keys();
    assert_eq!(head.means().len(), all.means().len());
    let of = |cache: &hira_cache::BlockMeans, wanted: usize| {
        cache.runs().find_map(|run| {
            let at = wanted.checked_sub(run.start)?;
            let dim = VALUE_DIM;
            let mean = run.means.get(at * dim..(at + 1) * dim)?.widened().to_vec();
            Some((mean, *run.radii.get(at)?, *run.norms.get(at)?))
        })
    };
    if block > 0 {
        for wanted in head.evicted().div_ceil(block)..head.means().len() {
            let mean = of(head.means(), wanted);
            assert!(mean.is_some());
            assert_eq!(mean, of(all.means(), wanted));
        }
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Append(usize),
    Back(usize),
    Evict,
    Fork,
    Reset,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_window_is_kept_whatever_the_history(
        window in prop_oneof![Just(1usize), 1usize..40, 40usize..300],
        slack in prop_oneof![Just(0usize), 0usize..50],
        tail_block in prop::sample::select(vec![0usize, 16, 64]),
        operations in prop::collection::vec(
            prop_oneof![
                4 => (0usize..4).prop_map(Operation::Append),
                3 => (4usize..150).prop_map(Operation::Append),
                2 => (0usize..200).prop_map(Operation::Back),
                1 => Just(Operation::Evict),
                1 => Just(Operation::Fork),
                1 => Just(Operation::Reset),
            ],
            1..40,
        ),
    ) {
        let mut some = cache(window, slack, tail_block);
        let mut whole = cache(window, usize::MAX, tail_block);
        let mut forks = Vec::new();
        // The furthest that was appended to since the last time that everything was there.
        let mut furthest = 0;
        for operation in operations {
            match operation {
                Operation::Append(tokens) => {
                    if tokens > 0 {
                        furthest = furthest.max(some.seq_len(0));
                    }
                    append(&mut some, 0, tokens);
                    append(&mut whole, 0, tokens);
                }
                Operation::Back(tokens) => {
                    let (len, before) = (some.seq_len(0).saturating_sub(tokens), some.seq_len(0));
                    match some.truncate(len) {
                        Ok(()) => whole.truncate(len).unwrap(),
                        Err(CacheError::Evicted { least, received }) => {
                            prop_assert!(received == len && least > len && least <= before);
                            prop_assert!(furthest - len > slack, "{} {}", furthest, len);
                            prop_assert_eq!(some.seq_len(0), before);
                            some.truncate(least).unwrap();
                            whole.truncate(least).unwrap();
                        }
                        Err(error) => return Err(TestCaseError::fail(error.to_string())),
                    }
                }
                Operation::Evict => {
                    furthest = furthest.max(some.seq_len(0));
                    some.evict();
                }
                Operation::Fork => forks.push((some.clone(), whole.clone())),
                Operation::Reset => {
                    some.reset();
                    whole.reset();
                    furthest = 0;
                }
            }
            assert_holds(&some, &whole, window);
        }
        for (some, whole) in &forks {
            assert_holds(some, whole, window);
        }
    }
}

/// A layer without a window forgets nothing, and one with it no more than it may: its memory does not grow with the sequence.
#[test]
fn memory_is_bounded_by_the_window() {
    let window = 200;
    let mut cache = cache(window, 10, 64);
    let mut most = 0;
    let mut held = 0;
    for step in 0..3000 {
        let tokens = if step % 100 == 0 { 40 } else { 1 };
        append(&mut cache, 0, tokens);
        let head = &cache.layer(0).unwrap().heads()[0];
        let rows = head.len() - head.evicted();
        held = held.max(rows);
        assert!(rows < window + 10 + SEGMENT_LEN + 40, "{rows}");
        let bytes = head.index().memory_usage().total() + head.values().bytes();
        most = most.max(bytes + head.means().bytes());
    }
    assert_eq!(cache.seq_len(0), 3000 + 30 * 39);
    assert!(held > window);
    // Rows of 4 and 3 values, a sketch, what is reserved; 512 rows of values at a time, and the log of the sample.
    assert!(most < 50_000, "{most}");
    append(&mut cache, 1, 500);
    assert_eq!(cache.layer(1).unwrap().heads()[0].evicted(), 0);
    assert_eq!(cache.layer(1).unwrap().window(), None);
}

#[test]
fn impossible_windows_are_refused() {
    let config = CacheConfig::new(1, 1, 1, DIM, 100);
    for windows in [vec![Some(0)], vec![None, Some(3)]] {
        let refused = HiraCache::new(config.clone().with_windows(windows));
        assert!(matches!(
            refused,
            Err(CacheError::Config { key: "windows", .. })
        ));
    }
}
