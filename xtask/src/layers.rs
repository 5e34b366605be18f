//! Checks that dependencies between the crates point downwards only, and that the cores do not depend on Burn.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::workspace::{CORES, LAYERS, Workspace, output};

/// Crates that a core must not pull in, by the start of their names.
const BURN: [&str; 3] = ["burn", "cubecl", "cudarc"];

/// Everything that breaks the order of the layers, a line each.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut findings = upward_dependencies(&workspace.metadata()?)?;
    for core in CORES {
        findings.extend(burn_dependencies(workspace, core)?);
    }
    Ok(findings)
}

/// Dependencies (build and test ones too) on a crate of the same or a higher layer.
fn upward_dependencies(metadata: &Value) -> Result<Vec<String>> {
    let rank = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let mut findings = Vec::new();
    for package in metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
    {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(own) = rank(name) else {
            if name.starts_with("hira") {
                findings.push(format!(
                    "{name}: not in the list of layers in xtask/src/workspace.rs"
                ));
            }
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            if rank(on).is_some_and(|other| other >= own) {
                findings.push(format!("{name}: depends on {on}, which is not below it"));
            }
        }
    }
    Ok(findings)
}

/// What of Burn a crate still depends on without its default features.
fn burn_dependencies(workspace: &Workspace, core: &str) -> Result<Vec<String>> {
    let mut tree = workspace.cargo("tree");
    tree.args([
        "--package",
        core,
        "--no-default-features",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
    ]);
    let tree = output(&mut tree)?;
    let names = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let of_burn = names.filter(|name| BURN.iter().any(|start| name.starts_with(start)));
    Ok(of_burn
        .map(|name| format!("{core}: depends on {name} without its default features"))
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_upward_dependency_is_found() -> Result<()> {
        let package = |name: &str, on: &str| json!({"name": name, "dependencies": [{"name": on}, {"name": "serde"}]});
        let good =
            json!({"packages": [package("hira-search", "hira-index"), package("xtask", "clap")]});
        assert!(upward_dependencies(&good)?.is_empty());
        let upward = json!({"packages": [package("hira-index", "hira-search")]});
        assert_eq!(upward_dependencies(&upward)?.len(), 1);
        let unknown = json!({"packages": [package("hira-new", "serde")]});
        assert_eq!(upward_dependencies(&unknown)?.len(), 1);
        Ok(())
    }
}
