//! The rule by mass: what is selected is a halfspace, what is dropped is proven, and little is kept for nothing.

mod common;

use std::ops::Range;

use common::{PLANS, ROWS, Rows, assert_exact, build, rows};
use hira_index::{HierarchicalIndex, IndexConfig};
use hira_kernels::Kernel;
use hira_search::{
    HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, SearchError, Selection,
};
use hira_threshold::{Cut, RuleInput, Threshold, ThresholdError, ThresholdRule};
use proptest::prelude::*;

/// Keys in order of score, best first, with their share of the softmax mass, in f64.
fn shares(index: &HierarchicalIndex, query: &[f32], visible: Range<usize>, scale: f32) -> Vec<f64> {
    let score = |at| Kernel::Scalar.score(query, index.key(at).expect("a stored key"));
    let mut scores: Vec<f64> = visible.map(|at| f64::from(score(at))).collect();
    scores.sort_by(|a, b| b.total_cmp(a));
    let best = scores[0];
    let weights = scores.iter().map(|s| (f64::from(scale) * (s - best)).exp());
    let weights: Vec<f64> = weights.collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// Asserts that the selection is every key that reaches its threshold, and that the others hold at most `1 - mass`, in truth and by its tail.
fn assert_mass(
    index: &HierarchicalIndex,
    query: &[f32],
    visible: Range<usize>,
    mass: f32,
    scale: f32,
    found: &Selection,
) {
    let halfspace = ThresholdRule::Fixed {
        tau: found.tail.reference,
    };
    assert_exact(index, query, visible.clone(), &halfspace, scale, found);
    let shares = shares(index, query, visible, scale);
    let (kept, dropped) = shares.split_at(found.len());
    let eps = 1.0 - f64::from(mass);
    let dropped: f64 = dropped.iter().sum();
    assert!(dropped <= eps, "{dropped} of {eps}: {:?}", found.stats);
    // The tail, brought to the share of the mass that the caller makes of it.
    let best = found.scores.iter().copied().fold(f32::MIN, f32::max);
    let to_best = f64::from(scale) * (f64::from(found.tail.reference) - f64::from(best));
    let tail = found.tail.sum * to_best.exp();
    let sum: f64 = kept.iter().map(|share| share / shares[0]).sum();
    assert!(
        tail / (tail + sum) <= eps,
        "{tail} beside {sum}: {:?}",
        found.stats
    );
}

fn searcher(plan: PlanChoice) -> HalfspaceSearcher {
    HalfspaceSearcher::new(SearchConfig::default().with_plan(plan)).expect("valid settings")
}

proptest! {
    #[test]
    fn masses_are_kept_by_every_plan_on_every_kind_of_rows(
        kind in 0..ROWS.len(),
        seed in any::<u64>(),
        len in 1usize..3000,
        hidden in 0usize..50,
        front in prop_oneof![Just(0.0), 0.0..1.0],
        dim in 1usize..20,
        mass in prop_oneof![Just(1.0f32), Just(0.5), 0.9f32..0.9999, 0.001f32..1.0],
        scale in prop_oneof![Just(0.125f32), 1e-3f32..2.0, Just(1e-12), Just(1e6)],
        segment in 1usize..40,
    ) {
        let keys = rows(ROWS[kind], len, dim, seed);
        let queries = rows(ROWS[(seed % ROWS.len() as u64) as usize], 3, dim, seed ^ 1);
        let end = len.saturating_sub(hidden).max(1);
        let visible = (end as f64 * front) as usize..end;
        let rule = ThresholdRule::Mass { mass };
        let config = IndexConfig::new(dim).with_segment_len(16 * segment);
        let config = if seed % 3 == 0 { config } else { config.with_num_levels(1) };
        for kernel in Kernel::available() {
            let index = build(config.clone(), kernel, &keys);
            let mut scratch = Scratch::new();
            for plan in PLANS {
                let mut out = vec![Selection::default(); 3];
                // Twice: the second search starts from what the first one kept.
                for _ in 0..2 {
                    let found = searcher(plan).search_group_with(
                        &index, &queries, visible.clone(), &rule, scale, &mut scratch, &mut out,
                    );
                    prop_assert!(found.is_ok());
                    for (query, found) in queries.chunks_exact(dim).zip(&out) {
                        assert_mass(&index, query, visible.clone(), mass, scale, found);
                    }
                }
            }
        }
    }
}

/// Queries that wander, over enough keys that the first threshold is a guess: some guesses are too high.
#[test]
fn guesses_that_fail_are_mended() {
    let (dim, len) = (16, 12_000);
    for kind in [
        Rows::Plain,
        Rows::Clusters,
        Rows::Outlier,
        Rows::Duplicates,
        Rows::Norms,
    ] {
        let keys = rows(kind, len, dim, 3);
        let index = build(
            IndexConfig::new(dim).with_segment_len(4096),
            Kernel::best(),
            &keys,
        );
        let mut scratch = Scratch::new();
        let mut out = vec![Selection::default(); 2];
        for step in 0..6 {
            let queries = rows(Rows::Plain, 2, dim, 40 + step / 2);
            for (mass, scale) in [(0.99, 4.0), (0.9, 0.25), (0.999, 1.0)] {
                let rule = ThresholdRule::Mass { mass };
                let plan = PlanChoice::Force(Plan::SketchScan);
                searcher(plan)
                    .search_group_with(&index, &queries, len, &rule, scale, &mut scratch, &mut out)
                    .expect("a valid search");
                for (query, found) in queries.chunks_exact(dim).zip(&out) {
                    assert_eq!(found.stats.plan, Plan::SketchScan);
                    assert_mass(&index, query, 0..len, mass, scale, found);
                }
            }
        }
    }
}

/// With exact scores of all keys, as a dense plan has them, no fewer keys could be kept: one key less and the rest holds too much.
#[test]
fn a_dense_plan_keeps_the_fewest_keys() {
    let (dim, len) = (12, 2500);
    let keys = rows(Rows::Plain, len, dim, 5);
    let index = build(IndexConfig::new(dim), Kernel::best(), &keys);
    let query = rows(Rows::Plain, 1, dim, 6);
    for mass in [0.5, 0.9, 0.99] {
        for scale in [0.3, 1.0, 3.0] {
            let rule = ThresholdRule::Mass { mass };
            let plan = SearchConfig::default().with_plan(PlanChoice::Force(Plan::Dense));
            let found = &common::search(&index, &query, len, &rule, scale, plan)[0];
            assert_mass(&index, &query, 0..len, mass, scale, found);
            let mut dropped = 0.0;
            let shares = shares(&index, &query, 0..len, scale);
            // Thresholds are told apart to a 1024th of a logit, and a 512th of the share is left to rounding.
            let eps = (1.0 - f64::from(mass)) * 0.99;
            let droppable = shares.iter().rev().take_while(|&&share| {
                dropped += share;
                dropped <= eps
            });
            assert!(found.len() <= len - droppable.count(), "{mass} {scale}");
        }
    }
}

/// A rule of one's own that asks for a share that may be dropped.
struct Drop(f32);

impl Threshold for Drop {
    fn validate(&self) -> Result<(), ThresholdError> {
        Ok(())
    }

    fn cut(&self, _: &RuleInput<'_>) -> Cut {
        Cut::Mass { dropped: self.0 }
    }
}

#[test]
fn shares_at_and_beyond_the_ends() {
    let keys = rows(Rows::Plain, 100, 4, 1);
    let index = build(IndexConfig::new(4), Kernel::best(), &keys);
    let search = |dropped: f32, scale: f32| {
        let mut out = [Selection::default()];
        let plan = PlanChoice::Auto;
        searcher(plan)
            .search_group_with(
                &index,
                &keys[..4],
                100,
                &Drop(dropped),
                scale,
                &mut Scratch::new(),
                &mut out,
            )
            .map(|()| out[0].len())
    };
    assert_eq!(search(0.0, 1.0), Ok(100));
    assert_eq!(search(-1.0, 1.0), Ok(100));
    assert_eq!(search(1.0, 1.0), Ok(1));
    assert_eq!(search(f32::INFINITY, 1.0), Ok(1));
    assert_eq!(
        search(f32::NAN, 1.0),
        Err(SearchError::RuleNan { query: 0 })
    );
    let refused = search(0.1, 0.0).expect_err("no scale");
    assert!(refused.to_string().contains("`scale` must be above 0"));
}

#[test]
fn a_limit_of_candidates_cuts_a_mass() {
    let keys = rows(Rows::Plain, 500, 4, 1);
    let index = build(IndexConfig::new(4), Kernel::best(), &keys);
    for plan in PLANS {
        let config = SearchConfig {
            max_candidates: Some(7),
            ..SearchConfig::default().with_plan(plan)
        };
        let rule = ThresholdRule::Mass { mass: 0.999 };
        let found = &common::search(&index, &keys[..4], 500, &rule, 0.1, config)[0];
        assert_eq!((found.len(), found.stats.truncated), (7, true));
        common::assert_tail(&index, &keys[..4], 500, 0.1, found);
    }
}
