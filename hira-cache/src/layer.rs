//! One decoder layer: its heads, sequence by sequence.

use std::ops::Range;

use hira_index::{DeviceSlot, IndexError};

use crate::window::LayerWindow;
use crate::{CacheConfig, CacheError, HeadCache, head::ValueFault};

/// Keys and values of one layer, `sequences * kv_heads` heads; those of a sequence are of the same length.
///
/// A layer whose tensors live on a device is held there by the device engine, and its heads here are empty: see [`LayerCache::device`].
#[derive(Debug, Clone)]
pub struct LayerCache {
    heads: Vec<HeadCache>,
    device: DeviceSlot,
    kv_heads: usize,
    head_dim: usize,
    value_dim: usize,
    max_len: usize,
    window: Option<LayerWindow>,
}

impl LayerCache {
    pub(crate) fn new(config: &CacheConfig, layer: usize) -> Result<Self, IndexError> {
        let count = config.sequences * config.kv_heads;
        let window = config.window(layer);
        let heads = (0..count).map(|_| HeadCache::new(config, window.map(|window| window.len)));
        Ok(Self {
            heads: heads.collect::<Result<_, _>>()?,
            device: DeviceSlot::default(),
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            value_dim: config.value_dim,
            max_len: config.max_len,
            window,
        })
    }

    /// Puts `heads`, which were saved, in the place of those of this layer; false if there are not as many, or those of a sequence are not equally long.
    #[must_use]
    pub(crate) fn restore(&mut self, heads: Vec<HeadCache>) -> bool {
        let mut sequences = heads.chunks(self.kv_heads);
        let same = sequences.all(|heads| heads.iter().all(|head| head.len() == heads[0].len()));
        let fits = same && heads.len() == self.heads.len();
        if fits {
            self.heads = heads;
        }
        fits
    }

    /// Tokens of the longest sequence, those that were evicted included.
    pub fn len(&self) -> usize {
        match self.device.get() {
            Some(store) => store.len(),
            None => self.lens().max().unwrap_or(0),
        }
    }

    /// Tokens that the host stores for each sequence.
    pub fn lens(&self) -> impl Iterator<Item = usize> {
        self.heads.iter().step_by(self.kv_heads).map(HeadCache::len)
    }

    /// What a device engine holds of the layer; empty where the host does.
    pub fn device(&self) -> &DeviceSlot {
        &self.device
    }

    /// The slot of the device engine.
    pub fn device_mut(&mut self) -> &mut DeviceSlot {
        &mut self.device
    }

    /// Refuses what only the host engine does to a layer that a device holds.
    ///
    /// # Errors
    ///
    /// [`CacheError::OnDevice`].
    pub fn check_on_host(&self) -> Result<(), CacheError> {
        if self.device.is_taken() {
            return Err(CacheError::OnDevice);
        }
        Ok(())
    }

    /// Whether no token is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of the last keys a query sees, its own included; `None` if it sees all.
    pub fn window(&self) -> Option<usize> {
        self.window.map(|window| window.len)
    }

    /// The position of the first token that every head stores: those before it were evicted, in a layer with a window.
    pub fn evicted(&self) -> usize {
        let first = self.heads.iter().map(HeadCache::evicted);
        first.max().unwrap_or(0)
    }

    /// Drops what no later query sees, in a layer with a window: whole segments before it.
    ///
    /// [`append`](Self::append) does that before it stores new tokens; call this after a long prompt to have its memory back at once.
    pub fn evict(&mut self) {
        if let Some(window) = self.window {
            for head in &mut self.heads {
                head.evict(window.first_kept(head.len()));
            }
        }
    }

    /// Sequences (`B`).
    pub fn sequences(&self) -> usize {
        self.heads.len() / self.kv_heads
    }

    /// KV heads of a sequence (`Hkv`).
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Dimension of a key (`D`).
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Dimension of a value (`Dv`).
    pub fn value_dim(&self) -> usize {
        self.value_dim
    }

    /// Positions of a sequence.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// The heads: `sequence * kv_heads + kv_head`.
    pub fn heads(&self) -> &[HeadCache] {
        &self.heads
    }

    /// The heads, for the planner's records.
    pub fn heads_mut(&mut self) -> &mut [HeadCache] {
        &mut self.heads
    }

    /// The number of new tokens in `keys` and `values`, if [`LayerCache::append`] would take them.
    ///
    /// # Errors
    ///
    /// As [`LayerCache::append`].
    pub fn check(&self, keys: &[f32], values: &[f32]) -> Result<usize, CacheError> {
        self.check_lens(keys, values, None)
    }

    /// The same for [`LayerCache::append_lens`], where `lens` says so.
    pub(crate) fn check_lens(
        &self,
        keys: &[f32],
        values: &[f32],
        lens: Option<&[usize]>,
    ) -> Result<usize, CacheError> {
        self.check_on_host()?;
        let multiple = self.heads.len() * self.head_dim;
        if !keys.len().is_multiple_of(multiple) {
            return Err(CacheError::PartialToken {
                multiple,
                received: keys.len(),
            });
        }
        let tokens = keys.len() / multiple;
        let expected = tokens * self.heads.len() * self.value_dim;
        if values.len() != expected {
            return Err(CacheError::Length {
                what: "values",
                expected,
                received: values.len(),
            });
        }
        let count = self.counts(tokens, lens)?;
        for (sequence, stored) in self.lens().enumerate() {
            self.check_positions(stored, count(sequence))?;
        }
        if tokens == 0 {
            return Ok(0);
        }
        let keys = keys.chunks_exact(tokens * self.head_dim);
        let values = values.chunks_exact(tokens * self.value_dim);
        for (i, ((cache, keys), values)) in self.heads.iter().zip(keys).zip(values).enumerate() {
            let (sequence, head) = (i / self.kv_heads, i % self.kv_heads);
            let keys = &keys[..count(sequence) * self.head_dim];
            let values = &values[..count(sequence) * self.value_dim];
            cache
                .index()
                .check(keys)
                .map_err(|source| CacheError::Keys {
                    sequence,
                    head,
                    source,
                })?;
            cache.check_values(values).map_err(|fault| match fault {
                ValueFault::NonFinite { token, column } => CacheError::NonFiniteValue {
                    sequence,
                    head,
                    token,
                    column,
                },
                ValueFault::Overflow { token, column } => CacheError::ValueOverflow {
                    sequence,
                    head,
                    token,
                    column,
                    precision: cache.values().precision(),
                },
                ValueFault::Magnitude { token } => CacheError::ValueMagnitude {
                    sequence,
                    head,
                    token,
                },
            })?;
        }
        Ok(tokens)
    }

    /// How many of `tokens` tokens are new to each sequence.
    fn counts<'a>(
        &self,
        tokens: usize,
        lens: Option<&'a [usize]>,
    ) -> Result<impl Fn(usize) -> usize + 'a, CacheError> {
        if let Some(lens) = lens {
            if lens.len() != self.sequences() {
                return Err(CacheError::Length {
                    what: "lens",
                    expected: self.sequences(),
                    received: lens.len(),
                });
            }
            if let Some(sequence) = lens.iter().position(|&len| len > tokens) {
                return Err(CacheError::NewTokens {
                    sequence,
                    tokens,
                    received: lens[sequence],
                });
            }
        }
        Ok(move |sequence| lens.map_or(tokens, |lens| lens[sequence]))
    }

    /// Whether there are positions for so many new tokens of every sequence.
    ///
    /// # Errors
    ///
    /// [`CacheError::Capacity`].
    pub fn check_room(&self, tokens: usize) -> Result<(), CacheError> {
        self.check_positions(self.len(), tokens)
    }

    fn check_positions(&self, stored: usize, requested: usize) -> Result<(), CacheError> {
        if requested > self.max_len.saturating_sub(stored) {
            return Err(CacheError::Capacity {
                max_len: self.max_len,
                stored,
                requested,
            });
        }
        Ok(())
    }

    /// Appends new tokens to every head, or nothing.
    ///
    /// # Shapes
    ///
    /// `keys` `[B, Hkv, L, D]`, `values` `[B, Hkv, L, Dv]`, row-major, to be rounded to the precision of the cache.
    ///
    /// # Complexity
    ///
    /// `O(B * Hkv * L * (D + Dv))`, and the building of coarse levels when a segment is sealed.
    ///
    /// # Errors
    ///
    /// [`CacheError`] for a wrong length, too many tokens, a non-finite or too large row or element. The layer is then unchanged.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) -> Result<(), CacheError> {
        let tokens = self.check(keys, values)?;
        self.append_checked(tokens, 0..tokens, keys, values, None)
    }

    /// As [`LayerCache::append`] for sequences with different numbers of new tokens: the first `lens[b]` rows of sequence `b` are new, the
    /// others are padding, which is neither read nor stored.
    ///
    /// # Errors
    ///
    /// As [`LayerCache::append`], and [`CacheError::NewTokens`] for a sequence that has more new tokens than rows came.
    pub fn append_lens(
        &mut self,
        keys: &[f32],
        values: &[f32],
        lens: &[usize],
    ) -> Result<(), CacheError> {
        let tokens = self.check_lens(keys, values, Some(lens))?;
        self.append_checked(tokens, 0..tokens, keys, values, Some(lens))
    }

    /// Appends those tokens in `range` of what [`LayerCache::check`] has accepted.
    pub(crate) fn append_checked(
        &mut self,
        tokens: usize,
        range: Range<usize>,
        keys: &[f32],
        values: &[f32],
        lens: Option<&[usize]>,
    ) -> Result<(), CacheError> {
        if range.is_empty() {
            return Ok(());
        }
        if range.start == 0 {
            // later parts of a batch may not: the queries of the earlier ones have not been answered yet
            self.evict();
        }
        let (head_dim, value_dim) = (self.head_dim, self.value_dim);
        let keys = keys.chunks_exact(tokens * self.head_dim);
        let values = values.chunks_exact(tokens * self.value_dim);
        let kv_heads = self.kv_heads;
        for (i, ((cache, keys), values)) in self.heads.iter_mut().zip(keys).zip(values).enumerate()
        {
            let count = lens.map_or(tokens, |lens| lens[i / kv_heads]);
            let (start, end) = (range.start, range.end.min(count));
            if start >= end {
                continue;
            }
            // every reason to refuse was checked for all heads
            let keys = &keys[start * head_dim..end * head_dim];
            let values = &values[start * value_dim..end * value_dim];
            cache
                .append(keys, values)
                .map_err(|source| CacheError::Keys {
                    sequence: i / kv_heads,
                    head: i % kv_heads,
                    source,
                })?;
        }
        Ok(())
    }

    /// The fewest tokens that [`truncate`](Self::truncate) leaves of the longest sequence: fewer need keys that were evicted.
    pub fn least_len(&self) -> usize {
        let least = self.heads.iter().map(|head| self.least_of(head));
        least.max().unwrap_or(0)
    }

    fn least_of(&self, head: &HeadCache) -> usize {
        let least = |window: LayerWindow| window.least_len(head.evicted());
        self.window.map_or(0, least)
    }

    /// Whether every sequence can be cut to what `len` makes of its length.
    ///
    /// # Errors
    ///
    /// [`CacheError::Evicted`] for the first that cannot.
    pub(crate) fn check_cut(
        &self,
        sequences: Range<usize>,
        len: impl Fn(usize) -> usize,
    ) -> Result<(), CacheError> {
        let heads = sequences.start * self.kv_heads..sequences.end * self.kv_heads;
        for head in self.heads.get(heads).unwrap_or_default() {
            let (least, received) = (self.least_of(head), len(head.len()));
            if received < least.min(head.len()) {
                return Err(CacheError::Evicted { least, received });
            }
        }
        Ok(())
    }

    /// Forgets the tokens from `len` on.
    ///
    /// # Errors
    ///
    /// [`CacheError::Evicted`] if the layer has a window and queries would see what it has evicted: a caller that goes back sets
    /// [`CacheConfig::evict_slack`]. The layer is then unchanged.
    pub fn truncate(&mut self, len: usize) -> Result<(), CacheError> {
        self.check_cut(0..self.sequences(), |_| len)?;
        if let Some(store) = self.device.get_mut() {
            store.truncate(len);
        }
        for head in &mut self.heads {
            head.truncate(len);
        }
        Ok(())
    }

    /// Moves what is complete into regions, where it can be moved between tiers.
    pub(crate) fn move_to_regions(&mut self) {
        for head in &mut self.heads {
            head.move_to_regions();
        }
    }

    pub(crate) fn finish_builds(&mut self) {
        for head in &mut self.heads {
            head.finish_builds();
        }
    }

    /// Forgets the tokens of one sequence from `len` on.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sequence`] if there is no such sequence, [`CacheError::Evicted`] as for [`truncate`](Self::truncate). The layer is then unchanged.
    pub fn truncate_sequence(&mut self, sequence: usize, len: usize) -> Result<(), CacheError> {
        check_sequences(self.sequences(), &[sequence])?;
        self.check_cut(sequence..sequence + 1, |_| len)?;
        let heads = self.heads.iter_mut().skip(sequence * self.kv_heads);
        for head in heads.take(self.kv_heads) {
            head.truncate(len);
        }
        Ok(())
    }

    /// A layer of the same rows, whose memory is shared.
    pub(crate) fn fork(&mut self) -> Self {
        let heads = self.heads.iter_mut().map(HeadCache::fork).collect();
        self.with_heads(heads)
    }

    fn with_heads(&self, heads: Vec<HeadCache>) -> Self {
        Self {
            heads,
            device: self.device.clone(),
            ..*self
        }
    }

    /// Forks of the `sequences`, which exist, in this order.
    pub(crate) fn select(&mut self, sequences: &[usize]) -> Self {
        let mut heads = Vec::with_capacity(sequences.len() * self.kv_heads);
        for &sequence in sequences {
            let chosen = self.heads.iter_mut().skip(sequence * self.kv_heads);
            heads.extend(chosen.take(self.kv_heads).map(HeadCache::fork));
        }
        self.with_heads(heads)
    }

    /// Puts old sequence `order[i]`, which exists, in the place of sequence `i`. One that is wanted once is moved.
    pub(crate) fn reorder(&mut self, order: &[usize]) {
        let mut wanted = vec![0_usize; self.sequences()];
        order.iter().for_each(|&sequence| wanted[sequence] += 1);
        let mut old: Vec<Option<HeadCache>> = std::mem::take(&mut self.heads)
            .into_iter()
            .map(Some)
            .collect();
        for &sequence in order {
            wanted[sequence] -= 1;
            for head in &mut old[sequence * self.kv_heads..][..self.kv_heads] {
                let chosen = match wanted[sequence] {
                    0 => head.take(),
                    _ => head.as_mut().map(HeadCache::fork),
                };
                self.heads.extend(chosen);
            }
        }
    }

    pub(crate) fn reset(&mut self) {
        self.device.clear();
        for head in &mut self.heads {
            head.reset();
        }
    }
}

/// That a layer of so many sequences has all of `wanted`.
pub(crate) fn check_sequences(sequences: usize, wanted: &[usize]) -> Result<(), CacheError> {
    match wanted.iter().find(|&&sequence| sequence >= sequences) {
        Some(&received) => Err(CacheError::Sequence {
            sequences,
            received,
        }),
        None => Ok(()),
    }
}
