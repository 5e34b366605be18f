//! What can be wrong with a policy or a budget.

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
