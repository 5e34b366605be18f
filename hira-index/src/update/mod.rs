//! Updaters: when keys of the open segment become part of sealed ones, and how.
//!
//! Whatever an updater does, a key can be searched from the moment it is appended: the open segment has a sketch. What it decides is
//! how long keys wait for clusters, and how much is built again for it.

mod dynamic;
mod incremental;
mod insert;
mod pending;
mod rebuild;
mod task;
mod worker;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use dynamic::DynamicUpdater;
pub use incremental::IncrementalUpdater;
pub(crate) use insert::Insertion;
pub(crate) use pending::Pending;
pub use rebuild::{RebuildTrigger, RebuildUpdater};
pub(crate) use task::Task;

use crate::named::by_name;
use crate::{IndexConfig, IndexError, Segment};

/// When keys of the open segment get clusters, and how.
///
/// The choice changes how long appending takes and how much a search reads, never the answer to a query.
///
/// In a configuration file its name, `update = "dynamic"`, or with settings, in TOML
/// `update = { rebuild = { trigger = { every_n = { n = 64 } } } }`; those that are left out have their defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UpdateConfig {
    /// The open segment is sealed when it is full, and its levels are built then.
    #[default]
    Seal,
    /// The last segment that is not full is built anew with the open keys, again and again until it is full.
    Rebuild(RebuildUpdater),
    /// The open keys join the clusters of the last segment that is not full.
    Incremental(IncrementalUpdater),
    /// Small segments are sealed and merged, so that their number stays logarithmic.
    Dynamic(DynamicUpdater),
}

/// The form with settings.
#[derive(Deserialize)]
#[serde(remote = "UpdateConfig", rename_all = "snake_case")]
enum UpdateForm {
    Seal,
    Rebuild(RebuildUpdater),
    Incremental(IncrementalUpdater),
    Dynamic(DynamicUpdater),
}

by_name!(
    UpdateConfig,
    UpdateForm,
    "the name of an updater, or an updater and its settings"
);

impl UpdateConfig {
    /// Says whether the values are possible, and if not, which key is wrong and what it has to be.
    ///
    /// # Errors
    ///
    /// [`IndexError::Config`].
    pub fn validate(&self) -> Result<(), IndexError> {
        match self {
            Self::Seal => Ok(()),
            Self::Rebuild(updater) => updater.validate(),
            Self::Incremental(updater) => updater.validate(),
            Self::Dynamic(updater) => updater.validate(),
        }
    }

    pub(crate) fn updater(&self) -> &dyn Updater {
        match self {
            Self::Seal => &SealUpdater,
            Self::Rebuild(updater) => updater,
            Self::Incremental(updater) => updater,
            Self::Dynamic(updater) => updater,
        }
    }
}

/// The end of an index, as an updater sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tail<'a> {
    pub(crate) sealed: &'a [Arc<Segment>],
    /// Keys of the open segment.
    pub(crate) open: usize,
    pub(crate) config: &'a IndexConfig,
}

impl Tail<'_> {
    /// The first of the sealed segments at the end that are not full and can take all open keys together.
    fn last_partial(&self) -> usize {
        let limit = self.config.segment_len;
        // Segments that a build under way makes full take no further key.
        let mut total = self.open.max(1);
        let mut first = self.sealed.len();
        while let Some(len) = self.before(first) {
            total += len;
            if len >= limit || total > limit {
                break;
            }
            first -= 1;
        }
        first
    }

    /// Length of the sealed segment before the one at `i`.
    fn before(&self, i: usize) -> Option<usize> {
        let segment = self.sealed.get(i.checked_sub(1)?)?;
        Some(segment.len())
    }

    /// Keys of the segments from `first` on, the open ones included.
    fn keys_from(&self, first: usize) -> usize {
        let sealed = self.sealed[first..].iter().map(|segment| segment.len());
        sealed.sum::<usize>() + self.open
    }

    /// Whether a segment of the sealed ones from `first` on and the open keys would have coarse levels.
    fn has_levels_from(&self, first: usize) -> bool {
        self.config.coarse_levels(self.keys_from(first)) > 0
    }
}

/// Decides which segments are built anew, and when.
pub(crate) trait Updater {
    /// The first sealed segment that is built together with the open keys; as many as there are sealed ones if those stay as they are.
    fn first(&self, tail: Tail<'_>) -> usize;

    /// Whether the open keys (at least one) are to be built into a segment now, although there is room for more.
    fn is_due(&self, tail: Tail<'_>) -> bool;

    /// Most keys that may be appended before the open segment is full: at least one.
    fn room(&self, tail: Tail<'_>) -> usize {
        tail.config.segment_len - tail.keys_from(self.first(tail))
    }

    /// Whether keys join the clusters of a segment that was built anew `updates` joins ago.
    fn joins(&self, _updates: u32) -> bool {
        false
    }
}

/// Seals the open segment when it is full.
struct SealUpdater;

impl Updater for SealUpdater {
    /// Frozen segments are the beginning of the open one.
    fn first(&self, tail: Tail<'_>) -> usize {
        let frozen = tail.sealed.iter().rev();
        let frozen = frozen.take_while(|segment| segment.is_frozen());
        tail.sealed.len() - frozen.count()
    }

    fn is_due(&self, _tail: Tail<'_>) -> bool {
        false
    }
}
