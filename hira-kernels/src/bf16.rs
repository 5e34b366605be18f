//! The upper half of an `f32`: how a sketch stores scales and residual norms.

/// Smallest positive value with a bf16 representation: `2^-133`.
pub(crate) const MIN_POSITIVE: f32 = f32::from_bits(1 << 16);

/// Bits of the smallest bf16 value that is not below `value`.
///
/// For a finite `value >= 0` whose result is finite, that is, up to about `3.38e38`. The bit patterns of
/// non-negative floats are ordered as the floats are, so rounding up is an integer addition.
pub(crate) fn round_up(value: f32) -> u16 {
    debug_assert!(value >= 0.0 && value.is_finite());
    ((value.to_bits() + 0xffff) >> 16) as u16
}

/// The value of those bits; exact.
pub(crate) fn decode(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_up_by_less_than_one_step() {
        for value in [
            0.0,
            1e-45,
            MIN_POSITIVE,
            1e-38,
            1.0,
            1.000_000_1,
            1.007_812_5,
            3.0e38,
        ] {
            let bits = round_up(value);
            assert!(decode(bits) >= value, "{value}");
            assert!(bits == 0 || decode(bits - 1) < value, "{value}");
        }
    }
}
