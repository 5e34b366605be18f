//! Softmax mass on both sides of thresholds.

use core::arch::x86_64::*;

use crate::TILE;
use crate::mass::{Weighed, add_lanes};

/// [`crate::mass::mass_splits`], bit for bit: lanes past the last key gain 0.
#[target_feature(enable = "avx2")]
pub(super) fn splits<const N: usize>(
    keys: Weighed<'_>,
    taus: [f32; N],
    at_taus: [f32; N],
) -> [[f64; 2]; N] {
    let mut sums = [[0.0; 2]; N];
    for block in keys.blocks() {
        for (i, sums) in sums.iter_mut().enumerate() {
            add_lanes(sums, split(block, taus[i], at_taus[i]));
        }
    }
    sums
}

/// Both sums of a block, by lanes: one threshold at a time has the registers that there are.
#[inline]
#[target_feature(enable = "avx2")]
fn split(block: Weighed<'_>, tau: f32, at_tau: f32) -> [[f32; TILE]; 2] {
    let (tau, at_tau) = (_mm256_set1_ps(tau), _mm256_set1_ps(at_tau));
    let mut sums = [[_mm256_setzero_ps(); 2]; 2];
    let mut add = |[lower, low, high]: [&[f32; TILE]; 3]| {
        for half in 0..2 {
            // SAFETY: an array has two halves of eight lanes.
            let [lower, low, high] = [lower, low, high]
                .map(|values| unsafe { _mm256_loadu_ps(values.as_ptr().add(8 * half)) });
            let below = _mm256_cmp_ps::<_CMP_LT_OQ>(lower, tau);
            let dropped = _mm256_and_ps(below, _mm256_min_ps(high, at_tau));
            sums[0][half] = _mm256_add_ps(sums[0][half], dropped);
            sums[1][half] = _mm256_add_ps(sums[1][half], _mm256_andnot_ps(below, low));
        }
    };
    let (lower, lower_rest) = block.lower.as_chunks::<TILE>();
    let (low, low_rest) = block.low.as_chunks::<TILE>();
    let (high, high_rest) = block.high.as_chunks::<TILE>();
    for (lower, (low, high)) in lower.iter().zip(low.iter().zip(high)) {
        add([lower, low, high]);
    }
    let [lower, low, high] = [lower_rest, low_rest, high_rest].map(|rest| {
        let mut padded = [0.0; TILE];
        padded[..rest.len()].copy_from_slice(rest);
        padded
    });
    add([&lower, &low, &high]);
    sums.map(|halves| {
        let mut lanes = [0.0; TILE];
        for (lanes, half) in lanes.chunks_mut(TILE / 2).zip(halves) {
            // SAFETY: each chunk has room for the eight lanes.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), half) };
        }
        lanes
    })
}
