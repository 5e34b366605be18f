//! Intervals and candidates: 16-bit dot products over half a tile, then one epilogue in eight lanes.

use core::arch::x86_64::*;

use super::softmax::{first_lanes, store};
use crate::lanes::ROUND;
use crate::query::{FLUSH_LINES, QueryConstants};
use crate::scan::{EXP2_UP, MAX_SHARED, MIN_EXPONENT, Queries, Sink, Tiles};
use crate::tail::{Cuts, Pieces};
use crate::{Line, TILE, lanes};

/// Keys of half a tile, lanes of a register.
const LANES: usize = 8;

/// Lower and upper bounds of the scores of eight keys, per query.
struct Bounds<const G: usize> {
    lower: [__m256; G],
    upper: [__m256; G],
}

/// The part of a query group that one pass serves.
#[derive(Clone, Copy)]
struct Group<'a, const G: usize> {
    pairs: [&'a [[i32; 2]]; G],
    biases: [&'a [[i32; 2]]; G],
    constants: [QueryConstants; G],
}

impl<'a, const G: usize> Group<'a, G> {
    fn new(queries: Queries<'a>, first: usize) -> Self {
        let (lines, flushes) = (queries.group.lines(), queries.group.flushes());
        Self {
            pairs: std::array::from_fn(|g| &queries.group.pairs()[(first + g) * lines..][..lines]),
            biases: std::array::from_fn(|g| {
                &queries.group.biases()[(first + g) * flushes..][..flushes]
            }),
            constants: std::array::from_fn(|g| queries.constants(first + g)),
        }
    }
}

/// The bounds of both halves of a tile, so that a query is broadcast once for both.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn bounds<const G: usize>(tiles: Tiles<'_>, tile: usize, group: &Group<'_, G>) -> [Bounds<G>; 2] {
    let lines = &tiles.lines()[tile * tiles.stride()..][..tiles.stride()];
    let count = group.pairs[0].len();
    assert!(count < lines.len() && group.pairs.iter().all(|pairs| pairs.len() == count));
    let low_bytes = _mm256_set1_epi16(0x00ff);
    let mut products = [[_mm256_setzero_ps(); G]; 2];
    for (flush, from) in (0..count).step_by(FLUSH_LINES).enumerate() {
        let mut sums = [[_mm256_setzero_si256(); G]; 2];
        for g in 0..G {
            let [hi, lo] = group.biases[g][flush];
            let bias = _mm256_set1_epi32(128 * hi + lo);
            (sums[0][g], sums[1][g]) = (bias, bias);
        }
        for j in from..count.min(from + FLUSH_LINES) {
            let (left, right) = (load_half(&lines[j], 0), load_half(&lines[j], 1));
            // Codes of dimensions 4j and 4j + 2, and of 4j + 1 and 4j + 3, as 16-bit lanes: with a 16-bit query,
            // `vpmaddwd` is exact where `vpmaddubsw` would saturate.
            let evens = [
                _mm256_and_si256(left, low_bytes),
                _mm256_and_si256(right, low_bytes),
            ];
            let odds = [_mm256_srli_epi16::<8>(left), _mm256_srli_epi16::<8>(right)];
            for g in 0..G {
                // SAFETY: `j < count`, the length of every query's pairs, asserted above.
                let [even, odd] = *unsafe { group.pairs[g].get_unchecked(j) };
                let (even, odd) = (_mm256_set1_epi32(even), _mm256_set1_epi32(odd));
                for half in 0..2 {
                    let even = _mm256_madd_epi16(evens[half], even);
                    let odd = _mm256_madd_epi16(odds[half], odd);
                    sums[half][g] = _mm256_add_epi32(sums[half][g], _mm256_add_epi32(even, odd));
                }
            }
        }
        for half in 0..2 {
            for g in 0..G {
                let sum = _mm256_cvtepi32_ps(sums[half][g]);
                products[half][g] = _mm256_add_ps(products[half][g], sum);
            }
        }
    }
    let parameters = &lines[lines.len() - 1];
    let norm = tiles.norm(tile);
    let [left, right] = products;
    [
        epilogue(left, load_half(parameters, 0), norm, &group.constants),
        epilogue(right, load_half(parameters, 1), norm, &group.constants),
    ]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_half(line: &Line, half: usize) -> __m256i {
    let half: &[u8; 32] = if half == 0 {
        line.0.first_chunk()
    } else {
        line.0.last_chunk()
    }
    .expect("64 bytes");
    // SAFETY: the array has 32 bytes, and the load has no alignment.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

/// The operations of [`QueryConstants`], in that order; a bf16 is the upper half of an `f32`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn epilogue<const G: usize>(
    products: [__m256; G],
    parameters: __m256i,
    norm: f32,
    constants: &[QueryConstants; G],
) -> Bounds<G> {
    let scale = _mm256_castsi256_ps(_mm256_and_si256(
        parameters,
        _mm256_set1_epi32(0xffff_0000_u32 as i32),
    ));
    let residual = residuals(parameters);
    let mut out = Bounds {
        lower: products,
        upper: products,
    };
    for g in 0..G {
        let query = &constants[g];
        let product = _mm256_mul_ps(_mm256_set1_ps(query.scale), products[g]);
        let [low, high] = query.ends(norm);
        let (low, high) = (_mm256_set1_ps(low), _mm256_set1_ps(high));
        let norm = _mm256_set1_ps(query.norm);
        out.lower[g] = _mm256_fnmadd_ps(norm, residual, _mm256_fmadd_ps(product, scale, low));
        out.upper[g] = _mm256_fmadd_ps(norm, residual, _mm256_fmadd_ps(product, scale, high));
    }
    out
}

/// Writes the bounds of every query with every lane of the tiles.
#[target_feature(enable = "avx2,fma")]
pub(super) fn intervals(
    tiles: Tiles<'_>,
    queries: Queries<'_>,
    lower: &mut [f32],
    upper: &mut [f32],
) {
    let total = queries.group.len();
    for first in (0..total).step_by(MAX_SHARED) {
        match total - first {
            1 => intervals_of::<1>(tiles, queries, first, lower, upper),
            2 => intervals_of::<2>(tiles, queries, first, lower, upper),
            3 => intervals_of::<3>(tiles, queries, first, lower, upper),
            _ => intervals_of::<4>(tiles, queries, first, lower, upper),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn intervals_of<const G: usize>(
    tiles: Tiles<'_>,
    queries: Queries<'_>,
    first: usize,
    lower: &mut [f32],
    upper: &mut [f32],
) {
    let group = Group::<G>::new(queries, first);
    let slots = tiles.len() * TILE;
    for tile in 0..tiles.len() {
        for (half, found) in bounds(tiles, tile, &group).iter().enumerate() {
            for g in 0..G {
                let at = (first + g) * slots + tile * TILE + half * LANES;
                let (lower, upper) = (&mut lower[at..][..LANES], &mut upper[at..][..LANES]);
                // SAFETY: both slices have room for the eight lanes.
                unsafe {
                    _mm256_storeu_ps(lower.as_mut_ptr(), found.lower[g]);
                    _mm256_storeu_ps(upper.as_mut_ptr(), found.upper[g]);
                }
            }
        }
    }
}

/// One block of a scan for `G` queries.
#[target_feature(enable = "avx2,fma")]
pub(super) fn scan_block<const G: usize>(
    tiles: Tiles<'_>,
    cuts: Cuts,
    queries: Queries<'_>,
    first: usize,
    base: u32,
    sinks: &mut [Sink<'_>; G],
) {
    let group = Group::<G>::new(queries, first);
    let mut pieces = Pieces::<G>::new();
    for (i, piece) in cuts.pieces(&tiles).enumerate() {
        let mut tails = [[_mm256_setzero_ps(); 2]; G];
        let mut widest = _mm256_setzero_ps();
        for tile in piece {
            let slot = base + (tiles.first_slot() + tile * TILE) as u32;
            for (half, found) in bounds(tiles, tile, &group).iter().enumerate() {
                let live = tiles.live(tile).saturating_sub(half * LANES);
                for g in 0..G {
                    let (sink, tail) = (&mut sinks[g], &mut tails[g][half]);
                    *tail = select(
                        sink,
                        slot + (half * LANES) as u32,
                        live,
                        found.lower[g],
                        found.upper[g],
                        *tail,
                    );
                }
                if cuts.are_wanted() {
                    let live = _mm256_castsi256_ps(first_lanes(live));
                    let residuals = residuals(load_half(parameters(tiles, tile), half));
                    widest = _mm256_max_ps(widest, _mm256_and_ps(live, residuals));
                }
            }
        }
        for g in 0..G {
            if cuts.are_wanted() {
                pieces.sums[g][i] = lanes::tree(store(tails[g]));
            } else {
                sinks[g].add_tail(store(tails[g]));
            }
        }
        pieces.residuals[i] = lanes::largest(store([widest, _mm256_setzero_ps()]));
    }
    if cuts.are_wanted() {
        pieces.finish(&tiles, cuts, &group.constants, sinks);
    }
}

/// The line of parameters of a tile.
fn parameters<'a>(tiles: Tiles<'a>, tile: usize) -> &'a Line {
    &tiles.lines()[(tile + 1) * tiles.stride() - 1]
}

/// Residual norms of half a tile's keys; a bf16 is the upper half of an `f32`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn residuals(parameters: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(parameters))
}

/// Sends the candidates among eight keys to the sink, and returns the tail with the weights of the others added.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn select(
    sink: &mut Sink<'_>,
    slot: u32,
    live: usize,
    lower: __m256,
    upper: __m256,
    tail: __m256,
) -> __m256 {
    let tau = _mm256_set1_ps(sink.tau);
    let live = _mm256_castsi256_ps(first_lanes(live));
    let candidates = _mm256_and_ps(live, _mm256_cmp_ps::<_CMP_GE_OQ>(upper, tau));
    let mut left = _mm256_movemask_ps(candidates) as u32;
    if left != 0 {
        let bounds = store([lower, upper]);
        while left != 0 {
            let l = left.trailing_zeros() as usize;
            sink.out.push(slot + l as u32, bounds[l], bounds[LANES + l]);
            left &= left - 1;
        }
    }
    if sink.exponent == 0.0 {
        return tail;
    }
    let y = _mm256_mul_ps(_mm256_sub_ps(upper, tau), _mm256_set1_ps(sink.exponent));
    _mm256_add_ps(
        tail,
        _mm256_and_ps(_mm256_andnot_ps(candidates, live), exp2_up(y)),
    )
}

/// [`crate::scan::exp2_up`] in eight lanes, bit for bit.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp2_up(y: __m256) -> __m256 {
    let y = _mm256_max_ps(y, _mm256_set1_ps(MIN_EXPONENT));
    let round = _mm256_set1_ps(ROUND);
    let shifted = _mm256_add_ps(y, round);
    let f = _mm256_sub_ps(y, _mm256_sub_ps(shifted, round));
    let mut p = _mm256_set1_ps(EXP2_UP[3]);
    for c in EXP2_UP[..3].iter().rev() {
        p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(*c));
    }
    let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent))
}
