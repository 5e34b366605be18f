//! The keys whose upper bounds reach the threshold: their positions and exact scores, and the weight of all others.

use cubecl::prelude::*;

use crate::Precision;

use super::bounds::{LEAST_LOGIT, LOWEST};
use super::marks::{CHUNK_WORDS, is_marked, row_of};
use super::rows::Strides;
use super::scan::{CONSTANTS, band};
use super::shape::{BLOCK, CHUNK, KEYS, UNITS};
use super::threshold::CUT;
use super::words::{Lanes, Words, quad, sum_lanes};

/// Floats that a split keeps of its tail, before `Dv` sums of mean values: the weight that means stand for, at least the weight of all,
/// and the largest score of a survivor.
pub(super) const TAIL: usize = 3;

/// Blocks of a chunk.
const BLOCKS: usize = CHUNK / BLOCK;

/// Units that share a block.
const BLOCK_UNITS: usize = BLOCK / KEYS;

/// Sum of the counts of all units before this one, and of all units. [`UNITS`] units; begins and ends with a barrier.
#[cube]
fn before(sums: &mut SharedMemory<u32>, own: u32) -> (u32, u32) {
    let unit = UNIT_POS as usize;
    sync_cube();
    sums[unit] = own;
    sync_cube();
    let mut reach = 1usize;
    #[unroll]
    for _ in 0..8usize {
        let mut add = 0u32;
        if unit >= reach {
            add = sums[unit - reach];
        }
        sync_cube();
        sums[unit] += add;
        sync_cube();
        reach *= 2;
    }
    (sums[unit] - own, sums[comptime!(UNITS as usize - 1)])
}

/// The score of a key in the host's canonical order, for the first of the four units that share it: lane `l` of sixteen takes dimensions
/// `16 b + l` in the order of `b`, then a tree adds lane `l` and lane `l + half`. A unit has four lanes.
///
/// Ends with a barrier.
#[cube]
fn canonical_score(
    query: &SharedMemory<Lanes>,
    keys: &Array<Words>,
    row: usize,
    partials: &mut SharedMemory<Lanes>,
    #[comptime] dim: usize,
    #[comptime] precision: Precision,
) -> f32 {
    let unit = UNIT_POS as usize;
    let lane = unit % 4;
    let mut sums = Lanes::new(0.0f32);
    for block in 0..comptime!(dim / 16) {
        let q = query[4 * block + lane];
        let k = quad(keys, row, 4 * block + lane, precision);
        sums = fma(q, k, sums);
    }
    partials[unit] = sums;
    sync_cube();
    let mut score = 0.0f32;
    if lane == 0 {
        let sum = sum_lanes(
            (partials[unit] + partials[unit + 2]) + (partials[unit + 1] + partials[unit + 3]),
        );
        // One zero, so that scores that are equal tie.
        score = select(sum == 0.0f32, 0.0f32, sum);
    }
    sync_cube();
    score
}

/// One cube a query and split of whole chunks; a unit looks at four neighbouring keys of a chunk.
///
/// Writes the survivors of a split in the order of their positions from where the split begins, their exact scores beside them, and how many there
/// are; sinks and window are among them. If rows were staged for the step, only keys that are marked survive: should this kernel round a bound
/// up where [`mark`](super::marks::mark) did not, the key's score is proven not to matter either way, and it is of the tail. `tails` gets [`TAIL`] floats and `value_dim` sums a split.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn survivors<F: Float>(
    queries: &Array<F>,
    keys: &Array<Words>,
    means: &Array<f32>,
    parameters: &Array<u32>,
    estimates: &Array<f32>,
    constants: &Array<f32>,
    cuts: &Array<u32>,
    positions: &mut Array<u32>,
    scores: &mut Array<f32>,
    counts: &mut Array<u32>,
    tails: &mut Array<f32>,
    marks: &Array<u32>,
    ranks: &Array<u32>,
    strides: &Strides,
    heads_per_batch: u32,
    scale: f32,
    sinks: u32,
    window_start: u32,
    len: u32,
    chunks_a_split: u32,
    capacity: u32,
    work_capacity: u32,
    #[comptime] group: usize,
    #[comptime] dim: usize,
    #[comptime] value_dim: usize,
    #[comptime] precision: Precision,
    #[comptime] compensate: bool,
    #[comptime] staged: bool,
    #[define(F)] _element: StorageType,
) {
    let row_vectors = comptime!(dim * precision.bytes() / 16);
    let mut rows = SharedMemory::<Lanes>::new(comptime!(dim / 4));
    let mut partials = SharedMemory::<Lanes>::new(comptime!(UNITS as usize));
    let mut list = SharedMemory::<u32>::new(CHUNK);
    let mut sums = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let mut weights = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let mut of_block = SharedMemory::<f32>::new(BLOCKS);

    let unit = UNIT_POS as usize;
    let query = CUBE_POS_Y as usize;
    let split = CUBE_POS_X as usize;
    let head = query / group;
    let head_row = head * capacity as usize;
    let row = query * work_capacity as usize;
    let (norm, slack) = (
        constants[query * CONSTANTS],
        constants[query * CONSTANTS + 1],
    );
    let (tau, reference) = (
        f32::reinterpret(cuts[query * CUT]),
        f32::reinterpret(cuts[query * CUT + 3]),
    );

    let from = strides.row(head as u32, heads_per_batch, 0u32) + query % group * dim;
    if unit < comptime!(dim / 4) {
        let mut values = Lanes::empty();
        #[unroll]
        for i in 0..4usize {
            values[i] = f32::cast_from(queries[from + 4 * unit + i]);
        }
        rows[unit] = values;
    }
    sync_cube();

    let first_chunk = split * chunks_a_split as usize;
    let list_at = row + first_chunk * CHUNK;
    let chunks = (len as usize).div_ceil(CHUNK);
    let words = chunks * CHUNK_WORDS;
    let end_chunk = min(first_chunk + chunks_a_split as usize, chunks);
    let mut filled = 0usize;
    let mut largest = f32::new(LOWEST);
    let mut upper_weight = 0.0f32;
    let mut mean_weight = 0.0f32;
    let mut column = 0.0f32;

    for chunk in first_chunk..end_chunk {
        let first = chunk * CHUNK + KEYS * unit;
        let mut kept = Array::<bool>::new(KEYS);
        let mut own = 0u32;
        let mut estimated = 0.0f32;
        #[unroll]
        for i in 0..KEYS {
            let position = (first + i) as u32;
            kept[i] = false;
            if position < len {
                let estimate = estimates[row + first + i];
                let upper = estimate + band(parameters[head_row + first + i], norm, slack);
                let mut survives = upper >= tau || position < sinks || position >= window_start;
                if staged {
                    survives = survives && is_marked(marks, head, words, position);
                }
                if survives {
                    kept[i] = true;
                    own += 1u32;
                } else {
                    upper_weight += max(scale * (upper - reference), LEAST_LOGIT).exp();
                    if compensate {
                        estimated += max(scale * (estimate - reference), LEAST_LOGIT).exp();
                    }
                }
            }
        }
        let (mut slot, found) = before(&mut sums, own);
        #[unroll]
        for i in 0..KEYS {
            if kept[i] {
                list[slot as usize] = (first + i) as u32;
                slot += 1u32;
            }
        }
        if compensate {
            weights[unit] = estimated;
        }
        sync_cube();

        if compensate {
            if unit < BLOCKS {
                let mut sum = 0.0f32;
                for i in 0..BLOCK_UNITS {
                    sum += weights[unit * BLOCK_UNITS + i];
                }
                let complete = (chunk * BLOCKS + unit + 1) * BLOCK <= len as usize;
                sum = select(complete, sum, 0.0f32);
                of_block[unit] = sum;
                mean_weight += sum;
            }
            sync_cube();
            if unit < value_dim {
                let block_row = head_row / BLOCK + chunk * BLOCKS;
                for b in 0..BLOCKS {
                    let weight = of_block[b];
                    // The mean of an incomplete block is not there.
                    if weight > 0.0f32 {
                        column += weight * means[(block_row + b) * value_dim + unit];
                    }
                }
            }
        }

        // Sixty-four survivors at a time, four units each.
        let mut at = 0usize;
        while at < found as usize {
            let entry = at + unit / 4;
            let quarter = unit % 4;
            let position = list[min(entry, found as usize - 1)];
            let at_row = row_of(marks, ranks, head, head_row, words, position, staged);
            let key_row = at_row * row_vectors;
            let score = canonical_score(&rows, keys, key_row, &mut partials, dim, precision);
            if quarter == 0 && entry < found as usize {
                positions[list_at + filled + entry] = position;
                scores[list_at + filled + entry] = score;
                largest = max(largest, score);
            }
            at += comptime!(UNITS as usize / 4);
        }
        filled += found as usize;
    }

    // Largest score and both weights of the split.
    let mut totals = Lanes::empty();
    totals[0] = mean_weight;
    totals[1] = upper_weight;
    totals[2] = largest;
    totals[3] = 0.0f32;
    sync_cube();
    partials[unit] = totals;
    sync_cube();
    let mut half = comptime!(UNITS as usize / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = partials[unit + half];
            let mut mine = partials[unit];
            mine[0] += other[0];
            mine[1] += other[1];
            mine[2] = max(mine[2], other[2]);
            partials[unit] = mine;
        }
        sync_cube();
        half /= 2;
    }
    let slot = query * CUBE_COUNT_X as usize + split;
    let tail = slot * comptime!(TAIL + value_dim);
    if unit == 0 {
        let total = partials[0];
        tails[tail] = total[0];
        tails[tail + 1] = total[1];
        tails[tail + 2] = total[2];
        counts[slot] = filled as u32;
    }
    if compensate && unit < value_dim {
        tails[tail + TAIL + unit] = column;
    }
}
