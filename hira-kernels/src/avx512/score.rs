//! The canonical score: sixteen lanes are one register.

use core::arch::x86_64::*;

use super::ahead::ahead_rows;
use crate::TILE;
use crate::avx2::score::{ahead, prefetch, sum_quads};
use crate::element::Element;
use crate::prefetch::fetch;
use crate::score::Rows;

/// Four rows at a time: their chains of fused multiply-adds hide one another's latency.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn scores<E: Element>(query: &[f32], rows: Rows<'_, E>, out: &mut [f32]) {
    assert_eq!(
        query.len(),
        rows.dim(),
        "rows have the dimension of the query"
    );
    let bytes = query.len() * size_of::<E>();
    let (distance, in_run) = (ahead(bytes), ahead_rows(bytes));
    for i in 0..distance.min(out.len()) {
        prefetch(rows.gathered(i));
    }
    for (i, out) in out.chunks_mut(4).enumerate() {
        for next in 4 * i + distance..4 * i + distance + 4 {
            prefetch(rows.gathered(next));
        }
        if let Some(distance) = in_run {
            fetch::<_MM_HINT_T0, E>(rows.in_run(4 * i + distance, 4));
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn quad<E: Element>(query: &[f32], rows: [&[E]; 4]) -> [f32; 4] {
    let dim = query.len();
    assert!(rows.iter().all(|row| row.len() == dim));
    let mut acc = [_mm512_setzero_ps(); 4];
    let whole = dim - dim % TILE;
    for at in (0..whole).step_by(TILE) {
        // SAFETY: `at + 16 <= whole <= dim`, the length of the query and, asserted above, of every row; the function has the features.
        unsafe {
            let q = _mm512_loadu_ps(query.as_ptr().add(at));
            for r in 0..4 {
                acc[r] = _mm512_fmadd_ps(q, E::load16(rows[r].as_ptr().add(at)), acc[r]);
            }
        }
    }
    if whole < dim {
        let mask = (1u16 << (dim - whole)) - 1;
        // SAFETY: the mask admits the `dim - whole` lanes that lie inside the query and every row; the function has the features.
        unsafe {
            let q = _mm512_maskz_loadu_ps(mask, query.as_ptr().add(whole));
            for r in 0..4 {
                let k = E::load16_masked(rows[r].as_ptr().add(whole), mask);
                acc[r] = _mm512_fmadd_ps(q, k, acc[r]);
            }
        }
    }
    sum_quads([halve(acc[0]), halve(acc[1]), halve(acc[2]), halve(acc[3])])
}

/// The first two levels of the tree: 16 -> 8 -> 4.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn halve(lanes: __m512) -> __m128 {
    let eight = _mm256_add_ps(
        _mm512_castps512_ps256(lanes),
        _mm512_extractf32x8_ps::<1>(lanes),
    );
    _mm_add_ps(
        _mm256_castps256_ps128(eight),
        _mm256_extractf128_ps::<1>(eight),
    )
}
