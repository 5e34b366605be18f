//! How many bits the values of exact rows are stored in, and what rounding to them does.

use serde::{Deserialize, Serialize};

use crate::Kernel;
use crate::kernel::dispatch;

/// The type in which exact rows are stored.
///
/// What is stored *is* the row: scores, sketches, bounds and selections are defined on the stored values, and a 16-bit value widens to
/// `f32` without an error. Rounding happens once, when a row is stored.
///
/// | | bytes | relative error of rounding | largest |
/// |---|---|---|---|
/// | `f32` | 4 | none | `3.4e38` |
/// | `f16` | 2 | `2^-11` from `6.1e-5` on, below that `2^-25` absolute | 65504 |
/// | `bf16` | 2 | `2^-8` | `3.39e38` |
///
/// # Examples
///
/// ```
/// use hira_kernels::Precision;
///
/// assert_eq!(Precision::default(), Precision::F32);
/// assert_eq!((Precision::Bf16.name(), Precision::Bf16.bytes()), ("bf16", 2));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 bits of significand: rows are stored as they are given.
    #[default]
    F32,
    /// IEEE half precision: 11 bits of significand, magnitudes up to 65504.
    F16,
    /// The upper half of an `f32`: 8 bits of significand and the range of `f32`.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::F16, Precision::Bf16];

    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::F16 | Precision::Bf16 => 2,
        }
    }

    /// `f32`, `f16` or `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
        }
    }

    /// The nearest value of this precision, ties to even, widened again; an infinity if that lies beyond the largest.
    ///
    /// A NaN stays one.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::Precision;
    ///
    /// assert_eq!(Precision::F16.round(0.1), 0.099_975_586);
    /// assert_eq!(Precision::F16.round(65_520.0), f32::INFINITY);
    /// assert_eq!(Precision::Bf16.round(65_520.0), 65_536.0);
    /// ```
    #[inline(always)]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Precision::F32 => value,
            Precision::F16 => round_to_f16(value),
            Precision::Bf16 => round_to_bf16(value),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Kernel {
    /// [`Precision::round`] of every value.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn round_into(self, precision: Precision, values: &[f32], out: &mut [f32]) {
        assert_eq!(values.len(), out.len(), "one output per value");
        dispatch!(self, round_values(precision, values, out));
    }
}

#[inline(always)]
pub(crate) fn round_values(precision: Precision, values: &[f32], out: &mut [f32]) {
    match precision {
        Precision::F32 => out.copy_from_slice(values),
        Precision::F16 => round_all(values, out, round_to_f16),
        Precision::Bf16 => round_all(values, out, round_to_bf16),
    }
}

#[inline(always)]
fn round_all(values: &[f32], out: &mut [f32], round: impl Fn(f32) -> f32) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out = round(value);
    }
}

/// Without branches, so that compilers vectorise it.
#[inline(always)]
pub(crate) fn round_to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    // Half of the last place, less one unless the place before is odd: ties go to even. A carry moves into the exponent as it must.
    let even = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff + even) & 0xffff_0000;
    if value.is_nan() {
        value
    } else {
        f32::from_bits(rounded)
    }
}

/// Without branches, so that compilers vectorise it.
#[inline(always)]
pub(crate) fn round_to_f16(value: f32) -> f32 {
    let magnitude = value.abs();
    let bits = magnitude.to_bits();
    let even = (bits >> 13) & 1;
    let normal = f32::from_bits(bits.wrapping_add(0xfff + even) & !0x1fff);
    // Below 2^-14 the values of f16 are the multiples of 2^-24, which is the distance of f32 values from 1/2 to 1.
    let subnormal = (magnitude + 0.5) - 0.5;
    let rounded = if magnitude < F16_NORMAL {
        subnormal
    } else {
        normal
    };
    let rounded = if rounded > F16_MAX {
        f32::INFINITY
    } else {
        rounded
    };
    if value.is_nan() {
        value
    } else {
        rounded.copysign(value)
    }
}

/// `2^-14`, the smallest normal value of f16.
const F16_NORMAL: f32 = 1.0 / 16_384.0;
/// The largest value of f16.
const F16_MAX: f32 = 65_504.0;

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Every 16-bit value, what lies between it and the next, and the neighbours of all of those.
    fn doubtful(widen: impl Fn(u16) -> f32) -> Vec<f32> {
        let middle = |a: f32, b: f32| ((f64::from(a) + f64::from(b)) / 2.0) as f32;
        let values = (0..=u16::MAX).map(widen).filter(|x| x.is_finite());
        let values: Vec<f32> = values.collect();
        let middles = values.windows(2).map(|pair| middle(pair[0], pair[1]));
        let points = values.iter().copied().chain(middles);
        points
            .flat_map(|x| [x.next_down(), x, x.next_up()])
            .chain([
                65_519.99,
                65_520.0,
                65_536.0,
                f32::MAX,
                f32::MIN,
                3.395e38,
                f32::INFINITY,
                f32::NEG_INFINITY,
            ])
            .collect()
    }

    #[test]
    fn rounding_is_that_of_the_types() {
        let halves = doubtful(|bits| f16::from_bits(bits).to_f32_const());
        for &x in &halves {
            let expected = f16::from_f32_const(x);
            assert_eq!(f16::from_f32(x).to_bits(), expected.to_bits(), "{x:e}");
            let found = Precision::F16.round(x).to_bits();
            assert_eq!(found, expected.to_f32_const().to_bits(), "{x:e}");
        }
        let brains = doubtful(|bits| bf16::from_bits(bits).to_f32_const());
        for &x in &brains {
            let expected = bf16::from_f32(x).to_f32().to_bits();
            assert_eq!(Precision::Bf16.round(x).to_bits(), expected, "{x:e}");
        }
        for precision in Precision::ALL {
            assert!(precision.round(f32::NAN).is_nan());
            assert!(precision.round(f32::from_bits(0x7fff_ffff)).is_nan());
            assert!(precision.round(f32::from_bits(0xffff_ffff)).is_nan());
            for values in [&halves, &brains] {
                let expected: Vec<u32> = values
                    .iter()
                    .map(|&x| precision.round(x).to_bits())
                    .collect();
                for kernel in Kernel::available() {
                    let mut out = vec![f32::NAN; values.len()];
                    kernel.round_into(precision, values, &mut out);
                    let found = out.iter().map(|x| x.to_bits());
                    assert!(found.eq(expected.iter().copied()), "{}", kernel.name());
                }
            }
        }
    }

    #[test]
    fn rounding_again_changes_nothing() {
        for i in 0..10_000 {
            let x = (i as f32 * 0.37).sin() * 2.0f32.powi(i % 60 - 30);
            for precision in Precision::ALL {
                let once = precision.round(x);
                assert_eq!(precision.round(once).to_bits(), once.to_bits());
            }
        }
    }
}
