//! What histories have done so far: key checks by what was checked, and the ways that were reached.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use hira_index::HierarchicalIndex;
use hira_search::{PlanChoice, Selection};

use super::Shape;

/// What histories have done so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Queries times visible keys, of every search that was compared with brute force.
    pub(crate) checks: u64,
    pub(crate) searches: u64,
    /// Checks by category and name.
    pub(crate) totals: BTreeMap<(&'static str, String), u64>,
    /// Most keys in one index.
    pub(crate) longest: usize,
    /// Hashes of what was reached: structures of indexes, and buckets of what searches counted.
    pub(crate) reached: BTreeSet<u64>,
}

impl Report {
    pub(crate) fn add(&mut self, other: Self) {
        self.checks += other.checks;
        self.searches += other.searches;
        self.longest = self.longest.max(other.longest);
        for (key, checks) in other.totals {
            *self.totals.entry(key).or_default() += checks;
        }
        self.reached.extend(other.reached);
    }

    pub(crate) fn reach(&mut self, what: impl Hash) {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        self.reached.insert(hasher.finish());
    }
}

/// Adds the checks of one search to the totals.
pub(crate) fn count(
    report: &mut Report,
    shape: &Shape,
    index: &HierarchicalIndex,
    plan: PlanChoice,
    rule: &'static str,
    checks: u64,
) {
    report.checks += checks;
    report.searches += 1;
    let keys = match index.len() {
        0..=1 => "0 or 1 keys",
        2..=1_023 => "to 1,023 keys",
        1_024..=131_072 => "to 131,072 keys",
        131_073..=999_999 => "to 999,999 keys",
        _ => "1,000,000 keys and more",
    };
    let dim = match shape.dim % 16 {
        0 => "dim a multiple of 16",
        _ => "dim no multiple of 16",
    };
    let names = [
        ("plan", format!("{plan:?}")),
        ("rule", rule.into()),
        ("build", shape.variant().name.into()),
        ("levels", format!("{} levels", shape.levels)),
        ("kernel", index.kernel().name().into()),
        ("shape", keys.into()),
        ("shape", dim.into()),
    ];
    for name in names {
        *report.totals.entry(name).or_default() += checks;
    }
}

/// Notes which ways a search took. A few counts each, so that it is the rare ones that are new.
pub(crate) fn note_ways(report: &mut Report, shape: &Shape, rule: &'static str, found: &Selection) {
    let stats = found.stats;
    let (plan, hidden) = (stats.plan, stats.stored > stats.visible);
    report.reach((plan, stats.rescanned, stats.truncated, hidden, rule));
    report.reach((plan, shape.levels, shape.variant, shape.kernel));
    report.reach((plan, size(stats.visible), size(stats.scanned)));
    let beyond = size(stats.survivors - stats.selected);
    report.reach((plan, size(stats.candidates), beyond));
}

/// A bucket for a count: its number of binary digits.
pub(crate) fn size(count: usize) -> u32 {
    usize::BITS - count.leading_zeros()
}
