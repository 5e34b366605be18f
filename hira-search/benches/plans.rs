//! Every plan against the planner's choice: on captured attention keys as in a decode step, and on clustered keys up to a million.
//!
//! `cargo bench -p hira-search --no-default-features --bench plans` prints two tables, in microseconds a group search on one thread: medians over
//! the steps, with the quartiles of the plan that the planner should match. Plans take turns step by step, so a busy machine disturbs all
//! alike, each of them first once in four steps. Captures (`$HIRA_CAPTURES`, else `shared/captures` beside the repository) are searched cold: the heads are copied until together
//! they exceed the caches, and each copy is searched once a step. Every answer is compared with that of the other plans.
//!
//! `HIRA_BENCH_KEYS=5000,100000` chooses the lengths of the second table.

use std::path::{Path, PathBuf};
use std::time::Instant;

use half::f16;
use hira_index::{HierarchicalIndex, IndexConfig};
use hira_search::{
    HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, SearchHistory, Selection,
};
use hira_threshold::ThresholdRule;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::SafeTensors;

/// Bytes of sketch and keys over which a cold table rotates.
const COLD_BYTES: usize = 160 << 20;
/// Steps measured, after [`WARM_UP`] that are not.
const STEPS: usize = 24;
const WARM_UP: usize = 4;

const PLANS: [(&str, PlanChoice); 4] = [
    ("dense", PlanChoice::Force(Plan::Dense)),
    ("scan", PlanChoice::Force(Plan::SketchScan)),
    ("tree", PlanChoice::Force(Plan::Tree)),
    ("planner", PlanChoice::Auto),
];

/// One KV head of a problem, and what each plan remembers of it.
struct Head {
    index: HierarchicalIndex,
    /// `[steps][G, D]`.
    steps: Vec<Vec<f32>>,
    histories: Vec<SearchHistory>,
}

impl Head {
    fn new(config: &IndexConfig, keys: &[f32], steps: Vec<Vec<f32>>) -> Self {
        let mut index = HierarchicalIndex::new(config.clone()).expect("a valid shape");
        index.append(keys).expect("valid keys");
        index.seal();
        Self {
            index,
            steps,
            histories: vec![SearchHistory::default(); PLANS.len()],
        }
    }
}

/// Microseconds of each search, plan by plan, and the mean fraction of keys whose sketch was read.
fn measure(heads: &mut [Head], rule: &ThresholdRule) -> Vec<(Vec<f64>, f64)> {
    let searchers = PLANS.map(|(_, plan)| {
        let config = SearchConfig::default().with_plan(plan).with_parallel(false);
        HalfspaceSearcher::new(config).expect("valid settings")
    });
    let mut times = vec![(Vec::new(), 0.0); PLANS.len()];
    let mut scratch = Scratch::new();
    let steps = heads.iter().map(|head| head.steps.len()).min().unwrap_or(0);
    for step in 0..steps {
        let mut expected: Vec<Vec<Selection>> = Vec::new();
        for turn in 0..PLANS.len() {
            // Nobody always follows the same plan into what that left in the caches.
            let plan = (turn + step) % PLANS.len();
            let searcher = &searchers[plan];
            for (h, head) in heads.iter_mut().enumerate() {
                let queries = &head.steps[step];
                let len = head.index.len();
                let mut out = vec![Selection::default(); queries.len() / head.index.dim()];
                let start = Instant::now();
                scratch.swap_history(&mut head.histories[plan]);
                searcher
                    .search_group_with(
                        &head.index,
                        queries,
                        len,
                        rule,
                        0.125,
                        &mut scratch,
                        &mut out,
                    )
                    .expect("a valid search");
                scratch.swap_history(&mut head.histories[plan]);
                let time = start.elapsed().as_secs_f64() * 1e6;
                if step >= WARM_UP {
                    times[plan].0.push(time);
                    times[plan].1 += out[0].stats.scanned as f64 / len as f64;
                }
                if turn == 0 {
                    expected.push(out);
                } else {
                    for (found, expected) in out.iter().zip(&expected[h]) {
                        assert_eq!(found.positions, expected.positions);
                        assert_eq!(found.scores, expected.scores);
                    }
                }
            }
        }
    }
    for (times, scanned) in &mut times {
        times.sort_by(f64::total_cmp);
        *scanned /= times.len() as f64;
    }
    times
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn header(first: &str) {
    println!("| {first} | dense | scan | tree | planner | planner / best | tree scans |");
    println!("|---|---|---|---|---|---|---|");
}

fn row(name: &str, times: &[(Vec<f64>, f64)]) {
    let medians: Vec<f64> = times
        .iter()
        .map(|(times, _)| quantile(times, 0.5))
        .collect();
    let best = medians[..3].iter().copied().fold(f64::INFINITY, f64::min);
    let planner = &times[3].0;
    println!(
        "| {name} | {:.0} | {:.0} | {:.0} | {:.0} ({:.0} to {:.0}) | {:.2} | {:.3} |",
        medians[0],
        medians[1],
        medians[2],
        medians[3],
        quantile(planner, 0.25),
        quantile(planner, 0.75),
        medians[3] / best,
        times[2].1,
    );
}

/// The KV heads of a capture, each with its last rows as consecutive steps.
fn captured(bytes: &[u8], config: &IndexConfig) -> Vec<Head> {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let values = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).expect("the tensor");
        let values = tensor.data().as_chunks::<2>().0.iter();
        values.map(|&b| f16::from_le_bytes(b).to_f32()).collect()
    };
    let shape = |name: &str| file.tensor(name).expect("the tensor").shape().to_vec();
    let (k, q) = (shape("k"), shape("q"));
    let (keys, queries) = (values("k"), values("q"));
    let (heads, len, dim, rows) = (k[0], k[1], k[2], q[1]);
    let group = q[0] / heads;
    let bytes = len * (5 * dim + 4) * heads;
    let mut out = Vec::new();
    for _ in 0..COLD_BYTES.div_ceil(bytes) {
        for head in 0..heads {
            let steps = (rows - STEPS - WARM_UP..rows).map(|row| {
                (head * group..(head + 1) * group)
                    .flat_map(|q| &queries[(q * rows + row) * dim..][..dim])
                    .copied()
                    .collect()
            });
            let keys = &keys[head * len * dim..(head + 1) * len * dim];
            out.push(Head::new(config, keys, steps.collect()));
        }
    }
    out
}

/// Keys about 20 centres of norm 15 with noise 0.15 a dimension, and queries about the same centres: a step moves a query a little.
fn clustered(len: usize, dim: usize) -> Head {
    let mut rng = StdRng::seed_from_u64(7);
    let mut normal = move || -> f32 {
        // The sum of twelve uniform numbers is normal enough for a cloud of keys.
        (0..12).map(|_| rng.random_range(-0.5f32..0.5)).sum()
    };
    let mut centres: Vec<f32> = (0..20 * dim).map(|_| normal()).collect();
    for centre in centres.chunks_exact_mut(dim) {
        let norm = centre.iter().map(|x| x * x).sum::<f32>().sqrt();
        centre.iter_mut().for_each(|x| *x *= 15.0 / norm);
    }
    let mut rng = StdRng::seed_from_u64(8);
    let mut keys = Vec::with_capacity(len * dim);
    for _ in 0..len {
        let centre = rng.random_range(0..20usize);
        keys.extend(
            centres[centre * dim..][..dim]
                .iter()
                .map(|c| c + 0.15 * normal()),
        );
    }
    let steps = (0..STEPS + WARM_UP)
        .map(|step| {
            let centre = &centres[step / 4 % 20 * dim..][..dim];
            centre.iter().map(|c| c / 15.0 + 0.05 * normal()).collect()
        })
        .collect();
    // Long segments: a cluster of a short one has to hold keys of several centres.
    let config = IndexConfig::new(dim)
        .with_segment_len(1 << 17)
        .with_min_coarse_len(0);
    Head::new(&config, &keys, steps)
}

fn main() {
    // Cargo passes `--bench` to a harness of one's own; `cargo test --benches` does not.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let folder = std::env::var_os("HIRA_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"),
        PathBuf::from,
    );
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.retain(|file| file.extension().is_some_and(|end| end == "safetensors"));
    files.sort();
    if files.is_empty() {
        println!(
            "no captures in {}: the first table is skipped\n",
            folder.display()
        );
    } else {
        header("capture, top-k, levels");
    }
    for file in &files {
        let bytes = std::fs::read(file).expect("a readable file");
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        for levels in [1, 3] {
            let config = IndexConfig::new(64).with_num_levels(levels);
            let mut heads = captured(&bytes, &config);
            for k in [64, 256] {
                heads.iter_mut().for_each(|head| {
                    head.histories.fill(SearchHistory::default());
                });
                let times = measure(&mut heads, &ThresholdRule::TopK { k });
                row(&format!("{name}, {k}, {levels}"), &times);
            }
        }
    }
    println!();
    header("clustered keys, top-64");
    let lengths =
        std::env::var("HIRA_BENCH_KEYS").unwrap_or_else(|_| "5000,20000,100000,1000000".into());
    for len in lengths.split(',') {
        let len: usize = len
            .trim()
            .parse()
            .expect("HIRA_BENCH_KEYS is a list of numbers");
        let mut heads = [clustered(len, 64)];
        let times = measure(&mut heads, &ThresholdRule::TopK { k: 64 });
        row(&len.to_string(), &times);
    }
}
