use std::path::Path;

use serde::Deserialize;

use super::rope_scaling::yarn_attention_factor;
use super::{Architecture, ModelConfig, RopeScaling, WeightError};

/// `config.json`, as far as a Llama needs it.
#[derive(Debug, Deserialize)]
pub(super) struct HfConfig {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    /// Newer files keep the base and the scaling together.
    rope_parameters: Option<RopeParameters>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    vocab_size: Option<usize>,
    bos_token_id: Option<TokenIds>,
    eos_token_id: Option<TokenIds>,
}

/// `generation_config.json`, as far as it matters.
#[derive(Debug, Default, Deserialize)]
pub(super) struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
}

#[derive(Debug, Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    /// The older name of `rope_type`; some files have both.
    #[serde(rename = "type")]
    older_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
}

/// One id or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl HfConfig {
    /// The model's configuration; `path` names the file in messages.
    pub(super) fn into_model(
        self,
        path: &Path,
        generation: &GenerationConfig,
    ) -> Result<ModelConfig, WeightError> {
        let missing = |key| WeightError::MissingKey {
            path: path.to_path_buf(),
            key,
        };
        let found = self
            .model_type
            .as_deref()
            .ok_or_else(|| missing("model_type"))?;
        let architecture =
            Architecture::from_name(found).ok_or_else(|| WeightError::Architecture {
                path: path.to_path_buf(),
                found: found.to_owned(),
            })?;
        self.refuse_variants(path, architecture)?;
        let hidden_size = self.hidden_size.ok_or_else(|| missing("hidden_size"))?;
        let heads = self
            .num_attention_heads
            .ok_or_else(|| missing("num_attention_heads"))?;
        let rope = self.rope_parameters.as_ref();
        let theta = self
            .rope_theta
            .or_else(|| rope.and_then(|rope| rope.rope_theta));
        let positions = self
            .max_position_embeddings
            .ok_or_else(|| missing("max_position_embeddings"))?;
        let scaling = match self.rope_scaling.as_ref().or(rope) {
            Some(parameters) => parameters.scaling(path, positions)?,
            None => RopeScaling::None,
        };
        let ends = [self.eos_token_id, generation.eos_token_id.clone()];
        let mut eos_token_ids: Vec<u32> = ends
            .into_iter()
            .flatten()
            .flat_map(TokenIds::into_vec)
            .collect();
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        ModelConfig {
            architecture,
            hidden_size,
            intermediate_size: self
                .intermediate_size
                .ok_or_else(|| missing("intermediate_size"))?,
            num_hidden_layers: self
                .num_hidden_layers
                .ok_or_else(|| missing("num_hidden_layers"))?,
            num_attention_heads: heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(hidden_size / heads.max(1)),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: theta.unwrap_or(10_000.0),
            max_position_embeddings: scaling.positions(positions),
            rope_scaling: scaling,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            attention_bias: self
                .attention_bias
                .unwrap_or(architecture == Architecture::Qwen2),
            // Qwen2 files carry a window that is off; Mistral's is on when it is there.
            sliding_window: match architecture {
                Architecture::Mistral => self.sliding_window,
                Architecture::Llama | Architecture::Qwen2 => None,
            },
            vocab_size: self.vocab_size.ok_or_else(|| missing("vocab_size"))?,
            bos_token_id: self
                .bos_token_id
                .and_then(|ids| ids.into_vec().first().copied()),
            eos_token_ids,
        }
        .validate(path)
    }

    /// Refuses what the Burn Llama would compute wrongly.
    fn refuse_variants(&self, path: &Path, architecture: Architecture) -> Result<(), WeightError> {
        let refuse = |key, value: String, requirement| {
            Err(WeightError::Config {
                path: path.to_path_buf(),
                key,
                value,
                requirement,
            })
        };
        if let Some(activation) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            return refuse(
                "hidden_act",
                activation.to_owned(),
                "only silu is supported",
            );
        }
        // Qwen2 would have it in its upper layers only, and Llama has none.
        let window_is_on = match architecture {
            Architecture::Qwen2 => self.use_sliding_window.unwrap_or(false),
            Architecture::Llama => self.sliding_window.is_some(),
            Architecture::Mistral => false,
        };
        if window_is_on {
            let window = self
                .sliding_window
                .map_or_else(|| "on".to_owned(), |window| window.to_string());
            return refuse(
                "sliding_window",
                window,
                "a sliding window is supported in Mistral models only",
            );
        }
        Ok(())
    }
}

impl RopeParameters {
    /// The scaling of a model with this many `positions`, which are those of its training where nothing else is said.
    fn scaling(&self, path: &Path, positions: usize) -> Result<RopeScaling, WeightError> {
        let required = |key, value: Option<f64>| {
            value.ok_or_else(|| WeightError::MissingKey {
                path: path.to_path_buf(),
                key,
            })
        };
        match self.rope_type.as_deref().or(self.older_type.as_deref()) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear {
                factor: required("rope_scaling.factor", self.factor)?,
            }),
            Some("dynamic") => Ok(RopeScaling::Dynamic {
                factor: required("rope_scaling.factor", self.factor)?,
                original_max_position_embeddings: self
                    .original_max_position_embeddings
                    .unwrap_or(positions),
            }),
            // the authors' own ramp ends at whole dimensions; files may ask for another
            Some("yarn") if self.truncate == Some(false) => Err(WeightError::RopeScaling {
                path: path.to_path_buf(),
                found: "yarn without truncate".to_owned(),
            }),
            Some("yarn") => {
                let factor = required("rope_scaling.factor", self.factor)?;
                Ok(RopeScaling::Yarn {
                    factor,
                    original_max_position_embeddings: self
                        .original_max_position_embeddings
                        .unwrap_or(positions),
                    attention_factor: self.attention_factor(factor),
                    beta_fast: self.beta_fast.unwrap_or(32.0),
                    beta_slow: self.beta_slow.unwrap_or(1.0),
                })
            }
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: required("rope_scaling.factor", self.factor)?,
                low_freq_factor: required("rope_scaling.low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: required("rope_scaling.high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: self
                    .original_max_position_embeddings
                    .ok_or_else(|| {
                        let key = "rope_scaling.original_max_position_embeddings";
                        WeightError::MissingKey {
                            path: path.to_path_buf(),
                            key,
                        }
                    })?,
            }),
            Some(found) => Err(WeightError::RopeScaling {
                path: path.to_path_buf(),
                found: found.to_owned(),
            }),
        }
    }

    /// As Hugging Face's `yarn` rope type: what the file says, else the quotient of two weighted ones, else the authors' own.
    fn attention_factor(&self, factor: f64) -> f64 {
        let weighted = |weight: f64| weight * (yarn_attention_factor(factor) - 1.0) + 1.0;
        self.attention_factor
            .unwrap_or(match (self.mscale, self.mscale_all_dim) {
                (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                    weighted(mscale) / weighted(all)
                }
                _ => weighted(1.0),
            })
    }
}
