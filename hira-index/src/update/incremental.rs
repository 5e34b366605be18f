//! Letting keys join the clusters that are there.

use serde::{Deserialize, Serialize};

use super::{Tail, Updater};
use crate::IndexError;

/// Lets the open keys join the last segment that is not full, and builds that anew from time to time.
///
/// Each key goes to the nearest centroid, level by level; radius and box of its clusters grow by as much as they must, outward. A
/// cluster of more than twice its size is divided by k-means. Nothing is built as long as the segment would be too short for coarse
/// levels (`min_coarse_len`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IncrementalUpdater {
    /// Open keys that join together, at least 1. Default: 128.
    pub every: usize,
    /// After so many joins the segment is built anew, at least 1 (which builds it anew each time). Default: 16.
    pub rebuild_every: u32,
}

impl Default for IncrementalUpdater {
    fn default() -> Self {
        Self {
            every: 128,
            rebuild_every: 16,
        }
    }
}

impl IncrementalUpdater {
    pub(super) fn validate(&self) -> Result<(), IndexError> {
        let key = if self.every == 0 {
            "update.incremental.every"
        } else if self.rebuild_every == 0 {
            "update.incremental.rebuild_every"
        } else {
            return Ok(());
        };
        let requirement = "at least 1";
        Err(IndexError::Config { key, requirement })
    }
}

impl Updater for IncrementalUpdater {
    fn first(&self, tail: Tail<'_>) -> usize {
        tail.last_partial()
    }

    fn is_due(&self, tail: Tail<'_>) -> bool {
        tail.open >= self.every && tail.has_levels_from(tail.last_partial())
    }

    fn joins(&self, updates: u32) -> bool {
        updates + 1 < self.rebuild_every
    }
}
