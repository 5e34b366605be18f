//! Settings of a searcher.

use hira_kernels::TILE;
use serde::{Deserialize, Serialize};

use crate::error::SearchError;
use crate::plan::PlanChoice;

/// The longest block that a scan sums apart.
const MAX_TAIL_BLOCK: usize = 1024;

/// How a [`HalfspaceSearcher`](crate::HalfspaceSearcher) works. No setting but `max_candidates` changes an answer.
///
/// # Examples
/// ```
/// use hira_search::{HalfspaceSearcher, Plan, PlanChoice, SearchConfig};
///
/// let searcher = HalfspaceSearcher::new(SearchConfig::default().with_plan(PlanChoice::Force(Plan::SketchScan)))?;
/// assert!(HalfspaceSearcher::new(SearchConfig::default().with_max_candidates(Some(0))).is_err());
/// # let _ = searcher;
/// # Ok::<(), hira_search::SearchError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// Which plan answers a query.
    pub plan: PlanChoice,
    /// At most this many keys are selected: the best by score, ties to the lower position.
    pub max_candidates: Option<usize>,
    /// Positions of a block of [`Selection::blocks`](crate::Selection::blocks), a multiple of 16, at most 1024; 0, the default, asks for no blocks.
    pub tail_block: usize,
    /// Whether one search may use several rayon threads (it may always be called from inside rayon tasks).
    pub parallel: bool,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            plan: PlanChoice::Auto,
            max_candidates: None,
            tail_block: 0,
            parallel: true,
        }
    }
}

impl SearchConfig {
    /// Sets the plan.
    pub fn with_plan(mut self, plan: PlanChoice) -> Self {
        self.plan = plan;
        self
    }

    /// Sets the largest number of keys that may be selected.
    pub fn with_max_candidates(mut self, max_candidates: Option<usize>) -> Self {
        self.max_candidates = max_candidates;
        self
    }

    /// Sets the length of the blocks by which tails are bounded; 0 asks for none.
    pub fn with_tail_block(mut self, tail_block: usize) -> Self {
        self.tail_block = tail_block;
        self
    }

    /// Sets whether one search may use several threads.
    pub fn with_parallel(mut self, parallel: bool) -> Self {
        self.parallel = parallel;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`SearchError::Config`] if `max_candidates` is 0, or `tail_block` is not one of its values.
    pub fn validate(&self) -> Result<(), SearchError> {
        if self.max_candidates == Some(0) {
            return Err(SearchError::Config {
                key: "max_candidates",
                requirement: "at least 1",
            });
        }
        if !self.tail_block.is_multiple_of(TILE) || self.tail_block > MAX_TAIL_BLOCK {
            return Err(SearchError::Config {
                key: "tail_block",
                requirement: "a multiple of 16, at most 1024",
            });
        }
        Ok(())
    }
}
