//! What an index refuses, and what its validation can find.

use hira_kernels::Precision;
use thiserror::Error;

/// Why an index could not be made, or why keys were not stored.
#[derive(Error, Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexError {
    /// A dimension of zero.
    #[error("dim must be at least 1")]
    ZeroDimension,
    /// A number of values that is no whole number of rows.
    #[error("expected whole rows of dimension {expected}, received {received} values")]
    Dimension {
        /// The dimension of the index.
        expected: usize,
        /// How many values came.
        received: usize,
    },
    /// A NaN or an infinity.
    #[error("the value in row {row}, column {column} is not finite")]
    NonFinite {
        /// Row within the batch.
        row: usize,
        /// Column within the row.
        column: usize,
    },
    /// A finite value that the precision of the index has no finite value for.
    #[error("the value in row {row}, column {column} is too large for {precision}")]
    Overflow {
        /// Row within the batch.
        row: usize,
        /// Column within the row.
        column: usize,
        /// What keys are stored in.
        precision: Precision,
    },
    /// A row whose Euclidean norm, as it would be stored, is not below `2^63`.
    #[error("the norm of row {row} is not below 2^63")]
    Magnitude {
        /// Row within the batch.
        row: usize,
    },
    /// More keys than a position can name.
    #[error("an index holds at most {limit} keys")]
    Full {
        /// The most keys an index can hold.
        limit: usize,
    },
    /// A configuration value out of its range.
    #[error("{key} must be {requirement}")]
    Config {
        /// The key of the configuration.
        key: &'static str,
        /// What its value has to be.
        requirement: &'static str,
    },
    /// A sample that is not what the number of keys gives; only [`validate`](crate::HierarchicalIndex::validate) looks for it.
    #[error("the sample is not that of {len} keys")]
    Sample {
        /// Number of keys.
        len: usize,
    },
    /// Parts of a saved segment that are not those of one, or do not fit the configuration.
    #[error("the saved segment is broken: {what}")]
    Snapshot {
        /// What should be true of it.
        what: &'static str,
    },
    /// A builder that failed, or clusters of one that cannot be used.
    #[error("the builder is of no use here: {what}")]
    Builder {
        /// What was wrong with it or with the hierarchy that it returned.
        what: &'static str,
    },
    /// An invariant that does not hold; only [`validate`](crate::HierarchicalIndex::validate) looks for it.
    #[error("segment {segment} is broken: {what}")]
    Invariant {
        /// The segment, counted from the start of the index.
        segment: usize,
        /// What should be true of it.
        what: &'static str,
    },
}
