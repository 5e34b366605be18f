//! Which plan answers a query: a small cost model over what is read.

use serde::{Deserialize, Serialize};

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
/// A sketch scan whatever its length: the sample, the candidates.
const SCAN: f64 = 33_000.0;
/// A byte of the sketch, for a group.
const SCAN_BYTE: f64 = 0.14;
/// Exactly scored keys for each selected one.
const SURVIVORS: f64 = 1.3;
/// A key read out of order, and each of its bytes.
const GATHER: f64 = 9.0;
const GATHER_BYTE: f64 = 0.05;
/// Below this many keys a tree is not probed.
const TREE_MIN_KEYS: usize = 32_768;
/// Group searches between two probes of the tree plan.
const PROBE_EVERY: u32 = 256;
/// A tree must have saved at least this fraction of the sketch's bytes.
const TREE_GAIN: f64 = 0.1;
/// So must a pass over the product codes: half of what it saves goes to tables, marks and shorter runs.
const PRODUCT_GAIN: f64 = 0.5;

/// What the model knows of one group search.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) visible: usize,
    pub(crate) dim: usize,
    pub(crate) queries: usize,
    /// Keys to be selected, if the rule says so.
    pub(crate) count: Option<usize>,
    /// Whether any visible segment has coarse levels.
    pub(crate) coarse: bool,
    /// Whether any visible segment has product codes.
    pub(crate) product: bool,
}

/// Running counts of the searches made with one scratch: keep one scratch a KV head to make them meaningful.
#[derive(Debug, Clone)]
pub(crate) struct History {
    /// Exactly scored keys over visible keys, for fixed thresholds; a moving average.
    survivors: f64,
    /// Fraction of the sketch's bytes that the last tree plan saved, less what it read of the levels.
    tree_gain: f64,
    /// Searches since then.
    since_tree: u32,
    /// Bytes a visible key that the last product plan read in its first pass.
    product_bytes: f64,
    /// Fraction of the visible keys whose tiles that pass ruled out.
    ruled_out: f64,
    /// Searches since then.
    since_product: u32,
}

impl Default for History {
    fn default() -> Self {
        Self {
            survivors: 0.02,
            tree_gain: 0.0,
            since_tree: PROBE_EVERY,
            product_bytes: 0.0,
            ruled_out: 0.0,
            since_product: PROBE_EVERY / 2,
        }
    }
}

impl History {
    /// Picks the cheaper plan by what it reads.
    ///
    /// Dense reads `4 D` bytes a key for the whole group, a scan `D + 4` and then a row for every survivor of every query: at 8,192
    /// keys they break even near a top-2,400.
    /// The tree plan is tried once in [`PROBE_EVERY`] searches of long indexes with coarse levels, and kept while its measured gain
    /// is above [`TREE_GAIN`]; so is the product plan, where there are codes. On attention keys it is not: at 8,192 keys balls and boxes prune almost nothing.
    pub(crate) fn choose(&mut self, shape: Shape) -> Plan {
        let keys = shape.visible as f64;
        let (dim, queries) = (shape.dim as f64, shape.queries as f64);
        let selected = match shape.count {
            Some(count) => count as f64,
            None => self.survivors * keys,
        };
        let dense = keys * (4.0 * dim * DENSE_BYTE + queries * DENSE_SELECT);
        let gathered = SURVIVORS * selected * (GATHER + 4.0 * dim * GATHER_BYTE);
        let scan = SCAN + keys * (dim + 4.0) * SCAN_BYTE + queries * gathered;
        if dense <= scan {
            return Plan::Dense;
        }
        if shape.visible < TREE_MIN_KEYS {
            return Plan::SketchScan;
        }
        if shape.coarse {
            self.since_tree = self.since_tree.saturating_add(1);
            if self.since_tree > PROBE_EVERY || self.tree_gain > TREE_GAIN {
                return Plan::Tree;
            }
        }
        if shape.product {
            self.since_product = self.since_product.saturating_add(1);
            let gain = self.ruled_out - self.product_bytes / (dim + 4.0);
            if self.since_product > PROBE_EVERY || gain > PRODUCT_GAIN {
                return Plan::Product;
            }
        }
        Plan::SketchScan
    }

    /// Notes what a tree plan read and skipped.
    pub(crate) fn note_tree(&mut self, visible: usize, dim: usize, opened: usize, skipped: usize) {
        let sketch = (dim + 4) as f64;
        // A cluster holds a centroid, a box and a radius.
        let levels = opened as f64 * (12 * dim + 4) as f64;
        self.tree_gain = (skipped as f64 * sketch - levels) / (visible as f64 * sketch);
        self.since_tree = 0;
    }

    /// Notes what the first pass of a product plan read and ruled out.
    pub(crate) fn note_product(&mut self, visible: usize, bytes: usize, skipped: usize) {
        self.product_bytes = bytes as f64 / visible as f64;
        self.ruled_out = skipped as f64 / visible as f64;
        self.since_product = 0;
    }

    /// Notes the fraction of keys that a fixed threshold left to be scored.
    pub(crate) fn note_survivors(&mut self, fraction: f64) {
        self.survivors += (fraction - self.survivors) / 8.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(visible: usize, count: usize, coarse: bool) -> Shape {
        Shape {
            visible,
            dim: 64,
            queries: 3,
            count: Some(count),
            coarse,
            product: false,
        }
    }

    #[test]
    fn short_or_wide_selections_are_dense() {
        let mut history = History::default();
        assert_eq!(history.choose(shape(128, 16, true)), Plan::Dense);
        assert_eq!(history.choose(shape(8192, 4096, true)), Plan::Dense);
        assert_eq!(history.choose(shape(8192, 256, true)), Plan::SketchScan);
    }

    #[test]
    fn the_tree_is_probed_and_kept_only_while_it_pays() {
        let mut history = History::default();
        let long = shape(100_000, 256, true);
        assert_eq!(history.choose(shape(100_000, 256, false)), Plan::SketchScan);
        assert_eq!(history.choose(long), Plan::Tree);
        history.note_tree(100_000, 64, 3000, 1000);
        for _ in 0..PROBE_EVERY {
            assert_eq!(history.choose(long), Plan::SketchScan);
        }
        assert_eq!(history.choose(long), Plan::Tree);
        history.note_tree(100_000, 64, 1000, 90_000);
        assert_eq!(history.choose(long), Plan::Tree);
    }

    #[test]
    fn product_codes_are_probed_and_kept_only_while_they_pay() {
        let mut history = History::default();
        let long = Shape {
            product: true,
            ..shape(100_000, 256, false)
        };
        let mut plans = (0..PROBE_EVERY).map(|_| history.choose(long));
        assert!(plans.any(|plan| plan == Plan::Product));
        history.note_product(100_000, 900_000, 40_000);
        for _ in 0..PROBE_EVERY {
            assert_eq!(history.choose(long), Plan::SketchScan);
        }
        assert_eq!(history.choose(long), Plan::Product);
        history.note_product(100_000, 900_000, 90_000);
        assert_eq!(history.choose(long), Plan::Product);
    }
}
