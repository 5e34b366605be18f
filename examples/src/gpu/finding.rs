//! What a check finds, and why it does not pass.

use hira_attention::AttentionError;
use hira_cache::CacheError;
use hira_index::burn::HostAccessError;

/// What a check that passed has compared.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Finding {
    /// Keys that were looked at, over all queries.
    pub keys: usize,
    /// Keys that were attended to.
    pub attended: usize,
    /// Largest error of an output, as a share of what is allowed.
    pub error: f64,
}

impl Finding {
    /// Holds a number against the most that is right.
    pub(super) fn hold(
        &mut self,
        what: &'static str,
        (row, token): (usize, usize),
        limit: f64,
        received: f64,
    ) -> Result<(), CheckError> {
        if received > limit || received.is_nan() {
            return Err(CheckError::Limit {
                what,
                row,
                token,
                limit,
                received,
            });
        }
        self.error = self.error.max(received / limit);
        Ok(())
    }
}

/// Why a check did not pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Attention refused.
    #[error(transparent)]
    Attention(#[from] AttentionError),
    /// The cache refused.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A tensor could not be read.
    #[error(transparent)]
    Host(#[from] HostAccessError),
    /// A count of keys is wrong.
    #[error("query head {row}, token {token}: expected {expected} {what}, received {received}")]
    Count {
        /// What was counted.
        what: &'static str,
        /// `sequence * Hq + head`.
        row: usize,
        /// The query's position.
        token: usize,
        /// The right number.
        expected: usize,
        /// What came.
        received: usize,
    },
    /// A number is larger than it may be.
    #[error(
        "query head {row}, token {token}: {what} is {received:e}, at most {limit:e} was expected"
    )]
    Limit {
        /// What was measured.
        what: &'static str,
        /// `sequence * Hq + head`.
        row: usize,
        /// The query's position.
        token: usize,
        /// The most that is right.
        limit: f64,
        /// What came.
        received: f64,
    },
    /// Something else is not as it should be.
    #[error("expected {expected}")]
    State {
        /// What should have been.
        expected: &'static str,
    },
}

impl CheckError {
    /// [`State`](Self::State).
    pub(super) fn state(expected: &'static str) -> Self {
        Self::State { expected }
    }
}
