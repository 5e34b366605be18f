//! Tail compensation: the keys that were left out, as the mean values of their blocks.
//!
//! A sparse step that leaves out keys of weight `W_b` in block `b` adds an estimate `W_b'` of it to the softmax denominator, and
//! `W_b'` times the block's mean value (for a part of it, that of the attended keys nearest to the threshold) to the numerator. What that
//! proves is derived in `certificate.rs`; here the ranges of the weights are found and the sums are made.
//!
//! # Numerics
//!
//! Weights are relative to the largest score attended to, in f32. The range of a block comes from two products and a difference whose
//! rounding, `2^-22` of the terms, is in the factors ([`ROUNDING`]); results below the normal range err by less than `2^-149` a block,
//! for which [`TailMass::unblocked`] holds `2^-126` a block.

use std::ops::Range;

use hira_cache::{BlockMeans, HeadCache, MeanRun};
use hira_kernels::{BlockFactors, BlockWeights, DiskRows, Kernel, WEIGHED_BLOCKS};
use hira_search::TailBlocks;

use crate::{sparse::norm, values::add_weighted_values};

/// Covers the roundings of a range in f32.
const ROUNDING: f64 = 1.0 / 1_048_576.0;

/// More weight than this is not compensated: the sums would leave the range of f32. Only a threshold far above every score that is attended to
/// leaves so much out.
const MAX_WEIGHT: f64 = 1e30;

/// Share of the estimates that goes to the mean value of the attended keys nearest to the threshold instead of the blocks' means.
///
/// The keys just below the threshold hold a large part of the tail, and their values are more like those just above it than like the mean of
/// their block. Over the captures (layers 3, 14, 26, exact top-256, median over heads) the relative error falls by a factor of 2.4 without this and of
/// 3.3, 3.6, 3.9 and 3.9 at shares of 0.2, 0.3, 0.4 and 0.5; at top-64 by 1.7, 2.2, 2.5, 2.5, 2.4. Blocks of 16 or 128
/// keys change less: with 128 instead of 64, and keys near up to a weight of 2 instead of 3, the errors of the three layers change by -7, +2 and +8 %.
const NEAR_SHARE: f32 = 0.5;

/// Keys are near to the threshold that weigh less than this many times what a key at the threshold does.
const NEAR_WEIGHT: f32 = 2.0;

/// Buffers of one query's compensation.
#[derive(Debug, Default)]
pub(crate) struct CompensationScratch {
    counted: Counted,
    /// 1 for each attended row that is near to the threshold, 0 for the others.
    near_weights: Vec<f32>,
    /// The weighted sum of the means, and the sum of the values of the attended keys near to the threshold.
    means: Vec<f32>,
    near: Vec<f32>,
    rebased: Vec<u32>,
    weights: BlockWeights,
}

/// Weight of keys that the search counted in the tail and that are attended to nevertheless, by blocks, ascending.
#[derive(Debug, Default)]
struct Counted {
    blocks: Vec<(usize, f32)>,
    block_keys: usize,
    /// The end of the last of them.
    end: usize,
}

impl Counted {
    /// Writes those of the blocks from `start` on to their places in `chunk`.
    fn copy_to(&self, start: usize, chunk: &mut [f32]) {
        let before = self.blocks.partition_point(|&(block, _)| block < start);
        for &(block, weight) in &self.blocks[before..] {
            match chunk.get_mut(block - start) {
                Some(counted) => *counted = weight,
                None => return,
            }
        }
    }
}

/// From weights relative to the search's reference to exact ones relative to the largest attended score, outward: see `certificate.rs`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) tail_low: f64,
    pub(crate) tail_high: f64,
    pub(crate) counted_low: f64,
    pub(crate) counted_high: f64,
}

impl Factors {
    /// About the weight of a key at the reference.
    fn limit(&self) -> f64 {
        (self.tail_low * self.tail_high).sqrt()
    }
}

/// What is known of the weight that was left out, exact weights relative to the largest attended score.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TailMass {
    /// Bounds of the weight of the blocks that were compensated.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// At least the weight of everything else.
    pub(crate) unblocked: f64,
    /// What was added to the denominator, and the number of blocks that it stands for.
    pub(crate) added: f64,
    pub(crate) blocks: usize,
    /// At least `sum of W_b R_b + |W_b - W_b'| ||m_b||` over the compensated blocks.
    pub(crate) spread: f64,
    /// At least `sum of |W_b - W_b'|` over them.
    pub(crate) off: f64,
    /// `beta ||sum of W_b' (m_b - m)||`: how far the share that went to the attended keys near to the threshold, whose mean value is `m`, moved the
    /// numerator.
    pub(crate) moved: f64,
}

/// What compensation needs of a step and of one query's search.
#[derive(Clone)]
pub(crate) struct CompensatedStep<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) head: &'a HeadCache,
    /// Those of its values that were read from disk.
    pub(crate) disk: &'a DiskRows,
    pub(crate) tail: &'a TailBlocks,
    pub(crate) scale: f32,
    /// Positions that the tail knows of.
    pub(crate) searched: Range<usize>,
}

impl CompensationScratch {
    /// Forgets the keys that were counted; blocks are of so many keys.
    pub(crate) fn begin(&mut self, block_keys: usize) {
        self.counted.blocks.clear();
        self.counted.block_keys = block_keys;
        self.counted.end = if block_keys == 0 { usize::MAX } else { 0 };
    }

    /// Notes that the key at `position`, which is after those noted before, is attended to with this weight, although the search counts it in the tail.
    pub(crate) fn count(&mut self, position: usize, weight: f32) {
        let counted = &mut self.counted;
        if position >= counted.end {
            let block = position / counted.block_keys;
            counted.end = (block + 1) * counted.block_keys;
            counted.blocks.push((block, 0.0));
        }
        if let Some((_, sum)) = counted.blocks.last_mut() {
            *sum += weight;
        }
    }

    /// Adds the weighted sum of the values of `attended` rows to `out`, finds the weights of the blocks, and adds what stands for them.
    /// Blocks that reach beyond what was searched have no mean that the query may see, and stay unblocked. None if nothing can be said
    /// of the weights: then nothing stands for them.
    pub(crate) fn attend(
        &mut self,
        step: CompensatedStep<'_>,
        attended: (&[u32], &[f32]),
        factors: Factors,
        out: &mut [f32],
    ) -> Option<TailMass> {
        let near = self.attend_near(&step, attended, factors.limit() as f32, out);
        let mut mass = self.weigh(&step, factors)?;
        let share = if near > 0 { NEAR_SHARE } else { 0.0 };
        // The mean is the sum by their number.
        let added = mass.added as f32 / near.max(1) as f32;
        for ((out, mean), &near) in out.iter_mut().zip(&mut self.means).zip(&self.near) {
            let difference = added * near - *mean;
            *out += *mean + share * difference;
            *mean = difference;
        }
        mass.moved = f64::from(share) * f64::from(norm(&self.means));
        Some(mass)
    }

    /// Adds the weighted sum of the rows' values to `out`, and leaves the sum of the values of those rows in `near` that are near to the threshold, a
    /// key at which weighs `limit`. Returns how many those are.
    ///
    /// With a pass of their own for the near rows, read a second time or left out of the first, a step of 160 us (9 queries, Zen 5) takes 1 to 5 us longer.
    fn attend_near(
        &mut self,
        step: &CompensatedStep<'_>,
        (rows, weights): (&[u32], &[f32]),
        limit: f32,
        out: &mut [f32],
    ) -> usize {
        let near = limit * (1.0 - f32::EPSILON)..limit * NEAR_WEIGHT;
        self.near.clear();
        self.near.resize(out.len(), 0.0);
        self.near_weights.resize(weights.len(), 0.0);
        let count = (step.kernel).flags_within(weights, near, &mut self.near_weights);
        add_weighted_values(
            step.kernel,
            (step.head, step.disk),
            (rows, [weights, &self.near_weights]),
            &mut self.rebased,
            [out, &mut self.near],
        );
        count
    }

    /// Leaves the weighted sum of the blocks' means in `means`.
    fn weigh(&mut self, step: &CompensatedStep<'_>, factors: Factors) -> Option<TailMass> {
        let (means, tail) = (step.head.means(), step.tail);
        let block_factors = block_factors(tail, factors)?;
        let usable = usable(means, &step.searched, tail.first);
        let mut mass = TailMass {
            blocks: usable.len(),
            ..TailMass::default()
        };
        let mut means_sum = std::mem::take(&mut self.means);
        means_sum.clear();
        means_sum.resize(step.head.values().dim(), 0.0);
        let mut unusable = 0.0;
        for start in (0..tail.len()).step_by(WEIGHED_BLOCKS) {
            let chunk = start..tail.len().min(start + WEIGHED_BLOCKS);
            let here = common(&chunk, &usable);
            let blocks = self.weigh_chunk(step, block_factors, chunk.clone());
            blocks.add_to(here.start - start..here.end - start, &mut mass);
            unusable += blocks.highest(0..here.start - start);
            unusable += blocks.highest(here.end - start..chunk.len());
            for run in step.head.means().runs() {
                let stored = run.start..run.start + run.radii.len();
                let found = common(&(tail.first + here.start..tail.first + here.end), &stored);
                if found.is_empty() {
                    continue;
                }
                let (at, first) = (found.start - tail.first - start, found.start - run.start);
                let here = at..at + found.len();
                mass.spread += blocks.spread(here.clone(), &run, first);
                blocks.add_means(here, &run, first, &mut means_sum);
            }
        }
        self.means = means_sum;
        // What underflows, of every block.
        let least = tail.len() as f64 * f64::from(f32::MIN_POSITIVE);
        mass.unblocked = tail.unblocked * factors.tail_high + unusable + least;
        // Three roundings a block in f32, and one of its range.
        mass.spread = mass.spread * (1.0 + 4.0 * ROUNDING) + least;
        mass.off = mass.off * (1.0 + ROUNDING) + least;
        let all = mass.high + mass.unblocked;
        (all < MAX_WEIGHT).then_some(mass)
    }

    /// Finds the weights of the blocks `chunk` of the tail.
    fn weigh_chunk(
        &mut self,
        step: &CompensatedStep<'_>,
        factors: BlockFactors,
        chunk: Range<usize>,
    ) -> Weighed<'_> {
        let (kernel, tail, weights) = (step.kernel, step.tail, &mut self.weights);
        let counted = &mut weights.counted[..chunk.len()];
        counted.fill(0.0);
        self.counted.copy_to(tail.first + chunk.start, counted);
        let lowest = &mut weights.lowest[..chunk.len()];
        let middle = &mut weights.estimates[..chunk.len()];
        tail.lowest_into(kernel, step.scale, chunk.clone(), lowest, middle);
        let (unscored, scored) = (&tail.unscored[chunk.clone()], &tail.scored[chunk]);
        kernel.weigh_blocks(factors, unscored, scored, weights);
        Weighed { kernel, weights }
    }
}

/// [`Factors`] in f32, outward; none if the sums would leave the range of f32.
fn block_factors(tail: &TailBlocks, factors: Factors) -> Option<BlockFactors> {
    let (low, high) = (factors.tail_low, factors.tail_high);
    if high.is_nan() || high >= MAX_WEIGHT {
        return None;
    }
    // A key in no block was counted in none: it may only be taken from the lower ends, which are then lower than need be.
    let counted_low = if tail.unblocked > 0.0 {
        0.0
    } else {
        down(factors.counted_low * (1.0 - ROUNDING))
    };
    Some(BlockFactors {
        low: down(low * (1.0 - ROUNDING)),
        high: up(high * (1.0 + ROUNDING)),
        middle: factors.limit() as f32,
        counted_low,
        counted_high: up(factors.counted_high * (1.0 + ROUNDING)),
    })
}

/// Blocks of a tail whose weights are known.
struct Weighed<'a> {
    kernel: Kernel,
    weights: &'a BlockWeights,
}

impl Weighed<'_> {
    /// At least the weight of those that lie at `here`.
    fn highest(&self, here: Range<usize>) -> f64 {
        if here.is_empty() {
            return 0.0;
        }
        self.kernel.sum_blocks(self.weights, here).highest
    }

    /// Adds those that lie at `here` to what is known of all compensated blocks.
    fn add_to(&self, here: Range<usize>, mass: &mut TailMass) {
        let sums = self.kernel.sum_blocks(self.weights, here);
        mass.low += sums.lowest;
        mass.high += sums.highest;
        mass.added += sums.estimates;
        mass.off += sums.ranges;
    }

    /// `sum of W_b R_b + |W_b - W_b'| ||m_b||` over the blocks at `here`, which are those of a run from its block `first` on.
    ///
    /// With the exact distance from the output, `||m_b - o'||`, instead of two norms the bound would be tighter by 1 to 13 % on the captures (median 3 %), and that takes as
    /// long as everything else here.
    fn spread(&self, here: Range<usize>, run: &MeanRun<'_>, first: usize) -> f64 {
        let in_run = first..first + here.len();
        let weights = [
            &self.weights.highest[here.clone()],
            &self.weights.ranges[here],
        ];
        let geometry = [&run.radii[in_run.clone()], &run.norms[in_run]];
        self.kernel.sum_of_products(weights, geometry)
    }

    /// Adds `sum of W_b' m_b` over the same blocks.
    fn add_means(&self, here: Range<usize>, run: &MeanRun<'_>, first: usize, means: &mut [f32]) {
        let mut rows = [0; WEIGHED_BLOCKS];
        let rows = &mut rows[..here.len()];
        for (row, in_run) in rows.iter_mut().zip(first as u32..) {
            *row = in_run;
        }
        let estimates = &self.weights.estimates[here];
        (self.kernel).weighted_sum_into(estimates, run.means, rows, means);
    }
}

/// What two ranges have in common; where that is nothing, an empty part of the first.
fn common(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = b.start.clamp(a.start, a.end);
    start..b.end.clamp(start, a.end)
}

/// Blocks that are complete, and all of whose positions were searched; counted from block `first`, the first of which a position was searched.
fn usable(means: &BlockMeans, searched: &Range<usize>, first: usize) -> Range<usize> {
    let keys = means.block_keys().max(1);
    let start = searched.start.div_ceil(keys);
    let end = (searched.end / keys).min(means.len()).max(start);
    start - first..end - first
}

/// An f32 that is not below `x`.
fn up(x: f64) -> f32 {
    (x as f32).next_up()
}

/// A non-negative f32 that is not above `x`.
fn down(x: f64) -> f32 {
    (x as f32).next_down().max(0.0)
}
