//! Real attention keys: every layer that was captured, against brute force.
//!
//! Reads `$HIRA_CAPTURES`, or `shared/captures` beside the repository; without either it says so and checks nothing.

mod common;

use std::path::{Path, PathBuf};

use common::{PLANS, assert_exact, build};
use half::f16;
use hira_index::{IndexConfig, ProductConfig};
use hira_kernels::Kernel;
use hira_search::{HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, Selection};
use hira_threshold::ThresholdRule;
use safetensors::{Dtype, SafeTensors};

/// One of this many query rows is checked in a debug build; `verify` checks all of them.
const STRIDE: usize = if cfg!(debug_assertions) { 61 } else { 17 };

#[test]
fn captured_heads_are_searched_exactly() {
    for file in files() {
        check(&file);
    }
}

/// What the rule by mass keeps beyond what exact scores of all keys would, and how far its bound is from the truth: medians over all
/// captured heads, search after search of the same head as in decoding.
#[test]
fn masses_are_tight_on_captured_heads() {
    for mass in [0.95, 0.99, 0.999] {
        let (mut kept, mut bounds) = (Vec::new(), Vec::new());
        for file in files() {
            tightness(&file, mass, &mut kept, &mut bounds);
        }
        if kept.is_empty() {
            return;
        }
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (kept, bound) = (median(&mut kept), median(&mut bounds));
        println!("mass {mass}: kept {kept:.3} of the fewest, bound {bound:.3} of the truth");
        assert!((1.0..=1.3).contains(&kept), "kept {kept} at mass {mass}");
        assert!((1.0..=2.0).contains(&bound), "bound {bound} at mass {mass}");
    }
}

/// For every query: keys kept over the fewest that hold the mass, and the bound on what is dropped over the truth.
fn tightness(path: &Path, mass: f32, kept: &mut Vec<f64>, bounds: &mut Vec<f64>) {
    let bytes = std::fs::read(path).expect("a readable file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (keys, [heads, len, dim]) = values(&file, "k");
    let (queries, [query_heads, rows, _]) = values(&file, "q");
    let (group, scale) = (query_heads / heads, 0.125);
    let rule = ThresholdRule::Mass { mass };
    for head in 0..heads {
        let index = build(
            IndexConfig::new(dim),
            Kernel::best(),
            &keys[head * len * dim..(head + 1) * len * dim],
        );
        let plan = PlanChoice::Force(Plan::SketchScan);
        let searcher = HalfspaceSearcher::new(SearchConfig::default().with_plan(plan))
            .expect("valid settings");
        let mut scratch = Scratch::new();
        let mut out = vec![Selection::default(); group];
        for row in (head..rows).step_by(STRIDE) {
            let visible = len - rows + row + 1;
            let queries: Vec<f32> = (head * group..(head + 1) * group)
                .flat_map(|q| &queries[(q * rows + row) * dim..][..dim])
                .copied()
                .collect();
            searcher
                .search_group_with(
                    &index,
                    &queries,
                    visible,
                    &rule,
                    scale,
                    &mut scratch,
                    &mut out,
                )
                .expect("a valid search");
            for (query, found) in queries.chunks_exact(dim).zip(&out) {
                let score = |at| Kernel::Scalar.score(query, index.key(at).expect("a key"));
                let mut scores: Vec<f32> = (0..visible).map(score).collect();
                scores.sort_by(|a, b| b.total_cmp(a));
                let weight = |score: f32| {
                    (f64::from(scale) * (f64::from(score) - f64::from(found.tail.reference))).exp()
                };
                let sum: f64 = scores.iter().copied().map(weight).sum();
                let mut rest = 0.0;
                let dropped = scores.iter().rev().take_while(|&&score| {
                    rest += weight(score);
                    rest <= (1.0 - f64::from(mass)) * sum
                });
                kept.push(found.len() as f64 / (visible - dropped.count()) as f64);
                let dropped: f64 = scores[found.len()..].iter().copied().map(weight).sum();
                let tail = found.tail.sum;
                bounds.push(tail / (tail + sum - dropped) / (dropped / sum));
            }
        }
    }
}

/// The captures, or none.
fn files() -> Vec<PathBuf> {
    let Some(folder) = captures() else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(&folder).expect("a readable folder");
    let paths = entries.map(|entry| entry.expect("a readable entry").path());
    let mut files: Vec<PathBuf> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|ending| ending == "safetensors")
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no captures in {}", folder.display());
    files
}

fn captures() -> Option<PathBuf> {
    let folder = match std::env::var_os("HIRA_CAPTURES") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"),
    };
    if folder.is_dir() {
        return Some(folder);
    }
    println!(
        "skipped: no captures at {} (set HIRA_CAPTURES)",
        folder.display()
    );
    None
}

fn values(file: &SafeTensors<'_>, name: &str) -> (Vec<f32>, [usize; 3]) {
    let tensor = file.tensor(name).expect("the tensor");
    assert_eq!(tensor.dtype(), Dtype::F16);
    let values = tensor.data().as_chunks::<2>().0.iter();
    let shape = tensor.shape().try_into().expect("three dimensions");
    (
        values.map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        shape,
    )
}

fn check(path: &Path) {
    let bytes = std::fs::read(path).expect("a readable file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (keys, [heads, len, dim]) = values(&file, "k");
    let (queries, [query_heads, rows, _]) = values(&file, "q");
    let group = query_heads / heads;
    for head in 0..heads {
        let keys = &keys[head * len * dim..(head + 1) * len * dim];
        let product = Some(ProductConfig::default());
        let index = build(
            IndexConfig::new(dim).with_product(product),
            Kernel::best(),
            keys,
        );
        let scan = build(
            IndexConfig::new(dim)
                .with_num_levels(1)
                .with_segment_len(2048)
                .with_product(product),
            Kernel::best(),
            keys,
        );
        for row in (head..rows).step_by(STRIDE) {
            let visible = len - rows + row + 1;
            let queries: Vec<f32> = (head * group..(head + 1) * group)
                .flat_map(|q| &queries[(q * rows + row) * dim..][..dim])
                .copied()
                .collect();
            for rule in [
                ThresholdRule::TopK { k: 256 },
                ThresholdRule::Percentile { percent: 0.5 },
                ThresholdRule::Fixed { tau: 20.0 },
            ] {
                for plan in PLANS {
                    let searcher = HalfspaceSearcher::new(
                        SearchConfig::default().with_plan(plan).with_tail_block(64),
                    )
                    .expect("valid settings");
                    for index in [&index, &scan] {
                        let mut out = vec![Selection::default(); group];
                        searcher
                            .search_group_with(
                                index,
                                &queries,
                                visible,
                                &rule,
                                0.125,
                                &mut Scratch::new(),
                                &mut out,
                            )
                            .expect("a valid search");
                        for (query, found) in queries.chunks_exact(dim).zip(&out) {
                            assert_exact(index, query, visible, &rule, 0.125, found);
                        }
                    }
                }
            }
        }
    }
}
