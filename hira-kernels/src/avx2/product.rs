//! Bounds of tiles by 4-bit product codes: a pair of rows of two tiles a register, looked up by byte shuffles.

use core::arch::x86_64::*;

use crate::TILE;
use crate::product::{CodeTiles, Query};

/// Tiles whose codes share a register, a half each: no sum crosses a half.
const SHARED: usize = 2;

#[target_feature(enable = "avx2,fma")]
pub(super) fn bounds<const G: usize>(
    tiles: CodeTiles<'_>,
    queries: [Query<'_>; G],
    bounds: &mut [&mut [f32]; G],
) {
    sums_into(tiles, &queries, bounds);
    for (query, bounds) in queries.iter().zip(bounds) {
        query.constants.finish(bounds);
    }
}

/// Writes the largest sum of every tile.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn sums_into<const G: usize>(
    tiles: CodeTiles<'_>,
    queries: &[Query<'_>; G],
    out: &mut [&mut [f32]; G],
) {
    let (twos, rest) = tiles.split::<SHARED>();
    for (i, two) in twos.enumerate() {
        let sums = sums(two, queries);
        for g in 0..G {
            out[g][i * SHARED..][..SHARED].copy_from_slice(&sums[g]);
        }
    }
    if let Some(last) = rest.iter().next() {
        let sums = sums([last, last], queries);
        for (out, [sum, _]) in out.iter_mut().zip(sums) {
            if let Some(out) = out.last_mut() {
                *out = sum;
            }
        }
    }
}

/// The largest sum of each of two tiles, for every query.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sums<const G: usize>(tiles: [&[u8]; SHARED], queries: &[Query<'_>; G]) -> [[f32; SHARED]; G] {
    let low_nibbles = _mm256_set1_epi8(0x0f);
    // Sums of the bytes of keys 0, 2, .. and 1, 3, .. as 16-bit lanes. The first has 256 times the second added to it until
    // the end, modulo 2^16: an addition for a mask.
    let mut even = [_mm256_setzero_si256(); G];
    let mut odd = [_mm256_setzero_si256(); G];
    let [first, second] = tiles.map(|tile| tile.as_chunks::<TILE>().0);
    for (pair, (first, second)) in first.iter().zip(second).enumerate() {
        let codes = _mm256_set_m128i(load(second), load(first));
        let low = _mm256_and_si256(codes, low_nibbles);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low_nibbles);
        for g in 0..G {
            let [low_table, high_table] = pair_table(&queries[g], pair);
            let low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(low_table), low);
            let high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(high_table), high);
            even[g] = _mm256_add_epi16(even[g], _mm256_add_epi16(low, high));
            let halves =
                _mm256_add_epi16(_mm256_srli_epi16::<8>(low), _mm256_srli_epi16::<8>(high));
            odd[g] = _mm256_add_epi16(odd[g], halves);
        }
    }
    let mut sums = [[0.0; SHARED]; G];
    for g in 0..G {
        let even = _mm256_sub_epi16(even[g], _mm256_slli_epi16::<8>(odd[g]));
        // `phminposuw` finds the least of eight lanes.
        let inverted = _mm256_xor_si256(_mm256_max_epu16(even, odd[g]), _mm256_set1_epi8(-1));
        let [first, second] = [
            _mm256_castsi256_si128(inverted),
            _mm256_extracti128_si256::<1>(inverted),
        ]
        .map(|half| f32::from(!(_mm_cvtsi128_si32(_mm_minpos_epu16(half)) as u16)));
        sums[g] = [first, second];
    }
    sums
}

/// The tables of the two rows of a pair.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn pair_table(query: &Query<'_>, pair: usize) -> [__m128i; 2] {
    let [low, high] = query.pair(pair);
    [load(low), load(high)]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load(row: &[u8; TILE]) -> __m128i {
    // SAFETY: the array has 16 bytes, and the load has no alignment.
    unsafe { _mm_loadu_si128(row.as_ptr().cast()) }
}
