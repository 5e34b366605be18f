//! What the figures are held against.

use super::Outcome;

/// What all rules are compared with.
const TOP_256: &str = "top-k=256";

/// A ratio that a scenario is to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// The rule, or its name before a value; empty: whatever the rule.
    pub rule: &'static str,
    /// How keys and values are stored.
    pub precision: &'static str,
    /// Over what.
    pub over: Over,
    /// Least ratio of the medians.
    pub least: f64,
}

/// What a target compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The best of the same precision.
    BestDense,
    /// Burn's best.
    Burn,
    /// Our own step by the best 256 keys.
    TopK,
}

const fn over_dense(scenario: &'static str, precision: &'static str, least: f64) -> Target {
    Target {
        scenario,
        rule: TOP_256,
        precision,
        over: Over::BestDense,
        least,
    }
}

const fn never_slower(scenario: &'static str) -> Target {
    Target {
        rule: "",
        ..over_dense(scenario, "f32", 0.95)
    }
}

/// At most 1.3 times the step by [`TOP_256`], for the mass that takes as many keys.
const fn as_dear(scenario: &'static str) -> Target {
    Target {
        rule: "mass",
        over: Over::TopK,
        ..over_dense(scenario, "f32", 1.0 / 1.3)
    }
}

const TARGETS: [Target; 27] = [
    over_dense("smollm2/layer14/8192", "f32", 2.0),
    over_dense("smollm2/generated/32768", "f32", 4.0),
    over_dense("smollm2/generated/131072", "f32", 7.0),
    over_dense("smollm2/generated/1048576", "f32", 8.0),
    Target {
        over: Over::Burn,
        ..over_dense("smollm2/layer14/8192", "f32", 10.0)
    },
    over_dense("smollm2/layer14/8192/bf16", "bf16", 1.3),
    over_dense("smollm2/generated/32768/bf16", "bf16", 2.5),
    over_dense("smollm2/generated/131072/bf16", "bf16", 4.0),
    over_dense("smollm2/generated/1048576/bf16", "bf16", 4.5),
    over_dense("llama3/generated/8192", "f32", 2.0),
    over_dense("llama3/generated/32768", "f32", 4.0),
    over_dense("llama3/generated/131072", "f32", 7.0),
    as_dear("smollm2/layer03/8192"),
    as_dear("smollm2/layer14/8192"),
    as_dear("smollm2/layer26/8192"),
    never_slower("smollm2/layer14/16"),
    never_slower("smollm2/layer14/64"),
    never_slower("smollm2/layer14/256"),
    never_slower("smollm2/layer14/512"),
    never_slower("smollm2/layer14/512/warm"),
    never_slower("smollm2/layer14/1024"),
    never_slower("smollm2/layer14/1536"),
    never_slower("smollm2/layer14/2048"),
    never_slower("smollm2/layer14/2048/warm"),
    never_slower("llama3/generated/512"),
    never_slower("llama3/generated/2048"),
    never_slower("smollm2/layer00/8192"),
];

impl Target {
    fn is_about(&self, rule: &str) -> bool {
        let name = rule.split('=').next();
        self.rule.is_empty() || rule == self.rule || name == Some(self.rule)
    }

    /// The least ratio of the outcomes that it is about; `None` if none was measured.
    pub fn measured(&self, outcomes: &[Outcome]) -> Option<f64> {
        let alike = outcomes.iter().filter(|one| {
            one.name == "hira" && one.scenario == self.scenario && one.precision == self.precision
        });
        let best = alike.clone().find(|one| one.rule == TOP_256);
        let about = alike.filter(|one| self.is_about(&one.rule));
        let ratios = about.filter_map(|one| match self.over {
            Over::BestDense => one.over_dense,
            Over::Burn => one.over_burn,
            Over::TopK => Some(best?.micros.median / one.micros.median),
        });
        ratios.min_by(f64::total_cmp)
    }
}

/// The targets as a Markdown table, with what was measured: those that the run is about.
pub fn targets(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| scenario | rule | precision | over | at least | measured | |\n|---|---|---|---|--:|--:|---|\n",
    );
    for target in TARGETS {
        let Some(measured) = target.measured(outcomes) else {
            continue;
        };
        text.push_str(&format!(
            "| {} | {} | {} | {} | {:.2}x | {measured:.2}x | {} |\n",
            target.scenario,
            if target.rule.is_empty() {
                "any"
            } else {
                target.rule
            },
            target.precision,
            match target.over {
                Over::BestDense => "best dense",
                Over::Burn => "Burn's attention",
                Over::TopK => TOP_256,
            },
            target.least,
            if measured >= target.least {
                "reached"
            } else {
                "missed"
            },
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{all, outcome::tests::outcome};

    #[test]
    fn every_target_is_about_a_scenario_of_the_list() {
        let names: Vec<_> = all().iter().map(|scenario| scenario.name()).collect();
        for target in TARGETS {
            assert!(
                names.iter().any(|name| name == target.scenario),
                "{target:?}"
            );
        }
    }

    #[test]
    fn a_target_takes_the_worst_of_what_it_is_about() {
        let mut slow = outcome("smollm2/layer14/512", "top-k=64", "hira", 10.0);
        slow.over_dense = Some(0.9);
        let fast = outcome("smollm2/layer14/512", "top-k=256", "hira", 10.0);
        let table = targets(&[fast.clone(), slow]);
        assert!(table.contains("0.90x | missed"), "{table}");
        let table = targets(&[fast]);
        assert!(table.contains("2.00x | reached"), "{table}");
        assert_eq!(table.lines().count(), 3);
    }

    #[test]
    fn a_rule_is_compared_with_the_same_step_by_the_best_keys() {
        let step = |rule, median| outcome("smollm2/layer14/8192", rule, "hira", median);
        let table = targets(&[step(TOP_256, 100.0), step("mass=0.935", 125.0)]);
        let line = "| mass | f32 | top-k=256 | 0.77x | 0.80x | reached |";
        assert!(table.contains(line), "{table}");
    }
}
