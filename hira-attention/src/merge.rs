//! The exact merge of attention over parts of the keys.
//!
//! A cache that lies in several places (shards, threads, machines) is attended to where it lies: each part gives its output, the logarithm of its sum of
//! weights, and what is proven of both; [`PartialAttention::merge`] makes of them what one cache would have given.
//!
//! # Derivation
//!
//! Let `Z_s` be the exact sum of `exp(logit)` over all keys of part `s`, `o_s` the exact dense output over them, `Y_s` the sum that was used
//! (`exp(log_sum_exp)`), `o'_s` the part's output, `e_s >= ||o_s - o'_s||` its certificate. Dense attention over all parts is
//! `o = sum Z_s o_s / Z` with `Z = sum Z_s`, and the merge is `o' = sum Y_s o'_s / sum Y_s`. As `sum Y_s (o'_s - o') = 0`,
//!
//! ```text
//! o - o' = [ sum Z_s (o_s - o'_s) + sum (Z_s - Y_s) (o'_s - o') ] / Z
//! ||o - o'|| <= f(Z_1, ..) = sum (Z_s e_s + |Z_s - Y_s| d_s) / sum Z_s,    d_s = ||o'_s - o'||
//! ```
//!
//! What is known of `Z_s` is an interval: at least the exact weights of the attended keys, at most those and the bound on the tail. `f <= B` on the
//! box of these intervals if and only if `sum max over Z_s of (Z_s (e_s - B) + |Z_s - Y_s| d_s) <= 0`; each term is convex, so its maximum is at an end of its
//! interval. Dinkelbach's iteration (take the maximising ends for `B`, let `B` be `f` there) rises to the largest `f`; where it no longer rises that
//! sum is not positive, and `B` is proven. It is the best bound that these intervals give.
//!
//! The dropped mass is `T / (S + T)` at most, with `T` the sum of the bounds on the tails and `S` the least sum of attended weights.
//!
//! The merge itself is done in f64 and rounded once to f32: `2^-24 ||o'||`, and margins of `10^-9` for everything in f64.

use crate::{
    AttentionError, AttentionReport, Certificate,
    certificate::outward,
    sums::{MARGIN, PartialSums},
};

/// Attention of some queries over a part of the keys, or over several merged.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PartialAttention {
    /// `[B, Hq, L, Dv]`.
    pub shape: [usize; 4],
    /// Outputs, of that shape; zeros where a query attended to no key.
    pub out: Vec<f32>,
    /// What merging needs, `[B, Hq, L]`.
    pub sums: Vec<PartialSums>,
    /// What was done; its certificates, `[B, Hq, L]`, are about dense attention over the keys of the part.
    pub report: AttentionReport,
}

impl Default for PartialAttention {
    fn default() -> Self {
        Self {
            shape: [0; 4],
            out: Vec::new(),
            sums: Vec::new(),
            report: AttentionReport::new(0, 0),
        }
    }
}

impl PartialAttention {
    /// What one cache that holds the keys of all `parts` would have given.
    ///
    /// For a rule whose threshold does not depend on the number of keys (`"fixed"`) the attended keys are those of one cache; a top-k rule
    /// selects `k` in every part.
    ///
    /// # Numerics
    ///
    /// Exact but for f64: derived at the top of `merge.rs`. Merging merged parts is the same up to rounding, so parts may be merged as they come, in any order.
    ///
    /// # Complexity
    ///
    /// `O(parts * Dv)` a query.
    ///
    /// # Errors
    ///
    /// [`AttentionError::Length`] if the parts are not of the same queries, or there is none.
    pub fn merge(parts: &[Self]) -> Result<Self, AttentionError> {
        let Some((first, others)) = parts.split_first() else {
            return Err(AttentionError::Length {
                what: "parts",
                expected: 1,
                received: 0,
            });
        };
        let queries = first.sums.len();
        let dim = first.shape[3];
        for part in parts {
            for (what, expected, received) in [
                ("queries", queries, part.sums.len()),
                ("out", queries * dim, part.out.len()),
                ("certificates", queries, part.report.certificates.len()),
                ("heads", first.report.heads.len(), part.report.heads.len()),
            ] {
                if expected != received || part.shape != first.shape {
                    return Err(AttentionError::Length {
                        what,
                        expected,
                        received,
                    });
                }
            }
        }
        let mut merged = first.clone();
        let mut mean = vec![0.0; dim];
        for query in 0..queries {
            let rows = parts.iter().map(|part| QueryPart {
                out: &part.out[query * dim..(query + 1) * dim],
                sums: &part.sums[query],
                error: part.report.certificates[query].output_error_bound,
            });
            let (sums, certificate) = merge_query(rows, &mut mean);
            let out = &mut merged.out[query * dim..(query + 1) * dim];
            out.iter_mut()
                .zip(&mean)
                .for_each(|(out, &x)| *out = x as f32);
            merged.sums[query] = sums;
            merged.report.certificates[query] = certificate;
        }
        merged.report.stored = parts.iter().map(|part| part.report.stored).sum();
        let each = queries / merged.report.heads.len().max(1);
        for (i, head) in merged.report.heads.iter_mut().enumerate() {
            let certificates = &merged.report.certificates[i * each..(i + 1) * each];
            head.merge(
                others.iter().map(|part| &part.report.heads[i]),
                certificates,
            );
        }
        Ok(merged)
    }
}

/// One part's answer to one query.
#[derive(Clone, Copy)]
struct QueryPart<'a> {
    out: &'a [f32],
    sums: &'a PartialSums,
    error: f32,
}

/// A part's interval, relative to a common reference, with what `f` needs.
struct Interval {
    used: f64,
    ends: [f64; 2],
    error: f64,
    distance: f64,
}

/// Writes the merged output to `mean` and returns what is known of it.
fn merge_query<'a>(
    parts: impl Iterator<Item = QueryPart<'a>> + Clone,
    mean: &mut [f64],
) -> (PartialSums, Certificate) {
    mean.fill(0.0);
    let parts = parts.filter(|part| !part.sums.is_empty());
    let highest = |sum: fn(&PartialSums) -> f64| {
        let sums = parts.clone().map(|part| sum(part.sums));
        sums.fold(f64::NEG_INFINITY, f64::max)
    };
    let reference = highest(|sums| sums.log_high);
    if reference == f64::NEG_INFINITY {
        return (PartialSums::EMPTY, Certificate::default());
    }
    let value_norm = parts
        .clone()
        .map(|part| part.sums.value_norm)
        .fold(0.0, f32::max);
    // the output refers to the largest sum that was used: there is an upper end beyond every f64 where nothing is known
    let used_reference = highest(|sums| sums.log_sum_exp);
    let mut used_sum = 0.0;
    if used_reference > f64::NEG_INFINITY {
        for part in parts.clone() {
            let weight = (part.sums.log_sum_exp - used_reference).exp();
            used_sum += weight;
            let row = part.out.iter().zip(mean.iter_mut());
            row.for_each(|(&x, mean)| *mean += weight * f64::from(x));
        }
        mean.iter_mut().for_each(|x| *x /= used_sum);
    }
    let out_norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    let rounding = out_norm * f64::powi(2.0, -23)
        + f64::from(value_norm) * MARGIN
        + mean.len() as f64 * f64::powi(2.0, -149);
    let total = |sum: fn(&PartialSums) -> f64| {
        let terms = parts.clone().map(|part| (sum(part.sums) - reference).exp());
        terms.sum::<f64>()
    };
    let (low, high, tail) = (
        total(|sums| sums.log_low) * (1.0 - MARGIN),
        total(|sums| sums.log_high) * (1.0 + MARGIN),
        total(|sums| sums.log_tail) * (1.0 + MARGIN),
    );
    // An end far below the reference underflows: no tail is then taken for nothing.
    let has_tail = highest(|sums| sums.log_tail) > f64::NEG_INFINITY;
    let tail = if has_tail {
        tail + f64::MIN_POSITIVE
    } else {
        0.0
    };
    let slack = MARGIN * (1.0 + reference.abs());
    let sums = PartialSums {
        log_sum_exp: used_reference + used_sum.ln(),
        log_low: reference + low.ln() - slack,
        log_high: reference + high.ln() + slack,
        log_tail: if has_tail {
            reference + tail.ln() + slack
        } else {
            f64::NEG_INFINITY
        },
        value_norm,
    };
    let dropped = if tail == 0.0 {
        0.0
    } else {
        tail / (low + tail) * (1.0 + MARGIN)
    };
    let boxes = parts.map(|part| {
        let relative = |log: f64| (log - reference).exp();
        let squares = part.out.iter().zip(mean.iter());
        let squares = squares.map(|(&x, mean)| (f64::from(x) - mean).powi(2));
        Interval {
            used: relative(part.sums.log_sum_exp),
            ends: [
                relative(part.sums.log_low) * (1.0 - MARGIN),
                relative(part.sums.log_high) * (1.0 + MARGIN) + f64::MIN_POSITIVE,
            ],
            error: f64::from(part.error),
            distance: squares.sum::<f64>().sqrt(),
        }
    });
    let trivial = f64::from(value_norm) + out_norm;
    let error = largest_error(boxes).map_or(trivial, |error| error.min(trivial));
    let certificate = Certificate {
        dropped_mass_bound: if dropped.is_nan() {
            1.0
        } else {
            outward(dropped).min(1.0)
        },
        output_error_bound: outward(error * (1.0 + MARGIN) + rounding),
    };
    (known(sums), certificate)
}

/// An interval that came out as nothing known has no number in it.
fn known(sums: PartialSums) -> PartialSums {
    let or = |log: f64, unknown: f64| if log.is_nan() { unknown } else { log };
    PartialSums {
        log_sum_exp: or(sums.log_sum_exp, f64::NEG_INFINITY),
        log_low: or(sums.log_low, f64::NEG_INFINITY),
        log_high: or(sums.log_high, f64::INFINITY),
        log_tail: or(sums.log_tail, f64::INFINITY),
        value_norm: sums.value_norm,
    }
}

/// The largest `f` over the box; `None` where the ends say nothing.
fn largest_error(boxes: impl Iterator<Item = Interval> + Clone) -> Option<f64> {
    /// More than enough: from any start the iteration converges faster than linearly.
    const ITERATIONS: usize = 100;
    /// Above this ratio of the ends the bound would say no more than the norms do, and rounding could count.
    const WIDEST: f64 = 1e6;
    let [low, high] = boxes.clone().fold([0.0, 0.0], |[low, high], part| {
        [low + part.ends[0], high + part.ends[1]]
    });
    if high.is_nan() || high > WIDEST * low {
        return None;
    }
    let mut bound = 0.0;
    for _ in 0..ITERATIONS {
        let (mut above, mut below) = (0.0, 0.0);
        for part in boxes.clone() {
            let term = |sum: f64| sum * part.error + (sum - part.used).abs() * part.distance;
            let [low, high] = part.ends;
            let worse = term(high) - high * bound > term(low) - low * bound;
            let sum = if worse { high } else { low };
            above += term(sum);
            below += sum;
        }
        let next: f64 = above / below;
        if !next.is_finite() {
            return None;
        }
        if next <= bound {
            return Some(bound);
        }
        bound = next;
    }
    None
}
