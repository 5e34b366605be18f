//! The memory of a search, owned by its caller.

use hira_kernels::{QueryGroup, SegmentOffsets, Spares, Team};

use crate::best_first::BestFirst;
use crate::blocks::Apart;
use crate::dense::DenseScores;
use crate::disk_keys::DiskKeys;
use crate::estimate::Sample;
use crate::group::Group;
use crate::history::{SearchHistory, Sought};
use crate::partition::Partition;
use crate::plan::{Decision, Plan, Shape, Work, choose};
use crate::product::ProductPass;
use crate::resolve::Resolving;
use crate::scan::{Part, Scan};
use crate::selection::{FirstThreshold, Selection};
use crate::settle::Target;
use crate::survivors::{Narrowed, Pass, Rescan, Rescoring, Working};
use crate::tree::Descent;
use crate::visible::Visible;
use crate::warm::WarmStart;

/// Buffers that [`HalfspaceSearcher::search_group_with`](crate::HalfspaceSearcher::search_group_with) reuses, and what it remembers.
///
/// Nothing is allocated in steady state. Any scratch gives the same answers for any index; what it remembers is of use for the next query
/// of the same KV head, so keep one scratch a head, or share one and lend it each head's [`SearchHistory`].
#[derive(Default)]
pub struct Scratch {
    pub(crate) resolving: Resolving,
    prepared: QueryGroup,
    norms: Vec<f32>,
    offsets: Vec<SegmentOffsets>,
    apart: Apart,
    warm: WarmStart,
    best_first: BestFirst,
    sample: Sample,
    /// Threshold of the current pass for each query; `+inf` once its selection is complete.
    taus: Vec<f32>,
    /// Where the first of them came from.
    firsts: Vec<FirstThreshold>,
    partition: Partition,
    descent: Descent,
    product: ProductPass,
    parts: Vec<Part>,
    rescoring: Vec<Rescoring>,
    /// Of the queries that are selected for at one time.
    working: Spares<Working>,
    /// Of each query whose survivors wait for the disk.
    narrowed: Vec<Option<Narrowed>>,
    disk: DiskKeys,
    dense: DenseScores,
    history: SearchHistory,
    /// What the last search read; time is left out.
    work: Work,
    /// How the last search was answered.
    pub(crate) last: Option<Decision>,
    pub(crate) team: Team,
}

impl Scratch {
    /// A scratch that owns nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes held, but for the prepared queries: constant once the largest search has been seen.
    pub fn memory_usage(&self) -> usize {
        let parts: usize = self.parts.iter().map(Part::memory_usage).sum();
        let rescoring: usize = self.rescoring.iter().map(Rescoring::memory_usage).sum();
        parts
            + rescoring
            + self.working.sum_of(Working::memory_usage)
            + self.resolving.memory_usage()
            + self.apart.memory_usage()
            + self.warm.memory_usage()
            + self.best_first.memory_usage()
            + self.sample.memory_usage()
            + self.partition.memory_usage()
            + self.descent.memory_usage()
            + self.product.memory_usage()
            + self.dense.memory_usage()
            + self.disk.memory_usage()
            + self.narrowed.capacity() * size_of::<Option<Narrowed>>()
            + 4 * (self.taus.capacity() + self.norms.capacity())
    }

    /// What this scratch remembers of the searches made with it.
    pub fn history(&self) -> &SearchHistory {
        &self.history
    }

    /// Exchanges what is remembered: before a search for the history of its head, and back after it.
    pub fn swap_history(&mut self, history: &mut SearchHistory) {
        std::mem::swap(&mut self.history, history);
    }

    /// Forgets the keys of the last search, whose queries are no predecessors of the next ones.
    pub fn forget_keys(&mut self) {
        self.history.forget_keys();
    }

    /// The plan for a group that wants neither everything nor nothing.
    pub(crate) fn choose(&mut self, group: &Group<'_>) -> Decision {
        choose(&Shape::of(group), &mut self.history)
    }

    pub(crate) fn work(&self) -> Work {
        self.work
    }

    /// Answers by scoring every visible key.
    pub(crate) fn search_dense(&mut self, group: &Group<'_>, team: &Team, out: &mut [Selection]) {
        self.work = Work {
            scored: group.visible() as f64,
            bytes: (group.visible() * group.row_bytes()) as f64,
            ..Work::default()
        };
        self.dense.fill(group, team);
        let (dense, working) = (&self.dense, &self.working);
        team.for_each(out.iter_mut().enumerate(), |(g, out)| {
            working.lend(|working| {
                dense.select(group, g, &mut working.settling, out);
                working.add_blocks(group, out);
            });
        });
    }

    /// Answers by the sketch, after pruning clusters if the plan is `Tree`, or tiles if it is `Product`.
    ///
    /// One pass is enough unless a guessed threshold was too high; then a second one starts from a proven threshold.
    pub(crate) fn search_sketch(
        &mut self,
        group: &Group<'_>,
        decision: Decision,
        team: &Team,
        out: &mut [Selection],
    ) {
        self.work = Work::default();
        self.rescoring.resize_with(group.len(), Rescoring::default);
        let states = self.rescoring.iter_mut();
        states.for_each(|rescoring| rescoring.mass.begin());
        self.prepare(group);
        self.first_taus(group, decision, team);
        loop {
            let scanned = self.divide(group, decision, team);
            self.scan(group, team);
            self.work.sketched += scanned as f64;
            for (out, &tau) in out.iter_mut().zip(&self.taus) {
                if tau < f32::INFINITY {
                    out.stats.scanned += scanned;
                }
            }
            self.select(group, team, out);
            if self.taus.iter().all(|&tau| tau == f32::INFINITY) {
                break;
            }
        }
        self.remember(group, out);
        let (row, dim) = (group.row_bytes() as f64, group.dim() as f64);
        let clusters = self.work.bounds / group.len() as f64;
        self.work.bytes +=
            self.work.sketched * (dim + 4.0) + clusters * 12.0 * dim + self.work.scored * row;
    }

    /// Keeps what the next search of this head can use.
    fn remember(&mut self, group: &Group<'_>, out: &mut [Selection]) {
        let states = self.rescoring.iter().zip(&self.firsts);
        for (g, ((rescoring, &first), (out, target))) in
            states.zip(out.iter_mut().zip(group.targets)).enumerate()
        {
            out.stats.first_threshold = first;
            self.work.scored += out.stats.survivors as f64;
            match *target {
                Target::AtLeast { .. } | Target::Mass { .. } => {
                    self.history.note_survivors(out.stats.scanned_fraction());
                }
                Target::Top { k, .. } => {
                    let candidates = out.stats.candidates as f64 / k as f64;
                    let guessed = first == FirstThreshold::Previous;
                    self.history
                        .note_warm(guessed.then_some((candidates, out.stats.rescanned)));
                    self.history
                        .note_scored(out.stats.survivors as f64 / k as f64);
                }
            }
            // The threshold that would have been right, by the keys that were or could have been remembered.
            let Some(sought) = target.sought() else {
                continue;
            };
            let found = match sought {
                Sought::Top(_) => Some(out.tail.reference),
                Sought::Mass(_) => rescoring.mass.certified(),
            };
            self.history.remember(g, rescoring.remembered());
            if let Some(tau) = found {
                let base = self.warm.base(g).unwrap_or(rescoring.base());
                let level = group.logits() * f64::from(tau) - base;
                self.history.note_level(g, sought, level);
            }
        }
    }

    fn prepare(&mut self, group: &Group<'_>) {
        self.prepared
            .prepare(group.kernel, group.queries, group.dim());
        self.apart.find(group.index, group.seen, group.tail_block);
        self.norms.clear();
        self.norms
            .extend((0..group.len()).map(|g| self.prepared.norm(g)));
        for (i, Visible { segment, .. }) in Visible::segments(group.index, group.seen).enumerate() {
            if i == self.offsets.len() {
                self.offsets.push(SegmentOffsets::default());
            }
            self.prepared
                .offsets_into(group.kernel, segment.centre(), &mut self.offsets[i]);
        }
    }

    /// The thresholds that the first pass starts from.
    ///
    /// A guess from the previous step's keys; else, for the best `k`, what the best clusters prove; else a guess from a sample of the sketch.
    fn first_taus(&mut self, group: &Group<'_>, decision: Decision, team: &Team) {
        self.taus.clear();
        self.firsts.clear();
        for target in group.targets {
            let (tau, first) = match *target {
                Target::AtLeast { tau, .. } => (tau, FirstThreshold::Given),
                Target::Top { .. } | Target::Mass { .. } => {
                    (f32::NEG_INFINITY, FirstThreshold::None)
                }
            };
            self.taus.push(tau);
            self.firsts.push(first);
        }
        let scan = Scan {
            group,
            prepared: &self.prepared,
            offsets: &self.offsets,
            apart: &self.apart,
        };
        self.warm.raise(group, &self.history, &mut self.taus, team);
        note_raised(&self.taus, &mut self.firsts, FirstThreshold::Previous);
        if decision.plan == Plan::Tree {
            self.best_first.raise(&scan, &self.norms, &mut self.taus);
            self.work.bounds += self.best_first.opened as f64;
            note_raised(&self.taus, &mut self.firsts, FirstThreshold::BestFirst);
        }
        self.sample.estimate(&scan, &mut self.taus);
        note_raised(&self.taus, &mut self.firsts, FirstThreshold::Sample);
    }

    /// Divides the tiles that must be read into parts, and counts their visible keys.
    fn divide(&mut self, group: &Group<'_>, decision: Decision, team: &Team) -> usize {
        self.partition.clear();
        self.descent.begin(group.len());
        if decision.plan == Plan::Product {
            self.product.mark(group, &self.prepared, &self.taus, team);
        }
        for (i, visible) in Visible::segments(group.index, group.seen).enumerate() {
            if decision.plan == Plan::Product {
                self.product
                    .push_tiles(i, &mut self.descent, &mut self.partition);
            } else {
                self.descent.push_tiles(
                    group,
                    &visible,
                    i,
                    decision.depth,
                    (&self.taus, &self.norms),
                    &mut self.partition,
                );
            }
        }
        if decision.plan == Plan::Product {
            self.work.coded += self.product.coded as f64;
            self.work.bytes += self.product.bytes as f64;
            self.history
                .note_product(self.product.coded, self.descent.skipped);
        }
        if decision.plan == Plan::Tree {
            let levels = &self.descent.levels[..decision.depth];
            let opened: usize = levels.iter().map(|level| level.0).sum();
            self.work.bounds += (opened * group.len()) as f64;
            self.history.note_descent(levels, self.descent.full);
        }
        group.visible() - self.descent.skipped
    }

    fn scan(&mut self, group: &Group<'_>, team: &Team) {
        let count = self.partition.len();
        if self.parts.len() < count {
            self.parts.resize_with(count, Part::default);
        }
        let scan = Scan {
            group,
            prepared: &self.prepared,
            offsets: &self.offsets,
            apart: &self.apart,
        };
        let (taus, partition) = (&self.taus, &self.partition);
        let work = |(i, part): (usize, &mut Part)| {
            part.begin(group, taus.iter().copied());
            part.scan(&scan, partition.part(i));
        };
        team.for_each(self.parts[..count].iter_mut().enumerate(), work);
    }

    /// Completes every query whose candidates suffice, and leaves a proven threshold for the others.
    ///
    /// Where keys are on disk the survivors of all queries are known before the first is scored, and read together.
    fn select(&mut self, group: &Group<'_>, team: &Team, out: &mut [Selection]) {
        let pass = Pass {
            group,
            parts: &self.parts[..self.partition.len()],
            skipped: &self.descent.tails,
            apart: &self.apart,
        };
        let spares = &self.working;
        let narrow = |working: &mut Working, g, query: &mut Query<'_>| {
            if *query.tau == f32::INFINITY {
                return None;
            }
            let narrowed = (query.rescoring).narrow(working, pass, (g, *query.tau), query.out);
            narrowed.map_err(|rescan| query.scan_again(rescan)).ok()
        };
        let settle = |working: &mut Working, g, query: &mut Query<'_>, narrowed, disk| {
            let narrowed = (g, *query.tau, narrowed);
            match (query.rescoring).settle(working, pass, narrowed, disk, query.out) {
                Ok(()) => *query.tau = f32::INFINITY,
                Err(rescan) => query.scan_again(rescan),
            }
        };
        let (rescoring, taus) = (&mut self.rescoring, &mut self.taus);
        if !DiskKeys::are_any(group) {
            let disk = &DiskKeys::default();
            let queries = queries(rescoring, taus, out).enumerate();
            team.for_each(queries, |(g, mut query)| {
                spares.lend(|working| {
                    if let Some(narrowed) = narrow(working, g, &mut query) {
                        settle(working, g, &mut query, narrowed, disk);
                    }
                });
            });
            return;
        }
        self.narrowed.clear();
        self.narrowed.resize(group.len(), None);
        let open = queries(rescoring, taus, out).zip(&mut self.narrowed);
        team.for_each(open.enumerate(), |(g, (mut query, narrowed))| {
            *narrowed = spares.lend(|working| narrow(working, g, &mut query));
        });
        let survivors = self.narrowed.iter().zip(&*out);
        let wanted = survivors.filter(|(narrowed, _)| narrowed.is_some());
        self.disk
            .read(group, wanted.map(|(_, out)| &out.positions[..]));
        let disk = &self.disk;
        let open = queries(rescoring, taus, out).zip(&self.narrowed);
        team.for_each(open.enumerate(), |(g, (mut query, narrowed))| {
            if let Some(narrowed) = *narrowed {
                spares.lend(|working| settle(working, g, &mut query, narrowed, disk));
            }
        });
    }
}

/// What selecting for one query changes.
struct Query<'a> {
    rescoring: &'a mut Rescoring,
    tau: &'a mut f32,
    out: &'a mut Selection,
}

fn queries<'a>(
    rescoring: &'a mut [Rescoring],
    taus: &'a mut [f32],
    out: &'a mut [Selection],
) -> impl Iterator<Item = Query<'a>> + Send {
    let states = rescoring.iter_mut().zip(taus).zip(out);
    states.map(|((rescoring, tau), out)| Query {
        rescoring,
        tau,
        out,
    })
}

impl Query<'_> {
    fn scan_again(&mut self, Rescan(tau): Rescan) {
        self.out.stats.rescanned = true;
        *self.tau = tau;
    }
}

/// Notes where the thresholds came from that are not `-inf` any more.
fn note_raised(taus: &[f32], firsts: &mut [FirstThreshold], source: FirstThreshold) {
    for (first, &tau) in firsts.iter_mut().zip(taus) {
        if *first == FirstThreshold::None && tau > f32::NEG_INFINITY {
            *first = source;
        }
    }
}
