//! Slices in, slices out: the arithmetic of exact, certified sparse attention.
//!
//! Everything here works on plain slices and is a method of [`Kernel`], which names an instruction set that was
//! detected on the running machine. All kernels give **the same bits**: a score, a proven interval or a selected
//! set does not depend on the machine that computed it.
//!
//! * [`Kernel::score`], [`Kernel::scores_into`], [`Kernel::scores_at_into`]: the canonical score `q . k`.
//! * [`Precision`], [`StoredSlice`], [`StoredVec`]: exact rows in `f32`, `f16` or `bf16`, as every kernel over exact rows takes them.
//! * [`Region`], [`StoredRows`]: rows at a fixed address that are in memory or in a file.
//! * [`Kernel::quantise_keys`], [`SketchView`]: int8 codes, 16 keys to a tile, with a proven residual norm.
//! * [`QueryGroup`], [`Kernel::intervals_into`], [`Kernel::scan_into`]: proven intervals for the scores of a whole
//!   group of queries in one pass over the tiles, and the slots whose upper bound reaches a threshold.
//! * [`Centroids`], [`Kernel::nearest_into`]: which of a few centroids is nearest to each of many points.
//! * [`Kernel::product_encode`], [`ProductTables`], [`Kernel::product_bounds_into`]: codes of a few bits a subvector, and a
//!   proven upper bound for each tile of them.
//! * [`Kernel::exp_weights_into`], [`Kernel::weighted_sum_into`], [`SoftmaxState`]: the softmax that follows.
//! * [`MassBounds`]: the softmax mass that is proven on either side of a threshold.
//! * [`BlockTail`], [`BlockWeights`]: the softmax mass of the keys that are left out, by blocks, and what stands for it.
//! * [`Team`], [`Spares`]: the threads that share the work of one call, and the buffers that their tasks share.
//!
//! # Numerics
//!
//! Rows are finite and have a Euclidean norm below [`MAX_NORM`]; callers check that before they store anything.
//! Then no score, bound or partial sum overflows and no NaN appears. Rounding is to nearest, ties to even, with
//! subnormals kept (Rust's default floating-point environment).
//!
//! # Examples
//!
//! ```
//! use hira_kernels::{Candidates, Kernel, Line, QueryGroup, ScanQuery, SegmentOffsets, SketchView, TILE, tile_lines};
//!
//! let kernel = Kernel::best();
//! let (dim, len) = (8, 20);
//! let keys: Vec<f32> = (0..len * dim).map(|i| (i as f32 * 0.37).sin()).collect();
//! let query = &keys[3 * dim..4 * dim];
//!
//! // Sketch the keys.
//! let tiles = len.div_ceil(TILE);
//! let (mut lines, mut norms) = (vec![Line::EMPTY; tiles * tile_lines(dim)], vec![0.0; tiles]);
//! let centre = vec![0.0; dim];
//! kernel.quantise_keys(&keys, &centre, 0, &mut lines, &mut norms);
//! let sketch = SketchView { dim, len, lines: &lines, norms: &norms };
//!
//! // Every key whose score may reach tau.
//! let mut group = QueryGroup::new();
//! group.prepare(kernel, query, dim);
//! let mut offsets = SegmentOffsets::default();
//! group.offsets_into(kernel, &centre, &mut offsets);
//! let tau = kernel.score(query, query);
//! let mut found = [Candidates::default()];
//! kernel.scan_into(sketch, 0..tiles, 0, &group, &offsets, &[ScanQuery { tau, tail_scale: 0.0, block_keys: 0 }], &mut found);
//! assert!(found[0].slots.contains(&3));
//! ```

mod batch;
mod bf16;
mod boxes;
mod bytes;
mod ceiling;
mod columns;
mod compensate;
#[cfg(feature = "cube")]
pub mod cube;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dense;
mod disk_rows;
mod element;
mod error;
mod exp;
mod kernel;
mod lanes;
mod mass;
mod nearest;
mod order;
mod pages;
mod precision;
mod prefetch;
mod product;
mod query;
mod region;
mod rows;
mod scalar;
mod scan;
mod score;
mod sketch;
mod softmax;
mod spares;
mod stored;
mod tail;
mod team;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod portable;

pub use batch::RowBatch;
pub use compensate::{BlockFactors, BlockTotals, BlockWeights, WEIGHED_BLOCKS};
pub use disk_rows::DiskRows;
pub use error::KernelError;
pub use kernel::Kernel;
#[cfg(target_arch = "x86_64")]
pub use kernel::{Avx2, Avx512};
pub use mass::{MassBounds, MassCut, MassSplit};
pub use nearest::Centroids;
pub use pages::{give_back_free_pages, prefer_large_pages};
pub use precision::Precision;
pub use prefetch::prefetch;
pub use product::{MAX_SUBVECTORS, ProductShape, ProductTables, ProductView};
pub use query::{QueryGroup, SegmentOffsets};
pub use region::{Backing, Region, RowReads};
pub use rows::StoredRows;
pub use scan::{Candidates, ScanQuery};
pub use sketch::{Line, SketchView, tile_lines};
pub use softmax::SoftmaxState;
pub use spares::Spares;
pub use stored::{StoredSlice, StoredVec};
pub use tail::BlockTail;
pub use team::{Helper, Team};

/// Keys per tile of a sketch, and lanes of the canonical score.
pub const TILE: usize = 16;

/// Rows of keys and queries have a Euclidean norm below this, `2^63`: then a score stays below `2^126`, and with
/// bounds and partial sums added, below the largest `f32`.
pub const MAX_NORM: f32 = 9.223_372e18;

/// Largest dimension of a key or query row: `2^16`.
///
/// The error constants of the sketch are derived for it (integer dot products are flushed every 1024 dimensions,
/// so that no `i32` overflows at any dimension up to this one).
pub const MAX_DIM: usize = 1 << 16;
