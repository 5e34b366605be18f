//! What a search remembers changes its speed, never its answer; and the forms of a search that need no scratch.

mod common;

use common::{PLANS, ROWS, Rows, assert_exact, bits, build, rows};
use hira_index::{HierarchicalIndex, IndexConfig};
use hira_kernels::Kernel;
use hira_search::{
    FirstThreshold, HalfspaceSearcher, Hit, Plan, PlanChoice, Reason, Scratch, SearchConfig,
    SearchHistory, Selection, search_naive,
};
use hira_threshold::ThresholdRule;

fn searcher(plan: PlanChoice) -> HalfspaceSearcher {
    HalfspaceSearcher::new(SearchConfig::default().with_plan(plan).with_tail_block(64))
        .expect("valid settings")
}

fn clustered(len: usize, dim: usize) -> HierarchicalIndex {
    let config = IndexConfig::new(dim)
        .with_segment_len(1024)
        .with_branching_factor(8)
        .with_min_coarse_len(0);
    build(config, Kernel::best(), &rows(Rows::Clusters, len, dim, 1))
}

/// One scratch goes through indexes of other lengths, kinds and dimensions, and through truncations.
#[test]
fn a_scratch_may_remember_anything() {
    let mut scratch = Scratch::new();
    for plan in PLANS {
        let searcher = searcher(plan);
        for (seed, kind) in ROWS.into_iter().enumerate() {
            for (dim, len) in [(16, 3000), (5, 90), (16, 2500)] {
                let config = IndexConfig::new(dim)
                    .with_segment_len(1024)
                    .with_min_coarse_len(0);
                let mut index = build(config, Kernel::best(), &rows(kind, len, dim, seed as u64));
                for step in 0..4 {
                    let queries = rows(kind, 3, dim, 100 + step / 2);
                    let rule = ThresholdRule::TopK { k: 40 };
                    let visible = index.len() - step as usize;
                    let mut out = vec![Selection::default(); 3];
                    searcher
                        .search_group_with(
                            &index,
                            &queries,
                            visible,
                            &rule,
                            0.25,
                            &mut scratch,
                            &mut out,
                        )
                        .expect("valid");
                    for (query, found) in queries.chunks_exact(dim).zip(&out) {
                        assert_exact(&index, query, visible, &rule, 0.25, found);
                    }
                    index.truncate(len - 7 * step as usize);
                }
            }
        }
    }
}

#[test]
fn the_last_step_gives_the_first_threshold_of_the_next() {
    let (dim, len) = (16, 6000);
    let index = build(
        IndexConfig::new(dim).with_num_levels(1),
        Kernel::best(),
        &rows(Rows::Plain, len, dim, 2),
    );
    let rule = ThresholdRule::TopK { k: 50 };
    let searcher = searcher(PlanChoice::Force(Plan::SketchScan));
    let (mut scratch, mut history) = (Scratch::new(), SearchHistory::default());
    let query = rows(Rows::Plain, 1, dim, 3);
    let mut step = |history: &mut SearchHistory, query: &[f32]| {
        let mut out = [Selection::default()];
        scratch.swap_history(history);
        searcher
            .search_group_with(&index, query, len, &rule, 0.0, &mut scratch, &mut out)
            .expect("valid");
        scratch.swap_history(history);
        assert_exact(&index, query, len, &rule, 0.0, &out[0]);
        out[0].stats
    };
    let first = step(&mut history, &query);
    assert_eq!(first.first_threshold, FirstThreshold::Sample);
    let near: Vec<f32> = query.iter().map(|x| x * 1.01).collect();
    let second = step(&mut history, &near);
    assert_eq!(second.first_threshold, FirstThreshold::Previous);
    assert!(second.candidates < first.candidates && !second.rescanned);
    // Another head's history knows nothing of this one.
    let other = step(&mut SearchHistory::default(), &near);
    assert_eq!(other.first_threshold, FirstThreshold::Sample);
    // A query in the opposite direction: the threshold is loose, and still proven.
    let opposite: Vec<f32> = query.iter().map(|x| -x).collect();
    assert_eq!(
        step(&mut history, &opposite).first_threshold,
        FirstThreshold::Previous
    );
    history.forget_keys();
    assert_eq!(
        step(&mut history, &query).first_threshold,
        FirstThreshold::Sample
    );
}

#[test]
fn a_tree_plan_starts_best_first() {
    let (dim, len) = (16, 8000);
    let index = clustered(len, dim);
    let query = rows(Rows::Clusters, 1, dim, 1);
    let rule = ThresholdRule::TopK { k: 20 };
    let mut out = [Selection::default()];
    searcher(PlanChoice::Force(Plan::Tree))
        .search_group_with(
            &index,
            &query,
            len,
            &rule,
            0.5,
            &mut Scratch::new(),
            &mut out,
        )
        .expect("valid");
    assert_exact(&index, &query, len, &rule, 0.5, &out[0]);
    assert_eq!(out[0].stats.first_threshold, FirstThreshold::BestFirst);
    assert!(out[0].stats.scanned < len / 3, "{:?}", out[0].stats);
    assert!(!out[0].stats.rescanned);
}

#[test]
fn hits_come_in_order_and_count_what_brute_force_counts() {
    for (seed, kind) in ROWS.into_iter().enumerate() {
        for (levels, segment_len) in [(0, 64), (1, 4096), (1, 16_384), (3, 1024)] {
            let (dim, len) = (9, 9000);
            let config = IndexConfig::new(dim)
                .with_num_levels(levels)
                .with_segment_len(segment_len)
                .with_min_coarse_len(0);
            let index = build(config, Kernel::best(), &rows(kind, len, dim, seed as u64));
            let query = rows(kind, 1, dim, 50);
            let searcher = searcher(PlanChoice::Auto);
            let all = ThresholdRule::Fixed {
                tau: f32::NEG_INFINITY,
            };
            let (_, mut scores) = search_naive(&index, &query, len, &all).expect("valid");
            scores.sort_by(f32::total_cmp);
            for tau in [
                f32::NEG_INFINITY,
                scores[10],
                scores[len - 30],
                f32::INFINITY,
            ] {
                let rule = ThresholdRule::Fixed { tau };
                let (positions, scores) = search_naive(&index, &query, len, &rule).expect("valid");
                let hits: Vec<Hit> = searcher.hits(&index, &query, tau).expect("valid").collect();
                let expected = positions.iter().zip(&scores);
                let same = |(hit, (&position, score)): (&Hit, (&u32, &f32))| {
                    hit.position == position && hit.score.to_bits() == score.to_bits()
                };
                assert!(hits.len() == positions.len() && hits.iter().zip(expected).all(same));
                let count = searcher.count_above(&index, &query, tau).expect("valid");
                assert_eq!(count, positions.len(), "{kind:?} {levels} {tau}");
            }
        }
    }
}

#[test]
fn hits_refuse_what_a_search_refuses() {
    let index = clustered(100, 4);
    let searcher = searcher(PlanChoice::Auto);
    let message = |query: &[f32], tau| {
        let counted = searcher
            .count_above(&index, query, tau)
            .map_err(|e| e.to_string());
        let hits = searcher.hits(&index, query, tau).map(|hits| hits.count());
        assert_eq!(hits.map_err(|e| e.to_string()), counted);
        counted.expect_err("a refusal")
    };
    assert!(message(&[0.0; 4], f32::NAN).contains("tau"));
    assert!(message(&[0.0; 8], 0.0).contains("8 values"));
    assert!(message(&[0.0; 3], 0.0).contains("3 values"));
    assert!(message(&[0.0, f32::NAN, 0.0, 0.0], 0.0).contains("column 1"));
    let empty = HierarchicalIndex::new(IndexConfig::new(4)).expect("a valid shape");
    assert_eq!(searcher.count_above(&empty, &[0.0; 4], 0.0), Ok(0));
}

#[test]
fn explain_says_what_was_done() {
    let (dim, len) = (16, 40_000);
    let index = clustered(len, dim);
    let queries = rows(Rows::Clusters, 2, dim, 1);
    let rule = ThresholdRule::TopK { k: 20 };
    let (mut scratch, mut out) = (Scratch::new(), vec![Selection::default(); 2]);
    let mut explain = |plan: PlanChoice, visible: usize| {
        searcher(plan)
            .explain(
                &index,
                &queries,
                visible,
                &rule,
                0.0,
                &mut scratch,
                &mut out,
            )
            .expect("valid")
    };
    let probe = explain(PlanChoice::Auto, len);
    let chosen = probe.chosen.expect("a search");
    assert_eq!((chosen.plan, chosen.reason), (Plan::Tree, Reason::Probe));
    let learned = explain(PlanChoice::Auto, len);
    let chosen = learned.chosen.expect("a search");
    assert_eq!((chosen.plan, chosen.reason), (Plan::Tree, Reason::Cheapest));
    let estimate = learned.estimated().expect("the plan was estimated").work;
    let actual = learned.actual;
    assert!(actual.nanos > 0.0);
    assert!(actual.sketched < len as f64 / 2.0);
    assert!((0.5..2.0).contains(&(estimate.sketched / actual.sketched)));
    let text = learned.to_string();
    for part in [
        "search of 2 queries over 40000 of 40000 keys of dimension 16, clusters ",
        "plan: tree, ",
        "est. sketch scan",
        "actual",
        "query 1: ",
        "first threshold from the last step",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    // Survivors for each key wanted are a moving average: after some steps the estimate is that of these keys.
    let mut last = learned;
    for _ in 0..40 {
        last = explain(PlanChoice::Auto, len);
    }
    let ratio = last.estimated().expect("an estimate").work.scored / last.actual.scored;
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
    let forced = explain(PlanChoice::Force(Plan::Dense), 1000);
    assert_eq!(forced.chosen.map(|c| c.reason), Some(Reason::Forced));
    assert_eq!(
        (forced.actual.scored, forced.actual.sketched),
        (1000.0, 0.0)
    );
    let nothing = explain(PlanChoice::Auto, 0);
    assert_eq!(nothing.chosen, None);
    assert!(nothing.to_string().contains("nothing to search"));
}

#[test]
fn batches_do_not_depend_on_their_order() {
    let (dim, len) = (16, 5000);
    let index = clustered(len, dim);
    let queries = rows(Rows::Clusters, 24, dim, 9);
    let rule = ThresholdRule::TopK { k: 30 };
    for plan in PLANS {
        let searcher = searcher(plan);
        let found = searcher
            .search_batch(&index, &queries, &rule)
            .expect("valid");
        for (query, found) in queries.chunks_exact(dim).zip(&found) {
            let alone = searcher.search(&index, query, &rule).expect("valid");
            assert_eq!(bits(&alone), bits(found));
        }
    }
}
