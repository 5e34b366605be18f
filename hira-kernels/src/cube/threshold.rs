//! The threshold of a step: a score that enough keys are proven to reach.

use cubecl::prelude::*;

use super::bounds::LOWEST;
use super::radix::{BUCKETS, clear, of_rank, pick, rank};
use super::scan::{CONSTANTS, band};
use super::shape::KEYS;

/// Words of a query's cut: bits of the threshold for upper bounds and of the score that selects, the highest position that does among those that
/// tie with it, and bits of the threshold that weights of the tail are relative to.
pub(super) const CUT: usize = 4;

/// Writes a cut whose selecting score is that of the threshold.
#[cube]
pub(super) fn write_cut(cuts: &mut Array<u32>, query: usize, tau: f32) {
    cuts[query * CUT] = u32::reinterpret(tau);
    cuts[query * CUT + 1] = u32::reinterpret(tau);
    cuts[query * CUT + 2] = u32::MAX;
    cuts[query * CUT + 3] = u32::reinterpret(tau);
}

/// One unit a query: the same threshold for all.
#[cube(launch)]
pub(super) fn threshold_fixed(cuts: &mut Array<u32>, tau: f32) {
    let query = ABSOLUTE_POS;
    if query < cuts.len() / CUT {
        write_cut(cuts, query, tau);
    }
}

/// One cube a query: the `k`-th largest of the lower bounds, or of the largest ones of groups of `4 * fold` keys, which is no larger.
///
/// `k` groups whose largest reaches a threshold have at least `k` keys that do, so the threshold is certified either way. `entries` is
/// the number of maxima, all chunks together, and `fold` divides it; with a `fold` of 0 the bounds of the `entries` keys themselves are used. `1 <= k` and
/// there are at least `k` groups.
#[cube(launch)]
pub(super) fn threshold_top(
    estimates: &Array<f32>,
    maxima: &Array<f32>,
    parameters: &Array<u32>,
    constants: &Array<f32>,
    cuts: &mut Array<u32>,
    k: u32,
    entries: u32,
    fold: u32,
    capacity: u32,
    work_capacity: u32,
    #[comptime] group: usize,
) {
    let mut counts = SharedMemory::<Atomic<u32>>::new(BUCKETS);
    let mut sums = SharedMemory::<u32>::new(BUCKETS);
    let mut found = SharedMemory::<u32>::new(2usize);

    let query = CUBE_POS_X as usize;
    let head_row = query / group * capacity as usize;
    let row = query * work_capacity as usize;
    let maxima_row = row / KEYS;
    let (norm, slack) = (
        constants[query * CONSTANTS],
        constants[query * CONSTANTS + 1],
    );
    let groups = entries / max(fold, 1u32);

    let mut wanted = k;
    let mut prefix = 0u32;
    #[unroll]
    for round in 0..4u32 {
        let shift = comptime!(24 - 8 * round);
        clear(&mut counts);
        let mut i = UNIT_POS;
        while i < groups {
            let mut value = f32::new(LOWEST);
            if fold == 0u32 {
                let key = i as usize;
                value = estimates[row + key] - band(parameters[head_row + key], norm, slack);
            } else {
                // Far apart, as the keys of a unit are.
                for j in 0..fold {
                    value = max(value, maxima[maxima_row + (i + j * groups) as usize]);
                }
            }
            let bits = rank(value);
            let mut candidate = true;
            if comptime!(round > 0) {
                candidate = bits >> comptime!(32 - 8 * round) == prefix;
            }
            if candidate {
                counts[((bits >> shift) & 0xffu32) as usize].fetch_add(1u32);
            }
            i += comptime!(BUCKETS as u32);
        }
        let (bucket, rest) = pick(&counts, &mut sums, &mut found, wanted);
        prefix = (prefix << 8u32) | bucket;
        wanted = rest;
        sync_cube();
    }
    if UNIT_POS == 0u32 {
        write_cut(cuts, query, of_rank(prefix));
    }
}

/// One cube a query: the exact `k`-th largest score of the survivors, and among those that tie with it the highest position that is selected.
///
/// `splits` lists of survivors, `split_keys` apart; those of one list are in the order of their positions, and so are the lists.
#[cube(launch)]
pub(super) fn settle_top(
    scores: &Array<f32>,
    positions: &Array<u32>,
    counts_of: &Array<u32>,
    cuts: &mut Array<u32>,
    k: u32,
    splits: u32,
    split_keys: u32,
    work_capacity: u32,
) {
    let mut counts = SharedMemory::<Atomic<u32>>::new(BUCKETS);
    let mut sums = SharedMemory::<u32>::new(BUCKETS);
    let mut found = SharedMemory::<u32>::new(2usize);

    let query = CUBE_POS_X as usize;
    let row = query * work_capacity as usize;
    let mut wanted = k;
    let mut prefix = 0u32;
    let mut ties = 0u32;
    let mut lists = splits;
    // The score in four rounds, then the position: the lowest first, so its bits are turned round.
    #[unroll]
    for round in 0..8u32 {
        let shift = comptime!(24 - 8 * (round % 4));
        clear(&mut counts);
        for split in 0..lists {
            let count = counts_of[query * splits as usize + split as usize];
            let first = row + (split * split_keys) as usize;
            let mut i = UNIT_POS;
            while i < count {
                let score = rank(scores[first + i as usize]);
                let mut bits = score;
                let mut candidate = true;
                if comptime!(round >= 4) {
                    bits = !positions[first + i as usize];
                    candidate = score == ties;
                }
                if comptime!(round % 4 > 0) {
                    candidate = candidate && bits >> comptime!(32 - 8 * (round % 4)) == prefix;
                }
                if candidate {
                    counts[((bits >> shift) & 0xffu32) as usize].fetch_add(1u32);
                }
                i += comptime!(BUCKETS as u32);
            }
        }
        let (bucket, rest) = pick(&counts, &mut sums, &mut found, wanted);
        prefix = (prefix << 8u32) | bucket;
        wanted = rest;
        if comptime!(round == 3) {
            ties = prefix;
            prefix = 0u32;
            // All that tie are selected: no position has to be found.
            if counts[bucket as usize].load() == wanted {
                lists = 0u32;
            }
        }
        sync_cube();
    }
    if UNIT_POS == 0u32 {
        cuts[query * CUT + 1] = u32::reinterpret(of_rank(ties));
        cuts[query * CUT + 2] = select(lists == 0u32, u32::MAX, !prefix);
    }
}
