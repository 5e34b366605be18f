use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{RopeScaling, WeightError};

/// The model families that the Burn Llama runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama and everything that shares its tensors (SmolLM2, TinyLlama).
    Llama,
    /// Mistral: Llama under another name, with a sliding window in its first versions.
    Mistral,
    /// Qwen2: Llama with a bias on the query, key and value projections.
    Qwen2,
}

impl Architecture {
    /// The family of a `model_type` or `general.architecture`, or `None` if it is not supported.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "llama" => Some(Self::Llama),
            "mistral" => Some(Self::Mistral),
            "qwen2" => Some(Self::Qwen2),
            _ => None,
        }
    }
}

/// The shape and constants of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The model family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// The epsilon of RMS normalisation.
    pub rms_norm_eps: f64,
    /// The rotary base.
    pub rope_theta: f64,
    /// The rotary scaling.
    pub rope_scaling: RopeScaling,
    /// The model's context length.
    pub max_position_embeddings: usize,
    /// True if the output layer is the embedding, transposed.
    pub tie_word_embeddings: bool,
    /// True if the query, key and value projections have a bias.
    pub attention_bias: bool,
    /// How many of the last keys a query of every layer sees, its own included; `None` if it sees all.
    #[serde(default)]
    pub sliding_window: Option<usize>,
    /// Number of tokens.
    pub vocab_size: usize,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text or a turn.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Refuses configurations that no model can have. `path` names the file in the message.
    pub(crate) fn validate(self, path: &Path) -> Result<Self, WeightError> {
        let refuse = |key, value: String, requirement| {
            Err(WeightError::Config {
                path: path.to_path_buf(),
                key,
                value,
                requirement,
            })
        };
        for (key, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
            ("vocab_size", self.vocab_size),
        ] {
            if value == 0 {
                return refuse(key, value.to_string(), "it must be at least 1");
            }
            if u32::try_from(value).is_err() {
                return refuse(key, value.to_string(), "it must be below 2^32");
            }
        }
        if self.sliding_window == Some(0) {
            return refuse("sliding_window", "0".to_owned(), "it must be at least 1");
        }
        if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            let value = self.num_key_value_heads.to_string();
            return refuse(
                "num_key_value_heads",
                value,
                "it must divide num_attention_heads",
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse(
                "head_dim",
                self.head_dim.to_string(),
                "rotary embeddings need an even number",
            );
        }
        for (key, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return refuse(key, value.to_string(), "it must be positive and finite");
            }
        }
        if !self.rope_scaling.is_usable(self.head_dim / 2) {
            let value = format!("{:?}", self.rope_scaling);
            return refuse(
                "rope_scaling",
                value,
                "its factors must be positive (1 at least where contexts are stretched), finite, in order and head_dim/2 in number",
            );
        }
        Ok(self)
    }

    /// Every tensor that the model reads, by Hugging Face name, with its shape.
    ///
    /// # Examples
    /// ```
    /// # use hira_examples::weights::{Architecture, ModelConfig, RopeScaling};
    /// # let config = ModelConfig {
    /// #     architecture: Architecture::Llama, hidden_size: 576, intermediate_size: 1536, num_hidden_layers: 30,
    /// #     num_attention_heads: 9, num_key_value_heads: 3, head_dim: 64, rms_norm_eps: 1e-5, rope_theta: 1e5,
    /// #     rope_scaling: RopeScaling::None, max_position_embeddings: 8192, tie_word_embeddings: true,
    /// #     attention_bias: false, sliding_window: None, vocab_size: 49152, bos_token_id: None, eos_token_ids: vec![],
    /// # };
    /// let key = config.tensors().find(|(name, _)| name == "model.layers.0.self_attn.k_proj.weight");
    /// assert_eq!(key.map(|(_, shape)| shape), Some(vec![192, 576]));
    /// assert_eq!(config.tensors().count(), 2 + 30 * 9);
    /// ```
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
        let (hidden, feed_forward) = (self.hidden_size, self.intermediate_size);
        let query = self.num_attention_heads * self.head_dim;
        let key_value = self.num_key_value_heads * self.head_dim;
        let output = (!self.tie_word_embeddings)
            .then_some(("lm_head.weight", vec![self.vocab_size, hidden]));
        let outer = [
            ("model.embed_tokens.weight", vec![self.vocab_size, hidden]),
            ("model.norm.weight", vec![hidden]),
        ];
        let outer = outer
            .into_iter()
            .chain(output)
            .map(|(name, shape)| (name.to_owned(), shape));
        let layers = (0..self.num_hidden_layers).flat_map(move |layer| {
            let weights = [
                ("input_layernorm.weight", vec![hidden]),
                ("post_attention_layernorm.weight", vec![hidden]),
                ("self_attn.q_proj.weight", vec![query, hidden]),
                ("self_attn.k_proj.weight", vec![key_value, hidden]),
                ("self_attn.v_proj.weight", vec![key_value, hidden]),
                ("self_attn.o_proj.weight", vec![hidden, query]),
                ("mlp.gate_proj.weight", vec![feed_forward, hidden]),
                ("mlp.up_proj.weight", vec![feed_forward, hidden]),
                ("mlp.down_proj.weight", vec![hidden, feed_forward]),
            ];
            let biases = [
                ("self_attn.q_proj.bias", vec![query]),
                ("self_attn.k_proj.bias", vec![key_value]),
                ("self_attn.v_proj.bias", vec![key_value]),
            ];
            let biases = biases.into_iter().filter(move |_| self.attention_bias);
            weights
                .into_iter()
                .chain(biases)
                .map(move |(name, shape)| (format!("model.layers.{layer}.{name}"), shape))
        });
        outer.chain(layers)
    }

    /// Refuses a file whose tensors are not exactly those of [`ModelConfig::tensors`]: `shapes` are the file's, by Hugging
    /// Face name. Nothing is allocated for layers that the file does not have.
    pub(crate) fn check_tensors(
        &self,
        path: &Path,
        shapes: &BTreeMap<String, Vec<usize>>,
    ) -> Result<(), WeightError> {
        let path = || path.to_path_buf();
        let mut known = BTreeSet::new();
        for (tensor, expected) in self.tensors() {
            match shapes.get(&tensor) {
                None => {
                    return Err(WeightError::MissingTensor {
                        path: path(),
                        tensor,
                    });
                }
                Some(received) if *received != expected => {
                    return Err(WeightError::Shape {
                        path: path(),
                        tensor,
                        expected,
                        received: received.clone(),
                    });
                }
                Some(_) => known.insert(tensor),
            };
        }
        // A tied model may carry its output layer a second time, and old checkpoints carry the rotary frequencies.
        let ignored =
            |name: &str| name == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq");
        match shapes
            .keys()
            .find(|name| !known.contains(*name) && !ignored(name))
        {
            Some(tensor) => Err(WeightError::UnknownTensor {
                path: path(),
                tensor: tensor.clone(),
            }),
            None => Ok(()),
        }
    }
}
