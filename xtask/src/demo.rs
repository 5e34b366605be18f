//! `cargo xtask demo`, `cargo xtask decode` and `cargo xtask eval`: builds a binary of hira-examples in release and runs it.

use anyhow::Result;

use crate::workspace::Workspace;

/// Runs the binary with the given flags; its exit code decides.
pub(crate) fn run(workspace: &Workspace, binary: &str, flags: &[String]) -> Result<bool> {
    let mut program = workspace.cargo("run");
    program
        .args([
            "--release",
            "--package",
            "hira-examples",
            "--bin",
            binary,
            "--",
        ])
        .args(flags);
    Ok(program.status()?.success())
}
