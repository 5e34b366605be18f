//! What can go wrong before any arithmetic starts.

use thiserror::Error;

/// Errors of this crate.
///
/// Only [`Kernel::from_name`](crate::Kernel::from_name) returns one: the kernels themselves state their
/// preconditions under `# Panics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The name is none of `scalar`, `avx2`, `avx512`.
    #[error("unknown kernel name, expected one of scalar, avx2, avx512")]
    UnknownName,
    /// The kernel exists, but this machine lacks its instructions.
    #[error("this machine cannot run the {kernel} kernel")]
    Unavailable {
        /// Name of the kernel that was asked for.
        kernel: &'static str,
    },
}
