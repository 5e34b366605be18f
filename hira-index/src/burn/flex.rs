//! Flex lends its storage when a tensor is contiguous f32.

use burn::tensor::DType;
use burn_flex::{Flex, FlexTensor};

use super::{HiraBackend, HostAccessError, with_host_copy};

impl HiraBackend for Flex {
    fn with_host<R>(
        tensor: FlexTensor,
        read: impl FnOnce(&[f32]) -> R,
    ) -> Result<R, HostAccessError> {
        if tensor.dtype() == DType::F32 {
            let tensor = tensor.to_contiguous();
            if let Some(elements) = tensor.as_slice::<f32>() {
                return Ok(read(elements));
            }
            return with_host_copy::<Self, R>(tensor, read);
        }
        with_host_copy::<Self, R>(tensor, read)
    }
}
