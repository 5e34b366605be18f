//! The rule itself: its meaning, its limits and its written form.

use serde::{Deserialize, Serialize};

use crate::share::share;
use crate::{Cut, RuleInput, Threshold, ThresholdError, sampled};

/// What a query selects among the keys that it can see.
///
/// Whatever the rule, the selected set is exact: it is the one that brute force over the canonical score would find,
/// and equal scores are told apart by the lower position. The zeros `-0.0` and `+0.0` are equal scores.
///
/// # Sampled rules
///
/// From [`Adaptive`](Self::Adaptive) on, the rules look at the canonical scores `s_1..s_m` of a uniform sample of `m` of the
/// `N` visible keys, which the index keeps (256 by default), set a `tau` once for each query, and select every key with
/// `score >= tau`: that set is exact, and searched like that of a fixed rule. What is left to chance is the `tau`:
///
/// * The `r`-th largest of the sample is reached by `r * (N + 1) / (m + 1)` keys on average over samples, if no scores are
///   equal. For one query that number has a relative spread of about `1 / sqrt(r)`: at `r = 1` one query keeps a single
///   key and the next one a hundred. Where a certain number of keys is needed, [`TopK`](Self::TopK) keeps it.
/// * Nothing is promised about the softmax mass that the selected keys hold: the highest scores decide it, and most of those
///   are not in the sample. The certificate of an attention step bounds what was left out.
/// * If all visible keys are sampled, nothing is left to chance. If none is, the rule has nothing to go by and selects every
///   key, which is always safe.
///
/// The cost is that of reading and scoring `m` keys out of order, once for the queries of a group, and O(m) for each query
/// ([`SampleGap`](Self::SampleGap) sorts, so it takes O(m log m)); the index pays O(1) for each key that is appended.
///
/// # Units
///
/// Scores: `q . k`, not scaled.
///
/// # Numerics
///
/// Sampled rules compute in f64, in the order of the sample, and round once to the nearest f32, within its finite range.
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
/// assert_eq!("sample-max".parse(), Ok(ThresholdRule::SampleMax));
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
    /// The keys of highest score that hold at least `mass` of the softmax mass, as far as the search can prove it.
    ///
    /// The search finds a `tau` from the bounds that it has on every key, selects every key with `score >= tau`, and proves that the others
    /// hold at most `1 - mass`. With exact scores of all keys that is the smallest such set; with bounds it is somewhat larger (on
    /// captured attention keys by about a tenth), and how much can differ with the way in which keys were appended, unlike for the
    /// rules that count. It needs the scale of the softmax: a search without one refuses it.
    ///
    /// The selection of the interval rule; the mass that a nucleus keeps, as in top-p sampling (Holtzman et al., 2020), here over keys.
    Mass {
        /// The share of the softmax mass to keep, above 0 and at most 1.
        mass: f32,
    },
    /// Sampled: `tau = mean + c * std`, where `std^2` is the mean of `(s_i - mean)^2`.
    ///
    /// If scores were normal, `c = 2` would keep 2.3 % of the keys; those of attention heads are not, and the share varies
    /// from query to query. Of the *sample* at most `1 / (1 + c^2)` reaches `tau` for `c > 0` (Cantelli's inequality), unless
    /// its scores are equal and all of it does. It may be that no key at all reaches `tau`.
    Adaptive {
        /// Standard deviations above the mean; finite, and below it if negative.
        c: f32,
    },
    /// Sampled: `tau = max(s_1..s_m)`.
    ///
    /// `(N + 1) / (m + 1)` keys reach it on average: 32 of 8,192 with a sample of 256. The sampled key itself always does, so
    /// at least one key is kept, and all are if the best key of the sample is the worst of all.
    #[serde(deserialize_with = "no_values")]
    SampleMax,
    /// Sampled: `tau` is the `r`-th largest of the sample, with `r = ceil(k * m / N)`. It aims at `k` keys.
    ///
    /// `r * (N + 1) / (m + 1)` keys reach it on average: about `k`, or `N / m` if that is more. At least `r` do. If every visible
    /// key is sampled this is top-k but for ties: all keys that score the same as the `k`-th are kept. If no more than `k` keys
    /// are visible, all are kept.
    SampleTopK {
        /// How many keys to aim at, at least 1.
        k: usize,
    },
    /// Sampled: `tau = mean + weight * (max - mean)`, between the mean and the largest score of the sample.
    ///
    /// At least one key reaches it, for any `weight`. How many do depends on the shape of the scores: with one outlier in the
    /// sample it may be that key alone, with none it may be half of all keys.
    SampleMeanMax {
        /// 0 is the mean, 1 the largest score.
        weight: f32,
    },
    /// Sampled: `tau` is the upper edge of the widest gap between neighbours in the upper half of the sorted sample.
    ///
    /// With `d_1 >= d_2 >= .. >= d_m`: the `d_i` for which `d_i - d_(i + 1)` is largest, `1 <= i <= m / 2`; among equal
    /// gaps the one with the larger `i`, which keeps more; `d_1` if `m = 1`. If all scores are equal, it is that score. At least
    /// one key reaches it. It follows heads whose scores fall into a few high ones and the rest, and is close to
    /// [`SampleMax`](Self::SampleMax) on others, where the widest gap lies at the top; sampling a single key more can move it
    /// anywhere in the upper half.
    #[serde(deserialize_with = "no_values")]
    SampleGap,
    /// Sampled: `tau` is the `r`-th largest of the sample, with `r = ceil(percent / 100 * m)`: its `1 - percent / 100` quantile.
    ///
    /// The counterpart of [`Percentile`](Self::Percentile), whose rounding it has, and equal to it but for ties if every visible
    /// key is sampled. `r * (N + 1) / (m + 1)` keys reach it on average, at least `r` do. At 100 percent every key is kept.
    Budget {
        /// The share to aim at in percent, above 0 and at most 100.
        percent: f32,
    },
}

impl ThresholdRule {
    /// Says whether the rule can be answered, and if not, what is required.
    ///
    /// # Errors
    ///
    /// [`ThresholdError::TauNan`], [`ThresholdError::ZeroK`], [`ThresholdError::Percent`], [`ThresholdError::Mass`],
    /// [`ThresholdError::Factor`] or [`ThresholdError::Weight`].
    ///
    /// ```
    /// use hira_threshold::ThresholdRule;
    ///
    /// assert!(ThresholdRule::Fixed { tau: f32::NEG_INFINITY }.validate().is_ok());
    /// let error = ThresholdRule::Percentile { percent: 0.0 }.validate().unwrap_err();
    /// assert_eq!(error.to_string(), "percent must be above 0 and at most 100, received 0");
    /// let error = ThresholdRule::SampleMeanMax { weight: 1.5 }.validate().unwrap_err();
    /// assert_eq!(error.to_string(), "weight must be from 0 to 1, received 1.5");
    /// ```
    pub fn validate(&self) -> Result<(), ThresholdError> {
        match *self {
            Self::Fixed { tau } if tau.is_nan() => Err(ThresholdError::TauNan),
            Self::TopK { k: 0 } | Self::SampleTopK { k: 0 } => Err(ThresholdError::ZeroK),
            Self::Percentile { percent } | Self::Budget { percent }
                if !(percent > 0.0 && percent <= 100.0) =>
            {
                Err(ThresholdError::Percent { percent })
            }
            Self::Mass { mass } if !(mass > 0.0 && mass <= 1.0) => {
                Err(ThresholdError::Mass { mass })
            }
            Self::Adaptive { c } if !c.is_finite() => Err(ThresholdError::Factor { c }),
            Self::SampleMeanMax { weight } if !(0.0..=1.0).contains(&weight) => {
                Err(ThresholdError::Weight { weight })
            }
            _ => Ok(()),
        }
    }

    /// How many of `visible` keys the rule keeps; `None` for a fixed threshold, for a mass and for sampled rules, which do not count.
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
    /// assert_eq!(ThresholdRule::SampleTopK { k: 8 }.count(100), None);
    /// ```
    pub fn count(&self, visible: usize) -> Option<usize> {
        match *self {
            Self::TopK { k } => Some(k.min(visible)),
            Self::Percentile { percent } => Some(share(percent, visible)),
            _ => None,
        }
    }

    /// The score that a key has to reach, where the rule itself says it.
    ///
    /// ```
    /// use hira_threshold::ThresholdRule;
    ///
    /// assert_eq!(ThresholdRule::Fixed { tau: 1.5 }.tau(), Some(1.5));
    /// assert_eq!(ThresholdRule::TopK { k: 8 }.tau(), None);
    /// assert_eq!(ThresholdRule::SampleMax.tau(), None);
    /// ```
    pub fn tau(&self) -> Option<f32> {
        match *self {
            Self::Fixed { tau } => Some(tau),
            _ => None,
        }
    }
}

/// ```
/// use hira_threshold::{Cut, RuleInput, Threshold, ThresholdRule};
///
/// let input = RuleInput { visible: 1000, sample: &[3.0, -1.0, 9.0, 4.0] };
/// assert_eq!(ThresholdRule::SampleMax.cut(&input), Cut::AtLeast { tau: 9.0 });
/// assert_eq!(ThresholdRule::SampleGap.cut(&input), Cut::AtLeast { tau: 9.0 });
/// assert_eq!(ThresholdRule::SampleTopK { k: 500 }.cut(&input), Cut::AtLeast { tau: 4.0 });
/// assert_eq!(ThresholdRule::Budget { percent: 75.0 }.cut(&input), Cut::AtLeast { tau: 3.0 });
/// assert_eq!(ThresholdRule::SampleMeanMax { weight: 0.0 }.cut(&input), Cut::AtLeast { tau: 3.75 });
/// assert_eq!(ThresholdRule::TopK { k: 500 }.cut(&input), Cut::Top { k: 500 });
/// ```
impl Threshold for ThresholdRule {
    fn validate(&self) -> Result<(), ThresholdError> {
        Self::validate(self)
    }

    fn needs_sample(&self) -> bool {
        match self {
            Self::Fixed { .. }
            | Self::TopK { .. }
            | Self::Percentile { .. }
            | Self::Mass { .. } => false,
            Self::Adaptive { .. }
            | Self::SampleMax
            | Self::SampleTopK { .. }
            | Self::SampleMeanMax { .. }
            | Self::SampleGap
            | Self::Budget { .. } => true,
        }
    }

    fn cut(&self, input: &RuleInput<'_>) -> Cut {
        let RuleInput { visible, sample } = *input;
        let tau = match *self {
            Self::TopK { k } => return Cut::Top { k: k.min(visible) },
            Self::Percentile { percent } => {
                return Cut::Top {
                    k: share(percent, visible),
                };
            }
            Self::Mass { mass } => {
                return Cut::Mass {
                    dropped: 1.0 - mass,
                };
            }
            Self::Fixed { tau } => tau,
            Self::Adaptive { c } => sampled::adaptive(sample, c),
            Self::SampleMax => sampled::max(sample),
            Self::SampleTopK { k } => sampled::top_k(sample, k, visible),
            Self::SampleMeanMax { weight } => sampled::mean_max(sample, weight),
            Self::SampleGap => sampled::gap(sample),
            Self::Budget { percent } => sampled::budget(sample, percent),
        };
        Cut::AtLeast { tau }
    }
}

/// Reads a rule that has no values, and refuses any: serde's own form of a unit variant would ignore them.
fn no_values<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct NoValues {}
    NoValues::deserialize(deserializer).map(|NoValues {}| ())
}
