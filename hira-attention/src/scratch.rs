//! Buffers that tasks borrow and give back, so that a step in steady state allocates only its output and report.

use std::sync::{Arc, Mutex, PoisonError};

use hira_kernels::{SoftmaxState, dense::DenseScratch};
use hira_search::{Scratch, Selection};

use crate::{dense::RangeCopy, sparse::SparseAnswer};

/// Buffers of one query of a group.
#[derive(Debug, Default)]
pub(crate) struct QueryScratch {
    pub(crate) rows: Vec<u32>,
    pub(crate) scores: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) rebased: Vec<u32>,
}

/// Buffers of one KV head's task.
#[derive(Default)]
pub(crate) struct HeadScratch {
    pub(crate) search: Scratch,
    pub(crate) selections: Vec<Selection>,
    pub(crate) queries: Vec<f32>,
    pub(crate) out: Vec<f32>,
    pub(crate) per_query: Vec<QueryScratch>,
    pub(crate) answers: Vec<SparseAnswer>,
    pub(crate) dense: DenseScratch,
    pub(crate) copy: RangeCopy,
    pub(crate) states: Vec<SoftmaxState>,
}

/// Scratch that is free at the moment; clones share it.
#[derive(Clone, Default)]
pub(crate) struct ScratchPool {
    free: Arc<Mutex<Vec<HeadScratch>>>,
}

impl ScratchPool {
    /// Runs `task` with scratch that no other task uses.
    pub(crate) fn with<R>(&self, task: impl FnOnce(&mut HeadScratch) -> R) -> R {
        // buffers hold no state between uses, so a panic in another task leaves nothing to distrust
        let taken = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut scratch = taken.unwrap_or_default();
        let result = task(&mut scratch);
        self.free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(scratch);
        result
    }
}

impl std::fmt::Debug for ScratchPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScratchPool").finish_non_exhaustive()
    }
}
