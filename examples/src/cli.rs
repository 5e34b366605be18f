//! The arguments of the `llama` program.

use std::path::PathBuf;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::{ArgGroup, Parser, ValueEnum};
use hira_attention::HiraAttentionConfig;
use hira_threshold::ThresholdRule;

use crate::device::DeviceName;
use crate::element::Element;
use crate::fetch::SMOLLM2;
use crate::llama::{AttentionChoice, WeightPrecision};
use crate::saved::spill;
use crate::weights::{ModelConfig, RopeStretch};

/// Run a Llama, Mistral or Qwen2 model with dense or with Hira attention.
///
/// Tokens stream to standard output as they come; progress goes to standard error. With --chat and no prompt, a conversation is
/// read from standard input, one message a line.
///
/// Exit code 0: done; 1: failed; 2: wrong arguments, or the device is not there.
#[derive(Debug, Clone, Parser)]
#[command(name = "llama", version)]
#[command(group = ArgGroup::new("input").args(["prompt", "prompt_file", "prompt_ids"]))]
#[command(group = ArgGroup::new("selection").args(["rule", "top_k_keys", "percentile", "threshold"]))]
pub struct Arguments {
    /// A .gguf file, a Hugging Face folder, or `smollm2`, which is fetched once and kept.
    #[arg(long, value_name = "PATH|smollm2", default_value = SMOLLM2)]
    pub model: String,
    /// The prompt.
    #[arg(long, required_unless_present_any = ["chat", "prompt_file", "prompt_ids"])]
    pub prompt: Option<String>,
    /// A text file that holds the prompt.
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// A JSON file that holds the prompt as a list of token ids.
    #[arg(long, value_name = "FILE", conflicts_with = "chat")]
    pub prompt_ids: Option<PathBuf>,
    /// The prompt is a message in the model's chat template.
    #[arg(long)]
    pub chat: bool,
    /// Most new tokens (of each reply).
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_new: usize,
    /// Do not stop at a token that ends the text or the turn.
    #[arg(long)]
    pub ignore_eos: bool,
    /// 0 is greedy; more is more random.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Draw from the most probable tokens that together hold this share.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Seed of the random choice.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// The attention to run.
    #[arg(long, value_enum, default_value_t = AttentionName::Hira)]
    pub attention: AttentionName,
    /// Attend to the keys that a rule selects: fixed=SCORE, top-k=K, percentile=PERCENT, mass=SHARE (of the softmax mass), or one that sets its threshold by a sample of
    /// the keys: adaptive=C, sample-max, sample-top-k=K, sample-mean-max=WEIGHT, sample-gap, budget=PERCENT.
    #[arg(long, value_name = "RULE")]
    pub rule: Option<ThresholdRule>,
    /// Attend to this many keys of highest score.
    #[arg(long, value_name = "K")]
    pub top_k_keys: Option<usize>,
    /// Attend to this share of the keys, those of highest score.
    #[arg(long, value_name = "PERCENT")]
    pub percentile: Option<f32>,
    /// Attend to the keys whose score (q . k, unscaled) reaches this; `-inf` is every key.
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    pub threshold: Option<f32>,
    /// A configuration of Hira attention in TOML, JSON or YAML; the options above replace its rule.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What decode steps read of the weights: `f16` is a copy of half the size, on flex only. Logits of SmolLM2 move by about 0.1.
    #[arg(long, value_enum, default_value_t)]
    pub weights: WeightPrecision,
    /// Stretch rotary positions for a longer context than the model was trained with: linear=F, ntk=F, dynamic=F or yarn=F, as in yarn=2 for
    /// twice as many positions; none=F leaves the positions as they are.
    #[arg(long, value_name = "KIND=F")]
    pub rope_scaling: Option<RopeStretch>,
    /// Begin with the keys and values that were saved here: what the prompt shares with their tokens is not computed again. The folder has to be one of the same
    /// model and the same index.
    #[arg(long, value_name = "FOLDER")]
    pub load_cache: Option<PathBuf>,
    /// Save keys and values here at the end: what the folder holds already is not written again.
    #[arg(long, value_name = "FOLDER")]
    pub save_cache: Option<PathBuf>,
    /// Most bytes of keys and values in main memory, as in 200MB or 1GiB: see --kv-tier.
    #[arg(long, value_name = "BYTES")]
    pub kv_budget: Option<ByteSize>,
    /// Where keys and values go for which the budget has no room.
    #[arg(long, value_enum, default_value_t = KvTier::Host, requires = "kv_budget")]
    pub kv_tier: KvTier,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = DeviceName::Flex)]
    pub device: DeviceName,
    /// What weights and activations are of: on cuda f32, f16 or bf16, on wgpu f32 or, where the GPU can, f16; on the CPU f32.
    #[arg(long, value_enum, default_value_t)]
    pub dtype: Element,
    /// Print one JSON object as the last line.
    #[arg(long)]
    pub json: bool,
}

/// The `--attention` argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AttentionName {
    /// Every key.
    Dense,
    /// The keys that a rule selects, with a proven bound on what was left out.
    Hira,
}

impl AttentionName {
    /// The name as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Hira => "hira",
        }
    }
}

/// The `--kv-tier` argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvTier {
    /// Nowhere: the budget is for everything that a cache takes, and a token too many is an error.
    Host,
    /// To a file without a name in the folder for temporary files; the budget is for exact keys and values.
    Disk,
}

/// What the prompt is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text, to be continued.
    Text(String),
    /// Tokens, to be continued.
    Ids(Vec<u32>),
    /// A message, to be answered.
    Message(String),
    /// Messages from standard input, each to be answered.
    Conversation,
}

impl Arguments {
    /// The attention that the arguments describe.
    ///
    /// # Errors
    /// If the configuration cannot be read or is refused, or if options of Hira attention are given with dense attention.
    pub fn attention(&self) -> anyhow::Result<AttentionChoice> {
        if self.attention == AttentionName::Dense {
            let given = [
                (self.config.is_some(), "--config"),
                (self.rule.is_some(), "--rule"),
                (self.top_k_keys.is_some(), "--top-k-keys"),
                (self.percentile.is_some(), "--percentile"),
                (self.threshold.is_some(), "--threshold"),
                (self.kv_budget.is_some(), "--kv-budget"),
            ];
            if let Some((_, option)) = given.iter().find(|(is_given, _)| *is_given) {
                bail!("{option} has no meaning with --attention dense");
            }
            return Ok(AttentionChoice::Dense);
        }
        let mut config = match &self.config {
            Some(path) => HiraAttentionConfig::from_file(path)
                .with_context(|| format!("cannot use {}", path.display()))?,
            None => HiraAttentionConfig::new(),
        };
        if let Some(rule) = self.rule {
            config = config.with_rule(rule);
        }
        if let Some(k) = self.top_k_keys {
            config = config.with_top_k(k);
        }
        if let Some(percentile) = self.percentile {
            config = config.with_percentile(percentile);
        }
        if let Some(threshold) = self.threshold {
            config = config.with_threshold(threshold);
        }
        config.validate()?;
        Ok(AttentionChoice::Hira(Box::new(config)))
    }

    /// The attention with the limits on keys and values that the arguments describe, for this model.
    pub fn bounded(&self, attention: AttentionChoice, model: &ModelConfig) -> AttentionChoice {
        match (attention, self.kv_budget) {
            (AttentionChoice::Hira(mut config), Some(budget)) => {
                let bytes = usize::try_from(budget.as_u64()).unwrap_or(usize::MAX);
                match self.kv_tier {
                    KvTier::Host => config.memory_budget = Some(bytes),
                    KvTier::Disk => *config = spill(*config, bytes, &std::env::temp_dir(), model),
                }
                AttentionChoice::Hira(config)
            }
            (attention, _) => attention,
        }
    }

    /// The prompt that the arguments describe.
    ///
    /// # Errors
    /// If a file cannot be read, is not what it should be, or if the prompt is missing.
    pub fn prompt(&self) -> anyhow::Result<Prompt> {
        if let Some(path) = &self.prompt_ids {
            let text =
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let ids = serde_json::from_slice(&text)
                .with_context(|| format!("{} is not a JSON list of token ids", path.display()))?;
            return Ok(Prompt::Ids(ids));
        }
        let text = match (&self.prompt, &self.prompt_file) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(path)) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
            (None, None) if self.json => bail!("--json needs a prompt"),
            (None, None) => return Ok(Prompt::Conversation),
        };
        Ok(if self.chat {
            Prompt::Message(text)
        } else {
            Prompt::Text(text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from([&["llama"], arguments].concat())
    }

    fn rule(arguments: &[&str]) -> ThresholdRule {
        match parse(arguments).unwrap().attention().unwrap() {
            AttentionChoice::Hira(config) => config.rule().unwrap(),
            AttentionChoice::Dense => panic!("dense"),
        }
    }

    #[test]
    fn rules_come_from_the_options() {
        assert_eq!(
            rule(&["--prompt", "x", "--top-k-keys", "32"]),
            ThresholdRule::TopK { k: 32 }
        );
        assert_eq!(
            rule(&["--prompt", "x", "--percentile", "5"]),
            ThresholdRule::Percentile { percent: 5.0 }
        );
        assert_eq!(
            rule(&["--prompt", "x", "--threshold", "-1.5"]),
            ThresholdRule::Fixed { tau: -1.5 }
        );
        assert_eq!(
            rule(&["--prompt", "x", "--threshold", "-inf"]),
            ThresholdRule::Fixed {
                tau: f32::NEG_INFINITY
            }
        );
        for (word, expected) in [
            ("top-k=32", ThresholdRule::TopK { k: 32 }),
            ("fixed=-1.5", ThresholdRule::Fixed { tau: -1.5 }),
            ("adaptive=-0.5", ThresholdRule::Adaptive { c: -0.5 }),
            ("sample-max", ThresholdRule::SampleMax),
            ("sample-top-k=9", ThresholdRule::SampleTopK { k: 9 }),
            (
                "sample-mean-max=0.25",
                ThresholdRule::SampleMeanMax { weight: 0.25 },
            ),
            ("sample-gap", ThresholdRule::SampleGap),
            ("budget=3", ThresholdRule::Budget { percent: 3.0 }),
        ] {
            assert_eq!(rule(&["--prompt", "x", "--rule", word]), expected);
        }
    }

    #[test]
    fn weights_are_whole_unless_asked_for() {
        let weights = |arguments: &[&str]| parse(arguments).unwrap().weights;
        assert_eq!(weights(&["--prompt", "x"]), WeightPrecision::F32);
        let half = ["--prompt", "x", "--weights", "f16"];
        assert_eq!(weights(&half), WeightPrecision::F16);
    }

    #[test]
    fn a_configuration_file_is_the_base() {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), "top_k = 7\nrecent_window = 9").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(
            rule(&["--prompt", "x", "--config", path]),
            ThresholdRule::TopK { k: 7 }
        );
        let arguments = parse(&["--prompt", "x", "--config", path, "--percentile", "5"]).unwrap();
        let AttentionChoice::Hira(config) = arguments.attention().unwrap() else {
            panic!("dense")
        };
        assert_eq!(config.recent_window, 9);
        assert_eq!(
            config.rule().unwrap(),
            ThresholdRule::Percentile { percent: 5.0 }
        );
    }

    #[test]
    fn contradictions_are_refused() {
        for arguments in [
            &["--max-new", "3"][..],
            &["--prompt", "x", "--prompt-file", "y"],
            &["--prompt-ids", "x", "--chat"],
            &["--prompt", "x", "--top-k-keys", "3", "--percentile", "5"],
            &["--prompt", "x", "--device", "abacus"],
            &["--prompt", "x", "--rule", "top-k=3", "--percentile", "5"],
            &["--prompt", "x", "--rule", "top-k=0"],
            &["--prompt", "x", "--rule", "sample-max=3"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
        let dense = parse(&["--prompt", "x", "--attention", "dense", "--threshold", "1"]).unwrap();
        assert!(
            dense
                .attention()
                .unwrap_err()
                .to_string()
                .contains("--threshold")
        );
        let dense = [
            "--prompt",
            "x",
            "--attention",
            "dense",
            "--rule",
            "sample-gap",
        ];
        let refused = parse(&dense).unwrap().attention().unwrap_err();
        assert!(refused.to_string().contains("--rule"));
        assert!(parse(&["--chat", "--json"]).unwrap().prompt().is_err());
        let refused = parse(&["--prompt", "x", "--percentile", "0"]).unwrap();
        assert!(refused.attention().is_err());
    }

    #[test]
    fn prompts_come_from_every_source() {
        assert_eq!(
            parse(&["--prompt", "x"]).unwrap().prompt().unwrap(),
            Prompt::Text("x".into())
        );
        assert_eq!(
            parse(&["--prompt", "x", "--chat"])
                .unwrap()
                .prompt()
                .unwrap(),
            Prompt::Message("x".into())
        );
        assert_eq!(
            parse(&["--chat"]).unwrap().prompt().unwrap(),
            Prompt::Conversation
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        std::fs::write(path, "[1, 2]").unwrap();
        assert_eq!(
            parse(&["--prompt-ids", path]).unwrap().prompt().unwrap(),
            Prompt::Ids(vec![1, 2])
        );
        assert_eq!(
            parse(&["--prompt-file", path]).unwrap().prompt().unwrap(),
            Prompt::Text("[1, 2]".into())
        );
        std::fs::write(path, "[-1]").unwrap();
        let error = parse(&["--prompt-ids", path])
            .unwrap()
            .prompt()
            .unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
    }
}
