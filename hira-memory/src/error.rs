//! What can be wrong with a policy or a budget.

use std::io;
use std::path::PathBuf;

use crate::Tier;

/// Errors of this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Storing more would exceed the budget. Nothing was stored.
    #[error(
        "memory budget of {limit} bytes: {used} bytes are used and {requested} more were requested"
    )]
    BudgetExceeded {
        /// The limit in bytes.
        limit: usize,
        /// Bytes in use before the request.
        used: usize,
        /// Bytes that the request would add.
        requested: usize,
    },
    /// A tier has no room for what would have to lie there, and there is none below that has. Nothing was stored.
    #[error(
        "{tier} budget of {limit} bytes for exact keys and values: {used} bytes are used and {requested} more were requested"
    )]
    TierFull {
        /// The tier.
        tier: Tier,
        /// The limit in bytes.
        limit: usize,
        /// Bytes in use that cannot go down a tier.
        used: usize,
        /// Bytes that the request would add.
        requested: usize,
    },
    /// Rows could not be written to the tier below main memory. Nothing was moved.
    #[error("spilling to folder {folder}: {kind}", folder = .folder.display())]
    Spill {
        /// The folder.
        folder: PathBuf,
        /// Why.
        kind: io::ErrorKind,
    },
    /// This system has no such tier.
    #[error("this system cannot have rows on {tier}: expected Linux")]
    Unsupported {
        /// The tier.
        tier: Tier,
    },
    /// A value of a policy is out of range.
    #[error("{key}: {requirement}, received {received}")]
    Config {
        /// The key in the configuration.
        key: &'static str,
        /// What is required of it.
        requirement: &'static str,
        /// What came.
        received: f64,
    },
}
