//! The parts of a query's answer put together, with what is proven of it.

use cubecl::prelude::*;

use super::attend::PART;
use super::bounds::{LOWEST, UP, WEIGHT_ERROR, WEIGHT_UP};
use super::rows::Strides;
use super::scan::CONSTANTS;
use super::shape::UNITS;
use super::survivors::TAIL;
use super::threshold::CUT;

/// Floats of a certificate: bounds of dropped mass and output error, the cut, keys attended to and scored, logarithm of the sum of exponentials.
pub(super) const CERTIFICATE: usize = 6;

/// Most parts and splits of a query.
pub(super) const MAX_PARTS: usize = UNITS as usize;

/// A sum over all units, the same for each. Begins and ends with a barrier.
#[cube]
fn sum_of(shared: &mut SharedMemory<f32>, own: f32) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = own;
    sync_cube();
    let mut half = comptime!(UNITS as usize / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    shared[0]
}

/// The largest over all units. Begins and ends with a barrier.
#[cube]
fn max_of(shared: &mut SharedMemory<f32>, own: f32) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = own;
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
    shared[0]
}

/// One cube a query. `splits` tails are added to `parts` parts; none where everything was attended to.
///
/// # What is proven
///
/// In exact arithmetic the dropped mass is `d / (d + k)` with `d` and `k` the exact weights of the keys that are not attended to and of those that
/// are. `d` is at most the weight of the tail's upper bounds, which hold the exact scores, plus that of the survivors that were not selected; the
/// scores of those and of the selected are off by at most `delta = rho ||q|| max ||k||`, a factor of `exp(scale delta)` each way. With what sums and
/// exponentials lose (`WEIGHT_UP`, once each) and what may have underflowed (`1e-30`, where a part's weights are at least the least normal number),
/// `d / k <= x`, and `p = x / (1 + x)` bounds the mass.
///
/// With `V` the largest norm of a value, exact attention is `(1 - d) o_s + d o_t`, and the answer `(1 - r) o_s + r m` with `r` the share that means
/// stand for: they differ by at most `(max(p, r) + p + r) V`, without means by `2 p V`. Computed weights add `2 (exp(2 scale delta) - 1 +
/// WEIGHT_ERROR) V`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn combine<F: Float>(
    parts: &Array<f32>,
    tails: &Array<f32>,
    cuts: &Array<u32>,
    constants: &Array<f32>,
    norms: &Array<u32>,
    out: &mut Array<F>,
    certificates: &mut Array<f32>,
    strides: &Strides,
    heads_per_batch: u32,
    scale: f32,
    part_count: u32,
    splits: u32,
    len: u32,
    #[comptime] group: usize,
    #[comptime] value_dim: usize,
    #[comptime] dense: bool,
    #[comptime] compensate: bool,
    #[define(F)] _element: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(MAX_PARTS);
    let mut factors = SharedMemory::<f32>::new(MAX_PARTS);
    let unit = UNIT_POS as usize;
    let query = CUBE_POS_X as usize;
    let head = query / group;
    let part_row = query * part_count as usize * comptime!(PART + value_dim);
    let tail_row = query * splits as usize * comptime!(TAIL + value_dim);

    // Everything relative to the largest logit; that of the tail counts only if there is one.
    let part = part_row + unit * comptime!(PART + value_dim);
    let mut own = f32::new(LOWEST);
    if unit < part_count as usize {
        own = parts[part];
    }
    let mut tail_upper = 0.0f32;
    let mut tail_mean = 0.0f32;
    let mut reference = 0.0f32;
    if comptime!(!dense) {
        let mut upper = 0.0f32;
        let mut mean = 0.0f32;
        if unit < splits as usize {
            let tail = tail_row + unit * comptime!(TAIL + value_dim);
            mean = tails[tail];
            upper = tails[tail + 1];
        }
        tail_upper = sum_of(&mut shared, upper);
        tail_mean = sum_of(&mut shared, mean);
        reference = scale * f32::reinterpret(cuts[query * CUT + 3]);
    }
    let mut largest = max_of(&mut shared, own);
    if tail_upper > 0.0f32 {
        largest = max(largest, reference);
    }
    // Where a part has no key its sums are 0 and its factor is too.
    let factor = select(
        own > f32::new(LOWEST),
        max(own - largest, -200.0f32).exp(),
        0.0f32,
    );
    factors[unit] = factor;
    let mut tail_factor = 0.0f32;
    if tail_upper > 0.0f32 {
        tail_factor = max(reference - largest, -200.0f32).exp();
    }
    let mut own_kept = 0.0f32;
    let mut own_replaced = 0.0f32;
    let mut own_dropped = 0.0f32;
    let mut own_selected = 0.0f32;
    let mut own_scored = 0.0f32;
    if unit < part_count as usize {
        own_kept = factor * parts[part + 1];
        own_replaced = factor * parts[part + 2];
        own_dropped = factor * parts[part + 3];
        own_selected = parts[part + 4];
        own_scored = parts[part + 5];
    }
    let kept = sum_of(&mut shared, own_kept);
    let replaced = sum_of(&mut shared, own_replaced) + tail_factor * tail_mean;
    let dropped = sum_of(&mut shared, own_dropped) + tail_factor * tail_upper;
    let selected = sum_of(&mut shared, own_selected);
    let scored = sum_of(&mut shared, own_scored);

    let mut value = 0.0f32;
    if unit < value_dim {
        for i in 0..part_count as usize {
            let weight = factors[i];
            if weight > 0.0f32 {
                value += weight * parts[part_row + i * comptime!(PART + value_dim) + PART + unit];
            }
        }
        if compensate {
            if tail_factor > 0.0f32 {
                let mut column = 0.0f32;
                for i in 0..splits as usize {
                    column += tails[tail_row + i * comptime!(TAIL + value_dim) + TAIL + unit];
                }
                value += tail_factor * column;
            }
        }
        let total = kept + replaced;
        value = select(total > 0.0f32, value / total, 0.0f32);
        let to = strides.row(head as u32, heads_per_batch, 0u32) + query % group * value_dim + unit;
        out[to] = F::cast_from(value);
    }

    if unit == 0 {
        let largest_key = f32::reinterpret(norms[2 * head]);
        let largest_value = f32::reinterpret(norms[2 * head + 1]);
        let lambda = 2.0f32 * scale * constants[query * CONSTANTS + 3] * largest_key * UP;
        let spread = min(lambda, 60.0f32).exp() * UP;
        let mut mass = 0.0f32;
        // Counts are exact up to 2^24; beyond, the last ones cannot be told apart, and the bound stays one.
        if selected < f32::cast_from(len) || len >= 0x0100_0000u32 {
            let x = (dropped + 1e-30f32) * comptime!(WEIGHT_UP * WEIGHT_UP) * spread;
            mass = select(
                kept > 0.0f32 && lambda < 60.0f32,
                min(x / (x + kept) * UP, 1.0f32),
                1.0f32,
            );
        }
        let mut error = 2.0f32 * mass;
        if compensate {
            let share = select(
                kept > 0.0f32,
                min(replaced / (kept + replaced) * UP, 1.0f32),
                1.0f32,
            );
            error = max(mass, share) + mass + share;
        }
        let rounding = 2.0f32 * (spread - 1.0f32 + comptime!(WEIGHT_ERROR));
        let at = query * CERTIFICATE;
        certificates[at] = mass;
        certificates[at + 1] = min(error + rounding, 2.0f32) * largest_value * UP;
        certificates[at + 2] = select(
            comptime!(dense),
            f32::new(LOWEST),
            f32::reinterpret(cuts[query * CUT + 1]),
        );
        certificates[at + 3] = selected;
        certificates[at + 4] = scored;
        certificates[at + 5] = largest + kept.ln();
    }
}
