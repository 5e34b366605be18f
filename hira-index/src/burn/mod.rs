//! The Burn face: how the host engine reads and makes the tensors of a backend.
//!
//! [`HiraBackend`] is the one place that names backends. Flex and NdArray lend their own memory, without a copy, whenever
//! a tensor is contiguous `f32`; every other backend (CUDA and wgpu through CubeCL, or one of your own with an empty
//! `impl HiraBackend for MyBackend {}`) reads its tensor back through [`TensorData`].

use std::ops::Range;

use burn::tensor::{
    DType, Shape, Tensor, TensorData, TensorPrimitive,
    backend::{Backend, ExecutionError},
    ops::FloatTensor,
    try_read_sync,
};

#[cfg(feature = "autodiff")]
mod autodiff;
#[cfg(feature = "cube")]
mod cube;
mod device;
#[cfg(feature = "flex")]
mod flex;
mod index;
#[cfg(feature = "ndarray")]
mod ndarray;

pub use device::{
    DeviceAnswer, DeviceEngineError, DeviceHead, DeviceLayout, DeviceRecord, DeviceRule,
    DeviceStep, device_append, device_attend, device_rows,
};
pub use index::TensorError;

use crate::{DeviceStore, DeviceUsage};

/// Why a tensor could not be read on the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostAccessError {
    /// The backend reported a failure while it computed or copied the tensor.
    #[error("the backend failed to hand over a tensor")]
    Execution(#[source] ExecutionError),
    /// The backend can only be read asynchronously (a browser), which the host engine does not support.
    #[error("the backend cannot be read synchronously")]
    Asynchronous,
    /// The tensor does not hold floating-point elements.
    #[error("expected a floating-point tensor, received {received:?}")]
    ElementType {
        /// The element type of the tensor.
        received: DType,
    },
}

/// A Burn backend that Hira can run on: [`Backend`] and the access that the host engine needs.
///
/// # Examples
///
/// A backend of one's own needs no method: `impl HiraBackend for MyBackend {}`. Code that runs on any of them:
///
/// ```
/// use burn::tensor::Tensor;
/// use hira_index::burn::{HiraBackend, HostAccessError, with_host};
///
/// fn largest<B: HiraBackend>(keys: Tensor<B, 2>) -> Result<f32, HostAccessError> {
///     with_host(keys, |keys| keys.iter().copied().fold(f32::NEG_INFINITY, f32::max))
/// }
/// ```
///
/// # Device engines
///
/// The methods that begin with `device` are those of an engine that keeps keys and values in the memory of the device and attends there.
/// Backends through CubeCL have one; for the others [`HiraBackend::device_store`] gives `None`, and the host engine serves them. A backend
/// with Burn's kernel fusion (`Fusion<B>`) does not implement this trait: build Burn without its feature `fusion`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no backend that Hira can run on",
    note = "with Burn's feature `fusion` the CubeCL backends are wrapped into `Fusion`, which Hira does not support: leave that feature out",
    note = "for a backend of your own: `impl HiraBackend for MyBackend {{}}`"
)]
pub trait HiraBackend: Backend {
    /// Calls `read` with the elements of `tensor` in row-major order, as `f32`.
    ///
    /// # Numerics
    ///
    /// f16, bf16 and f32 elements arrive exactly; f64 elements are rounded to the nearest `f32`.
    ///
    /// # Complexity
    ///
    /// No copy for contiguous f32 tensors of Flex and NdArray; otherwise one copy of the tensor.
    ///
    /// # Errors
    ///
    /// [`HostAccessError`] if the backend cannot hand the tensor over.
    fn with_host<R>(
        tensor: FloatTensor<Self>,
        read: impl FnOnce(&[f32]) -> R,
    ) -> Result<R, HostAccessError> {
        with_host_copy::<Self, R>(tensor, read)
    }

    /// Makes a float tensor of the backend's own element type from row-major elements.
    ///
    /// # Panics
    ///
    /// If `data` does not hold `shape` elements.
    fn from_host(data: Vec<f32>, shape: Shape, device: &Self::Device) -> FloatTensor<Self> {
        Self::float_from_data(
            TensorData::new(data, shape).convert::<Self::FloatElem>(),
            device,
        )
    }

    /// An empty layer for tensors of this element type on `device`, or `None` if the backend has no device engine.
    ///
    /// `sibling` is another layer of the same cache: the two may share what a step needs for its time only.
    ///
    /// # Errors
    ///
    /// [`DeviceEngineError`] if the engine has no kernels for this layout.
    fn device_store(
        layout: &DeviceLayout,
        element: DType,
        device: &Self::Device,
        sibling: Option<&dyn DeviceStore>,
    ) -> Option<Result<Box<dyn DeviceStore>, DeviceEngineError>> {
        let _ = (layout, element, device, sibling);
        None
    }

    /// Stores `keys` `[B, Hkv, L, D]` and `values` `[B, Hkv, L, Dv]` after those that are there, without waiting for the device; more than
    /// a few tokens whose rows go to main memory are waited for.
    ///
    /// # Errors
    ///
    /// [`DeviceEngineError`]; the layer is then as it was.
    fn device_append(
        store: &mut dyn DeviceStore,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
    ) -> Result<(), DeviceEngineError> {
        let _ = (store, keys, values);
        Err(DeviceEngineError::NoEngine)
    }

    /// Attends to the layer's keys with `queries` `[B, Hq, 1, D]`, without waiting for the device. If exact rows lie in main memory it waits once, for
    /// the list of those that the step reads.
    ///
    /// # Errors
    ///
    /// [`DeviceEngineError`].
    fn device_attend(
        store: &mut dyn DeviceStore,
        queries: FloatTensor<Self>,
        step: &DeviceStep,
    ) -> Result<DeviceAnswer<Self>, DeviceEngineError> {
        let _ = (store, queries, step);
        Err(DeviceEngineError::NoEngine)
    }

    /// The exact keys `[B, Hkv, N, D]` and values `[B, Hkv, N, Dv]` of `N` tokens as they are stored: where they lie, or, of rows in main memory, a copy.
    ///
    /// The tensors see what is stored later in the place of what [`DeviceStore::truncate`] forgot: use them before that.
    ///
    /// # Errors
    ///
    /// [`DeviceEngineError`].
    fn device_rows(
        store: &mut dyn DeviceStore,
        tokens: Range<usize>,
    ) -> Result<[FloatTensor<Self>; 2], DeviceEngineError> {
        let _ = (store, tokens);
        Err(DeviceEngineError::NoEngine)
    }

    /// How full the memory of `device` is, if its driver can be asked: that of CUDA can.
    fn device_usage(device: &Self::Device) -> Option<DeviceUsage> {
        let _ = device;
        None
    }
}

/// The access that works for every backend: the tensor's data is copied to the host and widened to `f32`.
fn with_host_copy<B: Backend, R>(
    tensor: FloatTensor<B>,
    read: impl FnOnce(&[f32]) -> R,
) -> Result<R, HostAccessError> {
    let data = try_read_sync(B::float_into_data(tensor))
        .ok_or(HostAccessError::Asynchronous)?
        .map_err(HostAccessError::Execution)?;
    let received = data.dtype;
    let data = if received == DType::F32 {
        data
    } else if received.is_float() {
        data.convert::<f32>()
    } else {
        return Err(HostAccessError::ElementType { received });
    };
    match data.as_slice::<f32>() {
        Ok(elements) => Ok(read(elements)),
        Err(_) => Err(HostAccessError::ElementType { received }),
    }
}

/// [`HiraBackend::with_host`] on a [`Tensor`] of any rank.
///
/// # Errors
///
/// As [`HiraBackend::with_host`].
pub fn with_host<B: HiraBackend, const N: usize, R>(
    tensor: Tensor<B, N>,
    read: impl FnOnce(&[f32]) -> R,
) -> Result<R, HostAccessError> {
    B::with_host(tensor.into_primitive().tensor(), read)
}

/// [`HiraBackend::from_host`] as a [`Tensor`].
///
/// # Panics
///
/// If `data` does not hold `shape` elements.
pub fn from_host<B: HiraBackend, const N: usize>(
    data: Vec<f32>,
    shape: [usize; N],
    device: &B::Device,
) -> Tensor<B, N> {
    Tensor::from_primitive(TensorPrimitive::Float(B::from_host(
        data,
        Shape::from(shape),
        device,
    )))
}
