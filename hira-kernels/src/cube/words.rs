//! Rows of 32-bit words: one `f32` to a word, or two 16-bit values.

use cubecl::prelude::*;

use crate::Precision;

/// Sixteen bytes of a row.
pub(super) type Words = Vector<u32, Const<4>>;

/// Sixteen bytes of `f32`.
pub(super) type Lanes = Vector<f32, Const<4>>;

/// The upper sixteen bits of a float, as a word's upper or lower half has them.
#[cube]
pub(super) fn widen_bf16(bits: u32) -> f32 {
    f32::reinterpret(bits << 16u32)
}

/// Bits of the smallest bf16 value that is not below `value >= 0`.
#[cube]
pub(super) fn bf16_up(value: f32) -> u32 {
    (u32::reinterpret(value) + 0xffffu32) >> 16u32
}

/// Exact, subnormals included: those are made by a subtraction of two normal numbers.
#[cube]
pub(super) fn widen_f16(bits: u32) -> f32 {
    let sign = (bits & 0x8000u32) << 16u32;
    let magnitude = bits & 0x7fffu32;
    let mut wide = f32::reinterpret((magnitude << 13u32) + 0x3800_0000u32);
    if magnitude < 0x400u32 {
        wide = f32::reinterpret((magnitude << 13u32) + 0x3880_0000u32)
            - comptime!(f32::from_bits(0x3880_0000));
    }
    if magnitude >= 0x7c00u32 {
        wide = f32::reinterpret((magnitude << 13u32) | 0x7f80_0000u32);
    }
    f32::reinterpret(u32::reinterpret(wide) | sign)
}

/// The nearest 16-bit value, ties to even, of a value that is finite; an infinity if that is beyond the largest.
#[cube]
fn narrow(value: f32, #[comptime] precision: Precision) -> u32 {
    let bits = u32::reinterpret(value);
    let sign = (bits >> 16u32) & 0x8000u32;
    let magnitude = bits & 0x7fff_ffffu32;
    if comptime!(precision == Precision::Bf16) {
        sign | ((magnitude + 0x7fffu32 + ((magnitude >> 16u32) & 1u32)) >> 16u32)
    } else {
        // From 2^-14 on the exponent is moved from a bias of 127 to one of 15; below, adding 1/2 leaves units of 2^-24 in the low bits.
        let mut half =
            (magnitude + 0xfffu32 + ((magnitude >> 13u32) & 1u32) - 0x3800_0000u32) >> 13u32;
        if magnitude < 0x3880_0000u32 {
            half = u32::reinterpret(f32::reinterpret(magnitude) + 0.5f32) - 0x3f00_0000u32;
        }
        if magnitude >= 0x4780_0000u32 {
            half = 0x7c00u32;
        }
        sign | half
    }
}

/// Two values as one word.
#[cube]
pub(super) fn pack(low: f32, high: f32, #[comptime] precision: Precision) -> u32 {
    narrow(low, precision) | (narrow(high, precision) << 16u32)
}

/// Value `half` of a word of two.
#[cube]
pub(super) fn unpack(word: u32, #[comptime] half: u32, #[comptime] precision: Precision) -> f32 {
    let bits = (word >> comptime!(16 * half)) & 0xffffu32;
    if comptime!(precision == Precision::Bf16) {
        widen_bf16(bits)
    } else {
        widen_f16(bits)
    }
}

/// Four values of a row, from `4 * quad` on; `row` is the vector where the row begins.
#[cube]
pub(super) fn quad(
    rows: &Array<Words>,
    row: usize,
    quad: usize,
    #[comptime] precision: Precision,
) -> Lanes {
    let mut out = Lanes::empty();
    if comptime!(precision == Precision::F32) {
        out = Lanes::reinterpret(rows[row + quad]);
    } else {
        let words = rows[row + quad / 2];
        let odd = quad % 2 == 1;
        let first = select(odd, words[2], words[0]);
        let second = select(odd, words[3], words[1]);
        out[0] = unpack(first, 0u32, precision);
        out[1] = unpack(first, 1u32, precision);
        out[2] = unpack(second, 0u32, precision);
        out[3] = unpack(second, 1u32, precision);
    }
    out
}

/// The sum of four lanes, by a tree.
#[cube]
pub(super) fn sum_lanes(lanes: Lanes) -> f32 {
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

/// Whether a value is NaN or its magnitude reaches `largest`, by its bits: comparisons with NaN differ between runtimes.
#[cube]
pub(super) fn is_beyond(value: f32, #[comptime] largest: u32) -> bool {
    (u32::reinterpret(value) & 0x7fff_ffffu32) >= largest
}
