//! The device engine: kernels for a CubeCL runtime, and the buffers that they work on.
//!
//! A [`DeviceLayer`] holds the keys and values of one layer for all its heads, exact and as an int8 sketch. A [`DeviceWorkspace`] holds what
//! a decode step needs beside it and is shared by all layers. [`DeviceLayer::append`] stores tokens, [`decode`] attends to the keys that a
//! rule selects, [`decode_dense`] to all of them. None of them waits for the device, and none allocates unless a layer grows.
//!
//! # Rows in main memory
//!
//! A layer made by [`DeviceLayer::with_host_rows`] has the sketch and the means of values on the device, and its exact rows in main memory, where they
//! are the same bytes. Its steps wait for the device once: bounds are compared with the threshold, one bit a key and head says which rows are needed,
//! and those are brought, each once for its group. Nothing else differs: what is
//! selected is the same, and so are the bits of an answer where the device compiles both forms of a kernel alike.
//!
//! # Launches
//!
//! | call | launches |
//! |---|---|
//! | [`DeviceLayer::append`] | 1; 1 more where a block of 64 keys is completed, or rows go to main memory |
//! | [`decode`], fixed threshold | 5: scan, threshold, survivors, attend, combine |
//! | [`decode`], top-k | 6: the exact k-th score is settled between survivors and attend |
//! | [`decode`], mass | 7: a reference and a histogram of logits come before the threshold |
//! | [`decode_dense`] | 2: attend, combine |
//! | [`decode`], rows in main memory | 1 more, which marks survivors, before the wait |
//! | [`decode_dense`], rows in main memory | attend once for every 4096 keys of a head, combine |
//!
//! # Layout
//!
//! Sixteen keys to a tile as on the host, codes biased by 128 as there, but a tile is `D / 16` rows of sixteen 16-byte vectors (vector `l` of
//! row `j` holds dimensions `16j..16j + 16` of key `l`) instead of `D / 4` lines of sixteen 4-byte words: a unit reads its key in 16-byte loads
//! and a plane reads whole 256-byte rows. Scale and residual norm (bf16 each, one word a key) lie apart, so that what needs only them reads
//! only them. There is no norm of a tile: what the host multiplies by it is part of a key's residual norm (see `bounds.rs`).
//!
//! Exact keys and values are rows of 32-bit words that hold one `f32` or two 16-bit values, for every runtime the same bytes: runtimes without
//! 16-bit types run the same kernels.
//!
//! # Numerics
//!
//! `bounds.rs` derives the interval of a key, for devices that round faithfully, flush subnormals and divide with errors: on every one of
//! them it holds the exact score, the host's canonical score and the device's own. The device's score of a survivor adds in the host's
//! canonical order, and is the same bits where the device rounds to nearest, has a fused multiply-add and keeps subnormals (CUDA does).

mod attend;
mod bounds;
mod combine;
mod decode;
mod dense;
mod error;
mod host;
mod layer;
mod marks;
mod mass;
mod quantise;
mod radix;
mod rows;
mod rule;
mod scan;
mod shape;
mod splits;
mod staged;
mod survivors;
mod threshold;
mod usage;
mod words;
mod workspace;

pub use decode::{Attended, decode, decode_dense};
pub use error::DeviceError;
pub use layer::{DeviceBytes, DeviceFaults, DeviceLayer};
pub use rows::DeviceRows;
pub use rule::{DecodeParams, DeviceCertificate, DeviceRule};
pub use shape::DeviceShape;
pub use usage::{MemoryUse, memory_usage};
pub use workspace::DeviceWorkspace;

#[cfg(all(test, feature = "wgpu"))]
#[path = "tests.rs"]
mod wgpu_tests;
