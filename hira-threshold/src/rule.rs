//! The rule itself: its meaning, its limits and its two written forms.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ThresholdError;

/// What a query selects among the keys that it can see.
///
/// Whatever the rule, the selected set is exact: it is the one that brute force over the canonical score would find,
/// and equal scores are told apart by the lower position. The zeros `-0.0` and `+0.0` are equal scores.
///
/// # Units
///
/// Scores: `q . k`, not scaled.
///
/// # Examples
///
/// Written in a configuration file the rule is a tagged value, on a command line it is one word:
///
/// ```
/// use hira_threshold::ThresholdRule;
///
/// let rule: ThresholdRule = serde_json::from_str(r#"{"rule": "top_k", "k": 256}"#)?;
/// assert_eq!(rule, ThresholdRule::TopK { k: 256 });
/// assert_eq!(rule.to_string(), "top-k=256");
/// assert_eq!("top-k=256".parse(), Ok(rule));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum ThresholdRule {
    /// Every key whose score is at least `tau`: a halfspace query.
    Fixed {
        /// The score to reach. `-inf` selects every key and `+inf` none; NaN is refused.
        #[serde(with = "crate::tau")]
        tau: f32,
    },
    /// The `k` keys that score highest, or all of them if fewer are visible.
    TopK {
        /// How many keys to keep, at least 1.
        k: usize,
    },
    /// The best `percent` of the visible keys, rounded up to a whole key.
    Percentile {
        /// The share to keep in percent, above 0 and at most 100.
        percent: f32,
    },
}

impl ThresholdRule {
    /// Says whether the rule can be answered, and if not, what is required.
    ///
    /// # Errors
    ///
    /// [`ThresholdError::TauNan`], [`ThresholdError::ZeroK`] or [`ThresholdError::Percent`].
    ///
    /// ```
    /// use hira_threshold::ThresholdRule;
    ///
    /// assert!(ThresholdRule::Fixed { tau: f32::NEG_INFINITY }.validate().is_ok());
    /// let error = ThresholdRule::Percentile { percent: 0.0 }.validate().unwrap_err();
    /// assert_eq!(error.to_string(), "percent must be above 0 and at most 100, received 0");
    /// ```
    pub fn validate(&self) -> Result<(), ThresholdError> {
        match *self {
            Self::Fixed { tau } if tau.is_nan() => Err(ThresholdError::TauNan),
            Self::TopK { k: 0 } => Err(ThresholdError::ZeroK),
            Self::Percentile { percent } if !(percent > 0.0 && percent <= 100.0) => {
                Err(ThresholdError::Percent { percent })
            }
            _ => Ok(()),
        }
    }

    /// How many of `visible` keys the rule keeps; `None` for a fixed threshold, which does not count.
    ///
    /// Never more than `visible`, and at least 1 for a valid rule unless nothing is visible.
    ///
    /// # Numerics
    ///
    /// A percentile keeps `ceil(percent / 100 * visible)` keys, computed exactly for the shortest decimal that reads as
    /// `percent`: 0.1 means one tenth, not the slightly larger `f32` next to it.
    ///
    /// ```
    /// use hira_threshold::ThresholdRule;
    ///
    /// assert_eq!(ThresholdRule::Percentile { percent: 2.0 }.count(101), Some(3));
    /// assert_eq!(ThresholdRule::Percentile { percent: 0.1 }.count(1000), Some(1));
    /// assert_eq!(ThresholdRule::TopK { k: 256 }.count(100), Some(100));
    /// assert_eq!(ThresholdRule::Fixed { tau: 0.0 }.count(100), None);
    /// ```
    pub fn count(&self, visible: usize) -> Option<usize> {
        match *self {
            Self::Fixed { .. } => None,
            Self::TopK { k } => Some(k.min(visible)),
            Self::Percentile { percent } => Some(share(percent, visible)),
        }
    }

    /// The score that a key has to reach, where the rule itself says it.
    ///
    /// ```
    /// use hira_threshold::ThresholdRule;
    ///
    /// assert_eq!(ThresholdRule::Fixed { tau: 1.5 }.tau(), Some(1.5));
    /// assert_eq!(ThresholdRule::TopK { k: 8 }.tau(), None);
    /// ```
    pub fn tau(&self) -> Option<f32> {
        match *self {
            Self::Fixed { tau } => Some(tau),
            Self::TopK { .. } | Self::Percentile { .. } => None,
        }
    }
}

/// `ceil(percent / 100 * visible)`, within `1..=visible` (0 if nothing is visible).
fn share(percent: f32, visible: usize) -> usize {
    let count = match decimal(percent) {
        Some((digits, unit)) => {
            (u128::from(digits) * visible as u128).div_ceil(100 * u128::from(unit)) as usize
        }
        None => (f64::from(percent) * visible as f64 / 100.0).ceil() as usize,
    };
    count.clamp(1.min(visible), visible)
}

/// The decimal `digits / unit` with the fewest places, at most seven, that reads as this `f32`.
fn decimal(percent: f32) -> Option<(u64, u64)> {
    let units = (0..=7).map(|places| 10u64.pow(places));
    units
        .map(|unit| ((f64::from(percent) * unit as f64).round() as u64, unit))
        .find(|&(digits, unit)| (digits as f64 / unit as f64) as f32 == percent)
}

impl fmt::Display for ThresholdRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { tau } => write!(f, "fixed={tau}"),
            Self::TopK { k } => write!(f, "top-k={k}"),
            Self::Percentile { percent } => write!(f, "percentile={percent}"),
        }
    }
}

impl FromStr for ThresholdRule {
    type Err = ThresholdError;

    /// Reads what `Display` writes: `fixed=1.5`, `top-k=256` or `percentile=2`; the rule is validated too.
    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let (name, value) = text.split_once('=').ok_or(ThresholdError::UnknownRule)?;
        let number = |rule| {
            value.parse().map_err(|_| ThresholdError::Value {
                rule,
                requirement: "a number",
            })
        };
        let rule = match name {
            "fixed" => Self::Fixed {
                tau: number("fixed")?,
            },
            "percentile" => Self::Percentile {
                percent: number("percentile")?,
            },
            "top-k" => Self::TopK {
                k: value.parse().map_err(|_| ThresholdError::Value {
                    rule: "top-k",
                    requirement: "a whole number",
                })?,
            },
            _ => return Err(ThresholdError::UnknownRule),
        };
        rule.validate()?;
        Ok(rule)
    }
}
