//! The hierarchical key index: what is known about the keys of one attention head, from the exact rows up.
//!
//! A [`HierarchicalIndex`] is a list of sealed [`Segment`]s and one open segment. Every segment keeps its keys exactly, as `f32` or
//! rounded once to [`IndexConfig::precision`] (what is stored is the key, to everything here and above), in the order in which they came; a *sketch* of them (one byte a dimension, with a proven residual norm); and, once
//! it is sealed, coarse [`Level`]s of clusters with an outward-rounded ball and box. Level 0 is the coarsest.
//!
//! What divides keys into clusters is a [`Builder`]: [`KMeansBuilder`], [`RandomizedBuilder`], [`KdTreeBuilder`], [`ChunkBuilder`] or
//! your own, which returns a [`Hierarchy`]; balls and boxes are computed from the members, so no builder can break a bound. When keys get
//! clusters is up to the updater ([`UpdateConfig`]): once a segment is full, or by [`RebuildUpdater`], [`IncrementalUpdater`] or
//! [`DynamicUpdater`] while it grows; on the calling thread or, with [`IndexConfig::background`], on another. A key can be searched from the
//! moment it is appended all the same. [`HierarchicalIndex::path`], [`Segment::members`] and [`HierarchicalIndex::dump`] show what was built.
//!
//! The index stores and describes; it never answers a query. `hira-search` does that, and whatever it finds through any
//! of these layers is what brute force over the keys would find.
//!
//! ```
//! use hira_index::{HierarchicalIndex, IndexConfig};
//!
//! let mut index = HierarchicalIndex::new(IndexConfig::new(2))?;
//! index.append(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0])?; // three keys, searchable at once
//! assert_eq!(index.len(), 3);
//! assert_eq!(index.key(1), Some((&[0.0, 1.0]).into()));
//!
//! let refused = index.append(&[1.0, f32::NAN]).unwrap_err();
//! assert_eq!(refused.to_string(), "the value in row 0, column 1 is not finite");
//! assert_eq!(index.len(), 3); // a batch is appended whole or not at all
//! # Ok::<(), hira_index::IndexError>(())
//! ```

mod bound;
mod builder;
mod config;
mod device;
mod dump;
mod error;
mod index;
mod level;
mod memory;
mod named;
mod product;
mod reservoir;
mod restore;
mod rows;
mod segment;
mod sketch;
mod slots;
mod snapshot;
mod update;
mod validate;
mod widen;

#[cfg(feature = "burn")]
pub mod burn;

pub use builder::{
    BuildInput, Builder, BuilderConfig, ChunkBuilder, Hierarchy, KMeansBuilder, KMeansStart,
    KdAxis, KdTreeBuilder, RandomizedBuilder,
};
pub use config::{IndexConfig, SampleConfig};
pub use device::{DeviceMemory, DeviceSlot, DeviceStore, DeviceUsage, RowPlace, RowsNotMoved};
pub use dump::KeyPath;
pub use error::IndexError;
pub use index::HierarchicalIndex;
pub use level::Level;
pub use memory::{Counted, IndexMemory};
pub use product::{ProductCodes, ProductConfig, ProductQuantizationBuilder};
pub use segment::Segment;
pub use snapshot::{LevelParts, ProductParts, SavedSegment, SegmentParts, SketchParts};
pub use update::{
    DynamicUpdater, IncrementalUpdater, RebuildTrigger, RebuildUpdater, UpdateConfig,
};

use builder::build_checked;
