//! What attention refuses, and why. After any error the cache holds what it held before.

use hira_cache::CacheError;
use hira_index::IndexError;
use hira_kernels::KernelError;
use hira_memory::MemoryError;
use hira_search::SearchError;
use hira_threshold::ThresholdError;

/// Errors of a configuration: each names its key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is impossible.
    #[error("{key}: {requirement}, received {received}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is required of it.
        requirement: &'static str,
        /// What came.
        received: f64,
    },
    /// A key that the chosen strategy needs is missing.
    #[error("{key}: required when threshold_strategy is \"{strategy}\"")]
    Missing {
        /// The key.
        key: &'static str,
        /// The strategy that needs it.
        strategy: &'static str,
    },
    /// The kernel does not exist or does not run on this machine.
    #[error("kernel")]
    Kernel(#[source] KernelError),
    /// The builder or the update strategy is impossible.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The memory policy is impossible.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The threshold rule is impossible.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    /// The search is impossible.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The text is not TOML, or has an unknown key or a value of a wrong type.
    #[error("configuration (TOML)")]
    Toml(#[from] toml::de::Error),
    /// The text is not JSON, or has an unknown key or a value of a wrong type.
    #[error("configuration (JSON)")]
    Json(#[from] serde_json::Error),
    /// The text is not YAML, or has an unknown key or a value of a wrong type.
    #[error("configuration (YAML)")]
    Yaml(#[from] serde_norway::Error),
    /// The file cannot be read.
    #[error("configuration file {path}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file's extension names no known format.
    #[error("configuration file {path}: expected the extension toml, json, yaml or yml")]
    Format {
        /// The file.
        path: std::path::PathBuf,
    },
}

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionError {
    /// The configuration is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cache refused the new keys or values.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The search refused the query.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The query heads cannot be spread over the KV heads.
    #[error("expected a multiple of {kv_heads} query heads, received {heads}")]
    Heads {
        /// KV heads of the cache.
        kv_heads: usize,
        /// Query heads that came.
        heads: usize,
    },
    /// A slice does not hold the number of elements that its shape asks for.
    #[error("{what}: expected {expected} elements, received {received}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements that the shape asks for.
        expected: usize,
        /// Elements that came.
        received: usize,
    },
    /// A part of the stored keys is not one.
    #[error("expected positions within 0..{stored}, received {start}..{end}")]
    Positions {
        /// The first position of the part.
        start: usize,
        /// The position after its last.
        end: usize,
        /// Keys that are stored.
        stored: usize,
    },
    /// A query holds NaN or an infinity.
    #[error(
        "queries of sequence {sequence}, head {head}: non-finite element in new token {token}, column {column}"
    )]
    NonFiniteQuery {
        /// The sequence.
        sequence: usize,
        /// The query head.
        head: usize,
        /// The row among the new tokens.
        token: usize,
        /// The column.
        column: usize,
    },
    /// A query is too long for scores to stay finite.
    #[error(
        "queries of sequence {sequence}, head {head}: new token {token} has a norm of 2^63 or more"
    )]
    QueryMagnitude {
        /// The sequence.
        sequence: usize,
        /// The query head.
        head: usize,
        /// The row among the new tokens.
        token: usize,
    },
    /// A tensor has the wrong shape.
    #[error("{what}: expected shape {expected:?}, received {received:?}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// The shape that the cache and the other tensors ask for.
        expected: [usize; 4],
        /// What came.
        received: [usize; 4],
    },
    /// The device engine refused, or found what it could not tell before: see [`AttentionReport::fetch`](crate::AttentionReport::fetch).
    #[cfg(feature = "burn")]
    #[error(transparent)]
    Device(#[from] hira_index::burn::DeviceEngineError),
    /// The device engine does not do what a key of the configuration asks for.
    #[error(
        "{key}: {received} is not supported by the device engine: memory_policy = \"all_host\" runs the host engine on this device"
    )]
    DeviceSetting {
        /// The key.
        key: &'static str,
        /// What it asks for.
        received: &'static str,
    },
    /// A tensor could not be read on the host.
    #[cfg(feature = "burn")]
    #[error(transparent)]
    Host(#[from] hira_index::burn::HostAccessError),
}
