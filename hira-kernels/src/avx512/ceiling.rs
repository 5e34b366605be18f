//! The multiply-adds of a scan and nothing else: the rate that no scan can exceed.

use core::arch::x86_64::*;

use crate::{Avx512, Line};

/// Lines with accumulators of their own: two each hide the latency of `vpdpbusd`.
const CHAINS: usize = 8;

impl Avx512 {
    pub(crate) fn int8_products(self, lines: &[Line], rounds: usize) -> Option<i32> {
        // SAFETY: the token proves that this machine has the target features of the function.
        Some(unsafe { products(lines, rounds) })
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn products(lines: &[Line], rounds: usize) -> i32 {
    let words = [_mm512_set1_epi8(1), _mm512_set1_epi8(-2)];
    let mut sums = [[_mm512_setzero_si512(); 2]; CHAINS];
    for _ in 0..rounds {
        for lines in lines.chunks_exact(CHAINS) {
            for (sums, line) in sums.iter_mut().zip(lines) {
                // SAFETY: a line is 64 bytes, aligned to 64.
                let line = unsafe { _mm512_load_si512(line.0.as_ptr().cast()) };
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = _mm512_dpbusd_epi32(*sum, line, word);
                }
            }
        }
    }
    let all = sums.into_iter().flatten();
    _mm512_reduce_add_epi32(all.fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi32(a, b)))
}
