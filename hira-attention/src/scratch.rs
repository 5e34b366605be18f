//! Buffers that tasks borrow and give back, so that a step in steady state allocates only its output and report.

use std::sync::Arc;

use hira_kernels::{DiskRows, SoftmaxState, Spares, Team, dense::DenseScratch};
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
    /// Of the queries that are answered at one time.
    pub(crate) per_query: Spares<QueryScratch>,
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
    heads: Arc<Spares<HeadScratch>>,
    teams: Arc<Spares<Team>>,
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

impl std::fmt::Debug for ScratchPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScratchPool").finish_non_exhaustive()
    }
}
