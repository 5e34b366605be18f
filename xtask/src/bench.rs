//! `cargo xtask bench`: the attention bench over the captures, then the Criterion benches of the cores.

use anyhow::Result;

use crate::workspace::Workspace;

/// Runs the benches in release; every program's exit code decides, and the first failure ends it.
pub(crate) fn run(workspace: &Workspace, quick: bool, flags: &[String]) -> Result<bool> {
    let mut attention = workspace.cargo("run");
    attention.args([
        "--release",
        "--package",
        "hira-examples",
        "--bin",
        "bench_attention",
        "--",
    ]);
    if quick {
        attention.arg("--quick");
    }
    if !attention.args(flags).status()?.success() {
        return Ok(false);
    }
    if quick {
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
