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

/// Strips of up to eight registers of all outputs, summed over all rows without leaving them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn weighted_sums<E: Element, const N: usize>(
    weights: [&[f32]; N],
    rows: Rows<'_, E>,
    out: [&mut [f32]; N],
) {
    for out in &out {
        assert_eq!(out.len(), rows.dim(), "an output is one row");
    }
    let mut rest = out;
    let mut at = 0;
    while at < rows.dim() {
        let count = (rows.dim() - at).min(8 / N * LANES);
        let strips = rest
            .each_mut()
            .map(|rest| rest.split_off_mut(..count).unwrap_or_default());
        match count.div_ceil(LANES) {
            1 => weighted_strips::<E, N, 1>(weights, rows, at, strips),
            2 => weighted_strips::<E, N, 2>(weights, rows, at, strips),
            3 => weighted_strips::<E, N, 3>(weights, rows, at, strips),
            4 => weighted_strips::<E, N, 4>(weights, rows, at, strips),
            5 => weighted_strips::<E, N, 5>(weights, rows, at, strips),
            6 => weighted_strips::<E, N, 6>(weights, rows, at, strips),
            7 => weighted_strips::<E, N, 7>(weights, rows, at, strips),
            _ => weighted_strips::<E, N, 8>(weights, rows, at, strips),
        }
        at += count;
    }
}

/// Adds as many columns of the rows from column `at` on as each strip has; `W` registers hold a strip, the last perhaps in part.
#[target_feature(enable = "avx2,fma,f16c")]
fn weighted_strips<E: Element, const N: usize, const W: usize>(
    weights: [&[f32]; N],
    rows: Rows<'_, E>,
    at: usize,
    strips: [&mut [f32]; N],
) {
    let count = strips[0].len();
    let last = count - (W - 1) * LANES;
    assert!((1..=LANES).contains(&last) && at + count <= rows.dim());
    let mask = first_lanes(last);
    let mut acc = [[_mm256_setzero_ps(); W]; N];
    for n in 0..N {
        assert!(strips[n].len() == count);
        acc[n] = load_strip::<f32, W>(strips[n]);
    }
    let len = weights[0].len();
    let weights = weights.map(|weights| &weights[..len]);
    let distance = ahead(count * size_of::<E>());
    for i in 0..distance.min(len) {
        prefetch(rows.columns(i, at, count));
    }
    for i in 0..len {
        prefetch(rows.columns(i + distance, at, count));
        let Some(row) = rows.columns(i, at, count) else {
            break;
        };
        let values = load_strip::<E, W>(row);
        for n in 0..N {
            let weight = _mm256_set1_ps(weights[n][i]);
            for v in 0..W {
                acc[n][v] = _mm256_fmadd_ps(weight, values[v], acc[n][v]);
            }
        }
    }
    for n in 0..N {
        // SAFETY: a strip has W - 1 whole registers and, behind them, the lanes that the mask admits: `last` of them.
        unsafe {
            let strip = strips[n].as_mut_ptr();
            for v in 0..W - 1 {
                _mm256_storeu_ps(strip.add(v * LANES), acc[n][v]);
            }
            _mm256_maskstore_ps(strip.add((W - 1) * LANES), mask, acc[n][W - 1]);
        }
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
