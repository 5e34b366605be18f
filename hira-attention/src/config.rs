//! The configuration of attention: what to select, how to index, when to go dense.

use std::path::{Path, PathBuf};

use hira_cache::{CacheConfig, HiraCache};
use hira_index::{BuilderConfig, IndexConfig, ProductConfig, SampleConfig, UpdateConfig};
use hira_kernels::{Kernel, Precision};
use hira_memory::{Budget, MemoryPolicy};
use hira_search::PlanChoice;
use hira_threshold::ThresholdRule;
use serde::{Deserialize, Serialize};

use crate::choice::{CacheShape, KernelName, PlanPolicy, ThresholdStrategy, WindowLayers};
use crate::{AttentionError, ConfigError, HostAttention};

/// Configuration of [`HiraAttention`](crate::HiraAttention) and of the cache it works on.
///
/// Reads from TOML, JSON and YAML; keys that are left out have their defaults, unknown keys are errors.
///
/// ```
/// use hira_attention::HiraAttentionConfig;
///
/// let config = HiraAttentionConfig::from_toml("threshold_strategy = \"percentile\"\npercentile = 2.5")?;
/// assert_eq!(config.top_k, 256);
/// let error = HiraAttentionConfig::from_toml("topk = 64").unwrap_err();
/// assert!(std::error::Error::source(&error).unwrap().to_string().contains("topk"));
/// # Ok::<(), hira_attention::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HiraAttentionConfig {
    /// Levels of the index, the sketch included: 0 stores no sketch (every plan is dense), 1 the sketch only, `n` puts
    /// `n - 1` coarse levels above it. Default 3.
    pub num_levels: usize,
    /// Children of a cluster. Default 32.
    pub branching_factor: usize,
    /// Which keys a query attends to. Default `"top_k"`. The strategies from `"adaptive"` on set a threshold from the scores of
    /// sampled keys, once a query; what each can and cannot promise is said at [`ThresholdRule`].
    pub threshold_strategy: ThresholdStrategy,
    /// Keys per query for `"top_k"`, and to aim at for `"sample_top_k"`. Default 256.
    pub top_k: usize,
    /// Percent of the visible keys for `"percentile"`, in `(0, 100]`. Default 2.
    pub percentile: f32,
    /// The score (`q . k`, unscaled) to reach for `"fixed"`; `-inf` selects every key.
    #[serde(with = "score_form")]
    pub threshold: Option<f32>,
    /// The share of the softmax mass that the selected keys must hold for `"mass"`, in `(0, 1]`: 0.99 drops at most 1 %, proven for every
    /// query, and the planner goes dense where a head is too flat for it to pay. Default 0.99.
    pub mass: f32,
    /// Standard deviations above the mean for `"adaptive"`, finite. Default 2.
    pub adaptive_c: f32,
    /// Where the threshold lies for `"sample_mean_max"`: 0 is the mean of the sample, 1 its largest score. Default 0.5.
    pub sample_weight: f32,
    /// Percent of the visible keys to aim at for `"budget"`, in `(0, 100]`. Default 2.
    pub budget_percent: f32,
    /// Keys that the cache samples, for the strategies that look at a sample, 0 to 65536. Those need at least 1. Default 256.
    pub sample_size: usize,
    /// Seed of the choice of sampled keys. Default 0.
    pub sample_seed: u64,
    /// At most this many keys per query, the best by score. Default: no limit.
    pub max_candidates: Option<usize>,
    /// What divides the keys of a segment into clusters: `"k_means"`, `"randomized"`, `"kd_tree"` or `"chunk"`, or one with settings, as
    /// `{ k_means = { start = "random", max_iterations = 10, nredo = 2, spherical = true, seed = 1 } }`. Default `"k_means"`.
    pub builder: BuilderConfig,
    /// How the coarse levels follow appended keys: `"seal"`, `"rebuild"`, `"incremental"` or `"dynamic"`, or one with settings, as
    /// `{ rebuild = { trigger = { growth = { ratio = 0.2 } } } }`. Default `"seal"`: a segment gets its levels when it is full.
    pub update_strategy: UpdateConfig,
    /// Whether segments are built and merged on another thread while they are searched as they are. Default false.
    pub background_builds: bool,
    /// Product codes beside the sketch of every sealed segment of at least `min_coarse_len` keys, as `{ subvectors = 8, bits = 4 }`: a
    /// coarser first pass for keys that lie in clusters. Default: none.
    pub product: Option<ProductConfig>,
    /// What keys and values are stored in: `"f32"`, `"f16"` or `"bf16"`. They are rounded once, when they are stored, and from then on
    /// the stored ones are the keys and values: what is selected, and what certificates bound, is attention over them. 16 bits halve the
    /// bytes of both, in memory and of a step; `"f16"` is finer and ends at 65504, `"bf16"` has the range of f32. Default `"f32"`.
    pub precision: Precision,
    /// On which tier each part of the cache should lie. Default `"all_device"`.
    pub memory_policy: MemoryPolicy,
    /// A hard limit on the bytes of the cache, on all tiers together. Default: no limit.
    pub memory_budget: Option<usize>,
    /// A hard limit on the bytes of keys, values and sketches in the memory of a device (CUDA, wgpu); what a call needs for its time comes on top.
    /// `"adaptive"` aims at its share of this, and of the memory that a CUDA driver says there is. Default: no limit.
    pub device_budget: Option<usize>,
    /// A hard limit on the bytes of exact keys and values in main memory; sketches, levels and means of values come on top. What does not fit goes to
    /// `disk_path`, or is refused if there is none. At least a segment of every head has to fit: with many layers choose a shorter
    /// `segment_len`. Default: no limit.
    pub host_budget: Option<usize>,
    /// An existing folder where a file without a name takes exact keys and values that main memory has no room for, or that `memory_policy` wants
    /// there (`"hybrid"`: all complete segments but those of sinks and window). Linux only. Default: none, everything stays in memory.
    pub disk_path: Option<PathBuf>,
    /// A hard limit on the bytes of that file; needs `disk_path`. Default: no limit.
    pub disk_budget: Option<usize>,
    /// The first keys, always attended to. Default 4.
    pub sink_tokens: usize,
    /// The most recent keys, always attended to. Default 64.
    pub recent_window: usize,
    /// How many of the last keys a query of a windowed layer sees, its own included, at least 1: the query at position `p` sees
    /// `p + 1 - sliding_window ..= p`. What lies before is masked, sinks included, and is forgotten by the cache. Default: no layer has a window.
    pub sliding_window: Option<usize>,
    /// Which layers have the window: `"all"`, `{ except_every = 6 }` (five of six: layers 5, 11 and so on see all keys), or a list,
    /// `{ layers = [0, 2] }`. Default `"all"`.
    pub window_layers: WindowLayers,
    /// Tokens that can be taken back from the cache (`truncate`) in spite of what windowed layers forget: they keep so many keys more. Default 0.
    pub evict_slack: usize,
    /// Whether the mean values of blocks of positions stand in for the keys that a sparse step leaves out, weighed by what the search proves of
    /// each block. The certificate is that of the answer with them. Default true.
    pub tail_compensation: bool,
    /// Positions of such a block, a multiple of 16 up to 1024. Costs `(2 Dv + 8) / tail_block` bytes a key in memory, and time with the
    /// number of blocks. Default 128.
    pub tail_block: usize,
    /// Below this many visible keys the planner goes dense, and keys wait for their sketch. Default 1024.
    pub min_sparse_len: usize,
    /// A KV head whose rule keeps leaving out more than this softmax mass (the proven bound, mean over its group and recent steps) is
    /// flat: the planner answers it densely, and tries again every 64 positions. 1 turns that off. Default 0.5.
    pub max_dropped_mass: f32,
    /// The Euclidean error that a head's output may have, absolute and above 0: an answer whose proven bound is larger is searched again by softmax mass, with
    /// the share that the bound asks for, at most twice, and then answered densely. A head is remembered by what held its error. Rounding is part of
    /// the bound, so that an error below that of dense attention in f32 cannot be had: its answers are dense. Default: no limit.
    pub max_error: Option<f32>,
    /// Whether reports say how long each phase of a call took. Looks at the clock a few times for every KV head. Default false; on while `tracing` events of
    /// level debug are recorded.
    pub measure_time: bool,
    /// Whether a prefill (a call with more than `max_decode_tokens` new tokens) is sparse too. Default false.
    pub use_hira_during_prefill: bool,
    /// Calls with at most this many new tokens are decode steps. Default 16.
    pub max_decode_tokens: usize,
    /// Who decides between dense and sparse. Default `"auto"`.
    pub plan: PlanPolicy,
    /// How a sparse step searches: `"auto"`, or a plan for all as `{ force = "sketch_scan" }` (`dense`, `tree`, `product`). Default `"auto"`.
    pub search_plan: PlanChoice,
    /// What scores are multiplied by before the softmax. Default `1 / sqrt(D)`.
    pub scale: Option<f32>,
    /// Keys of a sealed segment, a multiple of 16. Default 8192.
    pub segment_len: usize,
    /// Segments shorter than this get no coarse levels: on real attention keys a scan of the sketch is faster there.
    /// Default 32768.
    pub min_coarse_len: usize,
    /// The CPU kernel by name (`"scalar"`, `"avx2"`, `"avx512"`). Default: the best of this machine.
    pub kernel: Option<KernelName>,
}

impl Default for HiraAttentionConfig {
    fn default() -> Self {
        Self {
            num_levels: 3,
            branching_factor: 32,
            threshold_strategy: ThresholdStrategy::TopK,
            top_k: 256,
            percentile: 2.0,
            threshold: None,
            mass: 0.99,
            adaptive_c: 2.0,
            sample_weight: 0.5,
            budget_percent: 2.0,
            sample_size: SampleConfig::default().size,
            sample_seed: SampleConfig::default().seed,
            max_candidates: None,
            builder: BuilderConfig::default(),
            update_strategy: UpdateConfig::default(),
            background_builds: false,
            product: None,
            precision: Precision::F32,
            memory_policy: MemoryPolicy::default(),
            memory_budget: None,
            device_budget: None,
            host_budget: None,
            disk_path: None,
            disk_budget: None,
            sink_tokens: 4,
            recent_window: 64,
            sliding_window: None,
            window_layers: WindowLayers::All,
            evict_slack: 0,
            tail_compensation: true,
            tail_block: 128,
            min_sparse_len: 1024,
            max_dropped_mass: 0.5,
            max_error: None,
            measure_time: false,
            use_hira_during_prefill: false,
            max_decode_tokens: 16,
            plan: PlanPolicy::Auto,
            search_plan: PlanChoice::Auto,
            scale: None,
            segment_len: 8192,
            min_coarse_len: 32768,
            kernel: None,
        }
    }
}

impl HiraAttentionConfig {
    /// The defaults: the top 256 keys of each query, with 4 sinks and a window of 64.
    pub fn new() -> Self {
        Self::default()
    }

    /// Dense attention over the same kind of cache, without an index.
    pub fn dense() -> Self {
        Self {
            num_levels: 0,
            plan: PlanPolicy::Dense,
            ..Self::default()
        }
    }

    /// Selects the `top_k` keys of highest score.
    #[must_use]
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.threshold_strategy = ThresholdStrategy::TopK;
        self.top_k = top_k;
        self
    }

    /// Selects the top `percentile` percent of the visible keys by score.
    #[must_use]
    pub fn with_percentile(mut self, percentile: f32) -> Self {
        self.threshold_strategy = ThresholdStrategy::Percentile;
        self.percentile = percentile;
        self
    }

    /// Selects every key whose score (`q . k`, unscaled) reaches `threshold`.
    #[must_use]
    pub fn with_threshold(mut self, threshold: f32) -> Self {
        self.threshold_strategy = ThresholdStrategy::Fixed;
        self.threshold = Some(threshold);
        self
    }

    /// Selects the keys of highest score that are proven to hold at least `mass` of the softmax mass.
    #[must_use]
    pub fn with_mass(mut self, mass: f32) -> Self {
        self.threshold_strategy = ThresholdStrategy::Mass;
        self.mass = mass;
        self
    }

    /// Selects by this rule: sets `threshold_strategy` and the key that belongs to it.
    ///
    /// ```
    /// use hira_attention::{HiraAttentionConfig, ThresholdStrategy};
    ///
    /// let config = HiraAttentionConfig::new().with_rule("budget=1.5".parse()?);
    /// assert_eq!(config.threshold_strategy, ThresholdStrategy::Budget);
    /// assert_eq!(config.budget_percent, 1.5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_rule(mut self, rule: ThresholdRule) -> Self {
        self.threshold_strategy = match rule {
            ThresholdRule::Fixed { tau } => {
                self.threshold = Some(tau);
                ThresholdStrategy::Fixed
            }
            ThresholdRule::TopK { k } => {
                self.top_k = k;
                ThresholdStrategy::TopK
            }
            ThresholdRule::Percentile { percent } => {
                self.percentile = percent;
                ThresholdStrategy::Percentile
            }
            ThresholdRule::Mass { mass } => {
                self.mass = mass;
                ThresholdStrategy::Mass
            }
            ThresholdRule::Adaptive { c } => {
                self.adaptive_c = c;
                ThresholdStrategy::Adaptive
            }
            ThresholdRule::SampleMax => ThresholdStrategy::SampleMax,
            ThresholdRule::SampleTopK { k } => {
                self.top_k = k;
                ThresholdStrategy::SampleTopK
            }
            ThresholdRule::SampleMeanMax { weight } => {
                self.sample_weight = weight;
                ThresholdStrategy::SampleMeanMax
            }
            ThresholdRule::SampleGap => ThresholdStrategy::SampleGap,
            ThresholdRule::Budget { percent } => {
                self.budget_percent = percent;
                ThresholdStrategy::Budget
            }
        };
        self
    }

    /// Sets the proven Euclidean error that a head's output may have.
    #[must_use]
    pub fn with_max_error(mut self, max_error: f32) -> Self {
        self.max_error = Some(max_error);
        self
    }

    /// Sets what scores are multiplied by before the softmax.
    #[must_use]
    pub fn with_scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Sets the numbers of first and of most recent keys that are always attended to.
    #[must_use]
    pub fn with_sinks_and_window(mut self, sink_tokens: usize, recent_window: usize) -> Self {
        self.sink_tokens = sink_tokens;
        self.recent_window = recent_window;
        self
    }

    /// Sets how many of the last keys the queries of these layers see.
    #[must_use]
    pub fn with_sliding_window(mut self, sliding_window: usize, layers: WindowLayers) -> Self {
        self.sliding_window = Some(sliding_window);
        self.window_layers = layers;
        self
    }

    /// How many of the last keys the queries of `layer` see; `None` if they see all.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window
            .filter(|_| self.window_layers.contains(layer))
    }

    /// Sets whether block means stand in for the keys that a sparse step leaves out.
    #[must_use]
    pub fn with_tail_compensation(mut self, tail_compensation: bool) -> Self {
        self.tail_compensation = tail_compensation;
        self
    }

    /// Sets what keys and values are stored in.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Sets who decides between dense and sparse.
    #[must_use]
    pub fn with_plan(mut self, plan: PlanPolicy) -> Self {
        self.plan = plan;
        self
    }

    /// Sets on which tier each part of the cache should lie.
    #[must_use]
    pub fn with_memory_policy(mut self, policy: MemoryPolicy) -> Self {
        self.memory_policy = policy;
        self
    }

    /// Sets a hard limit on the bytes of the cache in the memory of a device.
    #[must_use]
    pub fn with_device_budget(mut self, bytes: usize) -> Self {
        self.device_budget = Some(bytes);
        self
    }

    /// Sets a hard limit on the bytes of exact keys and values in main memory.
    #[must_use]
    pub fn with_host_budget(mut self, bytes: usize) -> Self {
        self.host_budget = Some(bytes);
        self
    }

    /// Sets the folder for rows that main memory has no room for.
    #[must_use]
    pub fn with_disk_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.disk_path = Some(path.into());
        self
    }

    /// Reads a TOML text.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        toml::from_str::<Self>(text)?.validated()
    }

    /// Reads a JSON text. JSON has no infinity: write `"threshold": "-inf"`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        serde_json::from_str::<Self>(text)?.validated()
    }

    /// Reads a YAML text.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        serde_norway::from_str::<Self>(text)?.validated()
    }

    /// Reads a file whose extension says its format: `toml`, `json`, `yaml` or `yml`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key, or the file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let read = match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Self::from_toml,
            Some("json") => Self::from_json,
            Some("yaml" | "yml") => Self::from_yaml,
            _ => {
                return Err(ConfigError::Format {
                    path: path.to_path_buf(),
                });
            }
        };
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        read(&text)
    }

    fn validated(self) -> Result<Self, ConfigError> {
        self.validate()?;
        Ok(self)
    }

    /// The rule that `threshold_strategy` and its key describe.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Missing`] if the strategy is `"fixed"` and there is no `threshold`.
    pub fn rule(&self) -> Result<ThresholdRule, ConfigError> {
        match self.threshold_strategy {
            ThresholdStrategy::TopK => Ok(ThresholdRule::TopK { k: self.top_k }),
            ThresholdStrategy::Percentile => Ok(ThresholdRule::Percentile {
                percent: self.percentile,
            }),
            ThresholdStrategy::Fixed => match self.threshold {
                Some(tau) => Ok(ThresholdRule::Fixed { tau }),
                None => Err(ConfigError::Missing {
                    key: "threshold",
                    strategy: "fixed",
                }),
            },
            ThresholdStrategy::Mass => Ok(ThresholdRule::Mass { mass: self.mass }),
            ThresholdStrategy::Adaptive => Ok(ThresholdRule::Adaptive { c: self.adaptive_c }),
            ThresholdStrategy::SampleMax => Ok(ThresholdRule::SampleMax),
            ThresholdStrategy::SampleTopK => Ok(ThresholdRule::SampleTopK { k: self.top_k }),
            ThresholdStrategy::SampleMeanMax => Ok(ThresholdRule::SampleMeanMax {
                weight: self.sample_weight,
            }),
            ThresholdStrategy::SampleGap => Ok(ThresholdRule::SampleGap),
            ThresholdStrategy::Budget => Ok(ThresholdRule::Budget {
                percent: self.budget_percent,
            }),
        }
    }

    /// The CPU kernel.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Kernel`] if this machine cannot run the kernel that `kernel` names.
    pub fn kernel(&self) -> Result<Kernel, ConfigError> {
        let name = match self.kernel {
            None => return Ok(Kernel::best()),
            Some(KernelName::Scalar) => "scalar",
            Some(KernelName::Avx2) => "avx2",
            Some(KernelName::Avx512) => "avx512",
        };
        Kernel::from_name(name).map_err(ConfigError::Kernel)
    }

    /// Positions of a block whose mean value stands in for what is left out; 0 where none does.
    pub(crate) fn compensated_block(&self) -> usize {
        if self.tail_compensation && self.num_levels > 0 {
            self.tail_block
        } else {
            0
        }
    }

    /// The window of each layer; none if no layer has one.
    fn windows(&self, layers: usize) -> Vec<Option<usize>> {
        match self.sliding_window {
            Some(_) => (0..layers).map(|layer| self.window_of(layer)).collect(),
            None => Vec::new(),
        }
    }

    /// The engine on slices.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key.
    pub fn init_host(&self) -> Result<HostAttention, ConfigError> {
        HostAttention::new(self.clone())
    }

    /// Keys of a head from which on they are sketched: before that no plan reads a sketch.
    fn sketch_from(&self) -> usize {
        match self.plan {
            PlanPolicy::Auto => self.min_sparse_len,
            PlanPolicy::Sparse => 0,
            PlanPolicy::Dense => usize::MAX,
        }
    }

    /// An empty cache that fits this configuration.
    ///
    /// # Errors
    ///
    /// [`AttentionError`] that names the key of an impossible value.
    pub fn init_cache(&self, shape: CacheShape) -> Result<HiraCache, AttentionError> {
        self.validate()?;
        let budget = self
            .memory_budget
            .map_or(Budget::unlimited(), Budget::limited);
        let mut config = CacheConfig::new(
            shape.layers,
            shape.sequences,
            shape.kv_heads,
            shape.head_dim,
            shape.max_len,
        )
        .with_value_dim(shape.value_dim)
        .with_tail_block(self.compensated_block())
        .with_windows(self.windows(shape.layers))
        .with_evict_slack(self.evict_slack)
        .with_budget(budget)
        .with_memory_policy(self.memory_policy)
        .with_index(
            IndexConfig::new(shape.head_dim)
                .with_num_levels(self.num_levels)
                .with_branching_factor(self.branching_factor)
                .with_segment_len(self.segment_len)
                .with_sketch_from(self.sketch_from())
                .with_min_coarse_len(self.min_coarse_len)
                .with_builder(self.builder)
                .with_update(self.update_strategy)
                .with_background(self.background_builds)
                .with_product(self.product)
                .with_precision(self.precision)
                .with_sample(SampleConfig {
                    size: self.sample_size,
                    seed: self.sample_seed,
                }),
        );
        let limit = |bytes: Option<usize>| bytes.map_or(Budget::unlimited(), Budget::limited);
        config.device_budget = limit(self.device_budget);
        config.host_budget = limit(self.host_budget);
        config.disk_path = self.disk_path.clone();
        config.disk_budget = limit(self.disk_budget);
        config.pinned = (self.sink_tokens, self.recent_window);
        config.kernel = self.kernel()?;
        Ok(HiraCache::new(config)?)
    }
}

/// A score that may be infinite, in formats that have no infinity: a number, or the text of one.
mod score_form {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(f32),
        Text(String),
    }

    pub(super) fn serialize<S: Serializer>(
        score: &Option<f32>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match score {
            None => serializer.serialize_none(),
            Some(score) if score.is_finite() => serializer.serialize_some(score),
            Some(score) => serializer.serialize_some(&score.to_string()),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f32>, D::Error> {
        match Option::<Form>::deserialize(deserializer)? {
            None => Ok(None),
            Some(Form::Number(score)) => Ok(Some(score)),
            Some(Form::Text(text)) => text.parse().map(Some).map_err(|_| {
                de::Error::invalid_value(de::Unexpected::Str(&text), &"a number or \"-inf\"")
            }),
        }
    }
}
