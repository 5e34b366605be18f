//! The Burn face: tensors in.

use burn::tensor::{DType, Tensor};
use hira_index::DeviceStore;
use hira_index::burn::{DeviceEngineError, DeviceLayout, HiraBackend, with_host};
use hira_memory::MemoryPolicy;

use crate::{CacheError, HiraCache, LayerCache};

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

/// Layers on a device: what an attention calls before and while it works there.
impl HiraCache {
    /// Whether layer `layer` is, or now becomes, one that the device engine of the backend holds.
    ///
    /// `false` on a backend without a device engine, with [`MemoryPolicy::AllHost`], and for a layer that holds tokens in main memory.
    ///
    /// # Errors
    ///
    /// [`CacheError::Layer`]; [`CacheError::DevicePolicy`] for a policy that the device engine does not act on;
    /// [`CacheError::Device`] if the engine has no kernels for the layout.
    pub fn prepare_device<B: HiraBackend>(
        &mut self,
        layer: usize,
        layout: &DeviceLayout,
        element: DType,
        device: &B::Device,
    ) -> Result<bool, CacheError> {
        let cache = self.layer(layer)?;
        if cache.device().is_taken() {
            return Ok(true);
        }
        if !cache.is_empty() || self.config().memory_policy == MemoryPolicy::AllHost {
            return Ok(false);
        }
        let mut others = (0..self.config().layers).filter_map(|layer| self.layer(layer).ok());
        let sibling = others.find_map(|layer| layer.device().get());
        let Some(store) = B::device_store(layout, element, device, sibling) else {
            return Ok(false);
        };
        let store = store?;
        self.check_device_policy(store.memory().total())?;
        self.check_budget(store.memory().total())?;
        self.layer_mut(layer)?.device_mut().set(store);
        Ok(true)
    }

    /// What the device holds of a layer.
    ///
    /// # Errors
    ///
    /// [`CacheError::Layer`], or [`CacheError::Device`] if the layer is not on a device.
    pub fn device_store_mut(
        &mut self,
        layer: usize,
    ) -> Result<&mut (dyn DeviceStore + 'static), CacheError> {
        let store = self.layer_mut(layer)?.device_mut().get_mut();
        store.ok_or(CacheError::Device(DeviceEngineError::NoEngine))
    }

    /// Whether so many more tokens have room in a layer on a device, in its positions and in the budget.
    ///
    /// # Errors
    ///
    /// [`CacheError::Capacity`], [`CacheError::Memory`], or [`CacheError::DevicePolicy`] where [`MemoryPolicy::Adaptive`] would have to move
    /// something off the device.
    pub fn check_device_append(&self, layer: usize, tokens: usize) -> Result<(), CacheError> {
        let cache: &LayerCache = self.layer(layer)?;
        cache.check_room(tokens)?;
        let growth = cache.device().get().map_or(0, |store| store.growth(tokens));
        if growth > 0 {
            self.check_budget(growth)?;
            self.check_device_policy(growth)?;
        }
        Ok(())
    }

    /// The device engine keeps everything on the device: it acts on the policies that ask for that, also when so many bytes have been added.
    fn check_device_policy(&self, requested: usize) -> Result<(), CacheError> {
        let policy = self.config().memory_policy;
        let capacity = self.config().budget.limit().unwrap_or(usize::MAX);
        let used = match policy {
            MemoryPolicy::Adaptive { .. } => self.memory().total().saturating_add(requested),
            _ => 0,
        };
        match policy.under_pressure(used, capacity) {
            MemoryPolicy::AllDevice => Ok(()),
            received => Err(CacheError::DevicePolicy { received }),
        }
    }
}
