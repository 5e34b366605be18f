//! Tiers of memory and the parts of a cache that are placed on them.

use serde::{Deserialize, Serialize};

/// A kind of memory, fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tier {
    /// Memory of an accelerator.
    Device,
    /// Main memory.
    Host,
    /// A file.
    Disk,
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Tier::Device => "device",
            Tier::Host => "host",
            Tier::Disk => "disk",
        })
    }
}

/// A part of a cache that is placed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// A coarse level, 0 the coarsest.
    Level(usize),
    /// The quantised leaf level.
    Sketch,
    /// Exact keys.
    Keys,
    /// Values.
    Values,
    /// The sample of positions that sampled rules look at.
    Sample,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Level(level) => write!(f, "level {level}"),
            Part::Sketch => f.write_str("sketch"),
            Part::Keys => f.write_str("keys"),
            Part::Values => f.write_str("values"),
            Part::Sample => f.write_str("sample"),
        }
    }
}
