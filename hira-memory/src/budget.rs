//! A hard limit in bytes, checked before anything is stored.

use crate::MemoryError;

/// A limit on the bytes that a cache may hold.
///
/// ```
/// use hira_memory::{Budget, MemoryError};
///
/// let budget = Budget::limited(1000);
/// assert_eq!(budget.check(400, 600), Ok(()));
/// assert_eq!(
///     budget.check(400, 601),
///     Err(MemoryError::BudgetExceeded { limit: 1000, used: 400, requested: 601 })
/// );
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    limit: Option<usize>,
}

impl Budget {
    /// No limit.
    pub const fn unlimited() -> Self {
        Self { limit: None }
    }

    /// At most `limit` bytes.
    pub const fn limited(limit: usize) -> Self {
        Self { limit: Some(limit) }
    }

    /// The limit in bytes, if there is one.
    pub const fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// Whether `requested` bytes may be added to the `used` ones.
    ///
    /// # Errors
    ///
    /// [`MemoryError::BudgetExceeded`] if the sum passes the limit.
    pub fn check(&self, used: usize, requested: usize) -> Result<(), MemoryError> {
        match self.limit {
            Some(limit) if used.saturating_add(requested) > limit => {
                Err(MemoryError::BudgetExceeded {
                    limit,
                    used,
                    requested,
                })
            }
            _ => Ok(()),
        }
    }
}
