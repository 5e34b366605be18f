//! How full a device is.

use cubecl::prelude::*;

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Those that this program or others use. What the runtime's pool keeps for later allocations does not count.
    pub used: u64,
    /// All that the device has.
    pub total: u64,
}

/// How full device `ordinal`, which is that of `client`, is; `None` where the driver cannot be asked, which is everywhere but with CUDA (and the
/// cargo feature `cuda`).
///
/// # Complexity
///
/// Two questions, to the runtime and to the driver; neither waits for kernels.
pub fn memory_usage<R: Runtime>(client: &ComputeClient<R>, ordinal: usize) -> Option<MemoryUse> {
    let (free, total) = driver_memory::<R>(client, ordinal)?;
    let pool = client.memory_usage().ok()?;
    let spare = pool.bytes_reserved.saturating_sub(pool.bytes_in_use);
    Some(MemoryUse {
        used: total.saturating_sub(free).saturating_sub(spare),
        total,
    })
}

/// Free bytes and all of them, as the driver counts.
#[cfg(feature = "cuda")]
fn driver_memory<R: Runtime>(client: &ComputeClient<R>, ordinal: usize) -> Option<(u64, u64)> {
    match R::name(client) {
        "cuda" => crate::cuda::memory(ordinal),
        _ => None,
    }
}

#[cfg(not(feature = "cuda"))]
fn driver_memory<R: Runtime>(_: &ComputeClient<R>, _: usize) -> Option<(u64, u64)> {
    None
}
