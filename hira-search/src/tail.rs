//! Sums of `exp(scale * (score - reference))` that are never too small.
//!
//! Every addition or product of sums is rounded to nearest and then moved up one step, so each result is at least the exact
//! one for arguments that are at least the exact ones (sums and products of non-negative numbers are monotone).

use hira_kernels::Kernel;

/// `a + b`, rounded outward.
#[inline]
pub(crate) fn add(a: f64, b: f64) -> f64 {
    if b == 0.0 { a } else { (a + b).next_up() }
}

/// `a * b` for non-negative factors, rounded outward.
#[inline]
pub(crate) fn mul(a: f64, b: f64) -> f64 {
    if a == 0.0 || b == 0.0 {
        0.0
    } else {
        (a * b).next_up()
    }
}

/// `2^f` on `[0, 1]`, from above: a cubic that lies between `1 + 5e-7` and `1 + 1.6e-4` times the function (checked by a test).
const EXP2_UP: [f64; 4] = [1.000_001_2, 0.695_886_4, 0.226_084_35, 0.078_030_45];

/// At least `exp(scale * (value - reference))`, for `value <= reference`, and at most 1.
///
/// # Numerics
/// The difference of two f32 and its product with a third and with `log2(e)`, in f64, carry a relative error below `5 * 2^-53`: for results
/// above -1000 an absolute error below 6e-13. The cubic's margin of `5e-7` covers that and its own rounding; `2^-1000` stands in for
/// everything smaller. No branch and no call: it runs in vector registers.
#[inline]
pub(crate) fn weight(scale: f32, value: f32, reference: f32) -> f64 {
    // Adding this rounds to a whole number, which is then in the low bits.
    const WHOLE: f64 = (3u64 << 51) as f64;
    let difference = f64::from(value) - f64::from(reference);
    let y = f64::from(scale) * difference * std::f64::consts::LOG2_E;
    let y = if y > -1000.0 { y } else { -1000.0 };
    // `y = whole + f` with `f` in `[0, 1]`, so `2^y = 2^whole * 2^f`.
    let shifted = (y - 0.5) + WHOLE;
    let f = y - (shifted - WHOLE);
    let [c0, c1, c2, c3] = EXP2_UP;
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let weight = (((c3 * f + c2) * f + c1) * f + c0) * power;
    if weight < 1.0 { weight } else { 1.0 }
}

/// At least the sum of the weights of those `values` that are below `limit`, for `limit <= reference`.
///
/// # Numerics
/// At most `1 + 4e-4` times the sum, plus `2^-124` a value: [`Kernel::tail_weight`] relative to `limit`, moved to `reference`.
pub(crate) fn sum_below(
    kernel: Kernel,
    scale: f32,
    values: &[f32],
    limit: f32,
    reference: f32,
) -> f64 {
    let sum = kernel.tail_weight(values, limit, scale);
    rescale(sum, scale, limit, reference)
}

/// Moves `sum`, which is relative to `from`, to the higher reference `to`.
#[inline]
pub(crate) fn rescale(sum: f64, scale: f32, from: f32, to: f32) -> f64 {
    if sum == 0.0 || from == to {
        sum
    } else {
        mul(sum, weight(scale, from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_bound_the_exponential_and_stay_positive() {
        for (scale, value, reference) in [
            (0.125f32, -3.0f32, 7.5f32),
            (1.0, 1.0, 1.0),
            (1e-20, -1e30, 1e30),
            (2.0, f32::MIN, f32::MAX),
            (0.5, -1000.0, 400.0),
        ] {
            let exact = (f64::from(scale) * (f64::from(value) - f64::from(reference))).exp();
            let bound = weight(scale, value, reference);
            assert!(bound >= exact && bound > 0.0, "{scale} {value} {reference}");
            assert!(bound <= exact * (1.0 + 1.7e-4) + 2e-301 && bound <= 1.0);
        }
    }

    #[test]
    fn sums_count_what_is_below_the_limit() {
        let values: Vec<f32> = (0..11).map(|i| i as f32 * 0.5).collect();
        for len in 0..values.len() {
            let sum = sum_below(Kernel::best(), 0.5, &values[..len], 3.0, 4.0);
            let below = values[..len].iter().filter(|&&value| value < 3.0);
            let exact: f64 = below.map(|&v| (0.5 * (f64::from(v) - 4.0)).exp()).sum();
            assert!(sum >= exact && sum <= exact * (1.0 + 4e-4), "{len}");
        }
    }

    #[test]
    fn the_cubic_has_its_margin_everywhere() {
        for i in 0..=1_000_000 {
            let f = f64::from(i) / 1e6;
            let [c0, c1, c2, c3] = EXP2_UP;
            let ratio = (((c3 * f + c2) * f + c1) * f + c0) / f.exp2();
            assert!((1.0 + 5e-7..1.0 + 1.6e-4).contains(&ratio), "{f}: {ratio}");
        }
    }

    #[test]
    fn nothing_stays_nothing() {
        assert_eq!(rescale(0.0, 1.0, f32::NEG_INFINITY, 3.0), 0.0);
        assert_eq!(add(0.0, 0.0), 0.0);
        assert!(add(1.0, 1e-30) > 1.0);
    }
}
