//! Attention over some of the keys, and the exact merge of such parts.
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

use hira_cache::{HeadCache, HiraCache};
use hira_kernels::Team;
use hira_search::{SearchError, Tail, call_with_rayon};
use serde::{Deserialize, Serialize};
use std::{ops::Range, sync::OnceLock};

use crate::{
    AttentionError, AttentionReport, Certificate, HeadPlan, HeadReport, HostAttention,
    certificate::{Arithmetic, Attended, Premises, WEIGHT_ERROR, gamma, outward},
    engine::Call,
    planner::{self, Step},
    prefill::TILE_TOKENS,
    scratch::HeadScratch,
    sparse::{self, SparseAnswer, norm},
};

/// Which of the stored keys a partial attention is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartKeys {
    /// Their positions in the cache. A range that does not begin at 0 is answered densely: a search begins at the first key.
    pub positions: Range<usize>,
    /// Whether the first of them are the first of the sequence, so that the sinks are always attended to.
    pub holds_sinks: bool,
    /// Whether the last of them are the last of the sequence, so that the window is always attended to.
    pub holds_window: bool,
}

impl PartKeys {
    /// These positions, which hold neither the sinks nor the window.
    pub fn new(positions: Range<usize>) -> Self {
        Self {
            positions,
            holds_sinks: false,
            holds_window: false,
        }
    }

    /// Says that these keys hold the first ones of the sequence.
    #[must_use]
    pub fn with_sinks(mut self) -> Self {
        self.holds_sinks = true;
        self
    }

    /// Says that these keys hold the last ones of the sequence.
    #[must_use]
    pub fn with_window(mut self) -> Self {
        self.holds_window = true;
        self
    }
}

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

    fn is_empty(&self) -> bool {
        self.log_high == f64::NEG_INFINITY
    }
}

/// Attention of some queries over a part of the keys, or over several merged.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PartialAttention {
    /// Outputs, `[B, Hq, L, Dv]`; zeros where a query attended to no key.
    pub out: Vec<f32>,
    /// What merging needs, `[B, Hq, L]`.
    pub sums: Vec<PartialSums>,
    /// What was done; its certificates, `[B, Hq, L]`, are about dense attention over the keys of the part.
    pub report: AttentionReport,
}

impl Default for PartialAttention {
    fn default() -> Self {
        Self {
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
    /// Exact but for f64: see [the module](self). Merging merged parts is the same up to rounding, so parts may be merged as they come, in any order.
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
        for part in parts {
            for (what, expected, received) in [
                ("sums", queries, part.sums.len()),
                ("out", first.out.len(), part.out.len()),
                ("certificates", queries, part.report.certificates.len()),
                ("heads", first.report.heads.len(), part.report.heads.len()),
            ] {
                if expected != received {
                    return Err(AttentionError::Length {
                        what,
                        expected,
                        received,
                    });
                }
            }
        }
        let mut merged = first.clone();
        let dim = first.out.len() / queries.max(1);
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

/// Margin for sums, products and exponentials in f64.
const MARGIN: f64 = 1e-9;

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

impl HostAttention {
    /// Attends with `q` to a part of the keys that layer `layer` of `cache` holds, without appending anything.
    ///
    /// Every query sees every key of the part: they come after all of them.
    ///
    /// # Shapes
    ///
    /// `q` `[B, Hq, L, D]`, row-major, `Hq = heads`; `partial` is overwritten.
    ///
    /// # Errors
    ///
    /// [`AttentionError`]; `partial` is then unspecified.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_attention::{CacheShape, HiraAttentionConfig, PartKeys, PartialAttention};
    ///
    /// let config = HiraAttentionConfig::new();
    /// let attention = config.init_host()?;
    /// let shape = CacheShape { layers: 1, sequences: 1, kv_heads: 1, head_dim: 1, value_dim: 1, max_len: 4 };
    /// let mut cache = config.init_cache(shape)?;
    /// cache.append(0, &[0.0, 0.0, 0.0], &[1.0, 2.0, 6.0])?;
    /// let mut parts = [PartialAttention::default(), PartialAttention::default()];
    /// for (positions, part) in [0..1, 1..3].into_iter().zip(&mut parts) {
    ///     attention.partial_into(1, &[1.0], &mut cache, 0, &PartKeys::new(positions), part)?;
    /// }
    /// let whole = PartialAttention::merge(&parts)?;
    /// assert_eq!((parts[0].out[0], parts[1].out[0], whole.out[0]), (1.0, 4.0, 3.0));
    /// # Ok::<(), hira_attention::AttentionError>(())
    /// ```
    pub fn partial_into(
        &self,
        heads: usize,
        q: &[f32],
        cache: &mut HiraCache,
        layer: usize,
        keys: &PartKeys,
        partial: &mut PartialAttention,
    ) -> Result<(), AttentionError> {
        let call = self.check_partial(heads, q, cache, layer, keys)?;
        let layer_cache = cache.layer_mut(layer)?;
        let rows = layer_cache.sequences() * heads;
        let queries = rows * call.tokens;
        let PartialAttention { out, sums, report } = partial;
        out.clear();
        out.resize(queries * call.value_dim, 0.0);
        sums.clear();
        sums.resize(queries, PartialSums::EMPTY);
        report.reset(layer, keys.positions.len(), rows, call.tokens);
        if queries == 0 || keys.positions.is_empty() {
            return Ok(());
        }
        let group = call.group * call.tokens;
        let tasks = layer_cache
            .heads_mut()
            .iter_mut()
            .zip(q.chunks_exact(group * call.dim))
            .zip(out.chunks_exact_mut(group * call.value_dim))
            .zip(sums.chunks_exact_mut(group))
            .zip(report.certificates.chunks_exact_mut(group))
            .zip(report.heads.chunks_exact_mut(call.group));
        let failed = OnceLock::new();
        self.pool.with_team(|team| {
            call_with_rayon(team, usize::MAX, |team| {
                team.for_each(
                    tasks,
                    |(((((head, q), out), sums), certificates), reports)| {
                        let mut answer = Answer {
                            out,
                            sums,
                            certificates,
                            reports,
                        };
                        let done = self.pool.with(|scratch| {
                            self.attend_part(call, q, head, keys, team, scratch, &mut answer)
                        });
                        if let Err(error) = done {
                            failed.get_or_init(|| error);
                        }
                    },
                );
            });
        });
        failed
            .into_inner()
            .map_or(Ok(()), |error| Err(error.into()))
    }

    fn check_partial(
        &self,
        heads: usize,
        q: &[f32],
        cache: &HiraCache,
        layer: usize,
        keys: &PartKeys,
    ) -> Result<Call, AttentionError> {
        let cache = cache.layer(layer)?;
        let Range { start, end } = keys.positions;
        if start > end || end > cache.len() {
            return Err(AttentionError::Positions {
                start,
                end,
                stored: cache.len(),
            });
        }
        let row = cache.sequences() * heads * cache.head_dim();
        let tokens = q.len() / row.max(1);
        let call = self.call(heads, tokens, cache)?;
        self.check_queries(heads, q, tokens, cache)?;
        Ok(call)
    }

    /// The queries of one KV head, `[G, L, D]`, some tokens at a time.
    #[expect(clippy::too_many_arguments)]
    fn attend_part(
        &self,
        call: Call,
        q: &[f32],
        head: &mut HeadCache,
        keys: &PartKeys,
        team: &Team,
        scratch: &mut HeadScratch,
        answer: &mut Answer<'_>,
    ) -> Result<(), SearchError> {
        let mut queries = std::mem::take(&mut scratch.queries);
        let mut out = std::mem::take(&mut scratch.out);
        let mut result = Ok(());
        for first in (0..call.tokens).step_by(TILE_TOKENS) {
            let tokens = first..call.tokens.min(first + TILE_TOKENS);
            queries.clear();
            for q in q.chunks_exact(call.tokens * call.dim) {
                queries.extend_from_slice(&q[tokens.start * call.dim..tokens.end * call.dim]);
            }
            out.resize(queries.len() / call.dim * call.value_dim, 0.0);
            let plan = match self.part_answers(call, &queries, head, keys, team, scratch, &mut out)
            {
                Ok(plan) => plan,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            let found = scratch.answers.iter().zip(&scratch.sums);
            for (i, ((found, sums), row)) in found.zip(out.chunks_exact(call.value_dim)).enumerate()
            {
                let (g, token) = (i / tokens.len(), tokens.start + i % tokens.len());
                let at = g * call.tokens + token;
                answer.out[at * call.value_dim..][..call.value_dim].copy_from_slice(row);
                answer.sums[at] = *sums;
                answer.certificates[at] = found.certificate;
                let (visible, report) = (keys.positions.len(), &mut answer.reports[g]);
                match plan {
                    HeadPlan::Dense => report.add_dense(1, visible as u64, found.certificate),
                    HeadPlan::Sparse => report.add_sparse(
                        visible,
                        found.survivors,
                        found.attended,
                        found.certificate,
                    ),
                }
            }
        }
        scratch.queries = queries;
        scratch.out = out;
        result
    }

    /// Some queries of one KV head by the planner's choice: rows of `out`, and `scratch.answers` and `scratch.sums`.
    #[expect(clippy::too_many_arguments)]
    fn part_answers(
        &self,
        call: Call,
        queries: &[f32],
        head: &mut HeadCache,
        keys: &PartKeys,
        team: &Team,
        scratch: &mut HeadScratch,
        out: &mut [f32],
    ) -> Result<HeadPlan, SearchError> {
        let visible = keys.positions.len();
        let step = Step {
            visible,
            group: call.group,
            dim: call.dim,
            value_dim: call.value_dim,
            precision: head.values().precision(),
            history: head.history(),
        };
        let plan = if keys.positions.start > 0 {
            HeadPlan::Dense
        } else {
            planner::choose(&self.config, &self.rule, step)
        };
        let mut sparse = self.sparse_step(call, team);
        let premises = sparse.premises(head, call.dim);
        scratch.sums.clear();
        match plan {
            HeadPlan::Dense => {
                let positions = keys.positions.clone();
                let pool = (team, &self.pool);
                let dense = self.dense_step(call);
                dense.decode(pool, head, queries, positions, scratch, out);
                scratch.answers.clear();
                for (query, state) in queries.chunks_exact(call.dim).zip(&scratch.states) {
                    let norm = norm(query);
                    let log_sum_exp = f64::from(state.max) + f64::from(state.sum).ln();
                    scratch
                        .sums
                        .push(premises.dense_sums(norm, visible, log_sum_exp));
                    scratch.answers.push(SparseAnswer {
                        survivors: visible,
                        attended: visible,
                        certificate: premises.dense(norm, visible),
                        ..SparseAnswer::default()
                    });
                }
            }
            HeadPlan::Sparse => {
                sparse.sink_tokens = if keys.holds_sinks {
                    sparse.sink_tokens
                } else {
                    0
                };
                sparse.recent_window = if keys.holds_window {
                    sparse.recent_window
                } else {
                    0
                };
                scratch.search.swap_history(head.search_history_mut());
                let attended = sparse.attend(head, queries, visible, scratch, out);
                scratch.search.swap_history(head.search_history_mut());
                attended?;
                let answers = scratch.answers.iter();
                let sums =
                    answers.map(|answer| premises.sparse_sums(&answer.measured, answer.tail));
                scratch.sums.extend(sums);
                let now = sparse::history(&scratch.answers, visible);
                head.record(planner::updated(head.history(), now));
            }
        }
        Ok(plan)
    }
}

/// Where one KV head's answers go.
struct Answer<'a> {
    out: &'a mut [f32],
    sums: &'a mut [PartialSums],
    certificates: &'a mut [Certificate],
    reports: &'a mut [HeadReport],
}

impl Premises {
    /// What is known after every one of `rows` keys was attended to.
    fn dense_sums(&self, query_norm: f32, rows: usize, log_sum_exp: f64) -> PartialSums {
        let slack = self.log_slack(Arithmetic::Dense, query_norm, rows, log_sum_exp);
        PartialSums {
            log_sum_exp,
            log_low: log_sum_exp - slack,
            log_high: log_sum_exp + slack,
            log_tail: f64::NEG_INFINITY,
            value_norm: self.value_norm,
        }
    }

    /// What is known after the keys of `attended` were attended to, and the rest is in `tail`.
    fn sparse_sums(&self, attended: &Attended, tail: Tail) -> PartialSums {
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
        PartialSums {
            log_sum_exp,
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
