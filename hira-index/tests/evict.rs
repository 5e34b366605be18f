//! Eviction: what lies in front goes by whole segments, and everything else stays where it was.

mod common;

use common::{Kind, bits, builder, keys, precision, rounded, small_config, update};
use hira_index::{HierarchicalIndex, IndexConfig, SampleConfig};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Seal,
    /// A share of the keys, which may have been evicted.
    Truncate(f64),
    Evict(f64),
    /// With the open segment frozen, or copied.
    Fork(bool),
    FinishBuilds,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1usize..20).prop_map(Step::Append),
        4 => (20usize..200).prop_map(Step::Append),
        1 => Just(Step::Seal),
        2 => (0.0..1.0).prop_map(Step::Truncate),
        4 => (0.0..1.2).prop_map(Step::Evict),
        2 => any::<bool>().prop_map(Step::Fork),
        1 => Just(Step::FinishBuilds),
    ]
}

/// The index holds the end of `expected`, and nothing before `evicted`.
fn assert_holds(index: &HierarchicalIndex, expected: &[f32]) {
    index.validate().unwrap();
    let (dim, first) = (index.dim(), index.evicted());
    assert_eq!(index.positions(), first..expected.len() / dim);
    assert!(first == 0 || index.key(first - 1).is_none());
    assert!(index.path(first.wrapping_sub(1)).is_none());
    assert!(index.key(index.len()).is_none());
    let joined: Vec<f32> = index
        .segments()
        .flat_map(|segment| segment.keys().widened().into_owned())
        .collect();
    assert_eq!(bits(&joined), bits(&expected[first * dim..]));
    for position in index.positions() {
        let key = index.key(position).unwrap();
        let row = &expected[position * dim..][..dim];
        assert_eq!(bits(&key.widened()), bits(row));
    }
    let mut sample = Vec::new();
    index.sample_range(0..usize::MAX, &mut sample);
    assert!(
        sample
            .iter()
            .all(|&at| index.positions().contains(&(at as usize)))
    );
    assert_eq!(
        sample.len(),
        index.positions().len().min(index.config().sample.size)
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_stored_is_the_end_of_what_was_appended(
        builder in builder(),
        update in update(),
        background in any::<bool>(),
        precision in precision(),
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..14),
    ) {
        let dim = 5;
        let config = small_config(dim)
            .with_min_coarse_len(30)
            .with_builder(builder)
            .with_update(update)
            .with_background(background)
            .with_precision(precision)
            .with_sample(SampleConfig { size: 20, seed });
        let segment_len = config.segment_len;
        let mut index = HierarchicalIndex::new(config).unwrap();
        let mut expected: Vec<f32> = Vec::new();
        let mut forks = Vec::new();
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(rows) => {
                    let batch = keys(Kind::Offset, rows, dim, seed.wrapping_add(i as u64));
                    index.append(&batch).unwrap();
                    expected.extend(rounded(precision, &batch));
                }
                Step::Seal => index.seal(),
                Step::Truncate(share) => {
                    let len = (index.len() as f64 * share) as usize;
                    let first = index.evicted().min(len);
                    index.truncate(len);
                    expected.truncate(len * dim);
                    prop_assert_eq!((index.evicted(), index.len()), (first, len));
                }
                Step::Evict(share) => {
                    let before = (index.len() as f64 * share) as usize;
                    let fork = index.clone();
                    let held = index.evicted();
                    index.evict(before);
                    prop_assert!(index.evicted() >= held);
                    prop_assert!(index.evicted() <= before.max(held));
                    if !background {
                        let stays = before.min(index.len()).saturating_sub(index.evicted());
                        prop_assert!(stays < segment_len, "{} of {}", stays, segment_len);
                    }
                    assert_holds(&fork, &expected);
                }
                Step::Fork(frozen) => {
                    let fork = if frozen { index.fork() } else { index.clone() };
                    forks.push((fork, expected.clone()));
                }
                Step::FinishBuilds => index.finish_builds(),
            }
            assert_holds(&index, &expected);
        }
        for (mut fork, expected) in forks {
            fork.finish_builds();
            assert_holds(&fork, &expected);
        }
        index.clear();
        prop_assert_eq!(index.positions(), 0..0);
    }
}

#[test]
fn memory_is_that_of_the_keys_that_are_left() {
    let dim = 16;
    let mut index = HierarchicalIndex::new(IndexConfig::new(dim).with_segment_len(256)).unwrap();
    let batch = keys(Kind::Offset, 64, dim, 1);
    let mut most = 0;
    for _ in 0..200 {
        index.append(&batch).unwrap();
        index.evict(index.len().saturating_sub(1000));
        assert!(index.positions().len() < 1000 + 256);
        most = most.max(index.memory_usage().total());
    }
    assert_eq!(index.len(), 12_800);
    // 1,255 keys of 16 values and their sketch, what is reserved, and the sample's log
    assert!(most < 1256 * (16 * 4 + 25) * 5 / 4 + 30_000, "{most}");
}
