//! AddressSanitizer over the crate with `unsafe` and the one that hands it most of its memory.

use std::process::Command;

use anyhow::Result;

use crate::workspace::{LAYERS, Workspace, output};

/// Runs the tests; the exit code of the first failure decides.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    Ok(command(workspace)?.status()?.success())
}

/// The tests of hira-kernels and hira-index, built with the sanitizer and without Burn.
///
/// An unstable flag that stable compilers have too; it needs a build of its own. The tests take 25 seconds with all cases of the
/// property tests.
pub(crate) fn command(workspace: &Workspace) -> Result<Command> {
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let mut test = workspace.cargo("test");
    test.args(["--package", LAYERS[0], "--package", LAYERS[1]])
        .args(["--no-default-features", "--lib", "--tests"])
        .args(["--target", host.trim()])
        .env("CARGO_TARGET_DIR", workspace.target().join("asan"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address");
    Ok(test)
}
