//! `cargo xtask soak` and `cargo xtask fuzz`: the programs of hira-search that compare histories of indexes with brute force, that of
//! hira-attention that holds certificates against the truth, and the property tests with other cases than those of the matrix.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{steps, workspace::Workspace};

/// The word that asks for the soak of certificates alone.
const CERTIFICATES: &str = "certificates";

/// The word that asks for the property tests alone.
const PROPERTIES: &str = "properties";

/// Cases of each property unless a number is given: a few minutes on two cores.
const CASES: u32 = 1000;

/// All three without flags; with flags that of histories, or the one whose name they begin with.
pub(crate) fn soak(workspace: &Workspace, flags: &[String]) -> Result<bool> {
    match flags.split_first() {
        None => Ok(run(command(workspace, "soak"), &[])?
            && run(certificates(workspace), &[])?
            && run(properties(workspace, &[])?, &[])?),
        Some((name, flags)) if name == CERTIFICATES => run(certificates(workspace), flags),
        Some((name, cases)) if name == PROPERTIES => run(properties(workspace, cases)?, &[]),
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

/// The tests of the cores with as many random cases of each property as are asked for.
fn properties(workspace: &Workspace, cases: &[String]) -> Result<Command> {
    let cases = match cases {
        [] => CASES,
        [cases] => cases
            .parse()
            .with_context(|| format!("expected a number of cases, received {cases}"))?,
        more => bail!("expected a number of cases, received {}", more.join(" ")),
    };
    let mut test = steps::test_cores(workspace);
    test.arg("--no-fail-fast")
        .env("PROPTEST_CASES", cases.to_string());
    Ok(test)
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
