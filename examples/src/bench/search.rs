//! One head searched for one query, without values: Hira beside a brute force that knows no sketch, every set checked.

use std::time::Instant;

use hira_index::{HierarchicalIndex, IndexConfig, IndexError};
use hira_kernels::Kernel;
use hira_search::{
    HalfspaceSearcher, Plan, PlanChoice, Scratch, SearchConfig, SearchError, SearchStats, Selection,
};
use hira_threshold::ThresholdRule;

use super::{
    Outcome, Problem, Scenario, Spread, Turns, oracle::best, projection::Projection,
    step::with_ratios,
};

/// Keys that a search is to find.
pub(super) const WANTED: usize = 256;

/// Bytes of a tile's parameters and norm for each of its sixteen keys.
const SKETCH_BYTES: usize = 4;

/// Why a search cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum SearchBenchError {
    /// The index refused the keys.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The searcher refused the query.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The set is not that of brute force.
    #[error("{name}, {rule}, row {row}: the set is not that of brute force")]
    Wrong {
        /// The contender.
        name: &'static str,
        /// The rule.
        rule: &'static str,
        /// The row of queries.
        row: usize,
    },
}

/// One way to search.
struct Contender {
    name: &'static str,
    rule: &'static str,
    threads: usize,
    searcher: HalfspaceSearcher,
    /// One scratch a copy: each remembers its own last query.
    scratches: Vec<Scratch>,
    /// Whether the index with clusters is searched.
    clusters: bool,
    micros: Vec<f64>,
    stats: Vec<SearchStats>,
}

/// A fixed threshold that the same keys reach as the top 256 (and ties).
const FIXED: &str = "tau of top-256";
const TOP: &str = "top-k=256";

/// Times the search of the scenario's first head for its first query head: a fixed threshold (the score of the 256th key) and the top
/// 256, on one thread and on all.
///
/// The sketch alone, the planner's choice over an index with clusters, and the dense plan, which is brute force with the fastest
/// kernel.
///
/// # Errors
///
/// [`SearchBenchError`] if an index or a searcher refuses, or if a set is wrong.
pub fn measure_search(
    scenario: &Scenario,
    problem: &Problem,
    mut turns: Turns,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Outcome>, SearchBenchError> {
    let filled = |levels| -> Result<HierarchicalIndex, IndexError> {
        let config = IndexConfig::new(problem.dim).with_num_levels(levels);
        let mut index = HierarchicalIndex::new(config)?;
        index.append(&problem.keys)?;
        Ok(index)
    };
    let copies = |levels| -> Result<Vec<HierarchicalIndex>, IndexError> {
        (0..turns.copies).map(|_| filled(levels)).collect()
    };
    let (sketches, clustered) = (copies(1)?, copies(3)?);
    let mut contenders = contenders(turns.copies)?;
    turns.contenders = contenders.len();
    let calls = turns.copies * turns.rows * turns.contenders;
    let (mut done, mut projection) = (0, Projection::new());
    for block in turns.blocks() {
        let expected: Vec<Expected> = block
            .clone()
            .map(|row| Expected::of(problem, row))
            .collect();
        for turn in turns.of(block.clone()) {
            let contender = &mut contenders[turn.contender];
            let indexes = if contender.clusters {
                &clustered
            } else {
                &sketches
            };
            let expected = &expected[turn.row - block.start];
            let rule = match contender.rule {
                TOP => ThresholdRule::TopK { k: WANTED },
                _ => ThresholdRule::Fixed { tau: expected.tau },
            };
            let query = &problem.queries_of(turn.row)[..problem.dim];
            let mut out = Selection::default();
            projection.run();
            let start = Instant::now();
            contender.searcher.search_group_with(
                &indexes[turn.copy],
                query,
                problem.len,
                &rule,
                0.0,
                &mut contender.scratches[turn.copy],
                std::slice::from_mut(&mut out),
            )?;
            let seconds = start.elapsed().as_secs_f64();
            if !expected.is(&out, contender.rule) {
                let (name, rule, row) = (contender.name, contender.rule, turn.row);
                return Err(SearchBenchError::Wrong { name, rule, row });
            }
            if turn.counted {
                contender.micros.push(seconds * 1e6);
                contender.stats.push(out.stats);
            }
            done += 1;
        }
        progress(done, calls);
    }
    let outcomes = contenders
        .into_iter()
        .filter_map(|contender| outcome(scenario, problem, turns, contender));
    Ok(with_ratios(outcomes.collect()))
}

fn contenders(copies: usize) -> Result<Vec<Contender>, SearchError> {
    let mut contenders = Vec::new();
    let all = rayon::current_num_threads();
    let names = [
        ("brute force (ours)", PlanChoice::Force(Plan::Dense), false),
        ("hira (sketch)", PlanChoice::Force(Plan::SketchScan), false),
        ("hira (clusters)", PlanChoice::Auto, true),
    ];
    for (name, plan, clusters) in names {
        for rule in [FIXED, TOP] {
            if plan == PlanChoice::Force(Plan::Dense) && rule == TOP {
                // scores every key whatever the rule
                continue;
            }
            for threads in if all > 1 { vec![1, all] } else { vec![1] } {
                let config = SearchConfig::default()
                    .with_plan(plan)
                    .with_parallel(threads > 1);
                contenders.push(Contender {
                    name,
                    rule,
                    threads,
                    searcher: HalfspaceSearcher::new(config)?,
                    scratches: (0..copies).map(|_| Scratch::new()).collect(),
                    clusters,
                    micros: Vec::new(),
                    stats: Vec::new(),
                });
            }
        }
    }
    Ok(contenders)
}

/// What brute force finds.
struct Expected {
    /// Score of the last of the best.
    tau: f32,
    top: Vec<usize>,
    reaching: Vec<usize>,
    scores: Vec<f32>,
}

impl Expected {
    fn of(problem: &Problem, row: usize) -> Self {
        let query = &problem.queries_of(row)[..problem.dim];
        let mut scores = vec![0.0; problem.len];
        Kernel::best().scores_into(
            query,
            &problem.keys[..problem.len * problem.dim],
            &mut scores,
        );
        let top = best(&scores, WANTED);
        let tau = top.iter().map(|&i| scores[i]).fold(f32::INFINITY, f32::min);
        let reaching = (0..scores.len()).filter(|&i| scores[i] >= tau).collect();
        Self {
            tau,
            top,
            reaching,
            scores,
        }
    }

    /// Whether positions and score bits are the same.
    fn is(&self, found: &Selection, rule: &str) -> bool {
        let expected = if rule == TOP {
            &self.top
        } else {
            &self.reaching
        };
        let pairs = found.positions.iter().zip(&found.scores);
        found.positions.len() == expected.len()
            && pairs.zip(expected).all(|((&position, score), &expected)| {
                position as usize == expected && score.to_bits() == self.scores[expected].to_bits()
            })
    }
}

fn outcome(
    scenario: &Scenario,
    problem: &Problem,
    turns: Turns,
    contender: Contender,
) -> Option<Outcome> {
    let count = contender.stats.len().max(1) as f64;
    let mean =
        |part: fn(&SearchStats) -> f64| contender.stats.iter().map(part).sum::<f64>() / count;
    let row = (problem.dim * size_of::<f32>()) as f64;
    let sketch = (problem.dim + SKETCH_BYTES) as f64;
    let bytes =
        mean(|stats| stats.scanned as f64) * sketch + mean(|stats| stats.survivors as f64) * row;
    let dense = contender.name.starts_with("brute force");
    Some(Outcome {
        scenario: scenario.name(),
        source: problem.source,
        kv_heads: 1,
        group: 1,
        dim: problem.dim,
        len: problem.len,
        copies: turns.copies,
        warm: scenario.warm,
        threads: contender.threads,
        rule: if dense { "dense" } else { contender.rule }.to_owned(),
        name: contender.name.to_owned(),
        precision: "f32",
        samples: contender.stats.len(),
        over_dense: None,
        over_burn: None,
        density: mean(SearchStats::density),
        scanned_fraction: mean(SearchStats::scanned_fraction),
        dropped_mass_bound: None,
        bytes,
        micros: Spread::of(contender.micros)?,
    })
}
