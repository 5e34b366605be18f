//! A decode step's attention: contenders built, timed in turns, every answer checked.

use hira_attention::{AttentionReport, HeadPlan, HiraAttentionConfig, HiraBackend, Metrics};
use hira_kernels::Precision;
use hira_threshold::ThresholdRule;

use super::{
    Answers, Contender, ContenderError, Data, Outcome, Problem, Scenario, Scope, Spread, Turns,
    contender::{burn_attention, burn_operations, engine, filled, layers},
    density::mass_of_best,
    projection::Projection,
};

/// Bytes of a tile's parameters and norm for each of its sixteen keys.
const SKETCH_BYTES: f64 = 4.25;

/// Above this many bytes of keys and values, the sparse contenders of a scenario share one cache's memory: each starts from a clone of it.
const OWN_MEMORY: usize = 1 << 29;

/// Everything that one contender's calls came to.
#[derive(Default)]
struct Measured {
    micros: Vec<f64>,
    metrics: Metrics,
    bytes: f64,
}

/// Times a scenario's contenders: Burn's where they take part, our own dense attention, Hira with each rule, and once more with the first of them and
/// nothing that stands in for the tail.
///
/// The output with each rule must be as near to dense attention as its certificate says. That it selects what the rule says is checked
/// beside the timing, by the same steps without compensation, whose output is known to rounding.
///
/// `progress` is called after every block of calls with the calls made so far and all there will be.
///
/// # Errors
///
/// [`ContenderError`] if an engine refuses, or if an answer is wrong.
pub fn measure_step<B: HiraBackend>(
    scenario: &Scenario,
    problem: &Problem,
    mut turns: Turns,
    device: &B::Device,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Outcome>, ContenderError> {
    let mut rules = scenario.rules.clone();
    if let (true, Some(&ThresholdRule::TopK { k })) = (scenario.by_mass, rules.first()) {
        rules.push(ThresholdRule::Mass {
            mass: mass_of_best(problem, k)?,
        });
    }
    let mut configs: Vec<_> = rules
        .into_iter()
        .map(|rule| config(scenario, rule))
        .collect();
    let plain = |config: &HiraAttentionConfig| config.clone().with_tail_compensation(false);
    let mut checks = Vec::new();
    for (number, config) in configs.iter().enumerate() {
        let config = plain(config);
        let cache = filled(&config, problem, 1)?;
        checks.push(engine::<B>(&config, number, cache, problem, device)?);
    }
    configs.extend(configs.first().map(plain));
    let mut contenders = Vec::new();
    if scenario.has_burn() {
        let layers = layers::<B>(problem, turns.copies, device);
        contenders.push(burn_attention::<B>(layers.clone(), problem, device));
        contenders.push(burn_operations::<B>(layers, problem, device));
    }
    let dense = HiraAttentionConfig::dense().with_precision(scenario.precision);
    // without an index, which dense attention has no use for
    let cache = filled(&dense, problem, turns.copies)?;
    contenders.push(engine::<B>(&dense, 0, cache, problem, device)?);
    let mut shared = None;
    for (number, config) in configs.iter().enumerate() {
        let bytes = turns.copies * scenario.kv_bytes();
        let cache = match &shared {
            Some(cache) => Clone::clone(cache),
            None => filled(config, problem, turns.copies)?,
        };
        if bytes > OWN_MEMORY {
            shared.get_or_insert_with(|| cache.clone());
        }
        contenders.push(engine::<B>(config, number, cache, problem, device)?);
    }
    drop(shared);
    turns.contenders = contenders.len();
    let measured = take_turns(
        problem,
        scenario.precision,
        (&mut contenders, &mut checks),
        &configs,
        turns,
        progress,
    )?;
    Ok(outcomes(scenario, problem, turns, &contenders, measured))
}

/// The defaults with this rule. Over generated rows heads are never sent to the dense plan for the mass that the rule drops: they are
/// flatter than recorded ones, and the longer the flatter, so that the figures would be of the dense plan.
fn config(scenario: &Scenario, rule: ThresholdRule) -> HiraAttentionConfig {
    let mut config = HiraAttentionConfig::new()
        .with_rule(rule)
        .with_precision(scenario.precision);
    if scenario.data == Data::Generated {
        config.max_dropped_mass = 1.0;
    }
    config
}

fn take_turns(
    problem: &Problem,
    precision: Precision,
    (contenders, checks): (&mut [Contender<'_>], &mut [Contender<'_>]),
    configs: &[HiraAttentionConfig],
    turns: Turns,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Measured>, ContenderError> {
    let mut measured: Vec<Measured> = contenders.iter().map(|_| Measured::default()).collect();
    let configs: Vec<_> = configs.iter().collect();
    let all = contenders.iter().any(|one| one.scope == Scope::All);
    let largest = problem
        .values
        .iter()
        .fold(0.0_f32, |max, x| max.max(x.abs()));
    // a dense f32 sum over n values errs by less than this
    let allowed = 1e-4 * f64::from(largest);
    let calls = turns.copies * turns.rows * turns.contenders;
    let (mut done, mut projection) = (0, Projection::new());
    for block in turns.blocks() {
        let answers: Vec<Answers> = block
            .clone()
            .map(|row| Answers::of(problem, row, &configs, all))
            .collect();
        for (row, answers) in block.clone().zip(&answers) {
            for contender in &mut *checks {
                checked(contender, (0, row), answers, problem.dim, allowed)?;
            }
        }
        for turn in turns.of(block.clone()) {
            let contender = &mut contenders[turn.contender];
            let answers = &answers[turn.row - block.start];
            let call = (turn.copy, turn.row);
            projection.run();
            let (seconds, report) = checked(contender, call, answers, problem.dim, allowed)?;
            if turn.counted {
                let measured = &mut measured[turn.contender];
                measured.micros.push(seconds * 1e6);
                measured.bytes += bytes_read(report.as_ref(), problem, precision);
                if let Some(report) = &report {
                    measured.metrics.add(report);
                }
            }
            done += 1;
        }
        progress(done, calls);
    }
    Ok(measured)
}

/// Takes a step on a copy and a row; an error if its answer is not right. Returns the seconds it took, and the report.
fn checked(
    contender: &mut Contender<'_>,
    (copy, row): (usize, usize),
    answers: &Answers,
    dim: usize,
    allowed: f64,
) -> Result<(f64, Option<AttentionReport>), ContenderError> {
    let (out, seconds, report) = (contender.call)(copy, row)?;
    let error = error(answers, contender.scope, &out, report.as_ref(), dim);
    if error.is_nan() || error > allowed {
        return Err(ContenderError::Wrong {
            name: contender.name,
            error,
            allowed,
        });
    }
    Ok((seconds, report))
}

fn outcomes(
    scenario: &Scenario,
    problem: &Problem,
    turns: Turns,
    contenders: &[Contender<'_>],
    measured: Vec<Measured>,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (contender, measured) in contenders.iter().zip(measured) {
        let samples = measured.micros.len();
        let Some(micros) = Spread::of(measured.micros) else {
            continue;
        };
        outcomes.push(Outcome {
            scenario: scenario.name(),
            source: problem.source,
            kv_heads: problem.kv_heads,
            group: problem.group,
            dim: problem.dim,
            len: problem.len,
            copies: turns.copies,
            warm: scenario.warm,
            threads: rayon::current_num_threads(),
            rule: contender.rule.clone(),
            name: contender.name.to_owned(),
            precision: scenario.precision.name(),
            samples,
            over_dense: None,
            over_burn: None,
            density: measured.metrics.density(),
            scanned_fraction: measured.metrics.scanned_fraction(),
            dropped_mass_bound: Some(f64::from(measured.metrics.worst().dropped_mass_bound)),
            bytes: measured.bytes / samples as f64,
            micros,
        });
    }
    with_ratios(outcomes)
}

/// Fills in what each contender gains over the best dense one of its precision, and over Burn's best.
pub(super) fn with_ratios(mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
    let best = |chosen: &dyn Fn(&Outcome) -> bool, outcomes: &[Outcome]| {
        let medians = outcomes.iter().filter(|one| chosen(one));
        medians.map(|one| one.micros.median).min_by(f64::total_cmp)
    };
    let is_burn =
        |one: &Outcome| ["module::attention", "tensor operations"].contains(&one.name.as_str());
    for i in 0..outcomes.len() {
        let (precision, threads) = (outcomes[i].precision, outcomes[i].threads);
        let alike =
            |one: &Outcome| one.is_dense() && (one.precision, one.threads) == (precision, threads);
        let median = outcomes[i].micros.median;
        let over = |best: Option<f64>| best.map(|best| best / median);
        outcomes[i].over_dense = over(best(&alike, &outcomes));
        outcomes[i].over_burn = over(best(&is_burn, &outcomes));
    }
    outcomes
}

/// Bytes of keys, values and sketch that a step's plan reads; every key and value without a report.
fn bytes_read(report: Option<&AttentionReport>, problem: &Problem, precision: Precision) -> f64 {
    let row = (problem.dim * precision.bytes()) as f64;
    let Some(report) = report else {
        return (problem.kv_heads * problem.len) as f64 * 2.0 * row;
    };
    let groups = report.heads.chunks(problem.group);
    let bytes = groups.map(|group| {
        let visible = group[0].visible as f64;
        if group[0].plan == HeadPlan::Dense {
            return visible * 2.0 * row;
        }
        let gathered = group
            .iter()
            .map(|head| (head.survivors + head.attended) as f64);
        visible * (problem.dim as f64 + SKETCH_BYTES) + gathered.sum::<f64>() * row
    });
    bytes.sum()
}

/// Largest difference from the answer that each head's plan asks for; of a certified answer how much farther from dense attention it is than its
/// certificate says.
fn error(
    answers: &Answers,
    scope: Scope,
    out: &[f32],
    report: Option<&AttentionReport>,
    dim: usize,
) -> f64 {
    if out.len() != answers.visible.len() {
        return f64::INFINITY;
    }
    let heads = out.chunks_exact(dim).enumerate().map(|(head, out)| {
        let said = report.map(|report| &report.heads[head]);
        let plan = said.map(|head| head.plan);
        let answer = match (scope, plan) {
            (Scope::All, _) => answers.all.as_ref().unwrap_or(&answers.visible),
            (Scope::Selected(number), Some(HeadPlan::Sparse)) => &answers.selected[number],
            _ => &answers.visible,
        };
        let answer = &answer[head * dim..(head + 1) * dim];
        if let (Scope::Certified, Some(said)) = (scope, said) {
            let squares = out
                .iter()
                .zip(answer)
                .map(|(a, b)| (f64::from(*a) - b).powi(2));
            let distance = squares.sum::<f64>().sqrt();
            return (distance - f64::from(said.worst.output_error_bound)).max(0.0);
        }
        let differences = out
            .iter()
            .zip(answer)
            .map(|(a, b)| (f64::from(*a) - b).abs());
        differences.fold(0.0, larger)
    });
    heads.fold(0.0, larger)
}

/// The larger one; NaN if either is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}
