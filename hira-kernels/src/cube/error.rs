//! What a device layer refuses.

use thiserror::Error;

/// Errors of the device engine.
///
/// All of them but [`DeviceError::Read`] are found on the host, before a kernel is launched. What only the device can see (a value that is not finite) is kept in
/// [`DeviceFaults`](super::DeviceFaults), which the host reads when it synchronises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A dimension that no kernel is compiled for.
    #[error("expected a dimension that is a multiple of 16 up to 256, received {received}")]
    Dimension {
        /// The dimension that was asked for.
        received: usize,
    },
    /// A number of heads or queries that no kernel serves.
    #[error(
        "expected 1 to 16 queries a head and 1 to 65535 in all, received {heads} heads of {group}"
    )]
    Heads {
        /// Key and value heads, all sequences together.
        heads: usize,
        /// Queries a head.
        group: usize,
    },
    /// A buffer that is too short for its shape.
    #[error("expected a buffer of at least {expected} bytes, received {received}")]
    Buffer {
        /// Bytes that the shape takes.
        expected: u64,
        /// Bytes that are there.
        received: u64,
    },
    /// More keys than positions can name, or than a buffer may hold.
    #[error("expected at most {limit} keys, received {received}")]
    Capacity {
        /// Most keys of a layer of this shape.
        limit: usize,
        /// Keys that were asked for.
        received: usize,
    },
    /// Keys and values of different types, or of different numbers of heads.
    #[error("expected keys and values of one type and the same heads")]
    Elements,
    /// The workspace was made for another shape.
    #[error("expected a workspace of the layer's shape")]
    Workspace,
    /// There is no key to attend to.
    #[error("expected at least one stored key")]
    Empty,
    /// A softmax scale that is not a positive number, or a threshold that is not a number.
    #[error("expected a positive finite scale and a threshold that is a number")]
    Parameter,
    /// The device could not be read: rows that were to come to main memory, or what a step needs from there.
    #[error("the device could not be read")]
    Read,
    /// The device cannot run cubes of this size, or has too little shared memory.
    #[error("expected a device with {units} units a cube and {shared} bytes of shared memory")]
    Device {
        /// Units that a cube takes.
        units: u32,
        /// Bytes of shared memory that a cube takes.
        shared: usize,
    },
}
