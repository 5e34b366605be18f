//! Builders: how the keys of a segment are divided into clusters.
//!
//! A [`Builder`] returns a [`Hierarchy`]: an order of the keys and the runs of it that are clusters. Centroids, balls and boxes are
//! then computed from the members by the code of this crate, so that no builder can break a bound: what it decides is how much a
//! search has to read, never what it finds.

mod chunk;
mod hierarchy;
mod kd_tree;
mod kmeans;
mod lloyd;
mod randomized;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use hira_kernels::Kernel;
use serde::{Deserialize, Serialize};

pub use chunk::ChunkBuilder;
pub use hierarchy::Hierarchy;
pub use kd_tree::{KdAxis, KdTreeBuilder};
pub use kmeans::{KMeansBuilder, KMeansStart};
pub(crate) use lloyd::Lloyd;
pub use randomized::RandomizedBuilder;

use crate::IndexError;
use crate::named::by_name;

/// The keys that a [`Builder`] is to divide, and how.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct BuildInput<'a> {
    /// Rows of [`dim`](Self::dim) values: finite, with norms below `2^63`, at least one row.
    pub keys: &'a [f32],
    /// Dimension of a key.
    pub dim: usize,
    /// The kernel to compute with. All give the same bits, so it must not change the result.
    pub kernel: Kernel,
    /// Number of coarse levels; at least 1.
    pub levels: usize,
    /// Keys to a cluster of the finest level, and clusters to a cluster above it; at least 2.
    pub branching_factor: usize,
}

impl<'a> BuildInput<'a> {
    /// Keys to divide into `levels` coarse levels.
    pub fn new(
        keys: &'a [f32],
        dim: usize,
        kernel: Kernel,
        levels: usize,
        branching_factor: usize,
    ) -> Self {
        Self {
            keys,
            dim,
            kernel,
            levels,
            branching_factor,
        }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len() / self.dim
    }

    /// Whether there are no keys. A segment that is sealed has some.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key at position `i` of the segment.
    ///
    /// # Panics
    ///
    /// If `i` is not below [`len`](Self::len).
    pub fn key(&self, i: u32) -> &'a [f32] {
        &self.keys[i as usize * self.dim..][..self.dim]
    }

    /// Keys that a cluster of `level` should have: `b^(levels - level)`, level 0 being the coarsest.
    pub fn cluster_size(&self, level: usize) -> usize {
        let above_keys = self.levels.saturating_sub(level) as u32;
        self.branching_factor.saturating_pow(above_keys)
    }
}

/// Divides the keys of a segment into clusters; the open set of strategies, to which you may add your own.
///
/// A builder is called when a segment is sealed or built anew, perhaps on another thread. What it returns is checked. If it returns an
/// error, something else than a hierarchy of the keys it was given, or panics, then no key is lost and nothing is refused: the segment
/// is stored without coarse levels, is searched by its sketch, and keeps the reason as
/// [`Segment::build_error`](crate::Segment::build_error).
///
/// A builder should be deterministic: the same input, the same hierarchy, whatever the kernel.
///
/// # Examples
///
/// A builder that sorts keys by their first coordinate ([`Hierarchy::divide`] does the rest). The crate's example `own_builder`
/// compares one with those that are there.
///
/// ```
/// use std::sync::Arc;
///
/// use hira_index::{BuildInput, Builder, Hierarchy, HierarchicalIndex, IndexConfig, IndexError};
///
/// #[derive(Debug)]
/// struct FirstCoordinate;
///
/// impl Builder for FirstCoordinate {
///     fn build(&self, input: &BuildInput<'_>) -> Result<Hierarchy, IndexError> {
///         Hierarchy::divide(input, |rows, clusters| {
///             rows.sort_by(|&a, &b| input.key(a)[0].total_cmp(&input.key(b)[0]));
///             (1..=clusters).map(|i| i * rows.len() / clusters).collect()
///         })
///     }
/// }
///
/// let config = IndexConfig::new(1).with_num_levels(2).with_branching_factor(2).with_min_coarse_len(0);
/// let mut index = HierarchicalIndex::with_builder(config, Arc::new(FirstCoordinate))?;
/// index.append(&[3.0, 1.0, 4.0, 1.5])?;
/// index.seal();
/// let segment = index.segments().next().expect("a sealed segment");
/// assert_eq!(segment.order(), Some(&[1, 3, 0, 2][..]));
/// # Ok::<(), IndexError>(())
/// ```
pub trait Builder: Send + Sync + fmt::Debug {
    /// Divides the keys into `input.levels` levels of clusters.
    ///
    /// # Errors
    ///
    /// Whatever the builder likes; [`IndexError::Builder`] is there for it.
    fn build(&self, input: &BuildInput<'_>) -> Result<Hierarchy, IndexError>;
}

/// Which of the crate's builders divides the keys of a segment.
///
/// The choice changes how long building takes and how tight the clusters are, never the answer to a query.
///
/// In a configuration file its name, `builder = "kd_tree"`, or with settings, in TOML `builder = { k_means = { nredo = 2 } }`; those that
/// are left out have their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BuilderConfig {
    /// k-means: the tightest clusters, the longest time to build.
    KMeans(KMeansBuilder),
    /// Random centroids and a single iteration.
    Randomized(RandomizedBuilder),
    /// Balanced halves along the axis of largest variance, or the first principal direction.
    KdTree(KdTreeBuilder),
    /// Runs of time: costs nothing, and the order of slots stays that of positions.
    Chunk,
}

/// The form with settings.
#[derive(Deserialize)]
#[serde(remote = "BuilderConfig", rename_all = "snake_case")]
enum BuilderForm {
    KMeans(KMeansBuilder),
    Randomized(RandomizedBuilder),
    KdTree(KdTreeBuilder),
    Chunk,
}

by_name!(
    BuilderConfig,
    BuilderForm,
    "the name of a builder, or a builder and its settings"
);

impl Default for BuilderConfig {
    fn default() -> Self {
        Self::KMeans(KMeansBuilder::default())
    }
}

impl BuilderConfig {
    /// The builder.
    pub fn init(&self) -> Arc<dyn Builder> {
        match *self {
            Self::KMeans(builder) => Arc::new(builder),
            Self::Randomized(builder) => Arc::new(builder),
            Self::KdTree(builder) => Arc::new(builder),
            Self::Chunk => Arc::new(ChunkBuilder),
        }
    }

    /// Says whether the values are possible, and if not, which key is wrong and what it has to be.
    ///
    /// # Errors
    ///
    /// [`IndexError::Config`].
    pub fn validate(&self) -> Result<(), IndexError> {
        match self {
            Self::KMeans(builder) => builder.validate(),
            Self::Randomized(_) | Self::KdTree(_) | Self::Chunk => Ok(()),
        }
    }

    /// The k-means that divides clusters which outgrew their size: the builder itself where it is one.
    pub(crate) fn splitter(&self) -> KMeansBuilder {
        match *self {
            Self::KMeans(builder) => builder,
            Self::Randomized(builder) => builder.as_k_means(),
            Self::KdTree(_) | Self::Chunk => KMeansBuilder::default(),
        }
    }
}

/// What `builder` makes of `input`, checked against it.
pub(crate) fn build_checked(
    builder: &dyn Builder,
    input: &BuildInput<'_>,
) -> Result<Hierarchy, IndexError> {
    // A builder is foreign code. Nothing that it can have broken outlives the call: it gets shared references only.
    let hierarchy = catch_unwind(AssertUnwindSafe(|| builder.build(input))).unwrap_or(Err(
        IndexError::Builder {
            what: "it panicked",
        },
    ))?;
    let fault = if hierarchy.len() != input.len() {
        "it has another number of keys"
    } else if hierarchy.levels() != input.levels {
        "it has another number of levels"
    } else {
        return Ok(hierarchy);
    };
    Err(IndexError::Builder { what: fault })
}
