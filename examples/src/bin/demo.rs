//! Dense beside Hira on a real model: one document, one prefill, two answers, one table.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hira_attention::{HiraAttentionConfig, HiraBackend};
use hira_examples::chat::Conversation;
use hira_examples::demo::{ComparisonConfig, Event, TEXT, compare};
use hira_examples::device::{DeviceName, OnDevice, run_on};
use hira_examples::llama::{Llama, WeightPrecision};
use hira_examples::tokenizer::{ChatTokenizer, TextStream};
use hira_examples::weights::ModelFile;
use hira_examples::{fetch, program};
use indicatif::{ProgressBar, ProgressStyle};

/// Read a long document once, answer a question about it with dense attention and with Hira, and compare the two.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// A GGUF file, a Hugging Face folder, or `smollm2`, which is fetched once.
    #[arg(long, default_value = fetch::SMOLLM2)]
    model: String,
    /// The document; without it, 7,332 tokens of Newton's Opticks.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The question about the document.
    #[arg(long, default_value = "How does the text explain hearing and seeing?")]
    question: String,
    /// Tokens that each attention decodes; what comes after the end of the answer is measured, but not shown.
    #[arg(long, default_value_t = 64)]
    max_new: usize,
    /// Keys that Hira selects for each query.
    #[arg(long, default_value_t = 256)]
    top_k_keys: usize,
    /// Steps whose distributions are compared, at most --max-new.
    #[arg(long, default_value_t = 64)]
    compare: usize,
    /// What decode steps read of the weights: `f16` is a copy of half the size, on flex only.
    #[arg(long, value_enum, default_value_t)]
    weights: WeightPrecision,
    /// Where the model runs.
    #[arg(long, value_enum, default_value_t)]
    device: DeviceName,
    /// Print one JSON object as the last line in place of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    program::main(|| run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<()> {
    // Everything that can be refused without reading weights comes first.
    arguments.device.check()?;
    ensure!(arguments.top_k_keys > 0, "--top-k-keys must be at least 1");
    let text = match &arguments.text {
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None => TEXT.to_owned(),
    };
    let path = fetch::resolve(&arguments.model, &mut |message| eprintln!("{message}"))?;
    let source = ModelFile::open(&path)?;
    let tokenizer = source.tokenizer()?;
    let message = format!("{}\n\nQuestion: {}", text.trim_end(), arguments.question);
    let prompt = Conversation::new().ask(&tokenizer, &message)?.to_vec();
    run_on(
        arguments.device,
        Demo {
            arguments,
            source,
            tokenizer,
            prompt,
        },
    )?
}

/// Everything that does not depend on the device.
struct Demo {
    arguments: Arguments,
    source: ModelFile,
    tokenizer: ChatTokenizer,
    prompt: Vec<u32>,
}

impl OnDevice for Demo {
    type Output = Result<()>;

    fn run<B: HiraBackend>(self, device: &B::Device) -> Result<()> {
        let Self {
            arguments,
            source,
            tokenizer,
            prompt,
        } = self;
        let bar = progress_bar("loading");
        let mut model =
            Llama::<B>::load(&source, device, &mut |done, all| advance(&bar, done, all))?;
        bar.finish_and_clear();
        model.set_weights(arguments.weights)?;
        let config = ComparisonConfig {
            prompt,
            steps: arguments.max_new,
            compared: arguments.compare,
            hira: HiraAttentionConfig::new().with_top_k(arguments.top_k_keys),
        };
        println!(
            "{} tokens of text and question.\n\n{}",
            config.prompt.len(),
            arguments.question
        );
        let mut screen = Screen::new(&tokenizer, &config.prompt);
        let comparison = compare(&mut model, &config, &mut |event| screen.show(event))?;
        if let Some(error) = screen.failure {
            return Err(error);
        }
        if arguments.json {
            println!("\n{}", comparison.json(config.prompt.len()));
        } else {
            println!("\n{}", comparison.table(config.prompt.len()));
        }
        Ok(())
    }
}

/// Shows what happens as it happens: answers on standard output, progress on standard error if that is a terminal.
struct Screen<'a> {
    tokenizer: &'a ChatTokenizer,
    prompt: &'a [u32],
    progress: ProgressBar,
    /// The answer that is being shown; none before it begins and after it has ended.
    answer: Option<TextStream<'a>>,
    /// The first thing that could not be shown.
    failure: Option<anyhow::Error>,
}

impl<'a> Screen<'a> {
    fn new(tokenizer: &'a ChatTokenizer, prompt: &'a [u32]) -> Self {
        Self {
            tokenizer,
            prompt,
            progress: progress_bar("reading"),
            answer: None,
            failure: None,
        }
    }

    fn show(&mut self, event: Event) {
        let shown = match event {
            Event::Prefill(done, all) => {
                advance(&self.progress, done, all);
                Ok(())
            }
            Event::Dense => self.begin("dense"),
            Event::Hira => self.begin("Hira"),
            Event::Token(token) => self.token(token),
            Event::Done => self.end(),
        };
        if let Err(error) = shown {
            self.failure.get_or_insert(error);
        }
    }

    fn begin(&mut self, attention: &str) -> Result<()> {
        self.progress.finish_and_clear();
        self.answer = Some(self.tokenizer.stream_after(self.prompt)?);
        write("\n")?;
        write(&format!("{attention:>5}: "))
    }

    fn token(&mut self, token: u32) -> Result<()> {
        if self.tokenizer.eos_ids().contains(&token) {
            return self.end();
        }
        match &mut self.answer {
            Some(answer) => write(&answer.push(token)?.unwrap_or_default()),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        match self.answer.take() {
            Some(answer) => write(&format!("{}\n", answer.finish()?.unwrap_or_default())),
            None => Ok(()),
        }
    }
}

fn write(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// A bar on standard error; nothing is drawn if that is not a terminal.
fn progress_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(what);
    match ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn advance(bar: &ProgressBar, done: usize, all: usize) {
    bar.set_length(all as u64);
    bar.set_position(done as u64);
}
