//! A sample of the stored positions, kept while keys come and go.

use std::sync::Arc;

use crate::SampleConfig;
use crate::memory::bytes;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reservoir {
    size: usize,
    seed: u64,
    /// Positions seen so far.
    len: usize,
    /// The sampled positions. Shared by forks until one of them grows, as the log is.
    slots: Arc<Vec<u32>>,
    /// Replacements, ascending by position.
    log: Arc<Vec<Replacement>>,
}

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

    /// Forgets the positions from `len` on, if there are more.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let kept = self.log_before(len);
        if kept < self.log.len() {
            let slots = Arc::make_mut(&mut self.slots);
            undo(slots, &self.log[kept..]);
            Arc::make_mut(&mut self.log).truncate(kept);
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
        undo(out, &self.log[self.log_before(len)..]);
        out.truncate(len);
    }

    /// Number of replacements by positions below `len`.
    fn log_before(&self, len: usize) -> usize {
        self.log
            .partition_point(|replacement| (replacement.position as usize) < len)
    }

    /// Bytes allocated.
    pub(crate) fn memory_usage(&self) -> usize {
        bytes(&self.slots) + bytes(&self.log)
    }
}

/// Takes the latest replacements back, the newest first.
fn undo(slots: &mut [u32], log: &[Replacement]) {
    for replacement in log.iter().rev() {
        slots[replacement.slot as usize] = replacement.previous;
    }
}

/// Uniform in `0..=position`: output number `position` of SplitMix64 started at `seed`, scaled by its upper bits. The
/// bias is below `2^-32`, for positions have 32 bits and the output 64.
fn draw(seed: u64, position: usize) -> usize {
    let step = (position as u64).wrapping_add(1);
    let mut z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((u128::from(z) * u128::from(step)) >> 64) as usize
}
