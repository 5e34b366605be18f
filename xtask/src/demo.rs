//! `cargo xtask demo`: builds the `demo` binary of hira-examples in release and runs it.

use anyhow::Result;

use crate::workspace::Workspace;

/// Runs the demo with the given flags; its exit code decides.
pub(crate) fn run(workspace: &Workspace, flags: &[String]) -> Result<bool> {
    let mut demo = workspace.cargo("run");
    demo.args([
        "--release",
        "--package",
        "hira-examples",
        "--bin",
        "demo",
        "--",
    ])
    .args(flags);
    Ok(demo.status()?.success())
}
