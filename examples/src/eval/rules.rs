//! A rule of an evaluation: dense, one of Hira's, or one to compare with.

use std::fmt;
use std::str::FromStr;

use hira_attention::{
    AttentionProcessor, ConfigError, HiraAttentionConfig, HiraBackend, PlanPolicy,
};
use hira_threshold::{ThresholdError, ThresholdRule};

use super::compare::{Comparison, ComparisonRule, ComparisonRuleError};

/// What is written behind a rule whose tail is compensated.
const COMPENSATED: &str = "+comp";

/// What an evaluation runs a model with.
///
/// ```
/// use hira_examples::eval::EvalRule;
///
/// for text in ["dense", "top-k=256", "percentile=2", "sample-max", "quest=256", "streaming=256", "h2o=256", "top-k=64+comp"] {
///     let rule: EvalRule = text.parse()?;
///     assert_eq!(rule.to_string(), text);
/// }
/// # Ok::<(), hira_examples::eval::RuleError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum EvalRule {
    /// Every key.
    Dense,
    /// One of Hira's rules, found exactly; what it leaves out is left out.
    Hira(ThresholdRule),
    /// One of Hira's rules, with means of blocks in the place of what it leaves out. Written with `+comp` behind the rule.
    Compensated(ThresholdRule),
    /// A published rule.
    Comparison(ComparisonRule),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// It is not one of Hira's, nor one to compare with.
    #[error("`{text}` is no rule: dense, {hira}, or {comparison}")]
    Unknown {
        /// The text.
        text: String,
        /// Hira's rules.
        hira: ThresholdError,
        /// Those to compare with.
        comparison: ComparisonRuleError,
    },
    /// One of Hira's rules with an impossible value.
    #[error("`{text}`")]
    Hira {
        /// The text.
        text: String,
        /// What is wrong.
        #[source]
        source: ThresholdError,
    },
    /// A rule to compare with, with an impossible value.
    #[error("`{text}`")]
    Comparison {
        /// The text.
        text: String,
        /// What is wrong.
        #[source]
        source: ComparisonRuleError,
    },
}

impl EvalRule {
    /// The configuration of Hira's attention for this rule: `base` with the rule in place of its own. Under a comparison rule it is that of
    /// a store without an index.
    ///
    /// Caches for the rule are made from it.
    pub fn config(&self, base: &HiraAttentionConfig) -> HiraAttentionConfig {
        match *self {
            Self::Hira(rule) => base.clone().with_rule(rule).with_tail_compensation(false),
            Self::Compensated(rule) => base.clone().with_rule(rule).with_tail_compensation(true),
            Self::Dense | Self::Comparison(_) => HiraAttentionConfig {
                num_levels: 0,
                plan: PlanPolicy::Dense,
                ..base.clone()
            },
        }
    }

    /// The attention that a model runs under this rule. Whether a prefill is dense, and below how many keys every query is, is said by
    /// `base` for all rules alike; sinks and window by `base` for Hira's rules, and by the rule itself for the others.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an impossible value of `base`.
    pub fn processor<B: HiraBackend>(
        &self,
        base: &HiraAttentionConfig,
        device: &B::Device,
    ) -> Result<Box<dyn AttentionProcessor<B>>, ConfigError> {
        Ok(match *self {
            Self::Dense | Self::Hira(_) | Self::Compensated(_) => {
                Box::new(self.config(base).init::<B>(device)?)
            }
            Self::Comparison(rule) => Box::new(Comparison::<B>::new(rule, base)?),
        })
    }

    /// The softmax mass that the rule may drop, if that is what it is about.
    pub fn eps(&self) -> Option<f64> {
        match self {
            Self::Hira(ThresholdRule::Mass { mass })
            | Self::Compensated(ThresholdRule::Mass { mass }) => Some(1.0 - f64::from(*mass)),
            _ => None,
        }
    }

    /// The rule without its value, as it is written: lines of a plot are rules that share it.
    pub fn family(&self) -> String {
        let text = self.to_string();
        let name = text.split(['=', '+']).next().unwrap_or_default();
        match self {
            Self::Compensated(_) => format!("{name}{COMPENSATED}"),
            _ => name.to_owned(),
        }
    }
}

impl fmt::Display for EvalRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Hira(rule) => rule.fmt(f),
            Self::Compensated(rule) => write!(f, "{rule}{COMPENSATED}"),
            Self::Comparison(rule) => rule.fmt(f),
        }
    }
}

impl FromStr for EvalRule {
    type Err = RuleError;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text == "dense" {
            return Ok(Self::Dense);
        }
        let text = || text.to_owned();
        if let Some(rule) = text().strip_suffix(COMPENSATED) {
            let rule = rule.parse::<ThresholdRule>();
            return rule
                .map(Self::Compensated)
                .map_err(|source| RuleError::Hira {
                    text: text(),
                    source,
                });
        }
        match (
            ThresholdRule::from_str(&text()),
            ComparisonRule::from_str(&text()),
        ) {
            (Ok(rule), _) => Ok(Self::Hira(rule)),
            (_, Ok(rule)) => Ok(Self::Comparison(rule)),
            (Err(hira @ ThresholdError::UnknownRule), Err(comparison)) => match comparison {
                ComparisonRuleError::Unknown => Err(RuleError::Unknown {
                    text: text(),
                    hira,
                    comparison,
                }),
                source => Err(RuleError::Comparison {
                    text: text(),
                    source,
                }),
            },
            (Err(source), _) => Err(RuleError::Hira {
                text: text(),
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    #[test]
    fn a_refusal_says_what_is_wrong_with_which_rule() {
        let error = |text: &str| text.parse::<EvalRule>().expect_err("a refusal");
        let unknown = error("best=3").to_string();
        assert!(
            unknown.contains("`best=3`") && unknown.contains("quest=KEYS"),
            "{unknown}"
        );
        for (text, cause) in [
            ("top-k=0", "k must be at least 1"),
            ("quest=3", "at least 16"),
        ] {
            let error = error(text);
            let source = error.source().expect("a cause").to_string();
            assert!(source.contains(cause), "{source}");
        }
    }

    #[test]
    fn families_leave_the_value_out() {
        for (text, family) in [
            ("top-k=64", "top-k"),
            ("dense", "dense"),
            ("h2o=16", "h2o"),
            ("top-k=4+comp", "top-k+comp"),
            ("sample-max+comp", "sample-max+comp"),
        ] {
            let rule: EvalRule = text.parse().expect("a rule");
            assert_eq!(rule.family(), family);
        }
    }
}
