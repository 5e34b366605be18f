//! The keys and values of one layer in device memory.

use cubecl::prelude::*;
use cubecl::server::Handle;

use super::quantise::{append_tokens, block_means, centre_of};
use super::rows::{StridesLaunch, argument};
use super::shape::{BLOCK, CHUNK, TILE};
use super::{DeviceError, DeviceRows, DeviceShape};

mod exact;
mod handles;

use exact::{Exact, HostExact};
pub use handles::DeviceBytes;

/// The first append centres the sketch on the mean of its keys if it has at least as many.
const CENTRE_FROM: usize = 64;

/// Keys that the mean is taken of, at most: evenly spread over the tokens.
const CENTRE_OF: usize = 256;

/// Keys and values that could not be stored, as the device saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceFaults {
    /// The lowest position whose key has a component that is not finite or too large (`2^56`).
    pub key: Option<usize>,
    /// The same of values.
    pub value: Option<usize>,
}

/// Buffers that grow with the number of keys; each is `[heads][capacity ...]`.
#[derive(Debug, Clone)]
struct Buffers {
    codes: Handle,
    parameters: Handle,
    means: Handle,
    /// Keys and values; in main memory if there is none.
    rows: Option<[Handle; 2]>,
}

/// Keys and values of one layer in device memory: `heads` of them, all of the same length.
///
/// Stores exact rows, a sketch, and the mean of every complete block of 64 values. The exact rows can lie in main memory instead
/// ([`with_host_rows`](Self::with_host_rows)): the device then has the sketch and the means, and gets of the rows what a step reads. A token whose key or value is not finite, or has a
/// component of `2^56` or more after rounding to the stored precision, is stored as zeros and noted in [`faults`](Self::faults).
///
/// # Complexity
///
/// `D + 4` bytes a key for the sketch, the exact rows, and `Dv / 16` bytes for the means. Rows in main memory are allocated 1024 tokens at a time, and
/// shared by forks until one of them writes.
pub struct DeviceLayer<R: Runtime> {
    shape: DeviceShape,
    len: usize,
    capacity: usize,
    buffers: Buffers,
    /// Where the exact rows are.
    exact: Exact,
    /// `[heads][dim]`.
    centre: Handle,
    /// `[heads][2]`: bits of the largest norms of keys and of values.
    norms: Handle,
    /// Lowest faulty positions of keys and of values, `u32::MAX` if none.
    faults: Handle,
    runtime: std::marker::PhantomData<R>,
}

impl<R: Runtime> DeviceLayer<R> {
    /// An empty layer with room for `capacity` keys, rounded up to whole chunks of 1024.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Dimension`], [`DeviceError::Heads`] or [`DeviceError::Capacity`] if there is no kernel for the shape, or no index that
    /// reaches so far.
    pub fn new(
        client: &ComputeClient<R>,
        shape: DeviceShape,
        capacity: usize,
    ) -> Result<Self, DeviceError> {
        Self::made(client, shape, capacity, Exact::Device)
    }

    /// As [`DeviceLayer::new`], with the exact rows in main memory.
    ///
    /// # Errors
    ///
    /// As [`DeviceLayer::new`].
    pub fn with_host_rows(
        client: &ComputeClient<R>,
        shape: DeviceShape,
        capacity: usize,
    ) -> Result<Self, DeviceError> {
        let host = HostExact::new(client, &shape);
        Self::made(client, shape, capacity, Exact::Host(host))
    }

    fn made(
        client: &ComputeClient<R>,
        shape: DeviceShape,
        capacity: usize,
        exact: Exact,
    ) -> Result<Self, DeviceError> {
        shape.check()?;
        let capacity = whole_chunks(&shape, capacity)?;
        Ok(Self {
            shape,
            len: 0,
            capacity,
            buffers: Buffers::new(client, &shape, capacity, exact.is_on_device()),
            exact,
            centre: client.create_from_slice(f32::as_bytes(&vec![0.0; shape.heads * shape.dim])),
            norms: client.create_from_slice(u32::as_bytes(&vec![0; 2 * shape.heads])),
            faults: client.create_from_slice(u32::as_bytes(&[u32::MAX; 2])),
            runtime: std::marker::PhantomData,
        })
    }

    /// What it stores.
    pub fn shape(&self) -> DeviceShape {
        self.shape
    }

    /// Keys stored for each head.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no key is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keys for which there is room.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of device memory that it holds.
    pub fn bytes(&self) -> u64 {
        let handles = self.buffers.each();
        handles.iter().map(|handle| handle.size_in_used()).sum()
    }

    /// Makes room for `len` keys in all, at least doubling the capacity if it grows.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Capacity`] if no index reaches so far; the layer is as before.
    ///
    /// # Complexity
    ///
    /// Nothing if there is room; else new memory and a copy, five launches.
    pub fn reserve(&mut self, client: &ComputeClient<R>, len: usize) -> Result<(), DeviceError> {
        if len <= self.capacity {
            return Ok(());
        }
        let doubled = (2 * self.capacity).min(self.shape.limit());
        let capacity = whole_chunks(&self.shape, len.max(doubled))?;
        self.buffers = self.copied(client, capacity);
        self.capacity = capacity;
        Ok(())
    }

    /// Stores `tokens` more keys and values for every head.
    ///
    /// # Shapes
    ///
    /// `keys`: `[B, Hkv, tokens, D]`, `values`: `[B, Hkv, tokens, Dv]`, of one type of value.
    ///
    /// # Numerics
    ///
    /// Rounded once to the stored precision, to nearest even; the sketch is that of the rounded keys.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Buffer`] or [`DeviceError::Capacity`]; nothing is stored then. With rows in main memory also [`DeviceError::Read`].
    ///
    /// # Complexity
    ///
    /// One launch, and one more where a block of 64 is completed; the first append centres the sketch with another. With rows in main memory two
    /// launches for every 1024 tokens; more than 16 tokens are waited for and read back, fewer are read with the next step.
    pub fn append(
        &mut self,
        client: &ComputeClient<R>,
        keys: &DeviceRows,
        values: &DeviceRows,
        tokens: usize,
    ) -> Result<(), DeviceError> {
        if tokens == 0 {
            return Ok(());
        }
        let shape = self.shape;
        keys.check(shape.heads, tokens, shape.dim)?;
        values.check(shape.heads, tokens, shape.value_dim)?;
        if keys.element != values.element || keys.heads_per_batch != values.heads_per_batch {
            return Err(DeviceError::Elements);
        }
        self.reserve(client, self.len + tokens)?;
        let heads = shape.heads as u32;
        let element = keys.element;
        let strides = |rows: &DeviceRows| {
            let [batch, head, token] = rows.strides.map(|stride| stride as u32);
            StridesLaunch::new(batch, head, token)
        };
        if self.len == 0 {
            centre_of::launch(
                client,
                CubeCount::Static(1, heads, 1),
                CubeDim::new_1d(256),
                argument(&keys.handle, element.size()),
                argument(&self.centre, 4),
                strides(keys),
                keys.heads_per_batch as u32,
                if tokens < CENTRE_FROM {
                    0
                } else {
                    tokens.min(CENTRE_OF) as u32
                },
                (tokens / CENTRE_OF).max(1) as u32,
                shape.dim,
                element,
            );
        }
        match &self.exact {
            Exact::Device => {
                self.quantise(client, keys, values, 0, tokens, None);
                self.means_of_stored(client, tokens);
                self.len += tokens;
                Ok(())
            }
            Exact::Host(_) => self.append_to_host(client, keys, values, tokens),
        }
    }

    /// The launch that stores `tokens` tokens from `skip` on at the end; their exact rows in the layer's buffers, or in others that begin with them.
    fn quantise(
        &self,
        client: &ComputeClient<R>,
        keys: &DeviceRows,
        values: &DeviceRows,
        skip: usize,
        tokens: usize,
        fresh: Option<&[Handle; 2]>,
    ) {
        let shape = self.shape;
        let strides = |rows: &DeviceRows| {
            let [batch, head, token] = rows.strides.map(|stride| stride as u32);
            StridesLaunch::new(batch, head, token)
        };
        let Some([to_keys, to_values]) = fresh.or(self.buffers.rows.as_ref()) else {
            return;
        };
        let (rows_capacity, rows_first) = match fresh {
            Some(_) => (tokens, self.len),
            None => (self.capacity, 0),
        };
        let tiles = (self.len + tokens).div_ceil(TILE) - self.len / TILE;
        append_tokens::launch(
            client,
            CubeCount::Static(tiles as u32, shape.heads as u32, 1),
            CubeDim::new_2d(shape.dim as u32 / 16, TILE as u32),
            argument(&keys.handle, keys.element.size()),
            argument(&values.handle, values.element.size()),
            argument(&self.centre, 4),
            argument(&self.buffers.codes, 16),
            argument(&self.buffers.parameters, 4),
            argument(to_keys, 16),
            argument(to_values, 16),
            argument(&self.norms, 4),
            argument(&self.faults, 4),
            strides(keys),
            strides(values),
            keys.heads_per_batch as u32,
            skip as u32,
            self.len as u32,
            tokens as u32,
            self.capacity as u32,
            rows_capacity as u32,
            rows_first as u32,
            shape.dim,
            shape.value_dim,
            shape.precision,
            keys.element,
        );
    }

    /// The means of the blocks that `tokens` more tokens complete, whose values are on the device.
    fn means_of_stored(&self, client: &ComputeClient<R>, tokens: usize) {
        let (old, new) = (self.len / BLOCK, (self.len + tokens) / BLOCK);
        let Some([_, values]) = self.buffers.rows.as_ref().filter(|_| new > old) else {
            return;
        };
        block_means::launch(
            client,
            CubeCount::Static((new - old) as u32, self.shape.heads as u32, 1),
            CubeDim::new_1d(self.shape.value_dim as u32 / 4),
            argument(values, 16),
            argument(&self.buffers.means, 4),
            old as u32,
            self.capacity as u32,
            self.shape.value_dim,
            self.shape.precision,
        );
    }

    /// Forgets all keys from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.exact.truncate(len);
        }
    }

    /// Forgets all keys and faults; keeps the memory.
    pub fn reset(&mut self, client: &ComputeClient<R>) {
        self.truncate(0);
        self.norms = client.create_from_slice(u32::as_bytes(&vec![0; 2 * self.shape.heads]));
        self.faults = client.create_from_slice(u32::as_bytes(&[u32::MAX; 2]));
    }

    /// Tokens that were refused since the last [`reset`](Self::reset). Waits for the device.
    pub fn faults(&self, client: &ComputeClient<R>) -> DeviceFaults {
        let bytes = client.read_one_unchecked(self.faults.clone());
        let [key, value] = [0, 1].map(|i| {
            let position = u32::from_bytes(&bytes)[i];
            (position != u32::MAX).then_some(position as usize)
        });
        DeviceFaults { key, value }
    }

    pub(super) fn codes(&self) -> ArrayArg<R> {
        argument(&self.buffers.codes, 16)
    }

    pub(super) fn parameters(&self) -> ArrayArg<R> {
        argument(&self.buffers.parameters, 4)
    }

    #[cfg(all(test, feature = "wgpu"))]
    pub(super) fn parameter_handle(&self) -> Handle {
        self.buffers.parameters.clone()
    }

    pub(super) fn means(&self) -> ArrayArg<R> {
        argument(&self.buffers.means, 4)
    }

    pub(super) fn centre(&self) -> ArrayArg<R> {
        argument(&self.centre, 4)
    }

    pub(super) fn norms(&self) -> ArrayArg<R> {
        argument(&self.norms, 4)
    }
}

impl Buffers {
    fn new<R: Runtime>(
        client: &ComputeClient<R>,
        shape: &DeviceShape,
        capacity: usize,
        with_rows: bool,
    ) -> Self {
        let keys = shape.heads * capacity;
        Self {
            codes: client.empty(keys * shape.dim),
            parameters: client.empty(keys * 4),
            means: client.empty(keys / BLOCK * shape.value_dim * 4),
            rows: with_rows.then(|| Self::rows(client, shape, capacity)),
        }
    }

    /// Room for keys and values.
    fn rows<R: Runtime>(
        client: &ComputeClient<R>,
        shape: &DeviceShape,
        capacity: usize,
    ) -> [Handle; 2] {
        let values = shape.heads * capacity * shape.precision.bytes();
        [shape.dim, shape.value_dim].map(|dim| client.empty(values * dim))
    }

    fn each(&self) -> Vec<&Handle> {
        let rows = self.rows.iter().flatten();
        [&self.codes, &self.parameters, &self.means]
            .into_iter()
            .chain(rows)
            .collect()
    }
}

/// `keys` rounded up to whole chunks, at least one.
fn whole_chunks(shape: &DeviceShape, keys: usize) -> Result<usize, DeviceError> {
    let limit = shape.limit();
    if keys > limit {
        return Err(DeviceError::Capacity {
            limit,
            received: keys,
        });
    }
    Ok(keys.max(1).div_ceil(CHUNK) * CHUNK)
}
