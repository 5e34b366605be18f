//! The cache of a whole decoder.

use std::sync::Arc;

use hira_index::Counted;
use hira_kernels::tile_lines;
use hira_memory::{MemoryReport, Part, Placement, Tier, TierStatistics};

use crate::{
    BlockMeans, CacheConfig, CacheError, HeadCache, LayerCache, layer::check_sequences,
    residency::Residency,
};

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
    residency: Residency,
}

/// Why heads make no cache.
pub(crate) enum RestoreFault {
    Cache(CacheError),
    /// Those of a sequence are not equally long.
    Lengths {
        layer: usize,
    },
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
        let policy = Arc::new(config.memory_policy);
        Self::with_placement(config, policy)
    }

    /// An empty cache whose rows lie where `policy` says, instead of the [`memory_policy`](CacheConfig::memory_policy).
    ///
    /// # Errors
    ///
    /// As [`HiraCache::new`].
    pub fn with_placement(
        config: CacheConfig,
        policy: Arc<dyn Placement>,
    ) -> Result<Self, CacheError> {
        config.validate()?;
        let residency = Residency::new(&config, policy)?;
        let layers = (0..config.layers).map(|layer| LayerCache::new(&config, layer));
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            residency,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// Tokens of the longest sequence in `layer`, those that it has evicted included; 0 if there is no such layer.
    pub fn seq_len(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, LayerCache::len)
    }

    /// Tokens that every layer has.
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

    /// Refuses what needs the rows of every layer on the host.
    pub(crate) fn check_on_host(&self) -> Result<(), CacheError> {
        self.layers.iter().try_for_each(LayerCache::check_on_host)
    }

    /// The heads of all layers, in order.
    pub(crate) fn all_heads(&self) -> impl Iterator<Item = &HeadCache> {
        self.layers.iter().flat_map(LayerCache::heads)
    }

    /// The cache of `heads`, layer by layer, which are those of a cache of this configuration. What main memory has no room for goes down.
    pub(crate) fn restore(
        config: CacheConfig,
        heads: Vec<HeadCache>,
    ) -> Result<Self, RestoreFault> {
        let mut cache = Self::new(config).map_err(RestoreFault::Cache)?;
        let per_layer = cache.config.sequences * cache.config.kv_heads;
        let mut heads = heads.into_iter();
        for (i, layer) in cache.layers.iter_mut().enumerate() {
            if !layer.restore(heads.by_ref().take(per_layer).collect()) {
                return Err(RestoreFault::Lengths { layer: i });
            }
        }
        if cache.residency.is_active() {
            cache
                .layers
                .iter_mut()
                .for_each(LayerCache::move_to_regions);
            for layer in 0..cache.layers.len() {
                let room = cache.residency.make_room(&mut cache.layers, layer, 0);
                room.map_err(|error| RestoreFault::Cache(error.into()))?;
            }
        }
        Ok(cache)
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
    /// budget that would be exceeded. The cache is then unchanged, but that a layer with a window may have evicted what no later query sees.
    pub fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) -> Result<(), CacheError> {
        self.append_checking(layer, keys, values, None)
    }

    /// As [`HiraCache::append`] for sequences with different numbers of new tokens: the first `lens[b]` of the `L` rows of sequence `b`
    /// are new, the others are padding, which is neither read nor stored. So no sequence is ever padded in memory.
    ///
    /// # Errors
    ///
    /// As [`HiraCache::append`], and [`CacheError::NewTokens`] for a sequence that has more new tokens than rows came.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_cache::{CacheConfig, HiraCache};
    ///
    /// // 2 sequences, 1 KV head, dimension 1
    /// let mut cache = HiraCache::new(CacheConfig::new(1, 2, 1, 1, 100))?;
    /// let keys = [1.0, 2.0, 3.0, /* second sequence */ 4.0, f32::NAN, f32::NAN];
    /// cache.append_lens(0, &keys, &[0.0; 6], &[3, 1])?;
    /// assert_eq!(cache.layer(0)?.lens().collect::<Vec<_>>(), [3, 1]);
    /// # Ok::<(), hira_cache::CacheError>(())
    /// ```
    pub fn append_lens(
        &mut self,
        layer: usize,
        keys: &[f32],
        values: &[f32],
        lens: &[usize],
    ) -> Result<(), CacheError> {
        self.append_checking(layer, keys, values, Some(lens))
    }

    fn append_checking(
        &mut self,
        layer: usize,
        keys: &[f32],
        values: &[f32],
        lens: Option<&[usize]>,
    ) -> Result<(), CacheError> {
        let layer_cache = self.layer(layer)?;
        // What the heads miss in the caches then comes while rows are checked, and for all heads at a time.
        for head in layer_cache.heads() {
            head.prefetch_end();
        }
        let tokens = layer_cache.check_lens(keys, values, lens)?;
        if self.config.budget.limit().is_some() {
            // What the layer would forget anyway makes room.
            self.layer_mut(layer)?.evict();
            let sequences = self.config.sequences;
            let new = lens.map_or(tokens * sequences, |lens| lens.iter().sum());
            self.check_budget(new * (self.bytes_per_token() / sequences))?;
        }
        if self.residency.is_active() {
            return self.append_to_tiers(layer, tokens, keys, values, lens);
        }
        self.layer_mut(layer)?
            .append_checked(tokens, 0..tokens, keys, values, lens)
    }

    /// Appends checked rows piece by piece, none of which passes the end of a segment of any sequence, and makes room for each before.
    fn append_to_tiers(
        &mut self,
        layer: usize,
        tokens: usize,
        keys: &[f32],
        values: &[f32],
        lens: Option<&[usize]>,
    ) -> Result<(), CacheError> {
        self.residency.check(&self.layers, layer, tokens)?;
        let before: Vec<usize> = self.layers[layer].lens().collect();
        let mut done = 0;
        while done < tokens {
            let stored = self.layers[layer].lens();
            let pieces = stored.map(|len| self.residency.piece(len, tokens - done));
            let piece = pieces.min().unwrap_or(tokens - done);
            let room = self.residency.make_room(&mut self.layers, layer, piece);
            let stored = room.map_err(CacheError::from).and_then(|()| {
                self.layers[layer].append_checked(tokens, done..done + piece, keys, values, lens)
            });
            if let Err(error) = stored {
                for (sequence, len) in before.into_iter().enumerate() {
                    self.layers[layer].truncate_sequence(sequence, len)?;
                }
                return Err(error);
            }
            done += piece;
            self.residency.settle(&mut self.layers, layer, piece);
        }
        Ok(())
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
    ///
    /// # Errors
    ///
    /// [`CacheError::Evicted`] if a layer with a window has evicted keys that queries would see again; the cache is then unchanged. With
    /// [`CacheConfig::evict_slack`] as many tokens can always be taken back.
    pub fn truncate(&mut self, len: usize) -> Result<(), CacheError> {
        let sequences = 0..self.config.sequences;
        for layer in &self.layers {
            layer.check_cut(sequences.clone(), |_| len)?;
        }
        for layer in &mut self.layers {
            layer.truncate(len)?;
        }
        Ok(())
    }

    /// Drops what no later query sees from every layer with a window; see [`LayerCache::evict`].
    pub fn evict(&mut self) {
        self.layers.iter_mut().for_each(LayerCache::evict);
    }

    /// Forgets the tokens of one sequence from `len` on, in every layer.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sequence`] if there is no such sequence, [`CacheError::Evicted`] as for [`truncate`](Self::truncate); nothing is forgotten then.
    pub fn truncate_sequence(&mut self, sequence: usize, len: usize) -> Result<(), CacheError> {
        self.check_on_host()?;
        check_sequences(self.config.sequences, &[sequence])?;
        for layer in &self.layers {
            layer.check_cut(sequence..sequence + 1, |_| len)?;
        }
        let mut layers = self.layers.iter_mut();
        layers.try_for_each(|layer| layer.truncate_sequence(sequence, len))
    }

    /// Keeps the first `len` tokens of every sequence, or drops the last `-len` of each if it is negative (as `DynamicCache.crop` of Hugging
    /// Face Transformers does).
    ///
    /// # Errors
    ///
    /// [`CacheError::Crop`] if a sequence has fewer tokens than are to be dropped, [`CacheError::Evicted`] as for [`truncate`](Self::truncate); nothing is
    /// forgotten then.
    pub fn crop(&mut self, len: isize) -> Result<(), CacheError> {
        if len >= 0 {
            return self.truncate(len.unsigned_abs());
        }
        self.check_on_host()?;
        let received = len.unsigned_abs();
        for layer in &self.layers {
            let short = layer
                .lens()
                .enumerate()
                .find(|&(_, stored)| stored < received);
            if let Some((sequence, stored)) = short {
                return Err(CacheError::Crop {
                    sequence,
                    stored,
                    received,
                });
            }
        }
        for layer in &self.layers {
            layer.check_cut(0..self.config.sequences, |stored| stored - received)?;
        }
        for layer in &mut self.layers {
            for head in layer.heads_mut() {
                head.truncate(head.len() - received);
            }
        }
        Ok(())
    }

    /// A cache of the same tokens that shares the memory of all of them; what either side appends is its own.
    ///
    /// Unlike a clone, which copies up to a segment of each head when it goes on, a fork costs what it appends and little else: see
    /// [`HierarchicalIndex::fork`](hira_index::HierarchicalIndex::fork). No selection depends on it. What searches remember starts anew.
    ///
    /// # Complexity
    ///
    /// O(segments) a head.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_cache::{CacheConfig, HiraCache, memory_of};
    ///
    /// let mut prompt = HiraCache::new(CacheConfig::new(1, 1, 1, 8, 2000))?;
    /// prompt.append(0, &[0.5; 8 * 1000], &[0.5; 8 * 1000])?;
    /// let mut answer = prompt.fork();
    /// answer.append(0, &[1.0; 8], &[1.0; 8])?;
    /// assert_eq!((prompt.len(), answer.len()), (1000, 1001));
    /// assert!(memory_of([&prompt, &answer]).total() < prompt.memory().total() * 11 / 10);
    /// # Ok::<(), hira_cache::CacheError>(())
    /// ```
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self {
            layers: self.layers.iter_mut().map(LayerCache::fork).collect(),
            residency: self.residency.clone(),
            config: self.config.clone(),
        }
    }

    /// Makes sequence `i` what sequence `order[i]` was, for beam search. A sequence that is wanted several times is
    /// [forked](Self::fork), one that is wanted once is moved.
    ///
    /// # Errors
    ///
    /// [`CacheError::Length`] if there is not one index for each sequence, [`CacheError::Sequence`] for one that does not exist; nothing
    /// is moved then.
    pub fn reorder(&mut self, order: &[usize]) -> Result<(), CacheError> {
        let sequences = self.config.sequences;
        if order.len() != sequences {
            return Err(CacheError::Length {
                what: "order",
                expected: sequences,
                received: order.len(),
            });
        }
        self.check_on_host()?;
        check_sequences(sequences, order)?;
        if !order.iter().copied().eq(0..sequences) {
            self.layers
                .iter_mut()
                .for_each(|layer| layer.reorder(order));
        }
        Ok(())
    }

    /// A cache of forks of these sequences, in this order and as often as they are named: `select(&[0; 8])` decodes eight answers to one
    /// prompt.
    ///
    /// # Errors
    ///
    /// [`CacheError::Config`] if no sequence is named, [`CacheError::Sequence`] for one that does not exist.
    pub fn select(&mut self, sequences: &[usize]) -> Result<Self, CacheError> {
        self.check_on_host()?;
        check_sequences(self.config.sequences, sequences)?;
        let mut config = self.config.clone();
        config.sequences = sequences.len();
        config.validate()?;
        let layers = self.layers.iter_mut();
        Ok(Self {
            layers: layers.map(|layer| layer.select(sequences)).collect(),
            residency: self.residency.clone(),
            config,
        })
    }

    /// Forgets everything; the configuration stays.
    pub fn reset(&mut self) {
        for layer in &mut self.layers {
            layer.reset();
        }
    }

    /// Bytes in use, by part and by the tier on which they are. What is shared with other caches counts whole; see [`memory_of`].
    ///
    /// Rows on [`Tier::Disk`] are in a file, and in main memory only as far as the system caches it.
    pub fn memory(&self) -> MemoryReport {
        memory_of([self])
    }

    fn add_memory(&self, report: &mut MemoryReport, counted: &mut Counted) {
        let capacity = self.config.budget.limit().unwrap_or(usize::MAX);
        let heads = self.layers.iter().flat_map(|layer| layer.heads());
        let mut used = 0;
        let parts: Vec<_> = heads
            .map(|head| {
                let on_disk = |part| {
                    let rows = head.stored().filter(|(of, _, _)| *of == part);
                    let rows = rows.filter(|(_, _, rows)| rows.is_on_disk() && !counted.has(*rows));
                    rows.map(|(_, _, rows)| rows.bytes()).sum::<usize>()
                };
                let below = [on_disk(Part::Keys), on_disk(Part::Values)];
                let index = head.index().memory_usage_once(counted);
                let values = head.values().bytes_once(counted) + head.means().bytes_once(counted);
                used += index.total() + values;
                (index, values, below)
            })
            .collect();
        let policy = self.config.memory_policy.under_pressure(used, capacity);
        let place = |part| match policy {
            _ if self.residency.is_active() => self.residency.tier_of(part),
            policy => policy.place(part, &self.config.tiers),
        };
        for (index, values, below) in &parts {
            report.add_index(index, place);
            let rows = [(Part::Keys, index.keys), (Part::Values, *values)];
            for ((part, bytes), &below) in rows.into_iter().zip(below) {
                report.add(part, place(part), bytes - below);
                if below > 0 {
                    report.add(part, Tier::Disk, below);
                }
            }
        }
        for store in self.layers.iter().filter_map(|layer| layer.device().get()) {
            report.add_device(&store.memory());
        }
    }

    /// What was read from which tier, and what was moved between them.
    pub fn tier_statistics(&self) -> TierStatistics {
        self.residency.statistics(&self.layers)
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

/// Bytes that caches use together, by part and tier: what they share counts once.
pub fn memory_of<'a>(caches: impl IntoIterator<Item = &'a HiraCache>) -> MemoryReport {
    let (mut report, mut counted) = (MemoryReport::default(), Counted::default());
    for cache in caches {
        cache.add_memory(&mut report, &mut counted);
    }
    report
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
