//! The Burn module: tensors in, a tensor and a report out.

use std::marker::PhantomData;

use burn::{
    module::Module,
    tensor::{Tensor, backend::Backend},
};
use hira_cache::{CacheConfig, HiraCache};
use hira_index::burn::{HiraBackend, from_host, with_host};

use crate::{
    AttentionError, AttentionReport, ConfigError, HiraAttentionConfig, HostAttention, PartKeys,
    PartialAttention,
    on_device::{DeviceAttention, Tensors},
};

/// Certified sparse attention over a [`HiraCache`].
///
/// One module serves every layer of a model. It has no parameters: projections and RoPE belong to the model.
#[derive(Module, Debug)]
pub struct HiraAttention<B: Backend> {
    #[module(skip)]
    engine: HostAttention,
    _backend: PhantomData<B>,
}

impl HiraAttentionConfig {
    /// The module. `device` is where the model lives; outputs are made on the device of the queries.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that names the key of an impossible value.
    pub fn init<B: Backend>(&self, _device: &B::Device) -> Result<HiraAttention<B>, ConfigError> {
        Ok(HiraAttention {
            engine: self.init_host()?,
            _backend: PhantomData,
        })
    }
}

impl<B: HiraBackend> HiraAttention<B> {
    /// Appends `k` and `v` to the cache, attends with `q`, and reports what was left out.
    ///
    /// New tokens take the positions after those that the layer holds, and each sees the keys up to its own (causal).
    ///
    /// # Shapes
    ///
    /// `q` `[B, Hq, L, D]`, `k` `[B, Hkv, L, D]`, `v` `[B, Hkv, L, Dv]`, RoPE applied; `Hq` a multiple of `Hkv`: query
    /// head `h` reads KV head `h / (Hq / Hkv)`. Returns `[B, Hq, L, Dv]`.
    ///
    /// # Panics
    ///
    /// Where [`HiraAttention::try_forward`] returns an error.
    pub fn forward(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> (Tensor<B, 4>, AttentionReport) {
        match self.try_forward(q, k, v, cache, layer) {
            Ok(answer) => answer,
            Err(error) => panic!("HiraAttention::forward: {error}"),
        }
    }

    /// As [`HiraAttention::forward`], with errors instead of panics.
    ///
    /// # On a device
    ///
    /// On a CubeCL backend (CUDA, wgpu) keys, values and sketch live in the memory of the device and the attention runs there. A decode step
    /// does not wait for it: the report is pending until [`AttentionReport::fetch`], and so is the news that a key, value or query was not finite.
    /// A prefill is dense, by Burn's operations in f32. What the device engine does not do is an error that names the key of the configuration;
    /// `memory_policy = "all_host"` runs the host engine on any backend.
    ///
    /// # Numerics
    ///
    /// Scores, softmax and sums are f32, whatever the element type of the backend; NaN and infinities are refused.
    ///
    /// # Complexity
    ///
    /// A decode step reads the sketch of the visible keys (`D + 4` bytes a key), the exact keys of survivors and the
    /// values of attended keys; a dense one reads every key and value.
    ///
    /// # Errors
    ///
    /// [`AttentionError`] for wrong shapes, non-finite or too large rows, a layer that the cache lacks, or more new tokens
    /// than positions left. The cache is then unchanged.
    pub fn try_forward(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        let tensors = Tensors { q, k, v };
        check_shapes(&tensors, cache.config())?;
        let on_device = DeviceAttention {
            config: self.engine.config(),
            rule: self.engine.rule,
        };
        if let Some(answer) = on_device.forward(&tensors, cache, layer)? {
            return Ok(answer);
        }
        self.on_host(tensors, None, cache, layer)
    }

    /// As [`HiraAttention::try_forward`] for sequences with different numbers of new tokens, by the host engine: of sequence `b` the first `lens[b]` of the
    /// `L` tokens are new, the others are padding, which is not read and whose outputs are 0.
    ///
    /// Each sequence gets the bits that it gets alone. Positions are those of the sequence, so RoPE has to be applied by them.
    ///
    /// # Errors
    ///
    /// As [`HiraAttention::try_forward`]; [`CacheError`](hira_cache::CacheError) if `lens` does not fit the batch or `L`, and
    /// [`AttentionError::DeviceSetting`] if the layer is on a device.
    pub fn try_forward_ragged(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        lens: &[usize],
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        let tensors = Tensors { q, k, v };
        check_shapes(&tensors, cache.config())?;
        if cache.layer(layer)?.device().is_taken() {
            return Err(AttentionError::DeviceSetting {
                key: "lens",
                received: "sequences with different numbers of new tokens",
            });
        }
        self.on_host(tensors, Some(lens), cache, layer)
    }

    fn on_host(
        &self,
        tensors: Tensors<B>,
        lens: Option<&[usize]>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        let Tensors { q, k, v } = tensors;
        let device = q.device();
        let [sequences, heads, tokens, _] = q.dims();
        let shape = [sequences, heads, tokens, cache.config().value_dim];
        let mut out = vec![0.0; shape.iter().product()];
        let engine = &self.engine;
        let report = with_host(q, |q| {
            with_host(k, |k| {
                with_host(v, |v| match lens {
                    Some(lens) => {
                        engine.forward_ragged_into(heads, q, k, v, lens, cache, layer, &mut out)
                    }
                    None => engine.forward_into(heads, q, k, v, cache, layer, &mut out),
                })
            })
        })????;
        Ok((from_host(out, shape, &device), report))
    }
}

/// Whether the tensors of a call are those of a cache of this configuration.
fn check_shapes<B: HiraBackend>(
    tensors: &Tensors<B>,
    config: &CacheConfig,
) -> Result<(), AttentionError> {
    let (sequences, kv_heads) = (config.sequences, config.kv_heads);
    let (dim, value_dim) = (config.head_dim, config.value_dim);
    let Tensors { q, k, v } = tensors;
    let [_, heads, tokens, _] = q.dims();
    for (what, received, expected) in [
        ("q", q.dims(), [sequences, heads, tokens, dim]),
        ("k", k.dims(), [sequences, kv_heads, tokens, dim]),
        ("v", v.dims(), [sequences, kv_heads, tokens, value_dim]),
    ] {
        if received != expected {
            return Err(AttentionError::Shape {
                what,
                expected,
                received,
            });
        }
    }
    Ok(())
}

impl<B: HiraBackend> HiraAttention<B> {
    /// Attends to a part of the keys that layer `layer` of `cache` holds, without appending anything; every query sees every key of the part.
    ///
    /// # Shapes
    ///
    /// `q` `[B, Hq, L, D]`, RoPE applied.
    ///
    /// # Errors
    ///
    /// [`AttentionError`] for wrong shapes or positions, non-finite or too large queries, or a layer that the cache lacks.
    pub fn try_partial(
        &self,
        q: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
        keys: &PartKeys,
    ) -> Result<PartialAttention, AttentionError> {
        let received = q.dims();
        let [_, heads, tokens, _] = received;
        let config = cache.config();
        let expected = [config.sequences, heads, tokens, config.head_dim];
        if received != expected {
            return Err(AttentionError::Shape {
                what: "q",
                expected,
                received,
            });
        }
        let mut partial = PartialAttention::default();
        with_host(q, |q| {
            self.engine
                .partial_into(heads, q, cache, layer, keys, &mut partial)
        })??;
        Ok(partial)
    }

    /// The output over all `parts`, `[B, Hq, L, Dv]` on `device`, and what is proven of it: see [`PartialAttention::merge`].
    ///
    /// # Errors
    ///
    /// As [`PartialAttention::merge`].
    pub fn try_merge(
        &self,
        parts: &[PartialAttention],
        device: &B::Device,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        let merged = PartialAttention::merge(parts)?;
        Ok((from_host(merged.out, merged.shape, device), merged.report))
    }
}

impl<B: Backend> HiraAttention<B> {
    /// The configuration.
    pub fn config(&self) -> &HiraAttentionConfig {
        self.engine.config()
    }

    /// The engine on slices.
    pub fn engine(&self) -> &HostAttention {
        &self.engine
    }
}

/// What a model's attention layer calls, so that the attention can be chosen or replaced after loading.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::Tensor;
/// use hira_attention::{AttentionError, AttentionProcessor, AttentionReport, HiraAttention, HiraBackend, HiraCache};
///
/// /// Hira attention that says what it does.
/// #[derive(Debug)]
/// struct Logged<B: HiraBackend>(HiraAttention<B>);
///
/// impl<B: HiraBackend> AttentionProcessor<B> for Logged<B> {
///     fn process(
///         &self,
///         q: Tensor<B, 4>,
///         k: Tensor<B, 4>,
///         v: Tensor<B, 4>,
///         cache: &mut HiraCache,
///         layer: usize,
///     ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
///         let answer = self.0.process(q, k, v, cache, layer)?;
///         println!("layer {layer}: density {:.3}", answer.1.density());
///         Ok(answer)
///     }
/// }
/// # }
/// ```
pub trait AttentionProcessor<B: HiraBackend>: std::fmt::Debug + Send + Sync {
    /// As [`HiraAttention::try_forward`].
    ///
    /// # Errors
    ///
    /// As [`HiraAttention::try_forward`].
    fn process(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError>;
}

impl<B: HiraBackend> AttentionProcessor<B> for HiraAttention<B> {
    fn process(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        self.try_forward(q, k, v, cache, layer)
    }
}
