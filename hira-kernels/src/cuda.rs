//! What of CUDA is there? Asked before a device is touched: without a driver, a device or a compiler, the first CUDA tensor operation panics on a
//! thread of the runtime's own.

use std::path::{Path, PathBuf};

use cudarc::driver::result;

/// A GPU that the driver knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    /// Its name.
    pub name: String,
    /// Bytes of its memory.
    pub memory: usize,
}

/// Whether the CUDA driver library is installed and loads.
pub fn is_driver_present() -> bool {
    // SAFETY: the function loads the driver's shared library, if there is one, and resolves no symbol of it; the
    // library's initialisers are those that any CUDA program runs, and nothing of ours depends on them.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// The GPUs of this machine, none where there is no driver or where it does not start.
pub fn devices() -> Vec<CudaDevice> {
    if !is_driver_present() || result::init().is_err() {
        return Vec::new();
    }
    let device = |ordinal| {
        let device = result::device::get(ordinal).ok()?;
        // SAFETY: `device` is what the driver has just given for this ordinal.
        let memory = unsafe { result::device::total_mem(device) }.ok()?;
        let name = result::device::get_name(device).ok()?;
        Some(CudaDevice { name, memory })
    };
    (0..result::device::get_count().unwrap_or(0))
        .filter_map(device)
        .collect()
}

/// Whether NVRTC, the compiler of kernels at run time, is installed and loads.
pub fn is_compiler_present() -> bool {
    // SAFETY: as in `is_driver_present`, of the compiler's library.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

/// Whether the headers that kernels include are where CubeCL looks for them: below `CUDA_PATH`, else where CUDA is usually installed.
pub fn has_headers() -> bool {
    let folder = match std::env::var_os("CUDA_PATH") {
        Some(folder) => Some(PathBuf::from(folder)),
        None => ["/usr/local/cuda", "/opt/cuda"]
            .map(PathBuf::from)
            .into_iter()
            .find(|folder| folder.exists())
            .or_else(|| {
                let compiler = Path::new("/usr/bin/nvcc").exists();
                compiler.then(|| PathBuf::from("/usr"))
            }),
    };
    folder.is_some_and(|folder| folder.join("include/cuda_fp16.h").is_file())
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
