//! Conveniences, limits, errors and memory.

mod common;

use common::{Rows, assert_tail, bits, build, rows, search};
use hira_index::{HierarchicalIndex, IndexConfig, ProductConfig};
use hira_kernels::Kernel;
use hira_search::{
    HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, SearchError, Selection,
    search_naive,
};
use hira_threshold::{Cut, RuleInput, Threshold, ThresholdError, ThresholdRule};

fn searcher(config: SearchConfig) -> HalfspaceSearcher {
    HalfspaceSearcher::new(config).expect("valid settings")
}

#[test]
fn conveniences_agree_with_the_group_search() {
    let (dim, len) = (24, 3000);
    let keys = rows(Rows::Plain, len, dim, 1);
    let queries = rows(Rows::Plain, 11, dim, 2);
    let index = build(IndexConfig::new(dim), Kernel::best(), &keys);
    let rule = ThresholdRule::TopK { k: 20 };
    for parallel in [false, true] {
        let searcher = searcher(SearchConfig::default().with_parallel(parallel));
        let batch = searcher
            .search_batch(&index, &queries, &rule)
            .expect("a valid batch");
        assert_eq!(batch.len(), 11);
        for (query, found) in queries.chunks_exact(dim).zip(&batch) {
            let alone = searcher.search(&index, query, &rule).expect("valid");
            let (positions, _) = search_naive(&index, query, len, &rule).expect("valid");
            assert_eq!(found.positions, positions);
            assert_eq!(bits(found), bits(&alone));
            let top = searcher.top_k(&index, query, 20).expect("valid");
            assert_eq!(bits(&top), bits(found));
            let tau = found.scores.iter().copied().fold(f32::MAX, f32::min);
            let above = searcher.count_above(&index, query, tau).expect("valid");
            assert_eq!(above, 20);
        }
    }
}

#[test]
fn an_empty_index_selects_nothing() {
    let index = HierarchicalIndex::new(IndexConfig::new(4)).expect("a valid shape");
    for rule in [
        ThresholdRule::TopK { k: 3 },
        ThresholdRule::Percentile { percent: 50.0 },
        ThresholdRule::Fixed {
            tau: f32::NEG_INFINITY,
        },
        ThresholdRule::SampleMax,
        ThresholdRule::Adaptive { c: 1.0 },
    ] {
        let found = searcher(SearchConfig::default())
            .search(&index, &[1.0; 4], &rule)
            .expect("valid");
        assert!(found.is_empty());
        assert_eq!((found.tail.sum, found.tail.reference), (0.0, 0.0));
        assert_eq!(
            (found.stats.density(), found.stats.scanned_fraction()),
            (0.0, 0.0)
        );
    }
    let batch =
        searcher(SearchConfig::default()).search_batch(&index, &[], &ThresholdRule::TopK { k: 1 });
    assert_eq!(batch, Ok(vec![]));
}

#[test]
fn max_candidates_keeps_the_best_and_says_so() {
    let (dim, len, limit) = (8, 4000, 10);
    let keys = rows(Rows::Integers, len, dim, 3);
    let query = rows(Rows::Integers, 1, dim, 4);
    let index = build(IndexConfig::new(dim), Kernel::best(), &keys);
    let best = ThresholdRule::TopK { k: limit };
    let (expected, _) = search_naive(&index, &query, len, &best).expect("valid");
    for plan in common::PLANS {
        let settings = SearchConfig::default()
            .with_plan(plan)
            .with_max_candidates(Some(limit));
        for rule in [
            ThresholdRule::Fixed {
                tau: f32::NEG_INFINITY,
            },
            ThresholdRule::Fixed { tau: 2.0 },
            ThresholdRule::Adaptive { c: 0.0 },
            ThresholdRule::TopK { k: 500 },
            ThresholdRule::Percentile { percent: 100.0 },
        ] {
            let found = search(&index, &query, len, &rule, 0.5, settings.clone());
            assert_eq!(found[0].positions, expected, "{plan:?} {rule}");
            assert!(found[0].stats.truncated);
            assert_tail(&index, &query, len, 0.5, &found[0]);
        }
        let few = ThresholdRule::TopK { k: limit };
        let found = search(&index, &query, len, &few, 0.0, settings);
        assert!(!found[0].stats.truncated);
    }
}

#[test]
fn plans_that_cannot_be_followed_are_replaced() {
    let (dim, len) = (8, 2000);
    let keys = rows(Rows::Plain, len, dim, 5);
    let query = rows(Rows::Plain, 1, dim, 6);
    let plan = |levels: usize, forced: Plan, k: usize| {
        let config = IndexConfig::new(dim)
            .with_num_levels(levels)
            .with_segment_len(1024);
        let index = build(config, Kernel::best(), &keys);
        let settings = SearchConfig::default().with_plan(PlanChoice::Force(forced));
        let rule = ThresholdRule::TopK { k };
        search(&index, &query, len, &rule, 0.0, settings)[0].stats
    };
    assert_eq!(plan(0, Plan::Tree, 5).plan, Plan::Dense);
    assert_eq!(plan(1, Plan::Tree, 5).plan, Plan::SketchScan);
    assert_eq!(plan(3, Plan::Tree, 5).plan, Plan::Tree);
    assert_eq!(plan(3, Plan::Product, 5).plan, Plan::SketchScan);
    assert_eq!(plan(3, Plan::SketchScan, len).plan, Plan::Dense);
    let stats = plan(3, Plan::Dense, 5);
    assert_eq!(
        (stats.plan, stats.survivors, stats.scanned),
        (Plan::Dense, len, 0)
    );
}

#[test]
fn coarse_levels_prune_where_keys_are_clustered() {
    let (dim, len) = (16, 8192);
    let keys = rows(Rows::Clusters, len, dim, 7);
    let config = IndexConfig::new(dim).with_segment_len(4096);
    let index = build(config, Kernel::best(), &keys);
    let settings = SearchConfig::default().with_plan(PlanChoice::Force(Plan::Tree));
    let rule = ThresholdRule::TopK { k: 50 };
    let found = search(&index, &keys[..dim], len, &rule, 0.125, settings);
    common::assert_exact(&index, &keys[..dim], len, &rule, 0.125, &found[0]);
    assert_eq!(found[0].stats.plan, Plan::Tree);
    assert!(found[0].stats.scanned < len / 2, "{:?}", found[0].stats);
}

#[test]
fn product_codes_rule_out_tiles_where_keys_are_clustered() {
    let (dim, len) = (16, 8192);
    let keys = rows(Rows::Clusters, len, dim, 7);
    let config = IndexConfig::new(dim)
        .with_segment_len(4096)
        .with_product(Some(ProductConfig::default().with_subvectors(4)));
    let index = build(config, Kernel::best(), &keys);
    let settings = SearchConfig::default().with_plan(PlanChoice::Force(Plan::Product));
    let rule = ThresholdRule::TopK { k: 50 };
    // With hidden keys, slots of the second segment must be looked at one by one; with the small scale every key that is
    // left out weighs 1, so that the tail counts them.
    for (visible, scale) in [(len, 0.125), (len - 1000, 0.125), (len - 1000, 1e-18)] {
        let found = search(
            &index,
            &keys[..dim],
            visible,
            &rule,
            scale,
            settings.clone(),
        );
        common::assert_exact(&index, &keys[..dim], visible, &rule, scale, &found[0]);
        assert_eq!(found[0].stats.plan, Plan::Product);
        assert!(found[0].stats.scanned < len / 2, "{:?}", found[0].stats);
    }
}

#[test]
fn refusals_are_typed_and_change_nothing() {
    let dim = 4;
    let index = build(
        IndexConfig::new(dim),
        Kernel::best(),
        &rows(Rows::Plain, 10, dim, 8),
    );
    let before = vec![
        Selection {
            positions: vec![7],
            scores: vec![1.0],
            ..Selection::default()
        };
        2
    ];
    let refused = |queries: &[f32], visible, rule: ThresholdRule, scale, outputs: usize| {
        let mut out = before[..outputs].to_vec();
        let result = searcher(SearchConfig::default()).search_group_with(
            &index,
            queries,
            visible,
            &rule,
            scale,
            &mut Scratch::new(),
            &mut out,
        );
        assert_eq!(out, before[..outputs]);
        result.expect_err("a refusal")
    };
    let top = ThresholdRule::TopK { k: 2 };
    let two = [1.0; 8];
    assert_eq!(
        refused(&two[..7], 10, top, 0.0, 2),
        SearchError::Dimension {
            expected: 4,
            received: 7
        }
    );
    assert_eq!(
        refused(&two, 10, top, 0.0, 1),
        SearchError::Outputs {
            expected: 2,
            received: 1
        }
    );
    assert_eq!(
        refused(&two, 11, top, 0.0, 2),
        SearchError::Visible {
            visible: 11,
            stored: 10
        }
    );
    let mut bad = two;
    bad[6] = f32::NEG_INFINITY;
    assert_eq!(
        refused(&bad, 10, top, 0.0, 2),
        SearchError::NonFinite {
            query: 1,
            column: 2
        }
    );
    bad[6] = 2e19;
    assert_eq!(
        refused(&bad, 10, top, 0.0, 2),
        SearchError::Magnitude { query: 1 }
    );
    assert_eq!(
        refused(&two, 10, ThresholdRule::TopK { k: 0 }, 0.0, 2),
        SearchError::Threshold(ThresholdError::ZeroK)
    );
    assert_eq!(
        refused(
            &two,
            10,
            ThresholdRule::Adaptive { c: f32::INFINITY },
            0.0,
            2
        ),
        SearchError::Threshold(ThresholdError::Factor { c: f32::INFINITY })
    );
    for scale in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(
            refused(&two, 10, top, scale, 2),
            SearchError::Config { key: "scale", .. }
        ));
    }
    let zero = SearchConfig::default().with_max_candidates(Some(0));
    let error = HalfspaceSearcher::new(zero).expect_err("a refusal");
    assert_eq!(error.to_string(), "`max_candidates` must be at least 1");
    let short = searcher(SearchConfig::default()).search(&index, &two, &top);
    assert_eq!(
        short,
        Err(SearchError::Dimension {
            expected: 4,
            received: 8
        })
    );
}

/// A rule of one's own that answers the same cut for every query, but NaN from one query on.
struct Same {
    cut: Cut,
    /// The sampled score from which on the answer is NaN.
    nan_from: f32,
}

impl Threshold for Same {
    fn validate(&self) -> Result<(), ThresholdError> {
        Ok(())
    }

    fn needs_sample(&self) -> bool {
        true
    }

    fn cut(&self, input: &RuleInput<'_>) -> Cut {
        assert_eq!(input.sample.len(), input.visible.min(256));
        if input.sample[0] >= self.nan_from {
            Cut::AtLeast { tau: f32::NAN }
        } else {
            self.cut
        }
    }
}

#[test]
fn rules_of_ones_own_may_answer_anything() {
    let (dim, len) = (4, 3000);
    let mut keys = rows(Rows::Plain, len, dim, 10);
    keys[..dim].copy_from_slice(&[1.0, 0.0, 0.0, 0.0]);
    let index = build(IndexConfig::new(dim), Kernel::best(), &keys);
    // The first query scores 0 on key 0, which is sampled first where 256 keys are visible; the second scores 3.
    let queries = [0.0, 1.0, 1.0, 1.0, 3.0, 1.0, 0.0, 0.0];
    for plan in common::PLANS {
        for visible in [1, 200, 256] {
            for cut in [
                Cut::Top { k: 0 },
                Cut::Top { k: 1 },
                Cut::Top { k: usize::MAX },
                Cut::AtLeast {
                    tau: f32::NEG_INFINITY,
                },
                Cut::AtLeast { tau: f32::INFINITY },
                Cut::AtLeast { tau: f32::MIN },
                Cut::AtLeast { tau: f32::MAX },
                Cut::AtLeast { tau: -0.0 },
            ] {
                let rule = Same {
                    cut,
                    nan_from: f32::INFINITY,
                };
                let settings = SearchConfig::default().with_plan(plan);
                let found = search(&index, &queries, visible, &rule, 0.5, settings);
                for (query, found) in queries.chunks_exact(dim).zip(&found) {
                    common::assert_exact(&index, query, visible, &rule, 0.5, found);
                }
                match cut {
                    Cut::Top { k } => assert_eq!(found[0].len(), k.min(visible)),
                    Cut::AtLeast { tau } if tau < -1e30 => assert_eq!(found[0].len(), visible),
                    Cut::AtLeast { tau } if tau > 1e30 => assert!(found[0].is_empty()),
                    Cut::AtLeast { .. } | Cut::Mass { .. } => {}
                }
            }
        }
    }
    let nan = Same {
        cut: Cut::Top { k: 1 },
        nan_from: 2.0,
    };
    let before = vec![Selection::default(); 2];
    let mut out = before.clone();
    let searcher = searcher(SearchConfig::default());
    let mut scratch = Scratch::new();
    let refused =
        searcher.search_group_with(&index, &queries, 256, &nan, 0.0, &mut scratch, &mut out);
    assert_eq!(refused, Err(SearchError::RuleNan { query: 1 }));
    assert_eq!(out, before);
    assert!(search_naive(&index, &queries[..dim], 256, &nan).is_ok());
    assert_eq!(
        search_naive(&index, &queries[dim..], 256, &nan),
        Err(SearchError::RuleNan { query: 0 })
    );
    // In a batch the row is that of the batch.
    let few = build(IndexConfig::new(dim), Kernel::best(), &keys[..256 * dim]);
    let many = [&queries[..dim].repeat(9), &queries[dim..]].concat();
    assert_eq!(
        searcher.search_batch(&few, &many, &nan),
        Err(SearchError::RuleNan { query: 9 })
    );
}

#[test]
fn nothing_grows_in_steady_state() {
    let (dim, len) = (16, 12_000);
    let keys = rows(Rows::Plain, len, dim, 9);
    let config = IndexConfig::new(dim)
        .with_segment_len(4096)
        .with_product(Some(ProductConfig::default()));
    let index = build(config, Kernel::best(), &keys);
    let rules = [
        ThresholdRule::TopK { k: 100 },
        ThresholdRule::SampleTopK { k: 100 },
    ];
    let cases = common::PLANS
        .into_iter()
        .flat_map(|plan| rules.map(|rule| (plan, rule)));
    for (plan, rule) in cases {
        let searcher = searcher(SearchConfig::default().with_plan(plan));
        let mut scratch = Scratch::new();
        let mut out = vec![Selection::default(); 3];
        let mut search = |seed: u64, visible: usize| {
            let queries = rows(Rows::Plain, 3, dim, seed);
            searcher
                .search_group_with(
                    &index,
                    &queries,
                    visible,
                    &rule,
                    0.125,
                    &mut scratch,
                    &mut out,
                )
                .expect("valid");
            let held: usize = out
                .iter()
                .map(|out| out.positions.capacity() + out.scores.capacity())
                .sum();
            (scratch.memory_usage(), held)
        };
        // Every search has been seen in every state that the planner goes through.
        for seed in (0..8).cycle().take(320) {
            search(seed, len - 100 + seed as usize);
            search(seed, len);
        }
        let settled = search(0, len);
        for seed in 0..8 {
            search(seed, len - 100 + seed as usize);
            assert_eq!(search(seed, len), settled, "{plan:?}");
        }
    }
}
