//! Histories of indexes: what is done to them as plain data, and the check that every search finds what brute force finds.
//!
//! A test, the soak and the fuzzer share it, so a program that uses it mounts `mod.rs` as `common` and this file as `history`.
#![allow(dead_code, reason = "every program uses a part")]

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};
use hira_index::{
    BuilderConfig, DynamicUpdater, HierarchicalIndex, IncrementalUpdater, IndexConfig, IndexError,
    KMeansBuilder, KMeansStart, KdAxis, KdTreeBuilder, ProductConfig, RandomizedBuilder,
    RebuildTrigger, RebuildUpdater, UpdateConfig,
};
use hira_kernels::{Kernel, MAX_NORM, Precision};
use hira_search::{HalfspaceSearcher, Scratch, SearchConfig, SearchError, Selection};
use hira_threshold::ThresholdRule;

use crate::common::{PLANS, ROWS, Rows, check_blocks, rows, tail_block};

pub(crate) mod oracle;
pub(crate) mod report;
pub(crate) mod source;

use oracle::{RULES, Seen};
pub(crate) use report::Report;
use report::{count, note_ways, size};

/// A way to build and update an index; every one must give the same answers.
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    apply: fn(IndexConfig) -> IndexConfig,
}

/// Every way to build and update an index.
pub(crate) const VARIANTS: &[Variant] = &[
    variant("k-means", |config| config),
    variant("k-means, spherical", |config| {
        config.with_builder(BuilderConfig::KMeans(KMeansBuilder {
            start: KMeansStart::Random,
            spherical: true,
            nredo: 2,
            max_iterations: 3,
            ..KMeansBuilder::default()
        }))
    }),
    variant("randomized", |config| {
        config.with_builder(BuilderConfig::Randomized(RandomizedBuilder::default()))
    }),
    variant("kd-tree", |config| {
        config.with_builder(BuilderConfig::KdTree(KdTreeBuilder::default()))
    }),
    variant("kd-tree, principal, in the background", |config| {
        let builder = KdTreeBuilder {
            axis: KdAxis::Principal,
        };
        config
            .with_builder(BuilderConfig::KdTree(builder))
            .with_background(true)
    }),
    variant("chunks", |config| config.with_builder(BuilderConfig::Chunk)),
    variant("product codes", |config| {
        let product = ProductConfig::default()
            .with_subvectors(5)
            .with_max_iterations(2)
            .with_train(500);
        config.with_product(Some(product))
    }),
    variant("product codes of chunks", |config| {
        let product = ProductConfig::default()
            .with_bits(8)
            .with_max_iterations(1)
            .with_train(300);
        config
            .with_builder(BuilderConfig::Chunk)
            .with_product(Some(product))
    }),
    variant("rebuilt always", |config| {
        let trigger = RebuildTrigger::Always;
        config
            .with_builder(BuilderConfig::Randomized(RandomizedBuilder::default()))
            .with_update(UpdateConfig::Rebuild(RebuildUpdater { trigger }))
    }),
    variant("rebuilt every 37", |config| {
        let trigger = RebuildTrigger::EveryN { n: 37 };
        config.with_update(UpdateConfig::Rebuild(RebuildUpdater { trigger }))
    }),
    variant("rebuilt by growth, in the background", |config| {
        let trigger = RebuildTrigger::Growth { ratio: 0.1 };
        config
            .with_update(UpdateConfig::Rebuild(RebuildUpdater { trigger }))
            .with_background(true)
    }),
    variant("incremental", |config| {
        config.with_update(UpdateConfig::Incremental(IncrementalUpdater {
            every: 29,
            rebuild_every: 4,
        }))
    }),
    variant("incremental, in the background", |config| {
        config
            .with_update(UpdateConfig::Incremental(IncrementalUpdater::default()))
            .with_background(true)
    }),
    variant("dynamic", |config| {
        config.with_update(UpdateConfig::Dynamic(DynamicUpdater {
            base: 32,
            ..DynamicUpdater::default()
        }))
    }),
    variant("dynamic, in the background", |config| {
        config
            .with_update(UpdateConfig::Dynamic(DynamicUpdater {
                base: 16,
                ..DynamicUpdater::default()
            }))
            .with_background(true)
    }),
    variant("f16", |config| config.with_precision(Precision::F16)),
    variant("bf16", |config| config.with_precision(Precision::Bf16)),
    variant("f16, product codes, dynamic, in the background", |config| {
        config
            .with_precision(Precision::F16)
            .with_product(Some(ProductConfig::default().with_subvectors(3)))
            .with_update(UpdateConfig::Dynamic(DynamicUpdater {
                base: 24,
                ..DynamicUpdater::default()
            }))
            .with_background(true)
    }),
    variant("bf16, kd-tree, incremental", |config| {
        config
            .with_precision(Precision::Bf16)
            .with_builder(BuilderConfig::KdTree(KdTreeBuilder::default()))
            .with_update(UpdateConfig::Incremental(IncrementalUpdater {
                every: 13,
                rebuild_every: 3,
            }))
    }),
    variant("sketched from 100 keys on", |config| {
        config.with_sketch_from(100)
    }),
    variant(
        "sketched from 333 keys on, dynamic, in the background",
        |config| {
            config
                .with_sketch_from(333)
                .with_update(UpdateConfig::Dynamic(DynamicUpdater {
                    base: 40,
                    ..DynamicUpdater::default()
                }))
                .with_background(true)
        },
    ),
    variant("sketched from 77 keys on, bf16, incremental", |config| {
        config
            .with_sketch_from(77)
            .with_precision(Precision::Bf16)
            .with_update(UpdateConfig::Incremental(IncrementalUpdater {
                every: 53,
                rebuild_every: 3,
            }))
    }),
];

const fn variant(name: &'static str, apply: fn(IndexConfig) -> IndexConfig) -> Variant {
    Variant { name, apply }
}

/// Dimensions, many of them no multiple of 16.
pub(crate) const DIMS: [u16; 16] = [
    1, 2, 3, 7, 15, 16, 17, 31, 33, 48, 64, 80, 100, 128, 255, 256,
];
pub(crate) const BRANCHING: [u8; 6] = [2, 3, 8, 16, 32, 64];
pub(crate) const SEGMENT_LENS: [u32; 6] = [16, 48, 64, 256, 1024, 8192];
pub(crate) const MIN_COARSE_LENS: [u32; 3] = [0, 100, 1024];
/// Kinds of rows: those of `ROWS`, all keys equal, and norms just below the limit.
pub(crate) const CONTENTS: u8 = ROWS.len() as u8 + 2;
/// Softmax scales of a search; 0 asks for no tail.
const SCALES: [f32; 4] = [0.0, 0.125, 1.0, 1e-18];
/// Tails are compared where the exponentials of the oracle cost little.
const TAIL_KEYS: usize = 5_000;
/// Indexes that live side by side; a further fork replaces one.
const MAX_FORKS: usize = 3;
/// Keys compared one by one after a step; of a longer index, as many at equal distances.
const COMPARED_KEYS: usize = 512;

/// The index, and what its rows look like. Numbers that name an entry of a list count modulo its length.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shape {
    pub(crate) dim: u16,
    pub(crate) levels: u8,
    pub(crate) branching: u8,
    pub(crate) segment_len: u32,
    pub(crate) min_coarse_len: u32,
    pub(crate) variant: u8,
    pub(crate) kernel: u8,
    pub(crate) content: u8,
    pub(crate) seed: u8,
}

impl Shape {
    fn dim(&self) -> usize {
        usize::from(self.dim)
    }

    pub(crate) fn variant(&self) -> &'static Variant {
        nth(VARIANTS, self.variant)
    }

    fn config(&self) -> IndexConfig {
        let config = IndexConfig::new(self.dim())
            .with_num_levels(usize::from(self.levels))
            .with_branching_factor(usize::from(self.branching))
            .with_segment_len(self.segment_len as usize)
            .with_min_coarse_len(self.min_coarse_len as usize);
        (self.variant().apply)(config)
    }

    fn precision(&self) -> Precision {
        self.config().precision
    }

    /// Rows of this content that the precision can hold; the same `seed` gives the same rows again.
    fn rows(&self, content: u8, count: usize, seed: u8) -> Vec<f32> {
        let mut rows = self.rows_of_any_size(content, count, seed);
        match self.precision() {
            Precision::F32 => {}
            Precision::F16 => rows
                .iter_mut()
                .for_each(|x| *x = x.clamp(-65_504.0, 65_504.0)),
            // A norm just below the limit must not be rounded up to it.
            Precision::Bf16 => rows
                .iter_mut()
                .filter(|x| x.abs() > 1e15)
                .for_each(|x| *x *= 0.99),
        }
        rows
    }

    fn rows_of_any_size(&self, content: u8, count: usize, seed: u8) -> Vec<f32> {
        let seed = u64::from(self.seed) << 8 | u64::from(seed);
        let (dim, content) = (self.dim(), usize::from(content % CONTENTS));
        match ROWS.get(content) {
            Some(&kind) => rows(kind, count, dim, seed),
            None if content == ROWS.len() => {
                let one = rows(Rows::Plain, 1, dim, u64::from(self.seed));
                one.repeat(count)
            }
            None => {
                let mut keys = rows(Rows::Plain, count, dim, seed);
                for key in keys.chunks_exact_mut(dim) {
                    let square: f64 = key.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                    let factor = 0.999 * f64::from(MAX_NORM) / square.sqrt().max(1e-30);
                    key.iter_mut()
                        .for_each(|x| *x = (f64::from(*x) * factor) as f32);
                }
                keys
            }
        }
    }
}

/// What is stored of `keys`; nothing of the library computes it.
fn stored(precision: Precision, keys: &[f32]) -> Vec<f32> {
    let stored = |&x: &f32| match precision {
        Precision::F32 => x,
        Precision::F16 => f16::from_f32_const(x).to_f32_const(),
        Precision::Bf16 => bf16::from_f32_const(x).to_f32_const(),
    };
    keys.iter().map(stored).collect()
}

fn nth<T>(list: &[T], i: u8) -> &T {
    &list[usize::from(i) % list.len()]
}

/// A shape and what is done to indexes of it, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct History {
    pub(crate) shape: Shape,
    pub(crate) steps: Vec<Step>,
}

/// One operation on one of the indexes that a history has forked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    /// Which index, modulo their number.
    pub(crate) on: u8,
    pub(crate) op: Op,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    /// A batch of so many rows; the same seed gives the same rows, and so ties between segments.
    Append { rows: u32, seed: u8 },
    /// A batch that must be refused with the right error.
    Refused { rows: u8, flaw: Flaw, seed: u8 },
    /// `keep` thousandths of the keys, less `less` keys, stay.
    Truncate { keep: u16, less: u8 },
    /// The segments before so many thousandths of the keys go.
    Evict { before: u16 },
    /// Every key goes.
    Clear,
    /// The open segment is sealed, however short.
    Seal,
    /// A clone joins the indexes.
    Fork,
    /// A search with every plan.
    Search(Search),
}

/// Why a batch must be refused. It is found in the batch's last row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Flaw {
    Nan,
    Infinity,
    Norm,
    Ragged,
}

/// One group of queries, for every plan.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Search {
    pub(crate) queries: u8,
    pub(crate) query: Query,
    /// Visible keys: so many thousandths of all, less `hidden` keys.
    pub(crate) visible: u16,
    pub(crate) hidden: u8,
    /// Of those, so many thousandths in front are hidden too, and those that were evicted.
    pub(crate) front: u16,
    /// Which of the rules, and its amount in thousandths.
    pub(crate) rule: u8,
    pub(crate) amount: u16,
    /// `max_candidates`, less 1.
    pub(crate) limit: Option<u16>,
    pub(crate) scale: u8,
    pub(crate) parallel: bool,
    pub(crate) seed: u8,
}

/// Where the queries come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Query {
    /// Rows of a kind, which need not be that of the keys.
    Content(u8),
    /// Stored keys.
    Stored,
    /// Stored keys, negated: every other key is nearer.
    Opposite,
    Zero,
}

/// Why a history failed, and at which step.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) step: usize,
    pub(crate) what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}", self.step, self.what)
    }
}

/// Runs a history from empty indexes on; every step that changes one is validated if its number is a multiple of
/// `validate_every` (0: none).
///
/// One scratch serves all searches, whatever index they go to.
pub(crate) fn run(
    history: &History,
    validate_every: usize,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut step = 0;
    run_steps(history, validate_every, report, &mut step).map_err(|what| Failure { step, what })
}

/// `at` is the step that is being run.
fn run_steps(
    history: &History,
    validate_every: usize,
    report: &mut Report,
    at: &mut usize,
) -> Result<(), String> {
    let mut runner = Runner::new(&history.shape, validate_every, report)?;
    for (number, step) in history.steps.iter().enumerate() {
        *at = number;
        runner.step(number, step)?;
    }
    Ok(())
}

/// As [`run`], but a panic of the library is a failure too.
pub(crate) fn run_caught(
    history: &History,
    validate_every: usize,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut step = 0;
    let caught = panic::catch_unwind(AssertUnwindSafe(|| {
        run_steps(history, validate_every, report, &mut step)
    }));
    let ran = caught.unwrap_or_else(|_| {
        let mut last = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        Err(last.take().unwrap_or_else(|| "a panic".into()))
    });
    ran.map_err(|what| Failure { step, what })
}

static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps panics for [`run_caught`] instead of printing each.
pub(crate) fn keep_panics() {
    panic::set_hook(Box::new(|panic| {
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic.to_string());
    }));
}

/// Drops steps as long as what is left still fails, `attempts` times at most; returns the last history that did, and why.
pub(crate) fn shrink(
    history: &History,
    failure: Failure,
    mut attempts: usize,
) -> (History, Failure) {
    let mut smallest = (history.clone(), failure);
    smallest.0.steps.truncate(smallest.1.step.saturating_add(1));
    let mut at = smallest.0.steps.len();
    while at > 0 && attempts > 0 {
        at -= 1;
        attempts -= 1;
        let mut fewer = smallest.0.clone();
        fewer.steps.remove(at);
        if let Err(failure) = run_caught(&fewer, 1, &mut Report::default()) {
            smallest = (fewer, failure);
        }
    }
    smallest
}

/// An index and the keys that it must hold.
#[derive(Clone)]
struct Pair {
    index: HierarchicalIndex,
    keys: Arc<Vec<f32>>,
}

impl Pair {
    fn fork(&mut self) -> Self {
        Self {
            index: self.index.fork(),
            keys: Arc::clone(&self.keys),
        }
    }
}

struct Runner<'a> {
    shape: &'a Shape,
    validate_every: usize,
    report: &'a mut Report,
    pairs: Vec<Pair>,
    scratch: Scratch,
}

impl<'a> Runner<'a> {
    fn new(
        shape: &'a Shape,
        validate_every: usize,
        report: &'a mut Report,
    ) -> Result<Self, String> {
        let kernels: Vec<Kernel> = Kernel::available().collect();
        let index = HierarchicalIndex::with_kernel(shape.config(), *nth(&kernels, shape.kernel))
            .map_err(|error| format!("{:?} was refused: {error}", shape.config()))?;
        let keys = Arc::default();
        Ok(Self {
            shape,
            validate_every,
            report,
            pairs: vec![Pair { index, keys }],
            scratch: Scratch::new(),
        })
    }

    fn step(&mut self, number: usize, step: &Step) -> Result<(), String> {
        let on = usize::from(step.on) % self.pairs.len();
        let (dim, shape) = (self.shape.dim(), self.shape);
        let pair = &mut self.pairs[on];
        match &step.op {
            Op::Append { rows, seed } => {
                let keys = shape.rows(shape.content, *rows as usize, *seed);
                let appended = pair.index.append(&keys);
                appended.map_err(|error| format!("good keys were refused: {error}"))?;
                Arc::make_mut(&mut pair.keys).extend(stored(shape.precision(), &keys));
            }
            Op::Refused { rows, flaw, seed } => refused(shape, pair, *rows, *flaw, *seed)?,
            Op::Truncate { keep, less } => {
                let len = pair.index.len() * usize::from(*keep) / 1000;
                let len = len.saturating_sub(usize::from(*less));
                pair.index.truncate(len);
                Arc::make_mut(&mut pair.keys).truncate(len * dim);
            }
            Op::Evict { before } => {
                let before = pair.index.len() * usize::from(*before) / 1000;
                let held = pair.index.evicted();
                pair.index.evict(before);
                if !(held..=before.max(held)).contains(&pair.index.evicted()) {
                    return Err(format!("evicted {before}: {}", pair.index));
                }
            }
            Op::Clear => {
                pair.index.clear();
                pair.keys = Arc::default();
            }
            Op::Seal => pair.index.seal(),
            Op::Fork => {
                // a clone shares the open segment, a fork freezes it
                let fork = match number.is_multiple_of(2) {
                    true => pair.clone(),
                    false => pair.fork(),
                };
                match self.pairs.len() < MAX_FORKS {
                    true => self.pairs.push(fork),
                    false => self.pairs[(on + 1) % MAX_FORKS] = fork,
                }
            }
            Op::Search(search) => return self.search(on, search),
        }
        if self.validate_every > 0 && number.is_multiple_of(self.validate_every) {
            let changed = &self.pairs[on].index;
            let valid = changed.validate();
            valid.map_err(|error| format!("{error}\n{changed}"))?;
        }
        for pair in &self.pairs {
            check_keys(pair, dim)?;
            let levels = pair.index.segments().map(|segment| segment.levels().len());
            self.report.longest = self.report.longest.max(pair.index.len());
            self.report.reach((
                size(pair.index.len()),
                size(pair.index.segments().count()),
                size(pair.index.segments().last().map_or(0, |last| last.len())),
                levels.max(),
                self.pairs.len(),
                shape.variant,
            ));
        }
        Ok(())
    }

    fn search(&mut self, on: usize, search: &Search) -> Result<(), String> {
        let Pair { index, keys } = &self.pairs[on];
        let (dim, len) = (self.shape.dim(), index.len());
        let visible = len * usize::from(search.visible.min(1000)) / 1000;
        let end = visible.saturating_sub(usize::from(search.hidden));
        let first = end * usize::from(search.front.min(1000)) / 1000;
        let first = first.max(index.evicted().min(end));
        let (positions, visible) = (first..end, end - first);
        let queries = self.queries(keys, search);
        let scores: Vec<Vec<f32>> = queries
            .chunks_exact(dim)
            .map(|query| {
                let mut scores = vec![0.0; visible];
                Kernel::Scalar.scores_into(query, &keys[first * dim..end * dim], &mut scores);
                scores
            })
            .collect();
        let seen = |scores| Seen {
            index,
            first,
            scores,
        };
        let kind = nth(RULES, search.rule);
        let one = scores.first().map_or(&[][..], Vec::as_slice);
        let (rule, cut) = (kind.make)(usize::from(search.amount.min(1000)), &seen(one));
        let limit = search.limit.map(|limit| usize::from(limit) + 1);
        let expected: Vec<_> = scores
            .iter()
            .map(|scores| {
                let cut = cut(&seen(scores));
                let (mut selected, truncated) = oracle::select(cut, scores, limit);
                selected.iter_mut().for_each(|at| *at += first as u32);
                (cut, (selected, truncated))
            })
            .collect();
        let scale = *nth(&SCALES, search.scale);
        let mut out = vec![Selection::default(); scores.len()];
        let block_keys = tail_block(end);
        for plan in PLANS {
            let config = SearchConfig::default()
                .with_plan(plan)
                .with_tail_block(block_keys)
                .with_max_candidates(limit)
                .with_parallel(search.parallel);
            let refused = |error| format!("a good search was refused: {error}");
            let searcher = HalfspaceSearcher::new(config).map_err(refused)?;
            let scratch = &mut self.scratch;
            searcher
                .search_group_with(
                    index,
                    &queries,
                    positions.clone(),
                    &rule,
                    scale,
                    scratch,
                    &mut out,
                )
                .map_err(refused)?;
            for ((scores, (cut, expected)), found) in scores.iter().zip(&expected).zip(&out) {
                let tail = (scale, block_keys);
                let stored = index.positions().len();
                compare((first, scores), expected, tail, stored, found).map_err(|what| {
                    format!("{plan:?}, {rule}, {cut:?}, {positions:?}: {what}\n{index}")
                })?;
            }
            refused_searches(
                &searcher,
                index,
                &queries,
                &rule,
                &mut self.scratch,
                &mut out,
            )?;
            let checks = (visible * out.len()) as u64;
            count(self.report, self.shape, index, plan, kind.name, checks);
            for found in &out {
                note_ways(self.report, self.shape, kind.name, found);
            }
        }
        Ok(())
    }

    fn queries(&self, keys: &[f32], search: &Search) -> Vec<f32> {
        let (dim, count) = (self.shape.dim(), usize::from(search.queries));
        let len = keys.len() / dim;
        let stored = |factor: f32| -> Vec<f32> {
            let positions = (0..count).map(|i| (usize::from(search.seed) * 7 + i * 131) % len);
            positions
                .flat_map(|position| &keys[position * dim..(position + 1) * dim])
                .map(|&x| factor * x)
                .collect()
        };
        match search.query {
            Query::Content(content) => self.shape.rows(content, count, !search.seed),
            Query::Stored if len > 0 => stored(1.0),
            Query::Opposite if len > 0 => stored(-1.0),
            _ => vec![0.0; count * dim],
        }
    }
}

/// Appends a bad batch: the error must say where, and nothing may change.
fn refused(shape: &Shape, pair: &mut Pair, rows: u8, flaw: Flaw, seed: u8) -> Result<(), String> {
    let dim = shape.dim();
    let row = usize::from(rows);
    let mut batch = shape.rows(shape.content, row + 1, seed);
    let column = usize::from(seed) % dim;
    let at = row * dim + column;
    let expected = match flaw {
        // One value alone is a whole row, so nothing is ragged.
        Flaw::Ragged if dim > 1 => {
            batch.pop();
            IndexError::Dimension {
                expected: dim,
                received: batch.len(),
            }
        }
        Flaw::Norm => {
            let precision = shape.precision();
            // In bf16 both are to be had: what rounds to an infinity, and what rounds to the limit.
            let beyond = precision == Precision::Bf16 && seed % 2 == 1;
            batch[at] = match precision {
                _ if beyond => f32::MAX,
                Precision::Bf16 => MAX_NORM.next_down(),
                _ => MAX_NORM,
            };
            match beyond || precision == Precision::F16 {
                true => IndexError::Overflow {
                    row,
                    column,
                    precision,
                },
                false => IndexError::Magnitude { row },
            }
        }
        Flaw::Infinity => {
            batch[at] = f32::NEG_INFINITY;
            IndexError::NonFinite { row, column }
        }
        Flaw::Nan | Flaw::Ragged => {
            batch[at] = f32::NAN;
            IndexError::NonFinite { row, column }
        }
    };
    let before = pair.index.to_string();
    let answer = pair.index.append(&batch);
    if answer != Err(expected) {
        return Err(format!("{flaw:?} gave {answer:?}, expected {expected:?}"));
    }
    let after = pair.index.to_string();
    match before == after {
        true => Ok(()),
        false => Err(format!(
            "a refused batch changed the index:\n{before}\n{after}"
        )),
    }
}

/// Searches that must be refused with the right error, and must leave what was found before as it was.
fn refused_searches(
    searcher: &HalfspaceSearcher,
    index: &HierarchicalIndex,
    queries: &[f32],
    rule: &ThresholdRule,
    scratch: &mut Scratch,
    out: &mut [Selection],
) -> Result<(), String> {
    let (len, before) = (index.len(), out.to_vec());
    let mut bad = queries.to_vec();
    if let Some(last) = bad.last_mut() {
        *last = f32::NAN;
    }
    let not_finite = queries.len().checked_sub(1).map(|last| {
        let (query, column) = (last / index.dim(), last % index.dim());
        (&bad[..], len, SearchError::NonFinite { query, column })
    });
    let beyond = SearchError::Visible {
        visible: len + 1,
        stored: len,
    };
    let (first, evicted) = (index.evicted().wrapping_sub(1), index.evicted());
    let gone = (evicted > 0 && evicted < len).then_some((
        queries,
        first..len,
        SearchError::Evicted { first, evicted },
    ));
    let refused = not_finite.into_iter().chain([(queries, len + 1, beyond)]);
    let refused = refused.map(|(queries, end, expected)| (queries, evicted..end, expected));
    for (queries, positions, expected) in refused.chain(gone) {
        let answer = searcher.search_group_with(index, queries, positions, rule, 0.0, scratch, out);
        if answer != Err(expected.clone()) {
            return Err(format!("{answer:?}, expected {expected:?}"));
        }
        if *out != before {
            return Err(format!("{expected} changed what was found before"));
        }
    }
    Ok(())
}

/// The index holds exactly the keys that were appended and not taken back.
fn check_keys(pair: &Pair, dim: usize) -> Result<(), String> {
    let len = pair.keys.len() / dim;
    let Pair { index, keys } = pair;
    if index.len() != len || index.key(len).is_some() {
        return Err(format!(
            "the index holds {} keys, expected {len}",
            index.len()
        ));
    }
    let same = |position: usize| {
        let expected = &keys[position * dim..(position + 1) * dim];
        let bits = |key: &[f32]| key.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        index
            .key(position)
            .is_some_and(|key| bits(&key.widened()) == bits(expected))
    };
    let first = index.evicted();
    if first > 0 && index.key(first - 1).is_some() {
        return Err(format!("key {} was evicted", first - 1));
    }
    let step = (len - first).div_ceil(COMPARED_KEYS).max(1);
    match (first..len).step_by(step).find(|&position| !same(position)) {
        None => Ok(()),
        Some(position) => Err(format!("key {position} is not what was appended")),
    }
}

/// Says how a selection differs from brute force.
fn compare(
    (first, scores): (usize, &[f32]),
    expected: &(Vec<u32>, bool),
    (scale, block_keys): (f32, usize),
    stored: usize,
    found: &Selection,
) -> Result<(), String> {
    let (positions, truncated) = expected;
    if found.positions != *positions {
        let differs = |i: &usize| found.positions.get(*i) != positions.get(*i);
        let at = (0..positions.len().max(found.len())).find(differs);
        let entry = |positions: &[u32]| at.and_then(|at| positions.get(at).copied());
        return Err(format!(
            "{} keys selected, expected {}; number {at:?} is {:?}, expected {:?}: {:?}",
            found.len(),
            positions.len(),
            entry(&found.positions),
            entry(positions),
            found.stats
        ));
    }
    for (i, (&position, score)) in positions.iter().zip(&found.scores).enumerate() {
        let expected = scores[position as usize - first];
        if score.to_bits() != expected.to_bits() {
            return Err(format!("score {i} is {score:e}, expected {expected:e}"));
        }
    }
    let stats = found.stats;
    let counted = (
        found.scores.len(),
        stats.selected,
        stats.stored,
        stats.visible,
        stats.truncated,
    );
    let len = positions.len();
    if counted != (len, len, stored, scores.len(), *truncated) {
        return Err(format!("wrong counts: {stats:?}"));
    }
    if stats.survivors < len || stats.survivors > scores.len() {
        return Err(format!("impossible survivors: {stats:?}"));
    }
    if scores.len() > TAIL_KEYS {
        return Ok(());
    }
    check_blocks(first, scores, scale, block_keys, found)
        .and_then(|()| oracle::check_tail((first, scores), positions, scale, &found.tail))
        .map_err(|what| format!("{what}, scale {scale}: {stats:?}"))
}
