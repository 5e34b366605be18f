//! Times one decode step's attention: Hira beside dense attention, cold and warm, every answer checked.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hira_attention::HiraBackend;
use hira_examples::{
    bench::{
        Ceilings, Conditions, Library, Outcome, Problem, Scenario, Turns, Work, chosen, export,
        last_level_cache, measure_search, measure_step, plots, report,
    },
    device::{DeviceName, OnDevice, run_on},
    program,
};
use indicatif::{ProgressBar, ProgressStyle};

/// Times one decode step's attention (append, threshold, search, exact scores, softmax, values, certificate) against dense attention
/// on the same tensors, and one head's search; measures what the machine can do at best in the same run. All contenders take turns in
/// one loop; every timed answer is compared with brute force.
#[derive(Debug, Parser)]
struct Arguments {
    /// The short list of scenarios, fewer calls of each: under two minutes.
    #[arg(long)]
    quick: bool,
    /// Only the scenarios whose name contains this, of the short list or not. Without --list nothing else is measured.
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Print the names of the scenarios and end.
    #[arg(long)]
    list: bool,
    /// Folder with captures (*.safetensors with k, q and v, names ending in layerNN). Without them rows are synthetic, and the table says so.
    #[arg(long, env = "HIRA_CAPTURES", default_value = "../shared/captures")]
    captures: PathBuf,
    /// The backend.
    #[arg(long, default_value = "flex")]
    device: DeviceName,
    /// Calls of a contender that count in a scenario, about; 120, with --quick 60.
    #[arg(long)]
    samples: Option<usize>,
    /// Folder for results.csv, results.md and the plots.
    #[arg(long, default_value = "target/hira-bench")]
    out: PathBuf,
    /// Write the rows of the scenarios that other programs run to this folder too.
    #[arg(long, value_name = "FOLDER")]
    export: Option<PathBuf>,
}

/// Rows of queries that a scenario can have: the captures' 128, less those that stand for further query heads of a group.
const MOST_ROWS: usize = 96;

/// Above this context a scenario has few calls: a step over a gigabyte takes as long as a thousand short ones.
const FEW_CALLS: usize = 128 << 10;

struct Bench {
    arguments: Arguments,
    scenarios: Vec<Scenario>,
    library: Library,
    cache: usize,
}

impl OnDevice for Bench {
    type Output = Result<Vec<Outcome>>;

    fn run<B: HiraBackend>(self, device: &B::Device) -> Self::Output {
        let bar = ProgressBar::new(self.scenarios.len() as u64).with_style(
            ProgressStyle::with_template("{elapsed_precise} [{bar:24}] {pos}/{len} {msg}")?
                .progress_chars("=> "),
        );
        let mut outcomes = Vec::new();
        for scenario in &self.scenarios {
            let name = scenario.name();
            bar.set_message(format!("{name}: rows"));
            bar.tick();
            let measured = self
                .measure::<B>(scenario, device, &bar)
                .with_context(|| name.clone())?;
            for one in &measured {
                let ratio = one.over_dense.unwrap_or_default();
                let line = format!(
                    "{name:34} {:17} {:20} {} threads {:10.1} us {ratio:6.2}x",
                    one.rule,
                    one.label(),
                    one.threads,
                    one.micros.median
                );
                bar.suspend(|| println!("{line}"));
            }
            outcomes.extend(measured);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(outcomes)
    }
}

impl Bench {
    fn measure<B: HiraBackend>(
        &self,
        scenario: &Scenario,
        device: &B::Device,
        bar: &ProgressBar,
    ) -> Result<Vec<Outcome>> {
        let usual = if self.arguments.quick { 60 } else { 120 };
        let most = if scenario.len > FEW_CALLS { 12 } else { usual };
        let samples = self.arguments.samples.unwrap_or(most);
        let copies = scenario.copies(self.cache);
        let mut turns = Turns::new(samples, copies, 1, scenario.warm, MOST_ROWS);
        // The token after those that are timed fills a segment where the context is a multiple of its length. That step seals the segment: one
        // in thousands, which would be a quarter of what is timed here.
        let problem = Problem::of(scenario, &self.library, turns.rows + 1)?;
        turns.rows = problem.rows - 1;
        if let Some(folder) = &self.arguments.export
            && scenario.peers
        {
            export(scenario, &problem, copies, folder).context("cannot export the rows")?;
        }
        let name = scenario.name();
        let progress = |done: usize, all: usize| {
            bar.set_message(format!("{name}: {done} of {all} calls"));
            bar.tick();
        };
        Ok(match scenario.work {
            Work::Step => measure_step::<B>(scenario, &problem, turns, device, &progress)?,
            Work::Search => measure_search(scenario, &problem, turns, &progress)?,
        })
    }
}

fn main() -> ExitCode {
    program::main(|| run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<()> {
    let scenarios = chosen(arguments.quick, arguments.only.as_deref());
    if arguments.list {
        for scenario in &scenarios {
            println!("{}", scenario.name());
        }
        return Ok(());
    }
    ensure!(
        !scenarios.is_empty(),
        "no scenario has `{}` in its name; --list shows them",
        arguments.only.as_deref().unwrap_or_default()
    );
    let library = Library::open(&arguments.captures)?;
    let out = arguments.out.clone();
    for folder in [Some(&out), arguments.export.as_ref()]
        .into_iter()
        .flatten()
    {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let ceilings = match &arguments.only {
        Some(_) => None,
        None => Some(ceilings(&library)?),
    };
    let conditions = Conditions {
        kernel: hira_kernels::Kernel::best().name(),
        threads: rayon::current_num_threads(),
        device: format!("{:?}", arguments.device),
        cache: last_level_cache(),
        quick: arguments.quick,
    };
    let bench = Bench {
        cache: conditions.cache,
        library,
        scenarios,
        arguments,
    };
    let device = bench.arguments.device;
    let outcomes = run_on(device, bench)??;

    let text = report(&conditions, ceilings.as_ref(), &outcomes);
    let lines: Vec<String> = outcomes.iter().map(Outcome::csv).collect();
    let csv = format!("{}\n{}\n", Outcome::CSV_HEADER, lines.join("\n"));
    fs::write(out.join("results.csv"), csv)?;
    fs::write(out.join("results.md"), &text)?;
    plots(&outcomes, ceilings.as_ref(), &out)?;
    println!("\n{text}\nwritten to {}", out.display());
    Ok(())
}

/// The ceilings, with the first layer that scenarios use for the keys of the scans.
fn ceilings(library: &Library) -> Result<Ceilings> {
    eprintln!("ceilings of this machine: memory, int8 products, the sketch scan, cold rows");
    let name = "smollm2/layer14/8192";
    let scenario = chosen(false, Some(name))
        .into_iter()
        .find(|one| one.name() == name);
    let scenario = scenario.context("the list has lost the scenario of the captures")?;
    let head = Problem::of(&scenario, library, 2)?;
    Ok(Ceilings::measure(&head))
}
