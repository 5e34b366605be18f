//! Layers on a device: what an attention calls before and while it works there, and where the exact rows of each layer go.
//!
//! | policy | exact keys and values of a device layer |
//! |---|---|
//! | [`MemoryPolicy::AllDevice`] | on the device |
//! | [`MemoryPolicy::Hybrid`] | in main memory; the device has the sketch and the means of values |
//! | [`MemoryPolicy::Adaptive`] | on the device while less than the target of its memory is used, else in main memory; decided layer by layer |
//! | [`MemoryPolicy::AllHost`] | there is no device layer: the host engine runs |
//!
//! *Adaptive* looks when a layer is made, when it has to grow, and every 256 tokens. If what the layer needs would take the device past the target,
//! the layer's rows go to main memory, and if that is not enough those of others, the first layers first. They come back when the device would
//! then be nine tenths of the target full at most. What is held against the target is the cache's own share of
//! [`device_budget`](crate::CacheConfig::device_budget) (of the memory budget if there is none), and, where the driver can be asked
//! ([`HiraBackend::device_usage`]), everything that is in use of all the memory that the device has.

use burn::tensor::DType;
use hira_index::burn::{DeviceEngineError, DeviceLayout, HiraBackend};
use hira_index::{DeviceMemory, DeviceStore, DeviceUsage, RowPlace};
use hira_memory::{Budget, MemoryError, MemoryPolicy, Tier};

use crate::{CacheError, HiraCache, LayerCache};

/// Tokens of a layer between two looks at how full the device is.
const LOOK_TOKENS: usize = 256;

/// Of the target, what the device may be full with rows that come back.
const COME_BACK: f64 = 0.9;

/// Where the exact rows of layers are to be before a layer takes more tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Arrangement {
    /// Those of the layer itself.
    own: RowPlace,
    /// Other layers whose rows go to main memory.
    down: Vec<usize>,
}

/// The layer that takes more tokens.
#[derive(Clone, Copy)]
struct Asked<'a> {
    layer: usize,
    store: &'a dyn DeviceStore,
    tokens: usize,
    /// Whether the layer is not in the cache yet.
    is_new: bool,
}

impl Asked<'_> {
    fn with(&self, rows: RowPlace) -> DeviceMemory {
        self.store.memory_with(self.tokens, rows)
    }
}

impl HiraCache {
    /// Whether layer `layer` is, or now becomes, one that the device engine of the backend holds.
    ///
    /// `false` on a backend without a device engine, with [`MemoryPolicy::AllHost`], and for a layer that holds tokens in main memory. Where exact
    /// rows lie the cache decides, not the layout.
    ///
    /// # Errors
    ///
    /// [`CacheError::Layer`]; [`CacheError::Memory`] for a budget that would be exceeded; [`CacheError::Device`] if the engine has no kernels for
    /// the layout.
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
        let policy = self.config().memory_policy;
        if !cache.is_empty() || policy == MemoryPolicy::AllHost {
            return Ok(false);
        }
        let layout = DeviceLayout {
            rows: match policy {
                MemoryPolicy::Hybrid { .. } | MemoryPolicy::Adaptive { .. } => RowPlace::Host,
                _ => RowPlace::Device,
            },
            ..*layout
        };
        let mut others = (0..self.config().layers).filter_map(|layer| self.layer(layer).ok());
        let sibling = others.find_map(|layer| layer.device().get());
        let Some(store) = B::device_store(&layout, element, device, sibling) else {
            return Ok(false);
        };
        let mut store = store?;
        let asked = Asked {
            layer,
            store: &*store,
            tokens: 0,
            is_new: true,
        };
        let arrangement = self.arrange(asked, self.usage::<B>(device))?;
        store.move_rows(arrangement.own)?;
        self.move_down(&arrangement.down)?;
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

    /// Sees to it that so many more tokens have room in a layer on a device: in its positions, in the budgets, and, with
    /// [`MemoryPolicy::Adaptive`], on the device, from which it may move rows.
    ///
    /// # Errors
    ///
    /// [`CacheError::Capacity`] or [`CacheError::Memory`], before anything is moved; [`CacheError::Rows`] if the device cannot be read.
    pub fn make_device_room<B: HiraBackend>(
        &mut self,
        layer: usize,
        tokens: usize,
        device: &B::Device,
    ) -> Result<(), CacheError> {
        let cache: &LayerCache = self.layer(layer)?;
        cache.check_room(tokens)?;
        let Some(store) = cache.device().get() else {
            return Ok(());
        };
        let asked = Asked {
            layer,
            store,
            tokens,
            is_new: false,
        };
        let (len, rows) = (store.len(), store.rows());
        let grows = asked.with(rows) != store.memory();
        let looks = matches!(self.config().memory_policy, MemoryPolicy::Adaptive { .. })
            && len / LOOK_TOKENS != (len + tokens) / LOOK_TOKENS;
        if !grows && !looks {
            return Ok(());
        }
        let arrangement = self.arrange(asked, self.usage::<B>(device))?;
        if arrangement.own != rows {
            self.device_store_mut(layer)?.move_rows(arrangement.own)?;
        }
        self.move_down(&arrangement.down)
    }

    /// How full the device is, where that is asked for and known.
    fn usage<B: HiraBackend>(&self, device: &B::Device) -> Option<DeviceUsage> {
        match self.config().memory_policy {
            MemoryPolicy::Adaptive { .. } => B::device_usage(device),
            _ => None,
        }
    }

    fn move_down(&mut self, layers: &[usize]) -> Result<(), CacheError> {
        for &layer in layers {
            self.device_store_mut(layer)?.move_rows(RowPlace::Host)?;
        }
        Ok(())
    }

    /// The device's part of the other layers.
    fn others(&self, layer: usize) -> impl Iterator<Item = (usize, &dyn DeviceStore)> {
        let others = (0..self.config().layers).filter(move |&other| other != layer);
        others.filter_map(|other| Some((other, self.layer(other).ok()?.device().get()?)))
    }

    fn arrange(
        &self,
        asked: Asked<'_>,
        usage: Option<DeviceUsage>,
    ) -> Result<Arrangement, CacheError> {
        let stay = Arrangement {
            own: asked.store.rows(),
            down: Vec::new(),
        };
        let MemoryPolicy::Adaptive { target_usage } = self.config().memory_policy else {
            self.check_arrangement(asked, &stay)?;
            return Ok(stay);
        };
        let wanted = self.wanted(asked, f64::from(target_usage), usage);
        match self.check_arrangement(asked, &wanted) {
            Ok(()) => Ok(wanted),
            // past the target rather than past a limit
            Err(error) => {
                let other = Arrangement {
                    own: RowPlace::Device,
                    ..stay
                };
                match self.check_arrangement(asked, &other) {
                    Ok(()) => Ok(other),
                    Err(_) => Err(error),
                }
            }
        }
    }

    /// What keeps the device below the target, as far as rows can.
    fn wanted(&self, asked: Asked<'_>, target: f64, usage: Option<DeviceUsage>) -> Arrangement {
        let config = self.config();
        let others = self.others(asked.layer);
        let others: usize = others.map(|(_, store)| store.memory().on_device()).sum();
        let limit = config.device_budget.limit().or(config.budget.limit());
        // what is used beside the layer, of how much
        let configured = limit.map(|limit| (others, limit));
        let own = asked.store.memory().on_device();
        let real = usage.map(|usage| (usage.used.saturating_sub(own), usage.total));
        let fits = |added: usize, freed: usize, share: f64| {
            let full = |(used, limit): (usize, usize)| {
                let after = used.saturating_add(added).saturating_sub(freed);
                after as f64 > share * target * limit as f64
            };
            !configured.into_iter().chain(real).any(full)
        };
        let share = match asked.store.rows() {
            RowPlace::Host if !asked.is_new => COME_BACK,
            _ => 1.0,
        };
        let mut down = Vec::new();
        if fits(asked.with(RowPlace::Device).on_device(), 0, share) {
            return Arrangement {
                own: RowPlace::Device,
                down,
            };
        }
        let added = asked.with(RowPlace::Host).on_device();
        let mut freed = 0;
        for (layer, store) in self.others(asked.layer) {
            if fits(added, freed, 1.0) {
                break;
            }
            if store.rows() == RowPlace::Device {
                freed += freed_by(store);
                down.push(layer);
            }
        }
        Arrangement {
            own: RowPlace::Host,
            down,
        }
    }

    /// Holds the budgets against what would then be stored.
    fn check_arrangement(
        &self,
        asked: Asked<'_>,
        arrangement: &Arrangement,
    ) -> Result<(), CacheError> {
        let config = self.config();
        let before = match asked.is_new {
            true => DeviceMemory::default(),
            false => asked.store.memory(),
        };
        let (mut used, mut after) = (Held::of(&before), Held::default());
        for (layer, store) in self.others(asked.layer) {
            used.add(&store.memory());
            let rows = match arrangement.down.contains(&layer) {
                true => RowPlace::Host,
                false => store.rows(),
            };
            after.add(&store.memory_with(0, rows));
        }
        after.add(&asked.with(arrangement.own));
        let check = |tier, budget: Budget, used: usize, after: usize| match budget.limit() {
            Some(limit) if after > limit.max(used) => Err(MemoryError::TierFull {
                tier,
                limit,
                used,
                requested: after - used,
            }),
            _ => Ok(()),
        };
        check(
            Tier::Device,
            config.device_budget,
            used.device,
            after.device,
        )?;
        check(Tier::Host, config.host_budget, used.host, after.host)?;
        let grown = (after.device + after.host).saturating_sub(used.device + used.host);
        match grown {
            0 => Ok(()),
            grown => self.check_budget(grown),
        }
    }
}

/// Bytes that all device layers hold.
#[derive(Default)]
struct Held {
    device: usize,
    host: usize,
}

impl Held {
    fn of(memory: &DeviceMemory) -> Self {
        let mut held = Self::default();
        held.add(memory);
        held
    }

    fn add(&mut self, memory: &DeviceMemory) {
        self.device = self.device.saturating_add(memory.on_device());
        self.host = self.host.saturating_add(memory.on_host());
    }
}

/// Bytes on the device that moving a layer's rows to main memory frees.
fn freed_by(store: &dyn DeviceStore) -> usize {
    let below = store.memory_with(0, RowPlace::Host);
    store.memory().on_device().saturating_sub(below.on_device())
}
