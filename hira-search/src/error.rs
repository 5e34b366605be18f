//! Why a search was refused.

use hira_threshold::ThresholdError;
use thiserror::Error;

/// What a search or its configuration can be refused for; nothing is written when it is.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SearchError {
    /// The queries are not whole rows of the index's dimension.
    #[error("queries hold {received} values, which is not whole rows of {expected}")]
    Dimension {
        /// Dimension of the index.
        expected: usize,
        /// Number of values received.
        received: usize,
    },
    /// A group search was given another number of selections than queries.
    #[error("{expected} queries need {expected} selections, received {received}")]
    Outputs {
        /// Number of queries.
        expected: usize,
        /// Number of selections received.
        received: usize,
    },
    /// A query holds a NaN or an infinity.
    #[error("query {query} is not finite in column {column}")]
    NonFinite {
        /// Row of the query.
        query: usize,
        /// First column that is not finite.
        column: usize,
    },
    /// A query's norm reaches [`hira_kernels::MAX_NORM`].
    #[error("the norm of query {query} reaches 2^63")]
    Magnitude {
        /// Row of the query.
        query: usize,
    },
    /// More keys were declared visible than are stored.
    #[error("{visible} visible keys, but only {stored} are stored")]
    Visible {
        /// Visible keys asked for.
        visible: usize,
        /// Keys in the index.
        stored: usize,
    },
    /// Keys were declared visible that the index has evicted.
    #[error("visible keys from position {first} on, but those before {evicted} are evicted")]
    Evicted {
        /// First position asked for.
        first: usize,
        /// First position that is stored.
        evicted: usize,
    },
    /// A setting is out of range.
    #[error("`{key}` must be {requirement}")]
    Config {
        /// Name of the setting.
        key: &'static str,
        /// What it must be.
        requirement: &'static str,
    },
    /// The rule is valid but gave a threshold that no score can be compared with.
    #[error("the rule resolved to a NaN threshold for query {query}")]
    RuleNan {
        /// Row of the query.
        query: usize,
    },
    /// The rule itself is not valid.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
}

impl SearchError {
    /// The error of a group, as one of the batch in which the group begins at row `first`.
    pub(crate) fn in_batch(self, first: usize) -> Self {
        match self {
            Self::RuleNan { query } => Self::RuleNan {
                query: first + query,
            },
            error => error,
        }
    }
}
