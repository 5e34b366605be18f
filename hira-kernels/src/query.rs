//! A group of queries, quantised once for the scans of a whole decode step.

use crate::kernel::dispatch;
use crate::{Kernel, MAX_DIM, TILE, lanes};

/// Dimensions between two flushes of the integer dot product into `f32`.
///
/// A query code is below `16320 = 127*128 + 64` in magnitude, a key code at most 127:
/// `1024 * 127 * 16320 = 2_122_383_360 < 2^31`, so the sum fits an `i32`. The two parts of the AVX-512 kernel,
/// `1024 * 127 * 127 = 16_516_096 < 2^24`, convert to `f32` without rounding.
pub(crate) const FLUSH: usize = 1024;

/// Lines between two flushes.
pub(crate) const FLUSH_LINES: usize = FLUSH / 4;

/// Largest magnitude of a query code: `128 * 127 + 63`.
const MAX_CODE: f32 = 16_319.0;

/// Unit roundoff of `f32`.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// `2^-132`, the absolute part of the slack per dimension; as an `f32` bit pattern, bit `k` of a subnormal is `2^(k - 149)`.
const UNDERFLOW: f64 = f32::from_bits(1 << 17) as f64;

/// Covers the rounding of the band itself: each of its terms is made larger by this factor, and passes through at most
/// four operations, each of which loses at most `2^-24` of it: `(1 + 2^-20)(1 - 2^-24)^5 > 1`.
const BAND_UP: f64 = 1.0 + 1.0 / (1u64 << 20) as f64;

/// The queries that share one KV head, as exact rows and as 15-bit codes.
///
/// Reusable: [`prepare`](Self::prepare) allocates only when the group or its dimension grows.
///
/// # Numerics
///
/// Each query is `q = sq * (128 * hi + lo) + e` with `hi` in `-127..=127` and `lo` in `-64..=63`, both `i8`, so that an
/// 8-bit dot product instruction serves both parts.
#[derive(Clone, Debug, Default)]
pub struct QueryGroup {
    dim: usize,
    queries: Vec<f32>,
    /// Per query, per line: four `hi` bytes and four `lo` bytes.
    words: Vec<[i32; 2]>,
    /// Per query, per line: the codes of dimensions `4j, 4j+2` and of `4j+1, 4j+3`, as pairs of `i16`.
    pairs: Vec<[i32; 2]>,
    /// Per query, per flush: `-128 * sum(hi)` and `-128 * sum(lo)`, which takes the 128 of the stored codes out again.
    biases: Vec<[i32; 2]>,
    /// Per query: `sq`.
    scales: Vec<f32>,
    /// Per query: at least `||q||`.
    norms: Vec<f32>,
    /// Per query: at least `||e||` and the rounding that grows with `||q||`; see [`QueryGroup::prepare`].
    errors: Vec<f32>,
}

/// What depends on a query and on the centre of a segment, one entry per query of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SegmentOffsets {
    /// `q . mu`, the canonical score.
    pub offset: Vec<f32>,
    /// Absolute part of the band: the rounding of `offset` and the underflow of everything.
    pub slack: Vec<f32>,
}

/// What a scan needs about one query in one segment, beside its code.
///
/// With `t` the integer dot product, and `s` and `residual` the parameters of a key:
///
/// ```text
/// common = fma(error, tile norm, slack)              once per tile
/// upper = fma( norm, residual, fma(scale * t, s, offset + common))
/// lower = fma(-norm, residual, fma(scale * t, s, offset - common))
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueryConstants {
    pub(crate) scale: f32,
    pub(crate) offset: f32,
    pub(crate) norm: f32,
    pub(crate) error: f32,
    pub(crate) slack: f32,
}

impl QueryConstants {
    /// `offset - common` and `offset + common` for a tile of that norm.
    #[inline(always)]
    pub(crate) fn ends(&self, tile_norm: f32) -> [f32; 2] {
        let common = self.error.mul_add(tile_norm, self.slack);
        [self.offset - common, self.offset + common]
    }
}

/// Relative error of the canonical score of `dim` dimensions, as a factor of `sum |q_i k_i|`.
///
/// Each product passes through at most `ceil(dim/16)` fused multiply-adds and 4 additions, each with relative error
/// `u = 2^-24`: `gamma_n = n*u / (1 - n*u)` with `n = ceil(dim/16) + 4` (Higham, Accuracy and Stability of Numerical
/// Algorithms, section 3.1).
pub(crate) fn gamma(dim: usize) -> f64 {
    let n = (dim.div_ceil(TILE) + 4) as f64;
    n * UNIT / (1.0 - n * UNIT)
}

impl QueryGroup {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Quantises the rows of `queries`, replacing what the group held.
    ///
    /// # Numerics
    ///
    /// With `k = mu + s c + r` and `q = q' + e` (`q' = sq * code`), the exact product is
    /// `q.k = q'.(s c) + e.(s c) + q.r + q.mu`. What separates the canonical score from the estimate is at most:
    ///
    /// 1. `||e|| ||s c|| + ||q|| ||r||`, the two cross terms;
    /// 2. `gamma_n ||q|| ||k||`, the canonical score's own rounding, and `gamma_n ||q|| ||mu||`, the offset's;
    /// 3. `(m + 1) u ||q'|| ||s c||` from turning `m = ceil(dim/1024)` exact integer sums into one `f32` (one
    ///    rounding each, one per addition; by Cauchy's inequality the parts' magnitudes sum to at most
    ///    `||code|| ||c||`);
    /// 4. `u ||q'|| ||s c||` from the product with `sq`. It does not underflow: a normal `sq` times an integer is
    ///    normal or 0, a subnormal `sq` times an integer is exact while subnormal;
    /// 5. `u (|offset| + common)` from `offset + common`, and from each of the two fused multiply-adds `u` times its
    ///    result, at most `||q'|| ||s c|| + |offset| +` the band, up to terms of second order;
    /// 6. `2^-150` for each operation whose result is subnormal: fewer than `dim + 64`.
    ///
    /// With `||q'|| <= ||q|| + ||e||` and `norm >= max(||s c||, ||k||)` per tile, the terms that grow with `norm` are
    /// gathered in `error = ||e|| + gamma_n ||q|| + (m + 5) u (||q|| + ||e||)`, where the spare `u` covers the terms of
    /// second order (`m <= 64`), and the others in the slack of [`offsets_into`](Self::offsets_into).
    ///
    /// # Panics
    ///
    /// If `dim` is 0 or above [`MAX_DIM`], or `queries` is not a whole number of rows.
    pub fn prepare(&mut self, kernel: Kernel, queries: &[f32], dim: usize) {
        assert!(
            dim > 0 && dim <= MAX_DIM,
            "a row has 1 to {MAX_DIM} dimensions, not {dim}"
        );
        assert_eq!(queries.len() % dim, 0, "queries are whole rows of {dim}");
        self.dim = dim;
        self.queries.clear();
        self.queries.extend_from_slice(queries);
        for words in [&mut self.words, &mut self.pairs, &mut self.biases] {
            words.clear();
        }
        for values in [&mut self.scales, &mut self.norms, &mut self.errors] {
            values.clear();
        }
        dispatch!(kernel, prepare_queries(self));
    }

    /// The body of every kernel's `prepare_queries`: inlined into a function with that kernel's target features. The
    /// same bits everywhere: no product in it would be rounded differently by a fused operation.
    #[inline(always)]
    pub(crate) fn quantise(&mut self) {
        let (dim, lines, flushes) = (self.dim, self.lines(), self.flushes());
        let count = self.queries.len() / dim;
        self.words.resize(count * lines, [0; 2]);
        self.pairs.resize(count * lines, [0; 2]);
        self.biases.resize(count * flushes, [0; 2]);
        for g in 0..count {
            let row = &self.queries[g * dim..][..dim];
            let words = &mut self.words[g * lines..][..lines];
            let pairs = &mut self.pairs[g * lines..][..lines];
            let biases = &mut self.biases[g * flushes..][..flushes];
            let norm = lanes::norm_up(row);
            let scale = query_scale(row);
            let mut squares = [0.0f64; TILE];
            for (block, (words, pairs)) in words.chunks_mut(4).zip(pairs.chunks_mut(4)).enumerate()
            {
                let codes = quantise_block(&lanes::load(row, block), scale, &mut squares);
                let [hi, lo] = &mut biases[block * TILE / FLUSH];
                let packed = pack(&codes);
                words.copy_from_slice(&packed.words[..words.len()]);
                pairs.copy_from_slice(&packed.pairs[..pairs.len()]);
                *hi -= 128 * packed.sums[0];
                *lo -= 128 * packed.sums[1];
            }
            // NORM_UP's margin over its own derivation also covers the one rounding of each component.
            let quantisation = lanes::tree_f64(squares).sqrt() * lanes::NORM_UP;
            let rounding =
                gamma(dim) * norm + (flushes as f64 + 5.0) * UNIT * (norm + quantisation);
            self.scales.push(scale);
            self.norms.push(lanes::round_up(norm * BAND_UP));
            self.errors
                .push(lanes::round_up((quantisation + rounding) * BAND_UP));
        }
    }

    /// `q . mu` and the absolute slack of each query, for a segment centred on `centre`.
    ///
    /// # Numerics
    ///
    /// `slack = (gamma_n + 4 u) ||q|| ||mu||` (items 2 and 5 of [`prepare`](Self::prepare): three `u` of `|offset|`, and
    /// one for the terms of second order), outward, plus `(dim + 64) * 2^-132`: item 6 asks for `2^-150`, and the larger constant keeps
    /// the slack a normal number, which processors add faster.
    ///
    /// # Panics
    ///
    /// If `centre` has another dimension than the group.
    pub fn offsets_into(&self, kernel: Kernel, centre: &[f32], offsets: &mut SegmentOffsets) {
        assert_eq!(
            centre.len(),
            self.dim,
            "the centre has the dimension of the queries"
        );
        let centre_norm = lanes::norm_up(centre);
        let underflow = (self.dim + 64) as f64 * UNDERFLOW;
        offsets.offset.clear();
        offsets.slack.clear();
        for g in 0..self.len() {
            let relative =
                (gamma(self.dim) + 4.0 * UNIT) * f64::from(self.norms[g]) * centre_norm * BAND_UP;
            offsets.offset.push(kernel.score(self.query(g), centre));
            offsets.slack.push(lanes::round_up(relative + underflow));
        }
    }

    /// Queries in the group.
    pub fn len(&self) -> usize {
        self.norms.len()
    }

    /// Whether the group holds no query.
    pub fn is_empty(&self) -> bool {
        self.norms.is_empty()
    }

    /// Dimensions per query; 0 before the first [`prepare`](Self::prepare).
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The exact row of query `g`.
    ///
    /// # Panics
    ///
    /// If there is no query `g`.
    pub fn query(&self, g: usize) -> &[f32] {
        &self.queries[g * self.dim..][..self.dim]
    }

    /// An upper bound of the Euclidean norm of query `g`, above it by less than a factor of `1 + 2^-19`.
    ///
    /// # Panics
    ///
    /// If there is no query `g`.
    pub fn norm(&self, g: usize) -> f32 {
        self.norms[g]
    }

    /// Code lines per query.
    pub(crate) fn lines(&self) -> usize {
        self.dim.div_ceil(4)
    }

    /// Flushes per query.
    pub(crate) fn flushes(&self) -> usize {
        self.dim.div_ceil(FLUSH)
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn words(&self) -> &[[i32; 2]] {
        &self.words
    }

    pub(crate) fn pairs(&self) -> &[[i32; 2]] {
        &self.pairs
    }

    pub(crate) fn biases(&self) -> &[[i32; 2]] {
        &self.biases
    }

    pub(crate) fn constants(&self, g: usize, offsets: &SegmentOffsets) -> QueryConstants {
        QueryConstants {
            scale: self.scales[g],
            offset: offsets.offset[g],
            norm: self.norms[g],
            error: self.errors[g],
            slack: offsets.slack[g],
        }
    }
}

/// The scale that maps the largest component of a row to at most [`MAX_CODE`], up to one rounding; 0 for a zero row.
#[inline(always)]
fn query_scale(row: &[f32]) -> f32 {
    let mut largest = [0.0f32; TILE];
    for block in 0..row.len().div_ceil(TILE) {
        for (largest, value) in largest.iter_mut().zip(lanes::load(row, block)) {
            *largest = if value.abs() > *largest {
                value.abs()
            } else {
                *largest
            };
        }
    }
    let largest = largest.into_iter().fold(0.0f32, f32::max);
    let scale = largest / MAX_CODE;
    // Where the quotient is subnormal it may have been rounded down far: one step up keeps every code in range.
    if largest > 0.0 && scale < f32::MIN_POSITIVE {
        scale.next_up()
    } else {
        scale
    }
}

/// The codes of sixteen components; adds the squares of what they leave.
#[inline(always)]
fn quantise_block(values: &[f32; TILE], scale: f32, squares: &mut [f64; TILE]) -> [i32; TILE] {
    let divisor = if scale > 0.0 { scale } else { 1.0 };
    let mut codes = [0i32; TILE];
    for l in 0..TILE {
        let (code, rounded) = lanes::round((values[l] / divisor).clamp(-MAX_CODE, MAX_CODE));
        codes[l] = code;
        // The product (24 by 15 bits) is exact in f64, the difference rounds once.
        let error = f64::from(values[l]) - f64::from(scale) * f64::from(rounded);
        squares[l] += error * error;
    }
    codes
}

/// The codes of four lines, as the kernels read them.
struct Packed {
    words: [[i32; 2]; 4],
    pairs: [[i32; 2]; 4],
    /// Sums of the `hi` parts and of the `lo` parts.
    sums: [i32; 2],
}

#[inline(always)]
fn pack(codes: &[i32; TILE]) -> Packed {
    let (mut hi, mut lo) = ([0u8; TILE], [0u8; TILE]);
    let mut sums = [0; 2];
    for l in 0..TILE {
        let high = (codes[l] + 64) >> 7;
        let low = codes[l] - 128 * high;
        (hi[l], lo[l]) = (high as u8, low as u8);
        sums = [sums[0] + high, sums[1] + low];
    }
    let (hi, lo) = (hi.as_chunks::<4>().0, lo.as_chunks::<4>().0);
    let pair = |even: i32, odd: i32| (even & 0xffff) | odd << 16;
    let mut packed = Packed {
        words: [[0; 2]; 4],
        pairs: [[0; 2]; 4],
        sums,
    };
    for (j, quad) in codes.as_chunks::<4>().0.iter().enumerate() {
        packed.words[j] = [i32::from_le_bytes(hi[j]), i32::from_le_bytes(lo[j])];
        packed.pairs[j] = [pair(quad[0], quad[2]), pair(quad[1], quad[3])];
    }
    packed
}
