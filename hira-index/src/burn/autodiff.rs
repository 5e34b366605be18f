//! Under autodiff, the engine runs on the inner backend: a selection has no gradient of its own.

use burn::{
    backend::{Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy},
    tensor::{Shape, backend::AutodiffBackend, ops::FloatTensor},
};

use super::{HiraBackend, HostAccessError};

impl<B: HiraBackend, C: CheckpointStrategy> HiraBackend for Autodiff<B, C> {
    fn with_host<R>(
        tensor: FloatTensor<Self>,
        read: impl FnOnce(&[f32]) -> R,
    ) -> Result<R, HostAccessError> {
        B::with_host(Self::inner(tensor), read)
    }

    fn from_host(data: Vec<f32>, shape: Shape, device: &Self::Device) -> FloatTensor<Self> {
        Self::from_inner(B::from_host(data, shape, device))
    }
}
