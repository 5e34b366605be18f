//! Certificates against the truth in f64, for random and adversarial keys, values, queries and settings, until a number of checks is done.
//!
//! `cargo xtask soak` runs it. One check is one query of one head: the softmax mass of the keys that were not attended to, and the distance of
//! the output from dense attention, both in f64 over the stored rows, must be within the bounds that came with the answer. A failure is
//! printed with the seed and the case that gives it again, and the exit code is 1.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hira_attention::{
    AttentionReport, CacheShape, HeadPlan, HeadReport, HiraAttentionConfig, PlanPolicy, Precision,
};
use hira_kernels::Kernel;
use hira_threshold::ThresholdRule;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Time between two lines of progress.
const EVERY: Duration = Duration::from_secs(5);
/// Where an f64 logit may be off by more than this, f64 is no judge.
const JUDGE: f64 = 1e-9;

/// Hold certificates against attention in f64 until enough queries were checked
#[derive(Parser)]
struct Arguments {
    /// Queries to check; 1e6 is a number
    #[arg(long, default_value = "1e6", value_parser = whole_number)]
    checks: u64,
    /// Seed of all cases; the same seed gives the same cases [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// Stop after so many seconds, even if not all checks are done
    #[arg(long)]
    seconds: Option<u64>,
    /// Cases run side by side [default: one a core]
    #[arg(long)]
    threads: Option<NonZero<usize>>,
    /// Run this case alone: for a failure that was reported
    #[arg(long)]
    case: Option<u64>,
}

/// Reads `10000000` and `1e7` alike.
fn whole_number(text: &str) -> Result<u64, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "expected a number such as 1e6".to_string())?;
    match (1.0..=1e18).contains(&number) {
        true => Ok(number as u64),
        false => Err("expected a number from 1 to 1e18".into()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let now = std::time::UNIX_EPOCH.elapsed();
    let seed = arguments
        .seed
        .unwrap_or_else(|| now.map_or(0, |since| since.as_secs()));
    println!("seed {seed}");
    let soak = Soak::new(seed, &arguments);
    match arguments.case {
        Some(case) => soak.one(case),
        None => soak.run(),
    }
    let failed = lock(&soak.failed).take();
    print_totals(&lock(&soak.counts), soak.start);
    match failed {
        None => ExitCode::SUCCESS,
        Some((case, failure)) => {
            println!("FAILED in case {case}: {failure}");
            println!("again: cargo xtask soak certificates --seed {seed} --case {case}");
            ExitCode::FAILURE
        }
    }
}

/// Checks done, by what was checked.
#[derive(Default)]
struct Counts {
    checks: u64,
    sparse: u64,
    /// Answers that left keys out and whose bound on their mass was below 1: where a bound says something.
    telling: u64,
    by_kind: BTreeMap<String, u64>,
    /// Largest share of a bound that the truth reached.
    mass: f64,
    error: f64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.checks += other.checks;
        self.sparse += other.sparse;
        self.telling += other.telling;
        for (kind, checks) in other.by_kind {
            *self.by_kind.entry(kind).or_default() += checks;
        }
        self.mass = self.mass.max(other.mass);
        self.error = self.error.max(other.error);
    }
}

fn print_totals(counts: &Counts, start: Instant) {
    for (kind, checks) in &counts.by_kind {
        println!("  {kind:<26} {:>10.3e}", *checks as f64);
    }
    println!(
        "{:.4e} queries in {:.0} s, {:.3e} of them sparse, {:.3e} with keys left out and a bound below 1",
        counts.checks as f64,
        start.elapsed().as_secs_f64(),
        counts.sparse as f64,
        counts.telling as f64,
    );
    println!(
        "the truth reached {:.4} of the bound on the mass, {:.4} of the bound on the output",
        counts.mass, counts.error
    );
}

/// The work that the threads share.
struct Soak {
    seed: u64,
    checks: u64,
    threads: usize,
    start: Instant,
    end: Option<Instant>,
    next: AtomicU64,
    stop: AtomicBool,
    counts: Mutex<Counts>,
    failed: Mutex<Option<(u64, String)>>,
}

impl Soak {
    fn new(seed: u64, arguments: &Arguments) -> Self {
        let start = Instant::now();
        let threads = arguments.threads.or(thread::available_parallelism().ok());
        let end = arguments.seconds.map(Duration::from_secs);
        Self {
            seed,
            checks: arguments.checks,
            threads: threads.map_or(1, NonZero::get),
            start,
            end: end.map(|seconds| start + seconds),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            counts: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// Runs cases until the checks or the time are used up, or one failed.
    fn run(&self) {
        thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while !self.stop.load(Ordering::Relaxed) {
                        self.one(self.next.fetch_add(1, Ordering::Relaxed));
                    }
                });
            }
            let mut printed = Instant::now();
            while !self.stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(50));
                if printed.elapsed() >= EVERY {
                    printed = Instant::now();
                    let checks = lock(&self.counts).checks as f64;
                    println!("  {checks:.3e} of {:.3e} queries", self.checks as f64);
                }
            }
        });
    }

    fn one(&self, case: u64) {
        // The odd constant of the golden ratio spreads consecutive cases over all seeds.
        let seed = self.seed ^ case.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut counts = Counts::default();
        let ran = run_case(&mut StdRng::seed_from_u64(seed), &mut counts);
        let mut sum = lock(&self.counts);
        sum.add(counts);
        let over = self.end.is_some_and(|end| Instant::now() >= end);
        if sum.checks >= self.checks || over || ran.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        if let Err(failure) = ran {
            lock(&self.failed).get_or_insert((case, failure));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What rows look like.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Normal,
    Flat,
    Equal,
    Integers,
    OneHuge,
    HugeNorms,
    Clusters,
    Drifting,
}

const KINDS: [Kind; 8] = [
    Kind::Normal,
    Kind::Flat,
    Kind::Equal,
    Kind::Integers,
    Kind::OneHuge,
    Kind::HugeNorms,
    Kind::Clusters,
    Kind::Drifting,
];

fn rows(rng: &mut StdRng, kind: Kind, count: usize, dim: usize) -> Vec<f32> {
    let mut unit = |width: f32| -> Vec<f32> {
        (0..dim)
            .map(|_| width * (rng.random_range(-1.0..1.0f32) + rng.random_range(-1.0..1.0f32)))
            .collect()
    };
    let centre = unit(1.0);
    let centres: Vec<Vec<f32>> = (0..4).map(|_| unit(6.0)).collect();
    let huge = rng.random_range(0..count);
    let mut out = Vec::with_capacity(count * dim);
    for row in 0..count {
        let exponent: f32 = rng.random_range(-3.0..2.0);
        let cluster = rng.random_range(0..4usize);
        for column in 0..dim {
            let noise = rng.random_range(-1.0..1.0f32);
            out.push(match kind {
                Kind::Normal => noise + rng.random_range(-1.0..1.0f32) + centre[column],
                Kind::Flat => 0.0,
                Kind::Equal => centre[column],
                Kind::Integers => (2.0 * noise).round(),
                Kind::OneHuge if row == huge => 300.0 * noise,
                Kind::OneHuge => noise,
                Kind::HugeNorms => noise * 10f32.powf(exponent),
                Kind::Clusters => centres[cluster][column] + 0.05 * noise,
                Kind::Drifting => noise + 3.0 * ((row as f32 / 40.0).sin() * centre[column]),
            });
        }
    }
    out
}

fn any<T: Copy>(rng: &mut StdRng, values: &[T]) -> T {
    values[rng.random_range(0..values.len())]
}

fn random_rule(rng: &mut StdRng) -> ThresholdRule {
    match rng.random_range(0..8u32) {
        0 | 1 => ThresholdRule::TopK {
            k: any(rng, &[1, 3, 16, 64, 200]),
        },
        2 => ThresholdRule::Percentile {
            percent: any(rng, &[0.5, 5.0, 40.0]),
        },
        3 => ThresholdRule::Fixed {
            tau: rng.random_range(-3.0..6.0),
        },
        4 => ThresholdRule::SampleMax,
        _ => ThresholdRule::Mass {
            mass: any(rng, &[0.5, 0.9, 0.95, 0.99, 0.999]),
        },
    }
}

fn random_config(rng: &mut StdRng) -> HiraAttentionConfig {
    let plan = any(
        rng,
        &[PlanPolicy::Sparse, PlanPolicy::Sparse, PlanPolicy::Auto],
    );
    HiraAttentionConfig {
        precision: any(
            rng,
            &[
                Precision::F32,
                Precision::F32,
                Precision::F16,
                Precision::Bf16,
            ],
        ),
        segment_len: any(rng, &[16, 48, 64, 256, 1024]),
        min_coarse_len: any(rng, &[32, 100_000]),
        min_sparse_len: any(rng, &[0, 100]),
        max_candidates: any(rng, &[None, None, None, None, None, Some(20)]),
        tail_compensation: any(rng, &[true, true, false]),
        tail_block: any(rng, &[16, 32, 64, 128]),
        max_error: any(rng, &[None, None, None, None, Some(0.02), Some(1.0)]),
        use_hira_during_prefill: rng.random(),
        max_decode_tokens: any(rng, &[1, 16]),
        scale: any(rng, &[None, None, None, Some(0.02), Some(1.0), Some(4.0)]),
        ..HiraAttentionConfig::new()
    }
    .with_rule(random_rule(rng))
    .with_plan(plan)
    .with_sinks_and_window(any(rng, &[0, 0, 1, 5, 40]), any(rng, &[0, 0, 1, 17, 300]))
}

/// One cache: a prompt, then tokens one by one and a few at a time, with a truncation between them; every query is checked.
fn run_case(rng: &mut StdRng, counts: &mut Counts) -> Result<(), String> {
    let config = random_config(rng);
    let (kv_heads, group) = (any(rng, &[1, 2]), any(rng, &[1, 3, 4]));
    let (dim, value_dim) = (any(rng, &[1, 4, 17, 32, 64]), any(rng, &[1, 4, 16, 33]));
    let prompt = any(rng, &[1, 60, 300, 1200]);
    let shape = CacheShape {
        layers: 1,
        sequences: 1,
        kv_heads,
        head_dim: dim,
        value_dim,
        max_len: prompt + 100,
    };
    let describe = format!("{config:?} {shape:?} {group} queries a head");
    let fail = |what: String| format!("{what}\n{describe}");
    let attention = config
        .init_host()
        .map_err(|error| fail(error.to_string()))?;
    let mut cache = config
        .init_cache(shape)
        .map_err(|error| fail(error.to_string()))?;
    let kinds = [any(rng, &KINDS), any(rng, &KINDS), any(rng, &KINDS)];
    let mut stored = Stored {
        config: &config,
        shape,
        group,
        keys: vec![Vec::new(); kv_heads],
        values: vec![Vec::new(); kv_heads],
    };
    let (mut out, mut now) = (Vec::new(), 0);
    while now < prompt + 40 {
        let tokens = match now {
            0 => prompt,
            _ => any(rng, &[1, 1, 1, 4]),
        };
        let mut per_head = |kind, heads: usize, dim| -> Vec<Vec<f32>> {
            (0..heads).map(|_| rows(rng, kind, tokens, dim)).collect()
        };
        let k = per_head(kinds[0], kv_heads, dim);
        let v = per_head(kinds[1], kv_heads, value_dim);
        let q = per_head(kinds[2], kv_heads * group, dim);
        stored.append(&k, &v);
        out.clear();
        out.resize(kv_heads * group * tokens * value_dim, 0.0);
        let report = attention
            .forward_into(
                kv_heads * group,
                &q.concat(),
                &k.concat(),
                &v.concat(),
                &mut cache,
                0,
                &mut out,
            )
            .map_err(|error| fail(error.to_string()))?;
        now += tokens;
        // Of a prompt the last queries, which see the most.
        let first = tokens.saturating_sub(4);
        for (head, q) in q.iter().enumerate() {
            for token in first..tokens {
                let at = (head * tokens + token) * value_dim;
                let answer = Answer {
                    head,
                    visible: now - tokens + token + 1,
                    query: &q[token * dim..(token + 1) * dim],
                    out: &out[at..at + value_dim],
                    report: &report,
                    alone: tokens == 1,
                };
                stored.check(&answer, counts).map_err(fail)?;
            }
        }
        let kind = format!("keys {:?}", kinds[0]).to_lowercase();
        *counts.by_kind.entry(kind).or_default() += (kv_heads * group) as u64;
        if rng.random_range(0..20) == 0 {
            now -= rng.random_range(0..now.min(30));
            cache.truncate(now).map_err(|error| error.to_string())?;
            stored.truncate(now);
        }
    }
    Ok(())
}

/// What a cache should hold, by KV head.
struct Stored<'a> {
    config: &'a HiraAttentionConfig,
    shape: CacheShape,
    group: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// One query of one head, and what was made of it.
struct Answer<'a> {
    head: usize,
    visible: usize,
    query: &'a [f32],
    out: &'a [f32],
    report: &'a AttentionReport,
    /// Whether the report is of this query only.
    alone: bool,
}

impl Stored<'_> {
    fn append(&mut self, keys: &[Vec<f32>], values: &[Vec<f32>]) {
        let precision = self.config.precision;
        let stored =
            |rows: &[f32]| -> Vec<f32> { rows.iter().map(|&x| precision.round(x)).collect() };
        for (all, new) in self.keys.iter_mut().zip(keys) {
            all.extend(stored(new));
        }
        for (all, new) in self.values.iter_mut().zip(values) {
            all.extend(stored(new));
        }
    }

    fn truncate(&mut self, len: usize) {
        let (dim, value_dim) = (self.shape.head_dim, self.shape.value_dim);
        self.keys
            .iter_mut()
            .for_each(|keys| keys.truncate(len * dim));
        let values = self.values.iter_mut();
        values.for_each(|values| values.truncate(len * value_dim));
    }

    fn check(&self, answer: &Answer<'_>, counts: &mut Counts) -> Result<(), String> {
        let (dim, value_dim) = (self.shape.head_dim, self.shape.value_dim);
        let kv = answer.head / self.group;
        let keys = &self.keys[kv][..answer.visible * dim];
        let values = &self.values[kv][..answer.visible * value_dim];
        let scale = f64::from(self.config.scale.unwrap_or(1.0 / (dim as f32).sqrt()));
        let logit = |key: &[f32]| -> f64 {
            let products = key.iter().zip(answer.query);
            scale
                * products
                    .map(|(&k, &q)| f64::from(k) * f64::from(q))
                    .sum::<f64>()
        };
        let norm = |row: &[f32]| {
            row.iter()
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        let longest = keys.chunks_exact(dim).map(norm).fold(0.0, f64::max);
        if scale * norm(answer.query) * longest * dim as f64 * f64::EPSILON > JUDGE {
            return Ok(());
        }
        let logits: Vec<f64> = keys.chunks_exact(dim).map(logit).collect();
        let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - best).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut dense = vec![0.0; value_dim];
        for (weight, value) in weights.iter().zip(values.chunks_exact(value_dim)) {
            for (dense, &value) in dense.iter_mut().zip(value) {
                *dense += weight / sum * f64::from(value);
            }
        }
        let squares = dense.iter().zip(answer.out);
        let error = squares
            .map(|(d, &o)| (d - f64::from(o)).powi(2))
            .sum::<f64>()
            .sqrt();
        let report = &answer.report.heads[answer.head];
        let bound = f64::from(report.worst.output_error_bound);
        counts.checks += 1;
        if error.is_nan() || error > bound {
            return Err(format!("output off by {error}, bound {bound}: {report:?}"));
        }
        if bound > 0.0 {
            counts.error = counts.error.max(error / bound);
        }
        if let Some(most) = self.config.max_error
            && report.plan == HeadPlan::Sparse
            && answer.alone
            && report.worst.output_error_bound > most
        {
            return Err(format!("an error of {most} was promised: {report:?}"));
        }
        if answer.alone && report.plan == HeadPlan::Sparse {
            counts.sparse += 1;
            let dropped = self.dropped(answer, keys, &weights, report)? / sum;
            let bound = f64::from(report.worst.dropped_mass_bound);
            // The oracle's own rounding.
            if dropped > bound * (1.0 + 1e-9) + 1e-12 {
                return Err(format!(
                    "dropped {dropped} of the mass, bound {bound}: {report:?}"
                ));
            }
            if report.attended < report.visible && bound < 1.0 && bound > 0.0 {
                counts.telling += 1;
                counts.mass = counts.mass.max(dropped / bound);
            }
            if let Ok(ThresholdRule::Mass { mass }) = self.config.rule()
                && self.config.max_candidates.is_none()
                && bound > 1.0 - f64::from(mass)
            {
                return Err(format!("a mass of {mass} was promised, bound {bound}"));
            }
        }
        Ok(())
    }

    /// Weight of the keys that were not attended to. Those that were are the sinks, the window and the best by canonical score, as many as
    /// the report counts.
    fn dropped(
        &self,
        answer: &Answer<'_>,
        keys: &[f32],
        weights: &[f64],
        report: &HeadReport,
    ) -> Result<f64, String> {
        let visible = answer.visible;
        let score = |key| Kernel::Scalar.score(answer.query, key);
        let scores: Vec<f32> = keys.chunks_exact(self.shape.head_dim).map(score).collect();
        let window = visible.saturating_sub(self.config.recent_window);
        let mut attended: Vec<bool> = (0..visible)
            .map(|at| at < self.config.sink_tokens || at >= window)
            .collect();
        let mut count = attended.iter().filter(|&&attended| attended).count() as u64;
        let mut order: Vec<usize> = (0..visible).collect();
        order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
        for at in order {
            if count == report.attended {
                break;
            }
            count += u64::from(!attended[at]);
            attended[at] = true;
        }
        if count != report.attended {
            return Err(format!(
                "{count} keys at least are attended to, not {report:?}"
            ));
        }
        let left_out = weights
            .iter()
            .zip(&attended)
            .filter(|&(_, &attended)| !attended);
        Ok(left_out.map(|(weight, _)| weight).sum())
    }
}
