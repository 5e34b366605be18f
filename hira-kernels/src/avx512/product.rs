//! Bounds of tiles by 4-bit product codes: a pair of rows of four tiles a register, looked up by byte shuffles.

use core::arch::x86_64::*;

use crate::avx2::product::pair_table;
use crate::product::{CodeTiles, Query};
use crate::{TILE, avx2};

/// Tiles whose codes share a register, a quarter each: no sum crosses a quarter, and one reduction serves them all.
const SHARED: usize = 4;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub(super) fn bounds<const G: usize>(
    tiles: CodeTiles<'_>,
    queries: [Query<'_>; G],
    bounds: &mut [&mut [f32]; G],
) {
    let (quads, rest) = tiles.split::<SHARED>();
    for (i, quad) in quads.enumerate() {
        let sums = sums(quad, &queries);
        for g in 0..G {
            let at = &mut bounds[g][i * SHARED..][..SHARED];
            // SAFETY: the slice has room for the four lanes.
            unsafe { _mm_storeu_ps(at.as_mut_ptr(), sums[g]) };
        }
    }
    let mut whole: [&mut [f32]; G] = std::array::from_fn(|_| &mut [][..]);
    for (bounds, whole) in bounds.iter_mut().zip(&mut whole) {
        let tail = bounds.len() - rest.iter().len();
        *whole = &mut bounds[tail..];
    }
    avx2::product::sums_into(rest, &queries, &mut whole);
    for (query, bounds) in queries.iter().zip(bounds) {
        query.constants.finish(bounds);
    }
}

/// The largest sum of each of four tiles, for every query.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn sums<const G: usize>(tiles: [&[u8]; SHARED], queries: &[Query<'_>; G]) -> [__m128; G] {
    let low_nibbles = _mm512_set1_epi8(0x0f);
    // Sums of the bytes of keys 0, 2, .. and 1, 3, .. as 16-bit lanes. The first has 256 times the second added to it until
    // the end, modulo 2^16: an addition for a mask.
    let mut even = [_mm512_setzero_si512(); G];
    let mut odd = [_mm512_setzero_si512(); G];
    let [first, second, third, fourth] = tiles.map(|tile| tile.as_chunks::<TILE>().0);
    let pairs = first.iter().zip(second).zip(third.iter().zip(fourth));
    for (pair, ((first, second), (third, fourth))) in pairs.enumerate() {
        let codes = load([first, second, third, fourth]);
        let low = _mm512_and_si512(codes, low_nibbles);
        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low_nibbles);
        for g in 0..G {
            let [low_table, high_table] = pair_table(&queries[g], pair);
            let low = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(low_table), low);
            let high = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(high_table), high);
            even[g] = _mm512_add_epi16(even[g], _mm512_add_epi16(low, high));
            let halves =
                _mm512_add_epi16(_mm512_srli_epi16::<8>(low), _mm512_srli_epi16::<8>(high));
            odd[g] = _mm512_add_epi16(odd[g], halves);
        }
    }
    let mut sums = [_mm_setzero_ps(); G];
    for g in 0..G {
        let even = _mm512_sub_epi16(even[g], _mm512_slli_epi16::<8>(odd[g]));
        let eight = _mm512_max_epu16(even, odd[g]);
        let four = _mm512_max_epu16(eight, _mm512_shuffle_epi32::<0b01_00_11_10>(eight));
        let two = _mm512_max_epu16(four, _mm512_shuffle_epi32::<0b10_11_00_01>(four));
        let one = _mm512_max_epu16(two, _mm512_srli_epi32::<16>(two));
        // The largest is in the lower half of every 32-bit lane of a quarter: one lane of each is taken.
        let one = _mm512_and_si512(one, _mm512_set1_epi32(0xffff));
        let one = _mm512_maskz_compress_epi32(0x1111, one);
        sums[g] = _mm_cvtepi32_ps(_mm512_castsi512_si128(one));
    }
    sums
}

/// Sixteen bytes of each of four tiles.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(rows: [&[u8; TILE]; SHARED]) -> __m512i {
    // SAFETY: every array has 16 bytes, and the loads have no alignment.
    let [a, b, c, d] = rows.map(|row| unsafe { _mm_loadu_si128(row.as_ptr().cast()) });
    let codes = _mm512_castsi128_si512(a);
    let codes = _mm512_mask_broadcast_i32x4(codes, 0x00f0, b);
    let codes = _mm512_mask_broadcast_i32x4(codes, 0x0f00, c);
    _mm512_mask_broadcast_i32x4(codes, 0xf000, d)
}
