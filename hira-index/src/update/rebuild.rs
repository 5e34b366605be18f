//! Building the last segment anew.

use serde::{Deserialize, Serialize};

use super::{Tail, Updater};
use crate::IndexError;
use crate::named::by_name;

/// Builds the last segment anew, together with the open keys, whenever its trigger says so, until it is full.
///
/// Nothing is built as long as the segment would be too short for coarse levels (`min_coarse_len`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RebuildUpdater {
    /// When. Default: every 128 keys.
    pub trigger: RebuildTrigger,
}

/// When a [`RebuildUpdater`] builds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RebuildTrigger {
    /// At every append.
    Always,
    /// When `n` keys are open.
    EveryN {
        /// Open keys, at least 1. Default: 128.
        n: usize,
    },
    /// When the open keys are `ratio` of those in the last segment that is not full: the cost of building is then a constant
    /// factor over the life of a segment.
    Growth {
        /// Open keys over built ones, above 0. Default: 0.1.
        ratio: f32,
    },
}

/// The form with settings.
#[derive(Deserialize)]
#[serde(
    remote = "RebuildTrigger",
    rename_all = "snake_case",
    deny_unknown_fields
)]
enum TriggerForm {
    Always,
    EveryN {
        #[serde(default = "every_n")]
        n: usize,
    },
    Growth {
        #[serde(default = "growth")]
        ratio: f32,
    },
}

by_name!(
    RebuildTrigger,
    TriggerForm,
    "the name of a trigger, or a trigger and its settings"
);

fn every_n() -> usize {
    128
}

fn growth() -> f32 {
    0.1
}

impl Default for RebuildTrigger {
    fn default() -> Self {
        Self::EveryN { n: every_n() }
    }
}

impl RebuildUpdater {
    pub(super) fn validate(&self) -> Result<(), IndexError> {
        let (fits, key, requirement) = match self.trigger {
            RebuildTrigger::Always => return Ok(()),
            RebuildTrigger::EveryN { n } => {
                (n > 0, "update.rebuild.trigger.every_n.n", "at least 1")
            }
            RebuildTrigger::Growth { ratio } => (
                ratio > 0.0 && ratio.is_finite(),
                "update.rebuild.trigger.growth.ratio",
                "finite and above 0",
            ),
        };
        if fits {
            Ok(())
        } else {
            Err(IndexError::Config { key, requirement })
        }
    }
}

impl Updater for RebuildUpdater {
    fn first(&self, tail: Tail<'_>) -> usize {
        tail.last_partial()
    }

    fn is_due(&self, tail: Tail<'_>) -> bool {
        let first = tail.last_partial();
        let built = tail.keys_from(first) - tail.open;
        tail.has_levels_from(first)
            && match self.trigger {
                RebuildTrigger::Always => true,
                RebuildTrigger::EveryN { n } => tail.open >= n,
                RebuildTrigger::Growth { ratio } => {
                    tail.open as f64 >= f64::from(ratio) * built as f64
                }
            }
    }
}
