//! EXPLAIN for a search: what was chosen, why, and what it read against what was expected.

use std::fmt;
use std::time::Instant;

use hira_index::HierarchicalIndex;
use hira_threshold::Threshold;
use serde::Serialize;

use crate::error::SearchError;
use crate::group::Group;
use crate::plan::{Plan, PlanEstimate, Reason, Shape, Work, estimates};
use crate::positions::Positions;
use crate::scratch::Scratch;
use crate::searcher::HalfspaceSearcher;
use crate::selection::{FirstThreshold, SearchStats, Selection};
use crate::visible::{Seen, has_sketch};

impl HalfspaceSearcher {
    /// [`search_group_with`](Self::search_group_with), and an account of it.
    ///
    /// The estimates are those that the planner had before the search: they know what `scratch` measured in earlier ones. Prints as a
    /// table; see [`Explanation`].
    ///
    /// # Errors
    /// As [`search_group_with`](Self::search_group_with).
    #[expect(
        clippy::too_many_arguments,
        reason = "the arguments of the search that it explains"
    )]
    pub fn explain(
        &self,
        index: &HierarchicalIndex,
        queries: &[f32],
        visible: impl Into<Positions>,
        rule: &dyn Threshold,
        scale: f32,
        scratch: &mut Scratch,
        out: &mut [Selection],
    ) -> Result<Explanation, SearchError> {
        let visible: Positions = visible.into();
        let before = scratch.history().clone();
        scratch.last = None;
        let start = Instant::now();
        self.search_group_with(index, queries, visible, rule, scale, scratch, out)?;
        let nanos = start.elapsed().as_nanos() as f64;
        let group = Group {
            index,
            kernel: index.kernel(),
            queries,
            seen: Seen::of(index, visible),
            targets: &scratch.resolving.targets,
            scale,
            tail_block: 0,
        };
        let shape = Shape::of(&group);
        let mut estimates: Vec<PlanEstimate> = estimates(&shape, &before).collect();
        if !has_sketch(index, group.seen) {
            estimates.retain(|estimate| estimate.plan == Plan::Dense);
        }
        Ok(Explanation {
            dim: index.dim(),
            stored: index.positions().len(),
            visible: visible.len(),
            clusters: shape.clusters[..shape.depth()].to_vec(),
            chosen: scratch.last.map(|decision| Chosen {
                plan: decision.plan,
                depth: decision.depth,
                reason: decision.reason,
            }),
            estimates,
            actual: scratch.last.map_or_else(Work::default, |_| Work {
                nanos,
                ..scratch.work()
            }),
            queries: out.iter().map(|out| out.stats).collect(),
        })
    }
}

/// What was chosen for one group search, why, and the work that was estimated and done.
///
/// Its `Display` form is a table for people, its serde form the same for programs.
///
/// # Examples
/// ```
/// use hira_index::{HierarchicalIndex, IndexConfig};
/// use hira_search::{HalfspaceSearcher, Scratch, SearchConfig, Selection};
/// use hira_threshold::ThresholdRule;
///
/// let mut index = HierarchicalIndex::new(IndexConfig::new(2))?;
/// index.append(&[1.0, 0.0, 0.0, 1.0, 2.0, 2.0])?;
/// let searcher = HalfspaceSearcher::new(SearchConfig::default())?;
/// let rule = ThresholdRule::TopK { k: 1 };
/// let (mut scratch, mut out) = (Scratch::new(), [Selection::default()]);
/// let explanation = searcher.explain(&index, &[1.0, 0.5], 3, &rule, 0.0, &mut scratch, &mut out)?;
/// assert!(explanation.to_string().contains("plan: dense (the cheapest estimate)"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Dimension of a key.
    pub dim: usize,
    /// Keys in the index.
    pub stored: usize,
    /// Keys that the queries may see.
    pub visible: usize,
    /// Clusters of the visible segments on each coarse level, the coarsest first.
    pub clusters: Vec<usize>,
    /// How the group was answered; `None` if there was nothing to answer (no query, or no visible key).
    pub chosen: Option<Chosen>,
    /// What the planner expected of every plan that the index allows.
    pub estimates: Vec<PlanEstimate>,
    /// What the search read, and the time it took (on all of its threads, from start to end).
    pub actual: Work,
    /// Counts of each query.
    pub queries: Vec<SearchStats>,
}

/// A plan and the reason for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Chosen {
    /// The plan.
    pub plan: Plan,
    /// Coarse levels that it descended, 0 for plans that use none.
    pub depth: usize,
    /// Why it was taken.
    pub reason: Reason,
}

impl Explanation {
    /// What had been estimated for the plan that was taken.
    pub fn estimated(&self) -> Option<&PlanEstimate> {
        let chosen = self.chosen?;
        let same = |e: &&PlanEstimate| e.plan == chosen.plan && e.depth == chosen.depth;
        self.estimates.iter().find(same)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "search of {} quer{} over {} of {} keys of dimension {}",
            self.queries.len(),
            if self.queries.len() == 1 { "y" } else { "ies" },
            self.visible,
            self.stored,
            self.dim
        )?;
        if !self.clusters.is_empty() {
            let clusters: Vec<String> = self.clusters.iter().map(usize::to_string).collect();
            write!(f, ", clusters {}", clusters.join(" > "))?;
        }
        let Some(chosen) = self.chosen else {
            return write!(f, "\nplan: none (there is nothing to search)");
        };
        let named = |plan: Plan, depth: usize| match plan {
            Plan::Tree => format!("tree, {depth} level{}", if depth == 1 { "" } else { "s" }),
            plan => plan.to_string(),
        };
        writeln!(
            f,
            "\nplan: {} ({})",
            named(chosen.plan, chosen.depth),
            chosen.reason
        )?;
        writeln!(
            f,
            "  {:<20} {:>10} {:>10} {:>12} {:>10} {:>12} {:>10}",
            "", "clusters", "codes", "sketch keys", "rows", "bytes", "us"
        )?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, work: &Work| {
            writeln!(
                f,
                "  {name:<20} {:>10.0} {:>10.0} {:>12.0} {:>10.0} {:>12.0} {:>10.1}",
                work.bounds,
                work.coded,
                work.sketched,
                work.scored,
                work.bytes,
                work.nanos / 1e3
            )
        };
        for estimate in &self.estimates {
            let name = named(estimate.plan, estimate.depth);
            line(f, &format!("est. {name}"), &estimate.work)?;
        }
        line(f, "actual", &self.actual)?;
        for (i, stats) in self.queries.iter().enumerate() {
            write!(
                f,
                "  query {i}: {} candidates > {} scored > {} selected",
                stats.candidates, stats.survivors, stats.selected
            )?;
            match stats.first_threshold {
                FirstThreshold::None => {}
                FirstThreshold::Given => write!(f, "; threshold given")?,
                FirstThreshold::Previous => write!(f, "; first threshold from the last step")?,
                FirstThreshold::BestFirst => write!(f, "; first threshold best-first")?,
                FirstThreshold::Sample => write!(f, "; first threshold sampled")?,
            }
            if stats.rescanned {
                write!(f, ", too high: scanned again")?;
            }
            if stats.truncated {
                write!(f, "; cut to max_candidates")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
