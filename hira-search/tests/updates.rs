//! Whatever divides, joins or merges the keys of an index, on whichever thread and whenever it ends: what is found is what brute force
//! finds.

mod common;

use common::{PLANS, ROWS, assert_exact, bits, rows, search};
use hira_index::{
    BuilderConfig, DynamicUpdater, HierarchicalIndex, IncrementalUpdater, IndexConfig,
    KMeansBuilder, KdAxis, KdTreeBuilder, RandomizedBuilder, RebuildTrigger, RebuildUpdater,
    UpdateConfig,
};
use hira_search::SearchConfig;
use hira_threshold::ThresholdRule;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn builders() -> Vec<BuilderConfig> {
    let spherical = KMeansBuilder {
        spherical: true,
        nredo: 2,
        ..KMeansBuilder::default()
    };
    let principal = KdTreeBuilder {
        axis: KdAxis::Principal,
    };
    vec![
        BuilderConfig::default(),
        BuilderConfig::KMeans(spherical),
        BuilderConfig::Randomized(RandomizedBuilder::default()),
        BuilderConfig::KdTree(KdTreeBuilder::default()),
        BuilderConfig::KdTree(principal),
        BuilderConfig::Chunk,
    ]
}

fn updates() -> Vec<UpdateConfig> {
    let rebuild = |trigger| UpdateConfig::Rebuild(RebuildUpdater { trigger });
    let (every, rebuild_every) = (7, 5);
    let (base, ratio) = (16, 2.0);
    vec![
        UpdateConfig::Seal,
        rebuild(RebuildTrigger::Always),
        rebuild(RebuildTrigger::EveryN { n: 20 }),
        rebuild(RebuildTrigger::Growth { ratio: 0.2 }),
        UpdateConfig::Incremental(IncrementalUpdater {
            every,
            rebuild_every,
        }),
        UpdateConfig::Dynamic(DynamicUpdater { base, ratio }),
    ]
}

/// A batch to append, or a share of the keys to keep.
#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Truncate(f64),
    Seal,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1usize..10).prop_map(Step::Append),
        3 => (10usize..300).prop_map(Step::Append),
        1 => (0.3..1.0).prop_map(Step::Truncate),
        1 => Just(Step::Seal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn searches_find_what_brute_force_finds(
        kind in prop::sample::select(ROWS.to_vec()),
        dim in prop::sample::select(vec![1usize, 3, 16, 64, 80]),
        num_levels in 2usize..=4,
        branching_factor in 2usize..=9,
        builder in prop::sample::select(builders()),
        update in prop::sample::select(updates()),
        k in 1usize..60,
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..7),
    ) {
        let config = IndexConfig::new(dim)
            .with_num_levels(num_levels)
            .with_branching_factor(branching_factor)
            .with_segment_len(256)
            .with_min_coarse_len(20)
            .with_builder(builder)
            .with_update(update);
        let mut index = HierarchicalIndex::new(config.clone()).unwrap();
        let mut background = HierarchicalIndex::new(config.with_background(true)).unwrap();
        for (i, step) in steps.into_iter().enumerate() {
            let len = index.len();
            for index in [&mut index, &mut background] {
                match step {
                    Step::Append(count) => {
                        index.append(&rows(kind, count, dim, seed.wrapping_add(i as u64))).unwrap();
                    }
                    Step::Truncate(share) => index.truncate((len as f64 * share) as usize),
                    Step::Seal => index.seal(),
                }
                index.validate().unwrap();
            }
            let visible = index.len() - i.min(index.len());
            let queries = rows(kind, 2, dim, !seed);
            let rule = ThresholdRule::TopK { k };
            for plan in PLANS {
                let settings = SearchConfig::default().with_plan(plan);
                let find = |index: &HierarchicalIndex| {
                    let found = search(index, &queries, visible, &rule, 0.125, settings.clone());
                    for (query, found) in queries.chunks_exact(dim).zip(&found) {
                        assert_exact(index, query, visible, &rule, 0.125, found);
                    }
                    found.iter().map(bits).collect::<Vec<_>>()
                };
                let expected = find(&index);
                prop_assert_eq!(&find(&background), &expected);
                if i % 3 == 2 {
                    background.finish_builds();
                    prop_assert_eq!(&find(&background), &expected);
                }
            }
        }
    }
}

/// More keys in one segment than 131,072, by every builder, and half as many again after a join.
#[test]
fn large_segments_are_searched_exactly() {
    let (dim, len) = (3, 132_000);
    let update = UpdateConfig::Incremental(IncrementalUpdater {
        every: 64_000,
        rebuild_every: 10,
    });
    for builder in builders() {
        let config = IndexConfig::new(dim)
            .with_segment_len(1 << 18)
            .with_builder(builder)
            .with_update(update);
        let mut index = HierarchicalIndex::new(config).unwrap();
        for (i, kind) in [ROWS[0], ROWS[1]].into_iter().enumerate() {
            index.append(&rows(kind, len / (i + 1), dim, 1)).unwrap();
            assert_eq!(index.segments().count(), 1);
            assert_eq!(index.segments().next().unwrap().updates(), i as u32);
            let query = rows(ROWS[0], 1, dim, 2);
            let rule = ThresholdRule::TopK { k: 100 };
            for plan in PLANS {
                for visible in [index.len(), len - 5] {
                    let settings = SearchConfig::default().with_plan(plan);
                    let found = search(&index, &query, visible, &rule, 0.125, settings);
                    assert_exact(&index, &query, visible, &rule, 0.125, &found[0]);
                }
            }
        }
    }
}
