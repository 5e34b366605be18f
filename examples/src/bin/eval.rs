//! How far attention by each rule is from dense attention, on a model and a text.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use hira_attention::{HiraAttentionConfig, HiraBackend, PlanPolicy};
use hira_examples::device::{DeviceName, OnDevice, run_on};
use hira_examples::eval::captures::{self, Contender};
use hira_examples::eval::tasks::{self, Sample, Task, TaskPlan};
use hira_examples::eval::{
    EvalRule, Evaluation, Event, Group, Journal, Record, TEXT, fingerprint, write_report,
};
use hira_examples::llama::Llama;
use hira_examples::weights::{ModelFile, RopeStretch};
use hira_examples::{fetch, program};
use indicatif::{ProgressBar, ProgressStyle};

/// Read a text with every rule and judge each next token against dense attention over the same past; decode from one prompt with dense
/// attention and with Hira's rules; write tables and plots.
///
/// What is finished is kept: a second run with the same settings goes on where the first one was stopped, and only writes the report where nothing
/// is left to do.
#[derive(Debug, Clone, Parser)]
#[command(version)]
struct Arguments {
    /// Minutes instead of hours: one window of 2,048 tokens, few rules, 64 tokens decoded.
    #[arg(long)]
    quick: bool,
    /// Also read one window of 16,384 tokens: dense attention with the model's positions as they are and stretched by YaRN, and two rules.
    #[arg(long)]
    long: bool,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    parts: Vec<Part>,
    /// Rules to read the text with, beside dense: top-k=K, percentile=P, mass=M, one of the sampled rules, quest=K, streaming=K, h2o=K. With +comp
    /// behind one of Hira's, block means stand in for what it leaves out, as in mass=0.95+comp.
    #[arg(long, value_delimiter = ',', value_name = "RULES")]
    rules: Vec<EvalRule>,
    /// Rules of Hira's to decode with.
    #[arg(long, value_delimiter = ',', value_name = "RULES")]
    decoding_rules: Vec<EvalRule>,
    /// Contexts to report, ascending multiples of 512; a window is as long as the last. A context is judged by the tokens that have half of it, up to all
    /// of it, before them.
    #[arg(long, value_delimiter = ',', value_name = "TOKENS")]
    contexts: Vec<usize>,
    /// Windows of the text.
    #[arg(long, default_value_t = 1)]
    windows: usize,
    /// Attention is dense before this position, and tokens are judged from it on: a multiple of 256.
    #[arg(long, value_name = "TOKENS")]
    start: Option<usize>,
    /// Lengths of the samples of tasks: 2048,4096,8192 if nothing else is said.
    #[arg(long, value_delimiter = ',', value_name = "TOKENS")]
    task_lengths: Vec<usize>,
    /// Where needles lie, in percent of the context: 10,50,90 if nothing else is said.
    #[arg(long, value_delimiter = ',', value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    task_depths: Vec<u8>,
    /// Samples of each task, length and depth: 2 if nothing else is said.
    #[arg(long, value_name = "SAMPLES")]
    task_samples: Option<usize>,
    /// Hold the answers of every so many-th query, in every layer, against dense attention in f64; 0 for none.
    #[arg(long, value_name = "QUERIES", default_value_t = 256)]
    measured: usize,
    /// Tokens to decode with each rule.
    #[arg(long, value_name = "TOKENS")]
    decoded: Option<usize>,
    /// A GGUF file, a Hugging Face folder, or `smollm2`, which is fetched once.
    #[arg(long, default_value = fetch::SMOLLM2)]
    model: String,
    /// The text; without it, 34,000 tokens of Newton's Opticks.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// A configuration of Hira attention in TOML, JSON or YAML; each rule replaces its own. Without it every query from the start on is answered by its
    /// rule: the planner, which goes dense where that is faster, is off.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder with captures (*.safetensors with q, k and v). Without them nothing is measured on recorded keys.
    #[arg(long, env = "HIRA_CAPTURES", default_value = "../shared/captures")]
    captures: PathBuf,
    /// Stretch rotary positions: linear=F, ntk=F, dynamic=F or yarn=F, as in yarn=2.
    #[arg(long, value_name = "KIND=F")]
    rope_scaling: Option<RopeStretch>,
    /// Forget what earlier runs with the same settings measured.
    #[arg(long)]
    fresh: bool,
    /// Folder for the journal, the tables and the plots.
    #[arg(long, default_value = "target/hira-eval")]
    out: PathBuf,
    /// Where the model runs.
    #[arg(long, value_enum, default_value_t)]
    device: DeviceName,
}

/// A part of the evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The text, read with every rule.
    Text,
    /// Tokens decoded from one prompt.
    Decoding,
    /// The long windows of `--long`.
    Long,
    /// The recorded keys.
    Captures,
    /// Passkey and RULER-style tasks.
    Tasks,
}

/// Rules to read with if none are named, the most telling first, and with `--quick`.
const RULES: &str = "mass=0.99,top-k=256,mass=0.95,mass=0.95+comp,mass=0.99+comp,top-k=256+comp,streaming=256,quest=256,h2o=256,mass=0.9,mass=0.999,top-k=64,top-k=512,top-k=128,percentile=2,adaptive=2,sample-max,sample-top-k=256,sample-mean-max=0.5,sample-gap,budget=2";
const QUICK_RULES: &str =
    "mass=0.99,mass=0.95,mass=0.95+comp,top-k=256,top-k=256+comp,streaming=256";

/// Rules to decode with if none are named, and with `--quick`.
const DECODING: &str = "mass=0.99,mass=0.95,mass=0.95+comp,mass=0.99+comp,top-k=256,top-k=256+comp,mass=0.9,mass=0.999";
const QUICK_DECODING: &str = "mass=0.99,mass=0.95+comp";

/// Rules to answer tasks with if none are named.
const TASK_RULES: &str =
    "mass=0.99,mass=0.95+comp,top-k=256,top-k=256+comp,streaming=256,quest=256,h2o=256";

/// A window of `--long`, and its contexts.
const LONG: [usize; 5] = [2048, 4096, 8192, 12288, 16384];

/// Rules that `--long` reads with where positions are stretched.
const LONG_RULES: &str = "mass=0.99,top-k=256";

fn main() -> ExitCode {
    program::main(|| run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<()> {
    // Everything that can be refused without reading weights comes first.
    arguments.device.check()?;
    let haystack = match &arguments.text {
        Some(file) => fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None => TEXT.to_owned(),
    };
    let path = fetch::resolve(&arguments.model, &mut |message| eprintln!("{message}"))?;
    let text = ModelFile::open(&path)?.tokenizer()?.encode(&haystack)?;
    let plans = arguments.plans()?;
    for (evaluation, group) in &plans {
        evaluation.check(&group.contexts, text.len())?;
    }
    let out = &arguments.out;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let model = path.file_name().unwrap_or(path.as_os_str());
    let config = arguments.config.as_ref().map(fs::read_to_string);
    let config = config.transpose()?;
    let settings = (model.to_string_lossy(), &text, arguments.start(), config);
    let settings = match arguments.rope_scaling {
        None => fingerprint(&settings)?,
        // records of tasks do not say how positions were stretched
        Some(stretch) => fingerprint(&(settings, stretch.to_string()))?,
    };
    if arguments.wants(Part::Captures) {
        measure_captures(&arguments.captures, arguments.fresh, out)?;
    }
    let journal = Journal::open(&out.join("journal.jsonl"), &settings, arguments.fresh)
        .with_context(|| format!("cannot use the journal in {}", out.display()))?;
    run_on(
        arguments.device,
        Work {
            header: arguments.header(&model.to_string_lossy(), text.len()),
            out: out.clone(),
            path,
            text,
            tasks: arguments
                .wants(Part::Tasks)
                .then(|| arguments.tasks())
                .transpose()?,
            haystack,
            base: plans[0].0.base.clone(),
            plans,
            journal,
        },
    )?
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    fn start(&self) -> usize {
        self.start.unwrap_or(1024)
    }

    /// What is asked of the model.
    fn tasks(&self) -> Result<TaskPlan> {
        let rules = match self.rules.as_slice() {
            [] => TASK_RULES
                .split(',')
                .map(str::parse)
                .collect::<Result<_, _>>()?,
            given => given.to_vec(),
        };
        let mut plan = TaskPlan {
            tasks: Task::ALL.to_vec(),
            lengths: self.task_lengths.clone(),
            depths: self.task_depths.iter().copied().map(usize::from).collect(),
            samples: self.task_samples.unwrap_or(if self.quick { 1 } else { 2 }),
            rules,
        };
        if plan.lengths.is_empty() {
            plan.lengths = vec![2048, 4096, 8192];
        }
        if self.quick {
            plan.tasks = vec![Task::Passkey, Task::Needle];
            plan.lengths.truncate(1);
        }
        if plan.depths.is_empty() {
            plan.depths = if self.quick {
                vec![50]
            } else {
                vec![10, 50, 90]
            };
        }
        Ok(plan)
    }

    /// What to evaluate, and how it is reported.
    fn plans(&self) -> Result<Vec<(Evaluation, Group)>> {
        let named = |given: &[EvalRule], quick: &str, usual: &str| {
            if !given.is_empty() {
                return Ok(given.to_vec());
            }
            let words = if self.quick { quick } else { usual };
            words.split(',').map(str::parse).collect::<Result<_, _>>()
        };
        let contexts = match (self.contexts.as_slice(), self.quick) {
            ([], true) => vec![2048],
            ([], false) => vec![2048, 4096, 8192],
            (given, _) => given.to_vec(),
        };
        let len = contexts.iter().copied().max().unwrap_or(0);
        let start = self.start();
        let base = match &self.config {
            Some(path) => HiraAttentionConfig::from_file(path)
                .with_context(|| format!("cannot use {}", path.display()))?,
            None => HiraAttentionConfig {
                plan: PlanPolicy::Sparse,
                ..HiraAttentionConfig::new()
            },
        };
        let usual = if self.quick { 64 } else { 500 };
        let evaluation = Evaluation {
            positions: self
                .rope_scaling
                .map_or_else(|| "own".to_owned(), |stretch| stretch.to_string()),
            rules: named(&self.rules, QUICK_RULES, RULES)?,
            len,
            windows: if self.wants(Part::Text) {
                self.windows
            } else {
                0
            },
            start,
            measured: self.measured,
            decoding: named(&self.decoding_rules, QUICK_DECODING, DECODING)?,
            decoded: match self.wants(Part::Decoding) {
                true => self.decoded.unwrap_or(usual),
                false => 0,
            },
            base: HiraAttentionConfig {
                use_hira_during_prefill: true,
                min_sparse_len: start,
                ..base
            },
        };
        let mut plans = vec![(evaluation.clone(), group(&evaluation, contexts, ""))];
        if self.long || self.parts.contains(&Part::Long) {
            let rules: Vec<EvalRule> = named(&self.rules, LONG_RULES, LONG_RULES)?;
            for (stretch, rules) in [("none=2", vec![EvalRule::Dense]), ("yarn=2", rules)] {
                let long = Evaluation {
                    positions: stretch.to_owned(),
                    rules,
                    len: LONG[LONG.len() - 1],
                    windows: 1,
                    decoded: 0,
                    ..evaluation.clone()
                };
                let prefix = format!("{}-16k-", stretch.replace('=', "-"));
                plans.push((long.clone(), group(&long, LONG.to_vec(), &prefix)));
            }
        }
        Ok(plans)
    }

    fn header(&self, model: &str, tokens: usize) -> String {
        format!(
            "# Fidelity{}\n\nModel {model}, text of {tokens} tokens ({}), {}. Tokens are judged from position {} on, where attention by the rule begins; a context of \
             n means the tokens that have n/2 to n before them. \"Over dense\" is the perplexity above the dense one at the last context, with one standard error.\n",
            if self.quick { " (short run)" } else { "" },
            match &self.text {
                Some(file) => file.display().to_string(),
                None => "Newton's Opticks, book I".to_owned(),
            },
            match &self.config {
                Some(file) => format!("configuration {}", file.display()),
                None => "every query by its rule (the planner is off), 4 sinks and a window of 64"
                    .to_owned(),
            },
            self.start(),
        )
    }
}

fn group(evaluation: &Evaluation, contexts: Vec<usize>, prefix: &str) -> Group {
    let positions = match evaluation.positions.as_str() {
        "own" => String::new(),
        positions => format!(", positions {positions}"),
    };
    Group {
        title: format!("Windows of {} tokens{positions}", evaluation.len),
        prefix: prefix.to_owned(),
        positions: evaluation.positions.clone(),
        len: evaluation.len,
        contexts,
    }
}

/// Everything that does not depend on the device.
struct Work {
    path: PathBuf,
    out: PathBuf,
    header: String,
    text: Vec<u32>,
    plans: Vec<(Evaluation, Group)>,
    /// Questions, the prose that needles lie in, and the configuration they are answered with.
    tasks: Option<TaskPlan>,
    haystack: String,
    base: HiraAttentionConfig,
    journal: Journal<Record>,
}

impl OnDevice for Work {
    type Output = Result<()>;

    fn run<B: HiraBackend>(mut self, device: &B::Device) -> Result<()> {
        let left = |(plan, _): &(Evaluation, Group)| plan.tokens_left(&self.journal);
        let bar = ProgressBar::new(self.plans.iter().map(left).sum::<usize>() as u64).with_style(
            ProgressStyle::with_template(
                "{elapsed_precise} [{bar:24}] {pos}/{len}, {eta} left: {msg}",
            )?
            .progress_chars("=> "),
        );
        let groups: Vec<Group> = self.plans.iter().map(|(_, group)| group.clone()).collect();
        for (plan, _) in &self.plans {
            if plan.tokens_left(&self.journal) == 0 {
                continue;
            }
            let mut model = load::<B>(&self.path, &plan.positions, device)?;
            let (text, journal) = (&self.text, &mut self.journal);
            plan.run(&mut model, text, journal, device, &mut |event| {
                match event {
                    // where there is no bar, as in a log, hours should not pass without a word
                    Event::Begin(what) if bar.is_hidden() => eprintln!("{what}"),
                    Event::Begin(what) => bar.set_message(what),
                    Event::Tokens(tokens) => bar.inc(tokens as u64),
                }
                bar.tick();
            })?;
            write_report(&self.header, self.journal.records(), &groups, &self.out)?;
        }
        self.ask::<B>(device, &bar)?;
        bar.finish_and_clear();
        let text = write_report(&self.header, self.journal.records(), &groups, &self.out)?;
        println!("{text}\nwritten to {}", self.out.display());
        Ok(())
    }
}

impl Work {
    /// Asks what the journal does not know.
    fn ask<B: HiraBackend>(&mut self, device: &B::Device, bar: &ProgressBar) -> Result<()> {
        let Some(tasks) = &self.tasks else {
            return Ok(());
        };
        let pairs: Vec<(Sample, String)> = {
            let pairs = tasks.samples().into_iter();
            let pairs = pairs.flat_map(|sample| {
                let rules = tasks.rules.iter().map(EvalRule::to_string);
                rules.map(move |rule| (sample, rule))
            });
            let is_new = |(sample, rule): &(Sample, String)| {
                !self.journal.has(|one| one.is_task(rule, sample))
            };
            pairs.filter(is_new).collect()
        };
        if pairs.is_empty() {
            return Ok(());
        }
        bar.reset();
        bar.set_length(pairs.len() as u64);
        bar.set_message("answers to tasks");
        if bar.is_hidden() {
            eprintln!("{} answers to tasks", pairs.len());
        }
        let own = &self.plans[0].0.positions;
        let mut model = load::<B>(&self.path, own, device)?;
        let tokenizer = ModelFile::open(&self.path)?.tokenizer()?;
        let is_done = |sample: &Sample, rule: &EvalRule| {
            let rule = rule.to_string();
            !pairs
                .iter()
                .any(|(new, known)| new == sample && *known == rule)
        };
        let (journal, mut failed) = (&mut self.journal, None);
        tasks::run(
            &mut model,
            &tokenizer,
            tasks,
            &self.haystack,
            &self.base,
            device,
            &is_done,
            &mut |score| {
                failed = failed.take().or(journal.add(Record::Task(score)).err());
                bar.inc(1);
            },
        )?;
        failed.map_or(Ok(()), |error| {
            Err(error).context("cannot write the journal")
        })
    }
}

/// Measures rules on recorded keys, unless an earlier run did.
fn measure_captures(folder: &Path, fresh: bool, out: &Path) -> Result<()> {
    let done = out.join("captures.csv").is_file();
    if done && !fresh {
        return Ok(());
    }
    if !folder.is_dir() {
        eprintln!(
            "no captures in {}: recorded keys are not measured",
            folder.display()
        );
        return Ok(());
    }
    let bar = ProgressBar::new_spinner();
    let rows = captures::run(folder, &Contender::defaults()?, &mut |what| {
        bar.set_message(what.to_owned());
        bar.tick();
    })?;
    bar.finish_and_clear();
    captures::write(out, &rows)
}

/// The model with its positions stretched.
fn load<B: HiraBackend>(path: &Path, positions: &str, device: &B::Device) -> Result<Llama<B>> {
    let source = ModelFile::open(path)?;
    let source = match positions.parse() {
        Ok(stretch) => source.stretched(stretch),
        // `own`
        Err(_) => source,
    };
    Ok(Llama::load(&source, device, &mut |_, _| {})?)
}
