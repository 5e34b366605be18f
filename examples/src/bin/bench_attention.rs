//! Times one decode step's attention: Hira beside dense attention, cold, every answer checked.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use hira_attention::{AttentionReport, HeadPlan, HiraAttentionConfig, HiraBackend, Metrics};
use hira_examples::{
    bench::{
        Contender, ContenderError, Outcome, Problem, Source, Spread, burn_attention,
        burn_operations, dense, hira, markdown, stream_read_gb_per_s,
    },
    capture::Capture,
    device::{DeviceName, OnDevice, run_on},
};

/// Times one decode step's attention (append, threshold, search, exact scores, softmax, values, certificate) against dense attention
/// on the same tensors. Each contender rotates over as many copies of the data as SmolLM2 has layers, so that caches are cold as in
/// a real step; all take turns in one loop; every timed answer is compared with brute force.
#[derive(Debug, Parser)]
struct Arguments {
    /// A run of under two minutes: fewer contexts, fewer steps.
    #[arg(long)]
    quick: bool,
    /// Folder with captures (*.safetensors with k, q and v). Without one, keys are synthetic, and the table says so.
    #[arg(long, env = "HIRA_CAPTURES", default_value = "../shared/captures")]
    captures: PathBuf,
    /// The backend.
    #[arg(long, default_value = "flex")]
    device: DeviceName,
    /// Folder for results.csv and results.md.
    #[arg(long, default_value = "target/hira-bench")]
    out: PathBuf,
}

/// Copies of the data: SmolLM2's layers.
const COPIES: usize = 30;

/// What to measure on one problem.
struct Case {
    problem: Problem,
    rules: Vec<(String, HiraAttentionConfig)>,
}

struct Bench {
    cases: Vec<Case>,
    rounds: usize,
}

impl OnDevice for Bench {
    type Output = Result<Vec<Outcome>>;

    fn run<B: HiraBackend>(self, device: &B::Device) -> Self::Output {
        let mut outcomes = Vec::new();
        for case in &self.cases {
            let problem = &case.problem;
            eprintln!("{} keys, {}", problem.len, name(&problem.source));
            let mut contenders = vec![
                burn_attention::<B>(problem, COPIES, device),
                burn_operations::<B>(problem, COPIES, device),
                dense::<B>(problem, COPIES, device)?,
            ];
            for (_, config) in &case.rules {
                contenders.push(hira::<B>(config.clone(), problem, COPIES, device)?);
            }
            let rules: Vec<&str> = ["dense"; 3]
                .into_iter()
                .chain(case.rules.iter().map(|(rule, _)| rule.as_str()))
                .collect();
            outcomes.extend(measure(problem, &mut contenders, &rules, self.rounds)?);
        }
        Ok(outcomes)
    }
}

/// Times every contender on every copy, row after row.
fn measure(
    problem: &Problem,
    contenders: &mut [Contender<'_>],
    rules: &[&str],
    rounds: usize,
) -> Result<Vec<Outcome>> {
    let mut micros = vec![Vec::new(); contenders.len()];
    let mut metrics = vec![Metrics::default(); contenders.len()];
    let largest = problem
        .values
        .iter()
        .fold(0.0_f32, |max, x| max.max(x.abs()));
    // a dense f32 sum over n values errs by less than this
    let allowed = 1e-4 * f64::from(largest);
    for row in 0..rounds {
        let answers: Vec<Answers> = contenders
            .iter()
            .map(|contender| Answers::of(problem, row, contender))
            .collect();
        for copy in 0..COPIES {
            for (i, contender) in contenders.iter_mut().enumerate() {
                let (out, seconds, report) = (contender.call)(copy, row)?;
                let error = answers[i].error(&out, report.as_ref(), problem.dim);
                if error > allowed {
                    let name = contender.name;
                    return Err(ContenderError::Wrong {
                        name,
                        error,
                        allowed,
                    }
                    .into());
                }
                // the first round warms up buffers and branch predictors
                if row > 0 {
                    micros[i].push(seconds * 1e6);
                    if let Some(report) = &report {
                        metrics[i].add(report);
                    }
                }
            }
        }
    }
    let spreads: Vec<Spread> = micros
        .into_iter()
        .map(|micros| Spread::of(micros).context("at least two rounds are needed"))
        .collect::<Result<_>>()?;
    let burn_best = spreads[0].median.min(spreads[1].median);
    let dense_bytes = (2 * problem.kv_heads * problem.len * problem.dim * size_of::<f32>()) as f64;
    Ok(contenders
        .iter()
        .zip(&spreads)
        .zip(&metrics)
        .zip(rules)
        .map(|(((contender, spread), metrics), rule)| Outcome {
            data: name(&problem.source).to_owned(),
            len: problem.len,
            rule: (*rule).to_owned(),
            name: contender.name,
            micros: *spread,
            speedup: burn_best / spread.median,
            density: metrics.density(),
            scanned_fraction: metrics.scanned_fraction(),
            dropped_mass_bound: f64::from(metrics.worst().dropped_mass_bound),
            dense_gb_per_s: contender
                .config
                .is_none()
                .then(|| dense_bytes / spread.median / 1e3),
        })
        .collect())
}

/// Brute-force answers to one row of queries.
struct Answers {
    /// Over the rule's selection, where there is a rule.
    sparse: Option<Vec<f64>>,
    /// Over every key that the contender holds.
    dense: Vec<f64>,
}

impl Answers {
    fn of(problem: &Problem, row: usize, contender: &Contender<'_>) -> Self {
        let sparse = contender
            .config
            .as_ref()
            .map(|config| problem.answer(row, Some(config)));
        // an engine sees what is stored so far, Burn's contenders every key
        let dense = match contender.appends {
            true => problem.answer(row, Some(&all_visible())),
            false => problem.answer(row, None),
        };
        Self { sparse, dense }
    }

    /// Largest difference from the answer that each head's plan asks for.
    fn error(&self, out: &[f32], report: Option<&AttentionReport>, dim: usize) -> f64 {
        if out.len() != self.dense.len() {
            return f64::INFINITY;
        }
        let heads = out.chunks_exact(dim).enumerate().map(|(head, out)| {
            let plan = report.map(|report| report.heads[head].plan);
            let answer = match (plan, &self.sparse) {
                (Some(HeadPlan::Sparse), Some(sparse)) => sparse,
                _ => &self.dense,
            };
            let answer = &answer[head * dim..(head + 1) * dim];
            let differences = out
                .iter()
                .zip(answer)
                .map(|(a, b)| (f64::from(*a) - b).abs());
            differences.fold(0.0, f64::max)
        });
        heads.fold(0.0, f64::max)
    }
}

/// A rule that keeps every visible key.
fn all_visible() -> HiraAttentionConfig {
    HiraAttentionConfig::new().with_threshold(f32::NEG_INFINITY)
}

fn name(source: &Source) -> &str {
    match source {
        Source::Capture(name) => name,
        Source::Synthetic => "synthetic",
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let rounds = if arguments.quick { 6 } else { 16 };
    let cases = cases(&arguments, rounds)?;
    let ceiling = stream_read_gb_per_s();
    let bench = Bench { cases, rounds };
    let outcomes = run_on(arguments.device, bench)??;

    let table = markdown(&outcomes);
    let kernel = hira_kernels::Kernel::best().name();
    let threads = rayon::current_num_threads();
    let text = format!(
        "One decode step's attention, cold (rotating over {COPIES} copies), append included for hira and dense (ours); {threads} threads, \
         kernel {kernel}, device {:?}.\nA plain read of memory reaches {ceiling:.1} GB/s on these threads.\n\n{table}",
        arguments.device
    );
    println!("{text}");
    fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot create {}", arguments.out.display()))?;
    let csv: Vec<String> = outcomes.iter().map(Outcome::csv).collect();
    fs::write(
        arguments.out.join("results.csv"),
        format!("{}\n{}\n", Outcome::CSV_HEADER, csv.join("\n")),
    )?;
    fs::write(arguments.out.join("results.md"), &text)?;
    println!("written to {}", arguments.out.display());
    Ok(())
}

fn cases(arguments: &Arguments, rounds: usize) -> Result<Vec<Case>> {
    let top = |k: usize| {
        (
            format!("top-k={k}"),
            HiraAttentionConfig::new().with_top_k(k),
        )
    };
    let percentile = (
        "percentile=2".to_owned(),
        HiraAttentionConfig::new().with_percentile(2.0),
    );
    let contexts: &[usize] = if arguments.quick {
        &[512, 2048, 8192]
    } else {
        &[512, 1024, 2048, 4096, 8192]
    };
    let mut captures: Vec<PathBuf> = match fs::read_dir(&arguments.captures) {
        Ok(entries) => entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect(),
        Err(_) => Vec::new(),
    };
    captures.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "safetensors")
    });
    captures.sort();
    let mut cases = Vec::new();
    for path in &captures {
        let capture =
            Capture::read(path).with_context(|| format!("cannot use {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let sweep = name.ends_with("layer14");
        for &len in contexts {
            if len != 8192 && !sweep {
                continue;
            }
            if let Some(problem) = Problem::from_capture(&name, &capture, len, rounds) {
                let rules = if sweep {
                    vec![top(256), top(64), percentile.clone()]
                } else {
                    vec![top(256)]
                };
                cases.push(Case { problem, rules });
            }
        }
    }
    if cases.is_empty() {
        eprintln!(
            "no captures in {}: keys are synthetic",
            arguments.captures.display()
        );
        for &len in contexts {
            cases.push(Case {
                problem: Problem::synthetic(3, 3, len, 64, rounds),
                rules: vec![top(256), top(64), percentile.clone()],
            });
        }
    }
    Ok(cases)
}
