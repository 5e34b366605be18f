//! Exact inner-product range search over your own vectors, without Burn: which rows of a matrix score high with a query?
//!
//! ```sh
//! cargo run --release -p hira-search --no-default-features --example candidates -- --help
//! ```
//!
//! Reads rows of f32, f16 or bf16 from a safetensors file, or raw little-endian f32; without a file it makes clustered ones.
//! Every answer is compared with brute force. The exit code is 0 if they agree, 1 if not, and 2 if the input is of no use.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, Parser, ValueEnum};
use half::{bf16, f16};
use hira_index::{HierarchicalIndex, IndexConfig, ProductConfig};
use hira_kernels::{Kernel, Precision, StoredSlice, StoredVec};
use hira_search::{
    Explanation, HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, SearchHistory,
    Selection, search_naive,
};
use hira_threshold::{ThresholdRule, select_at_least, select_top_k};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::{Dtype, SafeTensors};

/// Which rows of a matrix have a high inner product with a query, exactly
#[derive(Debug, Parser)]
#[command(name = "candidates")]
pub(crate) struct Arguments {
    /// The rows: a safetensors file, or raw little-endian f32 with --dim; without it clustered rows are made
    file: Option<PathBuf>,
    /// Tensor of a safetensors file; may be left out where it holds only one
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// Values of a row, for a raw file and for rows that are made [default of the latter: 64]
    #[arg(long)]
    dim: Option<usize>,
    /// Rows to make where there is no file
    #[arg(long, default_value_t = 100_000)]
    rows: usize,
    /// Seed of what is made or drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    query: QueryArguments,
    #[command(flatten)]
    rule: RuleArguments,

    /// Levels of the index: 0 exact rows only, 1 adds the sketch, more add clusters
    #[arg(long, default_value_t = 3)]
    levels: usize,
    /// Rows to a cluster, and clusters to a cluster above it
    #[arg(long, default_value_t = 32)]
    branching_factor: usize,
    /// Rows to a segment, a multiple of 16
    #[arg(long, default_value_t = 8192)]
    segment_len: usize,
    /// Product codes of this many subvectors, a coarser first pass for the plan `product`
    #[arg(long, value_name = "SUBVECTORS")]
    product: Option<usize>,
    /// What the rows are stored in: f32, f16 or bf16; the answer is that of the stored rows
    #[arg(long, default_value_t = Precision::F32, value_parser = precision)]
    precision: Precision,
    /// How the query is answered; the answer is the same
    #[arg(long, value_enum, default_value_t = PlanName::Auto)]
    plan: PlanName,
    /// Say what the planner expected, what it chose and why, and what was read
    #[arg(long)]
    explain: bool,
    /// Repetitions of each timing
    #[arg(long, default_value_t = 21)]
    repeat: usize,
    /// Candidates to print, the best first
    #[arg(long, default_value_t = 5)]
    show: usize,
}

#[derive(Debug, Args)]
struct QueryArguments {
    /// The query is this row, of the file or of --query-file [default: 0]
    #[arg(long, value_name = "I", conflicts_with = "random")]
    row: Option<usize>,
    /// The query is a row of this file, read as the first one is
    #[arg(long, value_name = "FILE")]
    query_file: Option<PathBuf>,
    /// Tensor of the query file [default: as --tensor]
    #[arg(long, value_name = "NAME", requires = "query_file")]
    query_tensor: Option<String>,
    /// The query is drawn at random, as long as the first row
    #[arg(long, conflicts_with = "query_file")]
    random: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct RuleArguments {
    /// Candidates are the rows that score at least this
    #[arg(long, allow_hyphen_values = true)]
    tau: Option<f32>,
    /// Candidates are the rows that score highest, this many [default: 10]
    #[arg(long)]
    top_k: Option<usize>,
    /// Candidates are this percentage of the rows, the highest scores
    #[arg(long)]
    percentile: Option<f32>,
}

impl RuleArguments {
    fn rule(&self) -> ThresholdRule {
        match (self.tau, self.percentile) {
            (Some(tau), _) => ThresholdRule::Fixed { tau },
            (None, Some(percent)) => ThresholdRule::Percentile { percent },
            (None, None) => ThresholdRule::TopK {
                k: self.top_k.unwrap_or(10),
            },
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PlanName {
    Auto,
    Dense,
    SketchScan,
    Tree,
    Product,
}

impl From<PlanName> for PlanChoice {
    fn from(name: PlanName) -> Self {
        match name {
            PlanName::Auto => Self::Auto,
            PlanName::Dense => Self::Force(Plan::Dense),
            PlanName::SketchScan => Self::Force(Plan::SketchScan),
            PlanName::Tree => Self::Force(Plan::Tree),
            PlanName::Product => Self::Force(Plan::Product),
        }
    }
}

/// The precision of that name.
fn precision(name: &str) -> Result<Precision, String> {
    let known = Precision::ALL
        .into_iter()
        .find(|known| known.name() == name);
    known.ok_or_else(|| "f32, f16 and bf16 are known".into())
}

fn main() -> ExitCode {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    ExitCode::from(answer(Arguments::parse(), &mut out, &mut err))
}

/// Runs the program; its exit code.
pub(crate) fn answer(arguments: Arguments, out: &mut impl Write, err: &mut impl Write) -> u8 {
    match run(&arguments, out) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            // Nobody is left to be told where even this cannot be written.
            let _ = writeln!(err, "error: {error:#}");
            2
        }
    }
}

/// Indexes, searches, compares and prints; true if brute force finds the same.
fn run(arguments: &Arguments, out: &mut impl Write) -> Result<bool> {
    let (matrix, from) = keys(arguments)?;
    let (query, query_from) = query(arguments, &matrix)?;
    let dim = matrix.dim;

    let start = Instant::now();
    let config = IndexConfig::new(dim)
        .with_num_levels(arguments.levels)
        .with_branching_factor(arguments.branching_factor)
        .with_segment_len(arguments.segment_len)
        .with_precision(arguments.precision)
        .with_product(
            arguments
                .product
                .map(|subvectors| ProductConfig::default().with_subvectors(subvectors)),
        );
    let mut index = HierarchicalIndex::new(config)?;
    index
        .append(&matrix.values)
        .with_context(|| from.to_string())?;
    // No more rows come: those of the last segment get their clusters too.
    index.seal();
    let build = start.elapsed();

    let rule = arguments.rule.rule();
    // On one thread, as brute force below.
    let config = SearchConfig::default()
        .with_plan(arguments.plan.into())
        .with_parallel(false);
    let searcher = HalfspaceSearcher::new(config)?;
    let mut scratch = Scratch::new();
    let mut found = [Selection::default()];
    let mut history = SearchHistory::default();
    let mut search = || {
        // The planner's counts stay, the keys found before go: each search is the first of its query.
        history.forget_keys();
        scratch.swap_history(&mut history);
        let found = &mut found;
        let explained =
            searcher.explain(&index, &query, index.len(), &rule, 0.0, &mut scratch, found);
        scratch.swap_history(&mut history);
        explained
    };
    let mut explanation = search()?;
    let mut searched = Ok(());
    let search_time = median(arguments.repeat, || match search() {
        Ok(last) => explanation = last,
        Err(error) => searched = Err(error),
    });
    searched?;
    let [found] = found;

    let kernel = Kernel::best();
    let mut scores = Vec::new();
    let stored = StoredVec::rounded(arguments.precision, &matrix.values);
    let brute_time = median(arguments.repeat, || {
        scores = brute_force(kernel, stored.as_slice(), &query, &rule);
    });
    // The comparison is with the portable kernel, which shares no code with the search.
    let (positions, expected) = search_naive(&index, &query, index.len(), &rule)?;
    let bits = |scores: &[f32]| scores.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let same = positions == found.positions && bits(&expected) == bits(&found.scores);

    writeln!(
        out,
        "{} rows of dimension {dim}{}: {from}; query: {query_from}; rule: {rule}",
        index.len(),
        match arguments.precision {
            Precision::F32 => String::new(),
            narrow => format!(" in {narrow}"),
        }
    )?;
    let times = [build, search_time, brute_time];
    print(out, &index, &found, &explanation, times)?;
    if arguments.explain {
        writeln!(out, "{explanation}")?;
    }
    print_best(out, &found, arguments.show)?;
    let verdict = if same { "the same set" } else { "ANOTHER SET" };
    writeln!(out, "brute force finds {verdict}, scores bit for bit")?;
    Ok(same)
}

/// The table: counts, work and times.
fn print(
    out: &mut impl Write,
    index: &HierarchicalIndex,
    found: &Selection,
    explanation: &Explanation,
    [build, search, brute]: [Duration; 3],
) -> Result<()> {
    let (stats, memory) = (found.stats, index.memory_usage());
    let (len, dim) = (index.len(), index.dim());
    let share = |part: f64, whole: f64| 100.0 * part / whole.max(1.0);
    let mut line = |label: &str, text: String| writeln!(out, "  {label:<22}{text}");
    let extra = (memory.total() - memory.keys) as f64 / 1e6;
    let rate = len as f64 / build.as_secs_f64().max(1e-9);
    line(
        "index built in",
        format!(
            "{:.1} ms ({rate:.3e} rows/s), {extra:.1} MB beside the rows",
            millis(build)
        ),
    )?;
    line(
        "plan",
        stats.plan.to_string()
            + if stats.rescanned {
                ", scanned twice"
            } else {
                ""
            },
    )?;
    line(
        "candidates",
        format!(
            "{} ({:.3} % of the rows)",
            found.len(),
            100.0 * stats.density()
        ),
    )?;
    line(
        "scored exactly",
        format!(
            "{} ({:.3} %)",
            stats.survivors,
            100.0 * stats.scanned_fraction()
        ),
    )?;
    line(
        "sketch read of",
        format!(
            "{} rows ({:.1} %)",
            stats.scanned,
            share(stats.scanned as f64, len as f64)
        ),
    )?;
    let bytes = explanation.actual.bytes;
    let dense = (index.config().precision.bytes() * dim * len) as f64;
    line(
        "bytes read",
        format!(
            "{:.2} MB, dense {:.2} MB: {:.1} % saved",
            bytes / 1e6,
            dense / 1e6,
            100.0 - share(bytes, dense)
        ),
    )?;
    let (f32s, all) = ((dim * stats.survivors) as f64, (dim * len) as f64);
    line(
        "f32 multiply-adds",
        format!(
            "{f32s:.3e}, dense {all:.3e}: {:.1} % saved (and {:.3e} of int8)",
            100.0 - share(f32s, all),
            (2 * dim * stats.scanned) as f64
        ),
    )?;
    line(
        "time of a search",
        format!(
            "{:.3} ms, brute force {:.3} ms: {:.1} times faster (medians, one thread each)",
            millis(search),
            millis(brute),
            brute.as_secs_f64() / search.as_secs_f64().max(1e-9)
        ),
    )?;
    Ok(())
}

/// The candidates that score highest.
fn print_best(out: &mut impl Write, found: &Selection, show: usize) -> Result<()> {
    let mut best: Vec<_> = found.positions.iter().zip(&found.scores).collect();
    best.sort_by(|a, b| b.1.total_cmp(a.1));
    for (position, score) in best.iter().take(show) {
        writeln!(out, "  row {position:<9} score {score}")?;
    }
    if best.len() > show && show > 0 {
        writeln!(out, "  and {} more", best.len() - show)?;
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// The median time of `repeat` calls, one at least.
fn median(repeat: usize, mut call: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..repeat.max(1))
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// What one would write without an index: every score by the fastest kernel, then the selection, on one thread.
fn brute_force(
    kernel: Kernel,
    rows: StoredSlice<'_>,
    query: &[f32],
    rule: &ThresholdRule,
) -> Vec<f32> {
    let len = rows.len() / query.len();
    let mut scores = vec![0.0; len];
    kernel.scores_into(query, rows, &mut scores);
    let mut positions: Vec<u32> = (0..len as u32).collect();
    match *rule {
        ThresholdRule::Fixed { tau } => select_at_least(&mut positions, &mut scores, tau),
        _ => select_top_k(&mut positions, &mut scores, rule.count(len).unwrap_or(len)),
    }
    scores
}

/// Rows of values.
#[derive(Debug)]
struct Matrix {
    dim: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    fn row(&self, i: usize) -> Option<&[f32]> {
        self.values.chunks_exact(self.dim).nth(i)
    }
}

/// The rows to search, and where they come from.
fn keys(arguments: &Arguments) -> Result<(Matrix, String)> {
    match &arguments.file {
        Some(file) => {
            let matrix = read(file, arguments.tensor.as_deref(), arguments.dim)?;
            Ok((matrix, file.display().to_string()))
        }
        None => {
            let dim = arguments.dim.unwrap_or(64);
            ensure!(
                dim > 0 && arguments.rows > 0,
                "--dim and --rows must be at least 1"
            );
            ensure!(
                arguments.tensor.is_none(),
                "--tensor names a part of a file, and there is none"
            );
            let matrix = clustered(arguments.rows, dim, arguments.seed);
            Ok((matrix, "20 clusters".to_string()))
        }
    }
}

/// The query, and where it comes from.
fn query(arguments: &Arguments, matrix: &Matrix) -> Result<(Vec<f32>, String)> {
    let row = arguments.query.row.unwrap_or(0);
    let pick = |matrix: &Matrix, of: &str| -> Result<Vec<f32>> {
        let found = matrix.row(row).map(<[f32]>::to_vec);
        found.with_context(|| format!("there is no row {row}: {of} holds {} rows", matrix.len()))
    };
    if arguments.query.random {
        let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
        let length = matrix.row(0).map_or(1.0, norm);
        let mut rng = StdRng::seed_from_u64(!arguments.seed);
        let mut query: Vec<f32> = (0..matrix.dim).map(|_| normal(&mut rng)).collect();
        let factor = length / norm(&query).max(f32::MIN_POSITIVE);
        query.iter_mut().for_each(|x| *x *= factor);
        return Ok((query, "random".into()));
    }
    let Some(file) = &arguments.query.query_file else {
        return Ok((pick(matrix, "the matrix")?, format!("row {row}")));
    };
    let tensor = arguments.query.query_tensor.as_ref();
    let tensor = tensor.or(arguments.tensor.as_ref()).map(String::as_str);
    let queries = read(file, tensor, Some(matrix.dim))?;
    ensure!(
        queries.dim == matrix.dim,
        "{}: rows of {} values, but those to search have {}",
        file.display(),
        queries.dim,
        matrix.dim
    );
    let from = file.display().to_string();
    let query = pick(&queries, &from)?;
    Ok((query, format!("row {row} of {from}")))
}

/// Reads a safetensors file, or raw f32 if its name ends otherwise.
fn read(file: &Path, tensor: Option<&str>, dim: Option<usize>) -> Result<Matrix> {
    let name = || file.display().to_string();
    let bytes = std::fs::read(file).with_context(name)?;
    let matrix = if file.extension().is_some_and(|end| end == "safetensors") {
        from_safetensors(&bytes, tensor)
    } else {
        from_raw(&bytes, tensor, dim)
    };
    let matrix = matrix.with_context(name)?;
    ensure!(!matrix.values.is_empty(), "{}: no rows", name());
    Ok(matrix)
}

/// Any tensor of two dimensions or more: the last one is that of a row.
fn from_safetensors(bytes: &[u8], tensor: Option<&str>) -> Result<Matrix> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| anyhow!("not a whole safetensors file: {error}"))?;
    let mut names = file.names();
    names.sort_unstable();
    let name = match (tensor, &names[..]) {
        (Some(name), _) => name,
        (None, [name]) => name,
        (None, _) => bail!(
            "choose one of its tensors with --tensor: {}",
            names.join(", ")
        ),
    };
    let Ok(view) = file.tensor(name) else {
        bail!("there is no tensor `{name}`, but {}", names.join(", "));
    };
    let [.., _, dim] = *view.shape() else {
        bail!(
            "tensor `{name}` has the shape {:?}, expected rows of values",
            view.shape()
        );
    };
    ensure!(dim > 0, "tensor `{name}` has rows of no values");
    let data = view.data();
    let two =
        |convert: fn([u8; 2]) -> f32| data.as_chunks().0.iter().map(|&b| convert(b)).collect();
    let values = match view.dtype() {
        Dtype::F32 => singles(data),
        Dtype::F16 => two(|bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => two(|bytes| bf16::from_le_bytes(bytes).to_f32()),
        other => bail!("tensor `{name}` holds {other:?}, expected F32, F16 or BF16"),
    };
    Ok(Matrix { dim, values })
}

fn from_raw(bytes: &[u8], tensor: Option<&str>, dim: Option<usize>) -> Result<Matrix> {
    ensure!(
        tensor.is_none(),
        "only a file that ends in .safetensors has tensors with names"
    );
    let dim = dim.context("a raw file says nothing of its rows: add --dim")?;
    ensure!(dim > 0, "--dim must be at least 1");
    ensure!(
        bytes.len().is_multiple_of(4 * dim),
        "{} bytes are not whole rows of {dim} f32 values ({} bytes each)",
        bytes.len(),
        4 * dim
    );
    let values = singles(bytes);
    Ok(Matrix { dim, values })
}

fn singles(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks().0.iter();
    values.map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// Rows around 20 centres of norm 15, with noise of standard deviation 0.15.
fn clustered(rows: usize, dim: usize, seed: u64) -> Matrix {
    let mut rng = StdRng::seed_from_u64(seed);
    let centres: Vec<f32> = (0..20)
        .flat_map(|_| {
            let row: Vec<f32> = (0..dim).map(|_| normal(&mut rng)).collect();
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.into_iter().map(move |x| 15.0 * x / norm.max(1e-9))
        })
        .collect();
    let mut values = Vec::with_capacity(rows * dim);
    for _ in 0..rows {
        let centre = rng.random_range(0..20) * dim;
        let around = &centres[centre..centre + dim];
        values.extend(around.iter().map(|x| x + 0.15 * normal(&mut rng)));
    }
    Matrix { dim, values }
}

/// A normally distributed number, after Box and Muller.
fn normal(rng: &mut StdRng) -> f32 {
    let (radius, angle): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
}
