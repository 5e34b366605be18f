//! The device engine's part of [`HiraBackend`](super::HiraBackend): what is asked of it, and what it answers.

use std::{fmt::Debug, ops::Range, sync::Arc};

use burn::tensor::{DType, Tensor, TensorPrimitive, ops::FloatTensor};
use hira_kernels::Precision;

use super::HiraBackend;
use crate::{DeviceStore, RowPlace};

/// Shape of a layer on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLayout {
    /// Sequences (`B`).
    pub sequences: usize,
    /// Query heads (`Hq`).
    pub heads: usize,
    /// KV heads (`Hkv`).
    pub kv_heads: usize,
    /// Dimension of a key (`D`).
    pub head_dim: usize,
    /// Dimension of a value (`Dv`).
    pub value_dim: usize,
    /// Most tokens of a sequence.
    pub max_len: usize,
    /// What keys and values are to be stored in. See [`DeviceLayout::stored`].
    pub precision: Precision,
    /// Where exact keys and values are to lie.
    pub rows: RowPlace,
}

impl DeviceLayout {
    /// What tensors of an element type are stored in: elements of 16 bits as they are, which loses nothing against f32; elements of
    /// 32 bits in the wanted precision.
    ///
    /// # Errors
    ///
    /// [`DeviceEngineError::Element`] for other element types, and for 16 bits that would have to become other 16 bits.
    pub fn stored(&self, element: DType) -> Result<Precision, DeviceEngineError> {
        match (element, self.precision) {
            (DType::F32, wanted) => Ok(wanted),
            (DType::F16, Precision::F32 | Precision::F16) => Ok(Precision::F16),
            (DType::BF16, Precision::F32 | Precision::Bf16) => Ok(Precision::Bf16),
            (received, precision) => Err(DeviceEngineError::Element {
                received,
                precision,
            }),
        }
    }
}

/// Which keys a device step selects beside sinks and window.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum DeviceRule {
    /// Every key: dense attention.
    Everything,
    /// The `k` keys with the largest scores.
    TopK {
        /// Keys of a query.
        k: usize,
    },
    /// Every key whose score reaches `tau`.
    Fixed {
        /// The score.
        tau: f32,
    },
    /// Keys that hold at least `1 - dropped` of the softmax mass.
    Mass {
        /// The share of the mass that may be dropped.
        dropped: f32,
    },
}

/// One decode step over what a layer holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceStep {
    /// What is selected.
    pub rule: DeviceRule,
    /// Factor of the scores in the softmax.
    pub scale: f32,
    /// First keys that are always attended to.
    pub sinks: usize,
    /// Most recent keys that are always attended to.
    pub window: usize,
    /// Whether means of blocks stand in for what is left out.
    pub compensated: bool,
}

/// What a device step did with one query head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceHead {
    /// Keys that were scored exactly.
    pub survivors: usize,
    /// Keys that were attended to.
    pub attended: usize,
    /// Proven bound on the softmax mass of the others.
    pub dropped_mass_bound: f32,
    /// Proven bound on the Euclidean distance from dense attention, up to the rounding of the answer.
    pub output_error_bound: f32,
}

/// What a step left on the device, to be read when somebody asks.
pub trait DeviceRecord: Debug + Send + Sync {
    /// Waits for the step and reads what it did, `[B * Hq]`.
    ///
    /// # Errors
    ///
    /// [`DeviceEngineError::NonFinite`] if the layer was given rows that cannot be attended to, or [`DeviceEngineError::Read`].
    fn read(&self) -> Result<Vec<DeviceHead>, DeviceEngineError>;

    /// Waits for the step and reads the positions that were attended to, head by head, ascending. `None` if every key was, or if a later step of
    /// the same cache has overwritten them.
    ///
    /// # Errors
    ///
    /// As [`DeviceRecord::read`].
    fn attended(&self) -> Result<Option<Vec<Vec<u32>>>, DeviceEngineError>;
}

/// The answer of a step: the output `[B, Hq, 1, Dv]`, and what is known of it.
pub type DeviceAnswer<B> = (FloatTensor<B>, Arc<dyn DeviceRecord>);

/// Why the device engine cannot do what it is asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceEngineError {
    /// The backend has none.
    #[error("the backend has no device engine")]
    NoEngine,
    /// The layer's keys were stored by another backend, or on another device.
    #[error("the layer was stored by another backend than the one of these tensors")]
    Foreign,
    /// The layer was made for other numbers of heads.
    #[error("expected a step of {expected} query heads, as before, received {received}")]
    Heads {
        /// Query heads of the first step.
        expected: usize,
        /// What came.
        received: usize,
    },
    /// Elements that the device engine does not store.
    #[error(
        "elements of type {received:?} cannot be stored as {precision:?} without rounding twice"
    )]
    Element {
        /// The element type of the tensor.
        received: DType,
        /// The wanted precision.
        precision: Precision,
    },
    /// A row that was appended, or a query, holds NaN, an infinity or too large a number.
    #[error("non-finite or too large element in the {what} at position {position}")]
    NonFinite {
        /// `"keys"`, `"values"` or `"queries"`.
        what: &'static str,
        /// The first such position (of queries: the row).
        position: usize,
    },
    /// The device could not be read, or rows of more tokens were asked for than there are.
    #[error("the device could not be read")]
    Read,
    /// The kernels refuse.
    #[cfg(feature = "cube")]
    #[error(transparent)]
    Kernel(#[from] hira_kernels::cube::DeviceError),
}

/// [`HiraBackend::device_append`] for [`Tensor`]s.
///
/// # Errors
///
/// As [`HiraBackend::device_append`].
pub fn device_append<B: HiraBackend>(
    store: &mut dyn DeviceStore,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
) -> Result<(), DeviceEngineError> {
    let [keys, values] = [keys, values].map(|tensor| tensor.into_primitive().tensor());
    B::device_append(store, keys, values)
}

/// [`HiraBackend::device_attend`] for [`Tensor`]s.
///
/// # Errors
///
/// As [`HiraBackend::device_attend`].
pub fn device_attend<B: HiraBackend>(
    store: &mut dyn DeviceStore,
    queries: Tensor<B, 4>,
    step: &DeviceStep,
) -> Result<(Tensor<B, 4>, Arc<dyn DeviceRecord>), DeviceEngineError> {
    let (out, record) = B::device_attend(store, queries.into_primitive().tensor(), step)?;
    Ok((Tensor::from_primitive(TensorPrimitive::Float(out)), record))
}

/// [`HiraBackend::device_rows`] as [`Tensor`]s.
///
/// # Errors
///
/// As [`HiraBackend::device_rows`].
pub fn device_rows<B: HiraBackend>(
    store: &mut dyn DeviceStore,
    tokens: Range<usize>,
) -> Result<[Tensor<B, 4>; 2], DeviceEngineError> {
    let rows = B::device_rows(store, tokens)?;
    Ok(rows.map(|rows| Tensor::from_primitive(TensorPrimitive::Float(rows))))
}
