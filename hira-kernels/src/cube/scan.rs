//! The sketch scan: an estimate for every key and query, and the largest lower bounds.

use cubecl::prelude::*;

use super::bounds::{LARGEST, LOWEST, SLACK, TINY, UP, rho};
use super::rows::Strides;
use super::shape::{CHUNK, KEYS, TILE, UNITS};
use super::words::{Lanes, Words, is_beyond, sum_lanes, widen_bf16};

/// Floats that are kept of a query: its norm, the slack and offset of its intervals, the norm of a key's score error, rounded up.
pub(super) const CONSTANTS: usize = 4;

/// Queries that share the registers of one pass over the codes.
pub(super) const SHARED: usize = 4;

/// What the interval of a key is: the middle, and half its width.
///
/// See `bounds.rs`. The scan and everything that follows it call this with the same numbers, so they see the same interval.
#[cube]
pub(super) fn band(parameters: u32, norm: f32, slack: f32) -> f32 {
    norm * widen_bf16(parameters & 0xffffu32) + slack
}

/// Loads a group's queries into shared memory and works out their constants; [`UNITS`] units.
///
/// `partials` has `16 * group * 3` entries, `constants` [`CONSTANTS`] a query. Ends with a barrier.
#[cube]
fn load_queries<F: Float>(
    queries: &Array<F>,
    centre: &Array<f32>,
    rows: &mut SharedMemory<Lanes>,
    partials: &mut SharedMemory<f32>,
    constants: &mut SharedMemory<f32>,
    faults: &Array<Atomic<u32>>,
    first_row: usize,
    first_centre: usize,
    #[comptime] group: usize,
    #[comptime] dim: usize,
) {
    let query = (UNIT_POS / 16u32) as usize;
    let lane = (UNIT_POS % 16u32) as usize;
    if query < group {
        let mut squares = 0.0f32;
        let mut offset = 0.0f32;
        let mut centre_squares = 0.0f32;
        let mut i = lane;
        // A sixteenth of the row, four values at a time.
        while i < comptime!(dim / 4) {
            let mut values = Lanes::empty();
            #[unroll]
            for j in 0..4usize {
                let value = f32::cast_from(queries[first_row + query * dim + 4 * i + j]);
                let mu = centre[first_centre + 4 * i + j];
                if is_beyond(value, comptime!((LARGEST * 64.0).to_bits())) {
                    faults[0].fetch_max(1u32);
                }
                values[j] = value;
                squares += value * value;
                offset += value * mu;
                centre_squares += mu * mu;
            }
            rows[query * comptime!(dim / 4) + i] = values;
            i += 16;
        }
        partials[(query * 16 + lane) * 3] = squares;
        partials[(query * 16 + lane) * 3 + 1] = offset;
        partials[(query * 16 + lane) * 3 + 2] = centre_squares;
    }
    sync_cube();
    if query < group && lane == 0 {
        let mut squares = 0.0f32;
        let mut offset = 0.0f32;
        let mut centre_squares = 0.0f32;
        for l in 0..16usize {
            squares += partials[(query * 16 + l) * 3];
            offset += partials[(query * 16 + l) * 3 + 1];
            centre_squares += partials[(query * 16 + l) * 3 + 2];
        }
        let norm = squares.sqrt() * UP + TINY;
        let centre_norm = centre_squares.sqrt() * UP + TINY;
        let at = query * CONSTANTS;
        constants[at] = norm * UP;
        constants[at + 1] = comptime!(rho(dim)) * (norm * centre_norm) * UP + SLACK;
        constants[at + 2] = offset;
        constants[at + 3] = comptime!(rho(dim)) * norm * UP;
    }
    sync_cube();
}

/// One cube a chunk of 1024 keys and head, one unit four keys, 256 apart: a unit's four keys are far from one another in time, and keys that
/// score alike are near.
///
/// `estimates[query][key]` is written for every key below `len`, `maxima[query][256 * chunk + unit]` gets the largest lower bound of a unit's
/// keys; the first cube of a head writes `constants`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn scan<F: Float>(
    queries: &Array<F>,
    centre: &Array<f32>,
    codes: &Array<Words>,
    parameters: &Array<u32>,
    estimates: &mut Array<f32>,
    maxima: &mut Array<f32>,
    constants: &mut Array<f32>,
    faults: &mut Array<Atomic<u32>>,
    strides: &Strides,
    heads_per_batch: u32,
    len: u32,
    capacity: u32,
    work_capacity: u32,
    #[comptime] group: usize,
    #[comptime] dim: usize,
    #[define(F)] _element: StorageType,
) {
    let quads = comptime!(dim / 16);
    let shared = comptime!(group.min(SHARED));
    let passes = comptime!(group.div_ceil(SHARED));
    let mut rows = SharedMemory::<Lanes>::new(comptime!(group * dim / 4));
    let mut partials = SharedMemory::<f32>::new(comptime!(group * 16 * 3));
    let mut of_query = SharedMemory::<f32>::new(comptime!(group * CONSTANTS));

    let head = CUBE_POS_Y as usize;
    let chunk = CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    load_queries::<F>(
        queries,
        centre,
        &mut rows,
        &mut partials,
        &mut of_query,
        faults,
        strides.row(CUBE_POS_Y, heads_per_batch, 0u32),
        head * dim,
        group,
        dim,
    );
    if chunk == 0 && unit < comptime!(group * CONSTANTS) {
        constants[head * comptime!(group * CONSTANTS) + unit] = of_query[unit];
    }

    let first_key = head * capacity as usize + chunk * CHUNK + unit;
    let mut shifts = Words::empty();
    #[unroll]
    for b in 0..4usize {
        shifts[b] = comptime!(8 * b as u32);
    }
    for pass in 0..passes {
        // The last pass begins where it still has all its queries: what two passes work out is the same.
        let first_query = min(pass * shared, comptime!(group - shared));
        let mut sums = Array::<Lanes>::new(comptime!(KEYS * shared));
        #[unroll]
        for i in 0..comptime!(KEYS * shared) {
            sums[i] = Lanes::new(0.0f32);
        }
        for quad in 0..quads {
            #[unroll]
            for key in 0..KEYS {
                let slot = first_key + comptime!(key * UNITS as usize);
                let words = codes[(slot / TILE * quads + quad) * TILE + slot % TILE];
                #[unroll]
                for w in 0..4usize {
                    // A byte in the low bits of 2^23, less 2^23 + 128: exact, and no conversion.
                    let bytes = (Words::new(words[w]) >> shifts) & Words::new(0xffu32);
                    let c = Lanes::reinterpret(bytes | Words::new(0x4b00_0000u32))
                        - Lanes::new(8_388_736.0f32);
                    #[unroll]
                    for query in 0..shared {
                        let q = rows[(first_query + query) * comptime!(dim / 4) + quad * 4 + w];
                        let at = comptime!(key * shared + query);
                        sums[at] = fma(q, c, sums[at]);
                    }
                }
            }
        }
        #[unroll]
        for query in 0..shared {
            let at = (first_query + query) * CONSTANTS;
            let (norm, slack, offset) = (of_query[at], of_query[at + 1], of_query[at + 2]);
            let row = (head * group + first_query + query) * work_capacity as usize;
            let mut largest = f32::new(LOWEST);
            #[unroll]
            for key in 0..KEYS {
                let position = chunk * CHUNK + comptime!(key * UNITS as usize) + unit;
                if position < len as usize {
                    let parameter = parameters[head * capacity as usize + position];
                    let scale = f32::reinterpret(parameter & 0xffff_0000u32);
                    let dot = sum_lanes(sums[comptime!(key * shared + query)]);
                    let estimate = offset + scale * dot;
                    estimates[row + position] = estimate;
                    largest = max(largest, estimate - band(parameter, norm, slack));
                }
            }
            maxima[row / KEYS + chunk * comptime!(UNITS as usize) + unit] = largest;
        }
    }
}
