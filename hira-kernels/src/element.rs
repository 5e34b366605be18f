//! A stored value, and how a register of them is widened to `f32`.
//!
//! Kernels over exact rows are written once, generic over the [`Element`], and compiled for each: widening is exact, so they
//! compute what they would compute for the widened rows, bit for bit.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::*;

use half::{bf16, f16};

/// A value of an exact row: `f32`, `f16` or `bf16`.
pub(crate) trait Element: Copy + Send + Sync {
    /// The value; exact.
    fn widen(self) -> f32;

    /// The bits, for whoever only has to have read them.
    fn bits(self) -> u32;

    /// Eight values.
    ///
    /// # Safety
    /// Eight values at `from` are readable, and the processor has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load8(from: *const Self) -> __m256;

    /// The first `len` values of eight; the other lanes are +0.
    ///
    /// # Safety
    /// `len <= 8` values at `from` are readable, and the processor has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load8_head(from: *const Self, len: usize) -> __m256;

    /// Sixteen values.
    ///
    /// # Safety
    /// Sixteen values at `from` are readable, and the processor has AVX-512 F.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16(from: *const Self) -> __m512;

    /// The values of sixteen that `mask` admits; the other lanes are +0.
    ///
    /// # Safety
    /// The values that the mask admits are readable, and the processor has AVX-512 F, BW and VL.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16_masked(from: *const Self, mask: u16) -> __m512;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load8(from: *const f32) -> __m256 {
        // SAFETY: the caller's promises; unaligned is allowed.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load8_head(from: *const f32, len: usize) -> __m256 {
        // SAFETY: the caller's promises; lanes past `len` are masked off and not touched.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(len as i32), lane);
            _mm256_maskload_ps(from, mask)
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(from: *const f32) -> __m512 {
        // SAFETY: the caller's promises; unaligned is allowed.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16_masked(from: *const f32, mask: u16) -> __m512 {
        // SAFETY: the caller's promises; lanes that are masked off are not touched.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
}

/// An [`Element`] of sixteen bits: `$eight` widens the eight values of a register, `$sixteen` those of one of sixteen.
macro_rules! sixteen_bits {
    ($element:ty, $value:ident => $widen:expr, $eight:expr, $sixteen:expr) => {
        impl Element for $element {
            #[inline(always)]
            fn widen(self) -> f32 {
                let $value = self;
                $widen
            }

            #[inline(always)]
            fn bits(self) -> u32 {
                u32::from(self.to_bits())
            }

            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn load8(from: *const Self) -> __m256 {
                // SAFETY: the caller's promises; unaligned is allowed.
                unsafe { $eight(_mm_loadu_si128(from.cast())) }
            }

            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn load8_head(from: *const Self, len: usize) -> __m256 {
                if len == 8 {
                    // SAFETY: the caller's promises.
                    return unsafe { Self::load8(from) };
                }
                let mut padded = [0u16; 8];
                for (i, value) in padded.iter_mut().enumerate().take(len) {
                    // SAFETY: `i < len`, and the caller promises that `len` values are readable.
                    *value = unsafe { from.add(i).read() }.to_bits();
                }
                // SAFETY: the array has eight values.
                unsafe { $eight(_mm_loadu_si128(padded.as_ptr().cast())) }
            }

            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn load16(from: *const Self) -> __m512 {
                // SAFETY: the caller's promises; unaligned is allowed.
                unsafe { $sixteen(_mm256_loadu_si256(from.cast())) }
            }

            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn load16_masked(from: *const Self, mask: u16) -> __m512 {
                // SAFETY: the caller's promises; lanes that are masked off are not touched.
                unsafe { $sixteen(_mm256_maskz_loadu_epi16(mask, from.cast())) }
            }
        }
    };
}

sixteen_bits!(f16, value => value.to_f32_const(), _mm256_cvtph_ps, _mm512_cvtph_ps);
sixteen_bits!(
    bf16,
    value => crate::bf16::decode(value.to_bits()),
    |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))),
    |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
);
