//! Where the workspace is, what belongs to it, and how its programs are called.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The crates from the bottom up: each may depend on those before it, never on one after it.
pub(crate) const LAYERS: [&str; 8] = [
    "hira-kernels",
    "hira-index",
    "hira-threshold",
    "hira-search",
    "hira-memory",
    "hira-cache",
    "hira-attention",
    "hira-examples",
];

/// The crates whose slice core works without Burn (`--no-default-features`): all but the examples.
pub(crate) const CORES: [&str; 7] = [
    LAYERS[0], LAYERS[1], LAYERS[2], LAYERS[3], LAYERS[4], LAYERS[5], LAYERS[6],
];

/// The checkout that this xtask was built from.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The workspace of the xtask crate itself, so that `cargo xtask` works from any folder below it.
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let xtask = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let root = xtask
            .parent()
            .context("xtask has no parent folder")?
            .to_path_buf();
        if !root.join("Cargo.lock").is_file() {
            bail!(
                "{} is not the workspace: it has no Cargo.lock",
                root.display()
            );
        }
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `cargo ARGS` in the workspace's root, with the lock file as it is.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.arg(subcommand).current_dir(&self.root);
        if subcommand != "fmt" {
            command.arg("--locked");
        }
        command
    }

    /// Where Cargo writes what it builds.
    pub(crate) fn target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from)
    }

    /// `cargo metadata` of the members alone.
    pub(crate) fn metadata(&self) -> Result<Value> {
        let mut command = self.cargo("metadata");
        command.args(["--no-deps", "--format-version", "1"]);
        serde_json::from_str(&output(&mut command)?).context("cargo metadata printed no JSON")
    }

    /// The files that Git tracks or would track, relative to the root.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let mut git = Command::new("git");
        git.args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(&self.root);
        let listed = output(&mut git)?;
        Ok(listed
            .lines()
            .map(PathBuf::from)
            .filter(|file| self.root.join(file).is_file())
            .collect())
    }

    /// The binaries of hira-examples: a file or folder each in `examples/src/bin`.
    pub(crate) fn binaries(&self) -> Vec<String> {
        self.stems("examples/src/bin")
    }

    /// What of hira-search can be run with `--example`: its own, and the one in the folder of the other examples.
    pub(crate) fn examples(&self) -> Vec<String> {
        let mut names = self.stems("hira-search/examples");
        names.push("candidates".into());
        names
    }

    /// The names in a folder without what follows their last dot, sorted; none if it cannot be read.
    fn stems(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = self.root.join(folder).read_dir() else {
            return Vec::new();
        };
        let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_string());
        let mut names: Vec<_> = entries
            .flatten()
            .filter_map(|entry| stem(entry.path()))
            .collect();
        names.sort();
        names
    }

    /// The recorded attention inputs: `$HIRA_CAPTURES`, else the folder beside the checkout that developers have.
    pub(crate) fn captures(&self) -> Vec<PathBuf> {
        let beside = || {
            self.root
                .parent()
                .unwrap_or(&self.root)
                .join("shared/captures")
        };
        let folder = env::var_os("HIRA_CAPTURES").map_or_else(beside, PathBuf::from);
        let files = folder
            .read_dir()
            .map(|entries| entries.flatten().map(|entry| entry.path()));
        let mut captures: Vec<_> = files.into_iter().flatten().collect();
        captures.retain(|file| file.extension().is_some_and(|kind| kind == "safetensors"));
        captures.sort();
        captures
    }
}

/// Runs a program to its end and returns what it printed; an error if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
