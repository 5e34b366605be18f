//! What can be wrong with a rule.

use thiserror::Error;

/// Why a rule was refused.
#[derive(Error, Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ThresholdError {
    /// A fixed threshold that no score can be compared with.
    #[error("tau must not be NaN")]
    TauNan,
    /// A rule for `k` keys that would select nothing.
    #[error("k must be at least 1")]
    ZeroK,
    /// A percentile outside of its range, or NaN.
    #[error("percent must be above 0 and at most 100, received {percent}")]
    Percent {
        /// The value received.
        percent: f32,
    },
    /// A share of the softmax mass outside of its range, or NaN.
    #[error("mass must be above 0 and at most 1, received {mass}")]
    Mass {
        /// The value received.
        mass: f32,
    },
    /// A number of standard deviations that is NaN or infinite.
    #[error("c must be finite, received {c}")]
    Factor {
        /// The value received.
        c: f32,
    },
    /// A weight outside of its range, or NaN.
    #[error("weight must be from 0 to 1, received {weight}")]
    Weight {
        /// The value received.
        weight: f32,
    },
    /// Text that does not start with the name of a rule.
    #[error(
        "a rule is written fixed=TAU, top-k=K, percentile=PERCENT, mass=MASS, adaptive=C, sample-max, \
         sample-top-k=K, sample-mean-max=WEIGHT, sample-gap or budget=PERCENT"
    )]
    UnknownRule,
    /// Text that names a rule, followed by something that is not its value.
    #[error("{rule} must be followed by {requirement}")]
    Value {
        /// The rule named.
        rule: &'static str,
        /// What has to follow it.
        requirement: &'static str,
    },
}
