//! The cache of a whole decoder.

use hira_kernels::tile_lines;
use hira_memory::{MemoryReport, Tier};

use crate::{BlockMeans, CacheConfig, CacheError, HeadCache, LayerCache};

/// Keys, values and key indexes of every layer, sequence and KV head.
///
/// # Shapes
///
/// Layer `l` takes keys `[B, Hkv, L, D]` and values `[B, Hkv, L, Dv]` and keeps, for each of the `B * Hkv` heads, one
/// [`HeadCache`](crate::HeadCache).
#[derive(Debug, Clone)]
pub struct HiraCache {
    config: CacheConfig,
    layers: Vec<LayerCache>,
}

/// What a cache holds, at a glance.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CacheInfo {
    /// Decoder layers.
    pub layers: usize,
    /// Sequences (`B`).
    pub sequences: usize,
    /// KV heads (`Hkv`).
    pub kv_heads: usize,
    /// Dimension of a key.
    pub head_dim: usize,
    /// Dimension of a value.
    pub value_dim: usize,
    /// Tokens stored in every layer.
    pub seq_len: usize,
    /// Positions of a sequence.
    pub max_len: usize,
    /// Levels of an index, the sketch included.
    pub num_levels: usize,
    /// Bytes, by part and tier.
    pub memory: MemoryReport,
}

impl HiraCache {
    /// An empty cache.
    ///
    /// # Errors
    ///
    /// [`CacheError`] that names the key of an impossible value.
    pub fn new(config: CacheConfig) -> Result<Self, CacheError> {
        config.validate()?;
        let layers = (0..config.layers).map(|_| LayerCache::new(&config));
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// Tokens stored in `layer`; 0 if there is no such layer.
    pub fn seq_len(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, LayerCache::len)
    }

    /// Tokens that every layer holds.
    pub fn len(&self) -> usize {
        self.layers.iter().map(LayerCache::len).min().unwrap_or(0)
    }

    /// Whether some layer holds no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A layer.
    ///
    /// # Errors
    ///
    /// [`CacheError::Layer`] if there is no such layer.
    pub fn layer(&self, layer: usize) -> Result<&LayerCache, CacheError> {
        self.layers.get(layer).ok_or(CacheError::Layer {
            layers: self.layers.len(),
            received: layer,
        })
    }

    /// A layer, for the planner's records; append through [`HiraCache::append`], which minds the budget.
    ///
    /// # Errors
    ///
    /// [`CacheError::Layer`] if there is no such layer.
    pub fn layer_mut(&mut self, layer: usize) -> Result<&mut LayerCache, CacheError> {
        let layers = self.layers.len();
        self.layers.get_mut(layer).ok_or(CacheError::Layer {
            layers,
            received: layer,
        })
    }

    /// Appends new tokens to one layer, all of them or nothing.
    ///
    /// # Shapes
    ///
    /// `keys` `[B, Hkv, L, D]`, `values` `[B, Hkv, L, Dv]`, row-major; `L` follows from the length.
    ///
    /// # Errors
    ///
    /// [`CacheError`] for a missing layer, a wrong length, too many tokens, a non-finite or too large row, or a memory
    /// budget that would be exceeded. The cache is then unchanged.
    pub fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) -> Result<(), CacheError> {
        let layer_cache = self.layer(layer)?;
        // What the heads miss in the caches then comes while rows are checked, and for all heads at a time.
        for head in layer_cache.heads() {
            head.prefetch_end();
        }
        let tokens = layer_cache.check(keys, values)?;
        self.check_budget(tokens * self.bytes_per_token())?;
        self.layer_mut(layer)?.append_checked(tokens, keys, values)
    }

    /// Whether the budget leaves so many bytes.
    pub(crate) fn check_budget(&self, requested: usize) -> Result<(), CacheError> {
        if self.config.budget.limit().is_some() {
            self.config.budget.check(self.memory().total(), requested)?;
        }
        Ok(())
    }

    /// Bytes that one token adds to one layer: exact key and value, and its shares of a sketch tile and of a block's mean value.
    pub fn bytes_per_token(&self) -> usize {
        let exact =
            (self.config.head_dim + self.config.value_dim) * self.config.index.precision.bytes();
        let sketch = if self.config.index.num_levels == 0 {
            0
        } else {
            // a tile of 16 keys is `tile_lines` lines of 64 bytes, and one norm
            (tile_lines(self.config.head_dim) * 64 + size_of::<f32>()).div_ceil(16)
        };
        let means = BlockMeans::bytes_per_token(self.config.tail_block, self.config.value_dim);
        self.config.sequences * self.config.kv_heads * (exact + sketch + means)
    }

    /// Forgets the tokens from `len` on, in every layer; a cache that holds fewer is left as it is.
    ///
    /// Bounds stay valid: the norms that certificates use are those of every key and value since the last reset.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.truncate(len);
        }
    }

    /// Forgets everything; the configuration stays.
    pub fn reset(&mut self) {
        for layer in &mut self.layers {
            layer.reset();
        }
    }

    /// Bytes in use, by part and tier.
    pub fn memory(&self) -> MemoryReport {
        let mut report = MemoryReport::default();
        let capacity = self.config.budget.limit().unwrap_or(usize::MAX);
        let heads = || self.layers.iter().flat_map(|layer| layer.heads());
        let values = |head: &HeadCache| head.values().bytes() + head.means().bytes();
        let used = heads().map(|head| head.index().memory_usage().total() + values(head));
        let policy = self
            .config
            .memory_policy
            .under_pressure(used.sum(), capacity);
        for head in heads() {
            report.add_index(
                &head.index().memory_usage(),
                values(head),
                policy,
                &self.config.tiers,
            );
        }
        for store in self.layers.iter().filter_map(|layer| layer.device().get()) {
            report.add_device(&store.memory());
        }
        report
    }

    /// Shape, length and memory.
    pub fn info(&self) -> CacheInfo {
        CacheInfo {
            layers: self.config.layers,
            sequences: self.config.sequences,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            value_dim: self.config.value_dim,
            seq_len: self.len(),
            max_len: self.config.max_len,
            num_levels: self.config.index.num_levels,
            memory: self.memory(),
        }
    }
}

impl std::fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} of {} tokens, {} sequences, {} layers x {} KV heads, keys {} and values {} wide, {} levels",
            self.seq_len,
            self.max_len,
            self.sequences,
            self.layers,
            self.kv_heads,
            self.head_dim,
            self.value_dim,
            self.num_levels
        )?;
        write!(f, "{}", self.memory)?;
        let device = self.memory.on(Tier::Device);
        if device > 0 {
            write!(f, " ({device} on the device)")?;
        }
        Ok(())
    }
}
