//! Counts and places of values within limits, sixteen at a time.

use core::arch::x86_64::*;
use std::ops::Range;

use crate::TILE;
use crate::order::{select, values_of};

/// Whole registers of values, and what is left over padded; its first `len` values count.
struct Registers<'a> {
    blocks: &'a [[f32; TILE]],
    rest: [f32; TILE],
    len: usize,
}

#[inline]
fn registers(values: &[f32]) -> Registers<'_> {
    let (blocks, rest) = values.as_chunks();
    let mut padded = [f32::NEG_INFINITY; TILE];
    padded[..rest.len()].copy_from_slice(rest);
    Registers {
        blocks,
        rest: padded,
        len: rest.len(),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
pub(super) fn kth_largest(values: &[f32], k: usize) -> f32 {
    select(&registers(values), k)
}

#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn extremes(values: &[f32]) -> [f32; 2] {
    registers(values).ends()
}

#[target_feature(enable = "avx512f")]
pub(super) fn least_at(values: &[f32], limit: f32) -> f32 {
    registers(values).least(limit)
}

#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn places_within(values: &[f32], within: Range<f32>, places: &mut [u32]) -> usize {
    assert!(places.len() >= values.len(), "a place for every value");
    // SAFETY: there is a place for every value, and nothing is picked.
    unsafe { compress::<false>(values, within, places.as_mut_ptr(), std::ptr::null_mut()) }
}

#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn pick_within(
    values: &[f32],
    within: Range<f32>,
    places: &mut [u32],
    picked: &mut [f32],
) -> usize {
    assert!(places.len() >= values.len() && picked.len() >= values.len());
    // SAFETY: both have room for every value.
    unsafe { compress::<true>(values, within, places.as_mut_ptr(), picked.as_mut_ptr()) }
}

/// Writes the places of the values within, and the values if `PICK` says so. Returns how many there are.
///
/// # Safety
///
/// As many places as there are values may be written from `places` on, and as many values from `picked` on if `PICK`.
#[inline]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn compress<const PICK: bool>(
    values: &[f32],
    within: Range<f32>,
    places: *mut u32,
    picked: *mut f32,
) -> usize {
    let (blocks, rest) = values.as_chunks();
    let mut count = 0;
    for (at, block) in blocks.iter().enumerate() {
        let value = load(block);
        let kept = kept(value, &within);
        // SAFETY: at most `16 at` were written before, and there is room for as many as values: sixteen more are inside.
        unsafe {
            _mm512_storeu_si512(places.add(count).cast(), places_of(kept, at));
            if PICK {
                _mm512_storeu_ps(picked.add(count), _mm512_maskz_compress_ps(kept, value));
            }
        }
        count += kept.count_ones() as usize;
    }
    if rest.is_empty() {
        return count;
    }
    let (value, live) = load_rest(rest);
    let kept = kept(value, &within) & live;
    // SAFETY: likewise, and the mask admits as many as there are values left.
    unsafe {
        let here = places_of(kept, blocks.len());
        _mm512_mask_storeu_epi32(places.add(count).cast(), live, here);
        if PICK {
            let value = _mm512_maskz_compress_ps(kept, value);
            _mm512_mask_storeu_ps(picked.add(count), live, value);
        }
    }
    count + kept.count_ones() as usize
}

/// The lanes within.
#[inline]
#[target_feature(enable = "avx512f")]
fn kept(value: __m512, within: &Range<f32>) -> u16 {
    let (start, end) = (_mm512_set1_ps(within.start), _mm512_set1_ps(within.end));
    let reached = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(value, start);
    _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(reached, value, end)
}

/// Fewer than sixteen values, and the mask of their lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_rest(rest: &[f32]) -> (__m512, u16) {
    let live = ((1u32 << rest.len()) - 1) as u16;
    // SAFETY: the mask admits the lanes of the slice.
    let value = unsafe { _mm512_maskz_loadu_ps(live, rest.as_ptr()) };
    (value, live)
}

/// The places of the lanes of `kept` in block `at`, the first ones.
///
/// Compressed in registers and stored whole, with anything behind them: `vpcompressd` to memory is microcoded on Zen 4.
#[inline]
#[target_feature(enable = "avx512f")]
fn places_of(kept: u16, at: usize) -> __m512i {
    let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    let here = _mm512_add_epi32(_mm512_set1_epi32((TILE * at) as i32), lanes);
    _mm512_maskz_compress_epi32(kept, here)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(block: &[f32; TILE]) -> __m512 {
    // SAFETY: the array holds the sixteen lanes.
    unsafe { _mm512_loadu_ps(block.as_ptr()) }
}

impl Registers<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn ends(&self) -> [f32; 2] {
        let mut least = _mm512_set1_ps(f32::INFINITY);
        let mut most = _mm512_set1_ps(f32::NEG_INFINITY);
        for block in self.blocks {
            least = _mm512_min_ps(least, load(block));
            most = _mm512_max_ps(most, load(block));
        }
        let live = ((1u32 << self.len) - 1) as u16;
        least = _mm512_mask_min_ps(least, live, least, load(&self.rest));
        most = _mm512_max_ps(most, load(&self.rest));
        [_mm512_reduce_min_ps(least), _mm512_reduce_max_ps(most)]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
    fn count(&self, limit: f32) -> usize {
        let limit = _mm512_set1_ps(limit);
        let reach = |block: &[f32; TILE]| _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load(block), limit);
        let (fours, rest) = self.blocks.as_chunks::<4>();
        let mut count = 0;
        for [a, b, c, d] in fours {
            let low = u64::from(reach(a)) | u64::from(reach(b)) << 16;
            let high = u64::from(reach(c)) | u64::from(reach(d)) << 16;
            count += (low | high << 32).count_ones();
        }
        for block in rest {
            count += reach(block).count_ones();
        }
        let live = ((1u32 << self.len) - 1) as u16;
        (count + (reach(&self.rest) & live).count_ones()) as usize
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn least(&self, limit: f32) -> f32 {
        let limit = _mm512_set1_ps(limit);
        let mut least = _mm512_set1_ps(f32::INFINITY);
        for block in self.blocks {
            let values = load(block);
            let reached = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(values, limit);
            least = _mm512_mask_min_ps(least, reached, least, values);
        }
        let live = ((1u32 << self.len) - 1) as u16;
        let values = load(&self.rest);
        let reached = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(live, values, limit);
        _mm512_reduce_min_ps(_mm512_mask_min_ps(least, reached, least, values))
    }
}

values_of!(Registers);
