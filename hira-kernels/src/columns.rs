//! What is asked of a batch of rows before and while it is stored: whether their norms are in order, and their sum.

use crate::kernel::dispatch;
use crate::precision::{round_to_bf16, round_to_f16};
use crate::{Kernel, Precision, TILE};

impl Kernel {
    /// Adds each row of `rows` to `sums`, column by column, in `f64` and in order of the rows: the same bits on every kernel.
    ///
    /// # Shapes
    ///
    /// `rows`: `[N][D]`, `sums`: `[D]`.
    ///
    /// # Panics
    ///
    /// If `rows` is not whole rows of `sums.len()` values.
    pub fn add_columns(self, rows: &[f32], sums: &mut [f64]) {
        if sums.is_empty() {
            assert!(rows.is_empty(), "rows without columns hold nothing");
            return;
        }
        assert!(rows.len().is_multiple_of(sums.len()), "whole rows");
        dispatch!(self, add_columns(rows, sums));
    }

    /// Number of rows before the first whose sum of squares, in `f32`, is not below `limit`; of all rows if there is none. The
    /// squares are those of the values [rounded](Precision::round) to `precision`.
    ///
    /// # Numerics
    ///
    /// Sixteen lanes in index order, without fused operations, then the lanes one after the other: a relative error below
    /// `(ceil(D/16) + 17) 2^-24`, the same value on every kernel. A row with a NaN or an infinity, or one that
    /// rounding made, is never below.
    ///
    /// # Panics
    ///
    /// If `dim` is 0 or `rows` is not whole rows of `dim` values.
    pub fn rows_below(self, rows: &[f32], dim: usize, limit: f32, precision: Precision) -> usize {
        assert!(dim > 0 && rows.len().is_multiple_of(dim), "whole rows");
        dispatch!(self, rows_below(rows, dim, limit, precision))
    }
}

#[inline(always)]
pub(crate) fn add_columns(rows: &[f32], sums: &mut [f64]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
}

#[inline(always)]
pub(crate) fn rows_below(rows: &[f32], dim: usize, limit: f32, precision: Precision) -> usize {
    match precision {
        Precision::F32 => rounded_rows_below(rows, dim, limit, |x| x),
        Precision::F16 => rounded_rows_below(rows, dim, limit, round_to_f16),
        Precision::Bf16 => rounded_rows_below(rows, dim, limit, round_to_bf16),
    }
}

#[inline(always)]
fn rounded_rows_below(rows: &[f32], dim: usize, limit: f32, round: impl Fn(f32) -> f32) -> usize {
    let below = |row: &[f32]| {
        let mut lanes = [0.0f32; TILE];
        let (blocks, rest) = row.as_chunks::<TILE>();
        for block in blocks {
            for l in 0..TILE {
                let x = round(block[l]);
                lanes[l] += x * x;
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            let x = round(x);
            *lane += x * x;
        }
        lanes.iter().sum::<f32>() < limit
    };
    let mut rows_of = rows.chunks_exact(dim);
    rows_of
        .position(|row| !below(row))
        .unwrap_or(rows.len() / dim)
}
