//! What the CUDA driver says: whether it is there, and how full a device is.

/// Whether the CUDA driver library is installed and loads.
///
/// Ask before the first CUDA tensor operation: without a driver that panics on a thread of the runtime's own.
pub fn is_driver_present() -> bool {
    // SAFETY: the function loads the driver's shared library, if there is one, and resolves no symbol of it; the
    // library's initialisers are those that any CUDA program runs, and nothing of ours depends on them.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// Bytes of memory of device `ordinal` that are free, and all that it has; `None` without a driver or such a device.
///
/// Makes the device's primary context, the one that CUDA runtimes share, that of the calling thread.
pub fn memory(ordinal: usize) -> Option<(u64, u64)> {
    if !is_driver_present() {
        return None;
    }
    let context = cudarc::driver::CudaContext::new(ordinal).ok()?;
    let (free, total) = context.mem_get_info().ok()?;
    Some((free as u64, total as u64))
}
