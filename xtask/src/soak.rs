//! `cargo xtask soak` and `cargo xtask fuzz`: the programs of hira-search that compare histories of indexes with brute force, that of
//! hira-attention that holds certificates against the truth, and the property tests with other cases than those of the matrix.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{steps, workspace::Workspace};

/// The soak of histories.
pub(crate) const HISTORIES: &str = "soak";

/// The fuzzer of histories.
pub(crate) const FUZZ: &str = "fuzz";

/// The soak of certificates, and the word that asks for it alone.
pub(crate) const CERTIFICATES: &str = "certificates";

/// The word that asks for the property tests alone.
const PROPERTIES: &str = "properties";

/// Cases of each property unless a number is given: a few minutes on two cores.
const CASES: u32 = 1000;

/// All three without flags; with flags that of histories, or the one whose name they begin with.
pub(crate) fn soak(workspace: &Workspace, flags: &[String]) -> Result<bool> {
    match flags.split_first() {
        None => Ok(run_built(workspace, HISTORIES, &[])?
            && run(example(workspace, CERTIFICATES), &[])?
            && run(properties(workspace, &[])?, &[])?),
        Some((name, flags)) if name == CERTIFICATES => run_built(workspace, CERTIFICATES, flags),
        Some((name, cases)) if name == PROPERTIES => run(properties(workspace, cases)?, &[]),
        Some(_) => run_built(workspace, HISTORIES, flags),
    }
}

pub(crate) fn fuzz(workspace: &Workspace, flags: &[String]) -> Result<bool> {
    run_built(workspace, FUZZ, flags)
}

/// Builds the examples, and runs one with the given flags.
fn run_built(workspace: &Workspace, name: &str, flags: &[String]) -> Result<bool> {
    Ok(run(build(workspace), &[])? && run(example(workspace, name), flags)?)
}

/// Runs a command with the given flags; its exit code decides.
fn run(mut command: Command, flags: &[String]) -> Result<bool> {
    Ok(command.args(flags).status()?.success())
}

/// Compiles the examples in release and without Burn, which they do not need; together, because each package alone would compile the cores
/// with other features of what they need.
pub(crate) fn build(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo("build");
    command.args(["--release", "--no-default-features"]);
    command.args(["--package", "hira-search", "--package", "hira-attention"]);
    for name in [HISTORIES, FUZZ, CERTIFICATES] {
        command.args(["--example", name]);
    }
    command
}

/// An example that was [built](build). Flags can be added.
pub(crate) fn example(workspace: &Workspace, name: &str) -> Command {
    let mut command = Command::new(workspace.target().join("release/examples").join(name));
    command.current_dir(workspace.root());
    command
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
