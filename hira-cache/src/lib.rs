//! The key/value cache of a decoder: one key index and one value store per layer, sequence and KV head.
//!
//! [`HiraCache`] is what a model keeps between steps. A batch of new tokens is appended to a layer *whole or not at
//! all*: shapes, finiteness, the room that is left and the memory budget are all checked before the first row is stored.
//! Every appended key is searchable at once.
//!
//! ```
//! use hira_cache::{CacheConfig, HiraCache};
//!
//! // 2 layers, 1 sequence, 1 KV head, head dimension 4, room for 100 tokens
//! let mut cache = HiraCache::new(CacheConfig::new(2, 1, 1, 4, 100))?;
//! let keys = [1.0, 0.0, 0.0, 0.0, /* second token */ 0.0, 1.0, 0.0, 0.0];
//! let values = [0.5; 8];
//! cache.append(0, &keys, &values)?;
//! assert_eq!(cache.seq_len(0), 2);
//! assert!(cache.append(0, &[f32::NAN; 4], &[0.0; 4]).is_err());
//! assert_eq!(cache.seq_len(0), 2);
//! # Ok::<(), hira_cache::CacheError>(())
//! ```
//!
//! [`HiraCache::fork`] shares every stored row with another cache; [`PrefixStore`] keeps caches of prompts, so that one which begins as
//! another did goes on from its cache. [`HiraCache::save`] puts a cache in a folder, and [`HiraCache::load`] brings it back bit for bit: see
//! [`persist`].

mod cache;
mod config;
mod error;
mod head;
mod layer;
mod means;
#[cfg(feature = "burn")]
mod on_device;
pub mod persist;
mod prefix;
mod reindex;
mod residency;
mod values;
mod window;

#[cfg(feature = "burn")]
pub mod burn;

pub use cache::{CacheInfo, HiraCache, memory_of};
pub use config::CacheConfig;
pub use error::CacheError;
pub use head::{HeadCache, KvRun, SparseHistory};
pub use layer::LayerCache;
pub use means::{BlockMeans, MeanRun};
pub use persist::{LoadOptions, LoadedCache, PersistError, SaveOptions, SaveReport, Verify};
pub use prefix::{PrefixError, PrefixStore};
pub use values::{ValueRun, ValueStore};
