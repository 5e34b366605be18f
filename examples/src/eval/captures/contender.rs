//! What is measured: a rule, with or without the keys that are always attended to.

use std::fmt;

use hira_attention::{HiraAttentionConfig, PlanPolicy};

use super::BUDGETS;
use crate::eval::EvalRule;

/// A rule, and for Hira's rules the sinks and the window beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contender {
    /// The rule.
    pub rule: EvalRule,
    /// First keys that are always attended to.
    pub sinks: usize,
    /// Last keys that are always attended to.
    pub window: usize,
}

impl Contender {
    /// The rule alone, so that a budget is what is attended to.
    pub fn alone(rule: EvalRule) -> Self {
        Self {
            rule,
            sinks: 0,
            window: 0,
        }
    }

    /// What [`run`](super::run) measures by default: rules with a budget at 64, 128, 256 and 512 keys; mass, percentile and the sampled rules; top-k and
    /// mass also with a compensated tail.
    ///
    /// # Errors
    ///
    /// If one of the rules is unknown to this build.
    pub fn defaults() -> Result<Vec<Self>, crate::eval::RuleError> {
        let mut texts = Vec::new();
        for name in ["top-k", "quest", "streaming", "h2o"] {
            texts.extend(BUDGETS.map(|budget| format!("{name}={budget}")));
        }
        texts.extend(BUDGETS.map(|budget| format!("top-k={budget}+comp")));
        let others = [
            "mass=0.9",
            "mass=0.95",
            "mass=0.99",
            "mass=0.999",
            "mass=0.95+comp",
            "mass=0.99+comp",
            "percentile=1",
            "percentile=2",
            "percentile=5",
            "adaptive=2",
            "sample-max",
            "sample-top-k=256",
            "sample-mean-max=0.5",
            "sample-gap",
            "budget=2",
        ];
        texts.extend(others.map(str::to_owned));
        texts
            .iter()
            .map(|text| Ok(Self::alone(text.parse()?)))
            .collect()
    }

    /// The configuration of attention: always sparse, so that the rule is measured and not the planner's choice, after a dense prompt.
    pub(super) fn base(&self, scale: f32) -> HiraAttentionConfig {
        HiraAttentionConfig {
            sink_tokens: self.sinks,
            recent_window: self.window,
            min_sparse_len: 0,
            plan: PlanPolicy::Sparse,
            scale: Some(scale),
            ..HiraAttentionConfig::new()
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule.fmt(f)?;
        if self.sinks + self.window > 0 {
            write!(f, ", {} sinks, window {}", self.sinks, self.window)?;
        }
        Ok(())
    }
}
