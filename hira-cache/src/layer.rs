//! One decoder layer: its heads, sequence by sequence.

use hira_index::{DeviceSlot, IndexError};

use crate::{CacheConfig, CacheError, HeadCache, head::ValueFault};

/// Keys and values of one layer, `sequences * kv_heads` heads, all of the same length.
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
}

impl LayerCache {
    pub(crate) fn new(config: &CacheConfig) -> Result<Self, IndexError> {
        let count = config.sequences * config.kv_heads;
        let heads = (0..count).map(|_| HeadCache::new(config));
        Ok(Self {
            heads: heads.collect::<Result<_, _>>()?,
            device: DeviceSlot::default(),
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            value_dim: config.value_dim,
            max_len: config.max_len,
        })
    }

    /// Tokens stored for every sequence.
    pub fn len(&self) -> usize {
        match self.device.get() {
            Some(store) => store.len(),
            None => self.heads.first().map_or(0, HeadCache::len),
        }
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
        self.check_room(tokens)?;
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

    /// Whether there are positions for so many new tokens.
    ///
    /// # Errors
    ///
    /// [`CacheError::Capacity`].
    pub fn check_room(&self, tokens: usize) -> Result<(), CacheError> {
        let stored = self.len();
        if tokens > self.max_len.saturating_sub(stored) {
            return Err(CacheError::Capacity {
                max_len: self.max_len,
                stored,
                requested: tokens,
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
        self.append_checked(tokens, keys, values)
    }

    /// Appends what [`LayerCache::check`] has accepted.
    pub(crate) fn append_checked(
        &mut self,
        tokens: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<(), CacheError> {
        if tokens == 0 {
            return Ok(());
        }
        let keys = keys.chunks_exact(tokens * self.head_dim);
        let values = values.chunks_exact(tokens * self.value_dim);
        let kv_heads = self.kv_heads;
        for (i, ((cache, keys), values)) in self.heads.iter_mut().zip(keys).zip(values).enumerate()
        {
            // every reason to refuse was checked for all heads
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

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        if let Some(store) = self.device.get_mut() {
            store.truncate(len);
        }
        for head in &mut self.heads {
            head.truncate(len);
        }
    }

    pub(crate) fn reset(&mut self) {
        self.device.clear();
        for head in &mut self.heads {
            head.reset();
        }
    }
}
