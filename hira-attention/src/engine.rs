//! Attention on host slices: checks, append, plan, attend, report.

use std::sync::OnceLock;

use hira_cache::{HeadCache, HiraCache, LayerCache};
use hira_kernels::{Kernel, MAX_NORM, Team};
use hira_search::{HalfspaceSearcher, SearchConfig, SearchError, call_with_rayon};
use hira_threshold::ThresholdRule;

use crate::{
    AttentionError, AttentionReport, Certificate, ConfigError, HeadPlan, HeadReport,
    HiraAttentionConfig, PlanPolicy,
    certificate::Premises,
    dense::{self, DenseStep},
    planner::{self, Step},
    prefill::TilePrefill,
    scratch::{HeadScratch, ScratchPool},
    sparse::{self, SparseStep, norm},
};

/// The attention engine on slices; [`HiraAttention`](crate::HiraAttention) is its Burn face.
///
/// Clones share their scratch buffers.
///
/// ```
/// use hira_attention::{CacheShape, HiraAttentionConfig};
///
/// let config = HiraAttentionConfig::new().with_top_k(8);
/// let attention = config.init_host()?;
/// let shape = CacheShape { layers: 1, sequences: 1, kv_heads: 1, head_dim: 2, value_dim: 2, max_len: 16 };
/// let mut cache = config.init_cache(shape)?;
/// let mut out = [0.0; 4];
/// // two query heads, one KV head, one new token
/// let report = attention.forward_into(2, &[1.0, 0.0, 0.0, 1.0], &[1.0, 1.0], &[3.0, 4.0], &mut cache, 0, &mut out)?;
/// assert_eq!(out, [3.0, 4.0, 3.0, 4.0]);
/// assert_eq!(report.density(), 1.0);
/// # Ok::<(), hira_attention::AttentionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct HostAttention {
    pub(crate) config: HiraAttentionConfig,
    pub(crate) rule: ThresholdRule,
    kernel: Kernel,
    searcher: HalfspaceSearcher,
    pub(crate) pool: ScratchPool,
}

/// One call: the shapes and values that are common to its heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) tokens: usize,
    pub(crate) group: usize,
    /// Keys stored before the call.
    pub(crate) before: usize,
    pub(crate) dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) scale: f32,
}

/// A call that reads at most this many bytes of keys and values, were it dense, stays on its thread: it is over before another one has woken
/// up. Measured with three heads: 96 KiB take 6.3 us with a helper and 8.6 alone.
const ALONE_BYTES: usize = 64 << 10;

impl HostAttention {
    /// An engine for this configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key of an impossible value.
    pub fn new(config: HiraAttentionConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let search = SearchConfig {
            plan: config.search_plan,
            max_candidates: config.max_candidates,
            parallel: true,
        };
        Ok(Self {
            rule: config.rule()?,
            kernel: config.kernel()?,
            searcher: HalfspaceSearcher::new(search)?,
            pool: ScratchPool::default(),
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &HiraAttentionConfig {
        &self.config
    }

    /// Appends `k` and `v` to layer `layer` of the cache, attends with `q`, and reports what was left out.
    ///
    /// # Shapes
    ///
    /// Row-major: `q` `[B, Hq, L, D]` with `Hq = heads`, `k` `[B, Hkv, L, D]`, `v` `[B, Hkv, L, Dv]`, `out`
    /// `[B, Hq, L, Dv]`; `B`, `Hkv`, `D` and `Dv` are the cache's.
    ///
    /// # Errors
    ///
    /// [`AttentionError`]; the cache is then unchanged and `out` unspecified.
    #[expect(clippy::too_many_arguments)]
    pub fn forward_into(
        &self,
        heads: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        cache: &mut HiraCache,
        layer: usize,
        out: &mut [f32],
    ) -> Result<AttentionReport, AttentionError> {
        let mut report = AttentionReport::new(layer, 0);
        self.forward_reusing(heads, q, k, v, cache, layer, out, &mut report)?;
        Ok(report)
    }

    /// As [`forward_into`](Self::forward_into), into a report whose memory is reused.
    ///
    /// In steady state a decode step on one thread then allocates nothing. With helpers, rayon allocates one small job for each.
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into); the report is then unspecified too.
    #[expect(clippy::too_many_arguments)]
    pub fn forward_reusing(
        &self,
        heads: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        cache: &mut HiraCache,
        layer: usize,
        out: &mut [f32],
        report: &mut AttentionReport,
    ) -> Result<(), AttentionError> {
        let call = self.check(heads, q, k, cache, layer, out)?;
        cache.append(layer, k, v)?;
        let layer_cache = cache.layer_mut(layer)?;
        let rows = heads * layer_cache.sequences();
        report.reset(layer, call.before + call.tokens, rows, call.tokens);
        if call.tokens > 0 {
            let attended = self.attend(call, q, layer_cache.heads_mut(), out, report);
            if let Err(error) = attended {
                layer_cache.truncate(call.before);
                return Err(error.into());
            }
        }
        tracing::debug!(
            layer,
            stored = report.stored,
            density = report.density(),
            scanned_fraction = report.scanned_fraction(),
            dropped_mass_bound = report.dropped_mass_bound(),
            output_error_bound = report.output_error_bound(),
            "attention"
        );
        Ok(())
    }

    /// Everything about shapes and queries; keys and values are checked by the cache.
    fn check(
        &self,
        heads: usize,
        q: &[f32],
        k: &[f32],
        cache: &HiraCache,
        layer: usize,
        out: &[f32],
    ) -> Result<Call, AttentionError> {
        let cache = cache.layer(layer)?;
        let sequences = cache.sequences();
        let rows = sequences * cache.kv_heads();
        let tokens = k.len() / (rows * cache.head_dim());
        let call = self.call(heads, tokens, cache)?;
        for (what, expected, received) in [
            ("k", rows * tokens * call.dim, k.len()),
            (
                "out",
                sequences * heads * tokens * call.value_dim,
                out.len(),
            ),
        ] {
            if received != expected {
                return Err(AttentionError::Length {
                    what,
                    expected,
                    received,
                });
            }
        }
        self.check_queries(heads, q, tokens, cache)?;
        Ok(call)
    }

    /// A call of `tokens` tokens for `heads` query heads.
    pub(crate) fn call(
        &self,
        heads: usize,
        tokens: usize,
        cache: &LayerCache,
    ) -> Result<Call, AttentionError> {
        let (kv_heads, dim) = (cache.kv_heads(), cache.head_dim());
        if heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(AttentionError::Heads { kv_heads, heads });
        }
        Ok(Call {
            tokens,
            group: heads / kv_heads,
            before: cache.len(),
            dim,
            value_dim: cache.value_dim(),
            scale: self
                .config
                .scale
                .unwrap_or_else(|| 1.0 / (dim as f32).sqrt()),
        })
    }

    /// Checks that `q` is `[B, heads, tokens, D]`, finite, and not too long to score.
    pub(crate) fn check_queries(
        &self,
        heads: usize,
        q: &[f32],
        tokens: usize,
        cache: &LayerCache,
    ) -> Result<(), AttentionError> {
        let expected = cache.sequences() * heads * tokens * cache.head_dim();
        if q.len() != expected {
            return Err(AttentionError::Length {
                what: "q",
                expected,
                received: q.len(),
            });
        }
        for (i, row) in q.chunks_exact(cache.head_dim()).enumerate() {
            if norm(row) < MAX_NORM {
                continue;
            }
            let (sequence, head) = (i / (heads * tokens), i / tokens % heads);
            let token = i % tokens;
            return Err(match row.iter().position(|element| !element.is_finite()) {
                Some(column) => AttentionError::NonFiniteQuery {
                    sequence,
                    head,
                    token,
                    column,
                },
                None => AttentionError::QueryMagnitude {
                    sequence,
                    head,
                    token,
                },
            });
        }
        Ok(())
    }

    /// Tokens at the start of the call that are answered densely as a block.
    fn dense_prefix(&self, call: Call) -> usize {
        let prefill = call.tokens > self.config.max_decode_tokens;
        let all_dense = self.config.num_levels == 0
            || self.config.plan == PlanPolicy::Dense
            || prefill && !self.config.use_hira_during_prefill;
        if all_dense {
            // a single token is a decode step, which the per-token path answers
            return if call.tokens > 1 { call.tokens } else { 0 };
        }
        if prefill && self.config.plan == PlanPolicy::Auto {
            // token t sees before + t + 1 keys
            let short = self.config.min_sparse_len.saturating_sub(call.before + 1);
            return short.min(call.tokens);
        }
        0
    }

    fn attend(
        &self,
        call: Call,
        q: &[f32],
        heads: &mut [HeadCache],
        out: &mut [f32],
        report: &mut AttentionReport,
    ) -> Result<(), SearchError> {
        let block = self.dense_prefix(call);
        if block > 0 {
            self.attend_block(call, block, q, heads, out, report);
        }
        if block == call.tokens {
            return Ok(());
        }
        if call.tokens > self.config.max_decode_tokens {
            // one team without helpers a task would be the same: tasks are what is shared
            let team = Team::new();
            let tiles = TilePrefill {
                config: &self.config,
                sparse: self.sparse_step(call, &team),
                dense: self.dense_step(call),
                pool: &self.pool,
                group: call.group,
                tokens: call.tokens,
                before: call.before,
            };
            let (certificates, reports) = (&mut report.certificates, &mut report.heads);
            return tiles.attend(block, q, heads, out, certificates, reports);
        }
        self.attend_heads(call, q, heads, out, report)
    }

    /// The tokens of a decode step, on the calling thread and on those workers of rayon's pool that are free: whole KV heads first, then
    /// queries and ranges of those that are still under way, so that three heads divide evenly among two threads.
    fn attend_heads(
        &self,
        call: Call,
        q: &[f32],
        heads: &mut [HeadCache],
        out: &mut [f32],
        report: &mut AttentionReport,
    ) -> Result<(), SearchError> {
        let group = call.group * call.tokens;
        let row = size_of::<f32>() * (call.dim + call.value_dim);
        let bytes = (call.before + call.tokens) * heads.len() * call.tokens * row;
        let helpers = if bytes > ALONE_BYTES { usize::MAX } else { 0 };
        let tasks = heads
            .iter_mut()
            .zip(q.chunks_exact(group * call.dim))
            .zip(out.chunks_exact_mut(group * call.value_dim))
            .zip(report.heads.chunks_exact_mut(call.group))
            .zip(report.certificates.chunks_exact_mut(group));
        let failed = OnceLock::new();
        self.pool.with_team(|team| {
            call_with_rayon(team, helpers, |team| {
                team.for_each(
                    tasks,
                    |((((head, queries), out), reports), certificates)| {
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

    /// The first `block` tokens, densely, for every head.
    fn attend_block(
        &self,
        call: Call,
        block: usize,
        q: &[f32],
        heads: &[HeadCache],
        out: &mut [f32],
        report: &mut AttentionReport,
    ) {
        dense::prefill(
            &self.dense_step(call),
            &self.pool,
            heads,
            dense::Prefill {
                group: call.group,
                tokens: call.tokens,
                block,
                before: call.before,
            },
            q,
            out,
        );
        let certificates = report.certificates.chunks_exact_mut(call.tokens);
        for (i, (report, certificates)) in report.heads.iter_mut().zip(certificates).enumerate() {
            let premises = premises(call, &heads[i / call.group]);
            let rows = &q[i * call.tokens * call.dim..(i + 1) * call.tokens * call.dim];
            let rows = rows.chunks_exact(call.dim).zip(certificates).take(block);
            for (t, (row, certificate)) in rows.enumerate() {
                let visible = call.before + t + 1;
                *certificate = premises.dense(norm(row), visible);
                report.add_dense(1, visible as u64, *certificate);
            }
        }
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
            let visible = call.before + token + 1;
            result = self.attend_token(
                call,
                visible,
                &token_queries,
                head,
                team,
                scratch,
                &mut token_out,
                |g, certificate| certificates[g * call.tokens + token] = certificate,
                reports,
            );
            if result.is_err() {
                break;
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
        visible: usize,
        queries: &[f32],
        head: &mut HeadCache,
        team: &Team,
        scratch: &mut HeadScratch,
        out: &mut [f32],
        mut certify: impl FnMut(usize, Certificate),
        reports: &mut [HeadReport],
    ) -> Result<(), SearchError> {
        let step = Step {
            visible,
            group: call.group,
            dim: call.dim,
            value_dim: call.value_dim,
            precision: head.values().precision(),
            history: head.history(),
        };
        match planner::choose(&self.config, &self.rule, step) {
            HeadPlan::Dense => {
                self.dense_step(call).decode(
                    (team, &self.pool),
                    head,
                    queries,
                    0..visible,
                    scratch,
                    out,
                );
                let queries = queries.chunks_exact(call.dim);
                for (g, (report, query)) in reports.iter_mut().zip(queries).enumerate() {
                    let certificate = premises(call, head).dense(norm(query), visible);
                    certify(g, certificate);
                    report.add_dense(1, visible as u64, certificate);
                }
            }
            HeadPlan::Sparse => {
                let sparse = self.sparse_step(call, team);
                // The scratch is any head's; what it remembers during the search is this one's.
                scratch.search.swap_history(head.search_history_mut());
                let attended = sparse.attend(head, queries, visible, scratch, out);
                scratch.search.swap_history(head.search_history_mut());
                attended?;
                let answers = reports.iter_mut().zip(&scratch.answers);
                for (g, (report, answer)) in answers.enumerate() {
                    certify(g, answer.certificate);
                    report.add_sparse(
                        visible,
                        answer.survivors,
                        answer.attended,
                        answer.certificate,
                    );
                }
                let now = sparse::history(&scratch.answers, visible);
                head.record(planner::updated(head.history(), now));
            }
        }
        Ok(())
    }

    pub(crate) fn sparse_step<'a>(&'a self, call: Call, team: &'a Team) -> SparseStep<'a> {
        SparseStep {
            searcher: &self.searcher,
            kernel: self.kernel,
            rule: &self.rule,
            scale: call.scale,
            sink_tokens: self.config.sink_tokens,
            recent_window: self.config.recent_window,
            team,
        }
    }

    pub(crate) fn dense_step(&self, call: Call) -> DenseStep {
        DenseStep {
            kernel: self.kernel,
            scale: call.scale,
            dim: call.dim,
            value_dim: call.value_dim,
        }
    }
}

fn premises(call: Call, head: &HeadCache) -> Premises {
    Premises {
        dim: call.dim,
        scale: call.scale,
        key_norm: head.max_key_norm(),
        value_norm: head.max_value_norm(),
    }
}
