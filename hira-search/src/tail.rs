//! Sums of `exp(scale * (score - reference))` that are never too small.
//!
//! Every operation on these sums is rounded to nearest and then moved up one step, so each result is at least the exact
//! one for arguments that are at least the exact ones (sums and products of non-negative numbers are monotone).

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

/// At least `exp(scale * (value - reference))`, for `value <= reference`.
///
/// # Numerics
/// The difference of two f32 and its product with a third, in f64, carry a relative error below `3 * 2^-53`: for results above
/// -700 an absolute error below 2.4e-13. `exp` adds one unit in the last place, 2.3e-16. The factor `1 + 1e-12` covers both.
/// `exp(-700)` is below 1e-303, which stands in for everything smaller.
#[inline]
pub(crate) fn weight(scale: f32, value: f32, reference: f32) -> f64 {
    let x = f64::from(scale) * (f64::from(value) - f64::from(reference));
    if x < -700.0 {
        1e-303
    } else {
        x.min(0.0).exp() * (1.0 + 1e-12)
    }
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
            assert!(bound <= exact * (1.0 + 1e-11) + 1e-303);
        }
    }

    #[test]
    fn nothing_stays_nothing() {
        assert_eq!(rescale(0.0, 1.0, f32::NEG_INFINITY, 3.0), 0.0);
        assert_eq!(add(0.0, 0.0), 0.0);
        assert!(add(1.0, 1e-30) > 1.0);
    }
}
