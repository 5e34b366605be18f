//! Bounds of tiles by 4-bit product codes: four pairs of rows a register, looked up by byte shuffles.

use core::arch::x86_64::*;

use crate::avx2::product::largest;
use crate::product::{CodeTiles, PAIRS, Query, pairs};
use crate::{Line, TILE};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub(super) fn bounds<const G: usize>(
    tiles: CodeTiles<'_>,
    queries: [Query<'_>; G],
    bounds: &mut [&mut [f32]; G],
) {
    let (pairs, groups) = pairs(tiles.shape().tile_bytes());
    assert!(queries.iter().all(|query| query.lines.len() == 2 * groups));
    // 64-bit lanes of the last group of pairs that are there.
    let left = pairs - (groups - 1) * PAIRS;
    let last = ((1u32 << (2 * left)) - 1) as u8;
    let low_nibbles = _mm512_set1_epi8(0x0f);
    for (t, tile) in tiles.iter().enumerate() {
        // As in `avx2`: sums of keys 0, 2, .. and 1, 3, .., the first with 256 times the second on top until the end.
        let mut even = [_mm512_setzero_si512(); G];
        let mut odd = [_mm512_setzero_si512(); G];
        for group in 0..groups {
            let mask = if group + 1 == groups { last } else { 0xff };
            let codes = load_pairs(&tile[group * PAIRS * TILE..], mask);
            let low = _mm512_and_si512(codes, low_nibbles);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low_nibbles);
            for g in 0..G {
                let lines = queries[g].lines;
                let first = _mm512_shuffle_epi8(table(&lines[2 * group]), low);
                let second = _mm512_shuffle_epi8(table(&lines[2 * group + 1]), high);
                even[g] = _mm512_add_epi16(even[g], _mm512_add_epi16(first, second));
                let halves = _mm512_add_epi16(
                    _mm512_srli_epi16::<8>(first),
                    _mm512_srli_epi16::<8>(second),
                );
                odd[g] = _mm512_add_epi16(odd[g], halves);
            }
        }
        for g in 0..G {
            let even = _mm512_sub_epi16(even[g], _mm512_slli_epi16::<8>(odd[g]));
            let [even, odd] = [even, odd[g]].map(|sums| {
                let half = _mm256_add_epi16(
                    _mm512_castsi512_si256(sums),
                    _mm512_extracti64x4_epi64::<1>(sums),
                );
                _mm_add_epi16(
                    _mm256_castsi256_si128(half),
                    _mm256_extracti128_si256::<1>(half),
                )
            });
            bounds[g][t] = queries[g].constants.bound(largest(even, odd));
        }
    }
}

/// The pairs of rows of `codes` that `mask` names, two lanes a pair, and zeros: the tables past the last row are zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_pairs(codes: &[u8], mask: u8) -> __m512i {
    assert!(codes.len() >= 8 * (8 - mask.leading_zeros() as usize));
    // SAFETY: lanes that the mask leaves out are not read, and the others lie inside of the slice, asserted above.
    unsafe { _mm512_maskz_loadu_epi64(mask, codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn table(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512((&raw const *line).cast()) }
}
