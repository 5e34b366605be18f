//! The engine of the comparison rules, on slices.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hira_attention::{
    AttentionError, AttentionReport, Certificate, ConfigError, HeadReport, HiraAttentionConfig,
    HostAttention, PlanPolicy,
};
use hira_cache::{HeadCache, HiraCache};
use hira_kernels::Kernel;
use rayon::prelude::*;

use super::h2o::Kept;
use super::quest::{PageScratch, Pages};
use super::{ComparisonRule, streaming};

/// The positions that each query head attended to in the last token of a call, ascending: `sequence * Hq + head`.
pub type Selections = Vec<Vec<u32>>;

/// Attention by a [`ComparisonRule`].
///
/// What it has in common with Hira's is taken from the same configuration: `scale`, `kernel`, `min_sparse_len` (below it a query is dense),
/// and whether a prefill (`max_decode_tokens`) is dense. Sinks and window are the rules' own.
///
/// One value follows one cache: H2O remembers what each head of a layer kept. If a layer's length is not what the last call left, its
/// heads start anew with all the keys that are there.
///
/// # Complexity
///
/// Written for comparing, not for speed: a call also computes dense attention, for the queries that are dense and for the checks.
#[derive(Debug)]
pub struct ComparisonHost {
    rule: ComparisonRule,
    dense: HostAttention,
    config: HiraAttentionConfig,
    kernel: Kernel,
    /// Of H2O: by layer.
    kept: Mutex<BTreeMap<usize, Layer>>,
    selections: Mutex<Selections>,
}

/// What H2O's heads of one layer kept after its `len` keys.
#[derive(Debug, Clone, Default)]
struct Layer {
    len: usize,
    heads: Vec<Kept>,
}

/// What the heads of a call have in common.
#[derive(Clone, Copy)]
struct Call {
    before: usize,
    group: usize,
    dim: usize,
    value_dim: usize,
    scale: f32,
    /// The whole call is a dense prefill.
    dense: bool,
}

/// Keys and values of one KV head, widened, and its pages where a rule needs them.
struct Rows<'a> {
    keys: Cow<'a, [f32]>,
    values: Cow<'a, [f32]>,
    pages: Pages,
    value_norm: f32,
}

impl ComparisonHost {
    /// An engine for `rule`, with what it has in common with `base`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an impossible value in `base`.
    pub fn new(rule: ComparisonRule, base: &HiraAttentionConfig) -> Result<Self, ConfigError> {
        let dense = HiraAttentionConfig {
            plan: PlanPolicy::Dense,
            ..base.clone()
        };
        Ok(Self {
            rule,
            dense: dense.init_host()?,
            kernel: base.kernel()?,
            config: base.clone(),
            kept: Mutex::default(),
            selections: Mutex::default(),
        })
    }

    /// The rule.
    pub fn rule(&self) -> ComparisonRule {
        self.rule
    }

    /// What the last token of the last call attended to.
    pub fn selections(&self) -> Selections {
        let selections = self.selections.lock();
        selections.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Appends and attends, as [`HostAttention::forward_into`] does.
    ///
    /// # Errors
    ///
    /// As [`HostAttention::forward_into`]; the cache is then unchanged.
    #[expect(
        clippy::too_many_arguments,
        reason = "the signature of HostAttention::forward_into"
    )]
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
        let mut report = self.dense.forward_into(heads, q, k, v, cache, layer, out)?;
        let cache = cache.layer(layer)?;
        let (dim, value_dim) = (cache.head_dim(), cache.value_dim());
        let tokens = k.len() / (cache.heads().len() * dim);
        let config = &self.config;
        let call = Call {
            before: cache.len() - tokens,
            group: heads / cache.kv_heads(),
            dim,
            value_dim,
            scale: config.scale.unwrap_or_else(|| 1.0 / (dim as f32).sqrt()),
            dense: tokens > config.max_decode_tokens && !config.use_hira_during_prefill,
        };
        if tokens == 0 {
            return Ok(report);
        }
        let rows: Vec<Rows<'_>> = cache
            .heads()
            .par_iter()
            .map(|head| self.rows(head, call))
            .collect();
        let mut kept = self.take(layer, report.heads.len(), call);
        let selections = report
            .heads
            .par_iter_mut()
            .zip(&mut kept.heads)
            .zip(q.par_chunks_exact(tokens * dim))
            .zip(out.par_chunks_exact_mut(tokens * value_dim))
            .enumerate()
            .map(|(i, (((report, kept), q), out))| {
                self.attend(call, &rows[i / call.group], q, kept, out, report)
            })
            .collect();
        kept.len = call.before + tokens;
        let layers = self.kept.lock();
        layers
            .unwrap_or_else(PoisonError::into_inner)
            .insert(layer, kept);
        *self
            .selections
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = selections;
        Ok(report)
    }

    /// What the heads of a layer kept; everything, if the layer is not as the last call left it.
    fn take(&self, layer: usize, heads: usize, call: Call) -> Layer {
        let known = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&layer)
            .filter(|known| known.len == call.before && known.heads.len() == heads);
        known.unwrap_or_else(|| {
            let unseen = match self.rule {
                ComparisonRule::H2o { .. } => call.before,
                _ => 0,
            };
            Layer {
                len: call.before,
                heads: vec![Kept::with_unseen(unseen); heads],
            }
        })
    }

    fn rows<'a>(&self, head: &'a HeadCache, call: Call) -> Rows<'a> {
        let mut runs = head.runs(0..head.len());
        let (keys, values) = match (runs.next(), runs.next()) {
            (Some(run), None) => (run.keys.widened(), run.values.widened()),
            _ => {
                let mut keys = Vec::with_capacity(head.len() * call.dim);
                let mut values = Vec::with_capacity(head.len() * call.value_dim);
                for run in head.runs(0..head.len()) {
                    keys.extend_from_slice(&run.keys.widened());
                    values.extend_from_slice(&run.values.widened());
                }
                (keys.into(), values.into())
            }
        };
        let pages = match self.rule {
            ComparisonRule::Quest { .. } => Pages::of(&keys, call.dim),
            _ => Pages::default(),
        };
        Rows {
            keys,
            values,
            pages,
            value_norm: head.max_value_norm(),
        }
    }

    /// The tokens of one query head, in order; gives the positions of the last one.
    ///
    /// `queries` `[L, D]`, `out` `[L, Dv]`, which holds the dense answers.
    fn attend(
        &self,
        call: Call,
        rows: &Rows<'_>,
        queries: &[f32],
        kept: &mut Kept,
        out: &mut [f32],
        report: &mut HeadReport,
    ) -> Vec<u32> {
        let dense = report.worst;
        let mut any = Certificate::default();
        any.dropped_mass_bound = 1.0;
        // both outputs are means of values, and the computed one is off by no more than the dense one
        any.output_error_bound = (2.0 * rows.value_norm + dense.output_error_bound).next_up();
        *report = HeadReport::new();
        let mut scratch = PageScratch::default();
        let (mut scores, mut weights) = (Vec::new(), Vec::new());
        let mut positions = Vec::new();
        let tokens = queries.chunks_exact(call.dim);
        for (token, (query, out)) in tokens.zip(out.chunks_exact_mut(call.value_dim)).enumerate() {
            let visible = call.before + token + 1;
            let is_dense = call.dense || visible < self.config.min_sparse_len;
            match self.rule {
                ComparisonRule::H2o { budget } => {
                    if !is_dense {
                        // room for the new key
                        kept.evict(budget - 1);
                    }
                    kept.push(visible - 1);
                    positions.clone_from(&kept.positions);
                }
                // the dense answer is there
                _ if is_dense => {
                    positions.clear();
                    positions.extend(0..visible as u32);
                }
                ComparisonRule::Streaming { budget } => {
                    streaming::select(visible, budget, &mut positions);
                }
                ComparisonRule::Quest { budget } => {
                    let keys = &rows.keys[..visible * call.dim];
                    rows.pages.select(
                        self.kernel,
                        query,
                        keys,
                        budget,
                        &mut scratch,
                        &mut positions,
                    );
                }
            }
            let attended = positions.len();
            let certificate = if attended == visible { dense } else { any };
            report.record(visible, attended, certificate);
            if is_dense && !matches!(self.rule, ComparisonRule::H2o { .. }) {
                continue;
            }
            scores.resize(attended, 0.0);
            weights.resize(attended, 0.0);
            self.kernel
                .scores_at_into(query, &rows.keys[..], &positions, &mut scores);
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = self
                .kernel
                .exp_weights_into(&scores, call.scale, max, &mut weights);
            weights.iter_mut().for_each(|weight| *weight /= sum);
            if let ComparisonRule::H2o { .. } = self.rule {
                kept.add(&weights);
            }
            out.fill(0.0);
            self.kernel
                .weighted_sum_into(&weights, &rows.values[..], &positions, out);
        }
        positions
    }
}
