//! Attention on host slices: checks, append, plan, attend, report.

use std::sync::OnceLock;

use hira_cache::{HeadCache, HiraCache};
use hira_kernels::{Kernel, MAX_NORM, Team};
use hira_search::{HalfspaceSearcher, SearchConfig, SearchError, call_with_rayon};
use hira_threshold::ThresholdRule;

use crate::{
    AttentionError, AttentionReport, ConfigError, HeadPlan, HeadReport, HiraAttentionConfig,
    PlanPolicy,
    certificate::Premises,
    dense::{self, DenseStep},
    planner::{self, Step},
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
    config: HiraAttentionConfig,
    rule: ThresholdRule,
    kernel: Kernel,
    searcher: HalfspaceSearcher,
    pool: ScratchPool,
}

/// One call: the shapes and values that are common to its heads.
#[derive(Debug, Clone, Copy)]
struct Call {
    tokens: usize,
    group: usize,
    /// Keys stored before the call.
    before: usize,
    dim: usize,
    value_dim: usize,
    scale: f32,
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
            tail_block: config.compensated_block(),
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
        report.layer = layer;
        report.stored = call.before + call.tokens;
        report.heads.clear();
        let queries = heads * layer_cache.sequences();
        report.heads.resize(queries, HeadReport::new());
        if call.tokens > 0 {
            let attended = self.attend(call, q, layer_cache.heads_mut(), out, &mut report.heads);
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
        let (sequences, kv_heads) = (cache.sequences(), cache.kv_heads());
        let (dim, value_dim) = (cache.head_dim(), cache.value_dim());
        if heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(AttentionError::Heads { kv_heads, heads });
        }
        let tokens = k.len() / (sequences * kv_heads * dim);
        for (what, expected, received) in [
            ("k", sequences * kv_heads * tokens * dim, k.len()),
            ("q", sequences * heads * tokens * dim, q.len()),
            ("out", sequences * heads * tokens * value_dim, out.len()),
        ] {
            if received != expected {
                return Err(AttentionError::Length {
                    what,
                    expected,
                    received,
                });
            }
        }
        for (i, row) in q.chunks_exact(dim).enumerate() {
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
        Ok(Call {
            tokens,
            group: heads / kv_heads,
            before: cache.len(),
            dim,
            value_dim,
            scale: self
                .config
                .scale
                .unwrap_or_else(|| 1.0 / (dim as f32).sqrt()),
        })
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
        reports: &mut [HeadReport],
    ) -> Result<(), SearchError> {
        let block = self.dense_prefix(call);
        if block > 0 {
            self.attend_block(call, block, q, heads, out, reports);
        }
        if block < call.tokens {
            self.attend_heads(call, block, q, heads, out, reports)?;
        }
        Ok(())
    }

    /// The tokens from `block` on, on the calling thread and on those workers of rayon's pool that are free: whole KV heads first, then
    /// queries and ranges of those that are still under way, so that three heads divide evenly among two threads.
    fn attend_heads(
        &self,
        call: Call,
        block: usize,
        q: &[f32],
        heads: &mut [HeadCache],
        out: &mut [f32],
        reports: &mut [HeadReport],
    ) -> Result<(), SearchError> {
        let group = call.group * call.tokens;
        let row = size_of::<f32>() * (call.dim + call.value_dim);
        let bytes = (call.before + call.tokens) * heads.len() * call.tokens * row;
        let helpers = if bytes > ALONE_BYTES { usize::MAX } else { 0 };
        let tasks = heads
            .iter_mut()
            .zip(q.chunks_exact(group * call.dim))
            .zip(out.chunks_exact_mut(group * call.value_dim))
            .zip(reports.chunks_exact_mut(call.group));
        let failed = OnceLock::new();
        self.pool.with_team(|team| {
            call_with_rayon(team, helpers, |team| {
                team.for_each(tasks, |(((head, queries), out), reports)| {
                    let done = self.pool.with(|scratch| {
                        self.attend_tokens(call, block, queries, head, team, scratch, out, reports)
                    });
                    if let Err(error) = done {
                        failed.get_or_init(|| error);
                    }
                });
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
        reports: &mut [HeadReport],
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
        for (i, report) in reports.iter_mut().enumerate() {
            let head = &heads[i / call.group];
            let rows = &q[i * call.tokens * call.dim..(i + 1) * call.tokens * call.dim];
            let norms = rows.chunks_exact(call.dim).take(block).map(norm);
            let longest = norms.fold(0.0, f32::max);
            let certificate = premises(call, head).dense(longest, call.before + block);
            let visible = (1..=block).map(|t| (call.before + t) as u64).sum();
            report.add_dense(block as u64, visible, certificate);
        }
    }

    /// Tokens `first..` of one KV head's group, one by one, by the planner's choice.
    ///
    /// `queries` `[G, L, D]`, `out` `[G, L, Dv]`, one report a query head.
    #[expect(clippy::too_many_arguments)]
    fn attend_tokens(
        &self,
        call: Call,
        first: usize,
        queries: &[f32],
        head: &mut HeadCache,
        team: &Team,
        scratch: &mut HeadScratch,
        out: &mut [f32],
        reports: &mut [HeadReport],
    ) -> Result<(), SearchError> {
        // taken out so that the rest of the scratch can be lent beside them
        let mut token_queries = std::mem::take(&mut scratch.queries);
        let mut token_out = std::mem::take(&mut scratch.out);
        token_out.resize(call.group * call.value_dim, 0.0);
        let mut result = Ok(());
        for token in first..call.tokens {
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
        let plan = planner::choose(&self.config, &self.rule, step);
        if plan == HeadPlan::Sparse
            && self.attend_sparse(call, visible, queries, head, team, scratch, out)?
        {
            for (report, answer) in reports.iter_mut().zip(&scratch.answers) {
                report.add_sparse(
                    visible,
                    answer.survivors,
                    answer.attended,
                    answer.certificate,
                );
            }
            return Ok(());
        }
        self.dense_step(call)
            .decode((team, &self.pool), head, queries, visible, scratch, out);
        for (report, query) in reports.iter_mut().zip(queries.chunks_exact(call.dim)) {
            let certificate = premises(call, head).dense(norm(query), visible);
            report.add_dense(1, visible as u64, certificate);
        }
        Ok(())
    }

    /// Answers by the sparse plan, into `scratch.answers` and `out`, and says whether the certificates keep what the rule promises.
    #[expect(clippy::too_many_arguments)]
    fn attend_sparse(
        &self,
        call: Call,
        visible: usize,
        queries: &[f32],
        head: &mut HeadCache,
        team: &Team,
        scratch: &mut HeadScratch,
        out: &mut [f32],
    ) -> Result<bool, SearchError> {
        let sparse = SparseStep {
            searcher: &self.searcher,
            kernel: self.kernel,
            rule: &self.rule,
            scale: call.scale,
            sink_tokens: self.config.sink_tokens,
            recent_window: self.config.recent_window,
            team,
        };
        // The scratch is any head's; what it remembers during the search is this one's.
        scratch.search.swap_history(head.search_history_mut());
        let attended = sparse.attend(head, queries, visible, scratch, out);
        scratch.search.swap_history(head.search_history_mut());
        attended?;
        let now = sparse::history(&scratch.answers, visible);
        head.record(planner::updated(head.history(), now));
        // A search by mass leaves a thousandth of the share for rounding; keys and queries of huge norms can need more.
        let most = match self.rule {
            ThresholdRule::Mass { mass } if self.config.max_candidates.is_none() => {
                1.0 - f64::from(mass)
            }
            _ => return Ok(true),
        };
        let bounds = scratch.answers.iter();
        let mut bounds = bounds.map(|answer| f64::from(answer.certificate.dropped_mass_bound));
        Ok(bounds.all(|bound| bound <= most))
    }

    fn dense_step(&self, call: Call) -> DenseStep {
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
