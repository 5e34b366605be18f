use std::ops::Range;

use burn::module::{Initializer, Module, Param};
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::{Tensor, backend::Backend};
use hira_attention::{AttentionProcessor, AttentionReport};
use hira_cache::HiraCache;
use hira_index::burn::HiraBackend;
use rayon::prelude::*;

use super::LlamaError;
use super::loader::Loader;
use super::matrix::{Matrix, WeightPrecision, shares};
use super::pass::Pass;
use crate::weights::ModelConfig;

/// Configuration of a [`SelfAttention`].
#[derive(Debug, Clone, PartialEq)]
pub struct SelfAttentionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Whether query, key and value have a bias.
    pub bias: bool,
}

impl SelfAttentionConfig {
    /// A module with Burn's default initialisation.
    pub fn init<B: Backend>(&self, device: &B::Device) -> SelfAttention<B> {
        let heads = self.num_attention_heads + 2 * self.num_key_value_heads;
        let (qkv, inner) = (
            heads * self.head_dim,
            self.num_attention_heads * self.head_dim,
        );
        let bias = Initializer::Zeros.init([qkv], device);
        SelfAttention {
            qkv: Matrix::init(self.hidden_size, qkv, device),
            bias: self.bias.then_some(bias),
            output: Matrix::init(inner, self.hidden_size, device),
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }
}

/// Grouped-query attention: projections and rotation here, the attention itself in an [`AttentionProcessor`].
#[derive(Module, Debug)]
pub struct SelfAttention<B: Backend> {
    /// Query, key and value rows, one after the other.
    qkv: Matrix<B>,
    bias: Option<Param<Tensor<B, 1>>>,
    output: Matrix<B>,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
}

impl<B: HiraBackend> SelfAttention<B> {
    /// Appends the tokens' keys and values to layer `layer` of `cache` and attends.
    ///
    /// # Shapes
    ///
    /// `x` and the result are `[L, hidden_size]`.
    ///
    /// # Errors
    ///
    /// What the attention refuses, for instance keys that are not finite.
    pub(super) fn forward(
        &self,
        x: Tensor<B, 2>,
        pass: &Pass<B>,
        attention: &dyn AttentionProcessor<B>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 2>, AttentionReport), LlamaError> {
        let (len, dim, half) = (x.dims()[0], self.head_dim, self.head_dim / 2);
        let (query_heads, heads) = (self.num_attention_heads, self.num_key_value_heads);
        let rotated = query_heads + heads;

        // Rows of half a head: all first halves of the rotated heads, then all second halves, then the values.
        let rows = self.qkv.forward(x);
        let rows = match &self.bias {
            Some(bias) => rows + bias.val().unsqueeze(),
            None => rows,
        };
        let rows = rows.reshape([len * 2 * (rotated + heads), half]);
        let rows = rows.select(0, pass.split.clone());
        let part = |start: usize, end: usize| rows.clone().slice(start * len..end * len);
        let (first, second) = pass.span.rotate(
            part(0, rotated).reshape([rotated, len * half]),
            part(rotated, 2 * rotated).reshape([rotated, len * half]),
        );
        let value = part(2 * rotated, 2 * (rotated + heads)).reshape([1, heads, len, dim]);
        let halves = [first, second].map(|x| x.reshape([1, rotated, len, half]));
        let rotated_heads = Tensor::cat(halves.into(), 3);
        let query = rotated_heads.clone().slice([0..1, 0..query_heads]);
        let key = rotated_heads.slice([0..1, query_heads..rotated]);

        let element = query.dtype();
        let (mixed, report) = attention.process(query, key, value, cache, layer)?;
        // the host engine answers in the backend's own element type
        let mixed = match mixed.dtype() == element {
            true => mixed,
            false => mixed.cast(element),
        };
        let mixed = mixed
            .reshape([query_heads * len, dim])
            .select(0, pass.merge.clone())
            .reshape([len, query_heads * dim]);
        Ok((self.output.forward(mixed), report))
    }
}

/// Configuration of a [`FeedForward`].
#[derive(Debug, Clone, PartialEq)]
pub struct FeedForwardConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the inner layer.
    pub intermediate_size: usize,
}

impl FeedForwardConfig {
    /// A module with Burn's default initialisation.
    pub fn init<B: Backend>(&self, device: &B::Device) -> FeedForward<B> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        FeedForward {
            gate: Matrix::init(hidden, inner, device),
            up: Matrix::init(hidden, inner, device),
            down: Matrix::init(inner, hidden, device),
            inner,
        }
    }
}

/// SwiGLU: `down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    gate: Matrix<B>,
    up: Matrix<B>,
    down: Matrix<B>,
    inner: usize,
}

impl<B: HiraBackend> FeedForward<B> {
    /// # Shapes
    ///
    /// `x` and the result are `[L, hidden_size]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, hidden] = x.dims();
        // A thread takes its inner dimensions from the input to an addend of the output, and so waits for the others once.
        let part = |inner: Range<usize>| {
            let gate = self.gate.part(x.clone(), 0..hidden, inner.clone());
            let up = self.up.part(x.clone(), 0..hidden, inner.clone());
            // silu(g) = g / (1 + exp(-g)): half the time of `activation::silu` on Flex, whose sigmoid branches on the sign.
            // exp(-g) overflows to infinity for g < -88, where the quotient is the correct zero (in f16 for g < -11, where it is within 2e-4 of it).
            let weight = gate.clone().neg().exp() + 1.0;
            self.down.part(gate * up / weight, inner, 0..hidden)
        };
        let Some(shares) = shares::<B>(rows, self.inner) else {
            return part(0..self.inner);
        };
        let addends: Vec<_> = shares.into_par_iter().map(part).collect();
        let sum = addends.into_iter().reduce(|sum, addend| sum + addend);
        sum.unwrap_or_else(|| x.zeros_like())
    }
}

/// Configuration of a [`DecoderLayer`].
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderLayerConfig {
    /// The attention.
    pub attention: SelfAttentionConfig,
    /// The feed-forward layer.
    pub feed_forward: FeedForwardConfig,
    /// The epsilon of RMS normalisation.
    pub rms_norm_eps: f64,
}

impl DecoderLayerConfig {
    /// The layers of a model.
    pub fn of(config: &ModelConfig) -> Self {
        Self {
            attention: SelfAttentionConfig {
                hidden_size: config.hidden_size,
                num_attention_heads: config.num_attention_heads,
                num_key_value_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                bias: config.attention_bias,
            },
            feed_forward: FeedForwardConfig {
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
            },
            rms_norm_eps: config.rms_norm_eps,
        }
    }

    /// A module with Burn's default initialisation.
    pub fn init<B: Backend>(&self, device: &B::Device) -> DecoderLayer<B> {
        let norm = RmsNormConfig::new(self.attention.hidden_size).with_epsilon(self.rms_norm_eps);
        DecoderLayer {
            attention_norm: norm.init(device),
            attention: self.attention.init(device),
            feed_forward_norm: norm.init(device),
            feed_forward: self.feed_forward.init(device),
        }
    }
}

/// One layer: attention and feed-forward, each behind a norm and around a residual.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    attention_norm: RmsNorm<B>,
    attention: SelfAttention<B>,
    feed_forward_norm: RmsNorm<B>,
    feed_forward: FeedForward<B>,
}

impl<B: HiraBackend> DecoderLayer<B> {
    /// Replaces the weights by those of layer `index`.
    pub(super) fn load(
        &mut self,
        loader: &mut Loader<'_, B>,
        index: usize,
    ) -> Result<(), LlamaError> {
        let config = loader.source.config();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let query = config.num_attention_heads * config.head_dim;
        let key = config.num_key_value_heads * config.head_dim;
        let bias = config.attention_bias;
        let name = |tensor: &str| format!("model.layers.{index}.{tensor}");
        let qkv = |kind: &str| {
            [("q", query), ("k", key), ("v", key)]
                .map(|(part, rows)| (name(&format!("self_attn.{part}_proj.{kind}")), rows))
        };

        let gamma = loader.vector(&[(name("input_layernorm.weight"), hidden)])?;
        self.attention_norm.gamma = Param::from_tensor(gamma);
        self.attention.qkv = loader.matrix(&qkv("weight"), hidden)?;
        self.attention.bias = match bias {
            true => Some(Param::from_tensor(loader.vector(&qkv("bias"))?)),
            false => None,
        };
        self.attention.output =
            loader.matrix(&[(name("self_attn.o_proj.weight"), hidden)], query)?;

        let gamma = loader.vector(&[(name("post_attention_layernorm.weight"), hidden)])?;
        self.feed_forward_norm.gamma = Param::from_tensor(gamma);
        let feed_forward = &mut self.feed_forward;
        feed_forward.gate = loader.matrix(&[(name("mlp.gate_proj.weight"), inner)], hidden)?;
        feed_forward.up = loader.matrix(&[(name("mlp.up_proj.weight"), inner)], hidden)?;
        feed_forward.down = loader.matrix(&[(name("mlp.down_proj.weight"), hidden)], inner)?;
        feed_forward.inner = inner;
        Ok(())
    }

    pub(super) fn set_precision(&mut self, precision: WeightPrecision) {
        let (attention, feed_forward) = (&mut self.attention, &mut self.feed_forward);
        for matrix in [
            &mut attention.qkv,
            &mut attention.output,
            &mut feed_forward.gate,
            &mut feed_forward.up,
            &mut feed_forward.down,
        ] {
            matrix.set_precision(precision);
        }
    }

    /// # Shapes
    ///
    /// `x` and the result are `[L, hidden_size]`.
    pub(super) fn forward(
        &self,
        x: Tensor<B, 2>,
        pass: &Pass<B>,
        attention: &dyn AttentionProcessor<B>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 2>, AttentionReport), LlamaError> {
        let normed = self.attention_norm.forward(x.clone());
        let (mixed, report) = self
            .attention
            .forward(normed, pass, attention, cache, layer)?;
        let x = x + mixed;
        let normed = self.feed_forward_norm.forward(x.clone());
        Ok((x + self.feed_forward.forward(normed), report))
    }
}
