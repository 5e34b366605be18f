//! What coarse levels are for: keys in clusters. Twenty centres of norm 15, noise 0.15 a dimension, D 64.

mod common;

use common::{assert_exact, build};
use hira_index::IndexConfig;
use hira_kernels::Kernel;
use hira_search::{HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, Selection};
use hira_threshold::ThresholdRule;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const DIM: usize = 64;

/// Keys about the centres, and one query of norm 1 about each centre.
fn problem(len: usize) -> (Vec<f32>, Vec<f32>) {
    let mut rng = StdRng::seed_from_u64(20);
    let mut normal = || -> f32 { (0..12).map(|_| rng.random_range(-0.5f32..0.5)).sum() };
    let mut centres: Vec<f32> = (0..20 * DIM).map(|_| normal()).collect();
    for centre in centres.chunks_exact_mut(DIM) {
        let norm = centre.iter().map(|x| x * x).sum::<f32>().sqrt();
        centre.iter_mut().for_each(|x| *x *= 15.0 / norm);
    }
    let keys = (0..len)
        .flat_map(|i| &centres[i * 7 % 20 * DIM..][..DIM])
        .map(|c| c + 0.15 * normal())
        .collect();
    let queries = centres.iter().map(|c| c / 15.0 + 0.02 * normal()).collect();
    (keys, queries)
}

/// Mean fraction of the keys whose sketch the tree plan reads for a top-64.
fn scanned(len: usize) -> f64 {
    let (keys, queries) = problem(len);
    let config = IndexConfig::new(DIM)
        .with_segment_len(1 << 17)
        .with_min_coarse_len(0);
    let mut index = build(config, Kernel::best(), &keys);
    index.seal();
    let settings = SearchConfig::default()
        .with_plan(PlanChoice::Force(Plan::Tree))
        .with_tail_block(32);
    let searcher = HalfspaceSearcher::new(settings).expect("valid settings");
    let rule = ThresholdRule::TopK { k: 64 };
    let mut scratch = Scratch::new();
    let fractions = queries.chunks_exact(DIM).map(|query| {
        let mut out = [Selection::default()];
        searcher
            .search_group_with(&index, query, len, &rule, 0.125, &mut scratch, &mut out)
            .expect("a valid search");
        assert_exact(&index, query, len, &rule, 0.125, &out[0]);
        assert_eq!(out[0].stats.plan, Plan::Tree);
        out[0].stats.scanned as f64 / len as f64
    });
    fractions.sum::<f64>() / 20.0
}

#[test]
fn the_tree_reads_under_half_of_clustered_keys_and_less_as_they_grow() {
    let fractions = [5_000, 15_000, 45_000].map(scanned);
    println!("scanned {fractions:.3?}");
    assert!(fractions[0] < 0.5, "{fractions:?}");
    assert!(fractions.is_sorted_by(|a, b| a > b), "{fractions:?}");
}
