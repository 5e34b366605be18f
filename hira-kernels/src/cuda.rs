//! Is there a CUDA driver? Asked without touching a device.

/// Whether the CUDA driver library is installed and loads.
///
/// Ask before the first CUDA tensor operation: without a driver that panics on a thread of the runtime's own.
pub fn is_driver_present() -> bool {
    // SAFETY: the function loads the driver's shared library, if there is one, and resolves no symbol of it; the
    // library's initialisers are those that any CUDA program runs, and nothing of ours depends on them.
    unsafe { cudarc::driver::sys::is_culib_present() }
}
