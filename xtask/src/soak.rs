//! `cargo xtask soak` and `cargo xtask fuzz`: the programs of hira-search that compare histories of indexes with brute force.

use std::process::Command;

use anyhow::Result;

use crate::workspace::Workspace;

/// Runs an example of hira-search with the given flags; its exit code decides.
pub(crate) fn run(workspace: &Workspace, example: &str, flags: &[String]) -> Result<bool> {
    let mut command = command(workspace, example);
    Ok(command.args(flags).status()?.success())
}

/// An example in release and without Burn, which it does not need. Flags can be added.
pub(crate) fn command(workspace: &Workspace, example: &str) -> Command {
    let mut command = workspace.cargo("run");
    command.args([
        "--release",
        "--package",
        "hira-search",
        "--no-default-features",
        "--example",
        example,
        "--",
    ]);
    command
}
