//! Runs a step's programs, keeps their output in a log, and counts the tests that they report.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// How many lines of a failed program are shown where its output was not shown as it came.
const SHOWN_ON_FAILURE: usize = 120;

/// Tests as their runners counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Reads the closing line of Rust's test runner: `test result: ok. 5 passed; 0 failed; 1 ignored; ...`.
    fn of_line(line: &str) -> Self {
        let mut tally = Self::default();
        let Some(counts) = line.trim_start().strip_prefix("test result: ") else {
            return tally;
        };
        for count in counts.split(['.', ';']) {
            match count
                .trim()
                .split_once(' ')
                .map(|(number, what)| (number.parse(), what))
            {
                Some((Ok(number), "passed")) => tally.passed = number,
                Some((Ok(number), "failed")) => tally.failed = number,
                Some((Ok(number), "ignored")) => tally.ignored = number,
                _ => {}
            }
        }
        tally
    }
}

/// The output of one step: a log file, the terminal if asked for, and the tests counted so far.
pub(crate) struct Shell {
    log_path: PathBuf,
    verbose: bool,
    sink: Mutex<Sink>,
}

struct Sink {
    log: File,
    recent: VecDeque<String>,
    tally: Tally,
}

impl Shell {
    pub(crate) fn new(log_path: &Path, verbose: bool) -> Result<Self> {
        if let Some(folder) = log_path.parent() {
            fs::create_dir_all(folder)?;
        }
        let log = File::create(log_path)
            .with_context(|| format!("cannot write {}", log_path.display()))?;
        let sink = Sink {
            log,
            recent: VecDeque::new(),
            tally: Tally::default(),
        };
        Ok(Self {
            log_path: log_path.to_path_buf(),
            verbose,
            sink: Mutex::new(sink),
        })
    }

    /// The tests that every program so far has reported.
    pub(crate) fn tally(&self) -> Tally {
        self.sink().tally
    }

    pub(crate) fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// The last lines of the last program.
    pub(crate) fn recent(&self) -> String {
        self.sink()
            .recent
            .iter()
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Runs a program to its end; returns its standard output, or an error with its last lines if it fails.
    pub(crate) fn run(&self, command: &mut Command) -> Result<String> {
        let shown = shown(command);
        self.line(&format!("$ {shown}"), true)?;
        self.sink().recent.clear();
        let start = Instant::now();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {shown}"))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let printed = thread::scope(|scope| {
            let errors =
                scope.spawn(|| err.map_or(Ok(String::new()), |pipe| self.copy(pipe, false)));
            let printed = out.map_or(Ok(String::new()), |pipe| self.copy(pipe, true));
            // A panic in the copying thread is one of ours: pass it on.
            errors
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            printed
        })?;
        let status = child.wait()?;
        self.line(&format!("# {:.1} s", start.elapsed().as_secs_f64()), false)?;
        if !status.success() {
            if self.verbose {
                bail!("{shown}: {status}");
            }
            bail!("{}\n{shown}: {status}", self.recent());
        }
        Ok(printed)
    }

    /// Copies a program's output line by line; returns it whole if asked to keep it.
    fn copy(&self, pipe: impl Read, keep: bool) -> Result<String> {
        let mut kept = String::new();
        let mut reader = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes)? > 0 {
            let line = String::from_utf8_lossy(&bytes);
            self.line(line.trim_end_matches(['\n', '\r']), true)?;
            if keep {
                kept.push_str(&line);
            }
            bytes.clear();
        }
        Ok(kept)
    }

    fn line(&self, line: &str, show: bool) -> Result<()> {
        let mut sink = self.sink();
        writeln!(sink.log, "{line}")?;
        sink.tally.add(Tally::of_line(line));
        if sink.recent.len() == SHOWN_ON_FAILURE {
            sink.recent.pop_front();
        }
        sink.recent.push_back(line.to_string());
        if self.verbose && show {
            println!("{line}");
        }
        Ok(())
    }

    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command as one would type it, with the environment that it adds.
fn shown(command: &Command) -> String {
    let added = command.get_envs().filter_map(|(name, value)| {
        Some(format!(
            "{}={}",
            name.to_string_lossy(),
            value?.to_string_lossy()
        ))
    });
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned());
    added.chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_closing_line_of_a_test_run() {
        let line = "test result: ok. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.02s";
        assert_eq!(
            Tally::of_line(line),
            Tally {
                passed: 12,
                failed: 3,
                ignored: 1
            }
        );
        assert_eq!(
            Tally::of_line("test tests::passed ... ok"),
            Tally::default()
        );
        assert_eq!(
            Tally::of_line("test result: FAILED. 0 passed; 1 failed").failed,
            1
        );
    }
}
