//! Which comparison, and its written form.

use std::fmt;
use std::str::FromStr;

/// A published rule that Hira is compared with. `budget` is the number of keys that a query head attends to.
///
/// ```
/// use hira_examples::eval::compare::ComparisonRule;
///
/// let rule: ComparisonRule = "quest=256".parse()?;
/// assert_eq!(rule, ComparisonRule::Quest { budget: 256 });
/// assert_eq!(rule.to_string(), "quest=256");
/// # Ok::<(), hira_examples::eval::compare::ComparisonRuleError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ComparisonRule {
    /// Pages of 16 keys by the bound of their box; the best `budget / 16` pages, rounded up.
    ///
    /// Each query head chooses for itself, and no layer is left dense (the paper leaves out the first two).
    ///
    /// # References
    ///
    /// Tang et al., Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, 2024, section 3.
    Quest {
        /// Keys, a page's worth at least.
        budget: usize,
    },
    /// The first 4 keys and the most recent ones.
    ///
    /// Keys keep the rotation of their position in the text; the paper rotates them by their place in its cache, which matters beyond the
    /// length that a model was trained for.
    ///
    /// # References
    ///
    /// Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2023, section 3.2.
    Streaming {
        /// Keys, the sinks among them.
        budget: usize,
    },
    /// Heavy hitters: half of the budget are the keys with the largest sum of attention weights so far, half the most recent ones.
    ///
    /// The variant that evicts: a key that was dropped is never seen again by that query head. Each query head keeps its own keys and
    /// sums, which is kinder than one set a KV head. Over a dense prefill every key collects its weights and nothing is dropped, as in the
    /// paper; then the set is cut to the budget before each decode step.
    ///
    /// # References
    ///
    /// Zhang et al., H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, 2023, algorithm 1.
    H2o {
        /// Keys, the new one among them; at least 2.
        budget: usize,
    },
}

/// Why a text is no comparison rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ComparisonRuleError {
    /// Another name, or none.
    #[error("expected quest=KEYS, streaming=KEYS or h2o=KEYS")]
    Unknown,
    /// The budget is missing, no whole number, or too small.
    #[error("{rule}: expected = and a whole number of keys, at least {least}")]
    Budget {
        /// The rule.
        rule: &'static str,
        /// The smallest budget.
        least: usize,
    },
}

impl ComparisonRule {
    /// Keys that a query head attends to.
    pub fn budget(self) -> usize {
        match self {
            Self::Quest { budget } | Self::Streaming { budget } | Self::H2o { budget } => budget,
        }
    }

    /// The rule without its budget, as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quest { .. } => "quest",
            Self::Streaming { .. } => "streaming",
            Self::H2o { .. } => "h2o",
        }
    }
}

impl fmt::Display for ComparisonRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name(), self.budget())
    }
}

impl FromStr for ComparisonRule {
    type Err = ComparisonRuleError;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, ComparisonRuleError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.parse().ok()),
            None => (text, None),
        };
        let budget = |rule, least| {
            let enough = value.filter(|&budget: &usize| budget >= least);
            enough.ok_or(ComparisonRuleError::Budget { rule, least })
        };
        match name {
            "quest" => Ok(Self::Quest {
                budget: budget("quest", super::PAGE)?,
            }),
            "streaming" => Ok(Self::Streaming {
                budget: budget("streaming", super::SINKS + 1)?,
            }),
            "h2o" => Ok(Self::H2o {
                budget: budget("h2o", 2)?,
            }),
            _ => Err(ComparisonRuleError::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        for text in ["quest=16", "streaming=256", "h2o=2"] {
            let rule: ComparisonRule = text.parse().expect("a rule");
            assert_eq!(rule.to_string(), text);
        }
        for (text, message) in [
            (
                "quest=15",
                "quest: expected = and a whole number of keys, at least 16",
            ),
            (
                "streaming",
                "streaming: expected = and a whole number of keys, at least 5",
            ),
            (
                "h2o=x",
                "h2o: expected = and a whole number of keys, at least 2",
            ),
            ("H2O=4", "expected quest=KEYS, streaming=KEYS or h2o=KEYS"),
        ] {
            let error = text.parse::<ComparisonRule>().expect_err("a refusal");
            assert_eq!(error.to_string(), message, "{text}");
        }
    }
}
