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

/// Thresholds that [`MassBounds::highest`] tries at most: every third of them halves the range.
const MAX_TRIALS: usize = 90;

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
/// keys.weigh(Kernel::best(), 1.0, 4.0);
/// let split = keys.split(Kernel::best(), 3.0);
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

    /// The largest upper bound; `-inf` if there is no key.
    pub fn largest(&self) -> f32 {
        self.upper.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// Bytes held.
    pub fn memory_usage(&self) -> usize {
        let weights = self.weights.iter().map(Vec::capacity).sum::<usize>();
        4 * (weights + self.lower.capacity() + self.upper.capacity())
    }

    /// Weighs every key relative to `reference`, which no upper bound exceeds.
    ///
    /// # Panics
    ///
    /// If an upper bound exceeds `reference` (or is NaN), or `scale` is negative or not finite.
    pub fn weigh(&mut self, kernel: Kernel, scale: f32, reference: f32) {
        assert!(self.upper.iter().all(|&upper| upper <= reference));
        assert!(scale >= 0.0 && scale.is_finite(), "a scale");
        (self.reference, self.scale) = (reference, scale);
        let bounds = [&self.lower, &self.upper];
        for ((weights, bounds), up) in self.weights.iter_mut().zip(bounds).zip([false, true]) {
            weights.clear();
            weights.resize(bounds.len(), 0.0);
            let exponent = scale * std::f32::consts::LOG2_E;
            dispatch!(
                kernel,
                mass_weights(bounds, reference, exponent, up, weights)
            );
        }
    }

    /// The mass below and above `tau`. Keys that may lie on either side count as dropped, with no more than the weight of a key at `tau`.
    ///
    /// # Numerics
    ///
    /// `dropped` is at most `1 + 2e-4` times what exact arithmetic makes of the bounds, plus `2^-124` a key; `kept` at least `1 - 3e-4`
    /// times, less as much.
    ///
    /// # Complexity
    ///
    /// O(keys): four values a key, in registers.
    ///
    /// # Panics
    ///
    /// If keys were pushed since the last [`weigh`](Self::weigh).
    pub fn split(&self, kernel: Kernel, tau: f32) -> MassSplit {
        let [low, high] = &self.weights;
        assert!(
            low.len() == self.lower.len() && high.len() == self.lower.len(),
            "weighed"
        );
        // What a key below `tau` can weigh.
        let at_tau = if tau < self.reference {
            let y = (tau - self.reference) * (self.scale * std::f32::consts::LOG2_E);
            exp2_up(y) * WEIGHT_UP
        } else {
            f32::INFINITY
        };
        let [dropped, kept] = dispatch!(kernel, mass_split(&self.lower, low, high, tau, at_tau));
        MassSplit {
            dropped: dropped * SUM_UP,
            kept: kept * SUM_DOWN,
        }
    }

    /// The highest threshold from `from` up to the largest upper bound at which `excess` is at most 1, to within `step` (in logits).
    ///
    /// `excess` is what is dropped over what may be, and grows with the threshold. The threshold that is returned is one at which it was
    /// seen to be at most 1; there is none if it is more at the lowest.
    ///
    /// # Complexity
    ///
    /// A few splits, since the logarithm of the excess is nearly straight: steps along its slope until a threshold drops too much, then the
    /// line between the ends of what is left (regula falsi), kept away from both.
    pub fn highest(
        &self,
        kernel: Kernel,
        from: f32,
        step: f32,
        excess: impl Fn(MassSplit) -> f64,
    ) -> MassCut {
        // Nothing is dropped from the least lower bound downwards, so that is where to start from.
        let least = self.lower.iter().copied().fold(f32::INFINITY, f32::min);
        let at = |tau: f32| excess(self.split(kernel, tau));
        if self.is_empty() {
            return MassCut {
                tau: None,
                first: f64::NAN,
            };
        }
        let (mut low, mut high) = (from.max(least), self.largest());
        let first = at(low);
        let cut = |tau| MassCut { tau, first };
        if first.is_nan() || first > 1.0 {
            return cut(None);
        }
        // Logarithms of the excess, within what a line can use; none at the upper end until a threshold drops too much.
        let log = |excess: f64| excess.ln().clamp(-EXTREME, EXTREME) as f32;
        let (mut below, mut above): (f32, Option<f32>) = (log(first), None);
        // Logits of the excess a score: at first as if all that is dropped weighed as much as a key at the threshold.
        let mut slope = self.scale;
        let mut step = step / self.scale;
        for trial in 0..MAX_TRIALS {
            let width = high - low;
            if width <= step && above.is_some() {
                break;
            }
            let middle = match above {
                // Every third trial halves, so that no shape of the excess makes this long.
                Some(_) if trial % 3 == 2 => low + width * 0.5,
                Some(above) => low + width * (-below / (above - below)).clamp(0.02, 0.98),
                None => {
                    let further = (low + step.max(-below / slope)).min(high);
                    step *= 1.5;
                    further
                }
            };
            if middle <= low || above.is_some() && middle >= high {
                break;
            }
            let there = at(middle);
            if there <= 1.0 {
                slope = ((log(there) - below) / (middle - low)).max(0.25 * self.scale);
                (low, below) = (middle, log(there));
                if low == high {
                    break;
                }
            } else {
                (high, above) = (middle, Some(log(there)));
            }
        }
        cut(Some(low))
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

/// The body of every kernel's `mass_split`: sums of `min(high, at_tau)` where `lower < tau`, and of `low` elsewhere.
#[inline(always)]
pub(crate) fn mass_split(
    lower: &[f32],
    low: &[f32],
    high: &[f32],
    tau: f32,
    at_tau: f32,
) -> [f64; 2] {
    let mut sums = [0.0; 2];
    const BLOCK: usize = BLOCK_TILES * TILE;
    let blocks = lower
        .chunks(BLOCK)
        .zip(low.chunks(BLOCK))
        .zip(high.chunks(BLOCK));
    for ((lower, low), high) in blocks {
        let (mut dropped, mut kept) = ([0.0f32; TILE], [0.0f32; TILE]);
        let mut add = |l: usize, lower: f32, low: f32, high: f32| {
            let high = if high < at_tau { high } else { at_tau };
            dropped[l] += if lower < tau { high } else { 0.0 };
            kept[l] += if lower < tau { 0.0 } else { low };
        };
        let (lower, lower_rest) = lower.as_chunks::<TILE>();
        let (low, low_rest) = low.as_chunks::<TILE>();
        let (high, high_rest) = high.as_chunks::<TILE>();
        for ((lower, low), high) in lower.iter().zip(low).zip(high) {
            for l in 0..TILE {
                add(l, lower[l], low[l], high[l]);
            }
        }
        for (l, ((&lower, &low), &high)) in
            lower_rest.iter().zip(low_rest).zip(high_rest).enumerate()
        {
            add(l, lower, low, high);
        }
        for (sum, terms) in sums.iter_mut().zip([dropped, kept]) {
            *sum += lanes::tree_f64(terms.map(f64::from));
        }
    }
    sums
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
                let reference = upper.iter().copied().fold(-100.0, f32::max);
                let weight = |score: f32| {
                    (f64::from(scale) * (f64::from(score) - f64::from(reference))).exp()
                };
                for tau in [-30.0, -5.0, 0.0, 7.25, 19.0, reference] {
                    let mut exact = [0.0; 2];
                    for (&lower, &upper) in lower.iter().zip(&upper) {
                        if lower < tau {
                            exact[0] += weight(if upper < tau { upper } else { tau });
                        } else {
                            exact[1] += weight(lower);
                        }
                    }
                    let splits = Kernel::available().map(|kernel| {
                        let mut keys = MassBounds::default();
                        keys.push_bounds(&lower, &upper);
                        keys.weigh(kernel, scale, reference);
                        keys.split(kernel, tau)
                    });
                    let splits: Vec<MassSplit> = splits.collect();
                    let first = splits[0];
                    assert!(splits.iter().all(|&split| split == first));
                    let tiny = count as f64 * f64::exp2(-124.0);
                    let MassSplit { dropped, kept } = first;
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
        keys.weigh(kernel, 0.25, keys.largest());
        for ratio in [1e-6, 0.01, 0.5, 1.0, 10.0] {
            let excess = |split: MassSplit| split.dropped / (ratio * split.kept);
            let MassCut { tau, first } = keys.highest(kernel, f32::NEG_INFINITY, 0.01, excess);
            let tau = tau.expect("nothing is dropped at the least score");
            assert_eq!(first, 0.0);
            assert!(excess(keys.split(kernel, tau)) <= 1.0);
            assert!(
                excess(keys.split(kernel, tau + 0.05)) > 1.0,
                "{ratio} {tau}"
            );
        }
        let never = keys.highest(kernel, 0.0, 0.01, |split| split.dropped * 1e9);
        assert!(never.tau.is_none() && never.first > 1.0);
        let nothing = MassBounds::default().highest(kernel, 0.0, 0.01, |_| 0.0);
        assert_eq!(nothing.tau, None);
    }
}
