//! The hierarchical key index: what is known about the keys of one attention head, from the exact rows up.
//!
//! A [`HierarchicalIndex`] is a list of sealed [`Segment`]s and one open segment. Every segment keeps its keys exactly,
//! in the order in which they came; a *sketch* of them (one byte a dimension, with a proven residual norm); and, once
//! it is sealed, coarse [`Level`]s of clusters with an outward-rounded ball and box. Level 0 is the coarsest.
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
//! assert_eq!(index.key(1), Some(&[0.0, 1.0][..]));
//!
//! let refused = index.append(&[1.0, f32::NAN]).unwrap_err();
//! assert_eq!(refused.to_string(), "the value in row 0, column 1 is not finite");
//! assert_eq!(index.len(), 3); // a batch is appended whole or not at all
//! # Ok::<(), hira_index::IndexError>(())
//! ```

mod bound;
mod builder;
mod config;
mod dump;
mod error;
mod index;
mod level;
mod memory;
mod product;
mod reservoir;
mod rows;
mod segment;
mod sketch;
mod update;
mod validate;

#[cfg(feature = "burn")]
pub mod burn;

pub use builder::{
    BuildInput, Builder, BuilderConfig, ChunkBuilder, Hierarchy, KMeansBuilder, KMeansStart,
    KdAxis, KdTreeBuilder, RandomizedBuilder,
};
pub use config::{IndexConfig, SampleConfig};
pub use dump::KeyPath;
pub use error::IndexError;
pub use index::HierarchicalIndex;
pub use level::Level;
pub use memory::IndexMemory;
pub use product::{ProductCodes, ProductConfig, ProductQuantizationBuilder};
pub use segment::Segment;
pub use update::{
    DynamicUpdater, IncrementalUpdater, RebuildTrigger, RebuildUpdater, UpdateConfig,
};

use builder::build_checked;
