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
use hira_kernels::{DiskRows, Kernel};
use hira_search::TailBlocks;

use crate::values::add_weighted_values;

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

/// Attended rows that are looked at together, on the stack: a buffer that lives from step to step has left the caches by the next one.
const NEAR_CHUNK: usize = 128;

/// Buffers of one query's compensation.
#[derive(Debug, Default)]
pub(crate) struct CompensationScratch {
    /// The first block of the tail: what is kept by blocks here begins with it.
    first: usize,
    /// At most the weight of a block: of all keys that the search counted, relative to its reference, and then of those left out.
    lowest: Vec<f32>,
    /// Weight of keys that the search counted and that are attended to nevertheless.
    counted: Vec<f32>,
    /// The estimates `W_b'`, and how far from the truth they may be.
    estimates: Vec<f32>,
    ranges: Vec<f32>,
    /// At most the truth.
    highest: Vec<f32>,
    /// 0, 1, 2 and so on.
    rows: Vec<u32>,
    /// Each block's share of the spread.
    products: Vec<f32>,
    /// The weighted sum of the means, and the mean value of the attended keys near to the threshold.
    means: Vec<f32>,
    near: Vec<f32>,
    rebased: Vec<u32>,
}

/// From weights relative to the search's reference to exact ones relative to the largest attended score, outward: see `certificate.rs`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) tail_low: f64,
    pub(crate) tail_high: f64,
    pub(crate) counted_low: f64,
    pub(crate) counted_high: f64,
}

/// What is known of the weight that was left out, exact weights relative to the largest attended score.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TailMass {
    /// Bounds of the weight of the blocks that were compensated.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// At least the weight of everything else.
    pub(crate) unblocked: f64,
    /// What was added to the denominator, and the blocks that it stands for, of which there are [`blocks`](Self::blocks).
    pub(crate) added: f64,
    pub(crate) first_block: usize,
    pub(crate) blocks: usize,
    /// At least `sum of W_b R_b + |W_b - W_b'| ||m_b - o'||` over the compensated blocks, `o'` the output.
    pub(crate) spread: f64,
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
    /// Forgets the keys that were counted; the tail has so many `blocks` from block `first` on.
    pub(crate) fn begin(&mut self, first: usize, blocks: usize) {
        self.first = first;
        self.counted.clear();
        self.counted.resize(blocks, 0.0);
    }

    /// Notes that the key at `position` is attended to with this weight, although the search counts it in the tail.
    pub(crate) fn count(&mut self, position: usize, block_keys: usize, weight: f32) {
        let block = (position / block_keys.max(1)).checked_sub(self.first);
        if let Some(counted) = block.and_then(|block| self.counted.get_mut(block)) {
            *counted += weight;
        }
    }

    /// Finds the weights of the blocks, and adds what stands for them to `out`, the weighted sum of the values of `attended` rows, given with
    /// their weights. Blocks that reach beyond what was searched have no mean that the query may see, and stay unblocked. None if nothing can be said
    /// of the weights.
    pub(crate) fn add_to(
        &mut self,
        step: CompensatedStep<'_>,
        attended: (&[u32], &[f32]),
        factors: Factors,
        out: &mut [f32],
    ) -> Option<TailMass> {
        let mut mass = self.weigh(&step, factors)?;
        let kernel = step.kernel;
        self.means.clear();
        self.means.resize(out.len(), 0.0);
        for run in step.head.means().runs() {
            let blocks = mass.blocks_of(&run);
            if blocks.is_empty() {
                continue;
            }
            let in_run = (blocks.start - run.start) as u32..(blocks.end - run.start) as u32;
            self.rows.clear();
            self.rows.extend(in_run);
            let estimates = &self.estimates[blocks.start - self.first..blocks.end - self.first];
            kernel.weighted_sum_into(estimates, run.means, &self.rows, &mut self.means);
        }
        let near = self.find_near(
            &step,
            attended,
            (factors.tail_low * factors.tail_high).sqrt(),
        );
        let share = if near { NEAR_SHARE } else { 0.0 };
        let added = mass.added as f32;
        let mut moved = 0.0;
        for ((out, &mean), &near) in out.iter_mut().zip(&self.means).zip(&self.near) {
            let difference = added * near - mean;
            moved += f64::from(difference) * f64::from(difference);
            *out += mean + share * difference;
        }
        mass.moved = f64::from(share) * moved.sqrt();
        Some(mass)
    }

    /// Leaves the mean value of the attended keys near to the threshold in `near`, or zeros and false if there is none. `limit` is the weight of a
    /// key at the threshold.
    fn find_near(
        &mut self,
        step: &CompensatedStep<'_>,
        (rows, weights): (&[u32], &[f32]),
        limit: f64,
    ) -> bool {
        let limit = limit as f32;
        let (least, most) = (limit * (1.0 - f32::EPSILON), limit * NEAR_WEIGHT);
        self.near.clear();
        self.near.resize(step.head.values().dim(), 0.0);
        let (mut near_rows, mut total) = ([0; NEAR_CHUNK], 0);
        for (rows, weights) in rows.chunks(NEAR_CHUNK).zip(weights.chunks(NEAR_CHUNK)) {
            let near_rows = &mut near_rows[..rows.len()];
            let count = (step.kernel).places_within(weights, least..most, near_rows);
            for row in &mut near_rows[..count] {
                *row = rows[*row as usize];
            }
            add_weighted_values(
                step.kernel,
                (step.head, step.disk),
                (&near_rows[..count], &[1.0; NEAR_CHUNK][..count]),
                &mut self.rebased,
                &mut self.near,
            );
            total += count;
        }
        let share = 1.0 / total.max(1) as f32;
        self.near.iter_mut().for_each(|near| *near *= share);
        total > 0
    }

    fn weigh(&mut self, step: &CompensatedStep<'_>, factors: Factors) -> Option<TailMass> {
        let CompensatedStep {
            kernel,
            head,
            tail,
            scale,
            ref searched,
            ..
        } = *step;
        let means = head.means();
        let (low, high) = (factors.tail_low, factors.tail_high);
        if high.is_nan() || high >= MAX_WEIGHT {
            return None;
        }
        let middle = (low * high).sqrt() as f32;
        tail.lowest_into(kernel, scale, &mut self.lowest, &mut self.estimates);
        let low = down(low * (1.0 - ROUNDING));
        let high = up(high * (1.0 + ROUNDING));
        // A key in no block was counted in none: it may only be taken from the lower ends, which are then lower than need be.
        let counted_low = if tail.unblocked > 0.0 {
            0.0
        } else {
            down(factors.counted_low * (1.0 - ROUNDING))
        };
        let counted_high = up(factors.counted_high * (1.0 + ROUNDING));
        let blocks = tail.len();
        for values in [&mut self.ranges, &mut self.highest] {
            values.resize(blocks, 0.0);
        }
        let sums = tail.unscored.iter().zip(&tail.scored).zip(&self.counted);
        let ends = self.lowest.iter_mut().zip(&mut self.highest);
        let results = ends.zip(self.estimates.iter_mut().zip(&mut self.ranges));
        for (((lowest, highest), (estimate, range)), ((&unscored, &scored), &counted)) in
            results.zip(sums)
        {
            let most = (unscored + scored) * high - counted * counted_low;
            let least = *lowest * low - counted * counted_high;
            *highest = if most > 0.0 { most } else { 0.0 };
            let least = if least > 0.0 { least } else { 0.0 };
            *lowest = least;
            let between = *estimate * middle - counted;
            let between = if between > least { between } else { least };
            let between = if between < *highest {
                between
            } else {
                *highest
            };
            *estimate = between;
            let (above, below) = (*highest - between, between - least);
            *range = if above > below { above } else { below };
        }
        let usable = usable(means, searched, self.first);
        let unusable = sum(&self.highest[..usable.start]) + sum(&self.highest[usable.end..]);
        let unblocked = tail.unblocked * factors.tail_high + unusable;
        let added = sum(&self.estimates[usable.clone()]);
        let mass = TailMass {
            low: sum(&self.lowest[usable.clone()]),
            high: sum(&self.highest[usable.clone()]),
            unblocked: unblocked + blocks as f64 * f64::from(f32::MIN_POSITIVE),
            added,
            first_block: self.first + usable.start,
            blocks: usable.len(),
            spread: f64::INFINITY,
            moved: 0.0,
        };
        let all = mass.high + mass.unblocked;
        if all.is_nan() || all >= MAX_WEIGHT {
            return None;
        }
        Some(mass)
    }

    /// At least `sum of W_b R_b + |W_b - W_b'| (||m_b|| + ||out||)` over the compensated blocks.
    ///
    /// The exact distance `||m_b - out||` would tighten the bound by 1 to 13 % on the captures (median 3 %), and takes as long as everything else here.
    pub(crate) fn spread(&mut self, means: &BlockMeans, mass: &TailMass, out_norm: f32) -> f64 {
        let mut spread = 0.0;
        for run in means.runs() {
            let blocks = mass.blocks_of(&run);
            if blocks.is_empty() {
                continue;
            }
            self.products.resize(blocks.len(), 0.0);
            let here = blocks.start - self.first..blocks.end - self.first;
            let weights = self.highest[here.clone()].iter().zip(&self.ranges[here]);
            let in_run = blocks.start - run.start..blocks.end - run.start;
            let geometry = run.radii[in_run.clone()].iter().zip(&run.norms[in_run]);
            let products = self.products.iter_mut().zip(weights.zip(geometry));
            for (product, ((&highest, &range), (&radius, &norm))) in products {
                *product = highest * radius + range * (norm + out_norm);
            }
            spread += sum(&self.products);
        }
        // Four roundings a block in f32, and what underflows.
        spread * (1.0 + 4.0 * ROUNDING) + mass.blocks as f64 * f64::from(f32::MIN_POSITIVE)
    }
}

impl TailMass {
    /// The compensated blocks that lie in a run of means.
    fn blocks_of(&self, run: &MeanRun<'_>) -> Range<usize> {
        let end = self.first_block + self.blocks;
        self.first_block.max(run.start)..end.min(run.start + run.radii.len())
    }
}

/// Blocks that are complete, and all of whose positions were searched; counted from block `first`, the first of which a position was searched.
fn usable(means: &BlockMeans, searched: &Range<usize>, first: usize) -> Range<usize> {
    let keys = means.block_keys().max(1);
    let start = searched.start.div_ceil(keys);
    let end = (searched.end / keys).min(means.len()).max(start);
    start - first..end - first
}

/// In four lanes, so that no addition waits for the one before it.
fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0; 4];
    let (blocks, rest) = values.as_chunks::<4>();
    for block in blocks {
        for (lane, &value) in lanes.iter_mut().zip(block) {
            *lane += f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value)).sum::<f64>()
}

/// An f32 that is not below `x`.
fn up(x: f64) -> f32 {
    (x as f32).next_up()
}

/// A non-negative f32 that is not above `x`.
fn down(x: f64) -> f32 {
    (x as f32).next_down().max(0.0)
}
