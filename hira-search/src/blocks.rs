//! What a search knows of the keys that it leaves out, by blocks of positions.
//!
//! # Numerics
//!
//! Sums are f32, relative to the tail's reference. Three kinds of terms go in, each at least the weight that it stands for but for
//! what [`UP`] adds at the end:
//!
//! * entries of the scan, which are outward by the kernels' proof and at most `1 + 2.2e-4` times the sum and `2^-124` a key more; when a
//!   threshold rises they are moved to it with an f64 exponential, rounded upwards, at most four times in a part, and what is dropped then
//!   joins them, its weight an upper bound in f64, rounded to f32;
//! * weights of [`Kernel::exp_weights_into`], to a relative `2^-16` (its exponential is good to `2^-22`, its argument rounds twice, and
//!   above -87 that is `87 * 2^-23 < 1.1e-5`); where they may have been flushed to zero, [`LEAST`] takes their place.
//!
//! A block of `n` keys has at most `2 n + 4` terms, `n <= 1024`, so that summing loses less than `2100 * 2^-24 < 2^-12`: what is lost is
//! less than the share [`UP`] adds. What is too much is less than `2.2e-4 + 2^-16 + 2^-12 + 2^-11`, within [`SLACK`], and the
//! terms that are smallest numbers: `2^-124` for a key and for each of its terms.

use std::ops::Range;

use hira_index::HierarchicalIndex;
use hira_kernels::{BlockTail, Candidates, Kernel};

use crate::tail;
use crate::visible::{Seen, Visible};

/// At least every weight that a kernel flushes to zero: `exp(-87) < 2^-125`.
const LEAST: f32 = 2.350_988_7e-38;

/// Outward factor of finished sums.
const UP: f32 = 1.0 + 1.0 / 2048.0;

/// Finished sums are above what they bound by less than this share (and by `2^-121` a key).
const SLACK: f32 = 1.0 / 512.0;

/// Bounds on the weight of the keys that were not selected, by blocks of positions.
///
/// # Units
/// Weights are `exp(scale * (score - reference))` with the reference of the [`Tail`](crate::Tail). Block `b` holds positions
/// `b * block_keys ..`; here come those that hold a visible position, the first of which is block [`first`](Self::first).
///
/// # Numerics
/// The weights of all blocks and [`unblocked`](Self::unblocked) together are at least that of every visible key that was not selected.
/// Each such key is counted in one place: among the scored or the unscored keys of its block, or in `unblocked`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TailBlocks {
    /// Positions of a block; 0 where nothing was asked for or nothing is left out, and then everything here is empty.
    pub block_keys: usize,
    /// The block that comes first here: that of the first visible position.
    pub first: usize,
    /// At least the weight of the block's keys that were never scored.
    pub unscored: Vec<f32>,
    /// At least the difference of the two bounds of the score of each of them.
    pub width: Vec<f32>,
    /// The weight of the block's keys that were scored and not selected, from above, by less than a share of `2^-9`.
    pub scored: Vec<f32>,
    /// At least the weight of the keys that are in no block: those of segments that are not in time order, and those of pruned clusters
    /// and tiles.
    pub unblocked: f64,
}

impl TailBlocks {
    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.unscored.len()
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.unscored.is_empty()
    }

    /// Writes at most the weight of each of some `blocks`, and what it would be if every unscored key scored in the middle of the block's widest
    /// interval: an unscored key weighs at least `exp(-scale * width)` times what was counted.
    ///
    /// # Numerics
    /// The exponential is good to a relative `2^-15` and is 0 where that is not known. The factors below 1 cover it and what the sums
    /// were rounded up by; the last term covers `2^-121` a key.
    ///
    /// # Panics
    /// If there are no such blocks, or `lowest` or `middle` has not one place for each.
    pub fn lowest_into(
        &self,
        kernel: Kernel,
        scale: f32,
        blocks: Range<usize>,
        lowest: &mut [f32],
        middle: &mut [f32],
    ) {
        assert_eq!(middle.len(), blocks.len(), "one place for each block");
        kernel.exp_weights_into(&self.width[blocks.clone()], -scale, 0.0, lowest);
        let least = self.block_keys as f32 * (8.0 * LEAST * 16.0);
        let sums = (self.unscored[blocks.clone()].iter()).zip(&self.scored[blocks]);
        for ((lowest, middle), (&unscored, &scored)) in lowest.iter_mut().zip(middle).zip(sums) {
            let share = *lowest;
            let sum = (unscored * share + scored) * (1.0 - SLACK) - least;
            *lowest = if sum > 0.0 { sum } else { 0.0 };
            *middle = unscored * share.sqrt() + scored;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.block_keys = 0;
        self.first = 0;
        self.unscored.clear();
        self.width.clear();
        self.scored.clear();
        self.unblocked = 0.0;
    }
}

/// Sums of blocks in the making.
#[derive(Debug, Default)]
pub(crate) struct BlockSums {
    /// The block that comes first.
    first: usize,
    /// Of the unscored keys of each block, and then of the scored ones. Those of consecutive keys are in different lanes: an addition to the sum that
    /// was written just before waits for it.
    sums: Vec<[f32; LANES]>,
    width: Vec<f32>,
    waiting: Waiting,
}

const LANES: usize = 2;

/// Keys of a list that are looked at together.
pub(crate) const CHUNK: usize = 128;

/// Keys that are weighed together, with one call for their exponentials.
const WEIGHED: usize = 512;

/// Where the keys that are summed count 1, and how weights fall from there.
#[derive(Clone, Copy)]
pub(crate) struct Weighing {
    pub(crate) kernel: Kernel,
    pub(crate) scale: f32,
    pub(crate) reference: f32,
}

/// Keys that wait to be weighed: their values, and where their weights go.
#[derive(Debug, Default)]
struct Waiting {
    len: usize,
    values: Vec<f32>,
    weights: Vec<f32>,
    places: Vec<u32>,
}

impl Waiting {
    fn begin(&mut self) {
        self.len = 0;
        // Room for a chunk that comes when there are almost as many as are weighed together.
        let room = WEIGHED + CHUNK;
        self.values.resize(room, 0.0);
        self.weights.resize(room, 0.0);
        self.places.resize(room, 0);
    }

    /// Adds those of up to [`CHUNK`] values that are below `limit`, and returns where their places in `values` are, to be replaced by where their weights go.
    fn push(&mut self, kernel: Kernel, values: &[f32], limit: f32) -> &mut [u32] {
        let room = self.len..self.len + values.len();
        let (places, picked) = (&mut self.places[room.clone()], &mut self.values[room]);
        let count = kernel.pick_within(values, f32::NEG_INFINITY..limit, places, picked);
        self.len += count;
        &mut places[..count]
    }

    /// Adds the weights of all that wait to their sums.
    fn weigh(&mut self, weighing: Weighing, sums: &mut [[f32; LANES]]) {
        let Weighing {
            kernel,
            scale,
            reference,
        } = weighing;
        let (values, weights) = (&self.values[..self.len], &mut self.weights[..self.len]);
        kernel.exp_weights_into(values, scale, reference, weights);
        for (i, (&weight, &place)) in weights.iter().zip(&self.places).enumerate() {
            sums[place as usize][i % LANES] += if weight > LEAST { weight } else { LEAST };
        }
        self.len = 0;
    }
}

impl BlockSums {
    pub(crate) fn memory_usage(&self) -> usize {
        let waiting = self.waiting.values.capacity() + self.waiting.weights.capacity();
        let lists = LANES * self.sums.capacity() + self.width.capacity();
        size_of::<f32>() * (lists + waiting + self.waiting.places.capacity())
    }

    /// Empty sums for these blocks.
    pub(crate) fn begin(&mut self, blocks: Range<usize>) {
        self.first = blocks.start;
        self.sums.clear();
        self.sums.resize(2 * blocks.len(), [0.0; LANES]);
        self.width.clear();
        self.width.resize(blocks.len(), 0.0);
        self.waiting.begin();
    }

    /// Adds the weights of those `values` that are below `limit`: their keys lie at `position`, the sums of their kind from `first_sum` on. Returns how
    /// many those are. They wait to be [weighed](Self::weigh) with others.
    fn add_below(
        &mut self,
        weighing: Weighing,
        (values, limit): (&[f32], f32),
        position: impl Fn(usize) -> u32,
        (blocks, first_sum): (Blocks, usize),
    ) -> usize {
        let mut below = 0;
        for (chunk, values) in values.chunks(CHUNK).enumerate() {
            let places = self.waiting.push(weighing.kernel, values, limit);
            for place in &mut *places {
                let block = blocks.at(position(CHUNK * chunk + *place as usize));
                *place = (block - self.first + first_sum) as u32;
            }
            below += places.len();
            if self.waiting.len >= WEIGHED {
                self.waiting.weigh(weighing, &mut self.sums);
            }
        }
        below
    }

    /// Weighs what waits for it: to be called before the sums are used.
    pub(crate) fn weigh(&mut self, weighing: Weighing) {
        self.waiting.weigh(weighing, &mut self.sums);
    }

    /// Adds what a part's scan left out; `factor` moves it to the reference.
    pub(crate) fn add_scanned(&mut self, entries: &[BlockTail], factor: f64) {
        let factor = up(factor);
        for entry in entries {
            let block = entry.block as usize - self.first;
            let weight = entry.sum * factor;
            let weight = if weight > LEAST { weight } else { LEAST };
            self.sums[block][0] += if entry.sum > 0.0 { weight } else { 0.0 };
            let width = &mut self.width[block];
            *width = if entry.width > *width {
                entry.width
            } else {
                *width
            };
        }
    }

    /// Adds those candidates whose upper bound misses `floor`, which is not above the reference. Returns the weight of those that are in no
    /// block.
    pub(crate) fn add_bounded(
        &mut self,
        found: &Candidates,
        floor: f32,
        (block_keys, apart): (usize, &Apart),
        weighing: Weighing,
    ) -> f64 {
        if apart.is_empty() {
            let values = (&found.upper[..], floor);
            let unscored = (Blocks::of(block_keys), 0);
            self.add_below(weighing, values, |place| found.slots[place], unscored);
            return 0.0;
        }
        let mut unblocked = 0.0;
        for (&slot, &upper) in found.slots.iter().zip(&found.upper) {
            if upper >= floor {
                continue;
            }
            let weight = tail::weight(weighing.scale, upper, weighing.reference);
            if apart.holds(slot) {
                unblocked = tail::add(unblocked, weight);
            } else {
                self.sums[slot as usize / block_keys - self.first][0] += up(weight).max(LEAST);
            }
        }
        unblocked
    }

    /// Adds the scored keys, at ascending positions (of each place in `scores`), that are not among the `selected`: those below the reference, and its ties beyond the
    /// selected ones.
    pub(crate) fn add_scored(
        &mut self,
        position: impl Fn(usize) -> u32,
        scores: &[f32],
        selected: &[u32],
        block_keys: usize,
        weighing: Weighing,
    ) {
        let blocks = Blocks::of(block_keys);
        let first_scored = self.width.len();
        let values = (scores, weighing.reference);
        let below = self.add_below(weighing, values, &position, (blocks, first_scored));
        if scores.len() - below > selected.len() {
            let mut selected = selected.iter().peekable();
            for (place, &score) in scores.iter().enumerate() {
                let position = position(place);
                if selected.next_if_eq(&&position).is_none() && score >= weighing.reference {
                    self.sums[first_scored + blocks.at(position) - self.first][0] += 1.0;
                }
            }
        }
    }

    /// Writes the sums, rounded outward. Returns the sum of them all, `unblocked` included.
    pub(crate) fn finish(&self, block_keys: usize, unblocked: f64, out: &mut TailBlocks) -> f64 {
        let whole = |&[a, b]: &[f32; LANES]| (a + b) * UP;
        let (unscored, scored) = self.sums.split_at(self.width.len());
        out.clear();
        out.block_keys = block_keys;
        out.first = self.first;
        out.unblocked = unblocked;
        out.unscored.extend(unscored.iter().map(whole));
        out.scored.extend(scored.iter().map(whole));
        out.width.extend_from_slice(&self.width);
        let mut sums = [0.0; 8];
        for (chunk, unscored) in out.unscored.chunks(8).enumerate() {
            let scored = &out.scored[8 * chunk..];
            for ((sum, &unscored), &scored) in sums.iter_mut().zip(unscored).zip(scored) {
                *sum += f64::from(unscored) + f64::from(scored);
            }
        }
        // Far fewer than a million additions of `2^-53` each.
        tail::add(unblocked, sums.iter().sum::<f64>() * (1.0 + 1e-9))
    }
}

/// The block of a position.
#[derive(Clone, Copy)]
enum Blocks {
    /// Blocks of a power of two: a shift, where a division would take longer than everything else.
    Shift(u32),
    Divide(u32),
}

impl Blocks {
    fn of(block_keys: usize) -> Self {
        if block_keys.is_power_of_two() {
            Self::Shift(block_keys.trailing_zeros())
        } else {
            Self::Divide(block_keys as u32)
        }
    }

    #[inline(always)]
    fn at(self, position: u32) -> usize {
        match self {
            Self::Shift(shift) => (position >> shift) as usize,
            Self::Divide(keys) => (position / keys) as usize,
        }
    }
}

/// The slots that belong to no block: those of segments whose slots are not in time order, or that do not start with a block.
#[derive(Debug, Default)]
pub(crate) struct Apart {
    slots: Vec<Range<u32>>,
}

impl Apart {
    pub(crate) fn memory_usage(&self) -> usize {
        self.slots.capacity() * size_of::<Range<u32>>()
    }

    fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Finds them among the visible segments.
    pub(crate) fn find(&mut self, index: &HierarchicalIndex, seen: Seen, block_keys: usize) {
        self.slots.clear();
        if block_keys == 0 {
            return;
        }
        for visible in Visible::segments(index, seen) {
            if !visible.in_blocks(block_keys) {
                let start = visible.segment.start();
                let end = start + visible.segment.len();
                self.slots.push(start as u32..end as u32);
            }
        }
    }

    pub(crate) fn holds(&self, slot: u32) -> bool {
        self.slots.iter().any(|slots| slots.contains(&slot))
    }
}

/// Moves the entries of a part from the threshold `from` to the higher one `to`.
pub(crate) fn raise(entries: &mut [BlockTail], scale: f32, from: f32, to: f32) {
    let factor = up(factor(scale, from, to));
    for entry in entries {
        if entry.sum > 0.0 {
            entry.sum = (entry.sum * factor).next_up().max(LEAST);
        }
    }
}

/// Notes a key that is a candidate of a part: its block's width covers it.
pub(crate) fn note_candidate(entries: &mut Vec<BlockTail>, block: u32, bounds: (f32, f32)) {
    add_key(entries, block, 0.0, bounds);
}

/// Adds a key that is no candidate of a part; `weight` is that of its upper bound.
pub(crate) fn add_other(entries: &mut Vec<BlockTail>, block: u32, weight: f64, bounds: (f32, f32)) {
    add_key(entries, block, up(weight).max(LEAST), bounds);
}

fn add_key(entries: &mut Vec<BlockTail>, block: u32, weight: f32, (lower, upper): (f32, f32)) {
    let width = (upper - lower).next_up();
    match entries.last_mut() {
        Some(last) if last.block == block => {
            last.sum = (last.sum + weight).next_up();
            last.width = last.width.max(width);
        }
        _ => entries.push(BlockTail {
            block,
            sum: weight,
            width,
        }),
    }
}

/// Adds keys that were candidates of a part and are none any more, in order: their blocks are there, and their widths.
pub(crate) struct Dropped<'a> {
    entries: &'a mut [BlockTail],
    at: usize,
}

impl<'a> Dropped<'a> {
    pub(crate) fn new(entries: &'a mut [BlockTail]) -> Self {
        Self { entries, at: 0 }
    }

    /// Adds a key of a `block`, which is not before that of the key before; `weight` is that of its upper bound.
    pub(crate) fn add(&mut self, block: u32, weight: f64) {
        // A part scans in order, so the entries ascend, too. Where a block has two, either will do.
        while self.entries[self.at].block < block {
            self.at += 1;
        }
        let weight = weight as f32;
        self.entries[self.at].sum += if weight > LEAST { weight } else { LEAST };
    }
}

/// At least `exp(scale * (from - to))`, by less than a share of `2e-12`, for `from <= to`.
///
/// The argument, two roundings, errs by less than `1e-13` where the result is not below `2^-1000`; there the smallest normal
/// number stands in for it.
pub(crate) fn factor(scale: f32, from: f32, to: f32) -> f64 {
    let exponent = f64::from(scale) * (f64::from(from) - f64::from(to));
    (exponent.exp() * (1.0 + 1e-12)).max(f64::MIN_POSITIVE)
}

/// An f32 that is not below `x`.
fn up(x: f64) -> f32 {
    let rounded = x as f32;
    if f64::from(rounded) < x {
        rounded.next_up()
    } else {
        rounded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_find_their_block() {
        for block_keys in [16, 48, 64] {
            let blocks = Blocks::of(block_keys);
            for position in [0u32, 47, 48, 63, 64, 95, 96, 1000] {
                assert_eq!(blocks.at(position), position as usize / block_keys);
            }
        }
    }

    #[test]
    fn ties_beyond_the_selected_weigh_one_each() {
        let mut sums = BlockSums::default();
        sums.begin(0..2);
        let weighing = Weighing {
            kernel: Kernel::best(),
            scale: 0.5,
            reference: 1.0,
        };
        let positions = [0, 3, 16, 20, 31];
        sums.add_scored(
            |place| positions[place],
            &[1.0, 2.0, 1.0, -1.0, 1.0],
            &[0, 3],
            16,
            weighing,
        );
        sums.weigh(weighing);
        let mut out = TailBlocks::default();
        sums.finish(16, 0.0, &mut out);
        assert_eq!(out.scored[0], 0.0);
        let exact = 2.0 + (-1.0f32).exp();
        assert!(out.scored[1] >= exact && out.scored[1] < exact * 1.001);
    }

    #[test]
    fn a_raised_threshold_keeps_the_weight_of_every_block() {
        let entry = |block, sum| BlockTail {
            block,
            sum,
            width: 0.5,
        };
        let mut entries = vec![entry(0, 3.0), entry(4, 1e-30)];
        raise(&mut entries, 0.5, 1.0, 3.0);
        let exact = 3.0 * (-1.0f64).exp();
        assert!(
            f64::from(entries[0].sum) >= exact && f64::from(entries[0].sum) < exact * 1.000_001
        );
        // what underflows still counts
        raise(&mut entries, 1.0, 0.0, 1e6);
        assert!(entries.iter().all(|entry| entry.sum >= LEAST));
        let mut dropped = Dropped::new(&mut entries);
        dropped.add(0, 0.25);
        dropped.add(4, 0.25);
        dropped.add(4, 0.5);
        assert!(f64::from(entries[0].sum) >= exact * (-5e5f64).exp() + 0.25);
        assert!(entries[1].sum >= 0.75 && entries[1].sum < 0.750_001);
    }

    #[test]
    fn a_blocks_width_is_that_of_its_candidates_too() {
        let mut entries = Vec::new();
        note_candidate(&mut entries, 4, (1.0, 1.5));
        assert_eq!((entries.len(), entries[0].sum), (1, 0.0));
        raise(&mut entries, 1.0, 0.0, 1.0);
        assert_eq!(entries[0].sum, 0.0, "no key to count");
        add_other(&mut entries, 5, 0.5, (1.0, 3.0));
        add_other(&mut entries, 5, 0.5, (1.0, 2.0));
        note_candidate(&mut entries, 5, (1.0, 4.0));
        assert_eq!(entries.len(), 2);
        assert!(entries[0].width >= 0.5);
        assert!(entries[1].sum >= 1.0 && entries[1].width >= 3.0);
    }

    #[test]
    fn factors_are_never_too_small() {
        for (scale, from, to) in [
            (0.125f32, -3.0f32, 7.5f32),
            (1.0, 1.0, 1.0),
            (2.0, f32::MIN, f32::MAX),
            (0.5, f32::NEG_INFINITY, 0.0),
        ] {
            let exact = (f64::from(scale) * (f64::from(from) - f64::from(to))).exp();
            let bound = factor(scale, from, to);
            assert!(bound >= exact && bound > 0.0 && bound <= exact * (1.0 + 3e-12) + 1e-307);
        }
    }

    #[test]
    fn the_least_weight_is_above_what_is_flushed() {
        assert!(f64::from(LEAST) > (-87.0f64).exp() && LEAST >= f32::MIN_POSITIVE);
    }
}
