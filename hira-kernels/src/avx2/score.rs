//! The canonical score in two registers of eight lanes.

use core::arch::x86_64::*;

use crate::element::Element;
use crate::prefetch::fetch;
use crate::score::Rows;
use crate::{TILE, lanes};

/// Rows of `bytes` each that are fetched ahead of the one at work: 24 KiB of them.
///
/// Into the second cache, which keeps more lines in flight than the first has buffers for. Measured on Zen 4, one core, cold rows of 256
/// bytes: 31 ns a row into the first cache whatever the distance, 24 ns into the second at 12 rows, 19 at 48, 18 at 96 and beyond.
#[inline]
pub(crate) fn ahead(bytes: usize) -> usize {
    (24 * 1024 / bytes.max(1)).clamp(8, 128)
}

/// Four rows at a time: their chains of fused multiply-adds hide one another's latency.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scores<E: Element>(query: &[f32], rows: Rows<'_, E>, out: &mut [f32]) {
    assert_eq!(
        query.len(),
        rows.dim(),
        "rows have the dimension of the query"
    );
    let distance = ahead(query.len() * size_of::<E>());
    for i in 0..distance.min(out.len()) {
        prefetch(rows.gathered(i));
    }
    for (i, out) in out.chunks_mut(4).enumerate() {
        for next in 4 * i + distance..4 * i + distance + 4 {
            prefetch(rows.gathered(next));
        }
        // The last chunk may have fewer than four rows: its first row stands in for those.
        let Some(first) = rows.get(4 * i) else { return };
        let row = |r: usize| {
            if r < out.len() {
                rows.get(4 * i + r).unwrap_or(first)
            } else {
                first
            }
        };
        let sums = quad(query, [first, row(1), row(2), row(3)]);
        out.copy_from_slice(&sums[..out.len()]);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn quad<E: Element>(query: &[f32], rows: [&[E]; 4]) -> [f32; 4] {
    let dim = query.len();
    assert!(rows.iter().all(|row| row.len() == dim));
    let mut acc = [[_mm256_setzero_ps(); 2]; 4];
    let whole = dim - dim % TILE;
    for at in (0..whole).step_by(TILE) {
        for half in 0..2 {
            // SAFETY: `at + 16 <= whole <= dim`, the length of the query and, asserted above, of every row; the function has the features.
            unsafe {
                let q = _mm256_loadu_ps(query.as_ptr().add(at + 8 * half));
                for r in 0..4 {
                    let k = E::load8(rows[r].as_ptr().add(at + 8 * half));
                    acc[r][half] = _mm256_fmadd_ps(q, k, acc[r][half]);
                }
            }
        }
    }
    if whole < dim {
        let q = load_padded(query);
        for r in 0..4 {
            let k = load_padded(rows[r]);
            for half in 0..2 {
                acc[r][half] = _mm256_fmadd_ps(q[half], k[half], acc[r][half]);
            }
        }
    }
    sum_quads([halve(acc[0]), halve(acc[1]), halve(acc[2]), halve(acc[3])])
}

/// The last, incomplete block of sixteen, with zeros behind it.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_padded<E: Element>(row: &[E]) -> [__m256; 2] {
    let padded = lanes::load(row, row.len() / TILE);
    // SAFETY: the array has sixteen lanes.
    unsafe {
        [
            _mm256_loadu_ps(padded.as_ptr()),
            _mm256_loadu_ps(padded.as_ptr().add(8)),
        ]
    }
}

/// The first two levels of the tree: 16 -> 8 -> 4.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn halve([low, high]: [__m256; 2]) -> __m128 {
    let eight = _mm256_add_ps(low, high);
    _mm_add_ps(
        _mm256_castps256_ps128(eight),
        _mm256_extractf128_ps::<1>(eight),
    )
}

/// The last two levels of the tree for four rows at once: `(l0 + l2) + (l1 + l3)` of each.
#[inline(always)]
pub(crate) fn sum_quads(rows: [__m128; 4]) -> [f32; 4] {
    let mut out = [0.0; 4];
    // SAFETY: SSE and SSE2 are part of x86-64, and the array has room for four lanes.
    unsafe {
        let (low, high) = (
            _mm_unpacklo_ps(rows[0], rows[1]),
            _mm_unpackhi_ps(rows[0], rows[1]),
        );
        let (low2, high2) = (
            _mm_unpacklo_ps(rows[2], rows[3]),
            _mm_unpackhi_ps(rows[2], rows[3]),
        );
        let even = _mm_add_ps(_mm_movelh_ps(low, low2), _mm_movelh_ps(high, high2));
        let odd = _mm_add_ps(_mm_movehl_ps(low2, low), _mm_movehl_ps(high2, high));
        _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(even, odd));
    }
    out
}

/// Fetches every cache line of a row into the second cache.
#[inline(always)]
pub(crate) fn prefetch<E>(row: Option<&[E]>) {
    if let Some(row) = row {
        fetch::<_MM_HINT_T1, E>(row);
    }
}
