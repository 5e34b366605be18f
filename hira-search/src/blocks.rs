//! What a search knows of the keys that it leaves out, by blocks of positions.
//!
//! # Numerics
//!
//! Sums are f32, relative to the tail's reference. Three kinds of terms go in, each at least the weight that it stands for but for
//! what [`UP`] adds at the end:
//!
//! * entries of the scan, which are outward by the kernels' proof and at most `1 + 2.2e-4` times the sum and `2^-124` a key more; when a
//!   threshold rises they are moved to it with an f64 exponential, rounded upwards, at most four times in a part;
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

    /// Writes at most the weight of each block, and what it would be if every unscored key scored in the middle of the block's widest
    /// interval: an unscored key weighs at least `exp(-scale * width)` times what was counted.
    ///
    /// # Numerics
    /// The exponential is good to a relative `2^-15` and is 0 where that is not known. The factors below 1 cover it and what the sums
    /// were rounded up by; the last term covers `2^-121` a key.
    pub fn lowest_into(
        &self,
        kernel: Kernel,
        scale: f32,
        lowest: &mut Vec<f32>,
        middle: &mut Vec<f32>,
    ) {
        lowest.resize(self.len(), 0.0);
        middle.resize(self.len(), 0.0);
        kernel.exp_weights_into(&self.width, -scale, 0.0, lowest);
        let least = self.block_keys as f32 * (8.0 * LEAST * 16.0);
        let sums = self.unscored.iter().zip(&self.scored);
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
    /// The block of the first bin.
    first: usize,
    bins: Vec<Bin>,
}

/// One block's: consecutive keys go into different lanes, so that no addition waits for the one before it.
#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    unscored: [f32; LANES],
    width: [f32; LANES],
    scored: [f32; LANES],
}

const LANES: usize = 2;

/// Keys of a list that are looked at together: what is worked out for them stays on the stack. A buffer that lives from step to step has left the
/// caches by the next one, and filling it then takes several times as long as all the arithmetic.
pub(crate) const CHUNK: usize = 128;

/// Where the keys that are summed count 1, and how weights fall from there.
#[derive(Clone, Copy)]
pub(crate) struct Weighing {
    pub(crate) kernel: Kernel,
    pub(crate) scale: f32,
    pub(crate) reference: f32,
}

impl Weighing {
    /// Calls `add` with the place and the weight of each of the `values` that is below `limit`.
    fn for_each_below(&self, values: &[f32], limit: f32, mut add: impl FnMut(usize, f32)) {
        let (mut places, mut picked, mut weights) = ([0; CHUNK], [0.0; CHUNK], [0.0; CHUNK]);
        for (chunk, values) in values.chunks(CHUNK).enumerate() {
            let places = &mut places[..values.len()];
            let count = (self.kernel).places_within(values, f32::NEG_INFINITY..limit, places);
            let (picked, weights) = (&mut picked[..count], &mut weights[..count]);
            for (picked, &place) in picked.iter_mut().zip(&*places) {
                *picked = values[place as usize];
            }
            self.kernel
                .exp_weights_into(picked, self.scale, self.reference, weights);
            for (&place, &weight) in places.iter().zip(&*weights) {
                let place = CHUNK * chunk + place as usize;
                add(place, if weight > LEAST { weight } else { LEAST });
            }
        }
    }
}

impl BlockSums {
    pub(crate) fn memory_usage(&self) -> usize {
        self.bins.capacity() * size_of::<Bin>()
    }

    /// Empty sums for these blocks.
    pub(crate) fn begin(&mut self, blocks: Range<usize>) {
        self.first = blocks.start;
        self.bins.clear();
        self.bins.resize(blocks.len(), Bin::default());
    }

    /// Adds what a part's scan left out; `factor` moves it to the reference.
    pub(crate) fn add_scanned(&mut self, entries: &[BlockTail], factor: f64) {
        let factor = up(factor);
        for entry in entries {
            let bin = &mut self.bins[entry.block as usize - self.first];
            let weight = entry.sum * factor;
            bin.unscored[0] += if weight > LEAST { weight } else { LEAST };
            let width = &mut bin.width[0];
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
            let blocks = Blocks::of(block_keys);
            weighing.for_each_below(&found.upper, floor, |place, weight| {
                let bin = &mut self.bins[blocks.at(found.slots[place]) - self.first];
                bin.unscored[place % LANES] += weight;
                let width = found.upper[place] - found.lower[place];
                let widest = &mut bin.width[place % LANES];
                *widest = if width > *widest { width } else { *widest };
            });
            return 0.0;
        }
        let mut unblocked = 0.0;
        for (&slot, (&lower, &upper)) in
            found.slots.iter().zip(found.lower.iter().zip(&found.upper))
        {
            if upper >= floor {
                continue;
            }
            let weight = tail::weight(weighing.scale, upper, weighing.reference);
            if apart.holds(slot) {
                unblocked = tail::add(unblocked, weight);
            } else {
                let bin = &mut self.bins[slot as usize / block_keys - self.first];
                bin.unscored[0] += up(weight).max(LEAST);
                bin.width[0] = bin.width[0].max(upper - lower);
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
        let mut count = 0;
        weighing.for_each_below(scores, weighing.reference, |place, weight| {
            let bin = &mut self.bins[blocks.at(position(place)) - self.first];
            bin.scored[place % LANES] += weight;
            count += 1;
        });
        if scores.len() - count > selected.len() {
            let mut selected = selected.iter().peekable();
            for (place, &score) in scores.iter().enumerate() {
                let position = position(place);
                if selected.next_if_eq(&&position).is_none() && score >= weighing.reference {
                    self.bins[blocks.at(position) - self.first].scored[0] += 1.0;
                }
            }
        }
    }

    /// Writes the sums, rounded outward. Returns the sum of them all, `unblocked` included.
    pub(crate) fn finish(&self, block_keys: usize, unblocked: f64, out: &mut TailBlocks) -> f64 {
        let whole = |lanes: [f32; LANES]| (lanes[0] + lanes[1]) * UP;
        out.clear();
        out.block_keys = block_keys;
        out.first = self.first;
        out.unblocked = unblocked;
        out.unscored
            .extend(self.bins.iter().map(|bin| whole(bin.unscored)));
        out.scored
            .extend(self.bins.iter().map(|bin| whole(bin.scored)));
        // A difference of two bounds was rounded once; the kernels' widths are outward already.
        let widest = |[a, b]: [f32; LANES]| (if a > b { a } else { b }).next_up();
        out.width
            .extend(self.bins.iter().map(|bin| widest(bin.width)));
        let mut sums = [0.0; 2];
        for (&unscored, &scored) in out.unscored.iter().zip(&out.scored) {
            sums[0] += f64::from(unscored);
            sums[1] += f64::from(scored);
        }
        // Far fewer than a million additions of `2^-53` each.
        tail::add(unblocked, (sums[0] + sums[1]) * (1.0 + 1e-9))
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
        entry.sum = (entry.sum * factor).next_up().max(LEAST);
    }
}

/// Adds a key that was a candidate of a part and is none any more; `weight` is that of its upper bound.
pub(crate) fn drop_candidate(
    entries: &mut Vec<BlockTail>,
    block: u32,
    weight: f64,
    (lower, upper): (f32, f32),
) {
    let (weight, width) = (up(weight).max(LEAST), (upper - lower).next_up());
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
        drop_candidate(&mut entries, 4, 0.25, (1.0, 1.5));
        drop_candidate(&mut entries, 5, 0.5, (1.0, 3.0));
        drop_candidate(&mut entries, 5, 0.5, (1.0, 2.0));
        assert_eq!(entries.len(), 3);
        assert!(entries[1].sum >= 0.25 && entries[1].width >= 0.5);
        assert!(entries[2].sum >= 1.0 && entries[2].width >= 2.0);
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
