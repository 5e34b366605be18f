//! Bounds of tiles by 4-bit product codes: two pairs of rows a register, looked up by byte shuffles.

use core::arch::x86_64::*;

use crate::product::{CodeTiles, PAIRS, Query, pairs};
use crate::{Line, TILE};

#[target_feature(enable = "avx2,fma")]
pub(super) fn bounds<const G: usize>(
    tiles: CodeTiles<'_>,
    queries: [Query<'_>; G],
    bounds: &mut [&mut [f32]; G],
) {
    let (pairs, groups) = pairs(tiles.shape().tile_bytes());
    assert!(queries.iter().all(|query| query.lines.len() == 2 * groups));
    let low_nibbles = _mm256_set1_epi8(0x0f);
    for (t, tile) in tiles.iter().enumerate() {
        // Sums of the bytes of keys 0, 2, .. and 1, 3, .. as 16-bit lanes. The first has 256 times the second added to it
        // until the end, modulo 2^16: an addition for a mask.
        let mut even = [_mm256_setzero_si256(); G];
        let mut odd = [_mm256_setzero_si256(); G];
        for pair in (0..pairs).step_by(2) {
            let codes = load_pairs(&tile[pair * TILE..]);
            let low = _mm256_and_si256(codes, low_nibbles);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low_nibbles);
            let line = 2 * (pair / PAIRS);
            for g in 0..G {
                let lines = queries[g].lines;
                let first = _mm256_shuffle_epi8(table(&lines[line], pair), low);
                let second = _mm256_shuffle_epi8(table(&lines[line + 1], pair), high);
                even[g] = _mm256_add_epi16(even[g], _mm256_add_epi16(first, second));
                let halves = _mm256_add_epi16(
                    _mm256_srli_epi16::<8>(first),
                    _mm256_srli_epi16::<8>(second),
                );
                odd[g] = _mm256_add_epi16(odd[g], halves);
            }
        }
        for g in 0..G {
            let even = _mm256_sub_epi16(even[g], _mm256_slli_epi16::<8>(odd[g]));
            let [even, odd] = [even, odd[g]].map(|sums| {
                _mm_add_epi16(
                    _mm256_castsi256_si128(sums),
                    _mm256_extracti128_si256::<1>(sums),
                )
            });
            bounds[g][t] = queries[g].constants.bound(largest(even, odd));
        }
    }
}

/// The first two pairs of rows of `codes`, or one and zeros: the tables past the last row are zero.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_pairs(codes: &[u8]) -> __m256i {
    if let Some(two) = codes.first_chunk::<32>() {
        // SAFETY: the array has 32 bytes, and the load has no alignment.
        unsafe { _mm256_loadu_si256(two.as_ptr().cast()) }
    } else {
        let one = codes.first_chunk::<TILE>().expect("a pair is 16 bytes");
        // SAFETY: the array has 16 bytes, and the load has no alignment.
        _mm256_zextsi128_si256(unsafe { _mm_loadu_si128(one.as_ptr().cast()) })
    }
}

/// The tables of an even pair and of the next one.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn table(line: &Line, pair: usize) -> __m256i {
    let halves = line.0.as_chunks::<32>().0;
    let half = &halves[pair % PAIRS / 2];
    // SAFETY: the array has 32 bytes, and the load has no alignment.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

/// The largest of sixteen unsigned lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn largest(a: __m128i, b: __m128i) -> u16 {
    // `phminposuw` finds the least of eight.
    let inverted = _mm_xor_si128(_mm_max_epu16(a, b), _mm_set1_epi8(-1));
    !(_mm_cvtsi128_si32(_mm_minpos_epu16(inverted)) as u16)
}
