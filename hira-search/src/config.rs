//! Settings of a searcher.

use serde::{Deserialize, Serialize};

use crate::error::SearchError;
use crate::plan::PlanChoice;

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
    /// Whether one search may use several rayon threads (it may always be called from inside rayon tasks).
    pub parallel: bool,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            plan: PlanChoice::Auto,
            max_candidates: None,
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

    /// Sets whether one search may use several threads.
    pub fn with_parallel(mut self, parallel: bool) -> Self {
        self.parallel = parallel;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`SearchError::Config`] if `max_candidates` is 0.
    pub fn validate(&self) -> Result<(), SearchError> {
        if self.max_candidates == Some(0) {
            return Err(SearchError::Config {
                key: "max_candidates",
                requirement: "at least 1",
            });
        }
        Ok(())
    }
}
