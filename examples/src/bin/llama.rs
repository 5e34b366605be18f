//! Runs a Llama, Mistral or Qwen2 model with dense or with Hira attention.

use std::io::{BufRead, ErrorKind, IsTerminal, Write, stderr, stdin, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use hira_attention::HiraBackend;
use hira_attention::device::{DeviceError, DeviceKind};
use hira_examples::chat::{Conversation, common_prefix};
use hira_examples::cli::{Arguments, Prompt};
use hira_examples::device::{OnDevice, run_on};
use hira_examples::generate::{GenerateOptions, Generation, check_context, generate};
use hira_examples::llama::{AttentionChoice, Llama, LlamaCache};
use hira_examples::sampler::{Sampler, top};
use hira_examples::saved::{self, fingerprint};
use hira_examples::tokenizer::ChatTokenizer;
use hira_examples::weights::{ModelFile, WeightSource};
use hira_examples::{fetch, program};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Logits that are reported.
const SHOWN_LOGITS: usize = 20;

fn main() -> ExitCode {
    program::begin();
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the answer has gone, as in `llama ... | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("error: {error:#}"));
            if error.is::<DeviceError>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    // Everything that can be refused without reading weights comes first.
    arguments.device.check()?;
    arguments.dtype.check_on(arguments.device)?;
    let attention = arguments.attention()?;
    let sampler = Sampler::new(arguments.temperature, arguments.top_p, arguments.seed)?;
    let prompt = arguments.prompt()?;
    let path = fetch::resolve(&arguments.model, &mut tell)?;
    let source = ModelFile::open(&path)?;
    let source = match arguments.rope_scaling {
        Some(stretch) => source.stretched(stretch),
        None => source,
    };
    let tokenizer = source.tokenizer()?;
    let start = match prompt {
        Prompt::Conversation => Start::Conversation,
        Prompt::Ids(ids) => Start::Tokens(ids),
        Prompt::Text(text) => Start::Tokens(tokenizer.encode(&text)?),
        Prompt::Message(text) => {
            Start::Tokens(Conversation::new().ask(&tokenizer, &text)?.to_vec())
        }
    };
    if let Start::Tokens(ids) = &start {
        ensure!(!ids.is_empty(), "the prompt has no tokens");
        check_context(
            ids.len(),
            arguments.max_new,
            source.config().max_position_embeddings,
        )?;
    }
    let stop = if arguments.ignore_eos {
        Vec::new()
    } else {
        stop_tokens(&source, &tokenizer)
    };
    let options = GenerateOptions {
        max_new: arguments.max_new,
        stop,
    };
    let device = arguments.device;
    run_on(
        device,
        Session {
            arguments,
            attention,
            sampler,
            source,
            tokenizer,
            options,
            start,
        },
    )?
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Writes a line to standard error. That may be closed; there is nobody left to tell then.
fn tell(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

/// The tokens that end a text, by the model's configuration and by its tokenizer.
fn stop_tokens(source: &ModelFile, tokenizer: &ChatTokenizer) -> Vec<u32> {
    let mut stop = source.config().eos_token_ids.clone();
    stop.extend(tokenizer.eos_ids());
    stop.sort_unstable();
    stop.dedup();
    stop
}

/// What the session begins with.
enum Start {
    Tokens(Vec<u32>),
    Conversation,
}

/// Everything that does not depend on the device.
struct Session {
    arguments: Arguments,
    attention: AttentionChoice,
    sampler: Sampler,
    source: ModelFile,
    tokenizer: ChatTokenizer,
    options: GenerateOptions,
    start: Start,
}

impl OnDevice for Session {
    type Output = anyhow::Result<()>;

    fn run<B: HiraBackend>(mut self, device: &B::Device) -> anyhow::Result<()> {
        let begin = Instant::now();
        let bar = progress_bar("loading");
        let on = (device, self.arguments.dtype);
        let mut model = Llama::<B>::load_as(&self.source, on, &mut |done, total| {
            advance(&bar, done, total)
        })?;
        bar.finish_and_clear();
        let load = begin.elapsed();
        model.set_weights(self.arguments.weights)?;
        let attention = self.attention.clone();
        model.set_attention(self.arguments.bounded(attention, self.source.config()))?;
        match std::mem::replace(&mut self.start, Start::Conversation) {
            Start::Tokens(ids) => self.answer(&model, &ids, load),
            Start::Conversation => self.converse(&model),
        }
    }
}

impl Session {
    /// One prompt, one answer, and the figures.
    fn answer<B: HiraBackend>(
        &mut self,
        model: &Llama<B>,
        prompt: &[u32],
        load: Duration,
    ) -> anyhow::Result<()> {
        // what is loaded may be longer than what is kept of it
        let room = match self.arguments.load_cache {
            Some(_) => model.config().max_position_embeddings,
            None => prompt.len() + self.options.max_new,
        };
        let (mut cache, kept) = self.first_cache(model, room.max(1), prompt)?;
        let (generation, text) = self.stream(model, &mut cache, &prompt[kept..], prompt)?;
        self.keep(&cache, &[prompt, &generation.tokens].concat())?;
        if self.arguments.json {
            let report = self.report(&cache, prompt, &generation, text, load);
            writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
        } else if stderr().is_terminal() {
            tell(&summary(&cache, prompt.len(), &generation));
        }
        Ok(())
    }

    /// A cache for so many tokens, with those that a saved one shares with the prompt if there is one, and their number.
    fn first_cache<B: HiraBackend>(
        &self,
        model: &Llama<B>,
        room: usize,
        prompt: &[u32],
    ) -> anyhow::Result<(LlamaCache, usize)> {
        let empty = model.new_cache(room)?;
        let Some(folder) = &self.arguments.load_cache else {
            return Ok((empty, 0));
        };
        let begin = Instant::now();
        let model = fingerprint(&self.source)?;
        let (cache, kept) = saved::load(&empty, prompt, &model, folder)
            .with_context(|| format!("cannot use {}", folder.display()))?;
        let took = begin.elapsed().as_secs_f64() * 1e3;
        tell(&format!(
            "{kept} of {} tokens from {} in {took:.0} ms",
            prompt.len(),
            folder.display()
        ));
        Ok((cache, kept))
    }

    /// Saves the cache, which stands for the first of `tokens`, if that is wanted.
    fn keep(&self, cache: &LlamaCache, tokens: &[u32]) -> anyhow::Result<()> {
        let Some(folder) = &self.arguments.save_cache else {
            return Ok(());
        };
        let begin = Instant::now();
        let tokens = &tokens[..cache.len().min(tokens.len())];
        let report = saved::save(cache, tokens, &fingerprint(&self.source)?, folder)
            .with_context(|| format!("cannot save to {}", folder.display()))?;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        tell(&format!(
            "{} tokens saved to {} in {:.0} ms: {:.1} MB written, {:.1} MB were there",
            tokens.len(),
            folder.display(),
            begin.elapsed().as_secs_f64() * 1e3,
            megabytes(report.written_bytes),
            megabytes(report.kept_bytes),
        ));
        Ok(())
    }

    /// Messages from standard input, each answered, over one cache.
    fn converse<B: HiraBackend>(&mut self, model: &Llama<B>) -> anyhow::Result<()> {
        let room = model.config().max_position_embeddings;
        let mut cache = model.new_cache(room)?;
        let mut conversation = Conversation::new();
        let mut cached: Vec<u32> = Vec::new();
        let show_mark = || -> std::io::Result<()> {
            if stdin().is_terminal() {
                write!(stderr(), "> ")?;
            }
            Ok(())
        };
        show_mark()?;
        for line in stdin().lock().lines() {
            let line = line.context("cannot read the message")?;
            if !line.trim().is_empty() {
                let tokens = conversation.ask(&self.tokenizer, line.trim())?.to_vec();
                if cached.is_empty() && self.arguments.load_cache.is_some() {
                    let kept;
                    (cache, kept) = self.first_cache(model, room, &tokens)?;
                    cached.extend_from_slice(&tokens[..kept]);
                }
                // At least the last token is computed again: its logits are needed.
                let kept = common_prefix(&cached, &tokens).min(tokens.len().saturating_sub(1));
                // Layers with a window may have forgotten too much to go back: then all of it is.
                let kept = match cache.truncate(kept) {
                    Ok(()) => kept,
                    Err(_) => {
                        cache.reset();
                        0
                    }
                };
                let (generation, _) = self.stream(model, &mut cache, &tokens[kept..], &tokens)?;
                conversation.reply(&self.tokenizer, &generation.tokens)?;
                cached = [tokens, generation.tokens].concat();
                cached.truncate(cache.len());
            }
            show_mark()?;
        }
        self.keep(&cache, &cached)
    }

    /// Generates after `prompt` and writes the text to standard output as it comes. `context` is everything before the new
    /// tokens.
    fn stream<B: HiraBackend>(
        &mut self,
        model: &Llama<B>,
        cache: &mut LlamaCache,
        prompt: &[u32],
        context: &[u32],
    ) -> anyhow::Result<(Generation, String)> {
        let bar = progress_bar("prompt");
        let mut stream = self.tokenizer.stream_after(context)?;
        let mut text = String::new();
        let mut write = |piece: Option<String>| -> std::io::Result<()> {
            if let Some(piece) = piece {
                let mut out = stdout().lock();
                out.write_all(piece.as_bytes())?;
                out.flush()?;
                text.push_str(&piece);
            }
            Ok(())
        };
        let generation = generate(
            model,
            cache,
            prompt,
            &mut self.sampler,
            &self.options,
            &mut |done, total| {
                advance(&bar, done, total);
                if done == total {
                    bar.finish_and_clear();
                }
            },
            &mut |token| Ok(write(stream.push(token)?)?),
        )?;
        write(stream.finish()?)?;
        writeln!(stdout())?;
        Ok((generation, text))
    }

    fn report(
        &self,
        cache: &LlamaCache,
        prompt: &[u32],
        generation: &Generation,
        text: String,
        load: Duration,
    ) -> Report {
        let metrics = cache.metrics();
        let decoded = !generation.steps.is_empty();
        Report {
            prompt_tokens: prompt.len(),
            tokens: generation.tokens.clone(),
            text,
            first_logits_top20: top(&generation.first_logits, SHOWN_LOGITS),
            load_s: load.as_secs_f64(),
            prefill_s: generation.prefill.as_secs_f64(),
            decode_s_per_token: generation.median_step().map(|step| step.as_secs_f64()),
            attention: self.arguments.attention.name(),
            device: DeviceKind::from(self.arguments.device).feature(),
            dtype: self.arguments.dtype.name(),
            density_mean: metrics.density(),
            dropped_mass_bound_max: decoded.then(|| metrics.worst().dropped_mass_bound),
            dropped_mass_bound_mean: decoded.then(|| metrics.dropped_mass_bound_mean()),
            output_error_bound_max: decoded.then(|| metrics.worst().output_error_bound),
            peak_rss_mb: peak_rss_mb(),
        }
    }
}

/// The object that `--json` prints. Density and bounds are over the decode steps; they are `null` if there were none.
#[derive(Debug, Serialize)]
struct Report {
    prompt_tokens: usize,
    tokens: Vec<u32>,
    text: String,
    first_logits_top20: Vec<(u32, f32)>,
    load_s: f64,
    prefill_s: f64,
    decode_s_per_token: Option<f64>,
    attention: &'static str,
    device: &'static str,
    dtype: &'static str,
    density_mean: f64,
    dropped_mass_bound_max: Option<f32>,
    dropped_mass_bound_mean: Option<f64>,
    output_error_bound_max: Option<f32>,
    peak_rss_mb: Option<f64>,
}

fn summary(cache: &LlamaCache, prompt: usize, generation: &Generation) -> String {
    let metrics = cache.metrics();
    let prefill = generation.prefill.as_secs_f64();
    let mut line = format!(
        "{prompt} prompt tokens in {prefill:.2} s, {} new",
        generation.tokens.len()
    );
    if let Some(step) = generation.median_step() {
        line += &format!(
            ", {:.1} ms a token, density {:.3}, dropped mass at most {:.2e}",
            step.as_secs_f64() * 1e3,
            metrics.density(),
            metrics.worst().dropped_mass_bound,
        );
    }
    line
}

/// A bar on standard error; nothing is drawn if that is not a terminal.
fn progress_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(what);
    match ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn advance(bar: &ProgressBar, done: usize, total: usize) {
    bar.set_length(total as u64);
    bar.set_position(done as u64);
}

/// The largest resident size of this process so far, where the system tells.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
