//! The Burn face: queries as a tensor.

use burn::tensor::Tensor;
use hira_index::HierarchicalIndex;
use hira_index::burn::{HiraBackend, HostAccessError, with_host};
use hira_threshold::Threshold;

use crate::{HalfspaceSearcher, SearchError, Selection};

/// Why a search with tensors failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The search refused the queries.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The tensor could not be read on the host.
    #[error(transparent)]
    Host(#[from] HostAccessError),
}

impl HalfspaceSearcher {
    /// [`HalfspaceSearcher::search_batch`] for a tensor.
    ///
    /// # Shapes
    /// `queries`: `[n, D]`; one selection a query.
    ///
    /// # Errors
    /// As [`HalfspaceSearcher::search_batch`], and [`TensorError::Host`].
    pub fn search_tensor<B: HiraBackend>(
        &self,
        index: &HierarchicalIndex,
        queries: Tensor<B, 2>,
        rule: &dyn Threshold,
    ) -> Result<Vec<Selection>, TensorError> {
        let [_, received] = queries.dims();
        if received != index.dim() {
            let expected = index.dim();
            return Err(SearchError::Dimension { expected, received }.into());
        }
        Ok(with_host(queries, |queries| {
            self.search_batch(index, queries, rule)
        })??)
    }
}
