//! Checks that Hira selects exactly the keys that brute force selects, on captured attention keys.
//!
//! Exit code 0: identical; 1: different; 2: bad input.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use hira_examples::capture::Capture;
use hira_index::{HierarchicalIndex, IndexConfig, ProductConfig};
use hira_kernels::Kernel;
use hira_search::{
    HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, Selection, search_naive,
};
use hira_threshold::ThresholdRule;
use rayon::prelude::*;

/// Differences that are printed; the others are counted.
const SHOWN: usize = 5;

/// Check exact selection on captured attention keys, against brute force.
///
/// The capture is a safetensors file with `k` [Hkv, N, D] and `q` [Hq, R, D] in f32, f16 or bf16. Query row i sees the keys 0..=N-R+i.
/// Exit code 0: identical to brute force; 1: different; 2: bad input.
#[derive(Debug, Parser)]
struct Arguments {
    /// The capture.
    capture: PathBuf,
    /// What to select: fixed=TAU, top-k=K, percentile=PERCENT, adaptive=C, sample-max, sample-top-k=K, sample-mean-max=WEIGHT, sample-gap
    /// or budget=PERCENT.
    #[arg(long, default_value = "top-k=256", allow_hyphen_values = true)]
    rule: ThresholdRule,
    /// Instruction set, or `best`.
    #[arg(long, default_value = "best")]
    kernel: String,
    /// Keys to a segment.
    #[arg(long, default_value_t = 8192)]
    segment_len: usize,
    /// Levels of the index; the sketch is the last, 0 is none.
    #[arg(long, default_value_t = 3)]
    levels: usize,
    /// Product codes of this many subvectors beside the sketch of full segments.
    #[arg(long)]
    product: Option<usize>,
    /// Append the keys from this position on one by one, those before it at once.
    #[arg(long)]
    append_from: Option<usize>,
    /// Threads; 0 is one for each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Which plan answers.
    #[arg(long, value_enum, default_value = "auto")]
    plan: PlanName,
    /// Write the selected positions to this file, as JSON: `{"selections": [head][row][positions]}`.
    #[arg(long)]
    dump: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PlanName {
    Auto,
    Dense,
    Scan,
    Tree,
    Product,
}

impl From<PlanName> for PlanChoice {
    fn from(name: PlanName) -> Self {
        match name {
            PlanName::Auto => Self::Auto,
            PlanName::Dense => Self::Force(Plan::Dense),
            PlanName::Scan => Self::Force(Plan::SketchScan),
            PlanName::Tree => Self::Force(Plan::Tree),
            PlanName::Product => Self::Force(Plan::Product),
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// One KV head's answers: `selections[row][g]`.
struct Head {
    selections: Vec<Vec<Selection>>,
    differences: Vec<String>,
    building: Duration,
    searching: Duration,
    checking: Duration,
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let capture = Capture::read(&arguments.capture)
        .with_context(|| arguments.capture.display().to_string())?;
    let kernel = match arguments.kernel.as_str() {
        "best" => Kernel::best(),
        name => Kernel::from_name(name)?,
    };
    let append_from = arguments.append_from.unwrap_or(capture.len);
    ensure!(
        append_from <= capture.len,
        "--append-from {append_from} is beyond the {} keys of the capture",
        capture.len
    );
    let config = IndexConfig::new(capture.dim)
        .with_num_levels(arguments.levels)
        .with_segment_len(arguments.segment_len)
        .with_product(
            arguments
                .product
                .map(|subvectors| ProductConfig::default().with_subvectors(subvectors)),
        );
    config.validate()?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(arguments.threads)
        .build()
        .context("cannot start the threads")?;
    let heads = pool.install(|| -> anyhow::Result<Vec<Head>> {
        (0..capture.kv_heads)
            .into_par_iter()
            .map(|head| {
                check_head(arguments, &capture, head, &config, kernel, append_from)
                    .with_context(|| format!("key head {head}"))
            })
            .collect()
    })?;
    if let Some(path) = &arguments.dump {
        dump(path, &capture, &heads).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!(
        "index     {} levels, segments of {}, kernel {}; {append_from} keys at once, {} one by one",
        arguments.levels,
        arguments.segment_len,
        kernel.name(),
        capture.len - append_from,
    );
    println!(
        "rule      {}, plan {}, {} threads",
        arguments.rule,
        format!("{:?}", arguments.plan).to_lowercase(),
        pool.current_num_threads()
    );
    report(&capture, &heads);
    Ok(heads.iter().all(|head| head.differences.is_empty()))
}

/// Builds one KV head's index, searches every row, then compares with brute force.
fn check_head(
    arguments: &Arguments,
    capture: &Capture,
    head: usize,
    config: &IndexConfig,
    kernel: Kernel,
    append_from: usize,
) -> anyhow::Result<Head> {
    let dim = capture.dim;
    let start = Instant::now();
    let mut index = HierarchicalIndex::with_kernel(config.clone(), kernel)?;
    let (first, rest) = capture.keys(head).split_at(append_from * dim);
    index.append(first)?;
    for key in rest.chunks_exact(dim) {
        index.append(key)?;
    }
    let building = start.elapsed();

    let searcher =
        HalfspaceSearcher::new(SearchConfig::default().with_plan(arguments.plan.into()))?;
    let queries = head * capture.group..(head + 1) * capture.group;
    let mut scratch = Scratch::new();
    let mut searching = Duration::ZERO;
    let mut selections = Vec::with_capacity(capture.rows);
    for row in 0..capture.rows {
        let group: Vec<f32> = queries
            .clone()
            .flat_map(|query| capture.query(query, row))
            .copied()
            .collect();
        let mut out = vec![Selection::default(); capture.group];
        let start = Instant::now();
        searcher.search_group_with(
            &index,
            &group,
            capture.visible(row),
            &arguments.rule,
            0.0,
            &mut scratch,
            &mut out,
        )?;
        searching += start.elapsed();
        selections.push(out);
    }

    let start = Instant::now();
    let mut differences = Vec::new();
    for (row, group) in selections.iter().enumerate() {
        for (query, found) in queries.clone().zip(group) {
            let expected = search_naive(
                &index,
                capture.query(query, row),
                capture.visible(row),
                &arguments.rule,
            )?;
            if let Some(what) = difference(found, &expected) {
                differences.push(format!("query head {query}, row {row}: {what}"));
            }
        }
    }
    Ok(Head {
        selections,
        differences,
        building,
        searching,
        checking: start.elapsed(),
    })
}

/// The first way in which a selection differs from brute force.
fn difference(found: &Selection, (positions, scores): &(Vec<u32>, Vec<f32>)) -> Option<String> {
    let missing = positions
        .iter()
        .find(|&position| found.positions.binary_search(position).is_err());
    let surplus = found
        .positions
        .iter()
        .find(|&position| positions.binary_search(position).is_err());
    if let Some(position) = missing {
        return Some(format!("key {position} is missing"));
    }
    if let Some(position) = surplus {
        return Some(format!("key {position} should not be selected"));
    }
    if found.positions != *positions {
        return Some("the positions are not in order".to_owned());
    }
    let unequal = found
        .scores
        .iter()
        .zip(scores)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    unequal.map(|i| {
        let (position, found, expected) = (positions[i], found.scores[i], scores[i]);
        format!("key {position} scores {found:e}, expected {expected:e}")
    })
}

fn report(capture: &Capture, heads: &[Head]) {
    let all = || {
        heads
            .iter()
            .flat_map(|head| head.selections.iter().flatten())
    };
    let sum = |value: fn(&Selection) -> usize| all().map(value).sum::<usize>() as f64;
    let count = (capture.kv_heads * capture.rows * capture.group) as f64;
    let visible = sum(|found| found.stats.visible);
    let selected = sum(|found| found.stats.selected);
    let survivors = sum(|found| found.stats.survivors);
    println!(
        "capture   {} KV heads x {} keys, {} query heads x {} rows, dimension {}",
        capture.kv_heads,
        capture.len,
        capture.kv_heads * capture.group,
        capture.rows,
        capture.dim
    );
    println!(
        "selected  {:.1} keys a row, {:.2} % of the visible ones",
        selected / count,
        100.0 * selected / visible
    );
    println!(
        "survivors {:.2} scored exactly for each selected, {:.2} % of the visible ones",
        survivors / selected.max(1.0),
        100.0 * survivors / visible
    );
    let plans = [Plan::Dense, Plan::SketchScan, Plan::Tree]
        .map(|plan| all().filter(|found| found.stats.plan == plan).count());
    println!(
        "plans     {} dense, {} sketch scans, {} trees; {} scanned twice",
        plans[0],
        plans[1],
        plans[2],
        all().filter(|found| found.stats.rescanned).count()
    );
    let total = |time: fn(&Head) -> Duration| heads.iter().map(time).sum::<Duration>();
    let searching = total(|head| head.searching);
    println!(
        "time      index {:.2?}, search {searching:.2?} ({:.1?} for a row of a KV head), brute force {:.2?}",
        total(|head| head.building),
        searching / (capture.kv_heads * capture.rows) as u32,
        total(|head| head.checking)
    );
    let different: usize = heads.iter().map(|head| head.differences.len()).sum();
    if different == 0 {
        println!("identical to brute force");
        return;
    }
    println!("{different} of {count} rows differ from brute force:");
    let differences = heads.iter().flat_map(|head| &head.differences);
    for difference in differences.take(SHOWN) {
        println!("  {difference}");
    }
}

/// Writes the positions, query head by query head.
fn dump(path: &PathBuf, capture: &Capture, heads: &[Head]) -> anyhow::Result<()> {
    #[derive(serde::Serialize)]
    struct Dump<'a> {
        selections: Vec<Vec<&'a [u32]>>,
    }
    let selections = heads
        .iter()
        .flat_map(|head| {
            (0..capture.group).map(|g| {
                let rows = head.selections.iter();
                rows.map(|row| row[g].positions.as_slice()).collect()
            })
        })
        .collect();
    let mut file = BufWriter::new(File::create(path)?);
    serde_json::to_writer(&mut file, &Dump { selections })?;
    file.flush()?;
    Ok(())
}
