//! The group search of one KV head at 8,192 keys: three queries, top-256 and a fixed threshold, every plan.
//!
//! Keys are those of a capture (`$HIRA_CAPTURES`, else `shared/captures` beside the repository) or, without one, random. Every answer is
//! checked against brute force before it is timed.

use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{Criterion, criterion_group, criterion_main};
use half::f16;
use hira_index::{HierarchicalIndex, IndexConfig, ProductConfig};
use hira_search::{
    HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, Selection, search_naive,
};
use hira_threshold::ThresholdRule;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::SafeTensors;

const CAPTURE: &str = "smollm2-opticks-8192-layer14.safetensors";

/// Keys `[N, D]` and queries `[G, D]` of one KV head.
struct Head {
    source: &'static str,
    dim: usize,
    keys: Vec<f32>,
    queries: Vec<f32>,
}

fn head() -> Head {
    let folder = std::env::var_os("HIRA_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"),
        PathBuf::from,
    );
    std::fs::read(folder.join(CAPTURE))
        .map_or_else(|_| random_head(), |bytes| captured_head(&bytes))
}

fn captured_head(bytes: &[u8]) -> Head {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let values = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).expect("the tensor");
        let values = tensor.data().as_chunks::<2>().0.iter();
        values.map(|&b| f16::from_le_bytes(b).to_f32()).collect()
    };
    let shape = |name: &str| file.tensor(name).expect("the tensor").shape().to_vec();
    let (k, q) = (shape("k"), shape("q"));
    let (keys, queries) = (values("k"), values("q"));
    // The last row of the first KV head's query heads sees every key.
    let last = |query: usize| &queries[((query + 1) * q[1] - 1) * q[2]..(query + 1) * q[1] * q[2]];
    Head {
        source: "capture",
        dim: k[2],
        keys: keys[..k[1] * k[2]].to_vec(),
        queries: (0..q[0] / k[0]).flat_map(last).copied().collect(),
    }
}

fn random_head() -> Head {
    let dim = 64;
    let mut rng = StdRng::seed_from_u64(0);
    let mut values = |rows: usize| -> Vec<f32> {
        (0..rows * dim)
            .map(|_| rng.random_range(-2.0..2.0))
            .collect()
    };
    Head {
        source: "random",
        dim,
        keys: values(8192),
        queries: values(3),
    }
}

fn group_search(c: &mut Criterion) {
    let Head {
        source,
        dim,
        keys,
        queries,
    } = head();
    let len = keys.len() / dim;
    for (layout, levels) in [("sketch", 1), ("levels", 3)] {
        let config = IndexConfig::new(dim)
            .with_num_levels(levels)
            .with_product(Some(ProductConfig::default()));
        let mut index = HierarchicalIndex::new(config).expect("a valid shape");
        index.append(&keys).expect("valid keys");
        let mut group = c.benchmark_group(format!("{source}/{len}/{layout}"));
        for plan in [Plan::Dense, Plan::SketchScan, Plan::Tree, Plan::Product] {
            if plan == Plan::Tree && levels == 1 {
                continue;
            }
            for scale in [0.0, 0.125] {
                let rule = ThresholdRule::TopK { k: 256 };
                let config = SearchConfig::default()
                    .with_plan(PlanChoice::Force(plan))
                    .with_parallel(false);
                let searcher = HalfspaceSearcher::new(config).expect("valid settings");
                let mut scratch = Scratch::new();
                let mut out = vec![Selection::default(); queries.len() / dim];
                let mut search = || {
                    let queries = black_box(queries.as_slice());
                    let result = searcher.search_group_with(
                        &index,
                        queries,
                        len,
                        &rule,
                        scale,
                        &mut scratch,
                        &mut out,
                    );
                    result.expect("a valid search");
                };
                search();
                let tail = if scale > 0.0 { "tail" } else { "no tail" };
                group.bench_function(format!("{plan:?}/top-256/{tail}"), |b| b.iter(&mut search));
                for (query, found) in queries.chunks_exact(dim).zip(&out) {
                    let expected = search_naive(&index, query, len, &rule).expect("valid");
                    assert_eq!(found.positions, expected.0);
                }
            }
        }
        group.finish();
    }
}

criterion_group!(benches, group_search);
criterion_main!(benches);
