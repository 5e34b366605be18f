//! Rows of keys: what may be stored, and their mean.

use hira_kernels::{Kernel, Precision};

use crate::IndexError;

/// `2^126`, the square of the norm that no row may reach.
const MAX_SQUARE: f64 = (1u128 << 126) as f64;

/// How many rows of `dim` values `keys` holds, if all of them may be stored in `precision`.
pub(crate) fn check(
    kernel: Kernel,
    keys: &[f32],
    dim: usize,
    precision: Precision,
) -> Result<usize, IndexError> {
    if !keys.len().is_multiple_of(dim) {
        return Err(IndexError::Dimension {
            expected: dim,
            received: keys.len(),
        });
    }
    let rows = keys.len() / dim;
    // From the first doubtful row on, the answer is worked out exactly.
    let fine = kernel.rows_below(keys, dim, CLEARLY_FINE, precision);
    for row in fine..rows {
        check_row(&keys[row * dim..][..dim], row, precision)?;
    }
    Ok(rows)
}

/// `2^125`: rows whose sum of squares is below it in `f32` are finite and well within the limit.
///
/// The sum has a relative error below `2^-7` (at most `2^12 + 17` roundings, at `dim <= 2^16`), so a result below this
/// proves a square below `2^126`. A NaN or an infinity makes the sum NaN or infinite. Squares that underflow lose less than
/// `2^-126` each.
const CLEARLY_FINE: f32 = (1u128 << 125) as f32;

fn check_row(key: &[f32], row: usize, precision: Precision) -> Result<(), IndexError> {
    let mut square = 0.0f64;
    for (column, &x) in key.iter().enumerate() {
        if !x.is_finite() {
            return Err(IndexError::NonFinite { row, column });
        }
        let stored = f64::from(precision.round(x));
        if stored.is_infinite() {
            return Err(IndexError::Overflow {
                row,
                column,
                precision,
            });
        }
        square += stored * stored;
    }
    if square >= MAX_SQUARE {
        Err(IndexError::Magnitude { row })
    } else {
        Ok(())
    }
}

/// Mean of rows that follow each other, the same bits as [`mean`] of them.
pub(crate) fn mean_of(kernel: Kernel, rows: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; dim];
    kernel.add_columns(rows, &mut sums);
    quotients(sums, rows.len() / dim)
}

/// Mean of the rows that `rows` names (zeros if it names none), accumulated in `f64`.
pub(crate) fn mean<'a>(rows: impl Iterator<Item = &'a [f32]>, dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; dim];
    let mut count = 0;
    for row in rows {
        count += 1;
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    quotients(sums, count)
}

fn quotients(sums: Vec<f64>, count: usize) -> Vec<f32> {
    let count = count.max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// Outward factor for a norm that was computed in `f64`.
///
/// A sum of `n` squares of differences, in any order, and its square root. Each difference has one rounding
/// (`2^-53` relative, twice in its square), each square one, the sum at most `n - 1` on top of every term (no term is
/// negative, so nothing cancels), the root and this product one each: `(n + 4) * 2^-53 * 1.01 < 2^-36` for `n <= 2^16`.
/// Differences of `f32` values are multiples of `2^-149`, so no square underflows; below `2^65`, none overflows.
const OUTWARD: f64 = 1.0 + 1.0 / (1u64 << 36) as f64;

/// A value that is not below the square root of a sum that was computed in `f64` as [`OUTWARD`] says.
pub(crate) fn root_up(square: f64) -> f64 {
    square.sqrt() * OUTWARD
}

/// A value that is not below the Euclidean norm of `row`.
pub(crate) fn norm_up(row: &[f32]) -> f64 {
    root_up(sum_squares(row, row, |x, _| f64::from(x)))
}

/// `||a - b||^2` in `f64`, rounded as [`OUTWARD`] says.
pub(crate) fn square_distance(a: &[f32], b: &[f32]) -> f64 {
    sum_squares(a, b, |a, b| f64::from(a) - f64::from(b))
}

/// Sum of the squares of `f(a_i, b_i)`, in eight lanes: the compiler vectorises that.
#[inline(always)]
fn sum_squares(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f64) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for l in 0..8 {
            let x = f(a[l], b[l]);
            lanes[l] += x * x;
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        let x = f(a, b);
        *lane += x * x;
    }
    lanes.iter().sum()
}

/// Makes the box hold `key`.
pub(crate) fn extend_box(lo: &mut [f32], hi: &mut [f32], key: &[f32]) {
    for ((lo, hi), &x) in lo.iter_mut().zip(hi).zip(key) {
        *lo = if x < *lo { x } else { *lo };
        *hi = if x > *hi { x } else { *hi };
    }
}

/// The smallest `f32` that is not below `value`.
pub(crate) fn round_up(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) < value {
        near.next_up()
    } else {
        near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kernel: Kernel, keys: &[f32], dim: usize) -> Result<usize, IndexError> {
        super::check(kernel, keys, dim, Precision::F32)
    }

    #[test]
    fn rows_are_checked_as_they_will_be_stored() {
        let check = |keys: &[f32], precision| super::check(Kernel::best(), keys, 1, precision);
        let overflow = |row, precision| {
            Err(IndexError::Overflow {
                row,
                column: 0,
                precision,
            })
        };
        assert_eq!(check(&[65_519.9, -65_519.9], Precision::F16), Ok(2));
        let large = [1.0, -65_520.0, f32::NAN];
        assert_eq!(check(&large, Precision::F16), overflow(1, Precision::F16));
        assert_eq!(
            check(&large, Precision::Bf16),
            Err(IndexError::NonFinite { row: 2, column: 0 })
        );
        assert_eq!(
            check(&[f32::MAX], Precision::Bf16),
            overflow(0, Precision::Bf16)
        );
        // The norm is that of what is stored: 2^63 here, and below it.
        let limit = 2.0f32.powi(63);
        assert_eq!(
            check(&[limit.next_down()], Precision::Bf16),
            Err(IndexError::Magnitude { row: 0 })
        );
        assert_eq!(check(&[limit * 0.998], Precision::Bf16), Ok(1));
    }

    #[test]
    fn rows_are_counted() {
        assert_eq!(check(Kernel::best(), &[], 3), Ok(0));
        assert_eq!(check(Kernel::best(), &[1.0; 6], 3), Ok(2));
        assert_eq!(
            check(Kernel::best(), &[1.0; 7], 3),
            Err(IndexError::Dimension {
                expected: 3,
                received: 7
            })
        );
    }

    #[test]
    fn the_first_bad_value_is_named() {
        for dim in [1, 3, 16, 17, 33] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut keys = vec![1.0; dim * 4];
                keys[dim * 3] = bad;
                keys[dim * 2 + dim - 1] = bad;
                assert_eq!(
                    check(Kernel::best(), &keys, dim),
                    Err(IndexError::NonFinite {
                        row: 2,
                        column: dim - 1
                    })
                );
            }
        }
    }

    #[test]
    fn the_norm_is_limited_exactly() {
        let limit = 2.0f32.powi(63);
        assert_eq!(
            check(Kernel::best(), &[0.0, limit], 1),
            Err(IndexError::Magnitude { row: 1 })
        );
        assert_eq!(check(Kernel::best(), &[0.0, limit.next_down()], 1), Ok(2));
        // 4 * (2^62)^2 = (2^63)^2
        assert_eq!(
            check(Kernel::best(), &[limit / 2.0; 4], 4),
            Err(IndexError::Magnitude { row: 0 })
        );
        let mut below = [limit / 2.0; 4];
        below[3] = below[3].next_down();
        assert_eq!(check(Kernel::best(), &below, 4), Ok(1));
        // A large row before a bad one does not hide it.
        assert_eq!(
            check(Kernel::best(), &[limit.next_down(), f32::NAN], 1),
            Err(IndexError::NonFinite { row: 1, column: 0 })
        );
    }

    #[test]
    fn means_and_norms() {
        let keys = [1.0, 2.0, 3.0, 6.0];
        assert_eq!(mean(keys.chunks(2), 2), [2.0, 4.0]);
        assert_eq!(mean(std::iter::empty(), 2), [0.0, 0.0]);
        assert_eq!(mean_of(Kernel::best(), &keys, 2), [2.0, 4.0]);
        assert_eq!(mean_of(Kernel::best(), &[], 2), [0.0, 0.0]);
        assert!(norm_up(&[3.0, 4.0]) >= 5.0);
        assert_eq!(round_up(norm_up(&[3.0, 4.0])), 5.0f32.next_up());
        assert_eq!(round_up(norm_up(&[0.0])), 0.0);
        let ramp: Vec<f32> = (1..=21).map(|i| i as f32).collect();
        assert_eq!(square_distance(&ramp, &[1.0; 21]), 2870.0); // 0 + 1 + 4 + ... + 400
    }
}
