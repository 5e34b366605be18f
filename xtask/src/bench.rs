//! `cargo xtask bench`: the attention bench, what others offer on the same rows, then the Criterion benches of the cores.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::workspace::Workspace;

/// What of the benches is asked for.
pub(crate) struct Options<'a> {
    /// Only the short list of scenarios.
    pub(crate) quick: bool,
    /// Other programs too.
    pub(crate) peers: bool,
    /// Flags of `bench_attention`.
    pub(crate) flags: &'a [String],
}

/// Runs the benches in release; every program's exit code decides, and the first failure ends it. Peers that cannot run are no failure.
pub(crate) fn run(workspace: &Workspace, options: &Options<'_>) -> Result<bool> {
    let mut attention = workspace.cargo("run");
    attention.args([
        "--release",
        "--package",
        "hira-examples",
        "--bin",
        "bench_attention",
        "--",
    ]);
    if options.quick {
        attention.arg("--quick");
    }
    let peers = Peers::of(workspace);
    if options.peers {
        attention.arg("--export").arg(&peers.rows);
    }
    if !attention.args(options.flags).status()?.success() {
        return Ok(false);
    }
    if options.peers
        && let Err(reason) = peers.run(options)
    {
        println!("\nno peers: {reason:#}");
    }
    // named scenarios are a question about them alone
    if options.quick || !options.flags.is_empty() {
        return Ok(true);
    }
    // Without Burn: the benches of the cores need none of it, and so build in seconds.
    let mut cores = workspace.cargo("bench");
    cores.args([
        "--package",
        "hira-kernels",
        "--package",
        "hira-index",
        "--package",
        "hira-search",
        "--no-default-features",
        "--benches",
    ]);
    Ok(cores.status()?.success())
}

/// The Python program and where its parts are.
struct Peers {
    source: PathBuf,
    environment: PathBuf,
    results: PathBuf,
    rows: PathBuf,
}

impl Peers {
    fn of(workspace: &Workspace) -> Self {
        let results = workspace.root().join("target/hira-bench");
        Self {
            source: workspace.root().join("benches/peers"),
            environment: workspace.target().join("peers/venv"),
            rows: results.join("rows"),
            results,
        }
    }

    /// Makes the virtual environment if there is none, installs what is pinned, runs the program.
    fn run(&self, options: &Options<'_>) -> Result<()> {
        let python = self.environment.join("bin/python");
        if !python.is_file() {
            let mut make = Command::new("python3");
            make.args(["-m", "venv"]).arg(&self.environment);
            finish(&mut make, "python3 with venv is needed")?;
        }
        let mut install = Command::new(&python);
        install
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(self.source.join("requirements.txt"));
        finish(
            &mut install,
            "pip cannot install what benches/peers/requirements.txt pins",
        )?;
        let mut peers = Command::new(&python);
        peers
            .arg(self.source.join("peers.py"))
            .arg("--rows")
            .arg(&self.rows)
            .arg("--results")
            .arg(self.results.join("results.csv"))
            .arg("--out")
            .arg(&self.results);
        if options.quick {
            peers.args(["--samples", "30", "--longest", "8192"]);
        }
        finish(&mut peers, "benches/peers/peers.py failed")
    }
}

/// Runs a command to its end, its output shown; an error that begins with `needed` if it cannot or fails.
fn finish(command: &mut Command, needed: &str) -> Result<()> {
    let status = command
        .status()
        .map_err(|error| anyhow::anyhow!("{needed}: {error}"))?;
    anyhow::ensure!(status.success(), "{needed}: {status}");
    Ok(())
}
