//! Softmax weights, weighted sums of value rows, and partial results that merge.

use crate::exp::exp;
use crate::kernel::dispatch;
use crate::score::Rows;
use crate::stored::for_elements;
use crate::{Kernel, StoredSlice, TILE};

/// Attention over some of the keys, in a form that merges with attention over others.
///
/// `acc = sum w_i v_i` and `sum = sum w_i` with `w_i = exp(logit_i - max)`.
///
/// # Units
///
/// `max` is a logit, that is, a score times the softmax scale.
///
/// # Examples
///
/// ```
/// use hira_kernels::SoftmaxState;
///
/// // Two keys with logits 0 and ln 3 weigh 1/4 and 3/4.
/// let mut left = SoftmaxState { max: 0.0, sum: 1.0, acc: vec![1.0] };
/// let right = SoftmaxState { max: 3.0f32.ln(), sum: 1.0, acc: vec![5.0] };
/// left.merge(&right);
/// let mut out = [0.0];
/// left.finish_into(&mut out);
/// assert!((out[0] - 4.0).abs() < 1e-5);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxState {
    /// Largest logit so far; `-inf` while there is none.
    pub max: f32,
    /// Sum of the weights.
    pub sum: f32,
    /// Sum of weight times value row.
    pub acc: Vec<f32>,
}

impl SoftmaxState {
    /// Attention over no key, for value rows of `value_dim`.
    pub fn new(value_dim: usize) -> Self {
        Self {
            max: f32::NEG_INFINITY,
            sum: 0.0,
            acc: vec![0.0; value_dim],
        }
    }

    /// Back to attention over no key; allocates only if `value_dim` grows.
    pub fn reset(&mut self, value_dim: usize) {
        self.max = f32::NEG_INFINITY;
        self.sum = 0.0;
        self.acc.clear();
        self.acc.resize(value_dim, 0.0);
    }

    /// Whether no key has contributed.
    pub fn is_empty(&self) -> bool {
        self.max == f32::NEG_INFINITY
    }

    /// Adds the keys that `other` stands for.
    ///
    /// # Numerics
    ///
    /// Each merge rounds each component three times and scales with [`exp_weights_into`](Kernel::exp_weights_into)'s
    /// exponential; it commutes bit for bit. Weights that fall below `exp(-87)` of the new maximum vanish.
    ///
    /// # Panics
    ///
    /// If the value dimensions differ.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(
            self.acc.len(),
            other.acc.len(),
            "both have the same value dimension"
        );
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            // what the sums below come to, without their exponentials: one merge in two of a short dense step
            (self.max, self.sum) = (other.max, other.sum);
            self.acc.copy_from_slice(&other.acc);
            return;
        }
        let max = self.max.max(other.max);
        let (ours, theirs) = (exp(self.max - max), exp(other.max - max));
        self.max = max;
        self.sum = self.sum * ours + other.sum * theirs;
        for (value, &added) in self.acc.iter_mut().zip(&other.acc) {
            *value = *value * ours + added * theirs;
        }
    }

    /// `ln(sum of exp(logit))`; `-inf` if no key has contributed.
    pub fn log_sum_exp(&self) -> f32 {
        if self.is_empty() {
            f32::NEG_INFINITY
        } else {
            self.max + self.sum.ln()
        }
    }

    /// Writes the attention output `acc / sum`; zeros if no key has contributed.
    ///
    /// # Panics
    ///
    /// If `out` has another length than the value rows.
    pub fn finish_into(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.acc.len(), "the output is one value row");
        if self.is_empty() {
            out.fill(0.0);
            return;
        }
        for (out, value) in out.iter_mut().zip(&self.acc) {
            *out = value / self.sum;
        }
    }
}

impl Kernel {
    /// `weights[i] = exp(scale * (scores[i] - max_score))`, and their sum.
    ///
    /// # Units
    ///
    /// `scores` and `max_score` are scores, `scale * score` is a logit.
    ///
    /// # Numerics
    ///
    /// The argument rounds twice (difference, product); the exponential of what results has relative error below
    /// `2^-22`, is exactly 1 at 0, and is 0 below `-87` (and at `-inf`). With `scores[i] <= max_score` no weight exceeds
    /// 1; an argument above 88 counts as 88. The sum runs in sixteen lanes in index order, then the pairwise tree of the
    /// score. The same bits on every kernel.
    ///
    /// # Panics
    ///
    /// If the lengths differ. `max_score` must be finite and no score NaN; otherwise weights are meaningless.
    pub fn exp_weights_into(
        self,
        scores: &[f32],
        scale: f32,
        max_score: f32,
        weights: &mut [f32],
    ) -> f32 {
        assert_eq!(scores.len(), weights.len(), "one weight per score");
        dispatch!(self, exp_weights(scores, scale, max_score, weights))
    }

    /// `out += sum of weights[i] * values[rows[i]]`.
    ///
    /// Rows are fetched ahead of their use.
    ///
    /// # Shapes
    ///
    /// `values`: `[N][Dv]` in any precision, `out`: `[Dv]`, `weights` and `rows`: the same length.
    ///
    /// # Numerics
    ///
    /// Every component is a chain of fused multiply-adds in the order of `rows`, from the value it had: the same bits on
    /// every kernel, and the same whether the rows come in one call or in several.
    ///
    /// # Panics
    ///
    /// If a row is not below `N`, or `weights` and `rows` differ in length.
    pub fn weighted_sum_into<'a>(
        self,
        weights: &[f32],
        values: impl Into<StoredSlice<'a>>,
        rows: &[u32],
        out: &mut [f32],
    ) {
        self.weighted_sums_into([weights], values, rows, [out]);
    }

    /// Several [`weighted_sum_into`](Self::weighted_sum_into) over the same rows, each of which is read once: `out[n] += sum of weights[n][i] *
    /// values[rows[i]]`, the same bits as in as many calls.
    ///
    /// # Shapes
    ///
    /// `values`: `[N][Dv]` in any precision, `out`: `[Dv]` each, `weights` and `rows`: the same length each.
    ///
    /// # Panics
    ///
    /// If a row is not below `N`, the outputs differ in length, or `weights` and `rows` do.
    pub fn weighted_sums_into<'a, const N: usize>(
        self,
        weights: [&[f32]; N],
        values: impl Into<StoredSlice<'a>>,
        rows: &[u32],
        out: [&mut [f32]; N],
    ) {
        for weights in weights {
            assert_eq!(weights.len(), rows.len(), "one weight per row");
        }
        let Some(dim) = out.first().map(|out| out.len()) else {
            return;
        };
        assert!(
            out.iter().all(|out| out.len() == dim),
            "the outputs have the same length"
        );
        if dim == 0 {
            return;
        }
        for_elements!(values.into(), values => {
            dispatch!(self, weighted_sums(weights, Rows::gather(values, dim, rows), out))
        });
    }
}

/// The sum of a run of weights in sixteen lanes, for what a vector kernel leaves over.
pub(crate) fn add_lanes(lanes: &mut [f32; TILE], weights: &[f32]) {
    for (lane, weight) in lanes.iter_mut().zip(weights) {
        *lane += weight;
    }
}
