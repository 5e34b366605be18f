//! Which tier a part of the cache should lie on.

use serde::{Deserialize, Serialize};

use crate::{MemoryError, Part, Placement, RowRun, Tier, Usage};

/// How the parts of a cache are spread over the tiers that a machine has.
///
/// In a configuration a policy is its name (`memory_policy = "hybrid"`), or a table with its value
/// (`memory_policy = { hybrid = { num_fast_levels = 2 } }`).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "PolicyForm", into = "PolicyForm")]
#[non_exhaustive]
pub enum MemoryPolicy {
    /// Everything in the memory of the device that computes. Exact rows that its budget has no room for go down a tier, the oldest first.
    #[default]
    AllDevice,
    /// Everything in main memory; rows that its budget has no room for go down a tier, the oldest first.
    AllHost,
    /// The sketch and the first `num_fast_levels` coarse levels on the fastest tier, the rest one tier below. On a device, which has no coarse levels: sketch
    /// and means of values there, exact keys and values in main memory.
    Hybrid {
        /// Coarse levels on the fastest tier.
        num_fast_levels: usize,
    },
    /// As [`MemoryPolicy::AllDevice`] while the fastest tier's usage stays below the target, then as
    /// [`MemoryPolicy::Hybrid`]: see [`MemoryPolicy::under_pressure`]. Between main memory and disk it keeps in memory the rows that steps read
    /// most, up to the target; once that is passed it makes a tenth more room than it must, so that it does not move rows at every step. On a device it moves
    /// the exact rows of whole layers, and lets them come back when the device would then be nine tenths of the target full at most.
    Adaptive {
        /// Fraction of the fastest tier's memory that may be used, in `(0, 1]`.
        target_usage: f32,
    },
}

impl MemoryPolicy {
    /// Default of [`MemoryPolicy::Hybrid`].
    pub const DEFAULT_FAST_LEVELS: usize = 2;
    /// Default of [`MemoryPolicy::Adaptive`].
    pub const DEFAULT_TARGET_USAGE: f32 = 0.8;

    /// Checks the values of the policy.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Config`] that names the key.
    pub fn validate(&self) -> Result<(), MemoryError> {
        match *self {
            MemoryPolicy::Adaptive { target_usage }
                if !(target_usage > 0.0 && target_usage <= 1.0) =>
            {
                Err(MemoryError::Config {
                    key: "memory_policy.adaptive.target_usage",
                    requirement: "must be above 0 and at most 1",
                    received: f64::from(target_usage),
                })
            }
            _ => Ok(()),
        }
    }

    /// The policy that applies when `used` of the fastest tier's `capacity` bytes are taken: itself, except that
    /// [`MemoryPolicy::Adaptive`] becomes one of the fixed policies.
    pub fn under_pressure(self, used: usize, capacity: usize) -> Self {
        match self {
            MemoryPolicy::Adaptive { target_usage } => {
                if used as f64 <= f64::from(target_usage) * capacity as f64 {
                    MemoryPolicy::AllDevice
                } else {
                    MemoryPolicy::Hybrid {
                        num_fast_levels: Self::DEFAULT_FAST_LEVELS,
                    }
                }
            }
            fixed => fixed,
        }
    }

    /// The tier for `part`, of the tiers that the machine has (in any order; [`Tier::Host`] if the list is empty).
    pub fn place(&self, part: Part, tiers: &[Tier]) -> Tier {
        let fastest = tiers.iter().copied().min().unwrap_or(Tier::Host);
        let below = tiers.iter().copied().filter(|tier| *tier > fastest).min();
        let slower = below.unwrap_or(fastest);
        match self {
            MemoryPolicy::AllDevice | MemoryPolicy::Adaptive { .. } => fastest,
            MemoryPolicy::AllHost if tiers.contains(&Tier::Host) => Tier::Host,
            MemoryPolicy::AllHost => fastest,
            MemoryPolicy::Hybrid { num_fast_levels } => match part {
                Part::Sketch => fastest,
                Part::Level(level) if level < *num_fast_levels => fastest,
                _ => slower,
            },
        }
    }
}

impl Placement for MemoryPolicy {
    fn place(&self, part: Part, tiers: &[Tier]) -> Tier {
        MemoryPolicy::place(self, part, tiers)
    }

    fn worth(&self, rows: &RowRun) -> f64 {
        match self {
            MemoryPolicy::Adaptive { .. } => rows.reads as f64,
            _ => 0.0,
        }
    }

    fn room(&self, usage: Usage) -> usize {
        match *self {
            MemoryPolicy::Adaptive { target_usage } => {
                let target = (usage.limit as f64 * f64::from(target_usage)) as usize;
                if usage.used > target {
                    target / 10 * 9
                } else {
                    target
                }
            }
            _ => usage.limit,
        }
    }
}

/// The two ways to write a policy.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "memory_policy: expected all_device, all_host, hybrid, adaptive, or a table of one of the last two"
)]
enum PolicyForm {
    Name(PolicyName),
    Table(PolicyTable),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PolicyName {
    AllDevice,
    AllHost,
    Hybrid,
    Adaptive,
}

/// One of the policies that have a value. (An enum would need YAML's tags.)
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    hybrid: Option<HybridTable>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adaptive: Option<AdaptiveTable>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HybridTable {
    num_fast_levels: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdaptiveTable {
    target_usage: f32,
}

impl TryFrom<PolicyForm> for MemoryPolicy {
    type Error = &'static str;

    fn try_from(form: PolicyForm) -> Result<Self, Self::Error> {
        Ok(match form {
            PolicyForm::Name(PolicyName::AllDevice) => MemoryPolicy::AllDevice,
            PolicyForm::Name(PolicyName::AllHost) => MemoryPolicy::AllHost,
            PolicyForm::Name(PolicyName::Hybrid) => MemoryPolicy::Hybrid {
                num_fast_levels: Self::DEFAULT_FAST_LEVELS,
            },
            PolicyForm::Name(PolicyName::Adaptive) => MemoryPolicy::Adaptive {
                target_usage: Self::DEFAULT_TARGET_USAGE,
            },
            PolicyForm::Table(PolicyTable {
                hybrid: Some(HybridTable { num_fast_levels }),
                adaptive: None,
            }) => MemoryPolicy::Hybrid { num_fast_levels },
            PolicyForm::Table(PolicyTable {
                hybrid: None,
                adaptive: Some(AdaptiveTable { target_usage }),
            }) => MemoryPolicy::Adaptive { target_usage },
            PolicyForm::Table(_) => {
                return Err("memory_policy: expected one of hybrid and adaptive in the table");
            }
        })
    }
}

impl From<MemoryPolicy> for PolicyForm {
    fn from(policy: MemoryPolicy) -> Self {
        match policy {
            MemoryPolicy::AllDevice => PolicyForm::Name(PolicyName::AllDevice),
            MemoryPolicy::AllHost => PolicyForm::Name(PolicyName::AllHost),
            MemoryPolicy::Hybrid { num_fast_levels } => PolicyForm::Table(PolicyTable {
                hybrid: Some(HybridTable { num_fast_levels }),
                adaptive: None,
            }),
            MemoryPolicy::Adaptive { target_usage } => PolicyForm::Table(PolicyTable {
                hybrid: None,
                adaptive: Some(AdaptiveTable { target_usage }),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Tier; 3] = [Tier::Disk, Tier::Device, Tier::Host];

    #[test]
    fn every_policy_resolves_to_the_only_tier() {
        for policy in [
            MemoryPolicy::AllDevice,
            MemoryPolicy::AllHost,
            MemoryPolicy::Hybrid { num_fast_levels: 0 },
            MemoryPolicy::Adaptive { target_usage: 0.5 },
        ] {
            for part in [Part::Level(3), Part::Sketch, Part::Keys, Part::Values] {
                assert_eq!(policy.place(part, &[Tier::Host]), Tier::Host);
                assert_eq!(policy.place(part, &[]), Tier::Host);
            }
        }
    }

    #[test]
    fn hybrid_keeps_the_sketch_and_the_first_levels_fast() {
        let policy = MemoryPolicy::Hybrid { num_fast_levels: 1 };
        assert_eq!(policy.place(Part::Level(0), &ALL), Tier::Device);
        assert_eq!(policy.place(Part::Level(1), &ALL), Tier::Host);
        assert_eq!(policy.place(Part::Sketch, &ALL), Tier::Device);
        assert_eq!(policy.place(Part::Values, &ALL), Tier::Host);
        assert_eq!(
            policy.place(Part::Values, &[Tier::Disk, Tier::Host]),
            Tier::Disk
        );
    }

    #[test]
    fn adaptive_moves_down_only_above_the_target() {
        let policy = MemoryPolicy::Adaptive { target_usage: 0.5 };
        assert_eq!(policy.under_pressure(50, 100), MemoryPolicy::AllDevice);
        assert!(matches!(
            policy.under_pressure(51, 100),
            MemoryPolicy::Hybrid { .. }
        ));
        assert_eq!(
            MemoryPolicy::AllHost.under_pressure(100, 100),
            MemoryPolicy::AllHost
        );
    }

    #[test]
    fn policies_read_as_a_name_or_a_table() {
        let read = |text: &str| serde_json::from_str::<MemoryPolicy>(text);
        assert_eq!(read("\"all_host\"").unwrap(), MemoryPolicy::AllHost);
        assert_eq!(
            read("\"hybrid\"").unwrap(),
            MemoryPolicy::Hybrid { num_fast_levels: 2 }
        );
        assert_eq!(
            read(r#"{"adaptive":{"target_usage":0.25}}"#).unwrap(),
            MemoryPolicy::Adaptive { target_usage: 0.25 }
        );
        assert!(read("\"fast\"").is_err());
        assert!(read(r#"{"hybrid":{"levels":2}}"#).is_err());
        assert!(read("{}").is_err());
        let policy = MemoryPolicy::Hybrid { num_fast_levels: 7 };
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(read(&text).unwrap(), policy);
    }

    #[test]
    fn a_target_outside_the_unit_interval_is_refused() {
        for target_usage in [0.0, -1.0, 1.5, f32::NAN] {
            let error = MemoryPolicy::Adaptive { target_usage }
                .validate()
                .unwrap_err();
            assert!(error.to_string().contains("target_usage"));
        }
    }
}
