use std::collections::BTreeMap;
use std::path::Path;

use super::{GgufError, GgufFile, Metadata};
use crate::weights::rope_scaling::yarn_attention_factor;
use crate::weights::{
    Architecture, HostTensor, ModelConfig, RopeScaling, WeightError, WeightSource,
};

/// The tensor of per-frequency divisors that Llama 3 files carry.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Tokens that end a turn in common chat formats; files often name only one of them in their metadata.
const END_OF_TURN: [&str; 2] = ["<|eot_id|>", "<|im_end|>"];

/// The token types of `tokenizer.ggml.token_type` that matter here.
const CONTROL: i64 = 3;

/// A Llama, Mistral or Qwen2 model in a GGUF file, under Hugging Face names.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    config: ModelConfig,
    /// Name in the file and shape, by Hugging Face name.
    tensors: BTreeMap<String, (String, Vec<usize>)>,
}

impl GgufModel {
    /// Opens a file, and checks that it holds exactly the tensors that its metadata imply.
    ///
    /// # Errors
    /// A [`WeightError`] that names the file and what is wrong.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let file = GgufFile::open(path)?;
        let config = read_config(&file)?;
        let names = file
            .header()
            .tensors
            .iter()
            .filter(|(name, _)| *name != ROPE_FACTORS);
        let tensors: BTreeMap<_, _> = names
            .map(|(name, info)| {
                // A name that means nothing stays as it is: the check below then reports it.
                let public = hugging_face_name(name).unwrap_or_else(|| name.clone());
                (public, (name.clone(), info.shape.clone()))
            })
            .collect();
        let shapes = tensors
            .iter()
            .map(|(name, (_, shape))| (name.clone(), shape.clone()))
            .collect();
        config.check_tensors(path, &shapes)?;
        Ok(Self {
            file,
            config,
            tensors,
        })
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &Metadata {
        self.file.metadata()
    }

    pub(in crate::weights) fn config_mut(&mut self) -> &mut ModelConfig {
        &mut self.config
    }

    /// Heads of a query or key projection whose rows the file keeps interleaved, or `None` for any other tensor.
    fn interleaved_heads(&self, name: &str) -> Option<usize> {
        if self.config.architecture == Architecture::Qwen2 {
            return None;
        }
        if name.contains(".self_attn.q_proj.") {
            Some(self.config.num_attention_heads)
        } else if name.contains(".self_attn.k_proj.") {
            Some(self.config.num_key_value_heads)
        } else {
            None
        }
    }
}

impl WeightSource for GgufModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn origin(&self) -> &Path {
        self.file.path()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|(_, shape)| shape.clone())
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, WeightError> {
        let missing = || WeightError::MissingTensor {
            path: self.origin().to_path_buf(),
            tensor: name.to_owned(),
        };
        let (stored, shape) = self.tensors.get(name).ok_or_else(missing)?;
        let data = self.file.tensor(stored)?;
        let data = match self.interleaved_heads(name) {
            Some(heads) => half_split(&data, heads, self.config.head_dim),
            None => data,
        };
        Ok(HostTensor {
            shape: shape.clone(),
            data,
        })
    }
}

/// Reorders the rows of a projection from interleaved to half-split rotary order: in each head, row `2*i + s` becomes row
/// `s * head_dim/2 + i`.
fn half_split(interleaved: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let width = interleaved.len() / (heads * head_dim);
    let row = |head: usize, i: usize| &interleaved[(head * head_dim + i) * width..][..width];
    let order = (0..2).flat_map(|s| (0..head_dim / 2).map(move |i| 2 * i + s));
    (0..heads)
        .flat_map(|head| order.clone().flat_map(move |i| row(head, i)))
        .copied()
        .collect()
}

/// The Hugging Face name of a tensor in a GGUF file, or `None` if the name is not one of a Llama.
fn hugging_face_name(name: &str) -> Option<String> {
    let Some(rest) = name.strip_prefix("blk.") else {
        let outer = match name {
            "token_embd.weight" => "model.embed_tokens.weight",
            "output_norm.weight" => "model.norm.weight",
            "output.weight" => "lm_head.weight",
            _ => return None,
        };
        return Some(outer.to_owned());
    };
    let (layer, tensor) = rest.split_once('.')?;
    let (part, kind) = tensor.split_once('.')?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

/// Look-ups under the architecture's prefix (`llama.block_count`).
struct Keys<'a> {
    file: &'a GgufFile,
    prefix: String,
}

impl Keys<'_> {
    fn fail(&self, source: GgufError) -> WeightError {
        WeightError::Gguf {
            path: self.file.path().to_path_buf(),
            source,
        }
    }

    fn count(&self, key: &str) -> Result<Option<usize>, WeightError> {
        let full = format!("{}.{key}", self.prefix);
        let value = self
            .file
            .metadata()
            .unsigned(&full)
            .map_err(|e| self.fail(e))?;
        Ok(value.map(|v| usize::try_from(v).unwrap_or(usize::MAX)))
    }

    fn required(&self, key: &'static str) -> Result<usize, WeightError> {
        self.count(key)?.ok_or_else(|| WeightError::MissingKey {
            path: self.file.path().to_path_buf(),
            key,
        })
    }

    fn float(&self, key: &str) -> Result<Option<f64>, WeightError> {
        self.file
            .metadata()
            .float(&format!("{}.{key}", self.prefix))
            .map_err(|e| self.fail(e))
    }

    fn text(&self, key: &str) -> Result<Option<&str>, WeightError> {
        self.file
            .metadata()
            .text(&format!("{}.{key}", self.prefix))
            .map_err(|e| self.fail(e))
    }
}

fn read_config(file: &GgufFile) -> Result<ModelConfig, WeightError> {
    let path = || file.path().to_path_buf();
    let gguf = |source| WeightError::Gguf {
        path: path(),
        source,
    };
    let prefix = file.metadata().text("general.architecture").map_err(gguf)?;
    let prefix = prefix.ok_or_else(|| WeightError::MissingKey {
        path: path(),
        key: "general.architecture",
    })?;
    let architecture =
        Architecture::from_name(prefix).ok_or_else(|| WeightError::Architecture {
            path: path(),
            found: prefix.to_owned(),
        })?;
    let keys = Keys {
        file,
        prefix: prefix.to_owned(),
    };
    let refuse = |key, value: String, requirement| {
        Err(WeightError::Config {
            path: path(),
            key,
            value,
            requirement,
        })
    };
    if let Some(experts) = keys.count("expert_count")?.filter(|&n| n > 0) {
        return refuse(
            "expert_count",
            experts.to_string(),
            "mixtures of experts are not supported",
        );
    }
    if let Some(window) = keys.count("attention.sliding_window")?.filter(|&n| n > 0) {
        return refuse(
            "attention.sliding_window",
            window.to_string(),
            "sliding windows are not supported",
        );
    }
    let hidden_size = keys.required("embedding_length")?;
    let heads = keys.required("attention.head_count")?;
    let head_dim = match keys.count("attention.key_length")? {
        Some(width) => width,
        None => hidden_size / heads.max(1),
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(width) = keys.count(key)?.filter(|&width| width != head_dim) {
            return refuse(key, width.to_string(), "it must be the width of a head");
        }
    }
    let tensors = &file.header().tensors;
    let embedding = tensors.get("token_embd.weight");
    let embedding = embedding.ok_or_else(|| WeightError::MissingTensor {
        path: path(),
        tensor: "token_embd.weight".to_owned(),
    })?;
    let epsilon = keys.float("attention.layer_norm_rms_epsilon")?;
    let epsilon = epsilon.ok_or_else(|| WeightError::MissingKey {
        path: path(),
        key: "attention.layer_norm_rms_epsilon",
    })?;
    let positions = keys.required("context_length")?;
    let scaling = read_rope_scaling(&keys, positions)?;
    ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: keys.required("feed_forward_length")?,
        num_hidden_layers: keys.required("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: keys.count("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: epsilon,
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        max_position_embeddings: scaling.positions(positions),
        rope_scaling: scaling,
        tie_word_embeddings: !tensors.contains_key("output.weight"),
        attention_bias: tensors.contains_key("blk.0.attn_q.bias"),
        sliding_window: None,
        vocab_size: embedding.shape[0],
        bos_token_id: token_id(file, "tokenizer.ggml.bos_token_id")?,
        eos_token_ids: end_tokens(file)?,
    }
    .validate(file.path())
}

fn read_rope_scaling(keys: &Keys<'_>, positions: usize) -> Result<RopeScaling, WeightError> {
    if keys.file.header().tensors.contains_key(ROPE_FACTORS) {
        return Ok(RopeScaling::Factors(keys.file.tensor(ROPE_FACTORS)?));
    }
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.float("rope.scale_linear")?,
    };
    let kind = keys.text("rope.scaling.type")?;
    match (kind, factor) {
        (None | Some("none"), None) | (Some("none"), Some(_)) => Ok(RopeScaling::None),
        (None, Some(1.0)) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some("yarn"), Some(factor)) => {
            let original = keys.count("rope.scaling.original_context_length")?;
            // here the key multiplies the authors' own
            let more = match keys.float("rope.scaling.yarn_attn_factor")? {
                Some(more) => Some(more),
                None => keys.float("rope.scaling.attn_factor")?,
            };
            Ok(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original.unwrap_or(positions),
                attention_factor: more.unwrap_or(1.0) * yarn_attention_factor(factor),
                beta_fast: keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            })
        }
        (Some("linear" | "yarn"), None) => Err(WeightError::MissingKey {
            path: keys.file.path().to_path_buf(),
            key: "rope.scaling.factor",
        }),
        (Some(found), _) => Err(WeightError::RopeScaling {
            path: keys.file.path().to_path_buf(),
            found: found.to_owned(),
        }),
    }
}

fn token_id(file: &GgufFile, key: &'static str) -> Result<Option<u32>, WeightError> {
    let path = || file.path().to_path_buf();
    let id = file
        .metadata()
        .unsigned(key)
        .map_err(|source| WeightError::Gguf {
            path: path(),
            source,
        })?;
    id.map(|id| {
        u32::try_from(id).map_err(|_| WeightError::Config {
            path: path(),
            key,
            value: id.to_string(),
            requirement: "it must be a token id",
        })
    })
    .transpose()
}

fn end_tokens(file: &GgufFile) -> Result<Vec<u32>, WeightError> {
    let gguf = |source| WeightError::Gguf {
        path: file.path().to_path_buf(),
        source,
    };
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ids.extend(token_id(file, key)?);
    }
    let tokens = file
        .metadata()
        .texts("tokenizer.ggml.tokens")
        .map_err(gguf)?
        .unwrap_or_default();
    let types = file
        .metadata()
        .integers("tokenizer.ggml.token_type")
        .map_err(gguf)?
        .unwrap_or_default();
    let ends = tokens
        .iter()
        .zip(&types)
        .zip(0..)
        .filter(|((text, kind), _)| **kind == CONTROL && END_OF_TURN.contains(&text.as_str()));
    ids.extend(ends.map(|(_, id)| id));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
