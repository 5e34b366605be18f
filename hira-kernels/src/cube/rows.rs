//! Tensors of the caller's, as the kernels take them.

use cubecl::ir::StorageType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::DeviceError;

/// A device tensor whose last dimension is contiguous: `[B, Hkv, L, D]`, in any order of the first three.
#[derive(Clone, Debug)]
pub struct DeviceRows {
    /// The memory, beginning with the first value.
    pub handle: Handle,
    /// `f32`, `f16` or `bf16`, whichever the runtime supports.
    pub element: StorageType,
    /// Heads of one sequence: head `h` of all is head `h % heads_per_batch` of sequence `h / heads_per_batch`.
    pub heads_per_batch: usize,
    /// Values from one sequence to the next, from one head of it to the next, and from one token to the next.
    pub strides: [usize; 3],
}

impl DeviceRows {
    /// A contiguous tensor of `tokens` rows of `dim` values for each head.
    pub fn contiguous(
        handle: Handle,
        element: StorageType,
        heads_per_batch: usize,
        tokens: usize,
        dim: usize,
    ) -> Self {
        Self {
            handle,
            element,
            heads_per_batch,
            strides: [heads_per_batch * tokens * dim, tokens * dim, dim],
        }
    }

    /// Values from the first to the last of these rows.
    fn extent(&self, heads: usize, tokens: usize, dim: usize) -> usize {
        let batches = heads.div_ceil(self.heads_per_batch);
        let last =
            [batches, self.heads_per_batch.min(heads), tokens].map(|count| count.saturating_sub(1));
        last.iter()
            .zip(self.strides)
            .map(|(last, stride)| last * stride)
            .sum::<usize>()
            + dim
    }

    /// The number of values that a kernel may touch.
    pub(super) fn check(
        &self,
        heads: usize,
        tokens: usize,
        dim: usize,
    ) -> Result<usize, DeviceError> {
        let extent = self.extent(heads, tokens, dim);
        let expected = (extent * self.element.size()) as u64;
        let received = self.handle.size_in_used();
        if self.heads_per_batch == 0 || received < expected || extent > u32::MAX as usize {
            return Err(DeviceError::Buffer { expected, received });
        }
        Ok(extent)
    }
}

/// Where the rows of a tensor lie, in values.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Strides {
    /// From one sequence to the next.
    pub(super) batch: u32,
    /// From one head of a sequence to the next.
    pub(super) head: u32,
    /// From one token to the next.
    pub(super) token: u32,
}

#[cube]
impl Strides {
    /// Where a row begins.
    pub(super) fn row(&self, head: u32, heads_per_batch: u32, token: u32) -> usize {
        let batch = head / heads_per_batch;
        (batch * self.batch + (head % heads_per_batch) * self.head + token * self.token) as usize
    }
}

/// A kernel's argument for `handle`.
///
/// Its length is that of the memory, so that no index below it lies outside.
pub(super) fn argument<R: Runtime>(handle: &Handle, bytes_each: usize) -> ArrayArg<R> {
    let length = handle.size_in_used() as usize / bytes_each;
    // SAFETY: the memory holds at least `length` entries of `bytes_each` bytes, by the line above.
    unsafe { ArrayArg::from_raw_parts(handle.clone(), length) }
}
