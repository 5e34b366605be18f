//! A fuzzer for a stretch of time, on the stable toolchain: strings of bytes become histories of indexes, and what they do
//! is compared with brute force.
//!
//! `cargo xtask fuzz` runs it. Inputs that make an index or a search take a new way (a structure, a plan, a bucket of its
//! counts) are kept and mutated. A failing input is written to a file, and the exit code is 1.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/history.rs"]
mod history;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use history::source::{self, Bytes, Limits};
use history::{Failure, History, Report, keep_panics, run_caught};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Time between two lines of progress.
const EVERY: Duration = Duration::from_secs(5);
/// Longest input.
const MAX_BYTES: usize = 400;
/// One step of this many is followed by a proof of the index's invariants; a replay proves them after every step.
const VALIDATE_EVERY: usize = 4;
/// Inputs that `--keep` writes.
const KEPT: usize = 12;

/// Search for a string of bytes whose history of an index disagrees with brute force
#[derive(Parser)]
struct Arguments {
    /// How long to search
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the mutations [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// Inputs run side by side [default: one a core]
    #[arg(long)]
    threads: Option<NonZero<usize>>,
    /// Run this input alone, print its history, and prove the invariants after every step
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// At the end, write a dozen inputs that together reach most to this folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    keep_panics();
    let ended = match &arguments.replay {
        Some(file) => replay(file),
        None => fuzz(&arguments),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err((path, error)) => {
            eprintln!("error: {}: {error}", path.display());
            ExitCode::from(2)
        }
    }
}

/// A file that could not be read or written, and why.
type FileError = (PathBuf, io::Error);

fn decode(bytes: &[u8]) -> History {
    source::history(&mut Bytes(bytes), Limits::FUZZ)
}

/// Runs one input; true if it agrees with brute force.
fn replay(file: &Path) -> Result<bool, FileError> {
    let bytes = fs::read(file).map_err(|error| (file.to_path_buf(), error))?;
    let history = decode(&bytes);
    println!("{history:#?}");
    let mut report = Report::default();
    let ran = run_caught(&history, 1, &mut report);
    println!("{} searches, {} checks", report.searches, report.checks);
    match &ran {
        Ok(()) => println!("agrees with brute force"),
        Err(failure) => println!("FAILED at {failure}"),
    }
    Ok(ran.is_ok())
}

/// Searches for the given time; true if nothing failed.
fn fuzz(arguments: &Arguments) -> Result<bool, FileError> {
    let seed = arguments.seed.unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed();
        now.map_or(0, |since| since.as_secs())
    });
    println!("seed {seed}");
    let fuzzer = Fuzzer::new(Duration::from_secs(arguments.seconds))?;
    let threads = arguments.threads.or(thread::available_parallelism().ok());
    thread::scope(|scope| {
        for thread in 0..threads.map_or(1, NonZero::get) as u64 {
            let fuzzer = &fuzzer;
            scope.spawn(move || fuzzer.work(StdRng::seed_from_u64(seed ^ thread << 32)));
        }
        fuzzer.watch();
    });
    fuzzer.print();
    let state = fuzzer.state();
    if let Some(folder) = &arguments.keep {
        keep(&state.corpus, folder)?;
    }
    match &state.failed {
        None => Ok(true),
        Some((bytes, failure)) => {
            report_failure(bytes, failure)?;
            Ok(false)
        }
    }
}

/// An input and what it reaches.
struct Input {
    bytes: Vec<u8>,
    reached: BTreeSet<u64>,
}

/// What the threads share.
struct Fuzzer {
    start: Instant,
    time: Duration,
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    corpus: Vec<Input>,
    /// The sum of all runs.
    report: Report,
    runs: u64,
    failed: Option<(Vec<u8>, Failure)>,
}

impl Fuzzer {
    /// Begins with the committed corpus.
    fn new(time: Duration) -> Result<Self, FileError> {
        let fuzzer = Self {
            start: Instant::now(),
            time,
            stop: AtomicBool::new(false),
            state: Mutex::default(),
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        let failed = |error| (folder.clone(), error);
        fuzzer.run(Vec::new());
        for entry in folder.read_dir().map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            fuzzer.run(fs::read(&file).map_err(|error| (file, error))?);
        }
        Ok(fuzzer)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, mut rng: StdRng) {
        while !self.stop.load(Ordering::Relaxed) && self.start.elapsed() < self.time {
            let mut bytes = {
                let state = self.state();
                let pick = |rng: &mut StdRng| {
                    let i = rng.random_range(0..state.corpus.len().max(1));
                    state
                        .corpus
                        .get(i)
                        .map_or(&[][..], |input| input.bytes.as_slice())
                };
                let first = pick(&mut rng);
                match rng.random_range(0..8) {
                    0 => splice(first, pick(&mut rng), &mut rng),
                    _ => first.to_vec(),
                }
            };
            for _ in 0..1 + rng.random_range(0..4) {
                mutate(&mut bytes, &mut rng);
            }
            self.run(bytes);
        }
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Runs one input and keeps it if it reaches something new.
    fn run(&self, bytes: Vec<u8>) {
        let mut report = Report::default();
        let ran = run_caught(&decode(&bytes), VALIDATE_EVERY, &mut report);
        let mut state = self.state();
        state.runs += 1;
        if !report.reached.is_subset(&state.report.reached) {
            let reached = report.reached.clone();
            let bytes = bytes.clone();
            state.corpus.push(Input { bytes, reached });
        }
        state.report.add(report);
        if let Err(failure) = ran {
            self.stop.store(true, Ordering::Relaxed);
            state.failed.get_or_insert((bytes, failure));
        }
    }

    fn watch(&self) {
        let mut printed = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50));
            if printed.elapsed() >= EVERY {
                printed = Instant::now();
                self.print();
            }
        }
    }

    fn print(&self) {
        let state = self.state();
        println!(
            "{:>4.0} s: {} inputs run, {} kept, {} ways reached, {} searches, {:.3e} key checks",
            self.start.elapsed().as_secs_f64(),
            state.runs,
            state.corpus.len(),
            state.report.reached.len(),
            state.report.searches,
            state.report.checks as f64
        );
    }
}

/// The start of one input and the end of another.
fn splice(first: &[u8], second: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let (head, tail) = (
        rng.random_range(0..=first.len()),
        rng.random_range(0..=second.len()),
    );
    let mut bytes = first[..head].to_vec();
    bytes.extend_from_slice(&second[tail..]);
    bytes.truncate(MAX_BYTES);
    bytes
}

/// One small change: a bit, a byte, a block that is inserted, dropped or repeated.
fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    let at = rng.random_range(0..bytes.len().max(1));
    let end = (at + 1 + rng.random_range(0..12)).min(bytes.len());
    match rng.random_range(0..5) {
        _ if bytes.is_empty() => bytes.extend((0..40).map(|_| rng.random::<u8>())),
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => {
            let block: Vec<u8> = (at..end).map(|_| rng.random()).collect();
            bytes.splice(at..at, block);
        }
        3 => {
            bytes.drain(at..end);
        }
        _ => {
            let block = bytes[at..end].to_vec();
            bytes.splice(at..at, block);
        }
    }
    bytes.truncate(MAX_BYTES);
}

/// Writes the inputs that together reach most, the best first.
fn keep(corpus: &[Input], folder: &Path) -> Result<(), FileError> {
    let failed = |error| (folder.to_path_buf(), error);
    fs::create_dir_all(folder).map_err(failed)?;
    let mut reached = BTreeSet::new();
    for number in 0..KEPT {
        let gain = |input: &&Input| input.reached.difference(&reached).count();
        let Some(best) = corpus.iter().max_by_key(gain) else {
            break;
        };
        let file = folder.join(format!("{number:02}"));
        fs::write(&file, &best.bytes).map_err(failed)?;
        reached.extend(best.reached.iter().copied());
    }
    println!("{} ways reached by what was kept", reached.len());
    Ok(())
}

/// Drops bytes as long as the input fails, writes it, and prints its history and how to run it again.
fn report_failure(bytes: &[u8], failure: &Failure) -> Result<(), FileError> {
    let (mut bytes, mut failure) = (bytes.to_vec(), failure.clone());
    for width in [32, 8, 2, 1] {
        let mut at = 0;
        while at + width <= bytes.len() {
            let mut fewer = bytes.clone();
            fewer.drain(at..at + width);
            match run_caught(&decode(&fewer), 1, &mut Report::default()) {
                Err(still) => (bytes, failure) = (fewer, still),
                Ok(()) => at += width,
            }
        }
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let folder = target.join("fuzz");
    let seconds = std::time::UNIX_EPOCH.elapsed();
    let file = folder.join(format!("failure-{}", seconds.map_or(0, |s| s.as_secs())));
    fs::create_dir_all(&folder).map_err(|error| (folder, error))?;
    fs::write(&file, &bytes).map_err(|error| (file.clone(), error))?;
    println!("FAILED at {failure}\n{:#?}", decode(&bytes));
    println!("again: cargo xtask fuzz --replay {}", file.display());
    Ok(())
}
