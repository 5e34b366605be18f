//! Attention to every key: the plan for few keys, and for heads that spread their mass.

use cubecl::prelude::*;

use crate::Precision;

use super::attend::{PART, columns, lanes, write_columns};
use super::bounds::{LOWEST, TINY, UP, rho};
use super::rows::Strides;
use super::scan::{CONSTANTS, SHARED};
use super::shape::UNITS;
use super::words::{Lanes, Words, quad, sum_lanes};

/// Keys of a batch: four units score one.
const BATCH: usize = UNITS as usize / 4;

/// One cube a head and run of `run` keys; all queries of the group share the keys and values that it reads.
///
/// Writes the last constant of a query, and the parts of [`attend`](super::attend::attend), for [`combine`](super::combine::combine): from part
/// `first_part` of `part_count` on, so that rows which do not lie on the device can come in pieces.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn dense<F: Float>(
    queries: &Array<F>,
    keys: &Array<Words>,
    values: &Array<Words>,
    parts: &mut Array<f32>,
    constants: &mut Array<f32>,
    strides: &Strides,
    heads_per_batch: u32,
    scale: f32,
    len: u32,
    run: u32,
    capacity: u32,
    first_part: u32,
    part_count: u32,
    #[comptime] group: usize,
    #[comptime] dim: usize,
    #[comptime] value_dim: usize,
    #[comptime] precision: Precision,
    #[define(F)] _element: StorageType,
) {
    let shared = comptime!(group.min(SHARED));
    let key_vectors = comptime!(dim * precision.bytes() / 16);
    let value_vectors = comptime!(value_dim * precision.bytes() / 16);
    let mut rows = SharedMemory::<Lanes>::new(comptime!(group * dim / 4));
    let mut partials = SharedMemory::<f32>::new(comptime!(group.min(SHARED) * UNITS as usize));
    let mut logits = SharedMemory::<f32>::new(comptime!(group * BATCH));
    let mut largest_of = SharedMemory::<f32>::new(comptime!(group * 16));
    let mut factor_of = SharedMemory::<f32>::new(group);
    let mut sums = SharedMemory::<Lanes>::new(comptime!(UNITS as usize));

    let unit = UNIT_POS as usize;
    let head = CUBE_POS_Y as usize;
    let head_row = head * capacity as usize;
    let from = strides.row(CUBE_POS_Y, heads_per_batch, 0u32);
    let mut i = unit;
    while i < comptime!(group * dim / 4) {
        let mut row = Lanes::empty();
        #[unroll]
        for j in 0..4usize {
            row[j] = f32::cast_from(queries[from + 4 * i + j]);
        }
        rows[i] = row;
        i += comptime!(UNITS as usize);
    }

    // Scores: four units a key. Weights: sixteen units a query. Values: a unit four columns, for all queries.
    let quarter = unit % 4;
    let query = unit / 16;
    let lane = unit % 16;
    let column = unit % comptime!(columns(value_dim));
    let value_lane = unit / comptime!(columns(value_dim));
    let mut largest = f32::new(LOWEST);
    let mut kept = 0.0f32;
    let mut of_query = Array::<Lanes>::new(group);
    #[unroll]
    for g in 0..group {
        of_query[g] = Lanes::new(0.0f32);
    }
    sync_cube();

    // What the certificate needs of a query.
    if query < group {
        let mut squares = Lanes::new(0.0f32);
        let mut i = lane;
        while i < comptime!(dim / 4) {
            let q = rows[query * comptime!(dim / 4) + i];
            squares = fma(q, q, squares);
            i += 16;
        }
        largest_of[unit] = sum_lanes(squares);
    }
    sync_cube();
    if query < group && lane == 0 && CUBE_POS_X == 0u32 {
        let mut squares = 0.0f32;
        for l in 0..16usize {
            squares += largest_of[query * 16 + l];
        }
        let norm = squares.sqrt() * UP + TINY;
        constants[(head * group + query) * CONSTANTS + 3] = comptime!(rho(dim)) * norm * UP;
    }
    sync_cube();

    let first = CUBE_POS_X * run;
    let end = min(first + run, len);
    let mut at = first;
    while at < end {
        let batch = min(end - at, comptime!(BATCH as u32)) as usize;
        let key = at as usize + min(unit / 4, batch - 1);
        let key_row = (head_row + key) * key_vectors;
        for pass in 0..comptime!(group.div_ceil(SHARED)) {
            let first_query = min(pass * shared, comptime!(group - shared));
            let mut dots = Array::<Lanes>::new(shared);
            #[unroll]
            for g in 0..shared {
                dots[g] = Lanes::new(0.0f32);
            }
            for block in 0..comptime!(dim / 16) {
                let k = quad(keys, key_row, 4 * block + quarter, precision);
                #[unroll]
                for g in 0..shared {
                    let q = rows[(first_query + g) * comptime!(dim / 4) + 4 * block + quarter];
                    dots[g] = fma(q, k, dots[g]);
                }
            }
            #[unroll]
            for g in 0..shared {
                partials[g * comptime!(UNITS as usize) + unit] = sum_lanes(dots[g]);
            }
            sync_cube();
            // The four quarters of a key and query, added up by as many units as there are keys and queries.
            let g = unit / BATCH;
            let entry = unit % BATCH;
            if g < shared {
                let part = g * comptime!(UNITS as usize) + 4 * entry;
                let dot = (partials[part] + partials[part + 2])
                    + (partials[part + 1] + partials[part + 3]);
                logits[(first_query + g) * BATCH + entry] =
                    select(entry < batch, scale * dot, f32::new(LOWEST));
            }
            sync_cube();
        }

        if query < group {
            let mut own = f32::new(LOWEST);
            #[unroll]
            for j in 0..comptime!(BATCH / 16) {
                own = max(own, logits[query * BATCH + 16 * j + lane]);
            }
            largest_of[unit] = own;
        }
        sync_cube();
        if query < group {
            let mut next = largest;
            for l in 0..16usize {
                next = max(next, largest_of[query * 16 + l]);
            }
            let factor = select(largest > f32::new(LOWEST), (largest - next).exp(), 0.0f32);
            kept *= factor;
            #[unroll]
            for j in 0..comptime!(BATCH / 16) {
                let entry = 16 * j + lane;
                let weight = select(
                    entry < batch,
                    (logits[query * BATCH + entry] - next).exp(),
                    0.0f32,
                );
                logits[query * BATCH + entry] = weight;
                kept += weight;
            }
            largest = next;
            if lane == 0 {
                factor_of[query] = factor;
            }
        }
        sync_cube();
        if value_lane < comptime!(lanes(value_dim)) {
            #[unroll]
            for g in 0..group {
                of_query[g] = of_query[g] * Lanes::new(factor_of[g]);
            }
            let mut entry = value_lane;
            while entry < batch {
                let value = quad(
                    values,
                    (head_row + at as usize + entry) * value_vectors,
                    column,
                    precision,
                );
                #[unroll]
                for g in 0..group {
                    of_query[g] = fma(Lanes::new(logits[g * BATCH + entry]), value, of_query[g]);
                }
                entry += comptime!(lanes(value_dim));
            }
        }
        sync_cube();
        at += comptime!(BATCH as u32);
    }

    let own_part = (first_part + CUBE_POS_X) as usize;
    if query < group {
        largest_of[unit] = kept;
    }
    sync_cube();
    if query < group && lane == 0 {
        let mut total = 0.0f32;
        for l in 0..16usize {
            total += largest_of[query * 16 + l];
        }
        let part =
            ((head * group + query) * part_count as usize + own_part) * comptime!(PART + value_dim);
        parts[part] = largest;
        parts[part + 1] = total;
        parts[part + 2] = 0.0f32;
        parts[part + 3] = 0.0f32;
        parts[part + 4] = f32::cast_from(end - first);
        parts[part + 5] = f32::cast_from(end - first);
    }
    #[unroll]
    for g in 0..group {
        let part =
            ((head * group + g) * part_count as usize + own_part) * comptime!(PART + value_dim);
        write_columns(&mut sums, of_query[g], parts, part + PART, value_dim);
    }
}
