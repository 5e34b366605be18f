//! How much softmax mass is proven on either side of a threshold.

use crate::kernel::dispatch;
use crate::scan::{BLOCK_TILES, MIN_EXPONENT, exp2_up};
use crate::{Kernel, TILE, lanes};

/// Makes [`exp2_up`] of a rounded argument an upper bound of the exact weight: the argument costs a factor of `1 + 2.2e-5` (as
/// for a block's tail in `scan.rs`), the product one rounding.
const WEIGHT_UP: f32 = 1.000_03;

/// Makes it a lower bound: `exp2_up` is at most `1 + 1.6e-4` times too large, its argument costs `1 + 2.2e-5`, the product one rounding.
const WEIGHT_DOWN: f32 = 0.999_75;

/// Outward factors of a sum: a lane of a block adds at most 64 non-negative terms in `f32`, which errs by less than
/// `64 * 2^-24 < 4e-6` of it; the sums of blocks in `f64` err by nothing of that size.
const SUM_UP: f64 = 1.000_005;
const SUM_DOWN: f64 = 0.999_995;

/// Thresholds that [`MassBounds::highest`] tries in one pass over the keys: as many pairs of sums as AVX-512 has registers for.
const TRIALS: usize = 8;

/// Passes at most: every third divides what is left of the range by nine, so twelve are enough for any shape of the excess.
const MAX_PASSES: usize = 40;

/// Where the thresholds of a pass lie that has no upper end yet, in logits above the lower one. From a guess that leaves room the way is one or two
/// logits long.
const RUNGS: [f32; TRIALS] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.375, 1.75, 2.5];

/// How much farther the next such pass reaches.
const FARTHER: f32 = 4.0;

/// Thresholds around the expected one are this part of the range apart, or a step.
const NARROWER: f32 = 64.0;

/// Logarithms of an excess are cut to this: no line is drawn through infinities.
const EXTREME: f64 = 40.0;

/// Keys with proven bounds of their scores, and of their softmax weights; memory that is reused.
///
/// # Units
///
/// Bounds are scores. A weight is `exp(scale * (score - reference))`.
///
/// # Examples
///
/// ```
/// use hira_kernels::{Kernel, MassBounds};
///
/// let mut keys = MassBounds::default();
/// keys.push_scores(&[4.0, 3.0, 0.0]);
/// keys.weigh(Kernel::best(), 1.0);
/// let [split] = keys.splits(Kernel::best(), [3.0]);
/// assert!(split.dropped >= (-4.0f64).exp() && split.dropped < 1.001 * (-4.0f64).exp());
/// assert!(split.kept <= 1.0 + (-1.0f64).exp());
/// // The highest threshold that keeps nine tenths of the mass is the second score.
/// let cut = keys.highest(Kernel::best(), f32::NEG_INFINITY, 1e-3, |split| 9.0 * split.dropped / split.kept);
/// assert!(cut.tau.is_some_and(|tau| tau > 2.99 && tau <= 3.0));
/// ```
#[derive(Clone, Debug, Default)]
pub struct MassBounds {
    lower: Vec<f32>,
    upper: Vec<f32>,
    /// `[0]`: at most the weight of each key, `[1]`: at least.
    weights: [Vec<f32>; 2],
    /// The largest upper bound.
    reference: f32,
    scale: f32,
}

/// The mass on both sides of a threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MassSplit {
    /// At least the weight of all keys whose score is below the threshold.
    pub dropped: f64,
    /// At most the weight of all keys whose score reaches it.
    pub kept: f64,
}

/// A threshold that was looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MassCut {
    /// The threshold, or none if the lowest one drops too much.
    pub tau: Option<f32>,
    /// The excess at the lowest one; NaN if there is no key.
    pub first: f64,
}

impl MassBounds {
    /// Forgets the keys; keeps the memory.
    pub fn clear(&mut self) {
        self.lower.clear();
        self.upper.clear();
    }

    /// Keys held.
    pub fn len(&self) -> usize {
        self.lower.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.lower.is_empty()
    }

    /// Adds keys with `lower[i] <= score <= upper[i]`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn push_bounds(&mut self, lower: &[f32], upper: &[f32]) {
        assert_eq!(lower.len(), upper.len(), "two bounds a key");
        self.lower.extend_from_slice(lower);
        self.upper.extend_from_slice(upper);
    }

    /// Adds keys whose scores are known.
    pub fn push_scores(&mut self, scores: &[f32]) {
        self.push_bounds(scores, scores);
    }

    /// Bytes held.
    pub fn memory_usage(&self) -> usize {
        let weights = self.weights.iter().map(Vec::capacity).sum::<usize>();
        4 * (weights + self.lower.capacity() + self.upper.capacity())
    }

    /// Weighs every key relative to the largest upper bound, and returns that; `-inf` if there is no key.
    ///
    /// # Panics
    ///
    /// If `scale` is negative or not finite.
    pub fn weigh(&mut self, kernel: Kernel, scale: f32) -> f32 {
        assert!(scale >= 0.0 && scale.is_finite(), "a scale");
        let [_, reference] = kernel.extremes(&self.upper);
        (self.reference, self.scale) = (reference, scale);
        let exponent = self.exponent();
        let bounds = [&self.lower, &self.upper];
        for ((weights, bounds), up) in self.weights.iter_mut().zip(bounds).zip([false, true]) {
            weights.clear();
            weights.resize(bounds.len(), 0.0);
            dispatch!(
                kernel,
                mass_weights(bounds, reference, exponent, up, weights)
            );
        }
        reference
    }

    /// Of a power of two: its argument for each score above the reference.
    fn exponent(&self) -> f32 {
        self.scale * std::f32::consts::LOG2_E
    }

    /// The mass below and above each of `taus`. Keys that may lie on either side count as dropped, with no more than the weight of a key at
    /// that threshold.
    ///
    /// # Numerics
    ///
    /// `dropped` is at most `1 + 2e-4` times what exact arithmetic makes of the bounds, plus `2^-124` a key; `kept` at least `1 - 3e-4`
    /// times, less as much. The same bits on every kernel, whatever the other thresholds.
    ///
    /// # Complexity
    ///
    /// O(keys N): one pass over three values a key, in registers.
    ///
    /// # Panics
    ///
    /// If keys were pushed since the last [`weigh`](Self::weigh).
    pub fn splits<const N: usize>(&self, kernel: Kernel, taus: [f32; N]) -> [MassSplit; N] {
        let [low, high] = &self.weights;
        assert!(
            low.len() == self.lower.len() && high.len() == self.lower.len(),
            "weighed"
        );
        let keys = Weighed {
            lower: &self.lower,
            low,
            high,
        };
        // What a key below a threshold can weigh.
        let (reference, exponent) = (self.reference, self.exponent());
        let mut at_taus = [0.0; N];
        dispatch!(
            kernel,
            mass_weights(&taus, reference, exponent, true, &mut at_taus)
        );
        for (at_tau, tau) in at_taus.iter_mut().zip(taus) {
            if tau >= reference {
                *at_tau = f32::INFINITY;
            }
        }
        let sums: [[f64; 2]; N] = dispatch!(kernel, mass_splits(keys, taus, at_taus));
        sums.map(|[dropped, kept]| MassSplit {
            dropped: dropped * SUM_UP,
            kept: kept * SUM_DOWN,
        })
    }

    /// The highest threshold from `from` up to the largest upper bound at which `excess` is at most 1, to within `step` (in logits).
    ///
    /// `excess` is what is dropped over what may be, and grows with the threshold. The threshold that is returned is one at which it was
    /// seen to be at most 1; there is none if it is more at the lowest.
    ///
    /// # Complexity
    ///
    /// A few passes of eight thresholds each: upwards until one drops too much, then around the place where the line through the logarithms of the
    /// excess at both ends of what is left crosses 0 (regula falsi), since that is nearly straight.
    pub fn highest(
        &self,
        kernel: Kernel,
        from: f32,
        step: f32,
        excess: impl Fn(MassSplit) -> f64,
    ) -> MassCut {
        if self.is_empty() {
            return MassCut {
                tau: None,
                first: f64::NAN,
            };
        }
        let top = self.reference;
        // Nothing is dropped from the least lower bound downwards.
        let [least, _] = kernel.extremes(&self.lower);
        let mut low = from.max(least);
        // Logarithms of the excess, within what a line can use.
        let log = |excess: f64| excess.ln().clamp(-EXTREME, EXTREME) as f32;
        let (mut first, mut below) = (f64::NAN, 0.0);
        let mut above: Option<(f32, f32)> = None;
        let (step, mut reach) = (step / self.scale, 1.0 / self.scale);
        for pass in 0..MAX_PASSES {
            let taus = match above {
                None => RUNGS.map(|rung| {
                    if rung == 0.0 {
                        low
                    } else {
                        top.min(low + rung * reach)
                    }
                }),
                Some((high, _)) if pass % 3 == 2 => {
                    let part = (high - low) / (TRIALS + 1) as f32;
                    std::array::from_fn(|i| low + part * (i + 1) as f32)
                }
                Some((high, above)) => {
                    let width = high - low;
                    let middle = low + width * (-below / (above - below));
                    let apart = step.max(width / NARROWER);
                    let from = middle - apart * (TRIALS - 1) as f32 / 2.0;
                    std::array::from_fn(|i| (from + apart * i as f32).clamp(low, high))
                }
            };
            let splits = self.splits(kernel, taus);
            if pass == 0 {
                first = excess(splits[0]);
                if first.is_nan() || first > 1.0 {
                    return MassCut { tau: None, first };
                }
            }
            // By halves: one that drops too much, or none, behind one that does not.
            let (mut enough, mut end) = (0, TRIALS);
            while enough < end {
                let middle = (enough + end) / 2;
                if excess(splits[middle]) <= 1.0 {
                    enough = middle + 1;
                } else {
                    end = middle;
                }
            }
            let before = (low, above.map(|(high, _)| high));
            if let Some(last) = enough.checked_sub(1) {
                (low, below) = (taus[last], log(excess(splits[last])));
            }
            if enough < TRIALS {
                above = Some((taus[enough], log(excess(splits[enough]))));
            }
            let after = (low, above.map(|(high, _)| high));
            let done = match after {
                // No more than a step apart, or nothing in between.
                (low, Some(high)) => high - low <= step || before == after,
                (low, None) => low >= top,
            };
            if done {
                break;
            }
            reach *= FARTHER;
        }
        MassCut {
            tau: Some(low),
            first,
        }
    }
}

/// Keys as [`MassBounds`] weighs them.
#[derive(Clone, Copy)]
pub(crate) struct Weighed<'a> {
    pub(crate) lower: &'a [f32],
    /// At most the weight of each key.
    pub(crate) low: &'a [f32],
    /// At least.
    pub(crate) high: &'a [f32],
}

impl<'a> Weighed<'a> {
    /// Blocks of as many keys as a lane adds up in `f32`.
    pub(crate) fn blocks(self) -> impl Iterator<Item = Weighed<'a>> {
        const BLOCK: usize = BLOCK_TILES * TILE;
        let lower = self.lower.chunks(BLOCK);
        let both = self.low.chunks(BLOCK).zip(self.high.chunks(BLOCK));
        lower
            .zip(both)
            .map(|(lower, (low, high))| Weighed { lower, low, high })
    }
}

/// The body of every kernel's `mass_weights`: bounds of `exp2((bound - reference) * exponent)`, from above if `up`.
#[inline(always)]
pub(crate) fn mass_weights(
    bounds: &[f32],
    reference: f32,
    exponent: f32,
    up: bool,
    weights: &mut [f32],
) {
    for (weight, &bound) in weights.iter_mut().zip(bounds) {
        let y = (bound - reference) * exponent;
        let power = exp2_up(y);
        // Where `exp2_up` raises its argument it is no lower bound: one more for the rounding of `y`.
        let down = if y > MIN_EXPONENT + 1.0 {
            power * WEIGHT_DOWN
        } else {
            0.0
        };
        *weight = if up { power * WEIGHT_UP } else { down };
    }
}

/// The portable form, which says what the vector kernels compute: for each threshold the sums of `min(high, at_tau)` where `lower < tau`, and of
/// `low` elsewhere, each in sixteen lanes a block.
pub(crate) fn mass_splits<const N: usize>(
    keys: Weighed<'_>,
    taus: [f32; N],
    at_taus: [f32; N],
) -> [[f64; 2]; N] {
    let mut sums = [[0.0; 2]; N];
    for block in keys.blocks() {
        for ((sums, &tau), &at_tau) in sums.iter_mut().zip(&taus).zip(&at_taus) {
            let (mut dropped, mut kept) = ([0.0f32; TILE], [0.0f32; TILE]);
            let weights = block.low.iter().zip(block.high);
            for (i, (&lower, (&low, &high))) in block.lower.iter().zip(weights).enumerate() {
                if lower < tau {
                    dropped[i % TILE] += if high < at_tau { high } else { at_tau };
                } else {
                    kept[i % TILE] += low;
                }
            }
            add_lanes(sums, [dropped, kept]);
        }
    }
    sums
}

/// Adds the lanes of one block to both sums.
#[inline(always)]
pub(crate) fn add_lanes(sums: &mut [f64; 2], lanes: [[f32; TILE]; 2]) {
    for (sum, lanes) in sums.iter_mut().zip(lanes) {
        *sum += lanes::tree_f64(lanes.map(f64::from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that a test can repeat, in `-1..1`.
    fn noise(i: usize) -> f64 {
        ((i as f64 * 12.9898).sin() * 43_758.545_3).fract()
    }

    #[test]
    fn splits_bound_the_exact_sums_on_every_kernel() {
        for count in [0, 1, 15, 16, 17, 1000, 3000] {
            for (scale, width) in [
                (0.125f32, 0.0),
                (0.125, 2.0),
                (1.0, 0.5),
                (30.0, 1.0),
                (0.0, 1.0),
            ] {
                let scores: Vec<f64> = (0..count).map(|i| 20.0 * noise(i)).collect();
                let side = |sign: f64| -> Vec<f32> {
                    let moved = scores.iter().enumerate();
                    moved
                        .map(|(i, s)| (s + sign * width * (noise(i + 7) + 1.0)) as f32)
                        .collect()
                };
                let (lower, upper) = (side(-1.0), side(1.0));
                let reference = upper.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weight = |score: f32| {
                    (f64::from(scale) * (f64::from(score) - f64::from(reference))).exp()
                };
                let taus = [-30.0, -5.0, 0.0, 7.25, 19.0, reference];
                let splits = Kernel::available().map(|kernel| {
                    let mut keys = MassBounds::default();
                    keys.push_bounds(&lower, &upper);
                    assert_eq!(keys.weigh(kernel, scale), reference);
                    let splits = keys.splits(kernel, taus);
                    for (tau, split) in taus.into_iter().zip(splits) {
                        assert_eq!(keys.splits(kernel, [tau]), [split]);
                    }
                    splits
                });
                let splits: Vec<[MassSplit; 6]> = splits.collect();
                assert!(splits.iter().all(|&of_kernel| of_kernel == splits[0]));
                for (tau, MassSplit { dropped, kept }) in taus.into_iter().zip(splits[0]) {
                    let mut exact = [0.0; 2];
                    for (&lower, &upper) in lower.iter().zip(&upper) {
                        if lower < tau {
                            exact[0] += weight(if upper < tau { upper } else { tau });
                        } else {
                            exact[1] += weight(lower);
                        }
                    }
                    let tiny = count as f64 * f64::exp2(-124.0);
                    assert!(dropped >= exact[0] && dropped <= exact[0] * 1.0002 + tiny);
                    assert!(kept <= exact[1] && kept >= exact[1] * 0.9997 - tiny);
                }
            }
        }
    }

    #[test]
    fn the_highest_threshold_is_enough_and_one_step_more_is_not() {
        let scores: Vec<f32> = (0..2000).map(|i| (25.0 * noise(i)) as f32).collect();
        let kernel = Kernel::best();
        let mut keys = MassBounds::default();
        keys.push_scores(&scores);
        keys.weigh(kernel, 0.25);
        for ratio in [1e-6, 0.01, 0.5, 1.0, 10.0] {
            let excess = |split: MassSplit| split.dropped / (ratio * split.kept);
            let MassCut { tau, first } = keys.highest(kernel, f32::NEG_INFINITY, 0.01, excess);
            let tau = tau.expect("nothing is dropped at the least score");
            assert_eq!(first, 0.0);
            let [here, above] = keys.splits(kernel, [tau, tau + 0.05]);
            assert!(excess(here) <= 1.0 && excess(above) > 1.0, "{ratio} {tau}");
        }
        let never = keys.highest(kernel, 0.0, 0.01, |split| split.dropped * 1e9);
        assert!(never.tau.is_none() && never.first > 1.0);
        // From far below, and where scores are so large that nothing lies between a score and a fraction of a logit more.
        let half = |split: MassSplit| split.dropped / split.kept;
        for magnify in [1.0, 1e6, 1e9] {
            let scores: Vec<f32> = scores.iter().map(|score| magnify * score).collect();
            let mut keys = MassBounds::default();
            keys.push_scores(&scores);
            let largest = keys.weigh(kernel, 1.0);
            let cut = keys.highest(kernel, f32::MIN, 0.01, half);
            let tau = cut.tau.expect("nothing is dropped at the lowest");
            let [here, top] = keys.splits(kernel, [tau, largest]);
            assert_eq!(cut.first, 0.0);
            assert!(half(here) <= 1.0 && (half(top) > 1.0) == (magnify == 1.0));
            assert!(magnify == 1.0 || tau == largest, "{magnify} {tau}");
        }
        let nothing = MassBounds::default().highest(kernel, 0.0, 0.01, |_| 0.0);
        assert_eq!(nothing.tau, None);
    }
}
