//! New keys and values to their places: exact words, codes, scale and residual norm.

use cubecl::prelude::*;

use crate::Precision;

use super::bounds::{LARGEST, NEAR, NEAR_RESIDUAL, SCALE_OF_LARGEST, TINY, UP, rho};
use super::rows::Strides;
use super::shape::{BLOCK, TILE};
use super::words::{Lanes, Words, bf16_up, is_beyond, pack, quad, unpack};

/// Sixteen values from `from` on, as they will be stored; `true` if one of them cannot be.
#[cube]
fn load<F: Float>(
    from: &Array<F>,
    at: usize,
    words: &mut Array<u32>,
    values: &mut Array<f32>,
    #[comptime] precision: Precision,
) -> bool {
    let largest = comptime!(LARGEST.to_bits());
    let mut beyond = false;
    #[unroll]
    for i in 0..16usize {
        let value = f32::cast_from(from[at + i]);
        beyond = beyond || is_beyond(value, largest);
        values[i] = value;
    }
    if comptime!(precision == Precision::F32) {
        #[unroll]
        for i in 0..16usize {
            words[i] = u32::reinterpret(values[i]);
        }
    } else {
        #[unroll]
        for i in 0..8usize {
            let word = pack(values[2 * i], values[2 * i + 1], precision);
            words[i] = word;
            values[2 * i] = unpack(word, 0u32, precision);
            values[2 * i + 1] = unpack(word, 1u32, precision);
            beyond = beyond
                || is_beyond(values[2 * i], largest)
                || is_beyond(values[2 * i + 1], largest);
        }
    }
    beyond
}

/// Sixteen values' worth of words, zeros if the row is not to be stored.
#[cube]
fn store(
    words: &Array<u32>,
    keep: bool,
    rows: &mut Array<Words>,
    at: usize,
    #[comptime] precision: Precision,
) {
    let vectors = comptime!(precision.bytes());
    #[unroll]
    for v in 0..vectors {
        let mut out = Words::empty();
        #[unroll]
        for i in 0..4usize {
            out[i] = select(keep, words[4 * v + i], 0u32);
        }
        rows[at + v] = out;
    }
}

/// Largest of the partial results of a row.
#[cube]
fn row_max(partials: &SharedMemory<f32>, row: usize, #[comptime] quads: usize) -> f32 {
    let mut largest = partials[row * quads];
    #[unroll]
    for j in 1..quads {
        largest = max(largest, partials[row * quads + j]);
    }
    largest
}

/// Their sum.
#[cube]
fn row_sum(partials: &SharedMemory<f32>, row: usize, #[comptime] quads: usize) -> f32 {
    let mut sum = partials[row * quads];
    #[unroll]
    for j in 1..quads {
        sum += partials[row * quads + j];
    }
    sum
}

/// One cube a tile and head, one unit a key and sixteen of its dimensions.
///
/// `faults[0]` becomes the lowest position whose key, `faults[1]` whose value cannot be stored; such a token's rows are stored as zeros.
/// `norms[2 * head]` grows to the bits of at least the largest norm of a key, `norms[2 * head + 1]` of a value.
/// Tokens from `skip` on are new. `keys` and `values` have room for `rows_capacity` rows a head and begin with position `rows_first`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn append_tokens<F: Float>(
    new_keys: &Array<F>,
    new_values: &Array<F>,
    centre: &Array<f32>,
    codes: &mut Array<Words>,
    parameters: &mut Array<u32>,
    keys: &mut Array<Words>,
    values: &mut Array<Words>,
    norms: &mut Array<Atomic<u32>>,
    faults: &mut Array<Atomic<u32>>,
    key_strides: &Strides,
    value_strides: &Strides,
    heads_per_batch: u32,
    skip: u32,
    first: u32,
    count: u32,
    capacity: u32,
    rows_capacity: u32,
    rows_first: u32,
    #[comptime] dim: usize,
    #[comptime] value_dim: usize,
    #[comptime] precision: Precision,
    #[define(F)] _element: StorageType,
) {
    let quads = comptime!(dim / 16);
    let value_quads = comptime!(value_dim / 16);
    let mut partials = SharedMemory::<f32>::new(comptime!(TILE * dim / 16));
    let mut more = SharedMemory::<f32>::new(comptime!(TILE * dim / 16));
    let mut bad = SharedMemory::<f32>::new(comptime!(TILE * dim / 16));

    let row = UNIT_POS_Y as usize;
    let quad = UNIT_POS_X as usize;
    let slot = row * quads + quad;
    let head = CUBE_POS_Y;
    let position = (first / 16u32 + CUBE_POS_X) * 16u32 + UNIT_POS_Y;
    let live = position >= first && position < first + count;
    let token = skip + select(live, position - first, 0u32);

    // The value row: as many sixteens as it has, shared among the units of the row. Kept in registers for one at a time.
    let mut words = Array::<u32>::new(16usize);
    let mut x = Array::<f32>::new(16usize);
    let value_row = value_strides.row(head, heads_per_batch, token);
    let mut beyond = false;
    let mut squares = 0.0f32;
    let passes = comptime!(value_quads.div_ceil(quads));
    #[unroll]
    for pass in 0..passes {
        let at = pass * quads + quad;
        if live && at < value_quads {
            beyond = load::<F>(
                new_values,
                value_row + 16 * at,
                &mut words,
                &mut x,
                precision,
            ) || beyond;
            #[unroll]
            for i in 0..16usize {
                squares += x[i] * x[i];
            }
        }
    }
    bad[slot] = select(beyond, 1.0f32, 0.0f32);
    partials[slot] = squares;
    sync_cube();
    let value_bad = row_max(&bad, row, quads) > 0.0f32;
    let value_norm = row_sum(&partials, row, quads).sqrt() * UP + TINY;
    sync_cube();

    let key_row = key_strides.row(head, heads_per_batch, token);
    beyond = false;
    if live {
        beyond = load::<F>(new_keys, key_row + 16 * quad, &mut words, &mut x, precision);
    }
    bad[slot] = select(beyond, 1.0f32, 0.0f32);
    sync_cube();
    let key_bad = row_max(&bad, row, quads) > 0.0f32;
    let keep = !(key_bad || value_bad);

    // Distance to the centre.
    let mut largest = 0.0f32;
    squares = 0.0f32;
    let mut d = Array::<f32>::new(16usize);
    #[unroll]
    for i in 0..16usize {
        x[i] = select(live && keep, x[i], 0.0f32);
        squares += x[i] * x[i];
        d[i] = x[i] - centre[head as usize * dim + 16 * quad + i];
        largest = max(largest, d[i].abs());
    }
    partials[slot] = largest;
    more[slot] = squares;
    sync_cube();
    largest = row_max(&partials, row, quads);
    let key_norm = row_sum(&more, row, quads).sqrt() * UP + TINY;
    sync_cube();

    // Codes, and what they leave.
    let near = largest < NEAR;
    let scale_bits = select(near, 0u32, bf16_up(largest * SCALE_OF_LARGEST));
    let scale = f32::reinterpret(scale_bits << 16u32);
    let reciprocal = 1.0f32 / select(near, 1.0f32, scale);
    let mut residual_squares = 0.0f32;
    let mut code_squares = 0.0f32;
    let mut out = Words::empty();
    #[unroll]
    for w in 0..4usize {
        let mut word = 0u32;
        #[unroll]
        for b in 0..4usize {
            let i = comptime!(4 * w + b);
            let t = select(near, 0.0f32, clamp(d[i] * reciprocal, -127.0f32, 127.0f32));
            let code = u32::cast_from(t + 128.5f32);
            let c = f32::cast_from(code) - 128.0f32;
            let e = d[i] - scale * c;
            residual_squares += e * e;
            code_squares += c * c;
            word |= code << comptime!(8 * b as u32);
        }
        out[w] = word;
    }
    partials[slot] = residual_squares;
    more[slot] = code_squares;
    sync_cube();
    let residual = row_sum(&partials, row, quads).sqrt();
    let code_norm = scale * row_sum(&more, row, quads).sqrt();
    let widened = (residual + comptime!(rho(dim)) * (code_norm + key_norm)) * UP + TINY;
    let residual_bits = bf16_up(select(
        near,
        NEAR_RESIDUAL + key_norm * comptime!(rho(dim)) * 2.0f32 + TINY,
        widened,
    ));

    if live {
        let cap = capacity as usize;
        let at = head as usize * cap + position as usize;
        let row_at = head as usize * rows_capacity as usize + (position - rows_first) as usize;
        let tile = (head as usize * cap / TILE) + position as usize / TILE;
        codes[(tile * quads + quad) * TILE + row] = out;
        store(
            &words,
            keep,
            keys,
            (row_at * quads + quad) * comptime!(precision.bytes()),
            precision,
        );
        #[unroll]
        for pass in 0..passes {
            let q = pass * quads + quad;
            if q < value_quads {
                load::<F>(
                    new_values,
                    value_row + 16 * q,
                    &mut words,
                    &mut x,
                    precision,
                );
                store(
                    &words,
                    keep,
                    values,
                    (row_at * value_quads + q) * comptime!(precision.bytes()),
                    precision,
                );
            }
        }
        if quad == 0 {
            parameters[at] = (scale_bits << 16u32) | residual_bits;
            if keep {
                norms[2 * head as usize].fetch_max(u32::reinterpret(key_norm));
                norms[2 * head as usize + 1].fetch_max(u32::reinterpret(value_norm));
            }
            if key_bad {
                faults[0].fetch_min(position);
            }
            if value_bad {
                faults[1].fetch_min(position);
            }
        }
    }
}

/// One cube a block and head: the mean of the block's values, summed row by row.
#[cube(launch)]
pub(super) fn block_means(
    values: &Array<Words>,
    means: &mut Array<f32>,
    first_block: u32,
    capacity: u32,
    #[comptime] value_dim: usize,
    #[comptime] precision: Precision,
) {
    let quads = comptime!(value_dim / 4);
    let head = CUBE_POS_Y as usize;
    let block = first_block as usize + CUBE_POS_X as usize;
    let column = UNIT_POS as usize;
    if column < quads {
        let row_vectors = comptime!(value_dim * precision.bytes() / 16);
        let first_row = head * capacity as usize + block * comptime!(BLOCK);
        let mut sum = Lanes::new(0.0f32);
        for row in 0..comptime!(BLOCK) {
            sum += quad(values, (first_row + row) * row_vectors, column, precision);
        }
        let blocks = capacity as usize / comptime!(BLOCK);
        let at = (head * blocks + block) * value_dim + 4 * column;
        #[unroll]
        for i in 0..4usize {
            means[at + i] = sum[i] * comptime!(1.0f32 / BLOCK as f32);
        }
    }
}

/// One cube a block and head: the same for values that do not stay on the device. `values` are those of `tokens` tokens from position `first`
/// on; a block that began before goes on from the sums that `open` has of it, and those of a block that does not end go to `next`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn block_means_of_new(
    values: &Array<Words>,
    open: &Array<f32>,
    next: &mut Array<f32>,
    means: &mut Array<f32>,
    first: u32,
    tokens: u32,
    capacity: u32,
    #[comptime] value_dim: usize,
    #[comptime] precision: Precision,
) {
    let quads = comptime!(value_dim / 4);
    let head = CUBE_POS_Y as usize;
    let block = first as usize / BLOCK + CUBE_POS_X as usize;
    let column = UNIT_POS as usize;
    if column < quads {
        let row_vectors = comptime!(value_dim * precision.bytes() / 16);
        let start = max(block * BLOCK, first as usize);
        let end = min((block + 1) * BLOCK, (first + tokens) as usize);
        let of_head = head * value_dim + 4 * column;
        let mut sum = Lanes::new(0.0f32);
        if start > block * BLOCK {
            #[unroll]
            for i in 0..4usize {
                sum[i] = open[of_head + i];
            }
        }
        for position in start..end {
            let row = head * tokens as usize + position - first as usize;
            sum += quad(values, row * row_vectors, column, precision);
        }
        if end == (block + 1) * BLOCK {
            let blocks = capacity as usize / comptime!(BLOCK);
            let at = (head * blocks + block) * value_dim + 4 * column;
            #[unroll]
            for i in 0..4usize {
                means[at + i] = sum[i] * comptime!(1.0f32 / BLOCK as f32);
            }
        } else {
            #[unroll]
            for i in 0..4usize {
                next[of_head + i] = sum[i];
            }
        }
    }
}

/// One cube a head: the mean of `count` keys, `step` tokens apart, or zeros. Components that cannot be stored count as zeros.
#[cube(launch)]
pub(super) fn centre_of<F: Float>(
    keys: &Array<F>,
    centre: &mut Array<f32>,
    strides: &Strides,
    heads_per_batch: u32,
    count: u32,
    step: u32,
    #[comptime] dim: usize,
    #[define(F)] _element: StorageType,
) {
    let head = CUBE_POS_Y;
    let i = UNIT_POS as usize;
    if i < dim {
        let mut sum = 0.0f32;
        for token in 0..count {
            let value = f32::cast_from(keys[strides.row(head, heads_per_batch, token * step) + i]);
            sum += select(
                is_beyond(value, comptime!(LARGEST.to_bits())),
                0.0f32,
                value,
            );
        }
        centre[head as usize * dim + i] = sum / f32::cast_from(max(count, 1u32));
    }
}

/// Copies the `from` vectors of every head to where a longer head of `to` vectors has them, `offset` vectors from its first. A unit copies sixteen,
/// 256 apart.
#[cube(launch)]
pub(super) fn copy_heads(
    old: &Array<Words>,
    new: &mut Array<Words>,
    from: u32,
    to: u32,
    offset: u32,
) {
    let head = CUBE_POS_Y;
    for i in 0..16u32 {
        let at = (CUBE_POS_X * 16u32 + i) * 256u32 + UNIT_POS;
        if at < from {
            new[(head * to + offset + at) as usize] = old[(head * from + at) as usize];
        }
    }
}
