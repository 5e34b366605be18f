//! Under autodiff, the engine runs on the inner backend: a selection has no gradient of its own.

use std::ops::Range;

use burn::{
    backend::{Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy},
    tensor::{DType, Shape, backend::AutodiffBackend, ops::FloatTensor},
};

use super::{
    DeviceAnswer, DeviceEngineError, DeviceLayout, DeviceStep, HiraBackend, HostAccessError,
};
use crate::{DeviceStore, DeviceUsage};

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

    fn device_store(
        layout: &DeviceLayout,
        element: DType,
        device: &Self::Device,
        sibling: Option<&dyn DeviceStore>,
    ) -> Option<Result<Box<dyn DeviceStore>, DeviceEngineError>> {
        B::device_store(layout, element, device, sibling)
    }

    fn device_append(
        store: &mut dyn DeviceStore,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
    ) -> Result<(), DeviceEngineError> {
        B::device_append(store, Self::inner(keys), Self::inner(values))
    }

    fn device_attend(
        store: &mut dyn DeviceStore,
        queries: FloatTensor<Self>,
        step: &DeviceStep,
    ) -> Result<DeviceAnswer<Self>, DeviceEngineError> {
        let (out, record) = B::device_attend(store, Self::inner(queries), step)?;
        Ok((Self::from_inner(out), record))
    }

    fn device_rows(
        store: &mut dyn DeviceStore,
        tokens: Range<usize>,
    ) -> Result<[FloatTensor<Self>; 2], DeviceEngineError> {
        Ok(B::device_rows(store, tokens)?.map(Self::from_inner))
    }

    fn device_usage(device: &Self::Device) -> Option<DeviceUsage> {
        B::device_usage(device)
    }
}
