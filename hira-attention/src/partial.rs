//! Attention over some of the stored keys, for [`merge`](crate::PartialAttention::merge).

use std::{ops::Range, sync::OnceLock};

use hira_cache::{HeadCache, HiraCache};
use hira_kernels::Team;
use hira_search::{SearchError, call_with_rayon};

use crate::{
    AttentionError, Certificate, HeadPlan, HeadReport, HostAttention, PartialAttention,
    PartialSums,
    engine::Call,
    planner,
    prefill::TILE_TOKENS,
    promise,
    report::RowBytes,
    scratch::HeadScratch,
    sparse::{self, SparseAnswer, norm},
};

/// Which of the stored keys a partial attention is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartKeys {
    /// Their positions in the cache. In a layer with a window the caller leaves out what lies before the window of the queries, and what was
    /// evicted is refused.
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

impl HostAttention {
    /// Attends with `q` to a part of the keys that layer `layer` of `cache` holds, without appending anything.
    ///
    /// Every query sees every key of the part: they come after all of them. `max_error` and the share of a rule by mass hold for each part.
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
        partial.shape = [layer_cache.sequences(), heads, call.tokens, call.value_dim];
        let PartialAttention {
            out, sums, report, ..
        } = partial;
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
        cache.check_on_host()?;
        let Range { start, end } = keys.positions;
        // in every sequence
        let stored = cache.lens().min().unwrap_or(0);
        if start > end || end > stored || start < cache.evicted() && start < end {
            return Err(AttentionError::Positions { start, end, stored });
        }
        let row = cache.sequences() * heads * cache.head_dim();
        let tokens = q.len() / row.max(1);
        let call = self.call(heads, tokens, cache)?;
        self.check_queries(heads, q, tokens, None, cache)?;
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
        let row_bytes = RowBytes::of(head);
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
                let leads = i == 0;
                match plan {
                    HeadPlan::Dense => {
                        report.add_dense(visible, found.certificate);
                        if leads {
                            report.bytes.add_dense(visible, row_bytes);
                        }
                    }
                    HeadPlan::Sparse => report.add_sparse(visible, found, leads, row_bytes),
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
        let step = self.step(call, keys.positions.clone(), head);
        let mut plan = planner::choose(&self.config, &self.rule, step);
        let mut sparse = self.sparse_step(call, team);
        let premises = sparse.premises(head, call.dim);
        scratch.sums.clear();
        if plan == HeadPlan::Sparse {
            if keys.holds_sinks {
                sparse.sink_tokens = sparse.sink_tokens.saturating_add(keys.positions.start);
            } else {
                sparse.sink_tokens = 0;
            }
            if !keys.holds_window {
                sparse.recent_window = 0;
            }
            scratch.search.swap_history(head.search_history_mut());
            let attended = sparse.attend(head, queries, keys.positions.clone(), scratch, out);
            scratch.search.swap_history(head.search_history_mut());
            attended?;
            let answers = scratch.answers.iter();
            let sums = answers.map(|answer| premises.sparse_sums(answer));
            scratch.sums.extend(sums);
            let now = sparse::history(&scratch.answers, visible);
            head.record(planner::updated(head.history(), now));
            if !promise::is_kept(&self.config, &self.rule, &scratch.answers) {
                plan = HeadPlan::Dense;
            }
        }
        if plan == HeadPlan::Dense {
            let positions = keys.positions.clone();
            let pool = (team, &self.pool);
            let dense = self.dense_step(call);
            dense.decode(pool, head, queries, positions, scratch, out);
            scratch.answers.clear();
            scratch.sums.clear();
            for (query, state) in queries.chunks_exact(call.dim).zip(&scratch.states) {
                let norm = norm(query);
                let log_sum_exp = f64::from(state.max) + f64::from(state.sum).ln();
                let sums = premises.dense_sums(norm, visible, log_sum_exp);
                scratch.sums.push(sums);
                scratch.answers.push(SparseAnswer {
                    certificate: premises.dense(norm, visible),
                    ..SparseAnswer::default()
                });
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
