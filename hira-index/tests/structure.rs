//! What an index shows of itself: paths, members, and dumps that stay what they are.

mod common;

use common::{KINDS, Kind, builders, keys, small_config, updates};
use hira_index::{
    BuilderConfig, HierarchicalIndex, IncrementalUpdater, IndexConfig, KdTreeBuilder, UpdateConfig,
};
use hira_kernels::Kernel;

/// Keys on a small grid: every operation on them is exact, so that no machine can differ.
fn grid(len: usize, dim: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + i / 13 * 104_729) % 17) as f32 - 8.0;
    (0..len * dim).map(value).collect()
}

fn index(config: IndexConfig, kernel: Kernel, keys: &[f32]) -> HierarchicalIndex {
    let mut index = HierarchicalIndex::with_kernel(config, kernel).unwrap();
    index.append(keys).unwrap();
    index
}

#[test]
fn dumps_are_the_committed_ones_on_every_kernel() {
    let k_means = IndexConfig::new(3)
        .with_segment_len(32)
        .with_branching_factor(4)
        .with_min_coarse_len(0);
    let update = UpdateConfig::Incremental(IncrementalUpdater {
        every: 8,
        rebuild_every: 8,
    });
    let joined = IndexConfig::new(2)
        .with_num_levels(4)
        .with_segment_len(48)
        .with_branching_factor(2)
        .with_min_coarse_len(0)
        .with_builder(BuilderConfig::KdTree(KdTreeBuilder::default()))
        .with_update(update);
    for kernel in Kernel::available() {
        let sealed = index(k_means.clone(), kernel, &grid(37, 3));
        assert_eq!(sealed.dump(), include_str!("snapshots/k_means.txt"));
        let mut grown = index(joined.clone(), kernel, &grid(24, 2));
        for batch in grid(20, 2).chunks(8) {
            grown.append(batch).unwrap();
        }
        assert_eq!(grown.dump(), include_str!("snapshots/joined.txt"));
        grown.validate().unwrap();
    }
}

#[test]
fn paths_lead_to_every_key() {
    for (kind, builder) in KINDS.into_iter().zip(builders()) {
        for update in updates() {
            let config = small_config(5).with_builder(builder).with_update(update);
            let mut index = HierarchicalIndex::new(config).unwrap();
            for batch in keys(kind, 150, 5, 3).chunks(5 * 11) {
                index.append(batch).unwrap();
            }
            for position in 0..index.len() {
                let path = index.path(position).unwrap();
                let segment = index.segments().nth(path.segment).unwrap();
                let within = position - segment.start();
                assert_eq!(segment.position_of_slot(path.slot) as usize, within);
                assert_eq!(path.clusters.len(), segment.levels().len());
                for (level, &cluster) in path.clusters.iter().enumerate() {
                    let mut members = segment.members(level, cluster as usize);
                    assert!(members.any(|member| member as usize == within));
                    assert_eq!(
                        segment.slots(level, cluster as usize).len(),
                        segment.members(level, cluster as usize).count()
                    );
                }
                // From each cluster to one of its children.
                for (level, pair) in path.clusters.windows(2).enumerate() {
                    let children = segment.levels()[level].children(pair[0] as usize);
                    assert!(children.contains(&pair[1]));
                    assert_eq!(segment.levels()[level].parent(pair[1]), pair[0]);
                }
            }
            assert_eq!(index.path(index.len()), None);
        }
    }
}

#[test]
fn the_members_of_a_level_are_all_keys() {
    for builder in builders() {
        let index = index(
            small_config(16).with_builder(builder),
            Kernel::best(),
            &keys(Kind::Offset, 64, 16, 1),
        );
        let segment = index.segments().next().unwrap();
        for (i, level) in segment.levels().iter().enumerate() {
            let clusters = 0..level.len();
            let mut all: Vec<u32> = clusters.flat_map(|c| segment.members(i, c)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..64).collect::<Vec<_>>());
        }
        let bytes: usize = segment.levels().iter().map(|l| l.memory_usage()).sum();
        assert_eq!(bytes, index.memory_usage().levels.iter().sum::<usize>());
    }
}
