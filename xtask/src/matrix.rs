//! The test matrix: an ordered list of steps, run one after the other, cheapest first.
//!
//! # How it stays under an hour on two cores
//!
//! Nearly all of its time is spent compiling Burn and what Burn needs, and each change of features compiles most of that
//! again. So there are two large builds, both in the dev profile with optimised dependencies: one that only checks
//! (`ALL_FEATURES`, 7 minutes of two cores from a fresh clone, shared by clippy, the CUDA compile check and the docs) and one that generates code
//! (`TEST_FEATURES`, 19 minutes, shared by every test on Flex, NdArray and Vulkan and by the examples); the check of the
//! default features takes 2 more. Every user of a build names the same packages and test targets, because Cargo unifies
//! features over what is named. Warnings are denied by clippy's and rustdoc's own flags: a changed `RUSTFLAGS` would be one
//! more build of everything. A step that needs other flags or features (AddressSanitizer, the soak and the fuzzer in release, the cores without Burn) names only
//! crates that do not depend on Burn.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    shell::{Shell, Tally},
    steps,
    workspace::Workspace,
};

/// Which steps to run, and how.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Run only this step; may be given several times
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Go on after a step that fails; the exit code still tells
    #[arg(long)]
    keep_going: bool,
    /// Print the names of the steps and what each does, and run none
    #[arg(long)]
    list: bool,
    /// Show the output of every step as it comes
    #[arg(long, short)]
    verbose: bool,
}

impl Options {
    /// The whole matrix as continuous integration wants it.
    pub(crate) fn ci() -> Self {
        Self {
            keep_going: true,
            verbose: true,
            ..Self::default()
        }
    }
}

/// One entry of the matrix.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// What passing it shows.
    pub(crate) what: &'static str,
    pub(crate) run: Run,
}

/// Runs a step; an error is its failure.
pub(crate) type Run = fn(&Workspace, &Shell) -> Result<Outcome>;

/// How a step that did not fail ended.
pub(crate) enum Outcome {
    Passed,
    /// It could not run here, and why.
    Skipped(String),
}

/// One line of the summary.
struct Record {
    name: &'static str,
    time: Duration,
    tally: Tally,
    end: Result<Outcome>,
}

/// Runs the chosen steps; true if none failed.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    if options.list {
        for step in steps::ALL {
            println!("{:<10} {}", step.name, step.what);
        }
        return Ok(true);
    }
    let mut records = Vec::new();
    for step in chosen(&options.only)? {
        let record = run_step(workspace, step, options.verbose)?;
        let failed = record.end.is_err();
        records.push(record);
        if failed && !options.keep_going {
            break;
        }
    }
    Ok(summarise(&records))
}

/// The steps of the given names in the matrix's order; all of them if none is named.
fn chosen(names: &[String]) -> Result<Vec<&'static Step>> {
    let known = |name: &String| steps::ALL.iter().any(|step| step.name == *name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        bail!("no step {unknown}: `cargo xtask test --list` names them");
    }
    let wanted = |step: &&Step| names.is_empty() || names.iter().any(|name| name == step.name);
    Ok(steps::ALL.iter().filter(wanted).collect())
}

fn run_step(workspace: &Workspace, step: &'static Step, verbose: bool) -> Result<Record> {
    let waiting = !verbose && io::stdout().is_terminal();
    if verbose {
        println!("=== {}: {}", step.name, step.what);
    } else if waiting {
        print!("{:<10} ...", step.name);
        io::stdout().flush()?;
    }
    let shell = Shell::new(
        &workspace.target().join(format!("xtask/{}.log", step.name)),
        verbose,
    )?;
    let start = Instant::now();
    let end = (step.run)(workspace, &shell);
    let record = Record {
        name: step.name,
        time: start.elapsed(),
        tally: shell.tally(),
        end,
    };
    if waiting {
        print!("\r");
    }
    println!("{}", line(&record, step.what));
    if let Err(error) = &record.end {
        println!("{error:#}\nfull output: {}", shell.log_path().display());
    }
    Ok(record)
}

/// `clippy     ok       93.1 s  what it shows`, with the number of tests where there were any.
fn line(record: &Record, what: &str) -> String {
    let (end, note) = match &record.end {
        Ok(Outcome::Passed) => ("ok", what),
        Ok(Outcome::Skipped(why)) => ("skipped", why.as_str()),
        Err(_) => ("FAILED", what),
    };
    let tests = match record.tally.passed + record.tally.failed {
        0 => String::new(),
        1 => " (1 test)".to_string(),
        tests => format!(" ({tests} tests)"),
    };
    format!(
        "{:<10} {end:<7} {:>7.1} s  {note}{tests}",
        record.name,
        record.time.as_secs_f64()
    )
}

/// Prints what was skipped and what failed, and the total; true if nothing failed.
fn summarise(records: &[Record]) -> bool {
    let mut total = Tally::default();
    let (mut skipped, mut failed, mut time) = (Vec::new(), Vec::new(), Duration::ZERO);
    for record in records {
        total.add(record.tally);
        time += record.time;
        match &record.end {
            Ok(Outcome::Passed) => {}
            Ok(Outcome::Skipped(why)) => skipped.push(format!("{}: {why}", record.name)),
            Err(_) => failed.push(record.name),
        }
    }
    println!();
    for line in &skipped {
        println!("skipped {line}");
    }
    for name in &failed {
        println!("failed {name}");
    }
    let seconds = time.as_secs();
    println!(
        "{} steps in {} min {:02} s: {} ok, {} skipped, {} failed",
        records.len(),
        seconds / 60,
        seconds % 60,
        records.len() - skipped.len() - failed.len(),
        skipped.len(),
        failed.len(),
    );
    // Tests and steps in one line, in the form that any reader of test output counts: a failed step is a failure even
    // where no test of it ran.
    let failures = total.failed.max(failed.len());
    println!(
        "{} passed, {failures} failed, {} skipped",
        total.passed,
        total.ignored + skipped.len()
    );
    failed.is_empty()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn steps_have_different_names_and_are_found_by_them() -> Result<()> {
        let names: BTreeSet<_> = steps::ALL.iter().map(|step| step.name).collect();
        assert_eq!(names.len(), steps::ALL.len());
        assert_eq!(chosen(&[])?.len(), steps::ALL.len());
        assert_eq!(chosen(&["tidy".to_string()])?.len(), 1);
        assert!(chosen(&["no-such-step".to_string()]).is_err());
        Ok(())
    }

    #[test]
    fn a_failed_step_is_a_failure() {
        let record = |end| Record {
            name: "x",
            time: Duration::ZERO,
            tally: Tally::default(),
            end,
        };
        assert!(summarise(&[
            record(Ok(Outcome::Passed)),
            record(Ok(Outcome::Skipped("why".into())))
        ]));
        assert!(!summarise(&[record(Err(anyhow::anyhow!("broken")))]));
    }
}
