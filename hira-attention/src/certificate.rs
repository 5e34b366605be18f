//! What is proven about an output: how much softmax mass was dropped, how far the output can be from dense attention.
//!
//! Keys and values are the stored ones: they may have been rounded to 16 bits when they were stored, which is exact from here on.
//!
//! # Derivation
//!
//! Let `s_i` be canonical scores and `s_i*` the exact dot products: `|s_i - s_i*| <= delta`, with
//! `delta = gamma ||q|| max ||k||` and `gamma` from [`Arithmetic`]. With `lambda = scale * delta`, an exact weight
//! `exp(scale s_i*)` differs from `exp(scale s_i)` by a factor in `[e^-lambda, e^lambda]`.
//!
//! *Dropped mass.* The search proves `T >= sum over unselected keys of exp(scale (s_j - reference))`. Brought to the
//! largest selected score `m` it is `T' = T exp(scale (reference - m))`, and the weights that were summed give
//! `S = sum exp(scale (s_i - m))` to a relative `2^-15` ([`WEIGHT_ERROR`]). The exact dropped mass is
//! `T* / (T* + S*)`, which grows with `T* / S* <= x = (T' / S) e^(2 lambda) (1 + 2^-14)`; so `p = x / (1 + x)` bounds it.
//! Sinks and the window that were not selected are counted in `T` although they are attended to. Their weights `A` are known, so `T` is
//! taken as `T e^lambda - A e^-lambda (1 - 2^-15)`: it bounds the exact weight of those keys that are in it and not attended to.
//!
//! *Output.* With `o_s`, `o_t` the exact means of the values over attended and over dropped keys, dense attention is
//! `(1 - p*) o_s + p* o_t`, so it differs from `o_s` by `p* ||o_t - o_s|| <= p (V + ||o_s||)`, `V >= max ||v||`.
//!
//! *Compensation.* For each block `b` of positions let `W_b` be the exact weight of its keys that are not attended to, `m_b` the mean
//! value as it is stored and `R_b >= ||v_j - m_b||` for each of its values. Of the block's keys that the search did not select, it counts the
//! never scored ones with the upper ends of their intervals, `U_b` in all, and the scored ones with their scores, `X_b`. An interval is no wider
//! than `width_b`, so with `A_b` the weight of those that are attended to, up to `e^(+-lambda)` and rounding,
//! `U_b exp(-scale width_b) + X_b - A_b <= W_b <= U_b + X_b - A_b`. The output is `o' = (N + sum W_b' m_b) / (S + sum W_b')`, `N` the
//! weighted sum of attended values and `W_b'` the weight if all unscored keys scored in the middle of the block's widest interval. For *any*
//! `W_b'` it satisfies
//! `sum w_i (v_i - o') + sum W_b' (m_b - o') = 0`, with the computed weights `w_i`. Dense attention `o` satisfies
//! `(o - o') Z = sum over all keys of w_i* (v_i - o')` with exact weights and their sum `Z`. The difference of the two is
//!
//! `(o - o') Z = sum (w_i* - w_i)(v_i - o') + sum_b [ sum_(j in b) w_j* (v_j - m_b) + (W_b - W_b')(m_b - o') ] + sum_P w_j* (v_j - o')`
//!
//! over attended keys, compensated blocks, and the keys `P` that are in none (those of the last, incomplete block and of segments that are
//! not in time order). `Z` is `S* + sum W_b + P`, and `|w_i - w_i*| <= eta w_i*`, so
//!
//! `||o - o'|| <= (E + P (V + ||o'||)) / (S* + sum W_b + P) + eta (V + ||o'||)`, `E = sum_b W_b R_b + |W_b - W_b'| ||m_b - o'||`.
//!
//! A share `beta` of the estimates goes to `m`, the mean value of the attended keys nearest to the threshold, instead of the `m_b`. That adds
//! `beta sum W_b' (m - m_b)` to the numerator, and `beta ||sum W_b' (m - m_b)||` to `E`, which is computed.
//!
//! `||m_b - o'||` is taken as `||m_b|| + ||o'||`. `E` is bounded from above and `sum W_b` from below by the ends of the ranges. In `P` the fraction tends to `V + ||o'||`: it grows with `P` where
//! `E / (S* + sum W_b)` is below that, and then the upper bound of `P` is put in, else 0.
//!
//! A bound by the blocks' sums of squares, `||sum w_j (v_j - m_b)||^2 <= sum w_j^2 sum ||v_j - m_b||^2`, was not kept: with weights
//! known only to be below the threshold's it beats `W_b R_b` where the mean weight of a block is more than 0.6 of that.
//!
//! *Rounding.* The computed weights are exact ones times `(1 + theta_i)` and a common factor,
//! `|theta_i| <= eta = e^(2 lambda) - 1 + 2^-15`. A weighted mean moves by at most `2 eta / (1 - eta) V` under that.
//! A sum in which a term passes through at most `m` additions errs by `gamma_m = m u / (1 - m u)` times the sum of
//! magnitudes, `u = 2^-24` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); the sum of weights, the
//! weighted sum of values and the final product together err by at most `gamma_(2m+16) V`. These errors together, `r`,
//! are added, and `||o_s||` is taken as `||out|| + r`.

use hira_search::Tail;
use serde::{Deserialize, Serialize};

use crate::compensation::{Factors, TailMass};

/// Relative error of a softmax weight, and of their sum: the kernels' `exp` is good to `2^-19`; its argument
/// `scale (s - m)` is rounded twice, and where the weight does not flush to zero it is above -88, so that it moves by at
/// most `88 * 2^-23 < 2^-16`.
pub(crate) const WEIGHT_ERROR: f64 = 1.0 / 32768.0;

/// The same of a sum of such weights over one block, at most 1,024 additions of f32: `2^-15 / 2 + 1024 * 2^-24 < 8e-5`.
const COUNTED_ERROR: f64 = 4.0 * WEIGHT_ERROR;

/// Unit roundoff of f32.
const U: f64 = 1.0 / 16_777_216.0;

/// Proven bounds on one query's answer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Certificate {
    /// At least the softmax mass of the keys that were not attended to; 0 when dense.
    pub dropped_mass_bound: f32,
    /// At least the Euclidean distance of the output from dense attention over the stored keys and values in exact arithmetic, rounding
    /// included.
    pub output_error_bound: f32,
}

impl Certificate {
    /// The larger of each bound.
    #[must_use]
    pub fn worst_of(self, other: Self) -> Self {
        Self {
            dropped_mass_bound: self.dropped_mass_bound.max(other.dropped_mass_bound),
            output_error_bound: self.output_error_bound.max(other.output_error_bound),
        }
    }
}

/// What a certificate is computed from, common to the queries of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Premises {
    /// Key dimension.
    pub(crate) dim: usize,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    /// `>= max ||k||` over the head.
    pub(crate) key_norm: f32,
    /// `>= max ||v||` over the head.
    pub(crate) value_norm: f32,
}

/// What was measured for one query.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attended {
    /// `>= ||q||`.
    pub(crate) query_norm: f32,
    /// Visible keys.
    pub(crate) visible: usize,
    /// Keys attended to.
    pub(crate) rows: usize,
    /// The largest score attended to.
    pub(crate) max_score: f32,
    /// `sum exp(scale (score - max_score))` over the rows attended to.
    pub(crate) weight_sum: f32,
    /// The part of `weight_sum` that is in the search's tail too: of keys attended to although they were not selected.
    pub(crate) counted: f64,
    /// Norm of the output.
    pub(crate) out_norm: f32,
}

/// How the rows were scored and summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// Canonical scores, one running sum over the rows.
    Canonical,
    /// The dense kernels, decode or prefill: see `hira_kernels::dense`.
    Dense,
}

impl Arithmetic {
    /// `m` with `|score - q.k| <= gamma_m ||q|| ||k||` (Cauchy-Schwarz on the sum of absolute products).
    ///
    /// A canonical score is a chain of `ceil(D / 16)` FMAs in each lane, one rounding each, and 4 additions of the tree; a dense
    /// prefill has one chain of `D`, and the dense kernels round the logit up to 3 times more. One more for the norms.
    fn score_roundings(self, dim: usize) -> usize {
        match self {
            Arithmetic::Canonical => dim.div_ceil(16) + 5,
            Arithmetic::Dense => dim.max(4) + 4,
        }
    }

    /// Additions that a term of a sum over `rows` passes through.
    ///
    /// The dense kernels sum blocks (of 16 or 64 keys) from zero, blocks into folds (of 64 or 32), folds into a total, and
    /// ranges are merged with 3 roundings each: at most four of them, or ranges of 2,048 keys.
    pub(crate) fn sum_roundings(self, rows: usize) -> usize {
        match self {
            Arithmetic::Canonical => rows,
            Arithmetic::Dense => 64 + 64 + 4 + rows / 1024 + 3 * (rows / 2048 + 4),
        }
    }
}

/// `gamma_m = m u / (1 - m u)`; beyond the range where it means something, infinity.
pub(crate) fn gamma(m: usize) -> f64 {
    let mu = m as f64 * U;
    if mu < 1.0 {
        mu / (1.0 - mu)
    } else {
        f64::INFINITY
    }
}

impl Premises {
    /// The certificate of a query that attended to every visible key.
    pub(crate) fn dense(&self, query_norm: f32, visible: usize) -> Certificate {
        Certificate {
            dropped_mass_bound: 0.0,
            output_error_bound: outward(self.rounding(Arithmetic::Dense, query_norm, visible)),
        }
    }

    /// The certificate of a query that attended to some of the visible keys. `factors` are those of the tail's reference, `mass` is what the rest was
    /// compensated by.
    pub(crate) fn sparse(
        &self,
        attended: Attended,
        (tail, factors): (Tail, Factors),
        mass: Option<TailMass>,
    ) -> Certificate {
        let value_norm = f64::from(self.value_norm);
        if attended.rows == 0 {
            // nothing was attended to and the output is zero: dense attention is a mean of values
            return Certificate {
                dropped_mass_bound: 1.0,
                output_error_bound: outward(value_norm),
            };
        }
        let dropped = if attended.rows == attended.visible {
            0.0
        } else {
            self.dropped_mass(&attended, (tail, factors), mass)
        };
        if let Some(mass) = mass {
            return Certificate {
                dropped_mass_bound: outward(dropped).min(1.0),
                output_error_bound: outward(self.compensated_error(&attended, mass)),
            };
        }
        let rounding = self.rounding(Arithmetic::Canonical, attended.query_norm, attended.rows);
        let output = f64::from(attended.out_norm) * (1.0 + 1e-6) + rounding;
        let error = dropped * (value_norm + output) + rounding;
        Certificate {
            dropped_mass_bound: outward(dropped).min(1.0),
            output_error_bound: outward(error),
        }
    }

    /// What a certificate adds for rounding after at most `rows` keys were attended to.
    pub(crate) fn sparse_rounding(&self, query_norm: f32, rows: usize) -> f64 {
        self.rounding(Arithmetic::Canonical, query_norm, rows)
    }

    fn dropped_mass(
        &self,
        attended: &Attended,
        (tail, factors): (Tail, Factors),
        mass: Option<TailMass>,
    ) -> f64 {
        let tail_sum = if self.scale == 0.0 {
            // every weight is 1
            (attended.visible - attended.rows) as f64
        } else {
            // an underflow of the product must not read as "nothing was dropped"
            let counted = attended.counted * factors.counted_low;
            let left = tail.sum * factors.tail_high - counted;
            // a NaN stays one
            (if left < 0.0 { 0.0 } else { left }) + f64::MIN_POSITIVE
        };
        let blocks = mass.map_or(f64::INFINITY, |mass| mass.high + mass.unblocked);
        let least = if blocks < tail_sum { blocks } else { tail_sum };
        let x = least / self.attended_low(attended);
        // also for x = infinity; NaN (0 * infinity) means that nothing is known
        let p = 1.0 / (1.0 + 1.0 / x);
        if p.is_nan() { 1.0 } else { p }
    }

    /// What brings weights relative to `reference` to exact ones relative to the largest score attended to, outward.
    ///
    /// The exponential's argument, a difference and a product in f64, errs by less than `2^-52` times its magnitude where that matters.
    pub(crate) fn factors(&self, attended: &Attended, reference: f32) -> Factors {
        let exponent =
            f64::from(self.scale) * (f64::from(reference) - f64::from(attended.max_score));
        let lambda = self.lambda(Arithmetic::Canonical, attended.query_norm);
        let (to_max, up) = (exponent.exp(), lambda.exp());
        Factors {
            tail_low: to_max / up * (1.0 - 1e-9),
            tail_high: to_max * up * (1.0 + 1e-9),
            counted_low: (1.0 - COUNTED_ERROR) / up,
            counted_high: (1.0 + COUNTED_ERROR) * up,
        }
    }

    /// At most the exact weight of the rows attended to: the computed sum, in sixteen lanes, without what its roundings and those of its
    /// terms may have added.
    fn attended_low(&self, attended: &Attended) -> f64 {
        let lambda = self.lambda(Arithmetic::Canonical, attended.query_norm);
        let sum = f64::from(attended.weight_sum) / (1.0 + gamma(attended.rows / 16 + 5));
        sum * (1.0 - 2.0 * WEIGHT_ERROR) * (-lambda).exp()
    }

    /// The distance from dense attention of an output that was compensated: see *Compensation* above.
    fn compensated_error(&self, attended: &Attended, mass: TailMass) -> f64 {
        let value_norm = f64::from(self.value_norm);
        let terms = attended.rows + mass.blocks;
        let summing = value_norm * gamma(2 * Arithmetic::Canonical.sum_roundings(terms) + 16);
        let output = f64::from(attended.out_norm) * (1.0 + 1e-6) + summing;
        let farthest = value_norm + output;
        // The norm of the computed output is `summing` away from that of the derivation's, and both sums whose difference is `moved` err by
        // `summing` times the weight in them.
        let numerator = mass.spread
            + mass.off * f64::from(attended.out_norm)
            + mass.moved * (1.0 + 1e-5)
            + (mass.high - mass.low + 2.0 * mass.added) * summing
            + attended.rows as f64 * farthest * 1e-36;
        let denominator = self.attended_low(attended) + mass.low * (1.0 - 1e-9);
        let fraction = if numerator < farthest * denominator {
            (numerator + mass.unblocked * farthest) / (denominator + mass.unblocked)
        } else {
            numerator / denominator
        };
        let eta =
            (2.0 * self.lambda(Arithmetic::Canonical, attended.query_norm)).exp_m1() + WEIGHT_ERROR;
        // no mean of values is further away than that; also for a NaN or an infinite fraction
        let error = (fraction + eta * farthest).min(farthest);
        (error + summing) * (1.0 + 1e-9)
    }

    /// `scale * delta`: how far rounding can move a logit.
    pub(crate) fn lambda(&self, arithmetic: Arithmetic, query_norm: f32) -> f64 {
        // the second term covers products that underflow: each errs by at most 2^-150
        let delta = gamma(arithmetic.score_roundings(self.dim))
            * f64::from(query_norm)
            * f64::from(self.key_norm)
            + (self.dim + 16) as f64 * f64::powi(2.0, -149);
        f64::from(self.scale) * delta
    }

    /// Bound on the distance of a computed mean over `rows` values from the exact one.
    fn rounding(&self, arithmetic: Arithmetic, query_norm: f32, rows: usize) -> f64 {
        let value_norm = f64::from(self.value_norm);
        let eta = (2.0 * self.lambda(arithmetic, query_norm)).exp_m1() + WEIGHT_ERROR;
        let weights = if eta < 0.5 {
            2.0 * eta / (1.0 - eta)
        } else {
            2.0
        };
        // two means of vectors of norm V are never further than 2 V apart
        value_norm * (weights + gamma(2 * arithmetic.sum_roundings(rows) + 16)).min(2.0)
    }
}

/// An f32 that is not below `x`.
pub(crate) fn outward(x: f64) -> f32 {
    let rounded = x as f32;
    if f64::from(rounded) < x {
        rounded.next_up()
    } else {
        rounded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREMISES: Premises = Premises {
        dim: 64,
        scale: 0.125,
        key_norm: 20.0,
        value_norm: 3.0,
    };

    fn certified(attended: Attended, tail: Tail, mass: Option<TailMass>) -> Certificate {
        let factors = PREMISES.factors(&attended, tail.reference);
        PREMISES.sparse(attended, (tail, factors), mass)
    }

    fn attended(rows: usize, weight_sum: f32) -> Attended {
        Attended {
            query_norm: 10.0,
            visible: 100,
            rows,
            max_score: 8.0,
            weight_sum,
            counted: 0.0,
            out_norm: 2.0,
        }
    }

    #[test]
    fn dropped_mass_is_the_tail_over_everything() {
        let tail = Tail {
            reference: 8.0,
            sum: 1.0,
        };
        let certificate = certified(attended(50, 3.0), tail, None);
        assert!(certificate.dropped_mass_bound >= 0.25);
        assert!(certificate.dropped_mass_bound < 0.2501);
        // p (V + ||o||) = 1.25, and rounding
        assert!(certificate.output_error_bound >= 1.25);
        assert!(certificate.output_error_bound < 1.26);
    }

    #[test]
    fn the_tail_is_brought_to_the_largest_score() {
        let tail = Tail {
            reference: 0.0,
            sum: 1.0,
        };
        let p = certified(attended(50, 1.0), tail, None).dropped_mass_bound;
        let exact = (-1.0_f32).exp() / (1.0 + (-1.0_f32).exp());
        assert!(p >= exact && p < exact * 1.001);
    }

    #[test]
    fn everything_attended_is_dense_and_nothing_is_all_dropped() {
        let tail = Tail {
            reference: 0.0,
            sum: f64::INFINITY,
        };
        let all = certified(attended(100, 3.0), tail, None);
        assert_eq!(all.dropped_mass_bound, 0.0);
        assert!(all.output_error_bound > 0.0 && all.output_error_bound < 1e-3);
        assert_eq!(PREMISES.dense(10.0, 100).dropped_mass_bound, 0.0);
        let nothing = certified(attended(0, 0.0), tail, None);
        assert_eq!(nothing.dropped_mass_bound, 1.0);
        assert_eq!(nothing.output_error_bound, 3.0);
        let unknown = certified(attended(50, 3.0), tail, None);
        assert_eq!(unknown.dropped_mass_bound, 1.0);
    }

    #[test]
    fn what_is_attended_to_is_not_dropped() {
        let tail = Tail {
            reference: 8.0,
            sum: 1.0,
        };
        let counted = Attended {
            counted: 0.75,
            ..attended(50, 3.0)
        };
        let p = certified(counted, tail, None).dropped_mass_bound;
        assert!((0.25 / 3.25..0.2505 / 3.25).contains(&f64::from(p)), "{p}");
        let all = Attended {
            counted: 1.0,
            ..attended(50, 3.0)
        };
        let p = certified(all, tail, None).dropped_mass_bound;
        assert!(p > 0.0 && p < 1e-3, "{p}");
    }

    #[test]
    fn a_compensated_tail_errs_by_its_spread() {
        let tail = Tail {
            reference: 8.0,
            sum: 2.0,
        };
        let mass = TailMass {
            low: 0.9,
            high: 1.0,
            unblocked: 0.0,
            added: 0.95,
            blocks: 2,
            spread: 0.4,
            off: 0.05,
            moved: 0.0,
        };
        let certificate = certified(attended(50, 3.0), tail, Some(mass));
        assert!((0.25..0.2501).contains(&certificate.dropped_mass_bound));
        // 0.5 / (3 + 0.9), and rounding
        let error = f64::from(certificate.output_error_bound);
        assert!((0.5 / 3.9..0.5 / 3.9 + 1e-3).contains(&error), "{error}");
        let apart = TailMass {
            unblocked: 1.0,
            ..mass
        };
        let certificate = certified(attended(50, 3.0), tail, Some(apart));
        // the rest may lie at 3 from the origin, the output at 2 on the other side
        let error = f64::from(certificate.output_error_bound);
        assert!((5.5 / 4.9..5.5 / 4.9 + 2e-3).contains(&error), "{error}");
        let unknown = TailMass {
            spread: f64::INFINITY,
            ..mass
        };
        let certificate = certified(attended(50, 3.0), tail, Some(unknown));
        assert!((5.0..5.01).contains(&certificate.output_error_bound));
    }

    #[test]
    fn a_vanishing_tail_is_not_reported_as_zero() {
        let tail = Tail {
            reference: -1e9,
            sum: 5.0,
        };
        assert!(certified(attended(50, 1.0), tail, None).dropped_mass_bound > 0.0);
    }
}
