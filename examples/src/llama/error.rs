use hira_attention::{AttentionError, ConfigError};
use hira_index::burn::HostAccessError;

use crate::element::ElementError;
use crate::weights::WeightError;

/// Why a model could not be loaded, patched or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlamaError {
    /// A weight could not be read, or has another shape than the configuration implies.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The configuration describes no model that can run.
    #[error("{key}: {requirement}, received {received}")]
    Config {
        /// The configuration's key.
        key: &'static str,
        /// What is required of it.
        requirement: &'static str,
        /// What came.
        received: usize,
    },
    /// There were no tokens to process.
    #[error("no tokens to process")]
    NoTokens,
    /// A token is not in the vocabulary.
    #[error("token {id} at index {index} is outside the vocabulary of {vocab_size}")]
    Token {
        /// Index in the given tokens.
        index: usize,
        /// The token.
        id: u32,
        /// Number of tokens in the vocabulary.
        vocab_size: usize,
    },
    /// More tokens than the cache or the model's positions can hold.
    #[error("{requested} positions exceed the limit of {limit}")]
    Positions {
        /// Positions that would be in use.
        requested: usize,
        /// The most that are possible.
        limit: usize,
    },
    /// The cache was made for a model of another shape.
    #[error("the cache has {received} {what}, the model has {expected}")]
    Cache {
        /// Which dimension of the cache.
        what: &'static str,
        /// What the model has.
        expected: usize,
        /// What the cache has.
        received: usize,
    },
    /// The device does not compute with the element type.
    #[error(transparent)]
    Element(#[from] ElementError),
    /// Half-precision weights were asked for on another backend than Flex.
    #[error("half-precision weights need the flex device")]
    HalfPrecision,
    /// The logits are not numbers: in half precision, an activation was beyond 65,504.
    #[error("the logits are not numbers: an activation overflowed")]
    NotFinite,
    /// Attention refused its configuration, a key, a value or a query.
    #[error(transparent)]
    Attention(#[from] AttentionError),
    /// Logits could not be read on the host.
    #[error(transparent)]
    Host(#[from] HostAccessError),
}

impl From<ConfigError> for LlamaError {
    fn from(error: ConfigError) -> Self {
        Self::Attention(error.into())
    }
}
