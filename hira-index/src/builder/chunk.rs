//! Runs of time.

use super::{BuildInput, Builder, Hierarchy};
use crate::IndexError;

/// Clusters are runs of neighbouring positions: nothing is computed and nothing is moved.
///
/// Useful where keys that follow each other are alike, and as the floor that other builders are compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkBuilder;

impl Builder for ChunkBuilder {
    /// # Complexity
    ///
    /// O(keys).
    fn build(&self, input: &BuildInput<'_>) -> Result<Hierarchy, IndexError> {
        Hierarchy::divide(input, |rows, clusters| even_ends(rows.len(), clusters))
    }
}

/// Where `clusters` runs of nearly equal length end. None is empty if there are at least as many rows.
pub(super) fn even_ends(len: usize, clusters: usize) -> Vec<usize> {
    (1..=clusters).map(|i| i * len / clusters).collect()
}
