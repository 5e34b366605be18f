//! A sample of the stored positions, kept while keys come and go.

use std::ops::Range;
use std::sync::Arc;

use hira_kernels::prefetch;

use crate::memory::bytes;
use crate::{Counted, SampleConfig};

/// A uniform sample of `size` positions out of however many are stored: Algorithm R, with a log that can be undone.
///
/// The random number of position `i` is output `i` of a counter-based generator, so the sample of a prefix depends on the
/// seed and the length of the prefix and on nothing else: neither on what was stored and taken back before, nor on how
/// the keys were batched.
///
/// # Algorithm
///
/// The first `size` positions fill the slots in order. Position `i` beyond them draws `j` uniformly from `0..=i`; if
/// `j < size` it takes the place of slot `j`, and the log remembers what was there. By induction every position of a
/// prefix of `n` is sampled with probability `size / n`. To shorten the prefix, the log is undone from its end.
///
/// # Complexity
///
/// O(1) a position. The log holds `size * ln(n / size)` entries on average: a replacement at position `i` has
/// probability `size / (i + 1)`.
///
/// # References
///
/// J. S. Vitter, Random Sampling with a Reservoir, ACM TOMS 11 (1985), section 2 (Algorithm R, due to A. Waterman).
#[derive(Debug, Clone)]
pub(crate) struct Reservoir {
    size: usize,
    seed: u64,
    /// Positions seen so far.
    len: usize,
    /// The sampled positions. Shared by forks until one of them grows, as the log is.
    slots: Arc<Vec<u32>>,
    /// Replacements, ascending by position: those that forks share, which no append touches, and later ones.
    frozen: Arc<Vec<Replacement>>,
    log: Arc<Vec<Replacement>>,
}

/// Later replacements than this are worth a copy of all of them, so that a fork copies no more.
const FROZEN_FROM: usize = 32;

/// `position` took the place of `previous` in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Replacement {
    position: u32,
    slot: u32,
    previous: u32,
}

impl Reservoir {
    pub(crate) fn new(config: SampleConfig) -> Self {
        Self {
            size: config.size,
            seed: config.seed,
            len: 0,
            slots: Arc::default(),
            frozen: Arc::default(),
            log: Arc::default(),
        }
    }

    /// Takes in the positions from where it stands up to `len`.
    pub(crate) fn extend_to(&mut self, len: usize) {
        if self.size == 0 {
            self.len = len;
            return;
        }
        if self.len < self.size {
            let filled = len.min(self.size);
            Arc::make_mut(&mut self.slots).extend(self.len as u32..filled as u32);
        }
        for position in self.len.max(self.size)..len {
            let slot = draw(self.seed, position);
            if slot < self.size {
                let slots = Arc::make_mut(&mut self.slots);
                Arc::make_mut(&mut self.log).push(Replacement {
                    position: position as u32,
                    slot: slot as u32,
                    previous: slots[slot],
                });
                slots[slot] = position as u32;
            }
        }
        self.len = len;
    }

    /// Has the processor fetch what the next position is written to, where that is known.
    pub(crate) fn prefetch_end(&self) {
        if self.slots.len() < self.size {
            prefetch(&self.slots[self.slots.len().saturating_sub(1)..]);
        }
    }

    /// Forgets the positions from `len` on, if there are more.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        for log in [&mut self.log, &mut self.frozen] {
            let kept = before(log, len);
            if kept < log.len() {
                let slots = Arc::make_mut(&mut self.slots);
                undo(slots, &log[kept..]);
                Arc::make_mut(log).truncate(kept);
            }
        }
        if len < self.slots.len() {
            Arc::make_mut(&mut self.slots).truncate(len);
        }
        self.len = len;
    }

    /// Overwrites `out` with the sample of the first `len` positions, slot by slot; that of all of them if there are fewer.
    pub(crate) fn positions_into(&self, len: usize, out: &mut Vec<u32>) {
        out.clear();
        out.extend_from_slice(&self.slots);
        for log in [&self.log, &self.frozen] {
            undo(out, &log[before(log, len)..]);
        }
        out.truncate(len);
    }

    /// Prepares for forks that go on separately: what they copy then is short.
    pub(crate) fn freeze(&mut self) {
        if self.log.len() >= FROZEN_FROM {
            let all = [&self.frozen[..], &self.log[..]].concat();
            self.frozen = Arc::new(all);
            self.log = Arc::default();
        }
    }

    /// Bytes allocated, without what was counted before.
    pub(crate) fn memory_usage(&self, counted: &mut Counted) -> usize {
        let mut total = 0;
        if counted.is_new(&*self.slots) {
            total += bytes(&self.slots);
        }
        for log in [&self.frozen, &self.log] {
            if counted.is_new(&**log) {
                total += bytes(log);
            }
        }
        total
    }
}

/// Overwrites `out` with one position of each of `size` parts of `range` that are equally long up to one position; with all of them if there
/// are no more.
pub(crate) fn sample_parts(config: SampleConfig, range: Range<usize>, out: &mut Vec<u32>) {
    out.clear();
    let len = range.len();
    if len <= config.size {
        out.extend(range.start as u32..range.end.max(range.start) as u32);
        return;
    }
    let bound = |part: usize| range.start + part * len / config.size;
    out.extend((0..config.size).map(|part| {
        let (from, to) = (bound(part), bound(part + 1));
        (from + below(config.seed, from, to - from)) as u32
    }));
}

/// The same sample of as many positions, however its replacements are divided.
impl PartialEq for Reservoir {
    fn eq(&self, other: &Self) -> bool {
        let log = |of: &Self| [&of.frozen[..], &of.log[..]].concat();
        let shape = |of: &Self| (of.size, of.seed, of.len);
        shape(self) == shape(other) && self.slots == other.slots && log(self) == log(other)
    }
}

/// Number of replacements by positions below `len`.
fn before(log: &[Replacement], len: usize) -> usize {
    log.partition_point(|replacement| (replacement.position as usize) < len)
}

/// Takes the latest replacements back, the newest first.
fn undo(slots: &mut [u32], log: &[Replacement]) {
    for replacement in log.iter().rev() {
        slots[replacement.slot as usize] = replacement.previous;
    }
}

/// Uniform in `0..=position`.
fn draw(seed: u64, position: usize) -> usize {
    below(seed, position, position + 1)
}

/// Uniform in `0..limit`: output number `position` of SplitMix64 started at `seed`, scaled by its upper bits. The
/// bias is below `2^-32`, for limits have 32 bits and the output 64.
fn below(seed: u64, position: usize, limit: usize) -> usize {
    let step = (position as u64).wrapping_add(1);
    let mut z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((u128::from(z) * limit as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn grown(size: usize, seed: u64, len: usize) -> Reservoir {
        let mut reservoir = Reservoir::new(SampleConfig { size, seed });
        reservoir.extend_to(len);
        reservoir
    }

    /// Algorithm R as it is written down, from the beginning.
    fn replayed(size: usize, seed: u64, len: usize) -> Vec<u32> {
        let mut slots = Vec::new();
        for position in 0..len {
            if position < size {
                slots.push(position as u32);
            } else if draw(seed, position) < size {
                slots[draw(seed, position)] = position as u32;
            }
        }
        slots
    }

    #[test]
    fn any_history_gives_the_sample_of_the_length() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut out = Vec::new();
        for size in [0, 1, 2, 7, 64, 300] {
            for seed in [0, 1, u64::MAX] {
                let mut reservoir = grown(size, seed, 0);
                let mut forks = Vec::new();
                for _ in 0..60 {
                    let len = reservoir.len;
                    match rng.random_range(0..5) {
                        0 => reservoir.truncate(rng.random_range(0..=len + 3)),
                        1 => forks.push((reservoir.clone(), reservoir.len)),
                        2 => reservoir.freeze(),
                        _ => reservoir.extend_to(len + rng.random_range(0..200)),
                    }
                    assert_eq!(reservoir, grown(size, seed, reservoir.len));
                    let visible = rng.random_range(0..=reservoir.len);
                    for visible in [visible, reservoir.len] {
                        reservoir.positions_into(visible, &mut out);
                        assert_eq!(out, replayed(size, seed, visible), "{size} of {visible}");
                    }
                }
                for (fork, len) in forks {
                    assert_eq!(fork, grown(size, seed, len));
                }
            }
        }
    }

    /// Every part of a range gives one position, and over many seeds every position of it equally often.
    #[test]
    fn parts_of_a_range_are_sampled_evenly() {
        let mut out = Vec::new();
        let config = |size, seed| SampleConfig { size, seed };
        sample_parts(config(5, 1), 10..15, &mut out);
        assert_eq!(out, [10, 11, 12, 13, 14]);
        sample_parts(config(0, 1), 10..15, &mut out);
        assert!(out.is_empty());
        let mut counts = [0u32; 30];
        for seed in 0..8_000 {
            sample_parts(config(8, seed), 100..130, &mut out);
            assert!(out.len() == 8 && out.is_sorted_by(|a, b| a < b));
            out.iter().for_each(|&at| counts[at as usize - 100] += 1);
        }
        for (part, range) in [(0, 0..3), (1, 3..7), (7, 26..30)] {
            assert_eq!(counts[range.clone()].iter().sum::<u32>(), 8_000, "{part}");
            let share = 8_000.0 / range.len() as f64;
            for &count in &counts[range] {
                assert!((f64::from(count) - share).abs() < 5.0 * share.sqrt());
            }
        }
    }

    #[test]
    fn more_positions_than_there_are_mean_all() {
        let reservoir = grown(10, 3, 100);
        let (mut all, mut more) = (Vec::new(), Vec::new());
        reservoir.positions_into(100, &mut all);
        reservoir.positions_into(usize::MAX, &mut more);
        assert_eq!(all, more);
        grown(10, 3, 4).positions_into(9, &mut all);
        assert_eq!(all, [0, 1, 2, 3]);
    }

    /// Over many seeds every position is sampled equally often, and pairs of positions are no more often together than
    /// chance has it. The seeds are fixed, so this either holds or does not.
    #[test]
    fn samples_are_uniform() {
        let (size, len, seeds) = (16, 200, 20_000);
        let mut counts = vec![0u32; len];
        let mut pairs = 0u64;
        let mut out = Vec::new();
        for seed in 0..seeds {
            grown(size, seed, len).positions_into(len, &mut out);
            out.iter()
                .for_each(|&position| counts[position as usize] += 1);
            out.sort_unstable();
            out.dedup();
            assert_eq!(out.len(), size, "a position was sampled twice");
            pairs += out.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() as u64;
        }
        let share = size as f64 / len as f64;
        let expected = seeds as f64 * share;
        let squares = counts
            .iter()
            .map(|&count| (f64::from(count) - expected).powi(2));
        // Sum of squares over the variance of a count: 199 degrees of freedom, a standard deviation of 20.
        let chi = squares.sum::<f64>() / (expected * (1.0 - share));
        assert!((120.0..300.0).contains(&chi), "{chi}");
        // Neighbouring positions, of which there are 199, are both sampled with probability 16/200 * 15/199.
        let expected =
            seeds as f64 * (len - 1) as f64 * share * (size - 1) as f64 / (len - 1) as f64;
        assert!(
            (pairs as f64 - expected).abs() < 5.0 * expected.sqrt(),
            "{pairs} of {expected}"
        );
    }

    /// The log of a long history is what was predicted, and so is the memory: 8 bytes a slot and 24 an entry at most, for a
    /// vector may double.
    #[test]
    fn the_log_grows_with_the_logarithm() {
        for (size, len) in [(256, 1_000_000), (16, 300_000), (1000, 20_000)] {
            let reservoir = grown(size, 0, len);
            // Entries are independent with probability size / i each: the variance is below the mean.
            let expected = size as f64 * (len as f64 / size as f64).ln();
            let entries = reservoir.log.len() as f64;
            assert!(
                (entries - expected).abs() < 5.0 * expected.sqrt(),
                "{entries} of {expected}"
            );
            let most = 8.0 * size as f64 + 24.0 * entries;
            assert!(reservoir.memory_usage(&mut Counted::default()) as f64 <= most);
        }
        assert_eq!(
            grown(0, 0, 1_000_000).memory_usage(&mut Counted::default()),
            0
        );
    }

    #[test]
    fn forks_share_their_memory_until_one_grows() {
        let reservoir = grown(8, 0, 100);
        let mut fork = reservoir.clone();
        assert!(Arc::ptr_eq(&reservoir.slots, &fork.slots));
        fork.extend_to(100);
        assert!(Arc::ptr_eq(&reservoir.log, &fork.log));
        fork.truncate(50);
        assert_eq!(reservoir, grown(8, 0, 100));
        assert_eq!(fork, grown(8, 0, 50));
    }
}
