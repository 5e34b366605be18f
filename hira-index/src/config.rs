//! How an index is laid out, and how its clusters are found.

use hira_kernels::{MAX_DIM, Precision, TILE};
use serde::{Deserialize, Serialize};

use crate::{BuilderConfig, IndexError, ProductConfig, UpdateConfig};

/// The shape of an index: one value for its whole life.
///
/// # Examples
///
/// ```
/// use hira_index::IndexConfig;
///
/// let config = IndexConfig::new(64).with_num_levels(1); // sketch only, no clusters
/// assert!(config.validate().is_ok());
///
/// let error = config.with_segment_len(1000).validate().unwrap_err();
/// assert_eq!(error.to_string(), "segment_len must be a multiple of 16, from 16 to 2^30");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IndexConfig {
    /// Dimension of a key, 1 to 65536. Default: 64.
    pub dim: usize,
    /// Levels of a sealed segment; the sketch is the last of them. 0 keeps the exact keys only, 1 adds the sketch, and
    /// `n` adds `n - 1` coarse levels above the sketch. At most 8. Default: 3.
    pub num_levels: usize,
    /// Keys to a cluster of the finest coarse level, and clusters to a cluster above it; 2 to 1024. Default: 32.
    pub branching_factor: usize,
    /// Keys in a full segment: the open segment is sealed when it holds as many. A multiple of 16. Default: 8192.
    pub segment_len: usize,
    /// The open segment is sketched once the index holds as many keys. Default: 0, at once.
    ///
    /// A search of an index that is not sketched yet scores every key, so that one that stays short never pays for a sketch: cold, at 64
    /// keys of dimension 128, that is 2.5 of the 9 us that a head's dense attention step takes. From half of the way on, whole tiles are sketched that
    /// wait, two keys for each that comes, so that no append has to sketch all of them. No value changes an answer.
    pub sketch_from: usize,
    /// Segments that are shorter when they are sealed get no coarse levels; 0 builds them always. Default: 1024.
    pub min_coarse_len: usize,
    /// What divides the keys of a segment into clusters. Default: k-means.
    pub builder: BuilderConfig,
    /// When keys move from the open segment into clusters, and how. Default: seal.
    pub update: UpdateConfig,
    /// Whether segments are built and merged on another thread. Default: false.
    ///
    /// Keys can be searched all the same: the segments as they were, by their sketch, until what was built takes their place at
    /// the next [`append`](crate::HierarchicalIndex::append) or [`finish_builds`](crate::HierarchicalIndex::finish_builds). When
    /// that is changes how fast searches are, never what they find.
    pub background: bool,
    /// The sample of positions that sampled rules look at.
    pub sample: SampleConfig,
    /// Product codes of every sealed segment that is long enough for coarse levels, beside its sketch; `None` for none.
    /// Default: `None`.
    pub product: Option<ProductConfig>,
    /// What exact keys are stored in. Keys are rounded to it when they are appended, and what is stored is the key from then on: scores,
    /// sketches, levels and answers are those of the stored keys. Default: f32, which stores them as they are.
    pub precision: Precision,
}

/// A uniform sample of the stored positions, kept up to date at O(1) a key.
///
/// Which positions are sampled depends on the seed and the number of keys alone; see
/// [`sample_positions`](crate::HierarchicalIndex::sample_positions). So indexes with the same seed sample the same positions, and
/// where one head's sample is unlucky those of the others may be; give each its own seed where that matters. Rules that look at
/// no sample are unaffected by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Sampled positions, at most 65536; 0 keeps no sample, and then a sampled rule selects every key. Default: 256.
    pub size: usize,
    /// Seed of the choice. Default: 0.
    pub seed: u64,
}

impl SampleConfig {
    /// The most positions a sample can have.
    pub const MAX_SIZE: usize = 1 << 16;
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { size: 256, seed: 0 }
    }
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            num_levels: 3,
            branching_factor: 32,
            segment_len: 8192,
            sketch_from: 0,
            min_coarse_len: 1024,
            builder: BuilderConfig::default(),
            update: UpdateConfig::default(),
            background: false,
            sample: SampleConfig::default(),
            product: None,
            precision: Precision::F32,
        }
    }
}

impl IndexConfig {
    /// The most levels an index can have.
    pub const MAX_LEVELS: usize = 8;

    /// The defaults, for keys of dimension `dim`.
    pub fn new(dim: usize) -> Self {
        Self {
            dim,
            ..Self::default()
        }
    }

    /// Sets [`num_levels`](Self::num_levels).
    pub fn with_num_levels(mut self, num_levels: usize) -> Self {
        self.num_levels = num_levels;
        self
    }

    /// Sets [`branching_factor`](Self::branching_factor).
    pub fn with_branching_factor(mut self, branching_factor: usize) -> Self {
        self.branching_factor = branching_factor;
        self
    }

    /// Sets [`segment_len`](Self::segment_len).
    pub fn with_segment_len(mut self, segment_len: usize) -> Self {
        self.segment_len = segment_len;
        self
    }

    /// Sets [`sketch_from`](Self::sketch_from).
    pub fn with_sketch_from(mut self, sketch_from: usize) -> Self {
        self.sketch_from = sketch_from;
        self
    }

    /// Sets [`min_coarse_len`](Self::min_coarse_len).
    pub fn with_min_coarse_len(mut self, min_coarse_len: usize) -> Self {
        self.min_coarse_len = min_coarse_len;
        self
    }

    /// Sets [`builder`](Self::builder).
    pub fn with_builder(mut self, builder: BuilderConfig) -> Self {
        self.builder = builder;
        self
    }

    /// Sets [`update`](Self::update).
    pub fn with_update(mut self, update: UpdateConfig) -> Self {
        self.update = update;
        self
    }

    /// Sets [`background`](Self::background).
    pub fn with_background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// Sets [`sample`](Self::sample).
    pub fn with_sample(mut self, sample: SampleConfig) -> Self {
        self.sample = sample;
        self
    }

    /// Sets [`product`](Self::product).
    pub fn with_product(mut self, product: Option<ProductConfig>) -> Self {
        self.product = product;
        self
    }

    /// Sets [`precision`](Self::precision).
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// How many of the `len` keys of an open segment that begins at position `start` are to be sketched.
    ///
    /// All of them, once the index holds [`sketch_from`](Self::sketch_from) keys. From half of that on whole tiles of what the index then holds beyond
    /// it, twice: `2 n - sketch_from` of `n` keys, which comes to `n` exactly at `n = sketch_from`.
    pub(crate) fn sketched_of(&self, start: usize, len: usize) -> usize {
        let stored = start + len;
        if stored >= self.sketch_from {
            return len;
        }
        let due = (2 * stored).saturating_sub(self.sketch_from);
        due.saturating_sub(start) / TILE * TILE
    }

    /// How a sealed segment of `len` keys is product-quantised, if it is: not if it has no sketch or is shorter than
    /// [`min_coarse_len`](Self::min_coarse_len).
    pub fn product_of(&self, len: usize) -> Option<&ProductConfig> {
        let worthwhile = self.num_levels > 0 && len >= self.min_coarse_len.max(1);
        self.product.as_ref().filter(|_| worthwhile)
    }

    /// Coarse levels of a sealed segment of `len` keys.
    pub fn coarse_levels(&self, len: usize) -> usize {
        if len < self.min_coarse_len.max(1) {
            0
        } else {
            self.num_levels.saturating_sub(1)
        }
    }

    /// Says whether an index can have this shape, and if not, which key is wrong and what it has to be.
    ///
    /// # Errors
    ///
    /// [`IndexError::ZeroDimension`] or [`IndexError::Config`].
    pub fn validate(&self) -> Result<(), IndexError> {
        if self.dim == 0 {
            return Err(IndexError::ZeroDimension);
        }
        let requirements = [
            (self.dim <= MAX_DIM, "dim", "at most 65536"),
            (
                self.num_levels <= Self::MAX_LEVELS,
                "num_levels",
                "at most 8",
            ),
            (
                (2..=1024).contains(&self.branching_factor),
                "branching_factor",
                "from 2 to 1024",
            ),
            (
                self.segment_len.is_multiple_of(TILE)
                    && (TILE..=1 << 30).contains(&self.segment_len),
                "segment_len",
                "a multiple of 16, from 16 to 2^30",
            ),
            (
                self.sample.size <= SampleConfig::MAX_SIZE,
                "sample.size",
                "at most 65536",
            ),
        ];
        if let Some(&(_, key, requirement)) = requirements.iter().find(|(holds, ..)| !holds) {
            return Err(IndexError::Config { key, requirement });
        }
        self.builder.validate()?;
        self.update.validate()?;
        self.product.map_or(Ok(()), |product| product.validate())
    }
}
