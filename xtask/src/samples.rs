//! Runs the binaries of hira-examples on small input, as a user would, and reads what they print.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{matrix::Outcome, shell::Shell, workspace::Workspace};

/// How `llama` begins to say that there is no model and no way to get it.
const NO_MODEL: &str = "cannot fetch SmolLM2";

/// How `verify` is run on each capture: every kind of rule, index and plan, growing key by key, one thread.
const VERIFICATIONS: [&[&str]; 8] = [
    &["--rule", "top-k=256"],
    &["--rule", "percentile=2", "--levels", "1"],
    &["--rule", "fixed=8", "--levels", "0"],
    &[
        "--rule",
        "top-k=64",
        "--segment-len",
        "2048",
        "--plan",
        "tree",
    ],
    &[
        "--rule",
        "top-k=256",
        "--append-from",
        "7680",
        "--segment-len",
        "4096",
    ],
    &[
        "--rule",
        "percentile=0.5",
        "--kernel",
        "scalar",
        "--threads",
        "1",
    ],
    &["--rule", "sample-top-k=256"],
    &["--rule", "adaptive=2", "--segment-len", "2048"],
];

/// Compares the selected keys of a capture with brute force; `verify` exits non-zero on any difference.
pub(crate) fn verify(workspace: &Workspace, shell: &Shell, capture: &Path) -> Result<()> {
    for flags in VERIFICATIONS {
        shell.run(binary(workspace, "verify").arg(capture).args(flags))?;
    }
    Ok(())
}

/// A short prompt with dense attention and with Hira under a threshold that keeps every key: the same tokens. Skipped if
/// there is no model.
pub(crate) fn llama(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    let dense = match generate(workspace, shell, &["--attention", "dense"]) {
        Err(_) if shell.recent().contains(NO_MODEL) => {
            return Ok(Outcome::Skipped(NO_MODEL.to_string()));
        }
        dense => dense?,
    };
    ensure!(!dense.is_empty(), "dense attention generated no token");
    let hira = generate(
        workspace,
        shell,
        &["--attention", "hira", "--threshold=-inf"],
    )?;
    ensure!(
        dense == hira,
        "tokens differ: dense {dense:?}, Hira {hira:?}"
    );
    Ok(Outcome::Passed)
}

/// The tokens of a short answer.
fn generate(workspace: &Workspace, shell: &Shell, flags: &[&str]) -> Result<Vec<Value>> {
    let mut llama = binary(workspace, "llama");
    llama
        .args([
            "--prompt",
            "The colours of the rainbow are",
            "--max-new",
            "8",
            "--json",
        ])
        .args(flags);
    let printed = shell.run(&mut llama)?;
    let last = printed.lines().last().context("llama printed nothing")?;
    let answer: Value = serde_json::from_str(last).context("the last line is not JSON")?;
    Ok(answer["tokens"]
        .as_array()
        .context("the answer has no tokens")?
        .clone())
}

/// The attention bench on its smallest scenario: every timed answer is checked, and the report is written.
pub(crate) fn bench(workspace: &Workspace, shell: &Shell) -> Result<()> {
    let out = workspace.target().join("xtask/bench");
    let mut bench = binary(workspace, "bench_attention");
    bench.args(["--quick", "--only", "smollm2/layer14/64", "--out"]);
    shell.run(bench.arg(&out))?;
    let table = fs::read_to_string(out.join("results.csv")).context("no results.csv")?;
    ensure!(
        table.lines().count() == 6,
        "five contenders were to be measured:\n{table}"
    );
    Ok(())
}

/// The fidelity harness on a window of 512 tokens, twice: the second run finds everything done and writes the same tables.
pub(crate) fn eval(workspace: &Workspace, shell: &Shell) -> Result<()> {
    let out = workspace.target().join("xtask/eval");
    let eval = |more: &[&str]| -> Result<String> {
        let mut eval = binary(workspace, "eval");
        eval.args([
            "--parts",
            "text,decoding",
            "--contexts",
            "512",
            "--start",
            "256",
            "--decoded",
            "4",
            "--rules",
            "top-k=32,streaming=64",
            "--decoding-rules",
            "top-k=32",
        ]);
        shell.run(eval.args(more).arg("--out").arg(&out))?;
        fs::read_to_string(out.join("perplexity.csv")).context("no perplexity.csv")
    };
    let first = eval(&["--fresh"])?;
    let rules: Vec<_> = first.lines().skip(1).collect();
    ensure!(
        rules.len() == 3,
        "three rules were to be read with:\n{first}"
    );
    ensure!(
        rules[0].starts_with("dense,512,256,1.000000,"),
        "dense attention attends to every key:\n{first}"
    );
    let second = eval(&[])?;
    ensure!(
        first == second,
        "the second run measured again:\n{first}{second}"
    );
    Ok(())
}

fn binary(workspace: &Workspace, name: &str) -> Command {
    let mut command = Command::new(workspace.target().join("debug").join(name));
    command.current_dir(workspace.root());
    command
}
