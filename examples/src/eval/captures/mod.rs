//! Fidelity on recorded keys: every rule on the same queries, against dense attention in f64. No model is needed.
//!
//! [`run`] measures, [`summaries`] takes medians and quartiles, [`write()`] makes a CSV of every query, Markdown tables and a plot.

mod contender;
mod layer;
mod plot;
mod report;
mod summary;

use std::path::Path;

use anyhow::{Context, ensure};

pub use contender::Contender;
pub use layer::CaptureRow;
pub use report::write;
pub use summary::{Quartiles, Summary, summaries};

use crate::capture::Capture;

/// Queries of each head that are measured: the last ones of a capture. Those before them are a prompt, from which heavy hitters are known.
pub const MEASURED: usize = 64;

/// Keys that rules with a budget are compared at.
pub const BUDGETS: [usize; 4] = [64, 128, 256, 512];

/// Measures `contenders` on every capture `*.safetensors` in `folder`, in the order of their names; `progress` is told what was done.
///
/// # Errors
///
/// If the folder holds no capture, one cannot be read or has no values, or a contender cannot answer.
pub fn run(
    folder: &Path,
    contenders: &[Contender],
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<CaptureRow>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("captures in {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "no captures in {}", folder.display());
    let mut rows = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        // `..layer14` is called `layer14`
        let layer = name.rsplit('-').next().unwrap_or(&name).to_owned();
        let capture = Capture::read(&file).with_context(|| file.display().to_string())?;
        rows.extend(layer::measure(&layer, &capture, contenders, &mut |what| {
            progress(&format!("{layer}: {what}"));
        })?);
    }
    Ok(rows)
}
