//! Buffers that tasks borrow and give back, so that a step in steady state allocates only its output and report.

use std::sync::{Arc, Mutex, PoisonError};

use hira_kernels::{DiskRows, SoftmaxState, Team, dense::DenseScratch};
use hira_search::{Scratch, Selection};

use crate::{
    PartialSums, PhaseTimes, compensation::CompensationScratch, dense::RangeCopy,
    sparse::SparseAnswer,
};

/// Buffers of one query of a group.
#[derive(Debug, Default)]
pub(crate) struct QueryScratch {
    pub(crate) rows: Vec<u32>,
    pub(crate) scores: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) rebased: Vec<u32>,
    pub(crate) compensation: CompensationScratch,
}

/// Buffers of one KV head's task.
#[derive(Default)]
pub(crate) struct HeadScratch {
    pub(crate) search: Scratch,
    pub(crate) selections: Vec<Selection>,
    pub(crate) queries: Vec<f32>,
    pub(crate) out: Vec<f32>,
    pub(crate) per_query: Vec<QueryScratch>,
    pub(crate) disk: DiskRows,
    pub(crate) answers: Vec<SparseAnswer>,
    pub(crate) sums: Vec<PartialSums>,
    pub(crate) times: PhaseTimes,
    pub(crate) dense: DenseScratch,
    pub(crate) copy: RangeCopy,
    pub(crate) states: Vec<SoftmaxState>,
}

/// Scratch that is free at the moment; clones share it.
#[derive(Clone, Default)]
pub(crate) struct ScratchPool {
    heads: Arc<Free<HeadScratch>>,
    teams: Arc<Free<Team>>,
}

impl ScratchPool {
    /// Runs `task` with scratch that no other task uses.
    pub(crate) fn with<R>(&self, task: impl FnOnce(&mut HeadScratch) -> R) -> R {
        self.heads.lend(task)
    }

    /// Runs `task` with a team that no other call uses.
    pub(crate) fn with_team<R>(&self, task: impl FnOnce(&mut Team) -> R) -> R {
        self.teams.lend(task)
    }
}

/// What nobody uses at the moment; boxed, because it is taken out and put back at every use.
struct Free<T>(Mutex<Vec<Box<T>>>);

impl<T> Default for Free<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> Free<T> {
    /// Runs `task` with a free one, or a new one.
    fn lend<R>(&self, task: impl FnOnce(&mut T) -> R) -> R {
        // buffers hold no state between uses, so a panic in another task leaves nothing to distrust
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = lock().pop().unwrap_or_default();
        let result = task(&mut taken);
        lock().push(taken);
        result
    }
}

impl std::fmt::Debug for ScratchPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScratchPool").finish_non_exhaustive()
    }
}
