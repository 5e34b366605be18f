//! [`Simd`] on x86-64: eight lanes of AVX2, sixteen of AVX-512.

use std::arch::x86_64::*;

use super::simd::{Block, Simd};
use crate::element::Element;
use crate::{Avx2, Avx512};

/// Calls an intrinsic that needs only the features of the token in scope.
macro_rules! with_features {
    ($e:expr) => {
        // SAFETY: `self` is a capability token, made only where its features were detected.
        unsafe { $e }
    };
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const PREFILL_REGISTERS: usize = 2;
    const PREFILL_STREAMS: usize = 4;
    const DECODE_SUMS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        with_features!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        with_features!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        with_features!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        with_features!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        with_features!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        with_features!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn select_less(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        with_features!(_mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn any_less(self, a: __m256, b: __m256) -> bool {
        with_features!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) != 0)
    }
    #[inline(always)]
    fn trees(self, [a, b, c, d]: [Block<Self>; 4]) -> [f32; 4] {
        with_features!(trees([
            _mm256_add_ps(a[0], a[1]),
            _mm256_add_ps(b[0], b[1]),
            _mm256_add_ps(c[0], c[1]),
            _mm256_add_ps(d[0], d[1]),
        ]))
    }
    #[inline(always)]
    fn shift_exponent(self, x: __m256, power: __m256) -> __m256 {
        with_features!(_mm256_castsi256_ps(_mm256_add_epi32(
            _mm256_castps_si256(x),
            _mm256_slli_epi32::<23>(_mm256_castps_si256(power))
        )))
    }
    #[inline(always)]
    unsafe fn load<E: Element>(self, from: *const E) -> __m256 {
        // SAFETY: the token, and the caller's promise that eight values are readable; unaligned is allowed.
        unsafe { E::load8(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m256) {
        // SAFETY: the token, and the caller's promise that eight values are writable; unaligned is allowed.
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn load_head<E: Element>(self, from: *const E, len: usize) -> __m256 {
        // SAFETY: the token, and the caller's promise that `len` values are readable.
        unsafe { E::load8_head(from, len) }
    }
}

/// Lanes 16 -> 8: lane `l` and lane `l + 8`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold(x: __m512) -> __m256 {
    _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x))
}

/// Lanes 8 -> 4 -> 2 -> 1 of four registers at a time; each step adds lane `l` and lane `l + half`.
#[inline]
#[target_feature(enable = "avx2")]
fn trees(x: [__m256; 4]) -> [f32; 4] {
    // [a 0..4 | b 0..4], [c 0..4 | d 0..4]
    let low = _mm256_permute2f128_ps::<0x20>(x[0], x[1]);
    let ab = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(x[0], x[1]));
    let low = _mm256_permute2f128_ps::<0x20>(x[2], x[3]);
    let cd = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(x[2], x[3]));
    // [a 0..2, c 0..2 | b 0..2, d 0..2]
    let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    let low = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    let pairs = _mm256_add_ps(low, _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
    // [a, a, c, c | b, b, d, d]
    let ones = _mm256_add_ps(pairs, _mm256_permute_ps::<0b10_11_00_01>(pairs));
    let (ac, bd) = (
        _mm256_castps256_ps128(ones),
        _mm256_extractf128_ps::<1>(ones),
    );
    let abcd = _mm_shuffle_ps::<0b10_00_10_00>(ac, bd); // a, c, b, d
    let abcd = _mm_permute_ps::<0b11_01_10_00>(abcd);
    let mut sums = [0.0; 4];
    // SAFETY: `sums` has room for four values; unaligned is allowed.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), abcd) };
    sums
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const PREFILL_REGISTERS: usize = 3;
    const PREFILL_STREAMS: usize = 8;
    const DECODE_SUMS: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        with_features!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        with_features!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        with_features!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        with_features!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        with_features!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        with_features!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        with_features!(_mm512_mask_blend_ps(
            _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b),
            no,
            yes
        ))
    }
    #[inline(always)]
    fn any_less(self, a: __m512, b: __m512) -> bool {
        with_features!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) != 0)
    }
    #[inline(always)]
    fn trees(self, [a, b, c, d]: [Block<Self>; 4]) -> [f32; 4] {
        with_features!(trees([fold(a[0]), fold(b[0]), fold(c[0]), fold(d[0])]))
    }
    #[inline(always)]
    fn shift_exponent(self, x: __m512, power: __m512) -> __m512 {
        with_features!(_mm512_castsi512_ps(_mm512_add_epi32(
            _mm512_castps_si512(x),
            _mm512_slli_epi32::<23>(_mm512_castps_si512(power))
        )))
    }
    #[inline(always)]
    unsafe fn load<E: Element>(self, from: *const E) -> __m512 {
        // SAFETY: the token, and the caller's promise that sixteen values are readable; unaligned is allowed.
        unsafe { E::load16(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        // SAFETY: the token, and the caller's promise that sixteen values are writable; unaligned is allowed.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn load_head<E: Element>(self, from: *const E, len: usize) -> __m512 {
        // SAFETY: the token, and the caller's promise that `len` values are readable.
        unsafe { E::load16_masked(from, (1u16 << len) - 1) }
    }
}
