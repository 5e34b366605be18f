//! One decoder layer: its heads, sequence by sequence.

use std::ops::Range;

use hira_index::IndexError;

use crate::window::LayerWindow;
use crate::{CacheConfig, CacheError, HeadCache, head::ValueFault};

/// Keys and values of one layer, `sequences * kv_heads` heads, all of the same length.
#[derive(Debug, Clone)]
pub struct LayerCache {
    heads: Vec<HeadCache>,
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
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            value_dim: config.value_dim,
            max_len: config.max_len,
            window,
        })
    }

    /// Tokens that every sequence has, those that were evicted included.
    pub fn len(&self) -> usize {
        self.heads.first().map_or(0, HeadCache::len)
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
            let before = window.first_kept(self.len());
            self.heads.iter_mut().for_each(|head| head.evict(before));
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
        let stored = self.len();
        if tokens > self.max_len - stored {
            return Err(CacheError::Capacity {
                max_len: self.max_len,
                stored,
                requested: tokens,
            });
        }
        if tokens == 0 {
            return Ok(0);
        }
        let keys = keys.chunks_exact(tokens * self.head_dim);
        let values = values.chunks_exact(tokens * self.value_dim);
        for (i, ((cache, keys), values)) in self.heads.iter().zip(keys).zip(values).enumerate() {
            let (sequence, head) = (i / self.kv_heads, i % self.kv_heads);
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
        self.append_checked(tokens, 0..tokens, keys, values)
    }

    /// Appends those tokens in `range` of what [`LayerCache::check`] has accepted.
    pub(crate) fn append_checked(
        &mut self,
        tokens: usize,
        range: Range<usize>,
        keys: &[f32],
        values: &[f32],
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
            // every reason to refuse was checked for all heads
            let keys = &keys[range.start * head_dim..range.end * head_dim];
            let values = &values[range.start * value_dim..range.end * value_dim];
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

    /// The fewest tokens that [`truncate`](Self::truncate) leaves: fewer need keys that were evicted.
    pub fn least_len(&self) -> usize {
        let evicted = self.evicted();
        self.window.map_or(0, |window| window.least_len(evicted))
    }

    /// Forgets the tokens from `len` on.
    ///
    /// # Errors
    ///
    /// [`CacheError::Evicted`] if the layer has a window and queries would see what it has evicted: a caller that goes back sets
    /// [`CacheConfig::evict_slack`]. The layer is then unchanged.
    pub fn truncate(&mut self, len: usize) -> Result<(), CacheError> {
        let least = self.least_len();
        if len < least.min(self.len()) {
            return Err(CacheError::Evicted {
                least,
                received: len,
            });
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

    pub(crate) fn reset(&mut self) {
        for head in &mut self.heads {
            head.reset();
        }
    }
}
