//! The one-word form of a rule, for command lines: `name=value`, or the name alone where there is no value.

use std::fmt;
use std::str::FromStr;

use crate::{ThresholdError, ThresholdRule};

impl fmt::Display for ThresholdRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { tau } => write!(f, "fixed={tau}"),
            Self::TopK { k } => write!(f, "top-k={k}"),
            Self::Percentile { percent } => write!(f, "percentile={percent}"),
            Self::Mass { mass } => write!(f, "mass={mass}"),
            Self::Adaptive { c } => write!(f, "adaptive={c}"),
            Self::SampleMax => f.write_str("sample-max"),
            Self::SampleTopK { k } => write!(f, "sample-top-k={k}"),
            Self::SampleMeanMax { weight } => write!(f, "sample-mean-max={weight}"),
            Self::SampleGap => f.write_str("sample-gap"),
            Self::Budget { percent } => write!(f, "budget={percent}"),
        }
    }
}

impl FromStr for ThresholdRule {
    type Err = ThresholdError;

    /// Reads what `Display` writes, such as `fixed=1.5`, `top-k=256` or `sample-max`; the rule is validated too.
    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let rule = match name {
            "fixed" => Self::Fixed {
                tau: number("fixed", value)?,
            },
            "top-k" => Self::TopK {
                k: whole("top-k", value)?,
            },
            "percentile" => Self::Percentile {
                percent: number("percentile", value)?,
            },
            "mass" => Self::Mass {
                mass: number("mass", value)?,
            },
            "adaptive" => Self::Adaptive {
                c: number("adaptive", value)?,
            },
            "sample-max" => nothing("sample-max", value, Self::SampleMax)?,
            "sample-top-k" => Self::SampleTopK {
                k: whole("sample-top-k", value)?,
            },
            "sample-mean-max" => Self::SampleMeanMax {
                weight: number("sample-mean-max", value)?,
            },
            "sample-gap" => nothing("sample-gap", value, Self::SampleGap)?,
            "budget" => Self::Budget {
                percent: number("budget", value)?,
            },
            _ => return Err(ThresholdError::UnknownRule),
        };
        rule.validate()?;
        Ok(rule)
    }
}

fn number(rule: &'static str, value: Option<&str>) -> Result<f32, ThresholdError> {
    parse(rule, value, "= and a number")
}

fn whole(rule: &'static str, value: Option<&str>) -> Result<usize, ThresholdError> {
    parse(rule, value, "= and a whole number")
}

fn parse<T: FromStr>(
    rule: &'static str,
    value: Option<&str>,
    requirement: &'static str,
) -> Result<T, ThresholdError> {
    value
        .and_then(|value| value.parse().ok())
        .ok_or(ThresholdError::Value { rule, requirement })
}

fn nothing(
    name: &'static str,
    value: Option<&str>,
    rule: ThresholdRule,
) -> Result<ThresholdRule, ThresholdError> {
    match value {
        None => Ok(rule),
        Some(_) => Err(ThresholdError::Value {
            rule: name,
            requirement: "nothing",
        }),
    }
}
