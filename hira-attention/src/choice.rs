//! What the values of the configuration can be: rules, plans, kernels; and the shape of a cache.

use serde::{Deserialize, Serialize};

/// Which keys a query attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ThresholdStrategy {
    /// The `top_k` keys of highest score.
    #[default]
    TopK,
    /// The top `percentile` percent of the visible keys by score.
    Percentile,
    /// Every key whose score reaches `threshold`.
    Fixed,
    /// The keys of highest score that are proven to hold `mass` of the softmax mass.
    Mass,
    /// Every key whose score reaches `mean + adaptive_c * std` of the sampled scores.
    Adaptive,
    /// Every key whose score reaches the largest of the sampled ones.
    SampleMax,
    /// About `top_k` keys: those that reach the sampled score of the corresponding rank.
    SampleTopK,
    /// Every key whose score reaches `mean + sample_weight * (max - mean)` of the sampled scores.
    SampleMeanMax,
    /// Every key above the widest gap in the upper half of the sampled scores.
    SampleGap,
    /// About `budget_percent` percent of the visible keys: those that reach that quantile of the sampled scores.
    Budget,
}

/// Which layers of a decoder have its sliding window.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WindowLayers {
    /// Every layer, as in Mistral.
    #[default]
    All,
    /// All but every so-many-th layer, at least 1: 6 for five local layers and a global one, as in Gemma 3.
    ExceptEvery(usize),
    /// These layers, counted from 0.
    Layers(Vec<usize>),
}

impl WindowLayers {
    /// Whether `layer` has the window.
    pub fn contains(&self, layer: usize) -> bool {
        match self {
            Self::All => true,
            Self::ExceptEvery(every) => !(layer + 1).is_multiple_of(*every),
            Self::Layers(layers) => layers.contains(&layer),
        }
    }
}

/// Who decides between the dense and the sparse plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PlanPolicy {
    /// The planner, head by head, by its cost model.
    #[default]
    Auto,
    /// Always dense.
    Dense,
    /// Always sparse, whatever it costs.
    Sparse,
}

/// Shape of a cache: see [`init_cache`](crate::HiraAttentionConfig::init_cache).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Decoder layers.
    pub layers: usize,
    /// Sequences that are decoded together (`B`).
    pub sequences: usize,
    /// Key/value heads of a layer (`Hkv`).
    pub kv_heads: usize,
    /// Dimension of a key (`D`).
    pub head_dim: usize,
    /// Dimension of a value (`Dv`).
    pub value_dim: usize,
    /// Positions of a sequence.
    pub max_len: usize,
}

/// A CPU kernel by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KernelName {
    /// Portable code.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 with VNNI.
    Avx512,
}
