use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Tensor, backend::Backend};
use hira_attention::{
    AttentionProcessor, CacheShape, HiraAttention, HiraAttentionConfig, WindowLayers,
};
use hira_index::burn::{HiraBackend, with_host};

use super::layer::{DecoderLayer, DecoderLayerConfig};
use super::loader::Loader;
use super::matrix::{Matrix, WeightPrecision};
use super::pass::{Pass, indices};
use super::rope::{Rotary, RotaryConfig};
use super::{LlamaCache, LlamaError};
use crate::device::is_flex;
use crate::element::Element;
use crate::weights::{ModelConfig, RopeScaling, WeightSource};

/// At most so many tokens are processed together: activations of a longer prompt are never alive at once.
pub const CHUNK: usize = 512;

/// Length of the chunks of a prompt: as few and as equal as can be, so that a long prompt never ends in a call so short that the
/// attention takes it for a decode step.
fn chunk_len(tokens: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(CHUNK).max(1)).max(1)
}

/// Which attention a model runs.
#[derive(Debug, Clone, PartialEq)]
pub enum AttentionChoice {
    /// Every key, through the same module and the same store as [`AttentionChoice::Hira`].
    Dense,
    /// What the configuration selects.
    Hira(Box<HiraAttentionConfig>),
}

impl AttentionChoice {
    fn attention<B: HiraBackend>(
        &self,
        device: &B::Device,
    ) -> Result<HiraAttention<B>, LlamaError> {
        Ok(match self {
            Self::Dense => HiraAttentionConfig::dense().init(device)?,
            Self::Hira(config) => config.init(device)?,
        })
    }

    /// What caches are made from. Dense attention needs no index, but the model may be patched while a cache is in use.
    fn cache_config(&self) -> HiraAttentionConfig {
        match self {
            Self::Dense => HiraAttentionConfig::new(),
            Self::Hira(config) => config.as_ref().clone(),
        }
    }
}

/// Configuration of a [`Decoder`].
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The layers.
    pub layer: DecoderLayerConfig,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of tokens.
    pub vocab_size: usize,
}

impl DecoderConfig {
    /// The decoder of a model.
    pub fn of(config: &ModelConfig) -> Self {
        Self {
            layer: DecoderLayerConfig::of(config),
            num_layers: config.num_hidden_layers,
            vocab_size: config.vocab_size,
        }
    }

    /// A module with Burn's default initialisation; nothing is allocated before it is used or loaded.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Decoder<B> {
        let hidden = self.layer.attention.hidden_size;
        Decoder {
            embedding: EmbeddingConfig::new(self.vocab_size, hidden).init(device),
            layers: (0..self.num_layers)
                .map(|_| self.layer.init(device))
                .collect(),
            norm: RmsNormConfig::new(hidden)
                .with_epsilon(self.layer.rms_norm_eps)
                .init(device),
            head: Matrix::init(hidden, self.vocab_size, device),
        }
    }
}

/// The weights of a model: embedding, layers, norm and output layer.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// `[vocab_size, hidden_size]`.
    embedding: Embedding<B>,
    layers: Vec<DecoderLayer<B>>,
    norm: RmsNorm<B>,
    /// The output layer; of a tied model, the embedding's own tensor.
    head: Matrix<B>,
}

impl<B: HiraBackend> Decoder<B> {
    fn load(&mut self, loader: &mut Loader<'_, B>) -> Result<(), LlamaError> {
        let config = loader.source.config();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = loader.rows(&[("model.embed_tokens.weight".into(), vocab)], hidden)?;
        self.embedding.weight = Param::from_tensor(embedding.clone());
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.load(loader, index)?;
        }
        let gamma = loader.vector(&[("model.norm.weight".into(), hidden)])?;
        self.norm.gamma = Param::from_tensor(gamma);
        self.head = match config.tie_word_embeddings {
            true => Matrix::new(embedding),
            false => loader.matrix(&[("lm_head.weight".into(), vocab)], hidden)?,
        };
        Ok(())
    }

    /// `[L, hidden_size]` to `[L, vocab_size]`.
    fn logits(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.head.forward(self.norm.forward(x))
    }

    fn set_precision(&mut self, precision: WeightPrecision) {
        for layer in &mut self.layers {
            layer.set_precision(precision);
        }
        self.head.set_precision(precision);
    }
}

/// A loaded model and the attention that it runs.
///
/// # Examples
///
/// ```no_run
/// use hira_examples::llama::{AttentionChoice, Llama};
/// use hira_examples::weights::ModelFile;
///
/// let source = ModelFile::open("model.gguf".as_ref())?;
/// let mut model = Llama::<burn_flex::Flex>::load(&source, &Default::default(), &mut |_, _| {})?;
/// model.set_attention(AttentionChoice::Dense)?;
/// let mut cache = model.new_cache(1024)?;
/// let logits = model.forward(&mut cache, &[504, 3575, 282], &mut |_, _| {})?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Llama<B: HiraBackend> {
    config: ModelConfig,
    decoder: Decoder<B>,
    rotary: Rotary<B>,
    attention: Box<dyn AttentionProcessor<B>>,
    choice: AttentionChoice,
    device: B::Device,
}

impl<B: HiraBackend> Llama<B> {
    /// Reads every weight of `source`; `progress` is called with tensors done and tensors in all. Attention is dense.
    ///
    /// # Errors
    ///
    /// [`LlamaError::Weights`] for a tensor that is missing, damaged or of the wrong shape; [`LlamaError::Config`] for a
    /// configuration without layers, heads or tokens.
    pub fn load(
        source: &dyn WeightSource,
        device: &B::Device,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, LlamaError> {
        Self::load_as(source, (device, Element::F32), progress)
    }

    /// As [`Llama::load`], with weights, activations, keys and values of another element type. Norms are computed in f32 in any case, and so is
    /// all of Hira's attention.
    ///
    /// # Errors
    ///
    /// As [`Llama::load`], and [`LlamaError::Element`] if the device does not compute with the type.
    pub fn load_as(
        source: &dyn WeightSource,
        (device, element): (&B::Device, Element),
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, LlamaError> {
        element.check::<B>(device)?;
        let config = source.config().clone();
        validate(&config)?;
        let total = config.tensors().count();
        let mut decoder = DecoderConfig::of(&config).init(device);
        decoder.load(&mut Loader::new(source, (device, element), progress, total))?;
        let rotary = RotaryConfig {
            head_dim: config.head_dim,
            theta: config.rope_theta,
            scaling: config.rope_scaling.clone(),
            max_positions: config.max_position_embeddings,
            element,
        };
        Ok(Self {
            attention: Box::new(AttentionChoice::Dense.attention(device)?),
            choice: AttentionChoice::Dense,
            rotary: rotary.init(device),
            device: device.clone(),
            decoder,
            config,
        })
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The weights.
    pub fn decoder(&self) -> &Decoder<B> {
        &self.decoder
    }

    /// The attention that was chosen last.
    pub fn attention(&self) -> &AttentionChoice {
        &self.choice
    }

    /// Chooses what decode steps read of the weights, from the next call on; prompts read the `f32` weights in any case.
    ///
    /// # Errors
    ///
    /// [`LlamaError::HalfPrecision`] for half precision on another backend than Flex.
    pub fn set_weights(&mut self, precision: WeightPrecision) -> Result<(), LlamaError> {
        if precision == WeightPrecision::F16 && !is_flex::<B>() {
            return Err(LlamaError::HalfPrecision);
        }
        self.decoder.set_precision(precision);
        Ok(())
    }

    /// Patches the model to another attention, from the next call on. The weights are untouched, and caches made before
    /// stay usable: each keeps the index that it was made with.
    ///
    /// # Errors
    ///
    /// [`LlamaError::Attention`] for a configuration that is impossible; the model then keeps the attention that it had.
    pub fn set_attention(&mut self, choice: AttentionChoice) -> Result<(), LlamaError> {
        self.attention = Box::new(choice.attention(&self.device)?);
        self.choice = choice;
        Ok(())
    }

    /// Patches the model to an attention of one's own, for instance one that also records what it sees. Caches are made
    /// for the attention that was chosen last.
    pub fn set_processor(&mut self, processor: Box<dyn AttentionProcessor<B>>) {
        self.attention = processor;
    }

    /// An empty cache for up to `max_len` tokens, indexed as the attention that was chosen last asks for.
    ///
    /// Under [`AttentionChoice::Dense`] keys get the default index, so that the model can be patched while the cache is in
    /// use; a store without any is that of `AttentionChoice::Hira(Box::new(HiraAttentionConfig::dense()))`. A model's sliding window is the cache's.
    ///
    /// # Errors
    ///
    /// [`LlamaError::Positions`] if `max_len` is beyond the model's positions; [`LlamaError::Attention`] if it is 0.
    pub fn new_cache(&self, max_len: usize) -> Result<LlamaCache, LlamaError> {
        let limit = self.rotary.max_positions();
        if max_len > limit {
            return Err(LlamaError::Positions {
                requested: max_len,
                limit,
            });
        }
        let config = &self.config;
        let mut cache_config = self.choice.cache_config();
        if let Some(window) = config.sliding_window {
            cache_config = cache_config.with_sliding_window(window, WindowLayers::All);
        }
        let store = cache_config.init_cache(CacheShape {
            layers: config.num_hidden_layers,
            sequences: 1,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            value_dim: config.head_dim,
            max_len,
        })?;
        Ok(LlamaCache::new(store))
    }

    /// Appends `ids` and gives the logits after the last of them. `progress` is called after every chunk with tokens done
    /// and tokens in all.
    ///
    /// # Errors
    ///
    /// [`LlamaError`] for no tokens, a token outside the vocabulary, more tokens than the cache has room for, or a cache of
    /// another model; the cache is then as it was, or empty where layers with a window have forgotten what it was.
    pub fn forward(
        &self,
        cache: &mut LlamaCache,
        ids: &[u32],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<f32>, LlamaError> {
        let before = cache.mark();
        let mut last = None;
        self.run(cache, ids, progress, &mut |x| {
            last = Some(x);
            Ok(())
        })?;
        let x = last.ok_or(LlamaError::NoTokens)?;
        let len = x.dims()[0];
        let logits = self.decoder.logits(x.slice(len - 1..len));
        let logits = with_host(logits, <[f32]>::to_vec)?;
        // The norm before the output layer spreads an overflow over all of them.
        if logits[0].is_nan() {
            cache.rewind(before);
            return Err(LlamaError::NotFinite);
        }
        Ok(logits)
    }

    /// Appends `ids` and calls `visit` with the index and the logits of each of them.
    ///
    /// # Complexity
    ///
    /// The output layer is computed for every token; the logits of one chunk are in memory at a time.
    ///
    /// # Errors
    ///
    /// As [`Llama::forward`].
    pub fn forward_each(
        &self,
        cache: &mut LlamaCache,
        ids: &[u32],
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), LlamaError> {
        let mut index = 0;
        self.run(cache, ids, &mut |_, _| {}, &mut |x| {
            with_host(self.decoder.logits(x), |logits| {
                for row in logits.chunks_exact(self.config.vocab_size) {
                    visit(index, row);
                    index += 1;
                }
            })?;
            Ok(())
        })
    }

    /// Appends `ids` and gives the logits of each of them: for small inputs.
    ///
    /// # Errors
    ///
    /// As [`Llama::forward`].
    pub fn forward_all(
        &self,
        cache: &mut LlamaCache,
        ids: &[u32],
    ) -> Result<Vec<Vec<f32>>, LlamaError> {
        let mut logits = Vec::with_capacity(ids.len());
        self.forward_each(cache, ids, &mut |_, row| logits.push(row.to_vec()))?;
        Ok(logits)
    }

    /// Appends `ids` and hands the hidden states of each chunk of tokens to `visit`, `[L, hidden_size]`, before the last norm.
    ///
    /// [`Llama::logits`] makes logits of them: so many logits at a time as the caller has room for.
    ///
    /// # Errors
    ///
    /// As [`Llama::forward`], and what `visit` returns.
    pub fn forward_hidden(
        &self,
        cache: &mut LlamaCache,
        ids: &[u32],
        visit: &mut dyn FnMut(Tensor<B, 2>) -> Result<(), LlamaError>,
    ) -> Result<(), LlamaError> {
        self.run(cache, ids, &mut |_, _| {}, visit)
    }

    /// The logits of hidden states: `[L, hidden_size]` to `[L, vocab_size]`.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        self.decoder.logits(hidden)
    }

    /// Runs the layers chunk by chunk and hands each chunk's `[L, hidden_size]` to `finish`.
    fn run(
        &self,
        cache: &mut LlamaCache,
        ids: &[u32],
        progress: &mut dyn FnMut(usize, usize),
        finish: &mut dyn FnMut(Tensor<B, 2>) -> Result<(), LlamaError>,
    ) -> Result<(), LlamaError> {
        self.check(cache, ids)?;
        let before = cache.mark();
        let mut done = 0;
        for chunk in ids.chunks(chunk_len(ids.len())) {
            let finished = self
                .layers(cache, chunk)
                .and_then(&mut *finish)
                .and_then(|()| Ok(cache.settle()?));
            if let Err(error) = finished {
                cache.rewind(before);
                return Err(error);
            }
            done += chunk.len();
            progress(done, ids.len());
        }
        Ok(())
    }

    /// The layers, on a thread of rayon's pool: from another thread, every layer's attention would wake a worker and wait for it.
    fn layers(&self, cache: &mut LlamaCache, ids: &[u32]) -> Result<Tensor<B, 2>, LlamaError> {
        rayon::scope(|_| self.layers_in_pool(cache, ids))
    }

    fn layers_in_pool(
        &self,
        cache: &mut LlamaCache,
        ids: &[u32],
    ) -> Result<Tensor<B, 2>, LlamaError> {
        let config = &self.config;
        let heads = (config.num_attention_heads, config.num_key_value_heads);
        let len = ids.len();
        let pass = Pass::new(&self.rotary, (cache.len(), len), heads, &self.device);
        let ids = indices(ids.iter().map(|id| *id as usize).collect(), &self.device);
        let mut x = self.decoder.embedding.weight.val().select(0, ids);
        for (index, layer) in self.decoder.layers.iter().enumerate() {
            let (next, report) =
                layer.forward(x, &pass, &*self.attention, cache.store_mut(), index)?;
            cache.record(report);
            x = next;
        }
        cache.add_len(len);
        Ok(x)
    }

    /// Everything that can be refused before the first layer.
    fn check(&self, cache: &LlamaCache, ids: &[u32]) -> Result<(), LlamaError> {
        if ids.is_empty() {
            return Err(LlamaError::NoTokens);
        }
        let vocab_size = self.config.vocab_size;
        if let Some(index) = ids.iter().position(|id| *id as usize >= vocab_size) {
            let id = ids[index];
            return Err(LlamaError::Token {
                index,
                id,
                vocab_size,
            });
        }
        let (requested, limit) = (cache.len() + ids.len(), cache.max_len());
        let limit = limit.min(self.rotary.max_positions());
        if requested > limit {
            return Err(LlamaError::Positions { requested, limit });
        }
        let shape = cache.store().config();
        let config = &self.config;
        for (what, expected, received) in [
            ("layers", config.num_hidden_layers, shape.layers),
            ("sequences", 1, shape.sequences),
            ("KV heads", config.num_key_value_heads, shape.kv_heads),
            ("key dimensions", config.head_dim, shape.head_dim),
            ("value dimensions", config.head_dim, shape.value_dim),
        ] {
            if received != expected {
                return Err(LlamaError::Cache {
                    what,
                    expected,
                    received,
                });
            }
        }
        Ok(())
    }
}

/// Refuses a configuration whose tensors would be empty or whose heads do not fit together.
fn validate(config: &ModelConfig) -> Result<(), LlamaError> {
    let refuse = |key, requirement, received| {
        Err(LlamaError::Config {
            key,
            requirement,
            received,
        })
    };
    for (key, received) in [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", config.num_key_value_heads),
        ("head_dim", config.head_dim),
        ("max_position_embeddings", config.max_position_embeddings),
        ("vocab_size", config.vocab_size),
    ] {
        if received == 0 {
            return refuse(key, "must be at least 1", received);
        }
    }
    if !config.head_dim.is_multiple_of(2) {
        return refuse("head_dim", "must be even", config.head_dim);
    }
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    if !heads.is_multiple_of(kv_heads) {
        return refuse(
            "num_key_value_heads",
            "must divide num_attention_heads",
            kv_heads,
        );
    }
    if let RopeScaling::Factors(factors) = &config.rope_scaling
        && factors.len() != config.head_dim / 2
    {
        return refuse(
            "rope_scaling",
            "must have one factor for each pair",
            factors.len(),
        );
    }
    Ok(())
}
