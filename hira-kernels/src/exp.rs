//! The exponential that every kernel uses: one polynomial, the same operations in the same order.

/// Arguments below this give 0: `exp(-87) = 1.6e-38` is the last result that is a normal `f32` for every argument above.
pub(crate) const UNDERFLOW: f32 = -87.0;

/// Arguments are lowered to this: `n` stays below 128.
pub(crate) const OVERFLOW: f32 = 88.0;

pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// `ln 2` in two parts: the first has 15 significant bits, so its product with `|n| <= 127` is exact.
pub(crate) const LN2_HI: f32 = 0.693_145_75;
/// `ln 2 - LN2_HI`.
pub(crate) const LN2_LO: f32 = 1.428_606_8e-6;

/// `exp(r)` on `|r| <= ln(2)/2 + 2^-16`: minimax of degree 6 in relative error, `2e-9`, with constant term 1, lowest
/// first. Rounded to `f32` and evaluated with fused operations the relative error is below `2^-22`.
pub(crate) const EXP: [f32; 7] = [
    1.0,
    1.000_000_03,
    0.499_999_94,
    0.166_664_31,
    0.041_668,
    0.008_374_157,
    0.001_384_365_2,
];

/// `exp(x)` for `x <= 88`.
///
/// `n = round(x * log2 e)`, `r = x - n ln 2` in two fused steps, a polynomial, and `2^n` by its exponent bits (`n` is in
/// `-126..=127`, where that power is normal). Relative error below `2^-22`; 0 below [`UNDERFLOW`] and for `-inf`; larger
/// arguments than [`OVERFLOW`] count as that.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    if x < UNDERFLOW {
        return 0.0;
    }
    let x = x.min(OVERFLOW);
    let (n, whole) = crate::lanes::round(x * LOG2_E);
    let r = whole.mul_add(-LN2_LO, whole.mul_add(-LN2_HI, x));
    let [c0, c1, c2, c3, c4, c5, c6] = EXP;
    let p = c6
        .mul_add(r, c5)
        .mul_add(r, c4)
        .mul_add(r, c3)
        .mul_add(r, c2)
        .mul_add(r, c1)
        .mul_add(r, c0);
    p * f32::from_bits(((n + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_error_is_below_two_to_the_minus_22() {
        let steps = 4_000_000;
        let mut worst = 0.0f64;
        for i in 0..=steps {
            let x = -87.0 + 175.0 * (i as f32 / steps as f32);
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 1.0 / f64::from(1 << 22), "{worst:e}");
    }

    #[test]
    fn zero_gives_one_and_far_below_gives_zero() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-87.001), 0.0);
        assert!(exp(-87.0) >= f32::MIN_POSITIVE);
    }

    #[test]
    fn two_parts_make_ln_2() {
        assert!((f64::from(LN2_HI) + f64::from(LN2_LO) - std::f64::consts::LN_2).abs() < 1e-13);
        assert_eq!(LN2_HI.to_bits().trailing_zeros().min(9), 9);
    }
}
