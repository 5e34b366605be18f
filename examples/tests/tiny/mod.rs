//! A small random model: a weight source, and the same model written naively in `f64`.

use std::path::Path;

use hira_examples::weights::{
    Architecture, HostTensor, ModelConfig, RopeScaling, WeightError, WeightSource,
};

/// Random weights, each a function of its tensor's name.
pub(crate) struct Tiny {
    pub(crate) config: ModelConfig,
    /// A tensor whose values are multiplied by a factor, to make the model misbehave.
    pub(crate) spoiled: Option<(&'static str, f32)>,
}

impl Tiny {
    /// Two layers, four query heads on two key/value heads of width 16.
    pub(crate) fn new() -> Self {
        let config = ModelConfig {
            architecture: Architecture::Llama,
            hidden_size: 24,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: 640,
            tie_word_embeddings: true,
            attention_bias: false,
            sliding_window: None,
            vocab_size: 61,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        };
        Self {
            config,
            spoiled: None,
        }
    }

    /// The model with its configuration changed.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut ModelConfig)) -> Self {
        change(&mut self.config);
        self
    }

    fn get(&self, name: &str) -> Vec<f64> {
        let data = self.tensor(name).expect("the tensor is there").data;
        data.into_iter().map(f64::from).collect()
    }

    /// The logits of every position, in `f64` and with nothing shared: every position from scratch.
    pub(crate) fn logits_naive(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let c = &self.config;
        let embedding = self.get("model.embed_tokens.weight");
        let mut xs: Vec<Vec<f64>> = ids
            .iter()
            .map(|id| embedding[*id as usize * c.hidden_size..][..c.hidden_size].to_vec())
            .collect();
        for layer in 0..c.num_hidden_layers {
            self.layer_naive(layer, &mut xs);
        }
        let head = match c.tie_word_embeddings {
            true => embedding,
            false => self.get("lm_head.weight"),
        };
        let gamma = self.get("model.norm.weight");
        xs.iter()
            .map(|x| matvec(&head, &rms_norm(x, &gamma, c.rms_norm_eps)))
            .collect()
    }

    fn layer_naive(&self, layer: usize, xs: &mut [Vec<f64>]) {
        let c = &self.config;
        let get = |tensor: &str| self.get(&format!("model.layers.{layer}.{tensor}"));
        let project = |part: &str, x: &[f64]| {
            let mut y = matvec(&get(&format!("self_attn.{part}_proj.weight")), x);
            if c.attention_bias {
                add(&mut y, &get(&format!("self_attn.{part}_proj.bias")));
            }
            y
        };
        let (mut queries, mut keys, mut values) = (vec![], vec![], vec![]);
        for (position, x) in xs.iter().enumerate() {
            let x = rms_norm(x, &get("input_layernorm.weight"), c.rms_norm_eps);
            queries.push(self.rotate_naive(project("q", &x), position));
            keys.push(self.rotate_naive(project("k", &x), position));
            values.push(project("v", &x));
        }
        let (dim, group) = (c.head_dim, c.num_attention_heads / c.num_key_value_heads);
        for (position, x) in xs.iter_mut().enumerate() {
            let mut mixed = Vec::new();
            for head in 0..c.num_attention_heads {
                let columns = head / group * dim..(head / group + 1) * dim;
                let query = &queries[position][head * dim..(head + 1) * dim];
                let window = c.sliding_window.unwrap_or(usize::MAX);
                let first = (position + 1).saturating_sub(window);
                let weights: Vec<f64> = keys[first..=position]
                    .iter()
                    .map(|key| (dot(query, &key[columns.clone()]) / (dim as f64).sqrt()).exp())
                    .collect();
                let total: f64 = weights.iter().sum();
                mixed.extend(columns.map(|column| {
                    let seen = weights.iter().zip(&values[first..]);
                    seen.map(|(w, value)| w * value[column]).sum::<f64>() / total
                }));
            }
            add(x, &matvec(&get("self_attn.o_proj.weight"), &mixed));
            let normed = rms_norm(x, &get("post_attention_layernorm.weight"), c.rms_norm_eps);
            let gate = matvec(&get("mlp.gate_proj.weight"), &normed);
            let up = matvec(&get("mlp.up_proj.weight"), &normed);
            let inner: Vec<f64> = gate
                .iter()
                .zip(up)
                .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                .collect();
            add(x, &matvec(&get("mlp.down_proj.weight"), &inner));
        }
    }

    fn rotate_naive(&self, mut heads: Vec<f64>, position: usize) -> Vec<f64> {
        let dim = self.config.head_dim;
        for head in heads.chunks_exact_mut(dim) {
            for i in 0..dim / 2 {
                let angle = position as f64 * self.frequency_naive(i);
                let (a, b) = (head[i], head[i + dim / 2]);
                let stretch = match &self.config.rope_scaling {
                    RopeScaling::Yarn { factor, .. } => 1.0 + factor.ln() / 10.0,
                    _ => 1.0,
                };
                head[i] = stretch * (a * angle.cos() - b * angle.sin());
                head[i + dim / 2] = stretch * (b * angle.cos() + a * angle.sin());
            }
        }
        heads
    }

    /// By wavelength and in three cases, as Hugging Face writes it.
    fn frequency_naive(&self, i: usize) -> f64 {
        let frequency = 1.0
            / self
                .config
                .rope_theta
                .powf(2.0 * i as f64 / self.config.head_dim as f64);
        let last = (self.config.head_dim / 2 - 1) as f64;
        match &self.config.rope_scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            // from 1 at the first pair to the whole factor at the last, geometrically
            RopeScaling::Ntk { factor } => frequency / factor.powf(i as f64 / last),
            RopeScaling::Dynamic {
                factor,
                original_max_position_embeddings: original,
            } => {
                let positions = self.config.max_position_embeddings as f64;
                let factor = factor * positions / *original as f64 - factor + 1.0;
                frequency / factor.max(1.0).powf(i as f64 / last)
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                ..
            } => {
                let turns = |pair: usize| {
                    let exponent = -2.0 * pair as f64 / self.config.head_dim as f64;
                    *original as f64 * self.config.rope_theta.powf(exponent) / std::f64::consts::TAU
                };
                let low = (0..99).take_while(|&pair| turns(pair) >= 32.0).count();
                let low = low.saturating_sub(1);
                let high = (0..99).find(|&pair| turns(pair) <= 1.0).unwrap_or(99);
                let divided = (i as f64 - low as f64) / (high - low) as f64;
                let divided = divided.clamp(0.0, 1.0);
                frequency * (1.0 - divided) + frequency * divided / factor
            }
            RopeScaling::Factors(factors) => frequency / f64::from(factors[i]),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => {
                let (wavelength, original) = (std::f64::consts::TAU / frequency, *original as f64);
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

impl WeightSource for Tiny {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn origin(&self) -> &Path {
        Path::new("tiny")
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let mut tensors = self.config.tensors();
        tensors
            .find(|(tensor, _)| tensor == name)
            .map(|(_, shape)| shape)
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, WeightError> {
        let shape = self.shape(name).ok_or_else(|| WeightError::MissingTensor {
            path: self.origin().to_path_buf(),
            tensor: name.to_owned(),
        })?;
        let (centre, width) = match name {
            _ if name.ends_with("norm.weight") => (1.0, 0.2),
            _ if name.ends_with("bias") => (0.0, 0.5),
            _ => (0.0, 2.0 / (shape[shape.len() - 1] as f32).sqrt()),
        };
        let factor = match self.spoiled {
            Some((spoiled, factor)) if spoiled == name => factor,
            _ => 1.0,
        };
        let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let data = (0..shape.iter().product())
            .map(|_| {
                // Knuth's MMIX generator; the top 24 bits become a fraction
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let fraction = (state >> 40) as f32 / (1u32 << 24) as f32;
                factor * (centre + width * (2.0 * fraction - 1.0))
            })
            .collect();
        Ok(HostTensor { shape, data })
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

fn matvec(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix
        .chunks_exact(x.len())
        .map(|row| dot(row, x))
        .collect()
}

fn rms_norm(x: &[f64], gamma: &[f64], eps: f64) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt();
    x.iter().zip(gamma).map(|(x, g)| x * scale * g).collect()
}
