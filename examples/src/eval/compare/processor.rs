//! A comparison rule as the attention of a model.

use std::marker::PhantomData;

use burn::tensor::Tensor;
use hira_attention::{
    AttentionError, AttentionProcessor, AttentionReport, ConfigError, HiraAttentionConfig,
};
use hira_cache::HiraCache;
use hira_index::burn::{HiraBackend, from_host, with_host};

use super::{ComparisonHost, ComparisonRule};

/// [`ComparisonHost`] for tensors.
#[derive(Debug)]
pub struct Comparison<B: HiraBackend> {
    host: ComparisonHost,
    _backend: PhantomData<fn() -> B>,
}

impl<B: HiraBackend> Comparison<B> {
    /// As [`ComparisonHost::new`].
    ///
    /// # Errors
    ///
    /// As [`ComparisonHost::new`].
    pub fn new(rule: ComparisonRule, base: &HiraAttentionConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            host: ComparisonHost::new(rule, base)?,
            _backend: PhantomData,
        })
    }

    /// The engine on slices.
    pub fn host(&self) -> &ComparisonHost {
        &self.host
    }
}

impl<B: HiraBackend> AttentionProcessor<B> for Comparison<B> {
    fn process(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        let [sequences, heads, tokens, _] = q.dims();
        let device = q.device();
        let value_dim = cache.config().value_dim;
        let mut out = vec![0.0; sequences * heads * tokens * value_dim];
        let report = with_host(q, |q| {
            with_host(k, |k| {
                with_host(v, |v| {
                    self.host
                        .forward_into(heads, q, k, v, cache, layer, &mut out)
                })
            })
        })????;
        let out = from_host(out, [sequences, heads, tokens, value_dim], &device);
        Ok((out, report))
    }
}
