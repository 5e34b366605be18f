//! Which plan answers a query: a small cost model over what is read.

use std::fmt;

use hira_index::IndexConfig;
use serde::{Deserialize, Serialize};

use crate::group::Group;
use crate::history::SearchHistory;
use crate::visible::Visible;

/// How one group's query was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    /// Every visible key was scored exactly.
    #[default]
    Dense,
    /// Every visible key's sketch was read, then the survivors were scored exactly.
    SketchScan,
    /// Clusters were pruned by the coarse levels first, then as `SketchScan` on the tiles that were left.
    Tree,
    /// Tiles were ruled out by their product codes first, then as `SketchScan` on the tiles that were left.
    Product,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dense => "dense",
            Self::SketchScan => "sketch scan",
            Self::Tree => "tree",
            Self::Product => "product codes",
        })
    }
}

/// Who picks the plan. The answer is the same whoever does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanChoice {
    /// The cost model.
    #[default]
    Auto,
    /// This plan, where it can be followed: selecting every visible key is always dense, so is an index without a sketch, and
    /// `Tree` on an index without coarse levels is a `SketchScan`, as is `Product` on one without product codes.
    Force(Plan),
}

// Costs in nanoseconds, measured with the caches emptied (as between two decode steps) on one core of a shared Zen 4 server, at
// 512 to 8,192 keys of dimension 64 and 3 queries: the model is within 15 % there. With warm caches a scan gains more than dense.

/// A byte of a key read in order.
const DENSE_BYTE: f64 = 0.1;
/// Selecting among densely scored keys, a key and query.
const DENSE_SELECT: f64 = 4.3;
/// A sketch scan whatever its length: the first threshold, the candidates.
const SCAN: f64 = 33_000.0;
/// A byte of the sketch, for a group.
const SCAN_BYTE: f64 = 0.14;
/// A key read out of order, and each of its bytes.
const GATHER: f64 = 9.0;
const GATHER_BYTE: f64 = 0.05;
/// The bound of a cluster for one query, and each byte of its centroid and box.
const BOUND: f64 = 8.0;
const BOUND_BYTE: f64 = 0.03;

/// The bound of a key by its product code, for one query.
const CODED_KEY: f64 = 0.2;
/// A plan that prunes must be this much cheaper than a scan: what it prunes varies from step to step.
const MARGIN: f64 = 1.1;

/// The most coarse levels a segment can have.
pub(crate) const MAX_COARSE: usize = IndexConfig::MAX_LEVELS - 1;

/// What the model knows of one group search.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shape {
    pub(crate) visible: usize,
    pub(crate) dim: usize,
    /// Bytes of a stored key.
    pub(crate) row_bytes: usize,
    pub(crate) queries: usize,
    /// Keys to be selected, if the rule says so.
    pub(crate) count: Option<usize>,
    /// Visible keys in segments whose coarse levels can be used.
    pub(crate) coarse_keys: usize,
    /// Clusters of those segments on each coarse level, the coarsest first.
    pub(crate) clusters: [usize; MAX_COARSE],
    /// Visible keys in segments with product codes, and the bytes of those codes.
    pub(crate) coded_keys: usize,
    pub(crate) code_bytes: usize,
}

impl Shape {
    /// The shape of one group's search.
    pub(crate) fn of(group: &Group<'_>) -> Self {
        let mut shape = Self {
            visible: group.visible(),
            dim: group.dim(),
            row_bytes: group.row_bytes(),
            queries: group.len(),
            count: group.count(),
            ..Self::default()
        };
        if group.is_by_mass() {
            // What is pruned counts with the bound of its cluster: too much for a share of the mass.
            return shape;
        }
        for visible in Visible::segments(group.index, group.seen) {
            if let Some(product) = visible.segment.product() {
                shape.coded_keys += visible.len();
                shape.code_bytes += visible.tiles().len() * product.shape.tile_bytes();
            }
            let levels = visible.segment.levels();
            if levels.is_empty() || visible.is_mixed() {
                continue;
            }
            shape.coarse_keys += visible.len();
            for (count, level) in shape.clusters.iter_mut().zip(levels) {
                *count += level.len();
            }
        }
        shape
    }

    /// Number of coarse levels of the deepest segment.
    pub(crate) fn depth(&self) -> usize {
        self.clusters.iter().take_while(|&&count| count > 0).count()
    }
}

/// What a plan reads, estimated or counted.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Work {
    /// Keys whose sketch is read, once for the whole group.
    pub sketched: f64,
    /// Keys whose product codes are read, once for the whole group.
    pub coded: f64,
    /// Cluster bounds computed, for all queries of the group together.
    pub bounds: f64,
    /// Keys scored exactly: for a dense plan once for the group, else for all queries together.
    pub scored: f64,
    /// Bytes read of sketch, clusters and exact keys.
    pub bytes: f64,
    /// Time on one core in nanoseconds.
    pub nanos: f64,
}

/// A plan that the cost model weighed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PlanEstimate {
    /// The plan.
    pub plan: Plan,
    /// Coarse levels that a tree plan descends, 0 for the other plans.
    pub depth: usize,
    /// What it would read.
    pub work: Work,
}

/// Why a plan was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The configuration asks for it.
    Forced,
    /// The configuration asks for a plan that needs what the index does not have.
    Replaced,
    /// The index holds exact keys only, or so few that they are not sketched yet.
    NoSketch,
    /// The rule selects every visible key, so no bound can help.
    SelectsAll,
    /// The cost model found it cheapest.
    Cheapest,
    /// It was not measured lately: tried once, so that the cost model knows.
    Probe,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Forced => "asked for by the configuration",
            Self::Replaced => "the plan asked for needs what this index does not have",
            Self::NoSketch => "the keys have no sketch",
            Self::SelectsAll => "every visible key is selected",
            Self::Cheapest => "the cheapest estimate",
            Self::Probe => "not measured lately, tried once",
        })
    }
}

/// The plan of one search, and how deep a tree plan descends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Decision {
    pub(crate) plan: Plan,
    pub(crate) depth: usize,
    pub(crate) reason: Reason,
}

impl Decision {
    pub(crate) fn new(plan: Plan, depth: usize, reason: Reason) -> Self {
        let depth = if plan == Plan::Tree { depth } else { 0 };
        Self {
            plan,
            depth,
            reason,
        }
    }
}

/// Estimates of every plan that the index allows, dense first.
///
/// A plan by 4-bit codes, which take half of the sketch's bytes, was built and left out: at 131,072 keys it left 3,760 rows a query to score where the
/// sketch leaves 372, and took 673 us instead of 452 (see "A cheaper first stage" in `docs/index-and-search.md`).
///
/// Dense reads a stored row a key (`4 D` bytes, `2 D` in f16 and bf16) for the whole group, a scan `D + 4` and then a row for every survivor of every query; a tree plan `12 D`
/// bytes for each cluster that it opens, and of the sketch the share that its levels leave. How many clusters a level leaves is what
/// was measured lately in this head (`history`); a level that was never measured counts as leaving all.
pub(crate) fn estimates<'a>(
    shape: &'a Shape,
    history: &'a SearchHistory,
) -> impl Iterator<Item = PlanEstimate> + 'a {
    let flat = [
        PlanEstimate {
            plan: Plan::Dense,
            depth: 0,
            work: dense(shape),
        },
        PlanEstimate {
            plan: Plan::SketchScan,
            depth: 0,
            work: scan(shape, history, shape.visible as f64),
        },
    ];
    let trees = (1..=shape.depth()).map(|depth| PlanEstimate {
        plan: Plan::Tree,
        depth,
        work: tree(shape, history, depth),
    });
    let product = (shape.coded_keys > 0).then(|| PlanEstimate {
        plan: Plan::Product,
        depth: 0,
        work: product(shape, history),
    });
    flat.into_iter().chain(trees).chain(product)
}

fn dense(shape: &Shape) -> Work {
    let keys = shape.visible as f64;
    let bytes = keys * shape.row_bytes as f64;
    Work {
        scored: keys,
        bytes,
        nanos: bytes * DENSE_BYTE + keys * shape.queries as f64 * DENSE_SELECT,
        ..Work::default()
    }
}

/// A scan of `keys` keys of the sketch, and what follows.
fn scan(shape: &Shape, history: &SearchHistory, keys: f64) -> Work {
    let selected = match shape.count {
        Some(count) => history.scored() * count as f64,
        None => history.survivors() * shape.visible as f64,
    };
    let row = shape.row_bytes as f64;
    let scored = shape.queries as f64 * selected;
    let sketch = keys * (shape.dim + 4) as f64;
    Work {
        sketched: keys,
        scored,
        bytes: sketch + scored * row,
        nanos: SCAN + sketch * SCAN_BYTE + scored * (GATHER + row * GATHER_BYTE),
        ..Work::default()
    }
}

fn tree(shape: &Shape, history: &SearchHistory, depth: usize) -> Work {
    let (mut opened, mut left) = (0.0, 1.0);
    for (level, &clusters) in shape.clusters[..depth].iter().enumerate() {
        // Those below the clusters that the levels above left.
        opened += clusters as f64 * left;
        left *= history.passed(level);
    }
    let uncovered = (shape.visible - shape.coarse_keys) as f64;
    let mut work = scan(shape, history, uncovered + shape.coarse_keys as f64 * left);
    work.bounds = opened * shape.queries as f64;
    let cluster = 12.0 * shape.dim as f64;
    work.bytes += opened * cluster;
    work.nanos += work.bounds * (BOUND + cluster * BOUND_BYTE);
    work
}

fn product(shape: &Shape, history: &SearchHistory) -> Work {
    let (coded, bytes) = (shape.coded_keys as f64, shape.code_bytes as f64);
    let uncoded = (shape.visible - shape.coded_keys) as f64;
    let mut work = scan(shape, history, uncoded + coded * history.marked());
    work.coded = coded;
    work.bytes += bytes;
    work.nanos += bytes * SCAN_BYTE + coded * shape.queries as f64 * CODED_KEY;
    work
}

/// The cheapest plan, or one that was not measured lately.
///
/// A tree plan is tried in full once in a while wherever there are levels, since only a descent tells what they prune. On attention keys
/// they prune almost nothing (at 8,192 keys 239 of 260 clusters stay), and the scan is kept.
pub(crate) fn choose(shape: &Shape, history: &mut SearchHistory) -> Decision {
    let cost = |estimate: &PlanEstimate| {
        let prunes = matches!(estimate.plan, Plan::Tree | Plan::Product);
        let margin = if prunes { MARGIN } else { 1.0 };
        estimate.work.nanos * margin
    };
    let cheapest = estimates(shape, history)
        .min_by(|a, b| cost(a).total_cmp(&cost(b)))
        .map_or((Plan::Dense, 0), |best| (best.plan, best.depth));
    if cheapest.0 != Plan::Dense && shape.depth() > 0 && history.tree_is_due() {
        return Decision::new(Plan::Tree, shape.depth(), Reason::Probe);
    }
    if cheapest.0 != Plan::Dense && shape.coded_keys > 0 && history.product_is_due() {
        return Decision::new(Plan::Product, 0, Reason::Probe);
    }
    Decision::new(cheapest.0, cheapest.1, Reason::Cheapest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(visible: usize, count: usize, coarse: bool) -> Shape {
        let mut clusters = [0; MAX_COARSE];
        if coarse {
            clusters[0] = visible / 1024;
            clusters[1] = visible / 32;
        }
        Shape {
            visible,
            dim: 64,
            row_bytes: 256,
            queries: 3,
            count: Some(count),
            coarse_keys: if coarse { visible } else { 0 },
            clusters,
            ..Shape::default()
        }
    }

    fn plan(shape: &Shape, history: &mut SearchHistory) -> (Plan, Reason) {
        let decision = choose(shape, history);
        (decision.plan, decision.reason)
    }

    #[test]
    fn short_or_wide_selections_are_dense() {
        let history = &mut SearchHistory::default();
        let cheapest = |plan| (plan, Reason::Cheapest);
        assert_eq!(plan(&shape(128, 16, false), history), cheapest(Plan::Dense));
        assert_eq!(
            plan(&shape(8192, 4096, true), history),
            cheapest(Plan::Dense)
        );
        assert_eq!(
            plan(&shape(8192, 256, false), history),
            cheapest(Plan::SketchScan)
        );
    }

    #[test]
    fn a_tree_is_tried_and_kept_only_while_it_pays() {
        let mut history = SearchHistory::default();
        let long = shape(100_000, 256, true);
        let probe = (Plan::Tree, Reason::Probe);
        assert_eq!(plan(&long, &mut history), probe);
        history.note_descent(&[(97, 95), (3125, 3000)], true);
        let mut scans = 0;
        while plan(&long, &mut history) == (Plan::SketchScan, Reason::Cheapest) {
            scans += 1;
        }
        assert_eq!(scans, SearchHistory::PROBE_EVERY);
        // Half of the clusters on both levels: the second level costs more than it saves.
        for _ in 0..100 {
            history.note_descent(&[(97, 10), (320, 310)], true);
        }
        let decision = choose(&long, &mut history);
        assert_eq!(decision, Decision::new(Plan::Tree, 1, Reason::Cheapest));
        for _ in 0..100 {
            history.note_descent(&[(97, 50), (1600, 16)], true);
        }
        let decision = choose(&long, &mut history);
        assert_eq!(decision, Decision::new(Plan::Tree, 2, Reason::Cheapest));
    }

    #[test]
    fn product_codes_are_tried_and_kept_only_while_they_pay() {
        let mut history = SearchHistory::default();
        let long = Shape {
            coded_keys: 100_000,
            code_bytes: 900_000,
            ..shape(100_000, 256, false)
        };
        let probe = (Plan::Product, Reason::Probe);
        assert_eq!(plan(&long, &mut history), probe);
        history.note_product(100_000, 1000);
        let scan = (Plan::SketchScan, Reason::Cheapest);
        for _ in 0..SearchHistory::PROBE_EVERY {
            assert_eq!(plan(&long, &mut history), scan);
        }
        assert_eq!(plan(&long, &mut history), probe);
        for _ in 0..100 {
            history.note_product(100_000, 95_000);
        }
        let product = (Plan::Product, Reason::Cheapest);
        assert_eq!(plan(&long, &mut history), product);
    }
}
