//! NdArray lends its storage when a tensor is in standard layout and f32.

use burn_ndarray::{NdArray, NdArrayTensor};

use super::{HiraBackend, HostAccessError, with_host_copy};

impl HiraBackend for NdArray {
    fn with_host<R>(
        tensor: NdArrayTensor,
        read: impl FnOnce(&[f32]) -> R,
    ) -> Result<R, HostAccessError> {
        if let NdArrayTensor::F32(storage) = &tensor
            && let Some(elements) = storage.view().as_slice()
        {
            return Ok(read(elements));
        }
        with_host_copy::<Self, R>(tensor, read)
    }
}
