//! The shape and the limits of a cache.

use std::path::PathBuf;

use hira_index::IndexConfig;
use hira_kernels::{Kernel, TILE};
use hira_memory::{Budget, MemoryPolicy, Tier};

use crate::CacheError;
use crate::window::{LayerWindow, segment_len};

/// The longest block of which a scan can bound the tail.
const MAX_TAIL_BLOCK: usize = 1024;

/// Shape, index and limits of a [`HiraCache`](crate::HiraCache).
#[derive(Debug, Clone, PartialEq)]
pub struct CacheConfig {
    /// Decoder layers.
    pub layers: usize,
    /// Sequences that are decoded together (`B`).
    pub sequences: usize,
    /// Key/value heads of a layer (`Hkv`).
    pub kv_heads: usize,
    /// Dimension of a key (`D`).
    pub head_dim: usize,
    /// Dimension of a value (`Dv`).
    pub value_dim: usize,
    /// Positions of a sequence.
    pub max_len: usize,
    /// How keys are indexed; its `dim` is replaced by `head_dim`. Its `precision` is that of the values, too.
    pub index: IndexConfig,
    /// Positions of a block whose mean value is kept, a multiple of 16; 0 keeps none. Default 128. See [`BlockMeans`](crate::BlockMeans).
    pub tail_block: usize,
    /// For each layer how many of the last keys a query of it sees, its own included; `None`, and for layers beyond the list: all. Such a layer
    /// forgets what no later query sees. Default: no layer has a window.
    pub windows: Vec<Option<usize>>,
    /// Tokens that can be taken back (see [`HiraCache::truncate`](crate::HiraCache::truncate)) in spite of what windowed layers forget: they keep so many keys
    /// more. [`usize::MAX`] keeps all. Default 0.
    pub evict_slack: usize,
    /// On which tier each part should lie.
    pub memory_policy: MemoryPolicy,
    /// A hard limit on the bytes of keys, values and index.
    pub budget: Budget,
    /// A hard limit on the bytes of keys, values and sketches in the memory of a device, as allocated.
    pub device_budget: Budget,
    /// A hard limit on the bytes of exact keys and values in main memory, as allocated; what every step reads (sketches, levels, means of values)
    /// comes on top. What does not fit goes to disk, or is refused if there is no [`disk_path`](Self::disk_path).
    pub host_budget: Budget,
    /// An existing folder for a file that takes exact keys and values of complete segments, on Linux. Default: none. The file has no name and
    /// goes with the cache and its forks.
    pub disk_path: Option<PathBuf>,
    /// A hard limit on the bytes of that file.
    pub disk_budget: Budget,
    /// First and most recent positions whose rows are the last to go to disk. Default 4 and 64.
    pub pinned: (usize, usize),
    /// Tiers that this machine has, [`Tier::Disk`] aside, which is there if there is a `disk_path`.
    pub tiers: Vec<Tier>,
    /// The kernel that quantises keys.
    pub kernel: Kernel,
}

impl CacheConfig {
    /// A cache of this shape with the default index, no memory budget, and `value_dim = head_dim`.
    pub fn new(
        layers: usize,
        sequences: usize,
        kv_heads: usize,
        head_dim: usize,
        max_len: usize,
    ) -> Self {
        Self {
            layers,
            sequences,
            kv_heads,
            head_dim,
            value_dim: head_dim,
            max_len,
            index: IndexConfig {
                dim: head_dim,
                ..IndexConfig::default()
            },
            tail_block: 128,
            windows: Vec::new(),
            evict_slack: 0,
            memory_policy: MemoryPolicy::default(),
            budget: Budget::unlimited(),
            device_budget: Budget::unlimited(),
            host_budget: Budget::unlimited(),
            disk_path: None,
            disk_budget: Budget::unlimited(),
            pinned: (4, 64),
            tiers: vec![Tier::Host],
            kernel: Kernel::best(),
        }
    }

    /// Sets the dimension of a value.
    #[must_use]
    pub fn with_value_dim(mut self, value_dim: usize) -> Self {
        self.value_dim = value_dim;
        self
    }

    /// Sets how keys are indexed.
    #[must_use]
    pub fn with_index(mut self, index: IndexConfig) -> Self {
        self.index = index;
        self
    }

    /// Sets the length of the blocks whose mean value is kept; 0 keeps none.
    #[must_use]
    pub fn with_tail_block(mut self, tail_block: usize) -> Self {
        self.tail_block = tail_block;
        self
    }

    /// Sets how many of the last keys the queries of each layer see.
    #[must_use]
    pub fn with_windows(mut self, windows: Vec<Option<usize>>) -> Self {
        self.windows = windows;
        self
    }

    /// Sets how many tokens can be taken back in spite of what windowed layers forget.
    #[must_use]
    pub fn with_evict_slack(mut self, evict_slack: usize) -> Self {
        self.evict_slack = evict_slack;
        self
    }

    /// The window of a layer, with the slack.
    pub(crate) fn window(&self, layer: usize) -> Option<LayerWindow> {
        let len = self.windows.get(layer).copied().flatten()?;
        Some(LayerWindow {
            len,
            slack: self.evict_slack,
        })
    }

    /// Sets a hard limit on the bytes of keys, values and index.
    #[must_use]
    pub fn with_budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Sets on which tier each part should lie.
    #[must_use]
    pub fn with_memory_policy(mut self, policy: MemoryPolicy) -> Self {
        self.memory_policy = policy;
        self
    }

    /// Sets a hard limit on the bytes in the memory of a device.
    #[must_use]
    pub fn with_device_budget(mut self, budget: Budget) -> Self {
        self.device_budget = budget;
        self
    }

    /// Sets a hard limit on the bytes of exact keys and values in main memory.
    #[must_use]
    pub fn with_host_budget(mut self, budget: Budget) -> Self {
        self.host_budget = budget;
        self
    }

    /// Sets the folder for rows that leave main memory, and a hard limit on their bytes there.
    #[must_use]
    pub fn with_disk(mut self, path: impl Into<PathBuf>, budget: Budget) -> Self {
        self.disk_path = Some(path.into());
        self.disk_budget = budget;
        self
    }

    /// How the keys of a layer with this window are indexed.
    pub(crate) fn index_of(&self, window: Option<usize>) -> IndexConfig {
        let mut index = self.index.clone();
        index.dim = self.head_dim;
        if let Some(window) = window {
            index.segment_len = segment_len(window, index.segment_len);
        }
        index
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// [`CacheError::Config`], [`CacheError::Index`] or [`CacheError::Memory`] that name the key.
    pub fn validate(&self) -> Result<(), CacheError> {
        for (key, received) in [
            ("layers", self.layers),
            ("sequences", self.sequences),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("value_dim", self.value_dim),
            ("max_len", self.max_len),
        ] {
            if received == 0 {
                return Err(CacheError::Config {
                    key,
                    requirement: "must be at least 1",
                    received,
                });
            }
        }
        if !self.tail_block.is_multiple_of(TILE) || self.tail_block > MAX_TAIL_BLOCK {
            return Err(CacheError::Config {
                key: "tail_block",
                requirement: "must be a multiple of 16, at most 1024",
                received: self.tail_block,
            });
        }
        if self.windows.len() > self.layers {
            return Err(CacheError::Config {
                key: "windows",
                requirement: "must not be more than there are layers",
                received: self.windows.len(),
            });
        }
        if self.windows.contains(&Some(0)) {
            return Err(CacheError::Config {
                key: "windows",
                requirement: "must be at least 1",
                received: 0,
            });
        }
        // positions are u32
        if self.max_len > u32::MAX as usize {
            return Err(CacheError::Config {
                key: "max_len",
                requirement: "must be below 2^32",
                received: self.max_len,
            });
        }
        self.memory_policy.validate()?;
        Ok(())
    }
}
