//! Merging small segments.

use serde::{Deserialize, Serialize};

use super::{Tail, Updater};
use crate::IndexError;

/// Seals short segments early and merges neighbours of similar size, as a log-structured store does.
///
/// With `ratio` 2 the lengths are those of a binary counter: a key is built into a segment at most once for each power of two from `base`
/// to `segment_len`, and at most that many segments are not full. What exceeds `segment_len` starts the next segment.
///
/// # References
///
/// J. Bentley and J. Saxe, "Decomposable searching problems I: static-to-dynamic transformation", Journal of Algorithms 1(4), 1980,
/// section 2.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamicUpdater {
    /// Keys at which the open segment is sealed, at least 1. Default: 1024.
    pub base: usize,
    /// A segment is merged with what follows if it is less than this many times as long; above 1. Default: 2.
    pub ratio: f32,
}

impl Default for DynamicUpdater {
    fn default() -> Self {
        Self {
            base: 1024,
            ratio: 2.0,
        }
    }
}

impl DynamicUpdater {
    pub(super) fn validate(&self) -> Result<(), IndexError> {
        let (key, requirement) = if self.base == 0 {
            ("update.dynamic.base", "at least 1")
        } else if !(self.ratio > 1.0 && self.ratio.is_finite()) {
            ("update.dynamic.ratio", "finite and above 1")
        } else {
            return Ok(());
        };
        Err(IndexError::Config { key, requirement })
    }
}

impl Updater for DynamicUpdater {
    fn first(&self, tail: Tail<'_>) -> usize {
        // Segments that are not full lie at the end, each at least `ratio` times as long as the next: this keeps it so.
        let mut total = tail.open;
        let mut first = tail.sealed.len();
        while let Some(len) = tail.before(first) {
            if len >= tail.config.segment_len || len as f64 >= f64::from(self.ratio) * total as f64
            {
                break;
            }
            total += len;
            first -= 1;
        }
        first
    }

    fn is_due(&self, tail: Tail<'_>) -> bool {
        tail.open >= self.base
    }

    fn room(&self, tail: Tail<'_>) -> usize {
        tail.config.segment_len - tail.open
    }
}
