//! The arithmetic of tail compensation: what is left of the weights of blocks of keys, and sums over them.

use std::ops::Range;

use crate::kernel::dispatch;
use crate::{Kernel, TILE, lanes};

/// Most blocks that are weighed together.
pub const WEIGHED_BLOCKS: usize = 128;

/// What is known of the weights of up to [`WEIGHED_BLOCKS`] blocks of keys.
///
/// # Units
///
/// Softmax weights, relative to two references: that of a search, and that of an answer. [`BlockFactors`] lead from the one to the other.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockWeights {
    /// The weight of keys that are part of the answer although a search counted them among those that it left out; relative to the answer's
    /// reference.
    pub counted: [f32; WEIGHED_BLOCKS],
    /// Before [`Kernel::weigh_blocks`] at most the weight of the keys that the search left out, relative to its reference; after it at most that of
    /// the keys that the answer leaves out, relative to the answer's.
    pub lowest: [f32; WEIGHED_BLOCKS],
    /// At least that weight.
    pub highest: [f32; WEIGHED_BLOCKS],
    /// Likewise, an estimate: between the two.
    pub estimates: [f32; WEIGHED_BLOCKS],
    /// At least how far the estimate is from the truth.
    pub ranges: [f32; WEIGHED_BLOCKS],
}

impl Default for BlockWeights {
    fn default() -> Self {
        let zeros = [0.0; WEIGHED_BLOCKS];
        Self {
            counted: zeros,
            lowest: zeros,
            highest: zeros,
            estimates: zeros,
            ranges: zeros,
        }
    }
}

/// Factors from weights relative to a search's reference to those relative to an answer's, and of what was counted there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockFactors {
    /// Of lower ends.
    pub low: f32,
    /// Of upper ends.
    pub high: f32,
    /// Of estimates.
    pub middle: f32,
    /// Of what is taken from upper ends.
    pub counted_low: f32,
    /// Of what is taken from lower ends.
    pub counted_high: f32,
}

/// Sums of the [`BlockWeights`] of the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockTotals {
    /// Of the lower ends.
    pub lowest: f64,
    /// Of the upper ends.
    pub highest: f64,
    /// Of the estimates.
    pub estimates: f64,
    /// Of how far those may be from the truth.
    pub ranges: f64,
}

impl Kernel {
    /// Brings the ends of blocks' weights, and the estimates, to another reference, and takes away what was counted: the first `unscored.len()` of
    /// `weights`. The upper ends before that are `unscored + scored`.
    ///
    /// # Shapes
    ///
    /// `unscored` and `scored`: the same length, at most [`WEIGHED_BLOCKS`].
    ///
    /// # Numerics
    ///
    /// Ends are a product or two and their sums, each rounded to nearest: whoever wants bounds makes the factors smaller and larger by as much. Nothing is below
    /// 0. The same bits on every kernel.
    ///
    /// # Panics
    ///
    /// If `unscored` and `scored` differ in length, or are longer than [`WEIGHED_BLOCKS`].
    pub fn weigh_blocks(
        self,
        factors: BlockFactors,
        unscored: &[f32],
        scored: &[f32],
        weights: &mut BlockWeights,
    ) {
        assert_eq!(unscored.len(), scored.len(), "one sum of each kind a block");
        assert!(
            unscored.len() <= WEIGHED_BLOCKS,
            "no more blocks than there is room for"
        );
        dispatch!(self, weigh_blocks(factors, unscored, scored, weights));
    }

    /// Sums over the blocks that lie at `here`, in `f64`: in sixteen lanes, then in a pairwise tree.
    ///
    /// # Panics
    ///
    /// If `here` reaches past [`WEIGHED_BLOCKS`].
    pub fn sum_blocks(self, weights: &BlockWeights, here: Range<usize>) -> BlockTotals {
        dispatch!(self, sum_blocks(weights, here))
    }

    /// `sum of a[0][i] b[0][i] + a[1][i] b[1][i]`, each term in `f32`, three roundings, and their sum in `f64`.
    ///
    /// # Panics
    ///
    /// If one of them has another length.
    pub fn sum_of_products(self, a: [&[f32]; 2], b: [&[f32]; 2]) -> f64 {
        for values in a.iter().chain(&b) {
            assert_eq!(values.len(), a[0].len(), "as many factors of each kind");
        }
        dispatch!(self, sum_of_products(a, b))
    }

    /// Writes 1 where a value lies within the half-open range and 0 elsewhere, and returns how many do.
    ///
    /// # Panics
    ///
    /// If `flags` has another length than `values`.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::Kernel;
    ///
    /// let mut flags = [0.0; 4];
    /// assert_eq!(Kernel::best().flags_within(&[3.0, 1.0, 2.0, 0.5], 1.0..3.0, &mut flags), 2);
    /// assert_eq!(flags, [0.0, 1.0, 1.0, 0.0]);
    /// ```
    pub fn flags_within(self, values: &[f32], within: Range<f32>, flags: &mut [f32]) -> usize {
        assert_eq!(values.len(), flags.len(), "a flag for every value");
        dispatch!(self, flags_within(values, within, flags))
    }
}

/// The portable form, which the vector kernels compile for their own registers; so are those below.
#[inline(always)]
pub(crate) fn weigh_blocks(
    factors: BlockFactors,
    unscored: &[f32],
    scored: &[f32],
    weights: &mut BlockWeights,
) {
    let ends = weights.lowest.iter_mut().zip(&mut weights.highest);
    let guesses = weights.estimates.iter_mut().zip(&mut weights.ranges);
    let sums = unscored.iter().zip(scored).zip(&weights.counted);
    for (((lowest, highest), (estimate, range)), ((&unscored, &scored), &counted)) in
        ends.zip(guesses).zip(sums)
    {
        let most = (unscored + scored) * factors.high - counted * factors.counted_low;
        let least = *lowest * factors.low - counted * factors.counted_high;
        let most = if most > 0.0 { most } else { 0.0 };
        let least = if least > 0.0 { least } else { 0.0 };
        let between = *estimate * factors.middle - counted;
        let between = if between > least { between } else { least };
        let between = if between < most { between } else { most };
        let (above, below) = (most - between, between - least);
        (*lowest, *highest, *estimate) = (least, most, between);
        *range = if above > below { above } else { below };
    }
}

#[inline(always)]
pub(crate) fn sum_blocks(weights: &BlockWeights, here: Range<usize>) -> BlockTotals {
    BlockTotals {
        lowest: wide_sum(&weights.lowest[here.clone()]),
        highest: wide_sum(&weights.highest[here.clone()]),
        estimates: wide_sum(&weights.estimates[here.clone()]),
        ranges: wide_sum(&weights.ranges[here]),
    }
}

#[inline(always)]
fn wide_sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0; TILE];
    let (blocks, rest) = values.as_chunks::<TILE>();
    for block in blocks {
        for (lane, &value) in lanes.iter_mut().zip(block) {
            *lane += f64::from(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(value);
    }
    lanes::tree_f64(lanes)
}

#[inline(always)]
pub(crate) fn sum_of_products(a: [&[f32]; 2], b: [&[f32]; 2]) -> f64 {
    let mut lanes = [0.0; TILE];
    let ([a0, a1], [b0, b1]) = (a, b);
    let ((a0, rest0), (a1, rest1)) = (a0.as_chunks::<TILE>(), a1.as_chunks::<TILE>());
    let ((b0, last0), (b1, last1)) = (b0.as_chunks::<TILE>(), b1.as_chunks::<TILE>());
    for ((a0, b0), (a1, b1)) in a0.iter().zip(b0).zip(a1.iter().zip(b1)) {
        for l in 0..TILE {
            lanes[l] += f64::from(a0[l] * b0[l] + a1[l] * b1[l]);
        }
    }
    for (l, lane) in lanes[..rest0.len()].iter_mut().enumerate() {
        *lane += f64::from(rest0[l] * last0[l] + rest1[l] * last1[l]);
    }
    lanes::tree_f64(lanes)
}

#[inline(always)]
pub(crate) fn flags_within(values: &[f32], within: Range<f32>, flags: &mut [f32]) -> usize {
    let mut count = 0u32;
    for (flag, &value) in flags.iter_mut().zip(values) {
        let is_within = (value >= within.start) & (value < within.end);
        *flag = if is_within { 1.0 } else { 0.0 };
        count += u32::from(is_within);
    }
    count as usize
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn every_kernel_weighs_blocks_alike_and_outward(
            rows in vec((0.0f32..2.0, 0.0f32..1.0, 0.0f32..1.0, 0.0f32..3.0), 0..=WEIGHED_BLOCKS),
            scale in 0.1f32..3.0,
        ) {
            let factors = BlockFactors {
                low: scale * 0.99,
                high: scale * 1.01,
                middle: scale,
                counted_low: 0.99,
                counted_high: 1.01,
            };
            let mut start = BlockWeights::default();
            let (mut unscored, mut scored) = (vec![], vec![]);
            for (i, &(not, done, share, counted)) in rows.iter().enumerate() {
                unscored.push(not);
                scored.push(done);
                start.lowest[i] = not * share + done;
                start.estimates[i] = not * share.sqrt() + done;
                start.counted[i] = counted;
            }
            let mut expected = start.clone();
            Kernel::Scalar.weigh_blocks(factors, &unscored, &scored, &mut expected);
            for kernel in Kernel::available() {
                let mut weights = start.clone();
                kernel.weigh_blocks(factors, &unscored, &scored, &mut weights);
                prop_assert_eq!(&weights, &expected, "{}", kernel.name());
            }
            for i in 0..rows.len() {
                let [low, high, estimate, range] = [
                    expected.lowest[i],
                    expected.highest[i],
                    expected.estimates[i],
                    expected.ranges[i],
                ].map(f64::from);
                prop_assert!(0.0 <= low && (low <= estimate || low > high) && estimate <= high);
                // Any weight between the two ends of the search, less what was counted.
                let [scale, counted] = [scale, start.counted[i]].map(f64::from);
                for truth in [start.lowest[i], start.estimates[i], unscored[i] + scored[i]] {
                    let truth = f64::from(truth) * scale - counted;
                    if truth >= 0.0 {
                        prop_assert!((low..=high).contains(&truth), "{low} {truth} {high}");
                        prop_assert!((truth - estimate).abs() <= range * (1.0 + 1e-6) + 1e-6);
                    }
                }
            }
            let here = rows.len() / 3..rows.len();
            let exact = |values: &[f32]| -> f64 {
                values[here.clone()].iter().map(|&value| f64::from(value)).sum()
            };
            let of_scalar = Kernel::Scalar.sum_blocks(&expected, here.clone());
            for (sum, values) in [
                (of_scalar.lowest, &expected.lowest),
                (of_scalar.highest, &expected.highest),
                (of_scalar.estimates, &expected.estimates),
                (of_scalar.ranges, &expected.ranges),
            ] {
                prop_assert!((sum - exact(values)).abs() <= 1e-12 * exact(values));
            }
            for kernel in Kernel::available() {
                prop_assert_eq!(kernel.sum_blocks(&expected, here.clone()), of_scalar);
            }
            // What is beyond the blocks is left alone.
            prop_assert_eq!(bits(&expected.highest[rows.len()..]), bits(&start.highest[rows.len()..]));
        }

        #[test]
        fn flags_are_those_of_a_range(
            values in vec(prop_oneof![-3.0f32..3.0, Just(1.0), Just(-0.0)], 0..200),
            start in prop_oneof![-3.0f32..3.0, Just(1.0), Just(0.0)],
            end in prop_oneof![-3.0f32..3.0, Just(1.0)],
        ) {
            let is_within = |value: &&f32| (start..end).contains(*value);
            let flag = |value: &f32| f32::from(u8::from(is_within(&value)));
            let expected: Vec<f32> = values.iter().map(flag).collect();
            for kernel in Kernel::available() {
                let mut flags = vec![7.0; values.len()];
                let count = kernel.flags_within(&values, start..end, &mut flags);
                prop_assert_eq!(count, values.iter().filter(is_within).count());
                prop_assert_eq!(&flags, &expected);
            }
        }

        #[test]
        fn sums_of_products_are_the_same_on_every_kernel(values in vec(-3.0f32..3.0, 0..200)) {
            let reversed: Vec<f32> = values.iter().rev().copied().collect();
            let term = |(&a, &b): (&f32, &f32)| f64::from(a * b + b * a);
            let exact: f64 = values.iter().zip(&reversed).map(term).sum();
            let (a, b) = ([&values[..], &reversed], [&reversed[..], &values]);
            let expected = Kernel::Scalar.sum_of_products(a, b);
            prop_assert!((expected - exact).abs() < 1e-9);
            for kernel in Kernel::available() {
                prop_assert_eq!(kernel.sum_of_products(a, b), expected);
            }
        }
    }
}
