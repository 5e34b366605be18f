//! Bounds of boxes: how high a score can be for a key that lies between two corners.

use crate::kernel::dispatch;
use crate::{Kernel, TILE, lanes};

impl Kernel {
    /// `sum_i max(q_i lo_i, q_i hi_i)` for each pair of rows of `lo` and `hi`, before any outward rounding.
    ///
    /// # Shapes
    ///
    /// `query`: `[D]`, `lo` and `hi`: `[out.len()][D]`.
    ///
    /// # Units
    ///
    /// Score.
    ///
    /// # Numerics
    ///
    /// Both products are rounded and the larger one is taken; the terms are added in sixteen lanes in index order and then
    /// in a pairwise tree, without fused operations: a term passes through one rounding of its product, at most
    /// `ceil(D/16)` additions in its lane and 4 in the tree. The same value on every kernel. Whoever wants a bound adds what
    /// these roundings can lose, and sees to it that no partial sum overflows.
    ///
    /// # Complexity
    ///
    /// O(rows * D), two rows read a result.
    ///
    /// # Panics
    ///
    /// If `lo` or `hi` has another length.
    pub fn box_sums_into(self, query: &[f32], lo: &[f32], hi: &[f32], out: &mut [f32]) {
        let values = query.len() * out.len();
        assert_eq!(lo.len(), values, "one row of lo a result");
        assert_eq!(hi.len(), values, "one row of hi a result");
        if query.is_empty() {
            out.fill(0.0);
            return;
        }
        dispatch!(self, box_sums(query, lo, hi, out));
    }
}

/// The portable form, which the vector kernels compile for their own registers.
#[inline(always)]
pub(crate) fn box_sums(query: &[f32], lo: &[f32], hi: &[f32], out: &mut [f32]) {
    let dim = query.len();
    let rows = lo.chunks_exact(dim).zip(hi.chunks_exact(dim));
    for (out, (lo, hi)) in out.iter_mut().zip(rows) {
        let mut sums = [0.0f32; TILE];
        let (q_blocks, q_rest) = query.as_chunks::<TILE>();
        let (lo_blocks, lo_rest) = lo.as_chunks::<TILE>();
        let (hi_blocks, hi_rest) = hi.as_chunks::<TILE>();
        for ((q, lo), hi) in q_blocks.iter().zip(lo_blocks).zip(hi_blocks) {
            for l in 0..TILE {
                sums[l] += larger(q[l], lo[l], hi[l]);
            }
        }
        for (l, ((&q, &lo), &hi)) in q_rest.iter().zip(lo_rest).zip(hi_rest).enumerate() {
            sums[l] += larger(q, lo, hi);
        }
        *out = lanes::tree(sums);
    }
}

#[inline(always)]
fn larger(q: f32, lo: f32, hi: f32) -> f32 {
    let (low, high) = (q * lo, q * hi);
    if low > high { low } else { high }
}
