//! Every bound of every cluster is at or above the canonical score of every member, for queries of any size.

mod common;

use common::{Kind, dim, fitting, keys, kind, precision, small_config};
use hira_index::{HierarchicalIndex, Segment};
use hira_kernels::Kernel;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// Slots of cluster `i` of coarse level `level`.
fn slots(segment: &Segment, level: usize, i: usize) -> std::ops::Range<u32> {
    let mut range = segment.levels()[level].children(i);
    for below in &segment.levels()[level + 1..] {
        range =
            below.children(range.start as usize).start..below.children(range.end as usize - 1).end;
    }
    range
}

/// A norm that is not below that of `query`.
fn norm_up(query: &[f32]) -> f32 {
    let square: f64 = query.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    ((square.sqrt() * (1.0 + 1e-12)) as f32).next_up()
}

fn assert_bounds(index: &HierarchicalIndex, query: &[f32]) {
    let norm = norm_up(query);
    for segment in index.segments() {
        for (l, level) in segment.levels().iter().enumerate() {
            let mut covered = 0;
            for i in 0..level.len() {
                let bounds =
                    Kernel::available().map(|kernel| level.upper_bound(kernel, i, query, norm));
                let bound = bounds.fold(f32::INFINITY, f32::min);
                let members = slots(segment, l, i);
                assert_eq!(members.start, covered);
                covered = members.end;
                for slot in members {
                    let position = segment.start() + segment.position_of_slot(slot) as usize;
                    let score = index.kernel().score(query, index.key(position).unwrap());
                    assert!(
                        bound >= score,
                        "level {l} cluster {i} slot {slot}: {bound} < {score}"
                    );
                }
            }
            assert_eq!(covered as usize, segment.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn bounds_hold(
        stored in kind(),
        asked in kind(),
        dim in dim(),
        len in 1usize..130,
        num_levels in 2usize..=4,
        branching_factor in 2usize..=16,
        precision in precision(),
        seed in any::<u64>(),
    ) {
        let config = small_config(dim)
            .with_num_levels(num_levels)
            .with_branching_factor(branching_factor)
            .with_precision(precision);
        let mut index = HierarchicalIndex::new(config).unwrap();
        index.append(&fitting(precision, keys(stored, len, dim, seed))).unwrap();
        index.seal();
        for query in keys(asked, 3, dim, !seed).chunks(dim) {
            assert_bounds(&index, query);
        }
        // A query along a key has the largest scores that there are.
        assert_bounds(&index, &index.key(len / 2).unwrap().widened());
    }
}

/// Bounds are of use: close to the best score of a tight cluster.
#[test]
fn bounds_are_tight_for_tight_clusters() {
    let dim = 64;
    let centres = keys(Kind::Offset, 8, dim, 1);
    let noise = keys(Kind::Offset, 256, dim, 2);
    let rows: Vec<f32> = (0..256 * dim)
        .map(|i| centres[(i / dim % 8) * dim + i % dim] * 10.0 + noise[i] * 1e-3)
        .collect();
    let config = small_config(dim)
        .with_segment_len(256)
        .with_num_levels(2)
        .with_branching_factor(32);
    let mut index = HierarchicalIndex::new(config).unwrap();
    index.append(&rows).unwrap();
    let segment = index.segments().next().unwrap();
    let level = &segment.levels()[0];
    assert_eq!(level.len(), 8);
    let query = &keys(Kind::Offset, 1, dim, 3);
    for i in 0..8 {
        let scores = level.children(i).map(|slot| {
            index.kernel().score(
                query,
                index.key(segment.position_of_slot(slot) as usize).unwrap(),
            )
        });
        let best = scores.fold(f32::NEG_INFINITY, f32::max);
        let bound = level.upper_bound(index.kernel(), i, query, norm_up(query));
        assert!(bound - best < 0.3, "{best} {bound}");
    }
}

#[test]
fn a_level_of_a_large_segment_has_the_size_it_should() {
    let dim = 3;
    let config = hira_index::IndexConfig::new(dim)
        .with_segment_len(4096)
        .with_num_levels(4)
        .with_branching_factor(8);
    let mut index = HierarchicalIndex::new(config).unwrap();
    index.append(&keys(Kind::Offset, 4096, dim, 9)).unwrap();
    let sizes: Vec<usize> = index
        .segments()
        .next()
        .unwrap()
        .levels()
        .iter()
        .map(|level| level.len())
        .collect();
    assert_eq!(sizes[0], 8);
    assert!((64..=80).contains(&sizes[1]), "{sizes:?}");
    assert!((512..=640).contains(&sizes[2]), "{sizes:?}");
    assert_bounds(&index, &[1.0, -2.0, 0.5]);
}
