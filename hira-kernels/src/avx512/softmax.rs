//! Softmax weights and weighted sums of rows.

use core::arch::x86_64::*;

use crate::avx2::score::{ahead, prefetch};
use crate::element::Element;
use crate::exp::{EXP, LN2_HI, LN2_LO, LOG2_E, OVERFLOW, UNDERFLOW};
use crate::score::Rows;
use crate::{TILE, lanes};

/// [`crate::exp::exp`] in sixteen lanes, bit for bit.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn exp(x: __m512) -> __m512 {
    let live = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(UNDERFLOW));
    let x = _mm512_min_ps(x, _mm512_set1_ps(OVERFLOW));
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
        _mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)),
    );
    let r = _mm512_fmadd_ps(whole, _mm512_set1_ps(-LN2_HI), x);
    let r = _mm512_fmadd_ps(whole, _mm512_set1_ps(-LN2_LO), r);
    let mut p = _mm512_set1_ps(EXP[6]);
    for c in EXP[..6].iter().rev() {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
    }
    // `whole` is in -126..=127 wherever the lane is live, and the result normal: exact, as the scalar product is.
    _mm512_maskz_scalef_ps(live, p, whole)
}

#[target_feature(enable = "avx512f")]
pub(super) fn exp_weights(scores: &[f32], scale: f32, max_score: f32, weights: &mut [f32]) -> f32 {
    assert_eq!(scores.len(), weights.len());
    let (scale, max_score) = (_mm512_set1_ps(scale), _mm512_set1_ps(max_score));
    let mut sums = _mm512_setzero_ps();
    for (scores, weights) in scores.chunks(TILE).zip(weights.chunks_mut(TILE)) {
        let mask = (0xffff_u32 >> (TILE - scores.len())) as u16;
        // SAFETY: the mask admits `scores.len()` lanes, and `weights`, cut alike from a slice of equal length, has as many.
        unsafe {
            let score = _mm512_maskz_loadu_ps(mask, scores.as_ptr());
            let weight = exp(_mm512_mul_ps(scale, _mm512_sub_ps(score, max_score)));
            sums = _mm512_mask_add_ps(sums, mask, sums, weight);
            _mm512_mask_storeu_ps(weights.as_mut_ptr(), mask, weight);
        }
    }
    lanes::tree(store(sums))
}

/// The lanes of a register.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(register: __m512) -> [f32; TILE] {
    let mut lanes = [0.0; TILE];
    // SAFETY: the array has room for the sixteen lanes.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), register) };
    lanes
}

/// Strips of up to eight registers of each output, summed over all rows without leaving them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
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
        let count = (rows.dim() - at).min(8 * TILE);
        let strips = rest
            .each_mut()
            .map(|rest| rest.split_off_mut(..count).unwrap_or_default());
        match count.div_ceil(TILE) {
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn weighted_strips<E: Element, const N: usize, const W: usize>(
    weights: [&[f32]; N],
    rows: Rows<'_, E>,
    at: usize,
    strips: [&mut [f32]; N],
) {
    let count = strips[0].len();
    let last = count - (W - 1) * TILE;
    assert!((1..=TILE).contains(&last) && at + count <= rows.dim());
    let mut masks = [0xffff_u16; W];
    masks[W - 1] >>= TILE - last;
    let mut acc = [[_mm512_setzero_ps(); W]; N];
    for n in 0..N {
        assert!(strips[n].len() == count);
        for v in 0..W {
            // SAFETY: the masks admit the `count` first lanes of the W registers, asserted above.
            acc[n][v] =
                unsafe { _mm512_maskz_loadu_ps(masks[v], strips[n].as_ptr().add(v * TILE)) };
        }
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
        let weights = weights.map(|weights| _mm512_set1_ps(weights[i]));
        for v in 0..W {
            // SAFETY: `row` is as long as a strip, whose lanes the masks admit; the function has the features.
            let value = unsafe { E::load16_masked(row.as_ptr().add(v * TILE), masks[v]) };
            for n in 0..N {
                acc[n][v] = _mm512_fmadd_ps(weights[n], value, acc[n][v]);
            }
        }
    }
    for n in 0..N {
        for v in 0..W {
            // SAFETY: as for the loads above.
            unsafe {
                _mm512_mask_storeu_ps(strips[n].as_mut_ptr().add(v * TILE), masks[v], acc[n][v]);
            }
        }
    }
}
