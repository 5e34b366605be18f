//! A percentage of a number of keys, without the error of binary fractions.

/// `ceil(percent / 100 * whole)`, within `1..=whole` (0 if `whole` is 0).
///
/// Computed exactly for the shortest decimal that reads as `percent`: 0.1 means one tenth, not the slightly larger `f32`
/// next to it.
pub(crate) fn share(percent: f32, whole: usize) -> usize {
    let count = match decimal(percent) {
        Some((digits, unit)) => {
            (u128::from(digits) * whole as u128).div_ceil(100 * u128::from(unit)) as usize
        }
        None => (f64::from(percent) * whole as f64 / 100.0).ceil() as usize,
    };
    count.clamp(1.min(whole), whole)
}

/// The decimal `digits / unit` with the fewest places, at most seven, that reads as this `f32`.
fn decimal(percent: f32) -> Option<(u64, u64)> {
    let units = (0..=7).map(|places| 10u64.pow(places));
    units
        .map(|unit| ((f64::from(percent) * unit as f64).round() as u64, unit))
        .find(|&(digits, unit)| (digits as f64 / unit as f64) as f32 == percent)
}
