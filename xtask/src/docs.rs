//! The documentation of every crate: `cargo xtask doc` and the step that allows no warning in it.

use std::process::Command;

use anyhow::Result;

use crate::{steps::ALL_FEATURES, workspace::Workspace};

/// Builds the documentation and says where it is.
pub(crate) fn run(workspace: &Workspace, open: bool) -> Result<bool> {
    let mut doc = command(workspace);
    if open {
        doc.arg("--open");
    }
    let built = doc.status()?.success();
    if built {
        println!(
            "{}",
            workspace
                .target()
                .join("doc/hira_attention/index.html")
                .display()
        );
    }
    Ok(built)
}

/// `cargo doc` of every crate with every feature, from the build that clippy has checked.
///
/// `--examples` documents nothing (no package has an example target) but makes Cargo unify the features of test
/// dependencies too, as it does for clippy: without it most of Burn is checked once more (137 crates).
pub(crate) fn command(workspace: &Workspace) -> Command {
    let mut doc = workspace.cargo("doc");
    doc.args([
        "--workspace",
        "--no-deps",
        "--lib",
        "--bins",
        "--examples",
        "--features",
        ALL_FEATURES,
    ]);
    doc
}
