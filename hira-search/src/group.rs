//! One group search: its checked inputs.

use hira_index::HierarchicalIndex;
use hira_kernels::{Kernel, MAX_NORM};

use crate::error::SearchError;
use crate::settle::Target;
use crate::visible::Seen;

/// The inputs of one group search, checked and resolved.
pub(crate) struct Group<'a> {
    pub(crate) index: &'a HierarchicalIndex,
    pub(crate) kernel: Kernel,
    pub(crate) queries: &'a [f32],
    pub(crate) seen: Seen,
    /// One for each query.
    pub(crate) targets: &'a [Target],
    pub(crate) scale: f32,
    /// Positions of a block of the tail; 0 if the tail is not asked for by blocks.
    pub(crate) tail_block: usize,
}

impl Group<'_> {
    pub(crate) fn dim(&self) -> usize {
        self.index.dim()
    }

    /// Number of keys that the queries see.
    pub(crate) fn visible(&self) -> usize {
        self.seen.len()
    }

    /// Bytes of a stored key.
    pub(crate) fn row_bytes(&self) -> usize {
        self.dim() * self.index.config().precision.bytes()
    }

    /// Number of queries.
    pub(crate) fn len(&self) -> usize {
        self.queries.len() / self.dim()
    }

    /// Keys that the query with the most of them selects, if the rule counts for all queries.
    pub(crate) fn count(&self) -> Option<usize> {
        let counts = self.targets.iter().map(|target| match *target {
            Target::AtLeast { .. } | Target::Mass { .. } => None,
            Target::Top { k, .. } => Some(k),
        });
        counts.reduce(|a, b| Some(a?.max(b?))).flatten()
    }

    /// Logits a score; without a scale what attention would use.
    pub(crate) fn logits(&self) -> f64 {
        if self.scale > 0.0 {
            f64::from(self.scale)
        } else {
            1.0 / (self.dim() as f64).sqrt()
        }
    }

    /// Whether a query selects by mass. All do then: the rule is one, and the same for all queries.
    pub(crate) fn is_by_mass(&self) -> bool {
        self.targets.iter().any(Target::is_mass)
    }

    pub(crate) fn query(&self, g: usize) -> &[f32] {
        &self.queries[g * self.dim()..(g + 1) * self.dim()]
    }
}

/// Checks that `queries` are whole, finite rows of bounded norm, and counts them.
pub(crate) fn check_queries(queries: &[f32], dim: usize) -> Result<usize, SearchError> {
    if !queries.len().is_multiple_of(dim) {
        return Err(SearchError::Dimension {
            expected: dim,
            received: queries.len(),
        });
    }
    for (query, row) in queries.chunks_exact(dim).enumerate() {
        if let Some(column) = row.iter().position(|value| !value.is_finite()) {
            return Err(SearchError::NonFinite { query, column });
        }
        // In f64 no square overflows; the limit is exact but for the last bits of the sum.
        let square: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        if square >= f64::from(MAX_NORM) * f64::from(MAX_NORM) {
            return Err(SearchError::Magnitude { query });
        }
    }
    Ok(queries.len() / dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_refused_with_their_row() {
        assert_eq!(check_queries(&[1.0, 2.0, 3.0, 4.0], 2), Ok(2));
        assert_eq!(
            check_queries(&[1.0, 2.0, 3.0], 2),
            Err(SearchError::Dimension {
                expected: 2,
                received: 3
            })
        );
        assert_eq!(
            check_queries(&[1.0, 2.0, 3.0, f32::NAN], 2),
            Err(SearchError::NonFinite {
                query: 1,
                column: 1
            })
        );
        assert_eq!(
            check_queries(&[1e19, 0.0], 2),
            Err(SearchError::Magnitude { query: 0 })
        );
    }
}
