//! Attention on host slices: checks, append, plan, attend, report.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use hira_cache::{HeadCache, HiraCache, LayerCache};
use hira_kernels::{Kernel, MAX_NORM, Team};
use hira_search::{HalfspaceSearcher, SearchConfig, SearchError};
use hira_threshold::ThresholdRule;

use crate::{
    AttentionError, AttentionReport, Certificate, ConfigError, HeadReport, HiraAttentionConfig,
    PlanPolicy,
    certificate::Premises,
    dense::{self, DenseStep},
    prefill::TilePrefill,
    report::RowBytes,
    scratch::ScratchPool,
    sparse::{SparseStep, norm},
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
    /// Keys stored before the call, of the longest sequence where they differ.
    pub(crate) before: usize,
    /// Keys that a query sees at most: those of the layer's window, or `usize::MAX`.
    pub(crate) window: usize,
    pub(crate) dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) scale: f32,
}

impl Call {
    /// What the query of the `token`-th new token sees.
    pub(crate) fn seen(&self, token: usize) -> Range<usize> {
        let visible = self.before + token + 1;
        visible.saturating_sub(self.window)..visible
    }
}

/// Where the answers of some query heads go: `[rows, L, Dv]`, one report a row, certificates `[rows, L]`.
pub(crate) struct Answers<'a> {
    pub(crate) out: &'a mut [f32],
    pub(crate) heads: &'a mut [HeadReport],
    pub(crate) certificates: &'a mut [Certificate],
}

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
        self.forward(heads, [q, k, v], None, cache, layer, out, report)
    }

    /// As [`forward_into`](Self::forward_into) for sequences with different numbers of new tokens: the first `lens[b]` of the `L` tokens of
    /// sequence `b` are new, the others are padding. Padding is neither read nor stored, its outputs are zeros, and reports leave it out.
    ///
    /// A sequence's answers are those that it gets alone, bit for bit. With `lens` of 0 and 1 some sequences of a batch decode while others
    /// have ended. Sequences that were given different lengths so need no `lens` where each has `L` new tokens.
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into), and [`CacheError`](hira_cache::CacheError) if `lens` does not fit.
    #[expect(clippy::too_many_arguments)]
    pub fn forward_ragged_into(
        &self,
        heads: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        lens: &[usize],
        cache: &mut HiraCache,
        layer: usize,
        out: &mut [f32],
    ) -> Result<AttentionReport, AttentionError> {
        let mut report = AttentionReport::new(layer, 0);
        self.forward(heads, [q, k, v], Some(lens), cache, layer, out, &mut report)?;
        Ok(report)
    }

    #[expect(clippy::too_many_arguments)]
    fn forward(
        &self,
        heads: usize,
        [q, k, v]: [&[f32]; 3],
        lens: Option<&[usize]>,
        cache: &mut HiraCache,
        layer: usize,
        out: &mut [f32],
        report: &mut AttentionReport,
    ) -> Result<(), AttentionError> {
        let call = self.check(heads, q, k, lens, cache, layer, out)?;
        let start = self.measures_time().then(Instant::now);
        match lens {
            Some(lens) => cache.append_lens(layer, k, v, lens)?,
            None => cache.append(layer, k, v)?,
        }
        let append = start.map_or(Duration::ZERO, |start| start.elapsed());
        let layer_cache = cache.layer_mut(layer)?;
        let rows = heads * layer_cache.sequences();
        report.reset(layer, layer_cache.len(), rows, call.tokens);
        report.append = append;
        if call.tokens > 0 {
            let kv_heads = layer_cache.kv_heads();
            let answers = Answers {
                out,
                heads: &mut report.heads,
                certificates: &mut report.certificates,
            };
            let attended = if are_alike(layer_cache, call, lens) {
                self.attend(call, q, layer_cache.heads_mut(), answers)
            } else {
                self.attend_ragged(call, q, lens, kv_heads, layer_cache.heads_mut(), answers)
            };
            if let Err(error) = attended {
                // Nothing that a query before the new tokens sees was evicted.
                for (i, head) in layer_cache.heads_mut().iter_mut().enumerate() {
                    let new = lens.map_or(call.tokens, |lens| lens[i / kv_heads]);
                    head.forget_last(new);
                }
                return Err(error.into());
            }
        }
        report.trace();
        Ok(())
    }

    /// Sequences of different lengths: each as if it were alone.
    fn attend_ragged(
        &self,
        call: Call,
        q: &[f32],
        lens: Option<&[usize]>,
        kv_heads: usize,
        heads: &mut [HeadCache],
        answers: Answers<'_>,
    ) -> Result<(), SearchError> {
        if call.tokens == 1 {
            // one step for all of them, so that threads find as much to do
            answers.out.fill(0.0);
            let has_new = |i: usize| lens.is_none_or(|lens| lens[i / kv_heads] > 0);
            return self.attend_heads(call, q, has_new, heads, answers);
        }
        let rows = kv_heads * call.group;
        let (mut queries, mut out, mut certificates) = (Vec::new(), Vec::new(), Vec::new());
        for (b, heads) in heads.chunks_exact_mut(kv_heads).enumerate() {
            let tokens = lens.map_or(call.tokens, |lens| lens[b]);
            let alone = Call {
                tokens,
                before: heads.first().map_or(0, HeadCache::len) - tokens,
                ..call
            };
            let of_sequence = b * rows..(b + 1) * rows;
            let length = call.tokens * call.value_dim;
            let padded = &mut answers.out[of_sequence.start * length..of_sequence.end * length];
            padded.fill(0.0);
            if tokens == 0 {
                continue;
            }
            // without the padding
            queries.clear();
            for row in of_sequence.clone() {
                let first = row * call.tokens * call.dim;
                queries.extend_from_slice(&q[first..first + tokens * call.dim]);
            }
            out.clear();
            out.resize(rows * tokens * call.value_dim, 0.0);
            certificates.clear();
            certificates.resize(rows * tokens, Certificate::default());
            let found = Answers {
                out: &mut out,
                heads: &mut answers.heads[of_sequence.clone()],
                certificates: &mut certificates,
            };
            self.attend(alone, &queries, heads, found)?;
            let found = out.chunks_exact(tokens * call.value_dim);
            for (padded, found) in padded.chunks_exact_mut(length).zip(found) {
                padded[..found.len()].copy_from_slice(found);
            }
            let padded = &mut answers.certificates
                [of_sequence.start * call.tokens..of_sequence.end * call.tokens];
            let found = certificates.chunks_exact(tokens);
            for (padded, found) in padded.chunks_exact_mut(call.tokens).zip(found) {
                padded[..tokens].copy_from_slice(found);
            }
        }
        Ok(())
    }

    /// Everything about shapes and queries; keys and values are checked by the cache.
    #[expect(clippy::too_many_arguments)]
    fn check(
        &self,
        heads: usize,
        q: &[f32],
        k: &[f32],
        lens: Option<&[usize]>,
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
        // Without `lens`, or with what the cache is about to refuse, every row is looked at.
        let lens = lens.filter(|lens| lens.len() == sequences);
        self.check_queries(heads, q, tokens, lens, cache)?;
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
            window: cache.window().unwrap_or(usize::MAX),
            dim,
            value_dim: cache.value_dim(),
            scale: self
                .config
                .scale
                .unwrap_or_else(|| 1.0 / (dim as f32).sqrt()),
        })
    }

    /// Checks that `q` is `[B, heads, tokens, D]`, finite, and not too long to score, but for padding.
    pub(crate) fn check_queries(
        &self,
        heads: usize,
        q: &[f32],
        tokens: usize,
        lens: Option<&[usize]>,
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
            if lens.is_some_and(|lens| token >= lens[sequence]) {
                continue;
            }
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
            // token t sees before + t + 1 keys, or those of the window
            if call.window < self.config.min_sparse_len {
                return call.tokens;
            }
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
        mut answers: Answers<'_>,
    ) -> Result<(), SearchError> {
        let block = self.dense_prefix(call);
        if block > 0 {
            self.attend_block(call, block, q, heads, &mut answers);
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
                window: call.window,
            };
            let Answers {
                out,
                heads: reports,
                certificates,
            } = answers;
            return tiles.attend(block, q, heads, out, certificates, reports);
        }
        self.attend_heads(call, q, |_| true, heads, answers)
    }

    /// The first `block` tokens, densely, for every head.
    fn attend_block(
        &self,
        call: Call,
        block: usize,
        q: &[f32],
        heads: &[HeadCache],
        answers: &mut Answers<'_>,
    ) {
        let start = self.measures_time().then(Instant::now);
        dense::prefill(
            &self.dense_step(call),
            &self.pool,
            heads,
            dense::Prefill {
                group: call.group,
                tokens: call.tokens,
                block,
                before: call.before,
                window: call.window,
            },
            q,
            answers.out,
        );
        if let (Some(start), Some(first)) = (start, answers.heads.first_mut()) {
            first.times.values += start.elapsed();
        }
        let certificates = answers.certificates.chunks_exact_mut(call.tokens);
        for (i, (report, certificates)) in answers.heads.iter_mut().zip(certificates).enumerate() {
            let head = &heads[i / call.group];
            let premises = premises(call, head);
            let rows = &q[i * call.tokens * call.dim..(i + 1) * call.tokens * call.dim];
            let rows = rows.chunks_exact(call.dim).zip(certificates).take(block);
            for (t, (row, certificate)) in rows.enumerate() {
                let seen = call.seen(t);
                *certificate = premises.dense(norm(row), seen.len());
                report.add_dense(seen.len(), *certificate);
                let ends_block = (t + 1).is_multiple_of(dense::QUERY_BLOCK) || t + 1 == block;
                if ends_block && i.is_multiple_of(call.group) {
                    let first = call.seen(t - t % dense::QUERY_BLOCK).start;
                    report.bytes.add_dense(seen.end - first, RowBytes::of(head));
                }
            }
        }
    }

    /// Whether the time of each phase is wanted: a step that nobody watches does not look at the clock.
    pub(crate) fn measures_time(&self) -> bool {
        self.config.measure_time || tracing::enabled!(tracing::Level::DEBUG)
    }

    pub(crate) fn sparse_step<'a>(&'a self, call: Call, team: &'a Team) -> SparseStep<'a> {
        SparseStep {
            searcher: &self.searcher,
            kernel: self.kernel,
            rule: &self.rule,
            scale: call.scale,
            sink_tokens: self.config.sink_tokens,
            recent_window: self.config.recent_window,
            timed: self.measures_time(),
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

/// Whether every sequence has as many keys and as many new tokens as the others.
fn are_alike(layer: &LayerCache, call: Call, lens: Option<&[usize]>) -> bool {
    let all = call.before + call.tokens;
    let new = |lens: &[usize]| lens.iter().all(|&len| len == call.tokens);
    layer.lens().all(|len| len == all) && lens.is_none_or(new)
}

fn premises(call: Call, head: &HeadCache) -> Premises {
    Premises {
        dim: call.dim,
        scale: call.scale,
        key_norm: head.max_key_norm(),
        value_norm: head.max_value_norm(),
    }
}
