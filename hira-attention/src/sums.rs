//! What is known of the sums of weights behind a partial output.

use serde::{Deserialize, Serialize};

use crate::{
    certificate::{Arithmetic, Premises, WEIGHT_ERROR, gamma},
    sparse::SparseAnswer,
};

/// Margin for sums, products and exponentials in f64.
pub(crate) const MARGIN: f64 = 1e-9;

/// What a part knows of one query's weights.
///
/// # Units
///
/// Natural logarithms of sums of `exp(logit)`, `logit = scale * score`; `-inf` is a sum of nothing. In f64, so that a merge rounds nothing that matters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PartialSums {
    /// Of the sum that the output was divided by.
    pub log_sum_exp: f64,
    /// At most that of the attended keys in exact arithmetic.
    pub log_low: f64,
    /// At least that of all keys of the part, attended or not, in exact arithmetic.
    pub log_high: f64,
    /// At least that of the keys that were not attended to.
    pub log_tail: f64,
    /// At least the norm of every value of the part.
    pub value_norm: f32,
}

impl PartialSums {
    /// Those of a part that has no key.
    pub const EMPTY: Self = Self {
        log_sum_exp: f64::NEG_INFINITY,
        log_low: f64::NEG_INFINITY,
        log_high: f64::NEG_INFINITY,
        log_tail: f64::NEG_INFINITY,
        value_norm: 0.0,
    };

    pub(crate) fn is_empty(&self) -> bool {
        self.log_high == f64::NEG_INFINITY
    }
}

impl Premises {
    /// What is known after every one of `rows` keys was attended to.
    pub(crate) fn dense_sums(&self, query_norm: f32, rows: usize, log_sum_exp: f64) -> PartialSums {
        let slack = self.log_slack(Arithmetic::Dense, query_norm, rows, log_sum_exp);
        PartialSums {
            log_sum_exp,
            log_low: log_sum_exp - slack,
            log_high: log_sum_exp + slack,
            log_tail: f64::NEG_INFINITY,
            value_norm: self.value_norm,
        }
    }

    /// What is known after an answer that left keys out.
    pub(crate) fn sparse_sums(&self, answer: &SparseAnswer) -> PartialSums {
        let (attended, tail) = (&answer.measured, answer.tail);
        let scale = f64::from(self.scale);
        let (log_sum_exp, slack) = if attended.rows == 0 {
            (f64::NEG_INFINITY, 0.0)
        } else {
            let log = scale * f64::from(attended.max_score) + f64::from(attended.weight_sum).ln();
            let arithmetic = Arithmetic::Canonical;
            let slack = self.log_slack(arithmetic, attended.query_norm, attended.rows, log);
            (log, slack)
        };
        let left_out = attended.visible - attended.rows;
        let log_tail = if left_out == 0 {
            f64::NEG_INFINITY
        } else if self.scale == 0.0 {
            (left_out as f64).ln()
        } else {
            let log = scale * f64::from(tail.reference) + tail.sum.max(f64::MIN_POSITIVE).ln();
            let lambda = self.lambda(Arithmetic::Canonical, attended.query_norm);
            log + lambda + MARGIN * (1.0 + log.abs())
        };
        let high = log_sum_exp + slack;
        let highest = high.max(log_tail);
        let both = if highest.is_finite() {
            let sum = (high - highest).exp() + (log_tail - highest).exp();
            highest + sum.ln() + MARGIN * (1.0 + highest.abs())
        } else {
            highest
        };
        // what the output was divided by holds what stands for keys that were left out
        let compensated = 1.0 + answer.added / f64::from(attended.weight_sum).max(1.0);
        PartialSums {
            log_sum_exp: log_sum_exp + compensated.ln(),
            log_low: log_sum_exp - slack,
            log_high: both,
            log_tail,
            value_norm: self.value_norm,
        }
    }

    /// How far the logarithm of a computed sum of weights can be from that of the exact one.
    ///
    /// Scores move every weight by a factor within `e^(+-lambda)`; weights and their sum have a relative error `w` below 1/2, whose logarithm is within
    /// `+-2 w`.
    fn log_slack(&self, arithmetic: Arithmetic, query_norm: f32, rows: usize, log: f64) -> f64 {
        let relative = WEIGHT_ERROR + gamma(arithmetic.sum_roundings(rows));
        if relative >= 0.5 {
            return f64::INFINITY;
        }
        self.lambda(arithmetic, query_norm) + 2.0 * relative + MARGIN * (1.0 + log.abs())
    }
}
