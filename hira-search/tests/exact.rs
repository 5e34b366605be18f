//! Every plan, kernel, thread count, layout and history of an index gives what brute force gives.

mod common;

use common::{Mixed, PLANS, ROWS, Rows, assert_exact, bits, build, rows, search};
use hira_index::{HierarchicalIndex, IndexConfig, ProductConfig, SampleConfig};
use hira_kernels::Kernel;
use hira_search::{Plan, PlanChoice, SearchConfig, search_naive};
use hira_threshold::{Threshold, ThresholdRule};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use rayon::{ThreadPool, ThreadPoolBuilder};

const SCALES: [f32; 4] = [0.0, 0.125, 1.0, 1e-18];

#[derive(Debug, Clone)]
struct Case {
    config: IndexConfig,
    kernel: Kernel,
    rows: Rows,
    len: usize,
    hidden: usize,
    queries: usize,
    seed: u64,
    rule: Rule,
    scale: f32,
}

/// A rule whose threshold is found on the scores themselves, so that it means something for every kind of rows.
#[derive(Debug, Clone, Copy)]
enum Rule {
    TopK(usize),
    Percentile(f32),
    /// The score of the key at this rank, in thousandths: an exact tie.
    Score(usize),
    /// The next value above that score.
    AboveScore(usize),
    Everything,
    Nothing,
    /// A rule that looks at the index's sample.
    Sampled(ThresholdRule),
    /// A rule of one's own, which gives every query its own target.
    Mixed(usize),
}

impl Rule {
    fn resolve(
        self,
        index: &HierarchicalIndex,
        query: &[f32],
        visible: usize,
    ) -> Box<dyn Threshold> {
        let ranked = |rank: usize| {
            let everything = ThresholdRule::Fixed {
                tau: f32::NEG_INFINITY,
            };
            let (_, mut scores) =
                search_naive(index, query, visible, &everything).expect("a valid search");
            scores.sort_by(|a, b| b.total_cmp(a));
            scores.get(visible * rank / 1000).copied().unwrap_or(0.0)
        };
        Box::new(match self {
            Self::Mixed(k) => return Box::new(Mixed { k }),
            Self::Sampled(rule) => rule,
            Self::TopK(k) => ThresholdRule::TopK { k },
            Self::Percentile(percent) => ThresholdRule::Percentile { percent },
            Self::Score(rank) => ThresholdRule::Fixed { tau: ranked(rank) },
            Self::AboveScore(rank) => ThresholdRule::Fixed {
                tau: ranked(rank).next_up(),
            },
            Self::Everything => ThresholdRule::Fixed {
                tau: f32::NEG_INFINITY,
            },
            Self::Nothing => ThresholdRule::Fixed { tau: f32::INFINITY },
        })
    }
}

fn sampled() -> impl Strategy<Value = ThresholdRule> {
    prop_oneof![
        (-2.0f32..4.0).prop_map(|c| ThresholdRule::Adaptive { c }),
        Just(ThresholdRule::SampleMax),
        (1usize..6000).prop_map(|k| ThresholdRule::SampleTopK { k }),
        (0.0f32..=1.0).prop_map(|weight| ThresholdRule::SampleMeanMax { weight }),
        Just(ThresholdRule::SampleGap),
        prop_oneof![0.01f32..5.0, 5.0f32..100.0, Just(100.0)]
            .prop_map(|percent| ThresholdRule::Budget { percent }),
    ]
}

fn rules() -> impl Strategy<Value = Rule> {
    prop_oneof![
        4 => prop_oneof![1usize..4, 4usize..300, Just(10_000)].prop_map(Rule::TopK),
        2 => prop_oneof![0.01f32..5.0, 5.0f32..100.0, Just(100.0)].prop_map(Rule::Percentile),
        2 => (0usize..400).prop_map(Rule::Score),
        1 => (0usize..400).prop_map(Rule::AboveScore),
        1 => Just(Rule::Everything),
        1 => Just(Rule::Nothing),
        6 => sampled().prop_map(Rule::Sampled),
        2 => (0usize..100).prop_map(Rule::Mixed),
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let kernels: Vec<Kernel> = Kernel::available().collect();
    let shape = (
        prop::sample::select(vec![1usize, 3, 16, 64, 80, 96, 128, 256]),
        prop_oneof![Just(0usize), 1usize..40, 40usize..700, 2000usize..5000],
        prop::sample::select(vec![0usize, 1, 2, 3]),
        prop::sample::select(vec![16usize, 64, 1024, 8192]),
        prop::sample::select(vec![0usize, 1, 16, 256, 65_536]),
        prop::sample::select(kernels),
        prop_oneof![
            1 => Just(None),
            1 => (1usize..20, prop::sample::select(vec![4u32, 8])).prop_map(Some),
        ],
    );
    let work = (
        prop::sample::select(ROWS.to_vec()),
        prop_oneof![2 => Just(0usize), 1 => 1usize..2000],
        1usize..5,
        any::<u64>(),
        rules(),
        prop::sample::select(SCALES.to_vec()),
    );
    (shape, work).prop_map(
        |(
            (dim, len, levels, segment_len, sample, kernel, product),
            (rows, hidden, queries, seed, rule, scale),
        )| {
            Case {
                config: IndexConfig::new(dim)
                    .with_num_levels(levels)
                    .with_branching_factor(8)
                    .with_min_coarse_len(0)
                    .with_segment_len(segment_len)
                    .with_sample(SampleConfig { size: sample, seed })
                    .with_product(product.map(|(subvectors, bits)| {
                        // Short training: the answers are the same, and the cases many.
                        ProductConfig::default()
                            .with_subvectors(subvectors)
                            .with_bits(bits)
                            .with_max_iterations(2)
                            .with_train(300)
                    })),
                kernel,
                rows,
                // Keeps the largest cases within a second or two of debug time.
                len: len.min(260_000 / dim),
                hidden,
                queries,
                seed,
                rule,
                scale,
            }
        },
    )
}

fn pools() -> Vec<ThreadPool> {
    [1, 2, 4]
        .map(|threads| {
            ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a pool")
        })
        .into()
}

fn settings() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/exact.regressions",
        ))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn every_plan_agrees_with_brute_force(case in cases()) {
        let dim = case.config.dim;
        let keys = rows(case.rows, case.len, dim, case.seed);
        let queries = rows(case.rows, case.queries, dim, !case.seed);
        let index = build(case.config.clone(), case.kernel, &keys);
        let visible = case.len - case.hidden.min(case.len);
        let rule = case.rule.resolve(&index, &queries[..dim], visible);
        for plan in PLANS {
            let config = SearchConfig::default().with_plan(plan).with_parallel(false);
            let found = search(&index, &queries, visible, &*rule, case.scale, config);
            for (query, selection) in queries.chunks_exact(dim).zip(&found) {
                assert_exact(&index, query, visible, &*rule, case.scale, selection);
            }
        }
    }
}

#[test]
fn kernels_plans_and_threads_give_the_same_bits() {
    let (dim, len) = (64, 20_000);
    let keys = rows(Rows::Plain, len, dim, 1);
    let queries = rows(Rows::Plain, 3, dim, 2);
    let config = IndexConfig::new(dim)
        .with_segment_len(4096)
        .with_product(Some(ProductConfig::default()));
    let pools = pools();
    for rule in [
        ThresholdRule::TopK { k: 100 },
        ThresholdRule::Fixed { tau: 9.0 },
        ThresholdRule::SampleTopK { k: 100 },
        ThresholdRule::Adaptive { c: 2.0 },
    ] {
        let mut expected = None;
        for kernel in Kernel::available() {
            let index = build(config.clone(), kernel, &keys);
            for plan in PLANS {
                let settings = SearchConfig::default().with_plan(plan);
                let alone = settings.clone().with_parallel(false);
                let found = search(&index, &queries, len, &rule, 0.125, alone);
                let answer: Vec<_> = found.iter().map(bits).collect();
                assert_eq!(*expected.get_or_insert(answer.clone()), answer);
                for pool in &pools {
                    let again = pool
                        .install(|| search(&index, &queries, len, &rule, 0.125, settings.clone()));
                    assert_eq!(found, again, "{plan:?} on {pool:?}");
                }
            }
        }
    }
}

#[test]
fn the_history_of_an_index_does_not_matter() {
    let (dim, len) = (16, 700);
    let keys = rows(Rows::Integers, len, dim, 3);
    let queries = rows(Rows::Integers, 2, dim, 4);
    let rules = [
        ThresholdRule::TopK { k: 50 },
        ThresholdRule::Budget { percent: 10.0 },
        ThresholdRule::SampleMeanMax { weight: 0.5 },
    ];
    for segment_len in [16, 64, 1024] {
        for (levels, rule) in [0, 1, 3].into_iter().zip(rules) {
            let config = IndexConfig::new(dim)
                .with_num_levels(levels)
                .with_min_coarse_len(0)
                .with_segment_len(segment_len)
                .with_product(Some(ProductConfig::default().with_subvectors(5)));
            let mut grown = HierarchicalIndex::new(config.clone()).expect("a valid shape");
            let mut batches = grown.clone();
            let mut rest = keys.as_slice();
            for (i, key) in keys.chunks_exact(dim).enumerate() {
                grown.append(key).expect("a valid key");
                let (batch, after) = rest.split_at((dim * (1 + i * 7 % 90)).min(rest.len()));
                batches.append(batch).expect("valid keys");
                rest = after;
            }
            let whole = build(config, Kernel::best(), &keys);
            for plan in PLANS {
                let settings = SearchConfig::default().with_plan(plan);
                let found = |index: &HierarchicalIndex| -> Vec<_> {
                    let found = search(index, &queries, len, &rule, 0.0, settings.clone());
                    found.iter().map(bits).collect()
                };
                let expected = found(&whole);
                assert_eq!(found(&grown), expected);
                assert_eq!(found(&batches), expected);
            }
        }
    }
}

/// Every prefix is searched while the keys arrive one by one: the newest key is found at once, no later one is seen.
#[test]
fn every_visible_prefix_is_exact() {
    let (dim, len) = (8, 150);
    let keys = rows(Rows::Duplicates, len, dim, 5);
    let config = IndexConfig::new(dim)
        .with_min_coarse_len(0)
        .with_branching_factor(4)
        .with_segment_len(64)
        .with_sample(SampleConfig { size: 20, seed: 1 })
        .with_product(Some(ProductConfig::default().with_subvectors(3)));
    let index = build(config, Kernel::best(), &keys);
    for visible in 0..=len {
        for rule in [
            ThresholdRule::TopK { k: 7 },
            ThresholdRule::SampleTopK { k: 7 },
        ] {
            for plan in PLANS {
                let settings = SearchConfig::default().with_plan(plan);
                let query = &keys[visible.min(len - 1) * dim..][..dim];
                let found = search(&index, query, visible, &rule, 0.5, settings);
                assert_exact(&index, query, visible, &rule, 0.5, &found[0]);
            }
        }
    }
}

/// The sample sees the best keys only and guesses far too high: the proof fails, and the second scan is exact.
#[test]
fn a_wrong_guess_costs_a_second_scan_and_nothing_else() {
    let (dim, len) = (4, 8192);
    let mut keys = rows(Rows::Plain, len, dim, 6);
    for (position, key) in keys.chunks_exact_mut(dim).enumerate() {
        // 512 keys are sampled: every 16th tile, from the middle of the stride.
        if position / 16 % 16 == 8 {
            key[0] += 100.0;
        }
    }
    let query = [1.0, 0.1, -0.1, 0.2];
    let index = build(
        IndexConfig::new(dim).with_num_levels(1),
        Kernel::best(),
        &keys,
    );
    for k in [100, 500, 513, 700, 2000] {
        let rule = ThresholdRule::TopK { k };
        let settings = SearchConfig::default().with_plan(PlanChoice::Force(Plan::SketchScan));
        let found = search(&index, &query, len, &rule, 0.125, settings);
        assert_exact(&index, &query, len, &rule, 0.125, &found[0]);
        assert!(found[0].stats.rescanned, "{k}");
    }
}
