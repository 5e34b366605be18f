//! Sixteen lanes: how every sum of this crate is ordered, and how a bound leaves `f64`.

use crate::TILE;
use crate::element::Element;

/// `row[16 * block ..][..16]`, widened, with zeros past the end of the row.
#[inline(always)]
pub(crate) fn load<E: Element>(row: &[E], block: usize) -> [f32; TILE] {
    let rest = &row[block * TILE..];
    match rest.first_chunk::<TILE>() {
        Some(full) => full.map(E::widen),
        None => {
            let mut padded = [0.0; TILE];
            for (lane, value) in padded.iter_mut().zip(rest) {
                *lane = value.widen();
            }
            padded
        }
    }
}

/// The pairwise tree over sixteen `f32` lanes: 16 -> 8 -> 4 -> 2 -> 1, lane `l` with lane `l + half`.
#[inline(always)]
pub(crate) fn tree(mut lanes: [f32; TILE]) -> f32 {
    let mut half = TILE / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest of sixteen lanes, none of them a NaN.
#[inline(always)]
pub(crate) fn largest(mut lanes: [f32; TILE]) -> f32 {
    let mut half = TILE / 2;
    while half > 0 {
        for l in 0..half {
            let (a, b) = (lanes[l], lanes[l + half]);
            lanes[l] = if b > a { b } else { a };
        }
        half /= 2;
    }
    lanes[0]
}

/// The same tree in `f64`.
#[inline(always)]
pub(crate) fn tree_f64(lanes: [f64; TILE]) -> f64 {
    // Without a loop: the halves of a register need not pass through memory.
    let eight: [f64; 8] = std::array::from_fn(|l| lanes[l] + lanes[l + 8]);
    let four: [f64; 4] = std::array::from_fn(|l| eight[l] + eight[l + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The smallest `f32` that is not below `value`.
#[inline(always)]
pub(crate) fn round_up(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) < value {
        near.next_up()
    } else {
        near
    }
}

/// `1.5 * 2^23`: adding it to an `f32` of magnitude up to `2^22` rounds that to an integer, ties to even, and leaves
/// the integer in the low mantissa bits.
///
/// At `[2^23, 2^24)` the distance of neighbouring floats is 1, so the sum's own rounding is the rounding asked for.
/// This is `roundps` for the instruction sets that lack it, and the same bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// `value` rounded to an integer, ties to even, as integer and as float. For `|value| <= 2^22`.
#[inline(always)]
pub(crate) fn round(value: f32) -> (i32, f32) {
    let shifted = value + ROUND;
    (
        shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32,
        shifted - ROUND,
    )
}

/// Outward factor for a Euclidean norm that was computed in `f64`.
///
/// A sum of `n` squares in sixteen lanes and a tree, its square root and one product: relative error at most
/// `(n/16 + 4 + 1 + 1 + 1) * 2^-53 * 1.01`. With `n <= 2^16` that is below `2^-40`.
pub(crate) const NORM_UP: f64 = 1.0 + 1.0 / (1u64 << 40) as f64;

/// Outward-rounded Euclidean norm of `row`, relative excess below `2^-22`.
#[inline(always)]
pub(crate) fn norm_up(row: &[f32]) -> f64 {
    let mut squares = [0.0f64; TILE];
    for block in 0..row.len().div_ceil(TILE) {
        let values = load(row, block);
        for l in 0..TILE {
            squares[l] += f64::from(values[l]) * f64::from(values[l]);
        }
    }
    tree_f64(squares).sqrt() * NORM_UP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        for value in [0.0, 0.5, 1.5, -0.5, -1.5, 2.5, 126.999, -4_000_000.5, 1e-40] {
            let (integer, float) = round(value);
            assert_eq!(float, value.round_ties_even(), "{value}");
            assert_eq!(integer as f32, float, "{value}");
        }
    }

    #[test]
    fn round_up_never_falls_below() {
        for value in [0.0, 1e-60, 1.0 + 1e-12, 0.1, 1e19] {
            let up = round_up(value);
            assert!(f64::from(up) >= value && f64::from(up.next_down()) < value.max(1e-300));
        }
    }

    #[test]
    fn load_pads_with_zeros() {
        let row: Vec<f32> = (1..=18).map(|i| i as f32).collect();
        assert_eq!(load(&row, 1)[..3], [17.0, 18.0, 0.0]);
    }
}
