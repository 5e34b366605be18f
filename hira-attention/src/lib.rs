//! Exact, certified sparse attention for Burn.
//!
//! [`HiraAttention`] is the attention of a decoder layer: it appends the new keys and values to a [`HiraCache`], finds
//! for each query every key that its [`ThresholdRule`](hira_threshold::ThresholdRule) selects (exactly, by certified
//! search), attends to those keys only, and reports a *proven* bound on what was left out. Where sparse cannot pay it
//! goes dense, through the same call.
//!
//! # Five lines in your own model
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! # use burn::tensor::{Distribution, Tensor};
//! use hira_attention::{CacheShape, HiraAttentionConfig};
//! # type B = burn_flex::Flex;
//! # let device = Default::default();
//! # let (layers, kv_heads, heads, head_dim, max_len, layer) = (1, 2, 4, 16, 128, 0);
//! # let q = Tensor::<B, 4>::random([1, heads, 1, head_dim], Distribution::Default, &device);
//! # let k = Tensor::<B, 4>::random([1, kv_heads, 1, head_dim], Distribution::Default, &device);
//! # let v = k.clone();
//!
//! let config = HiraAttentionConfig::new().with_top_k(256);
//! let attention = config.init::<B>(&device)?;
//! let mut cache = config.init_cache(CacheShape { layers, sequences: 1, kv_heads, head_dim, value_dim: head_dim, max_len })?;
//! // in every layer, after RoPE: q [B, Hq, L, D], k and v [B, Hkv, L, D]
//! let (out, report) = attention.try_forward(q, k, v, &mut cache, layer)?;
//! assert!(report.dropped_mass_bound() <= 1.0);
//! # assert_eq!(out.dims(), [1, heads, 1, head_dim]);
//! # }
//! # Ok::<(), hira_attention::AttentionError>(())
//! ```
//!
//! # Without Burn
//!
//! [`HostAttention`] is the same engine on slices (`default-features = false`).
//!
//! # What is certified
//!
//! `dropped_mass_bound` is at least the softmax mass of the keys that were not attended to, and `output_error_bound` at
//! least the Euclidean distance of the output from dense attention in exact arithmetic, rounding included: see
//! [`Certificate`]. Both are about the keys and values as the cache stores them: what rounding them to f16 or bf16 did
//! ([`HiraAttentionConfig::precision`]) is no part of it.

mod certificate;
mod choice;
mod compensation;
mod config;
mod decode;
mod dense;
mod engine;
mod error;
mod histogram;
mod merge;
mod metrics;
mod partial;
mod planner;
mod prefill;
mod promise;
mod report;
mod rows;
mod scratch;
mod sparse;
mod sums;
mod validate;
mod values;

#[cfg(feature = "burn")]
mod module;
#[cfg(feature = "burn")]
mod on_device;
#[cfg(feature = "burn")]
mod pending;
#[cfg(feature = "burn")]
mod prompt;

pub mod device;

pub use certificate::Certificate;
pub use choice::{CacheShape, PlanPolicy, ThresholdStrategy, WindowLayers};
pub use config::HiraAttentionConfig;
pub use engine::HostAttention;
pub use error::{AttentionError, ConfigError};
pub use merge::PartialAttention;
pub use metrics::Metrics;
pub use partial::PartKeys;
pub use report::{AttentionReport, BytesRead, HeadPlan, HeadReport, PhaseTimes};
pub use sums::PartialSums;

#[cfg(feature = "burn")]
pub use hira_index::burn::HiraBackend;
#[cfg(feature = "burn")]
pub use module::{AttentionProcessor, HiraAttention};

pub use hira_cache::HiraCache;
pub use hira_kernels::Precision;

/// Compiles the Rust code of the project's README.
#[cfg(all(doctest, feature = "burn"))]
#[doc = include_str!("../../README.md")]
struct Readme;
