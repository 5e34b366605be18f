//! Tensors into an index.

use burn::tensor::Tensor;

use super::{HiraBackend, HostAccessError, with_host};
use crate::{HierarchicalIndex, IndexError};

/// Why a tensor could not be appended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The index refused the keys.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The tensor could not be read on the host.
    #[error(transparent)]
    Host(#[from] HostAccessError),
}

impl HierarchicalIndex {
    /// [`HierarchicalIndex::append`] for a tensor.
    ///
    /// # Shapes
    ///
    /// `keys` `[n, D]`.
    ///
    /// # Errors
    ///
    /// As [`HierarchicalIndex::append`], and [`TensorError::Host`]. The index is then unchanged.
    pub fn append_tensor<B: HiraBackend>(&mut self, keys: Tensor<B, 2>) -> Result<(), TensorError> {
        let [_, received] = keys.dims();
        if received != self.dim() {
            let expected = self.dim();
            return Err(IndexError::Dimension { expected, received }.into());
        }
        Ok(with_host(keys, |keys| self.append(keys))??)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Device;
    use burn_flex::Flex;

    use super::*;
    use crate::IndexConfig;

    #[test]
    fn a_tensor_of_any_strides_is_appended_row_by_row() {
        let device: Device<Flex> = Default::default();
        let keys = Tensor::<Flex, 2>::from_floats([[1.0, 3.0], [2.0, 4.0]], &device);
        let mut index = HierarchicalIndex::new(IndexConfig::new(2)).unwrap();
        index.append_tensor(keys.clone()).unwrap();
        index.append_tensor(keys.transpose()).unwrap();
        assert_eq!(index.key(1), Some((&[2.0, 4.0]).into()));
        assert_eq!(index.key(3), Some((&[3.0, 4.0]).into()));
        let wide = Tensor::<Flex, 2>::zeros([1, 3], &device);
        assert!(matches!(
            index.append_tensor(wide),
            Err(TensorError::Index(IndexError::Dimension {
                expected: 2,
                received: 3
            }))
        ));
        assert_eq!(index.len(), 4);
    }
}
