//! What a cache refuses, and why. After any error the cache holds what it held before.

use hira_index::{IndexError, RowsNotMoved};
use hira_kernels::Precision;
use hira_memory::MemoryError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A slice does not hold the number of elements that its shape asks for.
    #[error("{what}: expected {expected} elements, received {received}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements that the cache's shape asks for.
        expected: usize,
        /// Elements that came.
        received: usize,
    },
    /// Keys come in whole tokens for every sequence and head.
    #[error("keys: expected a multiple of {multiple} elements, received {received}")]
    PartialToken {
        /// `sequences * kv_heads * head_dim`.
        multiple: usize,
        /// Elements that came.
        received: usize,
    },
    /// More new tokens than positions left.
    #[error("cache is full: {requested} new tokens, {stored} of {max_len} positions are taken")]
    Capacity {
        /// Positions of the cache.
        max_len: usize,
        /// Positions taken.
        stored: usize,
        /// New tokens.
        requested: usize,
    },
    /// A windowed layer has evicted keys that queries would see again.
    #[error(
        "truncate: expected at least {least} tokens, received {received}: earlier keys are evicted"
    )]
    Evicted {
        /// The fewest tokens that may stay.
        least: usize,
        /// The tokens that should stay.
        received: usize,
    },
    /// A windowed layer has evicted keys that were to be copied.
    #[error("layer {layer}: expected all of its keys, but the first {evicted} are evicted")]
    Forgotten {
        /// The layer.
        layer: usize,
        /// Keys that are gone.
        evicted: usize,
    },
    /// No such layer.
    #[error("layer {received}: the cache has {layers} layers")]
    Layer {
        /// Layers of the cache.
        layers: usize,
        /// The layer that was asked for.
        received: usize,
    },
    /// No such sequence.
    #[error("sequence {received}: the cache has {sequences} sequences")]
    Sequence {
        /// Sequences of the cache.
        sequences: usize,
        /// The sequence that was asked for.
        received: usize,
    },
    /// A sequence has more new tokens than rows came.
    #[error("sequence {sequence}: {received} new tokens, but rows for {tokens} came")]
    NewTokens {
        /// The sequence.
        sequence: usize,
        /// Rows of a sequence in the call.
        tokens: usize,
        /// New tokens that were named.
        received: usize,
    },
    /// More tokens to drop than a sequence has.
    #[error("expected to drop at most {stored} tokens of sequence {sequence}, received {received}")]
    Crop {
        /// The sequence.
        sequence: usize,
        /// Tokens it has.
        stored: usize,
        /// Tokens to drop.
        received: usize,
    },
    /// A key was refused.
    #[error("keys of sequence {sequence}, KV head {head}")]
    Keys {
        /// The sequence.
        sequence: usize,
        /// The KV head.
        head: usize,
        /// Why.
        #[source]
        source: IndexError,
    },
    /// A value is NaN or infinite.
    #[error(
        "values of sequence {sequence}, KV head {head}: non-finite element in new token {token}, column {column}"
    )]
    NonFiniteValue {
        /// The sequence.
        sequence: usize,
        /// The KV head.
        head: usize,
        /// The row among the new tokens.
        token: usize,
        /// The column.
        column: usize,
    },
    /// A finite element of a value that the precision of the cache has no finite value for.
    #[error(
        "values of sequence {sequence}, KV head {head}: the element in new token {token}, column {column} is too large for {precision}"
    )]
    ValueOverflow {
        /// The sequence.
        sequence: usize,
        /// The KV head.
        head: usize,
        /// The row among the new tokens.
        token: usize,
        /// The column.
        column: usize,
        /// What values are stored in.
        precision: Precision,
    },
    /// A value vector is too long for sums of it to stay finite.
    #[error(
        "values of sequence {sequence}, KV head {head}: new token {token} has a norm of 2^63 or more"
    )]
    ValueMagnitude {
        /// The sequence.
        sequence: usize,
        /// The KV head.
        head: usize,
        /// The row among the new tokens.
        token: usize,
    },
    /// The configuration of the index was refused.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The budget would be exceeded, or the policy was refused.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A value of the configuration is impossible.
    #[error("{key}: {requirement}, received {received}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is required of it.
        requirement: &'static str,
        /// What came.
        received: usize,
    },
    /// The layer is held by a device: what was asked for works on keys and values in main memory.
    #[error(
        "the layer is held by a device: expected one in main memory (memory_policy = \"all_host\")"
    )]
    OnDevice,
    /// Exact keys and values of a device layer could not be moved.
    #[error(transparent)]
    Rows(#[from] RowsNotMoved),
    /// The device engine refused.
    #[cfg(feature = "burn")]
    #[error(transparent)]
    Device(#[from] hira_index::burn::DeviceEngineError),
    /// A tensor could not be read on the host.
    #[cfg(feature = "burn")]
    #[error(transparent)]
    Host(#[from] hira_index::burn::HostAccessError),
    /// A tensor has the wrong shape.
    #[cfg(feature = "burn")]
    #[error("{what}: expected shape {expected:?}, received {received:?}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// `[sequences, kv_heads, tokens, dim]`.
        expected: [usize; 4],
        /// What came.
        received: [usize; 4],
    },
}
