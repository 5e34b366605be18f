//! Softmax over the survivors that are selected, and their values: one part of a query's answer a cube.

use cubecl::prelude::*;

use crate::Precision;

use super::bounds::LOWEST;
use super::marks::{CHUNK_WORDS, row_of};
use super::shape::{BLOCK, CHUNK, UNITS};
use super::survivors::TAIL;
use super::threshold::CUT;
use super::words::{Lanes, Words, quad};

/// Floats of a part before its `Dv` sums of values: the logit that its weights are relative to, the weight of the keys attended to, the weight
/// that mean values stand for, the weight of the survivors that were not selected, and how many keys were attended to and scored.
pub(super) const PART: usize = 6;

/// Units that add up the values of one key: one for every four columns.
pub(super) const fn columns(value_dim: usize) -> usize {
    value_dim / 4
}

/// Keys whose values are added up at the same time.
pub(super) const fn lanes(value_dim: usize) -> usize {
    UNITS as usize / columns(value_dim)
}

/// Adds up what the [`lanes`] of a cube have summed and writes it from `at` on. Begins with a barrier.
#[cube]
pub(super) fn write_columns(
    sums: &mut SharedMemory<Lanes>,
    own: Lanes,
    parts: &mut Array<f32>,
    at: usize,
    #[comptime] value_dim: usize,
) {
    let unit = UNIT_POS as usize;
    sync_cube();
    sums[unit] = own;
    sync_cube();
    if unit < comptime!(columns(value_dim)) {
        let mut total = sums[unit];
        for lane in 1..comptime!(lanes(value_dim)) {
            let other = sums[lane * comptime!(columns(value_dim)) + unit];
            total += other;
        }
        #[unroll]
        for i in 0..4usize {
            parts[at + 4 * unit + i] = total[i];
        }
    }
}

/// One cube a query and run of `lists` lists of survivors.
///
/// A survivor that is selected is attended to; for one that is not the mean of its block stands, if the block is complete and means are wanted.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn attend(
    values: &Array<Words>,
    means: &Array<f32>,
    positions: &Array<u32>,
    scores: &Array<f32>,
    counts: &Array<u32>,
    tails: &Array<f32>,
    cuts: &Array<u32>,
    parts: &mut Array<f32>,
    marks: &Array<u32>,
    ranks: &Array<u32>,
    scale: f32,
    sinks: u32,
    window_start: u32,
    len: u32,
    lists: u32,
    splits: u32,
    split_keys: u32,
    capacity: u32,
    work_capacity: u32,
    #[comptime] group: usize,
    #[comptime] value_dim: usize,
    #[comptime] precision: Precision,
    #[comptime] compensate: bool,
    #[comptime] staged: bool,
) {
    let row_vectors = comptime!(value_dim * precision.bytes() / 16);
    let mut weights = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let mut rows = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let mut sums = SharedMemory::<Lanes>::new(comptime!(UNITS as usize));

    let unit = UNIT_POS as usize;
    let query = CUBE_POS_Y as usize;
    let head = query / group;
    let head_row = head * capacity as usize;
    let words = (len as usize).div_ceil(CHUNK) * CHUNK_WORDS;
    let row = query * work_capacity as usize;
    let cut = f32::reinterpret(cuts[query * CUT + 1]);
    let last_tie = cuts[query * CUT + 2];
    let column = unit % comptime!(columns(value_dim));
    let lane = unit / comptime!(columns(value_dim));

    let first_list = CUBE_POS_X * lists;
    let end_list = min(first_list + lists, splits);
    let mut largest = f32::new(LOWEST);
    for list in first_list..end_list {
        let slot = query * splits as usize + list as usize;
        largest = max(largest, tails[slot * comptime!(TAIL + value_dim) + 2]);
    }

    let mut sum = Lanes::new(0.0f32);
    let mut kept = 0.0f32;
    let mut replaced = 0.0f32;
    let mut dropped = 0.0f32;
    let mut selected: u32 = 0u32;
    let mut scored: u32 = 0u32;
    for list in first_list..end_list {
        let count = counts[query * splits as usize + list as usize];
        let first = row + (list * split_keys) as usize;
        scored += count;
        let mut at = 0u32;
        while at < count {
            let entry = at + UNIT_POS;
            let mut weight = 0.0f32;
            let mut source = 0u32;
            if entry < count {
                let position = positions[first + entry as usize];
                let score = scores[first + entry as usize];
                let reached = score > cut || (score == cut && position <= last_tie);
                weight = (scale * (score - largest)).exp();
                if reached || position < sinks || position >= window_start {
                    kept += weight;
                    selected += 1u32;
                    source = position;
                } else {
                    dropped += weight;
                    // The high bit: a mean.
                    source = (position / comptime!(BLOCK as u32)) | 0x8000_0000u32;
                    let complete = (position / comptime!(BLOCK as u32) + 1u32)
                        * comptime!(BLOCK as u32)
                        <= len;
                    weight = select(compensate && complete, weight, 0.0f32);
                    replaced += weight;
                }
            }
            weights[unit] = weight;
            rows[unit] = source;
            sync_cube();
            if lane < comptime!(lanes(value_dim)) {
                let batch = min(count - at, UNITS) as usize;
                let mut e = lane;
                while e < batch {
                    let weight = weights[e];
                    let source = rows[e];
                    if source >> 31u32 == 0u32 {
                        let at_row = row_of(marks, ranks, head, head_row, words, source, staged);
                        let value = quad(values, at_row * row_vectors, column, precision);
                        sum = fma(Lanes::new(weight), value, sum);
                    } else if weight > 0.0f32 {
                        let block = head_row / BLOCK + (source & 0x7fff_ffffu32) as usize;
                        let from = block * value_dim + 4 * column;
                        #[unroll]
                        for i in 0..4usize {
                            sum[i] = fma(weight, means[from + i], sum[i]);
                        }
                    }
                    e += comptime!(lanes(value_dim));
                }
            }
            sync_cube();
            at += UNITS;
        }
    }

    let part = (query * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * comptime!(PART + value_dim);
    write_columns(&mut sums, sum, parts, part + PART, value_dim);
    sync_cube();
    let mut totals = Lanes::empty();
    totals[0] = kept;
    totals[1] = replaced;
    totals[2] = dropped;
    totals[3] = f32::cast_from(selected);
    sums[unit] = totals;
    sync_cube();
    let mut half = comptime!(UNITS as usize / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = sums[unit + half];
            let mine = sums[unit];
            sums[unit] = mine + other;
        }
        sync_cube();
        half /= 2;
    }
    if unit == 0 {
        let total = sums[0];
        parts[part] = select(scored == 0u32, f32::new(LOWEST), scale * largest);
        parts[part + 1] = total[0];
        parts[part + 2] = total[1];
        parts[part + 3] = total[2];
        parts[part + 4] = total[3];
        parts[part + 5] = f32::cast_from(scored);
    }
}
