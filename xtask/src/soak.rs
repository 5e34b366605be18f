//! `cargo xtask soak` and `cargo xtask fuzz`: the programs of hira-search that compare histories of indexes with brute force, and that of
//! hira-attention that holds certificates against the truth.

use std::process::Command;

use anyhow::Result;

use crate::workspace::Workspace;

/// The word that asks for the soak of certificates alone.
const CERTIFICATES: &str = "certificates";

/// Both soaks without flags; with flags that of histories, or that of certificates if they begin with its name.
pub(crate) fn soak(workspace: &Workspace, flags: &[String]) -> Result<bool> {
    match flags.split_first() {
        None => Ok(run(command(workspace, "soak"), &[])? && run(certificates(workspace), &[])?),
        Some((name, flags)) if name == CERTIFICATES => run(certificates(workspace), flags),
        Some(_) => run(command(workspace, "soak"), flags),
    }
}

pub(crate) fn fuzz(workspace: &Workspace, flags: &[String]) -> Result<bool> {
    run(command(workspace, "fuzz"), flags)
}

/// Runs an example with the given flags; its exit code decides.
fn run(mut command: Command, flags: &[String]) -> Result<bool> {
    Ok(command.args(flags).status()?.success())
}

/// An example of hira-search. Flags can be added.
pub(crate) fn command(workspace: &Workspace, example: &str) -> Command {
    example_of(workspace, "hira-search", example)
}

/// The soak of certificates. Flags can be added.
pub(crate) fn certificates(workspace: &Workspace) -> Command {
    example_of(workspace, "hira-attention", CERTIFICATES)
}

/// An example in release and without Burn, which it does not need.
fn example_of(workspace: &Workspace, package: &str, example: &str) -> Command {
    let mut command = workspace.cargo("run");
    command.args([
        "--release",
        "--package",
        package,
        "--no-default-features",
        "--example",
        example,
        "--",
    ]);
    command
}
