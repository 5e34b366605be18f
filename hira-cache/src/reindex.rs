//! The same tokens under another index.

use crate::{CacheConfig, CacheError, HiraCache};

/// Tokens that are copied at once.
const PIECE: usize = 512;

impl HiraCache {
    /// A cache of another configuration that holds the same tokens: other segments, levels, sketches, tiers or budgets, as if they had been
    /// appended there. Rows are stored anew in the precision of `config`; in the same one they keep their bits.
    ///
    /// This is how a cache that was saved under one index goes on under another.
    ///
    /// # Complexity
    ///
    /// That of appending everything.
    ///
    /// # Errors
    ///
    /// [`CacheError::Config`] if `config` is impossible or of another shape, [`CacheError::Forgotten`] if a layer with a window has evicted keys,
    /// [`CacheError::OnDevice`], and whatever [`HiraCache::append`] returns for a cache of `config`.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_cache::{CacheConfig, HiraCache};
    ///
    /// let config = CacheConfig::new(1, 1, 1, 4, 100);
    /// let mut cache = HiraCache::new(config.clone())?;
    /// cache.append(0, &[0.5; 4 * 70], &[1.0; 4 * 70])?;
    /// let mut short = config;
    /// short.index.segment_len = 32;
    /// let again = cache.reindexed(short)?;
    /// assert_eq!(again.len(), 70);
    /// assert_eq!(again.layer(0)?.heads()[0].index().sealed().len(), 2);
    /// # Ok::<(), hira_cache::CacheError>(())
    /// ```
    pub fn reindexed(&self, config: CacheConfig) -> Result<Self, CacheError> {
        self.check_on_host()?;
        let own = self.config();
        for (key, expected, received) in [
            ("layers", own.layers, config.layers),
            ("sequences", own.sequences, config.sequences),
            ("kv_heads", own.kv_heads, config.kv_heads),
            ("head_dim", own.head_dim, config.head_dim),
            ("value_dim", own.value_dim, config.value_dim),
        ] {
            if received != expected {
                return Err(CacheError::Config {
                    key,
                    requirement: "must be that of the cache whose tokens are taken over",
                    received,
                });
            }
        }
        let mut other = Self::new(config)?;
        for layer in 0..other.config().layers {
            self.copy_layer(layer, &mut other)?;
        }
        Ok(other)
    }

    fn copy_layer(&self, layer: usize, other: &mut Self) -> Result<(), CacheError> {
        let heads = self.layer(layer)?.heads();
        let evicted = heads.iter().map(|head| head.index().evicted()).max();
        if let Some(evicted @ 1..) = evicted {
            return Err(CacheError::Forgotten { layer, evicted });
        }
        let kv_heads = self.config().kv_heads;
        let lens: Vec<usize> = self.layer(layer)?.lens().collect();
        let longest = lens.iter().copied().max().unwrap_or(0);
        for start in (0..longest).step_by(PIECE) {
            let new: Vec<usize> = lens
                .iter()
                .map(|len| len.saturating_sub(start).min(PIECE))
                .collect();
            let tokens = new.iter().copied().max().unwrap_or(0);
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (i, head) in heads.iter().enumerate() {
                for run in head.runs(start..start + new[i / kv_heads]) {
                    keys.extend_from_slice(&run.keys.widened());
                    values.extend_from_slice(&run.values.widened());
                }
                // padding
                let rows = i + 1;
                keys.resize(rows * tokens * self.config().head_dim, 0.0);
                values.resize(rows * tokens * self.config().value_dim, 0.0);
            }
            other.append_lens(layer, &keys, &values, &new)?;
        }
        Ok(())
    }
}
