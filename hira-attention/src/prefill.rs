//! Sparse causal prefill: tiles of consecutive tokens that share one search.
//!
//! In a layer with a window the keys `F..searched` are searched, which every query of the tile sees; the up to fifteen before `F` that a query sees
//! besides are attended to.
//!
//! The tile of position `p` begins at `searched = p - p % 16`. All queries of a tile (16 tokens of each query head of a group) search the keys
//! `0..searched` at once, so a block of the sketch is read while it lies in the nearest cache; then each attends to what its search selected, to the sinks, and
//! to every key from `min(searched, p + 1 - window)` up to its own. Keys beyond `searched` are all attended to: they add mass to what is
//! kept and nothing to the tail, and the certificate of [`crate::sparse`] holds as it stands.
//!
//! Where tiles begin depends on the position alone, so what a token attends to does not depend on how a prompt is cut into calls.

use std::{ops::Range, sync::OnceLock, time::Instant};

use hira_cache::{HeadCache, SparseHistory};
use hira_kernels::dense::{KeyWindow, QueryBlock, RowStrides};
use hira_search::{SearchError, SearchHistory};
use hira_threshold::ThresholdRule;
use rayon::prelude::*;

use crate::{
    Certificate, HeadPlan, HeadReport, HiraAttentionConfig, PhaseTimes,
    dense::{DenseStep, QUERY_BLOCK, RangeCopy, range_copies, runs_of},
    planner::{self, Step},
    promise,
    report::RowBytes,
    rows::Always,
    scratch::{HeadScratch, ScratchPool},
    sparse::{self, SparseStep, norm},
};

/// Positions of a tile. More share a scan better, and attend to more keys that no search selected.
pub(crate) const TILE_TOKENS: usize = 16;

/// Most positions of a task.
const TASK_TOKENS: usize = 8 * TILE_TOKENS;

/// Tasks of a head that a call is divided into, where they are of a tile or more.
const TASKS: usize = 8;

/// One prefill of all heads.
pub(crate) struct TilePrefill<'a> {
    pub(crate) config: &'a HiraAttentionConfig,
    pub(crate) sparse: SparseStep<'a>,
    pub(crate) dense: DenseStep,
    pub(crate) pool: &'a ScratchPool,
    /// Query heads of a KV head.
    pub(crate) group: usize,
    /// New tokens of the call, `L`.
    pub(crate) tokens: usize,
    /// Keys stored before the call.
    pub(crate) before: usize,
    /// Keys that a query sees at most.
    pub(crate) window: usize,
}

/// Some consecutive tokens of one KV head: where its answers go.
struct Task<'a> {
    kv_head: usize,
    tokens: Range<usize>,
    /// For each query head of the group: rows of the output, and one certificate a token.
    rows: Vec<(&'a mut [f32], &'a mut [Certificate])>,
}

/// What a task came to.
struct Done {
    kv_head: usize,
    reports: Vec<HeadReport>,
    history: Option<SparseHistory>,
}

impl TilePrefill<'_> {
    /// Answers the tokens from `first` on.
    ///
    /// # Shapes
    ///
    /// `q` `[B, Hq, L, D]`, `out` `[B, Hq, L, Dv]`, `certificates` `[B, Hq, L]`; one report a query head, `heads` the `B * Hkv` KV heads.
    ///
    /// # Errors
    ///
    /// That of the search; `out` is then unspecified.
    pub(crate) fn attend(
        &self,
        first: usize,
        q: &[f32],
        heads: &mut [HeadCache],
        out: &mut [f32],
        certificates: &mut [Certificate],
        reports: &mut [HeadReport],
    ) -> Result<(), SearchError> {
        // The first tile that should be sparse says what the others of its head can expect.
        let mut pilot = first;
        while pilot < self.tokens {
            let start = pilot;
            pilot = self.tile_end(start);
            let sparse =
                |head| self.plan(self.sparse.rule, start, head, head.history()) == HeadPlan::Sparse;
            if heads.iter().any(sparse) {
                break;
            }
        }
        let tasks = self.tasks(first, pilot, out, certificates);
        self.run_all(tasks, q, heads, reports)?;
        let tasks = self.tasks(pilot, self.tokens, out, certificates);
        self.run_all(tasks, q, heads, reports)
    }

    /// The end of the tile that holds `token`.
    fn tile_end(&self, token: usize) -> usize {
        let position = self.before + token;
        ((position + 1).next_multiple_of(TILE_TOKENS) - self.before).min(self.tokens)
    }

    /// The tokens `from..to` of all heads in tasks, those that see most keys first.
    fn tasks<'a>(
        &self,
        from: usize,
        to: usize,
        out: &'a mut [f32],
        certificates: &'a mut [Certificate],
    ) -> Vec<Task<'a>> {
        let value_dim = self.dense.value_dim;
        // By the call alone: a task begins with the history that the call began with, and no answer may depend on threads.
        let length = (self.tokens / TASKS).clamp(TILE_TOKENS, TASK_TOKENS);
        let length = length.next_multiple_of(TILE_TOKENS);
        let mut ranges = Vec::new();
        let mut token = from;
        while token < to {
            let end = (self.before + token + 1).next_multiple_of(length) - self.before;
            ranges.push(token..end.min(to));
            token = end;
        }
        let heads = out.len() / (self.group * self.tokens * value_dim);
        let of_head = |kv_head| {
            ranges.iter().map(move |tokens| Task {
                kv_head,
                tokens: tokens.clone(),
                rows: Vec::with_capacity(self.group),
            })
        };
        let mut tasks: Vec<_> = (0..heads).flat_map(of_head).collect();
        let rows = out.chunks_exact_mut(self.tokens * value_dim);
        let rows = rows.zip(certificates.chunks_exact_mut(self.tokens));
        for (row, (out, certificates)) in rows.enumerate() {
            let mut rest = (&mut out[from * value_dim..], &mut certificates[from..]);
            let tasks = &mut tasks[row / self.group * ranges.len()..][..ranges.len()];
            for task in tasks {
                let (out, later) = rest.0.split_at_mut(task.tokens.len() * value_dim);
                let (certificates, others) = rest.1.split_at_mut(task.tokens.len());
                task.rows.push((out, certificates));
                rest = (later, others);
            }
        }
        tasks.sort_by_key(|task| std::cmp::Reverse(task.tokens.start));
        tasks
    }

    /// Works off `tasks` on rayon's pool, and adds what they came to in the order of heads and tokens.
    fn run_all(
        &self,
        tasks: Vec<Task<'_>>,
        q: &[f32],
        heads: &mut [HeadCache],
        reports: &mut [HeadReport],
    ) -> Result<(), SearchError> {
        let copies: Vec<OnceLock<Vec<RangeCopy>>> = heads.iter().map(|_| OnceLock::new()).collect();
        let done: Result<Vec<Done>, SearchError> = {
            let heads = &*heads;
            let run = |task: Task<'_>| {
                let (head, copies) = (&heads[task.kv_head], &copies[task.kv_head]);
                let queries = self.group * self.tokens * self.dense.dim;
                let q = &q[task.kv_head * queries..][..queries];
                self.pool
                    .with(|scratch| self.run(task, head, copies, q, scratch))
            };
            tasks.into_par_iter().map(run).collect()
        };
        // sorted by descending tokens
        for done in done?.into_iter().rev() {
            let reports = &mut reports[done.kv_head * self.group..][..self.group];
            for (report, part) in reports.iter_mut().zip(&done.reports) {
                report.add(part);
            }
            if let Some(history) = done.history {
                heads[done.kv_head].record(history);
            }
        }
        Ok(())
    }

    /// One task: its tiles in order, those that are dense side by side.
    ///
    /// `q` `[G, L, D]`.
    fn run(
        &self,
        mut task: Task<'_>,
        head: &HeadCache,
        copies: &OnceLock<Vec<RangeCopy>>,
        q: &[f32],
        scratch: &mut HeadScratch,
    ) -> Result<Done, SearchError> {
        let mut done = Done {
            kv_head: task.kv_head,
            reports: vec![HeadReport::new(); self.group],
            history: None,
        };
        let mut history = head.history();
        // Of the scratch's own, which no head uses. Keys that survived for the tile before are forgotten: to score them for a first threshold
        // costs more than to scan a sample of the sketch for it.
        let mut searches = SearchHistory::default();
        scratch.search.swap_history(&mut searches);
        let mut dense = task.tokens.start..task.tokens.start;
        let mut token = task.tokens.start;
        let mut rule = *self.sparse.rule;
        // whether only dense attention kept what was promised
        let mut missed = false;
        let mut result = Ok(());
        while token < task.tokens.end {
            let tile = token..self.tile_end(token);
            token = tile.end;
            let waits = missed && !planner::is_probed(self.tile_start(tile.start));
            if waits || self.plan(&rule, tile.start, head, history) == HeadPlan::Dense {
                dense.end = tile.end;
                if dense.len() >= QUERY_BLOCK {
                    self.attend_dense(&dense, &mut task, head, copies, q, scratch, &mut done);
                    dense = token..token;
                }
                continue;
            }
            self.attend_dense(&dense, &mut task, head, copies, q, scratch, &mut done);
            dense = token..token;
            let mut kept = self.attend_tile(&rule, &tile, &mut task, head, q, scratch, &mut done);
            if matches!(kept, Ok(false))
                && let Some(most) = self.config.max_error
            {
                let premises = self.sparse.premises(head, self.dense.dim);
                let answers = &scratch.answers;
                if let Some(share) =
                    promise::share(self.config, self.sparse.rule, premises, most, 0, answers)
                {
                    rule = ThresholdRule::Mass { mass: 1.0 - share };
                    kept = self.attend_tile(&rule, &tile, &mut task, head, q, scratch, &mut done);
                }
            }
            match kept {
                Ok(kept) => missed = !kept,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            scratch.search.forget_keys();
            let now = sparse::history(&scratch.answers, self.seen(tile.end - 1).len());
            history = Some(planner::updated(history, now));
            done.history = history;
            if missed {
                dense = tile;
            }
        }
        self.attend_dense(&dense, &mut task, head, copies, q, scratch, &mut done);
        scratch.search.swap_history(&mut searches);
        result.map(|()| done)
    }

    /// The plan of the tile that begins with `token`.
    fn plan(
        &self,
        rule: &ThresholdRule,
        token: usize,
        head: &HeadCache,
        history: Option<SparseHistory>,
    ) -> HeadPlan {
        let step = Step {
            visible: self.searched(token).len(),
            position: self.tile_start(token),
            group: self.group,
            dim: self.dense.dim,
            value_dim: self.dense.value_dim,
            precision: head.values().precision(),
            history,
        };
        planner::choose_tile(self.config, rule, step)
    }

    /// The position at which the tile of `token` begins.
    fn tile_start(&self, token: usize) -> usize {
        let position = self.before + token;
        position - position % TILE_TOKENS
    }

    /// Keys before the tile of `token` that every position of the tile sees.
    fn searched(&self, token: usize) -> Range<usize> {
        let end = self.tile_start(token);
        // What the last position of the tile sees, whether it is one of this call or not.
        let first = (end + TILE_TOKENS).saturating_sub(self.window);
        first.min(end)..end
    }

    /// What the query of a token sees.
    fn seen(&self, token: usize) -> Range<usize> {
        let visible = self.before + token + 1;
        visible.saturating_sub(self.window)..visible
    }

    /// The tokens `tile`, which end with their tile, by one search; false, and nothing written, if the answers do not keep what was promised.
    #[expect(clippy::too_many_arguments)]
    fn attend_tile(
        &self,
        rule: &ThresholdRule,
        tile: &Range<usize>,
        task: &mut Task<'_>,
        head: &HeadCache,
        q: &[f32],
        scratch: &mut HeadScratch,
        done: &mut Done,
    ) -> Result<bool, SearchError> {
        let (dim, value_dim) = (self.dense.dim, self.dense.value_dim);
        let mut queries = std::mem::take(&mut scratch.queries);
        let mut out = std::mem::take(&mut scratch.out);
        queries.clear();
        for q in q.chunks_exact(self.tokens * dim) {
            queries.extend_from_slice(&q[tile.start * dim..tile.end * dim]);
        }
        out.resize(queries.len() / dim * value_dim, 0.0);
        let searched = self.searched(tile.start);
        let SparseStep {
            sink_tokens,
            recent_window,
            ..
        } = self.sparse;
        let always = |row: usize| {
            let visible = self.seen(tile.start + row % tile.len());
            Always::beyond(searched.clone(), sink_tokens, recent_window, visible)
        };
        scratch.times = PhaseTimes::default();
        let sparse = SparseStep {
            rule,
            ..self.sparse
        };
        let attended =
            sparse.attend_rows(head, &queries, searched.clone(), always, scratch, &mut out);
        let kept =
            attended.is_ok() && promise::is_kept(self.config, self.sparse.rule, &scratch.answers);
        done.reports[0].times.add(scratch.times);
        if kept {
            let row_bytes = RowBytes::of(head);
            let mut is_first = true;
            let found = out.chunks_exact(tile.len() * value_dim);
            let answers = scratch.answers.chunks_exact(tile.len());
            let rows = task.rows.iter_mut().zip(&mut done.reports);
            for ((found, answers), ((out, certificates), report)) in found.zip(answers).zip(rows) {
                let first = tile.start - task.tokens.start;
                out[first * value_dim..][..found.len()].copy_from_slice(found);
                for (token, answer) in answers.iter().enumerate() {
                    let leads = is_first && token == 0;
                    let seen = self.seen(tile.start + token).len();
                    report.add_sparse(seen, answer, leads, row_bytes);
                    certificates[first + token] = answer.certificate;
                }
                is_first = false;
            }
        }
        scratch.queries = queries;
        scratch.out = out;
        attended.map(|()| kept)
    }

    /// The tokens `dense` as a block of dense attention; none if it is empty.
    #[expect(clippy::too_many_arguments)]
    fn attend_dense(
        &self,
        dense: &Range<usize>,
        task: &mut Task<'_>,
        head: &HeadCache,
        copies: &OnceLock<Vec<RangeCopy>>,
        q: &[f32],
        scratch: &mut HeadScratch,
        done: &mut Done,
    ) {
        if dense.is_empty() {
            return;
        }
        let (dim, value_dim) = (self.dense.dim, self.dense.value_dim);
        let first_key = self.seen(0).start;
        let stored = first_key..self.before + self.tokens;
        let copies = copies.get_or_init(|| range_copies(head, stored));
        let visible = self.before + dense.end;
        let window = KeyWindow {
            base: first_key,
            len: self.window,
        };
        let block = QueryBlock {
            start: self.before + dense.start,
            len: dense.len(),
            heads: self.group,
            queries: RowStrides::head_major(self.tokens, dim),
            out: RowStrides::head_major(dense.len(), value_dim),
        };
        let start = self.sparse.timed.then(Instant::now);
        let length = self.group * dense.len() * value_dim;
        scratch.out.resize(length, 0.0);
        self.dense.kernel.dense_window_prefill_into(
            &q[dense.start * dim..],
            &runs_of(head, copies, first_key..visible),
            window,
            self.dense.shape(),
            block,
            &mut scratch.out,
            &mut scratch.dense,
        );
        let premises = self.sparse.premises(head, dim);
        let found = scratch.out.chunks_exact(dense.len() * value_dim);
        let rows = task.rows.iter_mut().zip(&mut done.reports);
        let queries = q.chunks_exact(self.tokens * dim);
        for ((found, q), ((out, certificates), report)) in found.zip(queries).zip(rows) {
            let first = dense.start - task.tokens.start;
            out[first * value_dim..][..found.len()].copy_from_slice(found);
            for (i, q) in q[dense.start * dim..dense.end * dim]
                .chunks_exact(dim)
                .enumerate()
            {
                let seen = self.seen(dense.start + i).len();
                let certificate = premises.dense(norm(q), seen);
                report.add_dense(seen, certificate);
                certificates[first + i] = certificate;
            }
        }
        let first = &mut done.reports[0];
        let read = visible - self.seen(dense.start).start;
        first.bytes.add_dense(read, RowBytes::of(head));
        if let Some(start) = start {
            first.times.values += start.elapsed();
        }
    }
}
