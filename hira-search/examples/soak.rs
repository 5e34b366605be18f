//! Random histories of indexes until a number of key checks is done: every plan and rule against brute force.
//!
//! `cargo xtask soak` runs it. A failure is printed with the seed and the steps that lead to it, and the exit code is 1.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/history.rs"]
mod history;

use std::io::{self, Write};
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use history::source::{self, Limits, Source};
use history::{
    Failure, History, Op, Report, Shape, Step, VARIANTS, keep_panics, run_caught, shrink,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Time between two lines of progress.
const EVERY: Duration = Duration::from_secs(5);
/// Runs of a failing history in search of a shorter one.
const SHRINKING: usize = 200;
/// One step of this many is followed by a proof of the index's invariants.
const VALIDATE_EVERY: usize = 16;
/// The case with a million keys; every long soak comes to it.
const MILLION: u64 = 50;

/// Check random histories of indexes against brute force until enough keys were compared
#[derive(Parser)]
struct Arguments {
    /// Key checks to do: queries times visible keys, each compared with brute force; 1e9 is a number
    #[arg(long, default_value = "1e9", value_parser = whole_number)]
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
    /// Run this case alone and prove the invariants after every step: for a failure that was reported
    #[arg(long)]
    case: Option<u64>,
}

/// Reads `10000000` and `1e7` alike.
fn whole_number(text: &str) -> Result<u64, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "expected a number such as 1e9".to_string())?;
    match (1.0..=1e18).contains(&number) {
        true => Ok(number as u64),
        false => Err("expected a number from 1 to 1e18".into()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed();
        now.map_or(0, |since| since.as_secs())
    });
    keep_panics();
    println!("seed {seed}");
    let failed = match arguments.case {
        Some(case) => one(seed, case),
        None => Soak::new(seed, &arguments).run(),
    };
    match failed {
        None => ExitCode::SUCCESS,
        Some((case, failure)) => {
            explain(seed, case, failure);
            ExitCode::FAILURE
        }
    }
}

/// Runs one case and validates every step of it.
fn one(seed: u64, case: u64) -> Option<(u64, Failure)> {
    let mut report = Report::default();
    let failed = run_caught(&history(seed, case), 1, &mut report).err();
    print_totals(&report);
    failed.map(|failure| (case, failure))
}

/// Prints the shortest history that was found to fail.
fn explain(seed: u64, case: u64, failure: Failure) {
    println!("FAILED in case {case}: {failure}");
    println!("again: cargo xtask soak --seed {seed} --case {case}");
    let (history, failure) = shrink(&history(seed, case), failure, SHRINKING);
    println!("after dropping steps: {failure}\n{history:#?}");
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
    /// The report of all finished cases.
    report: Mutex<Report>,
    failed: Mutex<Option<(u64, Failure)>>,
}

impl Soak {
    fn new(seed: u64, arguments: &Arguments) -> Self {
        let start = Instant::now();
        let threads = arguments.threads.or(thread::available_parallelism().ok());
        Self {
            seed,
            checks: arguments.checks,
            threads: threads.map_or(1, NonZero::get),
            start,
            end: arguments
                .seconds
                .map(|seconds| start + Duration::from_secs(seconds)),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            report: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// Runs cases until the checks or the time are used up, or one failed, which is returned.
    fn run(self) -> Option<(u64, Failure)> {
        thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| self.work());
            }
            self.watch();
        });
        let report = lock(&self.report);
        let seconds = self.start.elapsed().as_secs_f64();
        print_totals(&report);
        println!(
            "{} cases, {} searches, {:.4e} key checks in {seconds:.0} s",
            self.next.load(Ordering::Relaxed),
            report.searches,
            report.checks as f64
        );
        lock(&self.failed).take()
    }

    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let case = self.next.fetch_add(1, Ordering::Relaxed);
            let mut report = Report::default();
            let ran = run_caught(&history(self.seed, case), VALIDATE_EVERY, &mut report);
            // Only the fuzzer needs them.
            report.reached.clear();
            let mut sum = lock(&self.report);
            sum.add(report);
            if sum.checks >= self.checks || self.end.is_some_and(|end| Instant::now() >= end) {
                self.stop.store(true, Ordering::Relaxed);
            }
            if let Err(failure) = ran {
                self.stop.store(true, Ordering::Relaxed);
                lock(&self.failed).get_or_insert((case, failure));
            }
        }
    }

    /// Prints how far the work is until it ends.
    fn watch(&self) {
        let mut printed = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50));
            if printed.elapsed() < EVERY {
                continue;
            }
            printed = Instant::now();
            let checks = lock(&self.report).checks;
            println!(
                "{:>5.0} s: {:.3e} of {:.3e} key checks ({:.1} %), case {}",
                self.start.elapsed().as_secs_f64(),
                checks as f64,
                self.checks as f64,
                100.0 * checks as f64 / self.checks as f64,
                self.next.load(Ordering::Relaxed)
            );
            // A closed pipe is no reason to stop checking.
            let _ = io::stdout().flush();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The key checks by category and name.
fn print_totals(report: &Report) {
    let mut last = "";
    for ((category, name), checks) in &report.totals {
        if *category != last {
            println!("{category}");
            last = category;
        }
        println!("  {name:<26} {:>10.3e}", *checks as f64);
    }
    println!("longest index: {} keys", report.longest);
}

/// Case number `case`: mostly small, every fourth longer, every twelfth with more than 131,072 keys in one index.
fn history(seed: u64, case: u64) -> History {
    // The odd constant of the golden ratio spreads consecutive cases over all seeds.
    let mut rng = StdRng::seed_from_u64(seed ^ case.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let (values, keys, steps) = match case {
        MILLION => return long(&mut rng, 1_000_000),
        _ if case % 12 == 6 => return long(&mut rng, 131_073),
        _ if case % 4 == 1 => (2_000_000, 100_000, 40),
        _ => (200_000, 10_000, 60),
    };
    let limits = Limits {
        values,
        keys,
        steps,
    };
    source::history(&mut rng, limits)
}

/// An index of at least `keys` keys that grows, is cut, forked and searched.
fn long(rng: &mut StdRng, keys: u32) -> History {
    let shape = Shape {
        dim: [8, 16, 17, 32][rng.below(4) as usize],
        levels: 1 + rng.below(3) as u8,
        branching: 32,
        segment_len: [4096, 8192, 65_536][rng.below(3) as usize],
        min_coarse_len: 1024,
        variant: rng.below(VARIANTS.len() as u32) as u8,
        kernel: 1 + rng.below(2) as u8,
        content: rng.below(256) as u8,
        seed: rng.below(256) as u8,
    };
    let append = |rows| Op::Append { rows, seed: 1 };
    let mut ops = vec![append(keys / 2), append(keys / 2 + 1 + rng.below(10_000))];
    ops.extend(searches(rng, 3));
    ops.extend([Op::Fork, Op::Truncate { keep: 990, less: 5 }, append(1)]);
    ops.extend(searches(rng, 3));
    let steps = ops.into_iter().map(|op| Step {
        on: rng.below(2) as u8,
        op,
    });
    History {
        shape,
        steps: steps.collect(),
    }
}

/// Searches with one to three queries each.
fn searches(rng: &mut StdRng, count: usize) -> Vec<Op> {
    let search = |_| {
        let mut search = source::search(rng);
        search.queries = search.queries.clamp(1, 3);
        Op::Search(search)
    };
    (0..count).map(search).collect()
}
