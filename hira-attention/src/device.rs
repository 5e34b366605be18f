//! Which devices a program can use: what was compiled in, and what is there.

/// A kind of device that a Burn backend computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The CPU, by burn-flex.
    Flex,
    /// The CPU, by burn-ndarray.
    NdArray,
    /// A CUDA GPU.
    Cuda,
    /// A GPU through wgpu (Vulkan, Metal, DirectX).
    Wgpu,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The backend was not compiled in.
    #[error("{0} was not compiled in: build with the cargo feature `{feature}`", feature = .0.feature())]
    NotCompiled(DeviceKind),
    /// No CUDA driver was found.
    #[error(
        "no CUDA device was found (the CUDA driver library is not installed): use --device flex for the CPU"
    )]
    NoCudaDriver,
    /// The driver knows no GPU.
    #[error(
        "no CUDA device was found (the driver knows none, or does not start): use --device flex for the CPU"
    )]
    NoCudaDevice,
    /// NVRTC, which compiles kernels at run time, was not found.
    #[error(
        "CUDA's run-time compiler was not found (libnvrtc): install it, or put its folder into LD_LIBRARY_PATH, or use --device flex for the CPU"
    )]
    NoCudaCompiler,
    /// The headers that kernels include were not found.
    #[error(
        "CUDA's headers were not found (cuda_fp16.h): set CUDA_PATH to the folder above their include folder, or use --device flex for the CPU"
    )]
    NoCudaHeaders,
}

impl DeviceKind {
    /// The cargo feature that compiles the backend in.
    pub const fn feature(self) -> &'static str {
        match self {
            DeviceKind::Flex => "flex",
            DeviceKind::NdArray => "ndarray",
            DeviceKind::Cuda => "cuda",
            DeviceKind::Wgpu => "wgpu",
        }
    }

    /// Whether the backend was compiled in.
    pub const fn is_compiled(self) -> bool {
        match self {
            DeviceKind::Flex => cfg!(feature = "flex"),
            DeviceKind::NdArray => cfg!(feature = "ndarray"),
            DeviceKind::Cuda => cfg!(feature = "cuda"),
            DeviceKind::Wgpu => cfg!(feature = "wgpu"),
        }
    }

    /// Checks that the device can be used, before anything touches it: a CUDA tensor operation without a driver
    /// panics on another thread.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] that says what to do.
    pub fn check(self) -> Result<(), DeviceError> {
        if !self.is_compiled() {
            return Err(DeviceError::NotCompiled(self));
        }
        match self {
            DeviceKind::Cuda => check_cuda(),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.feature())
    }
}

/// Whether CUDA kernels can be compiled and run. False when the `cuda` feature is off.
pub fn cuda_available() -> bool {
    DeviceKind::Cuda.check().is_ok()
}

#[cfg(feature = "cuda")]
fn check_cuda() -> Result<(), DeviceError> {
    use hira_kernels::cuda;
    if !cuda::is_driver_present() {
        return Err(DeviceError::NoCudaDriver);
    }
    if cuda::devices().is_empty() {
        return Err(DeviceError::NoCudaDevice);
    }
    if !cuda::is_compiler_present() {
        return Err(DeviceError::NoCudaCompiler);
    }
    if !cuda::has_headers() {
        return Err(DeviceError::NoCudaHeaders);
    }
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn check_cuda() -> Result<(), DeviceError> {
    Err(DeviceError::NotCompiled(DeviceKind::Cuda))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_missing_says_what_to_do() {
        for kind in [
            DeviceKind::Flex,
            DeviceKind::NdArray,
            DeviceKind::Cuda,
            DeviceKind::Wgpu,
        ] {
            match kind.check() {
                Ok(()) => assert!(kind.is_compiled()),
                Err(error @ DeviceError::NotCompiled(_)) => {
                    assert!(!kind.is_compiled());
                    assert!(error.to_string().contains(kind.feature()));
                }
                Err(error) => {
                    assert!(kind == DeviceKind::Cuda && !cuda_available());
                    assert!(error.to_string().contains("--device flex"));
                }
            }
        }
    }
}
