//! Softmax weights and weighted sums of rows.

use core::arch::x86_64::*;

use super::score::{ahead, prefetch};
use crate::element::Element;
use crate::exp::{self, EXP, LN2_HI, LN2_LO, LOG2_E, OVERFLOW, UNDERFLOW};
use crate::score::Rows;
use crate::softmax::add_lanes;
use crate::{TILE, lanes};

/// Lanes of a register.
const LANES: usize = 8;

/// [`crate::exp::exp`] in eight lanes, bit for bit.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn exp(x: __m256) -> __m256 {
    let live = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(UNDERFLOW));
    let x = _mm256_min_ps(x, _mm256_set1_ps(OVERFLOW));
    let whole = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
        _mm256_mul_ps(x, _mm256_set1_ps(LOG2_E)),
    );
    let r = _mm256_fmadd_ps(whole, _mm256_set1_ps(-LN2_HI), x);
    let r = _mm256_fmadd_ps(whole, _mm256_set1_ps(-LN2_LO), r);
    let mut p = _mm256_set1_ps(EXP[6]);
    for c in EXP[..6].iter().rev() {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
    }
    _mm256_and_ps(live, _mm256_mul_ps(p, power_of_two(whole)))
}

/// `2^n` for integers `n` in `-126..=127`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn power_of_two(n: __m256) -> __m256 {
    let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn exp_weights(scores: &[f32], scale: f32, max_score: f32, weights: &mut [f32]) -> f32 {
    assert_eq!(scores.len(), weights.len());
    let (wide_scale, wide_max) = (_mm256_set1_ps(scale), _mm256_set1_ps(max_score));
    let mut sums = [_mm256_setzero_ps(); 2];
    let (whole_scores, rest_scores) = scores.as_chunks::<TILE>();
    let (whole_weights, rest_weights) = weights.as_chunks_mut::<TILE>();
    for (scores, weights) in whole_scores.iter().zip(whole_weights) {
        for half in 0..2 {
            // SAFETY: both arrays have sixteen lanes.
            unsafe {
                let score = _mm256_loadu_ps(scores.as_ptr().add(LANES * half));
                let weight = exp(_mm256_mul_ps(wide_scale, _mm256_sub_ps(score, wide_max)));
                sums[half] = _mm256_add_ps(sums[half], weight);
                _mm256_storeu_ps(weights.as_mut_ptr().add(LANES * half), weight);
            }
        }
    }
    let mut sums = store(sums);
    for (score, weight) in rest_scores.iter().zip(&mut *rest_weights) {
        *weight = exp::exp(scale * (score - max_score));
    }
    add_lanes(&mut sums, rest_weights);
    lanes::tree(sums)
}

/// The lanes of two registers.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn store([low, high]: [__m256; 2]) -> [f32; TILE] {
    let mut lanes = [0.0; TILE];
    // SAFETY: the array has room for twice eight lanes.
    unsafe {
        _mm256_storeu_ps(lanes.as_mut_ptr(), low);
        _mm256_storeu_ps(lanes.as_mut_ptr().add(LANES), high);
    }
    lanes
}

/// A mask of the first `count` lanes, and no others.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn first_lanes(count: usize) -> __m256i {
    let lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(LANES) as i32), lanes)
}

/// Strips of up to eight registers of the output, each summed over all rows without leaving them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn weighted_sum<E: Element>(weights: &[f32], rows: Rows<'_, E>, out: &mut [f32]) {
    assert_eq!(out.len(), rows.dim(), "the output is one row");
    for (i, strip) in out.chunks_mut(8 * LANES).enumerate() {
        let at = 8 * LANES * i;
        match strip.len().div_ceil(LANES) {
            1 => weighted_strip::<E, 1>(weights, rows, at, strip),
            2 => weighted_strip::<E, 2>(weights, rows, at, strip),
            3 => weighted_strip::<E, 3>(weights, rows, at, strip),
            4 => weighted_strip::<E, 4>(weights, rows, at, strip),
            5 => weighted_strip::<E, 5>(weights, rows, at, strip),
            6 => weighted_strip::<E, 6>(weights, rows, at, strip),
            7 => weighted_strip::<E, 7>(weights, rows, at, strip),
            _ => weighted_strip::<E, 8>(weights, rows, at, strip),
        }
    }
}

/// Adds columns `at..at + strip.len()` of the rows; `W` registers hold them, the last perhaps in part.
#[target_feature(enable = "avx2,fma,f16c")]
fn weighted_strip<E: Element, const W: usize>(
    weights: &[f32],
    rows: Rows<'_, E>,
    at: usize,
    strip: &mut [f32],
) {
    let last = strip.len() - (W - 1) * LANES;
    assert!((1..=LANES).contains(&last) && at + strip.len() <= rows.dim());
    let count = strip.len();
    let mask = first_lanes(last);
    let distance = ahead(strip.len() * size_of::<E>());
    for i in 0..distance.min(weights.len()) {
        prefetch(rows.columns(i, at, count));
    }
    let mut acc = load_strip::<f32, W>(strip);
    for (i, weight) in weights.iter().enumerate() {
        prefetch(rows.columns(i + distance, at, count));
        let Some(row) = rows.columns(i, at, count) else {
            break;
        };
        let values = load_strip::<E, W>(row);
        let weight = _mm256_set1_ps(*weight);
        for v in 0..W {
            acc[v] = _mm256_fmadd_ps(weight, values[v], acc[v]);
        }
    }
    // SAFETY: the strip has W - 1 whole registers and, behind them, the lanes that the mask admits: `last` of them.
    unsafe {
        for v in 0..W - 1 {
            _mm256_storeu_ps(strip.as_mut_ptr().add(v * LANES), acc[v]);
        }
        _mm256_maskstore_ps(strip.as_mut_ptr().add((W - 1) * LANES), mask, acc[W - 1]);
    }
}

/// `W - 1` whole registers and one of what is left, zeros in its other lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_strip<E: Element, const W: usize>(strip: &[E]) -> [__m256; W] {
    let last = strip.len() - (W - 1) * LANES;
    assert!((1..=LANES).contains(&last));
    let mut out = [_mm256_setzero_ps(); W];
    // SAFETY: the strip has W - 1 whole registers and `last` lanes more, asserted above; the function has the features.
    unsafe {
        for v in 0..W - 1 {
            out[v] = E::load8(strip.as_ptr().add(v * LANES));
        }
        out[W - 1] = E::load8_head(strip.as_ptr().add((W - 1) * LANES), last);
    }
    out
}
