//! Decode steps of one model, timed at several contexts with each attention: what the attention is worth end to end.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hira_attention::HiraBackend;
use hira_examples::demo::{Attention, SpeedConfig, TEXT, measure_speed};
use hira_examples::device::{DeviceName, OnDevice, run_on};
use hira_examples::llama::{Llama, WeightPrecision};
use hira_examples::weights::{ModelFile, RopeStretch};
use hira_examples::{fetch, program};
use indicatif::{ProgressBar, ProgressStyle};

/// Time decode steps of a model at several contexts: Burn's own attention, dense and Hira, turn by turn from one prefill.
///
/// The table gives the median and the quartiles of a step (the whole model, and the choice of the next token), how many times faster
/// that is than with Burn's own attention at the same context, and which part of its speed at the first context is left.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// A GGUF file, a Hugging Face folder, or `smollm2`, which is fetched once.
    #[arg(long, default_value = fetch::SMOLLM2)]
    model: String,
    /// The text to read, repeated where it is too short; without it, 7,332 tokens of Newton's Opticks.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens before the timed steps, ascending.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 2048, 8000])]
    contexts: Vec<usize>,
    /// Keys that Hira selects for each query.
    #[arg(long, value_delimiter = ',', default_values_t = [256, 64])]
    top_k_keys: Vec<usize>,
    /// Turns of four steps that each attention is timed for at each context.
    #[arg(long, default_value_t = 12)]
    turns: usize,
    /// What decode steps read of the weights: `f16` is a copy of half the size, on flex only.
    #[arg(long, value_enum, default_value_t)]
    weights: WeightPrecision,
    /// Stretch rotary positions for contexts beyond the model's own: linear=F, ntk=F, dynamic=F or yarn=F, as in yarn=2.
    #[arg(long, value_name = "KIND=F")]
    rope_scaling: Option<RopeStretch>,
    /// Where the model runs.
    #[arg(long, value_enum, default_value_t)]
    device: DeviceName,
}

fn main() -> ExitCode {
    program::main(|| run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<()> {
    // Everything that can be refused without reading weights comes first.
    arguments.device.check()?;
    ensure!(
        !arguments.top_k_keys.contains(&0),
        "--top-k-keys must be at least 1"
    );
    let text = match &arguments.text {
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None => TEXT.to_owned(),
    };
    let path = fetch::resolve(&arguments.model, &mut |message| eprintln!("{message}"))?;
    let source = ModelFile::open(&path)?;
    let source = match arguments.rope_scaling {
        Some(stretch) => source.stretched(stretch),
        None => source,
    };
    let tokens = source.tokenizer()?.encode(&text)?;
    let longest = arguments.contexts.iter().copied().max().unwrap_or(0);
    let prompt = tokens.iter().copied().cycle().take(longest).collect();
    let hira = arguments.top_k_keys.iter().map(|k| Attention::TopK(*k));
    let config = SpeedConfig {
        prompt,
        contexts: arguments.contexts.clone(),
        attentions: [Attention::Burn, Attention::Dense]
            .into_iter()
            .chain(hira)
            .collect(),
        turns: arguments.turns,
    };
    run_on(
        arguments.device,
        Timing {
            source,
            config,
            weights: arguments.weights,
        },
    )?
}

/// Everything that does not depend on the device.
struct Timing {
    source: ModelFile,
    config: SpeedConfig,
    weights: WeightPrecision,
}

impl OnDevice for Timing {
    type Output = Result<()>;

    fn run<B: HiraBackend>(self, device: &B::Device) -> Result<()> {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}") {
            bar.set_style(style);
        }
        let mut progress = |done: usize, all: usize| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        };
        let mut model = Llama::<B>::load(&self.source, device, &mut progress)?;
        model.set_weights(self.weights)?;
        let speed = measure_speed(&mut model, &self.config, device, &mut progress)?;
        bar.finish_and_clear();
        print!("{speed}");
        Ok(())
    }
}
