//! The device that a program runs on, chosen by name at run time.

#[cfg(feature = "flex")]
use std::any::TypeId;

use clap::ValueEnum;
use hira_attention::HiraBackend;
use hira_attention::device::{DeviceError, DeviceKind};

/// The `--device` argument of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DeviceName {
    /// The CPU, by burn-flex.
    #[default]
    Flex,
    /// The CPU, by burn-ndarray.
    Ndarray,
    /// A CUDA GPU.
    Cuda,
    /// A GPU through wgpu.
    Wgpu,
}

impl From<DeviceName> for DeviceKind {
    fn from(name: DeviceName) -> Self {
        match name {
            DeviceName::Flex => Self::Flex,
            DeviceName::Ndarray => Self::NdArray,
            DeviceName::Cuda => Self::Cuda,
            DeviceName::Wgpu => Self::Wgpu,
        }
    }
}

impl DeviceName {
    /// Checks that the device can be used, before anything touches it.
    ///
    /// # Errors
    /// [`DeviceError`] that says what to do. The features of this package count: hira-attention may have been built with more.
    pub fn check(self) -> Result<(), DeviceError> {
        let compiled = match self {
            Self::Flex => cfg!(feature = "flex"),
            Self::Ndarray => cfg!(feature = "ndarray"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Wgpu => cfg!(feature = "wgpu"),
        };
        let kind = DeviceKind::from(self);
        if compiled {
            kind.check()
        } else {
            Err(DeviceError::NotCompiled(kind))
        }
    }
}

/// Whether the backend is Flex, whose slices are views and whose product of a single row runs on one thread.
pub fn is_flex<B: HiraBackend>() -> bool {
    #[cfg(feature = "flex")]
    return TypeId::of::<B>() == TypeId::of::<burn_flex::Flex>();
    #[cfg(not(feature = "flex"))]
    false
}

/// Work that can be done on any device.
pub trait OnDevice {
    /// What the work gives.
    type Output;

    /// Does the work on the default device of a backend.
    fn run<B: HiraBackend>(self, device: &B::Device) -> Self::Output;
}

/// Does the work on the named device.
///
/// # Errors
/// [`DeviceError`] if the device was not compiled in or is not there, before anything touches it.
///
/// # Examples
/// ```
/// use burn::tensor::backend::Backend;
/// use hira_attention::HiraBackend;
/// use hira_examples::device::{DeviceName, OnDevice, run_on};
///
/// struct Name;
///
/// impl OnDevice for Name {
///     type Output = String;
///     fn run<B: HiraBackend>(self, device: &B::Device) -> String {
///         B::name(device)
///     }
/// }
///
/// # if cfg!(feature = "flex") {
/// assert!(run_on(DeviceName::Flex, Name).is_ok());
/// # }
/// ```
pub fn run_on<T: OnDevice>(name: DeviceName, work: T) -> Result<T::Output, DeviceError> {
    name.check()?;
    match name {
        #[cfg(feature = "flex")]
        DeviceName::Flex => Ok(work.run::<burn_flex::Flex>(&Default::default())),
        #[cfg(feature = "ndarray")]
        DeviceName::Ndarray => Ok(work.run::<burn_ndarray::NdArray<f32>>(&Default::default())),
        #[cfg(feature = "cuda")]
        DeviceName::Cuda => Ok(work.run::<burn_cuda::Cuda<f32, i32>>(&Default::default())),
        #[cfg(feature = "wgpu")]
        DeviceName::Wgpu => Ok(work.run::<burn_wgpu::Wgpu<f32, i32>>(&Default::default())),
        #[cfg(not(all(
            feature = "flex",
            feature = "ndarray",
            feature = "cuda",
            feature = "wgpu"
        )))]
        _ => Err(DeviceError::NotCompiled(name.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl OnDevice for Nothing {
        type Output = ();
        fn run<B: HiraBackend>(self, _: &B::Device) {}
    }

    #[test]
    fn a_device_that_was_not_compiled_in_names_its_feature() {
        let mut missing = Vec::new();
        for &name in DeviceName::value_variants() {
            let Err(error @ DeviceError::NotCompiled(kind)) = name.check() else {
                continue;
            };
            assert!(error.to_string().contains(kind.feature()), "{error}");
            assert_eq!(run_on(name, Nothing), Err(error));
            missing.push(kind);
        }
        // also where hira-attention was built with more than this package
        assert_eq!(
            missing.contains(&DeviceKind::Wgpu),
            cfg!(not(feature = "wgpu"))
        );
    }
}
