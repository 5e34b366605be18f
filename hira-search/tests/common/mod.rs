//! Keys of every difficult kind, and the check that every search must pass.
#![allow(dead_code, reason = "every test binary uses a part")]

use hira_index::{HierarchicalIndex, IndexConfig};
use hira_kernels::Kernel;
use hira_search::{
    HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, Selection, search_naive,
};
use hira_threshold::{Cut, RuleInput, Threshold, ThresholdError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What the rows of a case look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rows {
    /// Uniform in a cube, off the origin.
    Plain,
    /// Small integers: exact ties everywhere.
    Integers,
    /// A handful of distinct rows.
    Duplicates,
    /// Nothing but zeros, with a rare plain row.
    Zeros,
    /// Norms from 1e-20 to 1e15.
    Norms,
    /// Subnormal and near-subnormal values.
    Subnormal,
    /// Tight clusters far from each other.
    Clusters,
    /// One outlier that stretches every scale.
    Outlier,
}

/// All kinds.
pub(crate) const ROWS: [Rows; 8] = [
    Rows::Plain,
    Rows::Integers,
    Rows::Duplicates,
    Rows::Zeros,
    Rows::Norms,
    Rows::Subnormal,
    Rows::Clusters,
    Rows::Outlier,
];

/// `rows` rows of dimension `dim`.
pub(crate) fn rows(kind: Rows, rows: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut out = Vec::with_capacity(rows * dim);
    let centre: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let pool: Vec<f32> = (0..5 * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let outlier = rng.random_range(0..rows.max(1));
    for row in 0..rows {
        let exponent: f32 = rng.random_range(-20.0..15.0);
        let chosen = rng.random_range(0..5usize);
        let rare = rng.random_range(0..40) == 0;
        for column in 0..dim {
            let unit: f32 = rng.random_range(-1.0..1.0);
            out.push(match kind {
                Rows::Plain => unit + centre[column],
                Rows::Integers => (unit * 2.5).round(),
                Rows::Duplicates => pool[chosen * dim + column],
                Rows::Zeros => {
                    if rare {
                        unit
                    } else {
                        0.0
                    }
                }
                Rows::Norms => unit * 10f32.powf(exponent),
                Rows::Subnormal => unit * f32::MIN_POSITIVE * if rare { 100.0 } else { 0.01 },
                Rows::Clusters => 10.0 * pool[chosen * dim + column] + 0.01 * unit,
                Rows::Outlier => {
                    if row == outlier {
                        1e6 * unit
                    } else {
                        unit
                    }
                }
            });
        }
    }
    out
}

/// An index over `keys`, appended as one batch.
pub(crate) fn build(config: IndexConfig, kernel: Kernel, keys: &[f32]) -> HierarchicalIndex {
    let mut index = HierarchicalIndex::with_kernel(config, kernel).expect("a valid shape");
    index.append(keys).expect("valid keys");
    index
}

/// Every choice of plan.
pub(crate) const PLANS: [PlanChoice; 5] = [
    PlanChoice::Auto,
    PlanChoice::Force(Plan::Dense),
    PlanChoice::Force(Plan::SketchScan),
    PlanChoice::Force(Plan::Tree),
    PlanChoice::Force(Plan::Product),
];

/// A rule of one's own that looks at the sample, and counts for some queries only: those whose first sampled score is odd.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mixed {
    pub(crate) k: usize,
}

impl Threshold for Mixed {
    fn validate(&self) -> Result<(), ThresholdError> {
        Ok(())
    }

    fn needs_sample(&self) -> bool {
        true
    }

    fn cut(&self, input: &RuleInput<'_>) -> Cut {
        match input.sample.first() {
            Some(first) if first.to_bits() % 2 == 1 => Cut::Top { k: self.k },
            _ => Cut::AtLeast {
                tau: input.sample.iter().copied().fold(f32::MIN, f32::max) / 2.0,
            },
        }
    }
}

/// One group search.
pub(crate) fn search(
    index: &HierarchicalIndex,
    queries: &[f32],
    visible: usize,
    rule: &dyn Threshold,
    scale: f32,
    config: SearchConfig,
) -> Vec<Selection> {
    let searcher = HalfspaceSearcher::new(config).expect("valid settings");
    let mut out = vec![Selection::default(); queries.len() / index.dim()];
    searcher
        .search_group_with(
            index,
            queries,
            visible,
            rule,
            scale,
            &mut Scratch::new(),
            &mut out,
        )
        .expect("a valid search");
    out
}

/// Positions and the bits of the scores.
pub(crate) fn bits(selection: &Selection) -> (Vec<u32>, Vec<u32>) {
    let scores = selection.scores.iter().map(|score| score.to_bits());
    (selection.positions.clone(), scores.collect())
}

/// Asserts that `selection` is what brute force finds, and that its tail bounds what was left out.
pub(crate) fn assert_exact(
    index: &HierarchicalIndex,
    query: &[f32],
    visible: usize,
    rule: &dyn Threshold,
    scale: f32,
    selection: &Selection,
) {
    let (positions, scores) = search_naive(index, query, visible, rule).expect("a valid search");
    assert_eq!(selection.positions, positions, "{:?}", selection.stats);
    for (found, expected) in selection.scores.iter().zip(&scores) {
        assert_eq!(found.to_bits(), expected.to_bits());
    }
    let stats = selection.stats;
    assert_eq!(
        (stats.stored, stats.visible, stats.selected, stats.truncated),
        (index.len(), visible, positions.len(), false)
    );
    assert!(stats.survivors >= stats.selected && stats.survivors <= visible);
    assert_tail(index, query, visible, scale, selection);
}

/// Asserts that the tail bounds the weight of what was left out, from a sum in f64, and by no more than one a key.
pub(crate) fn assert_tail(
    index: &HierarchicalIndex,
    query: &[f32],
    visible: usize,
    scale: f32,
    selection: &Selection,
) {
    let tail = selection.tail;
    let left_out = visible - selection.len();
    assert!(tail.reference.is_finite());
    if left_out == 0 {
        assert_eq!(tail.sum, 0.0);
        return;
    }
    if scale == 0.0 {
        assert_eq!(tail.sum, f64::INFINITY);
        return;
    }
    let mut selected = selection.positions.iter().peekable();
    let mut sum = 0.0;
    for position in 0..visible {
        if selected.next_if(|&&at| at as usize == position).is_some() {
            continue;
        }
        let key = index.key(position).expect("a stored key");
        let score = Kernel::Scalar.score(query, key);
        assert!(score <= tail.reference);
        sum += (f64::from(scale) * (f64::from(score) - f64::from(tail.reference))).exp();
    }
    // The oracle's own rounding: half a unit a term and addition, about 1e-16 each.
    assert!(
        tail.sum >= sum * (1.0 - 1e-11),
        "tail {} is below {sum}: {:?}",
        tail.sum,
        selection.stats
    );
    assert!(
        tail.sum <= left_out as f64 * 1.001,
        "tail {} of {left_out} keys: {:?}",
        tail.sum,
        selection.stats
    );
}
