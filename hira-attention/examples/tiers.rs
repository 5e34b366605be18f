//! A cache with a quarter of its keys and values in main memory and the rest on disk, against the same cache in memory.
//!
//! ```text
//! cargo run --release -p hira-attention --no-default-features --example tiers -- --keys 131072 --kv-heads 2 --folder .
//! ```
//!
//! Keys are chains: each is correlated with the one before, more along some directions than along others, as recorded keys are. The query of a step
//! is correlated with that of the step before, and so are the keys that it selects; every step is
//! sparse, however flat its heads are. Both caches get the same tokens and
//! have to give the same bits. "Cold" is a step before which the system was made to forget every page of the file.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use hira_attention::{AttentionReport, CacheShape, HiraAttentionConfig, HostAttention, PlanPolicy};
use hira_cache::HiraCache;
use hira_kernels::Precision;
use hira_memory::{MemoryPolicy, Part, Tier};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Time of a decode step of one layer, in main memory and with tiers.
#[derive(Parser)]
struct Arguments {
    /// Keys of a head.
    #[arg(long, default_value_t = 131_072)]
    keys: usize,
    /// KV heads; each is shared by four query heads.
    #[arg(long, default_value_t = 2)]
    kv_heads: usize,
    /// Dimension of a key and of a value.
    #[arg(long, default_value_t = 128)]
    dim: usize,
    /// Steps that are timed, after half as many that are not.
    #[arg(long, default_value_t = 60)]
    steps: usize,
    /// Keys that a query selects.
    #[arg(long, default_value_t = 256)]
    top_k: usize,
    /// Store f32 instead of bf16.
    #[arg(long)]
    f32: bool,
    /// Let the rows that are read most be in memory instead of the latest.
    #[arg(long)]
    adaptive: bool,
    /// Read every key at every step, instead of those that are selected.
    #[arg(long)]
    dense: bool,
    /// Where the file is made.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
}

const GROUP: usize = 4;
const BATCH: usize = 1024;

/// Rows one after the other, each correlated with the one before.
struct Chain {
    random: StdRng,
    /// Standard deviation along each dimension.
    spread: Vec<f32>,
    at: Vec<f32>,
    correlation: f32,
}

impl Chain {
    fn new(dim: usize, scale: f32, correlation: f32, seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            spread: (0..dim).map(|i| scale / (1.0 + i as f32).sqrt()).collect(),
            at: vec![0.0; dim],
            correlation,
        }
    }

    fn next_into(&mut self, out: &mut [f32]) {
        let fresh = (1.0 - self.correlation * self.correlation).sqrt();
        for ((x, spread), out) in self.at.iter_mut().zip(&self.spread).zip(out) {
            // the sum of four uniform numbers: near enough to normal, variance 1/3
            let z: f32 = (0..4).map(|_| self.random.random_range(-0.5f32..0.5)).sum();
            *x = self.correlation * *x + fresh * z * 1.73;
            *out = *x * spread;
        }
    }
}

/// The tokens of a layer, the same for the same arguments.
struct Tokens {
    keys: Vec<Chain>,
    values: Vec<Chain>,
    queries: Vec<Chain>,
    dim: usize,
}

impl Tokens {
    fn new(arguments: &Arguments) -> Self {
        let (heads, dim) = (arguments.kv_heads, arguments.dim);
        let chains = |count: usize, scale, correlation, seed: u64| {
            let chain = |i| Chain::new(dim, scale, correlation, seed + i as u64);
            (0..count).map(chain).collect()
        };
        Self {
            keys: chains(heads, 4.0, 0.8, 1000),
            values: chains(heads, 1.0, 0.5, 2000),
            queries: chains(GROUP * heads, 12.0, 0.95, 3000),
            dim,
        }
    }

    /// `[heads, count, D]`.
    fn rows(chains: &mut [Chain], count: usize, dim: usize) -> Vec<f32> {
        let mut rows = vec![0.0; chains.len() * count * dim];
        for (chain, rows) in chains.iter_mut().zip(rows.chunks_exact_mut(count * dim)) {
            let rows = rows.chunks_exact_mut(dim);
            rows.for_each(|row| chain.next_into(row));
        }
        rows
    }

    fn fill(&mut self, cache: &mut HiraCache, keys: usize) -> anyhow::Result<()> {
        for start in (0..keys).step_by(BATCH) {
            let count = BATCH.min(keys - start);
            let k = Self::rows(&mut self.keys, count, self.dim);
            let v = Self::rows(&mut self.values, count, self.dim);
            cache.append(0, &k, &v)?;
        }
        Ok(())
    }
}

struct Run<'a> {
    attention: &'a HostAttention,
    cache: HiraCache,
    tokens: Tokens,
    out: Vec<f32>,
    report: AttentionReport,
}

impl Run<'_> {
    /// The time of a step, and its answer.
    fn step(&mut self) -> anyhow::Result<(Duration, u64)> {
        let dim = self.tokens.dim;
        let q = Tokens::rows(&mut self.tokens.queries, 1, dim);
        let k = Tokens::rows(&mut self.tokens.keys, 1, dim);
        let v = Tokens::rows(&mut self.tokens.values, 1, dim);
        let heads = self.tokens.queries.len();
        let start = Instant::now();
        self.attention.forward_reusing(
            heads,
            &q,
            &k,
            &v,
            &mut self.cache,
            0,
            &mut self.out,
            &mut self.report,
        )?;
        let time = start.elapsed();
        let bits = self.out.iter().map(|x| u64::from(x.to_bits()));
        Ok((
            time,
            bits.fold(7, |hash, bits| (hash ^ bits).wrapping_mul(0x100_0000_01b3)),
        ))
    }

    fn steps(&mut self, count: usize) -> anyhow::Result<(Vec<Duration>, Vec<u64>)> {
        let steps: Vec<_> = (0..count)
            .map(|_| self.step())
            .collect::<anyhow::Result<_>>()?;
        Ok(steps.into_iter().unzip())
    }
}

fn p50(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(f64::NAN, |time| 1e3 * time.as_secs_f64())
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Has the system forget the pages of rows on disk.
#[cfg(target_os = "linux")]
fn forget_file(cache: &HiraCache) -> anyhow::Result<()> {
    use hira_kernels::StoredRows;
    for head in cache.layer(0)?.heads() {
        let keys = head.index().segments().map(|segment| segment.rows());
        for rows in keys
            .chain(head.values().runs().map(|(_, run)| run))
            .filter(|rows| rows.is_on_disk())
        {
            let backing = rows.region().and_then(|region| region.backing());
            if let Some(backing) = backing {
                backing.file().sync_data()?;
                drop_cached(&backing, StoredRows::bytes(rows))?;
            }
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn drop_cached(backing: &hira_kernels::Backing, len: usize) -> anyhow::Result<()> {
    let length = std::num::NonZeroU64::new(len as u64);
    rustix::fs::fadvise(
        &**backing.file(),
        backing.offset(),
        length,
        rustix::fs::Advice::DontNeed,
    )?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (keys, kv_heads, dim) = (arguments.keys, arguments.kv_heads, arguments.dim);
    let precision = if arguments.f32 {
        Precision::F32
    } else {
        Precision::Bf16
    };
    let plan = if arguments.dense {
        PlanPolicy::Dense
    } else {
        PlanPolicy::Sparse
    };
    let all = HiraAttentionConfig::new()
        .with_top_k(arguments.top_k)
        .with_plan(plan)
        .with_precision(precision);
    let shape = CacheShape {
        layers: 1,
        sequences: 1,
        kv_heads,
        head_dim: dim,
        value_dim: dim,
        max_len: keys + 10_000,
    };
    let exact = keys * kv_heads * 2 * dim * precision.bytes();
    let budget = exact / 4;
    let gib = |bytes: usize| bytes as f64 / (1 << 30) as f64;
    println!(
        "{keys} keys x {kv_heads} heads of {dim} in {precision}: {:.3} GiB exact, budget {:.3} GiB",
        gib(exact),
        gib(budget)
    );
    let before = resident();
    let attention = all.init_host()?;
    let run = |config: &HiraAttentionConfig| -> anyhow::Result<Run<'_>> {
        let mut run = Run {
            attention: &attention,
            cache: config.init_cache(shape)?,
            tokens: Tokens::new(&arguments),
            out: vec![0.0; GROUP * kv_heads * dim],
            report: AttentionReport::new(0, 0),
        };
        let start = Instant::now();
        run.tokens.fill(&mut run.cache, keys)?;
        println!("  filled in {:.1} s", start.elapsed().as_secs_f64());
        Ok(run)
    };
    let (warm_up, steps) = (arguments.steps / 2, arguments.steps);

    println!("tiers");
    let mut placed = all
        .clone()
        .with_host_budget(budget)
        .with_disk_path(&arguments.folder);
    if arguments.adaptive {
        placed.memory_policy = MemoryPolicy::Adaptive { target_usage: 0.8 };
    }
    let mut placed = run(&placed)?;
    #[cfg(target_os = "linux")]
    forget_file(&placed.cache)?;
    let start = Instant::now();
    let (_, first) = placed.step()?;
    println!(
        "  first step, cold: {:.2} ms",
        1e3 * start.elapsed().as_secs_f64()
    );
    let mut found = vec![first];
    found.extend(placed.steps(warm_up - 1)?.1);
    let (times, hashes) = placed.steps(steps)?;
    found.extend(hashes);
    let warm = p50(times);
    let grown = resident().saturating_sub(before);
    let memory = placed.cache.memory();
    println!("{memory}");
    println!("{:?}", placed.cache.tier_statistics());
    let always: usize = memory
        .entries()
        .iter()
        .filter(|entry| !matches!(entry.part, Part::Keys | Part::Values))
        .map(|entry| entry.bytes)
        .sum();
    let means: usize = placed
        .cache
        .layer(0)?
        .heads()
        .iter()
        .map(|head| head.means().bytes())
        .sum();
    let allowed = budget + always + means;
    println!(
        "  warm p50 {warm:.2} ms; grown by {:.3} GiB, {:.3} of budget + sketch; on disk {:.3} GiB",
        gib(grown),
        grown as f64 / allowed as f64,
        gib(memory.on(Tier::Disk))
    );
    #[cfg(target_os = "linux")]
    {
        let mut cold = Vec::new();
        for _ in 0..steps.min(20) {
            forget_file(&placed.cache)?;
            cold.push(placed.step()?.0);
        }
        println!("  cold p50 {:.2} ms", p50(cold));
    }
    drop(placed);

    println!("all in memory");
    let mut plain = run(&all)?;
    let mut expected = plain.steps(warm_up)?.1;
    let (times, hashes) = plain.steps(steps)?;
    expected.extend(hashes);
    let in_memory = p50(times);
    println!(
        "  p50 {in_memory:.2} ms, density {:.4}",
        plain.report.density()
    );
    println!("  tiers take {:.2} times as long", warm / in_memory);
    anyhow::ensure!(found == expected, "the tiers changed an answer");
    Ok(())
}
