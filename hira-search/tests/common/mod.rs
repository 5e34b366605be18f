//! Keys of every difficult kind, and the check that every search must pass.
#![allow(dead_code, reason = "every test binary uses a part")]

use hira_index::{HierarchicalIndex, IndexConfig};
use hira_kernels::Kernel;
use hira_search::{
    HalfspaceSearcher, Plan, PlanChoice, Positions, Scratch, SearchConfig, Selection, search_naive,
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
    let config = config.with_tail_block(tail_block(visible));
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

/// Lengths of blocks by which tails are asked for, one after another; 0 asks for none.
pub(crate) fn tail_block(turn: usize) -> usize {
    [64, 16, 0, 48, 128][turn % 5]
}

/// Says what is wrong with the tail of a selection by blocks: together they must bound the weight of what was left out, and each alone from both
/// sides if every key is in one.
pub(crate) fn check_blocks(
    first: usize,
    scores: &[f32],
    scale: f32,
    block_keys: usize,
    selection: &Selection,
) -> Result<(), String> {
    let (blocks, tail) = (&selection.blocks, selection.tail);
    let left_out = scores.len() - selection.len();
    if block_keys == 0 || scale == 0.0 || left_out == 0 {
        return match blocks.is_empty() && blocks.unblocked == 0.0 {
            true => Ok(()),
            false => Err(format!("blocks that nobody asked for: {blocks:?}")),
        };
    }
    let from = first / block_keys;
    let count = (first + scores.len()).div_ceil(block_keys) - from;
    let lengths = [&blocks.unscored, &blocks.width, &blocks.scored].map(Vec::len);
    if (blocks.block_keys, blocks.first, lengths) != (block_keys, from, [count; 3]) {
        return Err(format!("{lengths:?} blocks of {}", blocks.block_keys));
    }
    let (mut lowest, mut middle) = (vec![0.0; count], vec![0.0; count]);
    blocks.lowest_into(Kernel::best(), scale, 0..count, &mut lowest, &mut middle);
    let mut selected = selection.positions.iter().peekable();
    let (mut whole, mut bound) = (0.0, blocks.unblocked);
    for (block, &lowest) in lowest.iter().enumerate() {
        let mut sum = 0.0;
        let mut keys = 0;
        let start = ((from + block) * block_keys).max(first);
        let end = ((from + block + 1) * block_keys).min(first + scores.len());
        for position in start..end {
            let score = scores[position - first];
            let position = position as u32;
            if selected.next_if_eq(&&position).is_none() {
                sum += (f64::from(scale) * (f64::from(score) - f64::from(tail.reference))).exp();
                keys += 1;
            }
        }
        let highest = f64::from(blocks.unscored[block]) + f64::from(blocks.scored[block]);
        let unblocked = blocks.unblocked > 0.0;
        if highest < sum * (1.0 - 1e-12) && !unblocked {
            return Err(format!("block {block} weighs {sum}, not {highest}"));
        }
        if f64::from(lowest) > sum * (1.0 + 1e-12) {
            return Err(format!("block {block} weighs {sum}, not {lowest}"));
        }
        if highest > f64::from(keys) * 1.002 + 1e-30 {
            return Err(format!("block {block}: {highest} for {keys} keys"));
        }
        if !blocks.width[block].is_finite() || blocks.width[block] < 0.0 {
            return Err(format!("block {block}: width {}", blocks.width[block]));
        }
        whole += sum;
        bound += highest;
    }
    if bound < whole * (1.0 - 1e-11) {
        return Err(format!("all blocks weigh {whole}, not {bound}"));
    }
    Ok(())
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
    visible: impl Into<Positions>,
    rule: &dyn Threshold,
    scale: f32,
    selection: &Selection,
) {
    let range: Positions = visible.into();
    let visible = range.len();
    let (positions, scores) =
        search_naive(index, query, range.first..range.end, rule).expect("a valid search");
    assert_eq!(selection.positions, positions, "{:?}", selection.stats);
    for (found, expected) in selection.scores.iter().zip(&scores) {
        assert_eq!(found.to_bits(), expected.to_bits());
    }
    let stats = selection.stats;
    assert_eq!(
        (stats.stored, stats.visible, stats.selected, stats.truncated),
        (index.positions().len(), visible, positions.len(), false)
    );
    assert!(stats.survivors >= stats.selected && stats.survivors <= visible);
    assert_tail(index, query, range, scale, selection);
}

/// Asserts that the tail bounds the weight of what was left out, from a sum in f64, and by no more than one a key.
pub(crate) fn assert_tail(
    index: &HierarchicalIndex,
    query: &[f32],
    visible: impl Into<Positions>,
    scale: f32,
    selection: &Selection,
) {
    let range: Positions = visible.into();
    let (first, visible) = (range.first, range.len());
    let tail = selection.tail;
    let left_out = visible - selection.len();
    assert!(tail.reference.is_finite());
    let mut scores = vec![0.0; visible];
    for (position, score) in scores.iter_mut().enumerate() {
        let key = index.key(first + position).expect("a stored key");
        *score = Kernel::Scalar.score(query, key);
    }
    let block_keys = selection.blocks.block_keys;
    let by_blocks = check_blocks(first, &scores, scale, block_keys, selection);
    assert_eq!(by_blocks, Ok(()), "{:?}", selection.stats);
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
    for (position, &score) in scores.iter().enumerate() {
        if selected
            .next_if(|&&at| at as usize == first + position)
            .is_some()
        {
            continue;
        }
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
