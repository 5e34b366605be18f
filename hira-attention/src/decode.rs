//! A decode step: new tokens one by one, each KV head by the planner's choice, widened until what was promised holds.

use std::{ops::Range, sync::OnceLock, time::Instant};

use hira_cache::HeadCache;
use hira_kernels::Team;
use hira_search::{SearchError, call_with_rayon};
use hira_threshold::ThresholdRule;

use crate::{
    Certificate, HeadPlan, HeadReport, HostAttention,
    engine::{Answers, Call},
    planner::{self, Step},
    promise,
    report::RowBytes,
    scratch::HeadScratch,
    sparse::{self, SparseAnswer, norm},
};

/// A call that reads at most this many bytes of keys and values, were it dense, stays on its thread: it is over before another one has woken
/// up. Measured with three heads: 96 KiB take 6.3 us with a helper and 8.6 alone.
const ALONE_BYTES: usize = 64 << 10;

/// Searches by mass after the configured rule has missed `max_error`.
const WIDENINGS: u32 = 2;

impl HostAttention {
    /// The tokens of a decode step, on the calling thread and on those workers of rayon's pool that are free: whole KV heads first, then
    /// queries and ranges of those that are still under way, so that three heads divide evenly among two threads.
    ///
    /// Each head's tokens come after those that it held before; heads of which `has_new` is false have none.
    pub(crate) fn attend_heads(
        &self,
        call: Call,
        q: &[f32],
        has_new: impl Fn(usize) -> bool + Sync,
        heads: &mut [HeadCache],
        answers: Answers<'_>,
    ) -> Result<(), SearchError> {
        let group = call.group * call.tokens;
        let row = size_of::<f32>() * (call.dim + call.value_dim);
        let visible = (call.before + call.tokens).min(call.window);
        let bytes = visible * heads.len() * call.tokens * row;
        let helpers = if bytes > ALONE_BYTES { usize::MAX } else { 0 };
        let tasks = heads
            .iter_mut()
            .zip(q.chunks_exact(group * call.dim))
            .zip(answers.out.chunks_exact_mut(group * call.value_dim))
            .zip(answers.heads.chunks_exact_mut(call.group))
            .zip(answers.certificates.chunks_exact_mut(group));
        let failed = OnceLock::new();
        self.pool.with_team(|team| {
            call_with_rayon(team, helpers, |team| {
                team.for_each(
                    tasks.enumerate(),
                    |(i, ((((head, queries), out), reports), certificates))| {
                        if !has_new(i) {
                            return;
                        }
                        let call = Call {
                            before: head.len() - call.tokens,
                            ..call
                        };
                        let found = (out, reports, certificates);
                        let done = self.pool.with(|scratch| {
                            self.attend_tokens(call, queries, head, team, scratch, found)
                        });
                        if let Err(error) = done {
                            failed.get_or_init(|| error);
                        }
                    },
                );
            });
        });
        failed.into_inner().map_or(Ok(()), Err)
    }

    /// The tokens of one KV head's group, one by one, by the planner's choice.
    ///
    /// `queries` `[G, L, D]`, `out` `[G, L, Dv]`, one report a query head, certificates `[G, L]`.
    fn attend_tokens(
        &self,
        call: Call,
        queries: &[f32],
        head: &mut HeadCache,
        team: &Team,
        scratch: &mut HeadScratch,
        (out, reports, certificates): (&mut [f32], &mut [HeadReport], &mut [Certificate]),
    ) -> Result<(), SearchError> {
        if call.tokens == 1 {
            // the rows of the one token lie side by side
            self.attend_token(
                call,
                call.seen(0),
                queries,
                head,
                team,
                scratch,
                out,
                reports,
            )?;
            let answers = certificates.iter_mut().zip(&scratch.answers);
            answers.for_each(|(certificate, answer)| *certificate = answer.certificate);
            return Ok(());
        }
        // taken out so that the rest of the scratch can be lent beside them
        let mut token_queries = std::mem::take(&mut scratch.queries);
        let mut token_out = std::mem::take(&mut scratch.out);
        token_out.resize(call.group * call.value_dim, 0.0);
        let mut result = Ok(());
        for token in 0..call.tokens {
            token_queries.clear();
            for g in 0..call.group {
                let start = (g * call.tokens + token) * call.dim;
                token_queries.extend_from_slice(&queries[start..start + call.dim]);
            }
            result = self.attend_token(
                call,
                call.seen(token),
                &token_queries,
                head,
                team,
                scratch,
                &mut token_out,
                reports,
            );
            if result.is_err() {
                break;
            }
            for (g, answer) in scratch.answers.iter().enumerate() {
                certificates[g * call.tokens + token] = answer.certificate;
            }
            for (g, row) in token_out.chunks_exact(call.value_dim).enumerate() {
                let start = (g * call.tokens + token) * call.value_dim;
                out[start..start + call.value_dim].copy_from_slice(row);
            }
        }
        scratch.queries = token_queries;
        scratch.out = token_out;
        result
    }

    #[expect(clippy::too_many_arguments)]
    fn attend_token(
        &self,
        call: Call,
        seen: Range<usize>,
        queries: &[f32],
        head: &mut HeadCache,
        team: &Team,
        scratch: &mut HeadScratch,
        out: &mut [f32],
        reports: &mut [HeadReport],
    ) -> Result<(), SearchError> {
        scratch.times = Default::default();
        let visible = seen.len();
        let rule = promise::rule_now(&self.rule, head.widening(), seen.end);
        let step = self.step(call, seen.clone(), head);
        let plan = rule.map_or(HeadPlan::Dense, |rule| {
            planner::choose(&self.config, &rule, step)
        });
        let plan = match (plan, rule) {
            (HeadPlan::Sparse, Some(rule))
                if self.attend_sparse(call, rule, &seen, queries, head, team, scratch, out)? =>
            {
                HeadPlan::Sparse
            }
            _ => {
                let start = self.measures_time().then(Instant::now);
                let pool = (team, &self.pool);
                let dense = self.dense_step(call);
                dense.decode(pool, head, queries, seen, scratch, out);
                let premises = self.sparse_step(call, team).premises(head, call.dim);
                scratch.answers.clear();
                let certificates = queries
                    .chunks_exact(call.dim)
                    .map(|query| premises.dense(norm(query), visible));
                scratch
                    .answers
                    .extend(certificates.map(|certificate| SparseAnswer {
                        certificate,
                        ..SparseAnswer::default()
                    }));
                if let Some(start) = start {
                    scratch.times.values += start.elapsed();
                }
                HeadPlan::Dense
            }
        };
        let rows = RowBytes::of(head);
        for (g, (report, answer)) in reports.iter_mut().zip(&scratch.answers).enumerate() {
            match plan {
                HeadPlan::Dense => {
                    report.add_dense(visible, answer.certificate);
                    if g == 0 {
                        report.bytes.add_dense(visible, rows);
                    }
                }
                HeadPlan::Sparse => report.add_sparse(visible, answer, g == 0, rows),
            }
        }
        if let Some(first) = reports.first_mut() {
            first.times.add(scratch.times);
        }
        Ok(())
    }

    /// A step whose queries see these positions.
    pub(crate) fn step(&self, call: Call, seen: Range<usize>, head: &HeadCache) -> Step {
        Step {
            visible: seen.len(),
            position: seen.end,
            group: call.group,
            dim: call.dim,
            value_dim: call.value_dim,
            precision: head.values().precision(),
            history: head.history(),
        }
    }

    /// Answers by the sparse plan, into `scratch.answers` and `out`, and says whether the certificates keep what was promised.
    #[expect(clippy::too_many_arguments)]
    fn attend_sparse(
        &self,
        call: Call,
        mut rule: ThresholdRule,
        seen: &Range<usize>,
        queries: &[f32],
        head: &mut HeadCache,
        team: &Team,
        scratch: &mut HeadScratch,
        out: &mut [f32],
    ) -> Result<bool, SearchError> {
        let mut widening = head.widening().filter(|_| rule != self.rule);
        for attempt in 0..=WIDENINGS {
            let sparse = sparse::SparseStep {
                rule: &rule,
                ..self.sparse_step(call, team)
            };
            // The scratch is any head's; what it remembers during the search is this one's.
            scratch.search.swap_history(head.search_history_mut());
            let attended = sparse.attend(head, queries, seen.clone(), scratch, out);
            scratch.search.swap_history(head.search_history_mut());
            attended?;
            let premises = sparse.premises(head, call.dim);
            let kept = promise::is_kept(&self.config, &self.rule, &scratch.answers);
            let share = match self.config.max_error {
                Some(most) if !kept && attempt < WIDENINGS => promise::share(
                    &self.config,
                    &self.rule,
                    premises,
                    most,
                    attempt,
                    &scratch.answers,
                ),
                _ => None,
            };
            if let Some(share) = share {
                rule = ThresholdRule::Mass { mass: 1.0 - share };
                widening = Some(share);
                continue;
            }
            let now = sparse::history(&scratch.answers, seen.len());
            head.record(planner::updated(head.history(), now));
            if self.config.max_error.is_some() {
                head.set_widening(if kept { widening } else { Some(0.0) });
            }
            return Ok(kept);
        }
        Ok(false)
    }
}
