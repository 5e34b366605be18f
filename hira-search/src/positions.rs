//! The positions that queries see.

use std::ops::Range;

use hira_index::HierarchicalIndex;

use crate::error::SearchError;

/// The positions `first..end` that queries see: a number of keys says the first so many, a range says a window.
///
/// Calls that take `impl Into<Positions>` can be given either.
///
/// # Examples
/// ```
/// use hira_search::Positions;
///
/// assert_eq!(Positions::from(5), Positions { first: 0, end: 5 });
/// assert_eq!(Positions::from(2..5).len(), 3);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Positions {
    /// The first of them.
    pub first: usize,
    /// The position after the last of them.
    pub end: usize,
}

impl Positions {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.end.saturating_sub(self.first)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that an index stores all of them.
    pub(crate) fn check(&self, index: &HierarchicalIndex) -> Result<(), SearchError> {
        if self.end > index.len() {
            return Err(SearchError::Visible {
                visible: self.end,
                stored: index.len(),
            });
        }
        if self.first < index.evicted() && !self.is_empty() {
            return Err(SearchError::Evicted {
                first: self.first,
                evicted: index.evicted(),
            });
        }
        Ok(())
    }
}

impl From<usize> for Positions {
    fn from(visible: usize) -> Self {
        Self {
            first: 0,
            end: visible,
        }
    }
}

impl From<Range<usize>> for Positions {
    fn from(positions: Range<usize>) -> Self {
        Self {
            first: positions.start,
            end: positions.end,
        }
    }
}
