//! Softmax mass on both sides of thresholds.

use core::arch::x86_64::*;

use super::softmax::store;
use crate::TILE;
use crate::mass::{Weighed, add_lanes};

/// [`crate::mass::mass_splits`], bit for bit: lanes past the last key gain 0.
#[target_feature(enable = "avx512f")]
pub(super) fn splits<const N: usize>(
    keys: Weighed<'_>,
    taus: [f32; N],
    at_taus: [f32; N],
) -> [[f64; 2]; N] {
    let mut sums = [[0.0; 2]; N];
    for Weighed { lower, low, high } in keys.blocks() {
        assert!(lower.len() == low.len() && lower.len() == high.len());
        let mut lanes = [[_mm512_setzero_ps(); 2]; N];
        let weights = low.chunks(TILE).zip(high.chunks(TILE));
        for (lower, (low, high)) in lower.chunks(TILE).zip(weights) {
            let live = (0xffff_u32 >> (TILE - lower.len())) as u16;
            // SAFETY: the mask admits as many lanes as each of the three, cut alike from slices of equal length, has.
            let [lower, low, high] = [lower, low, high]
                .map(|values| unsafe { _mm512_maskz_loadu_ps(live, values.as_ptr()) });
            for (i, [dropped, kept]) in lanes.iter_mut().enumerate() {
                let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(lower, _mm512_set1_ps(taus[i]));
                let most = _mm512_min_ps(high, _mm512_set1_ps(at_taus[i]));
                *dropped = _mm512_mask_add_ps(*dropped, below, *dropped, most);
                *kept = _mm512_mask_add_ps(*kept, !below, *kept, low);
            }
        }
        for (sums, lanes) in sums.iter_mut().zip(lanes) {
            add_lanes(sums, lanes.map(|lanes| store(lanes)));
        }
    }
    sums
}
