//! Attention on a device: tensors of the device in, a tensor of the device out, no waiting in between.
//!
//! Where exact keys and values lie in main memory (`memory_policy = "hybrid"`, or `"adaptive"` past its target), a sparse step waits once: for the
//! list of the rows that it reads, one bit a key and KV head, and for the rows that were appended since. The rows are gathered, each once for
//! the queries that share its KV head, and sent in one copy; all else happens on the device, and what is selected is the same. A dense step, and a
//! sparse one for which more than a quarter of the rows would have to come, gets all rows, some thousand a head at a time.
//!
//! What of the configuration acts: the rules by top-k, percentile, fixed score and mass; `scale`, `sink_tokens`, `recent_window`,
//! `tail_compensation` (in blocks of 64), `min_sparse_len`, `max_decode_tokens`, `precision`, `plan`, `memory_policy`, the budgets
//! but those of a disk. What the device engine does
//! not do is refused before anything is stored: the other rules, `max_error`, `use_hira_during_prefill`, `max_candidates` beside a rule without a number of keys.
//! Coarse levels, builders and updaters would change speed only, and the device scans its whole sketch; `max_dropped_mass` is a planner's
//! matter that would have to look at an answer before the next step, so a flat head stays sparse there and its certificate says so.

use burn::tensor::{DType, Tensor};
use hira_cache::HiraCache;
use hira_index::RowPlace;
use hira_index::burn::{
    DeviceLayout, DeviceRule, DeviceStep, HiraBackend, device_append, device_attend,
};
use hira_kernels::Precision;
use hira_threshold::ThresholdRule;

use crate::{
    AttentionError, AttentionReport, Certificate, HiraAttentionConfig, PlanPolicy,
    pending::Pending, prompt,
};

/// The tensors of a call.
pub(crate) struct Tensors<B: HiraBackend> {
    pub(crate) q: Tensor<B, 4>,
    pub(crate) k: Tensor<B, 4>,
    pub(crate) v: Tensor<B, 4>,
}

impl<B: HiraBackend> Tensors<B> {
    /// Those of one token.
    fn token(&self, token: usize) -> Self {
        let of = |tensor: &Tensor<B, 4>| tensor.clone().narrow(2, token, 1);
        Self {
            q: of(&self.q),
            k: of(&self.k),
            v: of(&self.v),
        }
    }
}

/// What a device does for a configuration.
pub(crate) struct DeviceAttention<'a> {
    pub(crate) config: &'a HiraAttentionConfig,
    pub(crate) rule: ThresholdRule,
}

impl DeviceAttention<'_> {
    /// The answer, or `None` if the host engine is to give it: on a backend without a device engine, with `memory_policy = "all_host"`, and
    /// for a layer that the host engine holds.
    ///
    /// Shapes have been checked.
    pub(crate) fn forward<B: HiraBackend>(
        &self,
        tensors: &Tensors<B>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<Option<(Tensor<B, 4>, AttentionReport)>, AttentionError> {
        let [sequences, heads, tokens, _] = tensors.q.dims();
        let config = cache.config();
        let (kv_heads, value_dim) = (config.kv_heads, config.value_dim);
        if heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(AttentionError::Heads { kv_heads, heads });
        }
        let layout = DeviceLayout {
            sequences,
            heads,
            kv_heads,
            head_dim: config.head_dim,
            value_dim,
            max_len: config.max_len,
            precision: config.index.precision,
            rows: RowPlace::default(),
        };
        let device = tensors.k.device();
        if !cache.prepare_device::<B>(layer, &layout, tensors.k.dtype(), &device)? {
            return Ok(None);
        }
        self.check_settings()?;
        if cache.layer(layer)?.window().is_some() {
            return Err(AttentionError::DeviceSetting {
                key: "sliding_window",
                received: "a layer with a window",
            });
        }
        cache.make_device_room::<B>(layer, tokens, &device)?;
        let before = cache.seq_len(layer);
        let mut report = AttentionReport::new(layer, before + tokens);
        let answered = if tokens <= self.config.max_decode_tokens {
            self.decode(tensors, cache, layer, &mut report, true)
        } else if B::supports_dtype(
            &tensors.q.device(),
            stored_dtype(&layout, tensors.k.dtype()),
        ) {
            self.prefill(tensors, cache, layer, &mut report)
        } else {
            // Burn's operations cannot read the stored rows: the kernels can, a token at a time
            self.decode(tensors, cache, layer, &mut report, false)
        };
        if answered.is_err() {
            cache.layer_mut(layer)?.truncate(before)?;
        }
        Ok(Some((answered?, report)))
    }

    /// Token by token, each appended before it attends; densely unless it `may_be_sparse`.
    fn decode<B: HiraBackend>(
        &self,
        tensors: &Tensors<B>,
        cache: &mut HiraCache,
        layer: usize,
        report: &mut AttentionReport,
        may_be_sparse: bool,
    ) -> Result<Tensor<B, 4>, AttentionError> {
        let [sequences, heads, tokens, _] = tensors.q.dims();
        let value_dim = cache.config().value_dim;
        let mut pending = Pending::with_capacity(tokens);
        let mut outs = Vec::with_capacity(tokens);
        for token in 0..tokens {
            let one = tensors.token(token);
            let store = cache.device_store_mut(layer)?;
            device_append::<B>(store, one.k, one.v)?;
            let visible = store.len();
            let mut step = self.step(visible, one.q.dims()[3]);
            if !may_be_sparse {
                step.rule = DeviceRule::Everything;
            }
            let (out, record) = device_attend::<B>(store, one.q, &step)?;
            pending.push(record, visible);
            outs.push(out);
        }
        let out = match outs.len() {
            0 => Tensor::zeros([sequences, heads, 0, value_dim], &tensors.q.device()),
            1 => outs.remove(0),
            _ => Tensor::cat(outs, 2),
        };
        report.pending = Some(pending);
        Ok(out)
    }

    /// All tokens appended at once, then dense causal attention. Nothing is dropped; how Burn's kernels round is not proven.
    fn prefill<B: HiraBackend>(
        &self,
        tensors: &Tensors<B>,
        cache: &mut HiraCache,
        layer: usize,
        report: &mut AttentionReport,
    ) -> Result<Tensor<B, 4>, AttentionError> {
        let [sequences, heads, tokens, dim] = tensors.q.dims();
        let store = cache.device_store_mut(layer)?;
        let before = store.len();
        device_append::<B>(store, tensors.k.clone(), tensors.v.clone())?;
        let out = prompt::dense(store, tensors.q.clone(), before, self.scale(dim))?;
        report.reset(layer, before + tokens, sequences * heads, tokens);
        let certificate = Certificate {
            dropped_mass_bound: 0.0,
            output_error_bound: f32::INFINITY,
        };
        report.certificates.fill(certificate);
        for head in &mut report.heads {
            for token in 0..tokens {
                head.add_dense(before + token + 1, certificate);
            }
        }
        Ok(out)
    }

    /// What is asked of the device for a query that sees so many keys.
    fn step(&self, visible: usize, dim: usize) -> DeviceStep {
        let config = self.config;
        let sparse = match config.plan {
            PlanPolicy::Dense => false,
            PlanPolicy::Sparse => config.num_levels > 0,
            PlanPolicy::Auto => config.num_levels > 0 && visible >= config.min_sparse_len,
        };
        let rule = if sparse {
            self.device_rule(visible)
        } else {
            DeviceRule::Everything
        };
        DeviceStep {
            rule,
            scale: self.scale(dim),
            sinks: config.sink_tokens,
            window: config.recent_window,
            compensated: config.tail_compensation,
        }
    }

    fn scale(&self, dim: usize) -> f32 {
        self.config
            .scale
            .unwrap_or_else(|| 1.0 / (dim as f32).sqrt())
    }

    fn device_rule(&self, visible: usize) -> DeviceRule {
        let most = self.config.max_candidates.unwrap_or(usize::MAX);
        match self.rule {
            ThresholdRule::Mass { mass } if mass < 1.0 => DeviceRule::Mass {
                dropped: 1.0 - mass,
            },
            rule => match (rule.count(visible), rule.tau()) {
                (Some(k), _) => DeviceRule::TopK { k: k.min(most) },
                (None, Some(tau)) if tau > f32::MIN => DeviceRule::Fixed {
                    tau: tau.min(f32::MAX),
                },
                _ => DeviceRule::Everything,
            },
        }
    }

    /// Refuses what the engine does not do.
    fn check_settings(&self) -> Result<(), AttentionError> {
        let refused = |key, received| Err(AttentionError::DeviceSetting { key, received });
        match self.rule {
            ThresholdRule::TopK { .. } | ThresholdRule::Percentile { .. } => {}
            ThresholdRule::Fixed { .. } | ThresholdRule::Mass { .. } => {
                if self.config.max_candidates.is_some() {
                    return refused("max_candidates", "a limit beside a score or a mass");
                }
            }
            rule => return refused("threshold_strategy", name(&rule)),
        }
        if self.config.max_error.is_some() {
            return refused("max_error", "a promise of an error");
        }
        if self.config.disk_path.is_some() {
            return refused("disk_path", "rows on disk");
        }
        if self.config.use_hira_during_prefill {
            return refused("use_hira_during_prefill", "true");
        }
        Ok(())
    }
}

/// The element type that tensors over the stored rows have.
fn stored_dtype(layout: &DeviceLayout, element: DType) -> DType {
    match layout.stored(element) {
        Ok(Precision::F16) => DType::F16,
        Ok(Precision::Bf16) => DType::BF16,
        _ => DType::F32,
    }
}

/// The name of a rule that only the host engine knows.
fn name(rule: &ThresholdRule) -> &'static str {
    match rule {
        ThresholdRule::Adaptive { .. } => "adaptive",
        ThresholdRule::SampleMax => "sample_max",
        ThresholdRule::SampleTopK { .. } => "sample_top_k",
        ThresholdRule::SampleMeanMax { .. } => "sample_mean_max",
        ThresholdRule::SampleGap => "sample_gap",
        ThresholdRule::Budget { .. } => "budget",
        _ => "this rule",
    }
}
