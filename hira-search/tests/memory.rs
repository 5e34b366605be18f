//! A search in steady state asks the allocator for nothing.
//!
//! The counts are those of the calling thread, so the searches stay on it; no other test shares this binary.

mod common;

use common::{PLANS, Rows, build, rows};
use hira_index::{IndexConfig, ProductConfig};
use hira_kernels::Kernel;
use hira_search::{HalfspaceSearcher, Scratch, SearchConfig, SearchHistory, Selection};
use hira_threshold::ThresholdRule;

#[test]
fn steady_state_does_not_allocate() {
    let (dim, len) = (32, 20_000);
    let keys = rows(Rows::Plain, len, dim, 1);
    let config = IndexConfig::new(dim)
        .with_segment_len(4096)
        .with_min_coarse_len(0)
        .with_product(Some(ProductConfig::default()));
    let index = build(config, Kernel::best(), &keys);
    let queries: Vec<Vec<f32>> = (0..16)
        .map(|seed| rows(Rows::Plain, 3, dim, seed))
        .collect();
    let rules = [
        ThresholdRule::TopK { k: 100 },
        ThresholdRule::Percentile { percent: 2.0 },
        ThresholdRule::Fixed { tau: 12.0 },
        ThresholdRule::Adaptive { c: 2.0 },
        ThresholdRule::SampleTopK { k: 100 },
        ThresholdRule::SampleGap,
    ];
    for plan in PLANS {
        for rule in rules {
            let settings = SearchConfig::default()
                .with_plan(plan)
                .with_parallel(false)
                .with_tail_block(64);
            let searcher = HalfspaceSearcher::new(settings).expect("valid settings");
            let mut scratch = Scratch::new();
            let mut history = SearchHistory::default();
            let mut out = vec![Selection::default(); 3];
            let mut search = |queries: &[f32]| {
                scratch.swap_history(&mut history);
                let searched = searcher.search_group_with(
                    &index,
                    queries,
                    len,
                    &rule,
                    0.125,
                    &mut scratch,
                    &mut out,
                );
                scratch.swap_history(&mut history);
                searched.expect("a valid search");
            };
            // Every query has been seen in every state that the planner goes through.
            for _ in 0..40 {
                queries.iter().for_each(|queries| search(queries));
            }
            let counted = allocation_counter::measure(|| {
                queries.iter().for_each(|queries| search(queries));
            });
            assert_eq!(counted.count_total, 0, "{plan:?} {rule}: {counted:?}");
        }
    }
}

#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!(counted.count_total, 1);
}
