//! What the owner of a layer does with its memory: copies, sizes, growth, and views for other kernels.

use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Buffers, DeviceFaults, DeviceLayer, whole_chunks};
use crate::cube::host::HostRows;
use crate::cube::quantise::copy_heads;
use crate::cube::rows::argument;
use crate::cube::shape::BLOCK;
use crate::cube::{DeviceError, DeviceShape};

/// Bytes of a layer, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceBytes {
    /// Exact keys on the device.
    pub keys: u64,
    /// Values on the device, and the means of their blocks.
    pub values: u64,
    /// Codes, scales and residual norms.
    pub sketch: u64,
    /// Exact keys in main memory.
    pub host_keys: u64,
    /// Values in main memory.
    pub host_values: u64,
}

impl DeviceShape {
    /// Bytes on the device of a layer with room for `capacity` keys, rounded up to whole chunks; without those of the rows if they are in main memory.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Capacity`] if no index reaches so far.
    pub fn bytes(&self, capacity: usize, with_rows: bool) -> Result<DeviceBytes, DeviceError> {
        let keys = (self.heads * whole_chunks(self, capacity)?) as u64;
        let rows = |dim: usize| match with_rows {
            true => keys * (dim * self.precision.bytes()) as u64,
            false => 0,
        };
        Ok(DeviceBytes {
            keys: rows(self.dim),
            values: rows(self.value_dim) + keys / BLOCK as u64 * 4 * self.value_dim as u64,
            sketch: keys * (self.dim as u64 + 4),
            ..DeviceBytes::default()
        })
    }
}

impl<R: Runtime> DeviceLayer<R> {
    /// Bytes that it holds, by part.
    pub fn bytes_by_part(&self) -> DeviceBytes {
        // the layer was made with this capacity
        let bytes = self.bytes_with(self.capacity, self.len, self.has_host_rows());
        bytes.unwrap_or_default()
    }

    /// Bytes that it would hold with room for `capacity` keys, `len` tokens, and its rows where they are said to be.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Capacity`] if no index reaches so far.
    pub fn bytes_with(
        &self,
        capacity: usize,
        len: usize,
        host_rows: bool,
    ) -> Result<DeviceBytes, DeviceError> {
        let bytes = self.shape.bytes(capacity, !host_rows)?;
        let [host_keys, host_values] = match host_rows {
            true => HostRows::new(&self.shape).bytes_of(len),
            false => [0; 2],
        };
        Ok(DeviceBytes {
            host_keys,
            host_values,
            ..bytes
        })
    }

    /// Whether its exact rows lie in main memory.
    pub fn has_host_rows(&self) -> bool {
        !self.exact.is_on_device()
    }

    /// Makes room for `capacity` keys, rounded up to whole chunks, and no more than that.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Capacity`] if no index reaches so far; the layer is as before.
    ///
    /// # Complexity
    ///
    /// Nothing if there is room; else new memory and a copy, five launches.
    pub fn grow(&mut self, client: &ComputeClient<R>, capacity: usize) -> Result<(), DeviceError> {
        if capacity > self.capacity {
            let capacity = whole_chunks(&self.shape, capacity)?;
            self.buffers = self.copied(client, capacity);
            self.capacity = capacity;
        }
        Ok(())
    }

    /// A copy that shares nothing on the device with this layer, and in main memory what neither writes.
    ///
    /// # Complexity
    ///
    /// New memory and a copy, eight launches.
    pub fn fork(&self, client: &ComputeClient<R>) -> Self {
        let all = |handle: &Handle| {
            let copy = client.empty(handle.size_in_used() as usize);
            copy_words(client, handle, &copy);
            copy
        };
        Self {
            shape: self.shape,
            len: self.len,
            capacity: self.capacity,
            buffers: self.copied(client, self.capacity),
            exact: self.exact.clone(),
            centre: all(&self.centre),
            norms: all(&self.norms),
            faults: all(&self.faults),
            runtime: std::marker::PhantomData,
        }
    }

    /// The keys `[heads, capacity, D]` and values `[heads, capacity, Dv]` as they are stored, if they lie on the device.
    pub fn device_rows(&self) -> Option<[Handle; 2]> {
        self.buffers.rows.clone()
    }

    /// What [`DeviceFaults::read`] reads.
    pub fn faults_handle(&self) -> Handle {
        self.faults.clone()
    }

    /// Buffers of this capacity, at least the own one, that begin with what is stored.
    pub(super) fn copied(&self, client: &ComputeClient<R>, capacity: usize) -> Buffers {
        let with_rows = self.exact.is_on_device();
        let copy = Buffers::new(client, &self.shape, capacity, with_rows);
        for (old, new) in self.buffers.each().into_iter().zip(copy.each()) {
            let vectors =
                |handle: &Handle| (handle.size_in_used() / 16 / self.shape.heads as u64) as u32;
            let (from, to) = (vectors(old), vectors(new));
            copy_heads::launch(
                client,
                CubeCount::Static(from.div_ceil(256 * 16), self.shape.heads as u32, 1),
                CubeDim::new_1d(256),
                argument(old, 16),
                argument(new, 16),
                from,
                to,
                0,
            );
        }
        copy
    }
}

impl DeviceFaults {
    /// Reads what a layer's [`faults_handle`](DeviceLayer::faults_handle) holds. Waits for the device.
    pub fn read<R: Runtime>(client: &ComputeClient<R>, handle: Handle) -> Self {
        let bytes = client.read_one_unchecked(handle);
        let [key, value] = [0, 1].map(|i| {
            let position = u32::from_bytes(&bytes)[i];
            (position != u32::MAX).then_some(position as usize)
        });
        Self { key, value }
    }
}

/// Copies a small buffer of 32-bit words.
fn copy_words<R: Runtime>(client: &ComputeClient<R>, old: &Handle, new: &Handle) {
    let words = (old.size_in_used() / 4) as u32;
    words_of::launch(
        client,
        CubeCount::Static(words.div_ceil(256), 1, 1),
        CubeDim::new_1d(256),
        argument(old, 4),
        argument(new, 4),
        words,
    );
}

#[cube(launch)]
fn words_of(old: &Array<u32>, new: &mut Array<u32>, words: u32) {
    let at = CUBE_POS_X * 256u32 + UNIT_POS;
    if at < words {
        new[at as usize] = old[at as usize];
    }
}
