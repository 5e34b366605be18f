//! Counts of values that reach a limit, eight at a time.

use core::arch::x86_64::*;

use crate::order::{select, values_of};

const LANES: usize = 8;

/// Whole registers of values, and what is left over.
struct Registers<'a> {
    blocks: &'a [[f32; LANES]],
    rest: &'a [f32],
}

#[inline]
fn registers(values: &[f32]) -> Registers<'_> {
    let (blocks, rest) = values.as_chunks();
    Registers { blocks, rest }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn kth_largest(values: &[f32], k: usize) -> f32 {
    select(&registers(values), k)
}

#[target_feature(enable = "avx2")]
pub(super) fn extremes(values: &[f32]) -> [f32; 2] {
    registers(values).ends()
}

#[target_feature(enable = "avx2")]
pub(super) fn least_at(values: &[f32], limit: f32) -> f32 {
    registers(values).least(limit)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(block: &[f32; LANES]) -> __m256 {
    // SAFETY: the array holds the eight lanes.
    unsafe { _mm256_loadu_ps(block.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(register: __m256) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    // SAFETY: the array has room for the eight lanes.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), register) };
    lanes
}

impl Registers<'_> {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn ends(&self) -> [f32; 2] {
        let mut least = _mm256_set1_ps(f32::INFINITY);
        let mut most = _mm256_set1_ps(f32::NEG_INFINITY);
        for block in self.blocks {
            least = _mm256_min_ps(least, load(block));
            most = _mm256_max_ps(most, load(block));
        }
        let least = store(least).into_iter().chain(self.rest.iter().copied());
        let most = store(most).into_iter().chain(self.rest.iter().copied());
        [
            least.fold(f32::INFINITY, f32::min),
            most.fold(f32::NEG_INFINITY, f32::max),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn count(&self, limit: f32) -> usize {
        let lanes = _mm256_set1_ps(limit);
        // A comparison that holds is -1 in its lane.
        let mut counts = [_mm256_setzero_si256(); 2];
        let (pairs, last) = self.blocks.as_chunks::<2>();
        for pair in pairs {
            for (count, block) in counts.iter_mut().zip(pair) {
                let reached = _mm256_cmp_ps::<_CMP_GE_OQ>(load(block), lanes);
                *count = _mm256_sub_epi32(*count, _mm256_castps_si256(reached));
            }
        }
        for block in last {
            let reached = _mm256_cmp_ps::<_CMP_GE_OQ>(load(block), lanes);
            counts[0] = _mm256_sub_epi32(counts[0], _mm256_castps_si256(reached));
        }
        let counts = store(_mm256_castsi256_ps(_mm256_add_epi32(counts[0], counts[1])));
        let whole: u32 = counts.into_iter().map(f32::to_bits).sum();
        let rest = self.rest.iter().filter(|&&value| value >= limit).count();
        whole as usize + rest
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn least(&self, limit: f32) -> f32 {
        let (lanes, infinity) = (_mm256_set1_ps(limit), _mm256_set1_ps(f32::INFINITY));
        let mut least = infinity;
        for block in self.blocks {
            let values = load(block);
            let reached = _mm256_cmp_ps::<_CMP_GE_OQ>(values, lanes);
            least = _mm256_min_ps(least, _mm256_blendv_ps(infinity, values, reached));
        }
        let rest = self.rest.iter().copied().filter(|&value| value >= limit);
        store(least)
            .into_iter()
            .chain(rest)
            .fold(f32::INFINITY, f32::min)
    }
}

values_of!(Registers);
