//! The Burn face: tensors in.

use burn::tensor::Tensor;
use hira_index::burn::{HiraBackend, with_host};

use crate::{CacheError, HiraCache};

impl HiraCache {
    /// [`HiraCache::append`] for tensors: into main memory, whatever device they are on. A layer that is filled so stays with the host engine.
    ///
    /// # Shapes
    ///
    /// `keys` `[B, Hkv, L, D]`, `values` `[B, Hkv, L, Dv]`.
    ///
    /// # Errors
    ///
    /// As [`HiraCache::append`], [`CacheError::Shape`], and [`CacheError::Host`] if the backend cannot hand a tensor over.
    pub fn append_tensors<B: HiraBackend>(
        &mut self,
        layer: usize,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> Result<(), CacheError> {
        let tokens = keys.dims()[2];
        let config = self.config();
        for (what, received, dim) in [
            ("keys", keys.dims(), config.head_dim),
            ("values", values.dims(), config.value_dim),
        ] {
            let expected = [config.sequences, config.kv_heads, tokens, dim];
            if received != expected {
                return Err(CacheError::Shape {
                    what,
                    expected,
                    received,
                });
            }
        }
        with_host(keys, |keys| {
            with_host(values, |values| self.append(layer, keys, values))
        })??
    }
}
