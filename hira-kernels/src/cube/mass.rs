//! The threshold that drops a share of the softmax mass at most.

use cubecl::prelude::*;

use super::bounds::{LOWEST, WEIGHT_UP};
use super::radix::BUCKETS;
use super::scan::{CONSTANTS, band};
use super::shape::UNITS;
use super::threshold::{CUT, write_cut};

/// Bins of a histogram of logits.
pub(super) const BINS: usize = 2048;

/// Bins to a unit of logits.
const FINE: f32 = 32.0;

/// Logits by which a bound may lie above the reference: bins before the reference's own.
const ABOVE: f32 = 8.0;

/// Bins of a unit of a cube.
const OWN: usize = BINS / BUCKETS;

/// What a distance in logits may be off by, and with it the edge of a bin: three roundings of at most `64 + 8`, below `2^-14`.
const EDGE: f32 = 1.0 / 8192.0;

/// One cube a query: clears its histogram and takes the largest lower bound as its reference, which becomes the first float of its cut.
#[cube(launch)]
pub(super) fn mass_reference(
    maxima: &Array<f32>,
    cuts: &mut Array<u32>,
    bins: &mut Array<Atomic<u32>>,
    entries: u32,
    row_entries: u32,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let query = CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    let mut largest = f32::new(LOWEST);
    let mut i = UNIT_POS;
    while i < entries {
        largest = max(largest, maxima[query * row_entries as usize + i as usize]);
        i += UNITS;
    }
    shared[unit] = largest;
    let mut b = unit;
    while b < comptime!(2 * BINS) {
        bins[query * comptime!(2 * BINS) + b].store(0u32);
        b += comptime!(UNITS as usize);
    }
    sync_cube();
    let mut half = comptime!(UNITS as usize / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] = max(shared[unit], other);
        }
        sync_cube();
        half /= 2;
    }
    if unit == 0 {
        cuts[query * CUT] = u32::reinterpret(shared[0]);
    }
}

/// The bin of a bound.
#[cube]
fn bin_of(bound: f32, reference: f32, scale: f32) -> u32 {
    let below = scale * (reference - bound);
    u32::cast_from(clamp(
        (below + ABOVE) * FINE,
        0.0f32,
        comptime!(BINS as f32 - 1.0),
    ))
}

/// One cube a query and split: counts its upper bounds, then its lower bounds, by bins of logits below the reference.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn mass_histogram(
    estimates: &Array<f32>,
    parameters: &Array<u32>,
    constants: &Array<f32>,
    cuts: &Array<u32>,
    bins: &mut Array<Atomic<u32>>,
    scale: f32,
    len: u32,
    split_keys: u32,
    capacity: u32,
    work_capacity: u32,
    #[comptime] group: usize,
) {
    let counts = SharedMemory::<Atomic<u32>>::new(comptime!(2 * BINS));
    let query = CUBE_POS_Y as usize;
    let head_row = query / group * capacity as usize;
    let row = query * work_capacity as usize;
    let (norm, slack) = (
        constants[query * CONSTANTS],
        constants[query * CONSTANTS + 1],
    );
    let reference = f32::reinterpret(cuts[query * CUT]);
    let mut b = UNIT_POS as usize;
    while b < comptime!(2 * BINS) {
        counts[b].store(0u32);
        b += comptime!(UNITS as usize);
    }
    sync_cube();
    let first = CUBE_POS_X * split_keys;
    let end = min(first + split_keys, len);
    let mut key = first + UNIT_POS;
    while key < end {
        let estimate = estimates[row + key as usize];
        let half = band(parameters[head_row + key as usize], norm, slack);
        counts[bin_of(estimate + half, reference, scale) as usize].fetch_add(1u32);
        counts[BINS + bin_of(estimate - half, reference, scale) as usize].fetch_add(1u32);
        key += UNITS;
    }
    sync_cube();
    b = UNIT_POS as usize;
    while b < comptime!(2 * BINS) {
        let count = counts[b].load();
        if count > 0u32 {
            bins[query * comptime!(2 * BINS) + b].fetch_add(count);
        }
        b += comptime!(UNITS as usize);
    }
}

/// The near edge of a bin: logits below the reference.
#[cube]
fn distance(bin: usize) -> f32 {
    f32::cast_from(bin as u32) / FINE - ABOVE
}

/// At least the weight of the keys whose upper bounds a bin holds.
#[cube]
fn most_of(bins: &Array<u32>, row: usize, bin: usize) -> f32 {
    f32::cast_from(bins[row + bin]) * (EDGE - distance(bin)).exp()
}

/// At most the weight of the keys whose lower bounds a bin holds.
#[cube]
fn least_of(bins: &Array<u32>, row: usize, bin: usize) -> f32 {
    let mut weight = 0.0f32;
    if bin < comptime!(BINS - 1) {
        weight = f32::cast_from(bins[row + BINS + bin]) * (0.0f32 - distance(bin + 1) - EDGE).exp();
    }
    weight
}

/// One cube a query: the highest edge of a bin below which at most `ratio` times the mass that is kept can lie.
///
/// # Numerics
///
/// Let the threshold be the edge of bin `B`, [`EDGE`] lower. A key whose lower bound is in a bin before `B` reaches it, and weighs at least what
/// a key at the far edge of that bin does: those are kept. Of the others, a key whose upper bound is in bin `b >= B` weighs at most what a key
/// at its near edge does, [`EDGE`] higher; one whose upper bound is in a bin before `B` may be kept or dropped, and weighs if it is dropped less
/// than a key at the threshold. Nothing is proven of the last bin's lower bounds, and nothing is dropped if the threshold is in the first.
#[cube(launch)]
pub(super) fn mass_threshold(bins: &Array<u32>, cuts: &mut Array<u32>, scale: f32, ratio: f32) {
    let mut sums = SharedMemory::<f32>::new(comptime!(4 * BUCKETS));
    let first = SharedMemory::<Atomic<u32>>::new(1usize);
    let query = CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    let row = query * comptime!(2 * BINS);
    let reference = f32::reinterpret(cuts[query * CUT]);

    // A unit's own bins: counts of both bounds, weights of what may be dropped and of what is kept.
    let mut uppers = 0.0f32;
    let mut lowers = 0.0f32;
    let mut dropped = 0.0f32;
    let mut kept = 0.0f32;
    for i in 0..OWN {
        let b = unit * OWN + i;
        uppers += f32::cast_from(bins[row + b]);
        lowers += f32::cast_from(bins[row + BINS + b]);
        dropped += most_of(bins, row, b);
        kept += least_of(bins, row, b);
    }
    if unit == 0 {
        first[0].store(comptime!(BINS as u32));
    }
    sums[unit] = uppers;
    sums[BUCKETS + unit] = lowers;
    sums[2 * BUCKETS + unit] = dropped;
    sums[3 * BUCKETS + unit] = kept;
    sync_cube();
    // What lies in the bins before a unit's own, and what is dropped after them.
    uppers = 0.0f32;
    lowers = 0.0f32;
    kept = 0.0f32;
    let mut after = 0.0f32;
    for other in 0..BUCKETS {
        if other < unit {
            uppers += sums[other];
            lowers += sums[BUCKETS + other];
            kept += sums[3 * BUCKETS + other];
        }
        if other > unit {
            after += sums[2 * BUCKETS + other];
        }
    }
    let mut found = comptime!(BINS as u32).runtime();
    for i in 0..OWN {
        let b = unit * OWN + i;
        // Summed anew: a difference of sums would lose the small weights.
        let mut from_here = after;
        for j in i..OWN {
            from_here += most_of(bins, row, unit * OWN + j);
        }
        let either = uppers - lowers;
        let most =
            (from_here + either * (EDGE - distance(b)).exp()) * comptime!(WEIGHT_UP * WEIGHT_UP);
        if b > 0 && most <= ratio * kept && found == comptime!(BINS as u32) {
            found = b as u32;
        }
        uppers += f32::cast_from(bins[row + b]);
        lowers += f32::cast_from(bins[row + BINS + b]);
        kept += least_of(bins, row, b);
    }
    first[0].fetch_min(found);
    sync_cube();
    if unit == 0 {
        let edge = first[0].load();
        let mut tau = f32::new(LOWEST);
        if edge < comptime!(BINS as u32) {
            tau = reference - (distance(edge as usize) + EDGE) / scale;
            tau -= tau.abs() * comptime!(4.0 / (1u32 << 23) as f32);
        }
        write_cut(cuts, query, tau);
    }
}
