//! The searcher: checks, the choice of a plan, and the conveniences.

use hira_index::HierarchicalIndex;
use hira_kernels::Team;
use hira_threshold::{Threshold, ThresholdRule};
use rayon::prelude::*;

use crate::config::SearchConfig;
use crate::error::SearchError;
use crate::group::{Group, check_queries};
use crate::plan::{Decision, Plan, PlanChoice, Reason, Shape};
use crate::positions::Positions;
use crate::scratch::Scratch;
use crate::selection::Selection;
use crate::settle::Target;
use crate::visible::{Seen, has_sketch};
use crate::workers::call_with_rayon;

/// Below this many visible keys a search stays on its thread: it takes less time than to wake another one.
const PARALLEL_KEYS: usize = 4_096;

/// Queries of a batch that share one scan.
const BATCH_GROUP: usize = 4;

/// Finds the keys whose score reaches a threshold, exactly.
///
/// Stateless and cheap to clone: what a search remembers lives in its [`Scratch`].
///
/// # Numerics
/// The selected set is identical to brute force over the canonical score ([`search_naive`](crate::search_naive)), ties to the lower position,
/// whatever the plan, the kernel, the number of threads, the coarse levels and the way in which the keys were appended.
///
/// # Examples
/// ```
/// use hira_index::{HierarchicalIndex, IndexConfig};
/// use hira_search::{HalfspaceSearcher, SearchConfig};
/// use hira_threshold::ThresholdRule;
///
/// let mut index = HierarchicalIndex::new(IndexConfig::new(2))?;
/// index.append(&[1.0, 0.0, 0.0, 1.0, 2.0, 2.0])?;
/// let searcher = HalfspaceSearcher::new(SearchConfig::default())?;
/// let found = searcher.search(&index, &[1.0, 0.5], &ThresholdRule::Fixed { tau: 1.0 })?;
/// assert_eq!(found.positions, [0, 2]);
/// assert_eq!(found.scores, [1.0, 3.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct HalfspaceSearcher {
    config: SearchConfig,
}

impl HalfspaceSearcher {
    /// A searcher with these settings.
    ///
    /// # Errors
    /// [`SearchError::Config`] if `max_candidates` is 0.
    pub fn new(config: SearchConfig) -> Result<Self, SearchError> {
        config.validate()?;
        Ok(Self { config })
    }

    /// The settings.
    pub fn config(&self) -> &SearchConfig {
        &self.config
    }

    /// Searches all stored keys for one query. Allocates its scratch: see
    /// [`search_group_with`](Self::search_group_with) for repeated use.
    ///
    /// The tail is not asked for.
    ///
    /// # Errors
    /// As [`search_group_with`](Self::search_group_with).
    pub fn search(
        &self,
        index: &HierarchicalIndex,
        query: &[f32],
        rule: &dyn Threshold,
    ) -> Result<Selection, SearchError> {
        let mut out = Selection::default();
        if query.len() != index.dim() {
            return Err(SearchError::Dimension {
                expected: index.dim(),
                received: query.len(),
            });
        }
        self.search_group_with(
            index,
            query,
            index.positions(),
            rule,
            0.0,
            &mut Scratch::new(),
            std::slice::from_mut(&mut out),
        )?;
        Ok(out)
    }

    /// Searches all stored keys for each row of `queries`, a few rows a scan, in parallel if the settings allow.
    ///
    /// The tails are not asked for.
    ///
    /// # Shapes
    /// `queries`: any number of rows of the index's dimension.
    ///
    /// # Errors
    /// As [`search_group_with`](Self::search_group_with).
    pub fn search_batch(
        &self,
        index: &HierarchicalIndex,
        queries: &[f32],
        rule: &dyn Threshold,
    ) -> Result<Vec<Selection>, SearchError> {
        let dim = index.dim();
        let rows = check_queries(queries, dim)?;
        let mut out = vec![Selection::default(); rows];
        type Group<'a> = (usize, (&'a [f32], &'a mut [Selection]));
        let search = |scratch: &mut Scratch, (i, (queries, out)): Group<'_>| {
            scratch.forget_keys();
            self.search_group_with(index, queries, index.positions(), rule, 0.0, scratch, out)
                .map_err(|error| error.in_batch(i * BATCH_GROUP))
        };
        if self.config.parallel {
            queries
                .par_chunks(BATCH_GROUP * dim)
                .zip(out.par_chunks_mut(BATCH_GROUP))
                .enumerate()
                .try_for_each_init(Scratch::new, search)?;
        } else {
            let mut scratch = Scratch::new();
            queries
                .chunks(BATCH_GROUP * dim)
                .zip(out.chunks_mut(BATCH_GROUP))
                .enumerate()
                .try_for_each(|group| search(&mut scratch, group))?;
        }
        Ok(out)
    }

    /// The `k` keys that score highest, all of them if fewer are stored.
    ///
    /// # Errors
    /// As [`search`](Self::search); `k = 0` is an invalid rule.
    pub fn top_k(
        &self,
        index: &HierarchicalIndex,
        query: &[f32],
        k: usize,
    ) -> Result<Selection, SearchError> {
        self.search(index, query, &ThresholdRule::TopK { k })
    }

    /// Searches the `visible` positions (a number: the first so many; a range: those) for the queries that share one KV head: one scan serves them all.
    ///
    /// `out[g]` is overwritten, its memory reused: nothing is allocated once `scratch` and `out` have seen such a search on as many threads. With
    /// `scale > 0` the tail of every selection is bounded too; see [`Tail`](crate::Tail). On an error `out` is left as it was.
    ///
    /// # Shapes
    /// `queries`: `[G, D]`, `out`: `[G]`.
    ///
    /// # Complexity
    /// A sketch scan reads `D + 4` bytes a visible key once, and a row for each survivor of each query; dense reads the row of each
    /// visible key once: `4 D` bytes, or `2 D` if keys are stored in f16 or bf16.
    ///
    /// # Errors
    /// An invalid rule, or one that resolves to NaN; queries that are not whole, finite rows with a norm below [`MAX_NORM`](hira_kernels::MAX_NORM); another number of
    /// selections than queries; `visible` beyond the stored keys, or from before those that were evicted; a `scale` that is negative or not finite, or 0 with a rule by mass.
    #[expect(
        clippy::too_many_arguments,
        reason = "all of them change between two decode steps"
    )]
    pub fn search_group_with(
        &self,
        index: &HierarchicalIndex,
        queries: &[f32],
        visible: impl Into<Positions>,
        rule: &dyn Threshold,
        scale: f32,
        scratch: &mut Scratch,
        out: &mut [Selection],
    ) -> Result<(), SearchError> {
        let visible: Positions = visible.into();
        let mut team = std::mem::take(&mut scratch.team);
        let most = if self.config.parallel && visible.len() >= PARALLEL_KEYS {
            usize::MAX
        } else {
            0
        };
        let found = call_with_rayon(&mut team, most, |team| {
            self.search_group_on(team, index, queries, visible, rule, scale, scratch, out)
        });
        scratch.team = team;
        found
    }

    /// As [`search_group_with`](Self::search_group_with), on the threads of `team`, whatever the settings say of threads.
    ///
    /// # Errors
    /// As [`search_group_with`](Self::search_group_with).
    #[expect(
        clippy::too_many_arguments,
        reason = "all of them change between two decode steps"
    )]
    pub fn search_group_on(
        &self,
        team: &Team,
        index: &HierarchicalIndex,
        queries: &[f32],
        visible: impl Into<Positions>,
        rule: &dyn Threshold,
        scale: f32,
        scratch: &mut Scratch,
        out: &mut [Selection],
    ) -> Result<(), SearchError> {
        let visible: Positions = visible.into();
        self.search_seen(team, index, queries, visible, rule, scale, scratch, out)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "those of search_group_on, which is generic in one of them"
    )]
    fn search_seen(
        &self,
        team: &Team,
        index: &HierarchicalIndex,
        queries: &[f32],
        positions: Positions,
        rule: &dyn Threshold,
        scale: f32,
        scratch: &mut Scratch,
        out: &mut [Selection],
    ) -> Result<(), SearchError> {
        rule.validate()?;
        let rows = check_queries(queries, index.dim())?;
        check_call(index, rows, positions, scale, out)?;
        let (visible, seen) = (positions.len(), Seen::of(index, positions));
        let is_empty = rows == 0 || visible == 0;
        if !is_empty {
            let limit = self.config.max_candidates;
            scratch
                .resolving
                .resolve(index, queries, seen, rule, limit)?;
        }
        if scale == 0.0 && scratch.resolving.targets.iter().any(Target::is_mass) && !is_empty {
            return Err(SearchError::Config {
                key: "scale",
                requirement: "above 0 for a rule by mass: weights are exp(scale * score)",
            });
        }
        for out in out.iter_mut() {
            out.clear();
            out.stats.stored = index.positions().len();
            out.stats.visible = visible;
        }
        if is_empty {
            return Ok(());
        }
        // Taken out so that the rest of the scratch can be lent beside them.
        let targets = std::mem::take(&mut scratch.resolving.targets);
        let group = Group {
            index,
            kernel: index.kernel(),
            queries,
            seen,
            targets: &targets,
            scale,
            tail_block: if scale > 0.0 {
                self.config.tail_block
            } else {
                0
            },
        };
        let decision = self.decide(&group, scratch);
        match decision.plan {
            Plan::Dense => scratch.search_dense(&group, team, out),
            Plan::SketchScan | Plan::Tree | Plan::Product => {
                scratch.search_sketch(&group, decision, team, out);
            }
        }
        for out in out {
            out.stats.plan = decision.plan;
        }
        scratch.last = Some(decision);
        scratch.resolving.targets = targets;
        Ok(())
    }

    /// The plan asked for, or the cheapest, among those that can be followed.
    fn decide(&self, group: &Group<'_>, scratch: &mut Scratch) -> Decision {
        // One query that selects every key has every row read, so the others are scored on the way.
        let everything = |target: &Target| target.is_everything(group.visible());
        let dense = |reason| Decision::new(Plan::Dense, 0, reason);
        if !has_sketch(group.index, group.seen) {
            return dense(Reason::NoSketch);
        }
        if group.targets.iter().any(everything) {
            return dense(Reason::SelectsAll);
        }
        match self.config.plan {
            PlanChoice::Auto => scratch.choose(group),
            PlanChoice::Force(plan @ (Plan::Dense | Plan::SketchScan)) => {
                Decision::new(plan, 0, Reason::Forced)
            }
            PlanChoice::Force(plan) => {
                let shape = Shape::of(group);
                let depth = shape.depth();
                let lacking = plan == Plan::Tree && depth == 0
                    || plan == Plan::Product && shape.coded_keys == 0;
                if lacking {
                    return Decision::new(Plan::SketchScan, 0, Reason::Replaced);
                }
                Decision::new(plan, depth, Reason::Forced)
            }
        }
    }
}

/// Checks what is neither in the rule nor in the queries.
fn check_call(
    index: &HierarchicalIndex,
    rows: usize,
    positions: Positions,
    scale: f32,
    out: &[Selection],
) -> Result<(), SearchError> {
    if out.len() != rows {
        return Err(SearchError::Outputs {
            expected: rows,
            received: out.len(),
        });
    }
    positions.check(index)?;
    if !(0.0..f32::INFINITY).contains(&scale) {
        return Err(SearchError::Config {
            key: "scale",
            requirement: "a finite number, at least 0",
        });
    }
    Ok(())
}
