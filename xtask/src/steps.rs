//! What each step of the test matrix runs.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    asan, docs,
    drivers::{loadable, software_vulkan},
    layers,
    matrix::{Outcome, Run, Step},
    samples,
    shell::Shell,
    soak, tidy,
    workspace::{CORES, Workspace},
};

/// Features of the build that only checks: everything there is.
pub(crate) const ALL_FEATURES: &str = "flex,ndarray,cuda,wgpu,autodiff";

/// Features of the build that runs: every backend that needs no hardware. The examples without wgpu: each of their binaries would
/// compile all of Burn's kernels once more (2 CPU minutes and 150 MB a binary), and clippy has checked that they would.
const TEST_FEATURES: &str = "flex,ndarray,autodiff,hira-attention/wgpu,hira-kernels/wgpu";

/// The crates that have a Burn face or device kernels, and the examples on top of them.
const FACES: [&str; 6] = [
    "hira-kernels",
    "hira-index",
    "hira-search",
    "hira-cache",
    "hira-attention",
    "hira-examples",
];

/// Tests that need a device say so in their names: these are left to the steps of that device.
const DEVICES: [&str; 2] = ["wgpu", "cuda"];

/// Every step, cheapest first.
pub(crate) const ALL: &[Step] = &[
    step("fmt", "formatted by rustfmt", fmt),
    step("tidy", "house rules that need no compiler", tidy_step),
    step(
        "layers",
        "dependencies point downwards, cores do not depend on Burn",
        layers_step,
    ),
    step("xtask", "tests of the chores themselves", xtask),
    step(
        "cores",
        "tests of the numerical cores, built without Burn",
        cores,
    ),
    step(
        "soak",
        "random histories of indexes against brute force, certificates against the truth",
        soak_step,
    ),
    step(
        "fuzz",
        "histories from mutated bytes against brute force, for some seconds",
        fuzz_step,
    ),
    step(
        "asan",
        "tests of hira-kernels and hira-index under AddressSanitizer",
        asan_step,
    ),
    step(
        "clippy",
        "no warning in any target with any feature; CUDA and wgpu compile",
        clippy,
    ),
    step(
        "defaults",
        "no warning with the default features alone",
        defaults,
    ),
    step("docs", "documentation without warnings", documentation),
    step(
        "build",
        "tests and binaries compile with every CPU backend and wgpu",
        build,
    ),
    step(
        "examples",
        "the binaries on small input; fetches the model",
        examples,
    ),
    step(
        "burn",
        "tests of the Burn faces and the examples on Flex and NdArray",
        burn,
    ),
    step("vulkan", "device tests on software Vulkan", vulkan),
    step("cuda", "device tests on CUDA", cuda),
];

const fn step(name: &'static str, what: &'static str, run: Run) -> Step {
    Step { name, what, run }
}

fn fmt(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    shell.run(workspace.cargo("fmt").args(["--all", "--", "--check"]))?;
    Ok(Outcome::Passed)
}

fn tidy_step(workspace: &Workspace, _: &Shell) -> Result<Outcome> {
    none_of(tidy::check(workspace)?)
}

fn layers_step(workspace: &Workspace, _: &Shell) -> Result<Outcome> {
    none_of(layers::check(workspace)?)
}

fn none_of(findings: Vec<String>) -> Result<Outcome> {
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    Ok(Outcome::Passed)
}

fn xtask(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    shell.run(workspace.cargo("test").args(["--package", "xtask"]))?;
    Ok(Outcome::Passed)
}

fn cores(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    shell.run(&mut repeatable(test_cores(workspace)))?;
    Ok(Outcome::Passed)
}

/// The tests of the numerical cores, without Burn.
pub(crate) fn test_cores(workspace: &Workspace) -> Command {
    let mut test = workspace.cargo("test");
    test.args(packages(&CORES)).arg("--no-default-features");
    test
}

/// Has property tests take the same cases in every run: a failure is then one of the change, and can be had again. `cargo xtask soak` takes others.
fn repeatable(mut test: Command) -> Command {
    test.env("PROPTEST_RNG_SEED", "1");
    test
}

/// The same cases in every run, so that a failure can be had again; `cargo xtask soak` takes others.
fn soak_step(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    shell.run(&mut soak::build(workspace))?;
    for (name, checks) in [(soak::HISTORIES, "1e8"), (soak::CERTIFICATES, "1e5")] {
        let mut example = soak::example(workspace, name);
        shell.run(example.args(["--checks", checks, "--seed", "1"]))?;
    }
    Ok(Outcome::Passed)
}

fn fuzz_step(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    shell.run(&mut soak::build(workspace))?;
    shell.run(soak::example(workspace, soak::FUZZ).args(["--seconds", "15"]))?;
    Ok(Outcome::Passed)
}

fn asan_step(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    shell.run(&mut repeatable(asan::command(workspace)?))?;
    Ok(Outcome::Passed)
}

fn clippy(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    let mut clippy = workspace.cargo("clippy");
    clippy.args([
        "--workspace",
        "--all-targets",
        "--features",
        ALL_FEATURES,
        "--",
        "--deny",
        "warnings",
    ]);
    shell.run(&mut clippy)?;
    Ok(Outcome::Passed)
}

/// What a user gets who names no feature: Flex alone. Checks a quarter of Burn once more.
fn defaults(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    let mut clippy = workspace.cargo("clippy");
    clippy
        .args(packages(&FACES))
        .args(["--all-targets", "--", "--deny", "warnings"]);
    shell.run(&mut clippy)?;
    Ok(Outcome::Passed)
}

fn documentation(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    let mut doc = docs::command(workspace);
    shell.run(doc.env("RUSTDOCFLAGS", "--deny warnings"))?;
    Ok(Outcome::Passed)
}

fn burn(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    let mut test = repeatable(faces(workspace, "test", TEST_FEATURES));
    test.arg("--")
        .args(DEVICES.iter().flat_map(|device| ["--skip", device]));
    shell.run(&mut test)?;
    Ok(Outcome::Passed)
}

fn vulkan(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    let Some(driver) = software_vulkan() else {
        return Ok(Outcome::Skipped(
            "no software Vulkan driver (packages mesa-vulkan-drivers, libvulkan1)".into(),
        ));
    };
    let mut test = faces(workspace, "test", TEST_FEATURES);
    test.env("VK_ICD_FILENAMES", driver).arg("wgpu");
    device_tests(shell, &mut test)
}

fn cuda(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    if !loadable("libcuda.so.1") {
        return Ok(Outcome::Skipped(
            "no CUDA driver; the step clippy has compiled that backend".into(),
        ));
    }
    let mut test = faces(workspace, "test", "flex,ndarray,cuda,autodiff");
    device_tests(shell, test.arg("cuda"))
}

/// Runs tests chosen by the name of a device; it is an error if there is none.
fn device_tests(shell: &Shell, test: &mut Command) -> Result<Outcome> {
    shell.run(test)?;
    if shell.tally().passed == 0 {
        bail!("no test has the name of the device in its path");
    }
    Ok(Outcome::Passed)
}

/// One build for the three steps below. With the tests, so that Cargo unifies features alike and builds nothing twice.
fn build(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    shell.run(faces(workspace, "build", TEST_FEATURES).args(["--bins", "--tests"]))?;
    Ok(Outcome::Passed)
}

/// Runs the binaries of hira-examples as a user would. Before their tests, which use the model that is fetched here.
fn examples(workspace: &Workspace, shell: &Shell) -> Result<Outcome> {
    build(workspace, shell)?;
    let mut skipped = Vec::new();
    let captures = workspace.captures();
    if captures.is_empty() {
        skipped.push("verify: no captures (set HIRA_CAPTURES to their folder)");
    }
    for capture in &captures {
        samples::verify(workspace, shell, capture)?;
    }
    samples::bench(workspace, shell)?;
    if let Outcome::Skipped(_) = samples::llama(workspace, shell)? {
        skipped.push("llama, eval: SmolLM2 is not here and cannot be fetched");
    } else {
        samples::eval(workspace, shell)?;
    }
    if skipped.is_empty() {
        Ok(Outcome::Passed)
    } else {
        Ok(Outcome::Skipped(skipped.join("; ")))
    }
}

/// `cargo SUBCOMMAND` over the crates with a Burn face, always the same list: it decides how Cargo unifies features.
fn faces(workspace: &Workspace, subcommand: &str, features: &str) -> Command {
    let mut command = workspace.cargo(subcommand);
    command
        .args(packages(&FACES))
        .args(["--features", features]);
    command
}

fn packages<'a>(names: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    names.iter().flat_map(|name| ["--package", name])
}
