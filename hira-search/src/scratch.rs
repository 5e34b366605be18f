//! The memory of a search, owned by its caller.

use hira_index::HierarchicalIndex;
use hira_kernels::{QueryGroup, SegmentOffsets};
use rayon::prelude::*;

use crate::dense::DenseScores;
use crate::estimate::Sample;
use crate::group::Group;
use crate::partition::Partition;
use crate::plan::{History, Plan, Shape};
use crate::product::{ProductPass, has_product};
use crate::scan::{Part, Scan};
use crate::selection::Selection;
use crate::settle::Target;
use crate::survivors::{Outcome, Rescoring};
use crate::tree::Descent;
use crate::visible::Visible;

/// Below this many visible keys a search stays on its thread. Measured at 8,192 keys, three KV heads of a layer as tasks on two cores: the
/// step takes 185 us with the third head's search split in two, 260 to 340 us without.
const PARALLEL_KEYS: usize = 4_096;

/// Buffers that [`HalfspaceSearcher::search_group_with`](crate::HalfspaceSearcher::search_group_with) reuses, and the planner's running counts.
///
/// Keep one for each KV head: its buffers then fit, nothing is allocated in steady state, and the planner's counts are of one kind of
/// query. Any scratch gives the same answers for any index.
#[derive(Default)]
pub struct Scratch {
    prepared: QueryGroup,
    norms: Vec<f32>,
    offsets: Vec<SegmentOffsets>,
    sample: Sample,
    /// Threshold of the current pass for each query; `+inf` once its selection is complete.
    taus: Vec<f32>,
    partition: Partition,
    descent: Descent,
    product: ProductPass,
    parts: Vec<Part>,
    rescoring: Vec<Rescoring>,
    dense: DenseScores,
    history: History,
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
            + self.sample.memory_usage()
            + self.partition.memory_usage()
            + self.descent.memory_usage()
            + self.product.memory_usage()
            + self.dense.memory_usage()
            + 4 * (self.taus.capacity() + self.norms.capacity())
    }

    /// The plan for a group that wants neither everything nor nothing.
    pub(crate) fn choose(&mut self, group: &Group<'_>) -> Plan {
        self.history.choose(Shape {
            visible: group.visible,
            dim: group.dim(),
            queries: group.len(),
            count: match group.target {
                Target::AtLeast { .. } => None,
                Target::Top { k, .. } => Some(k),
            },
            coarse: has_levels(group.index, group.visible),
            product: has_product(group.index, group.visible),
        })
    }

    /// Answers by scoring every visible key.
    pub(crate) fn search_dense(
        &mut self,
        group: &Group<'_>,
        parallel: bool,
        out: &mut [Selection],
    ) {
        let parallel = parallel && group.visible >= PARALLEL_KEYS;
        self.dense.fill(group, parallel);
        self.rescoring.resize_with(out.len(), Rescoring::default);
        let dense = &self.dense;
        let select = |(g, (rescoring, out)): (usize, (&mut Rescoring, &mut Selection))| {
            dense.select(group, g, &mut rescoring.settling, out);
        };
        if parallel {
            let queries = self.rescoring.par_iter_mut().zip(out.par_iter_mut());
            queries.enumerate().for_each(select);
        } else {
            let queries = self.rescoring.iter_mut().zip(out.iter_mut());
            queries.enumerate().for_each(select);
        }
    }

    /// Answers by the sketch, after pruning clusters if the plan is `Tree`, or tiles if it is `Product`.
    ///
    /// One pass is enough unless a guessed threshold was too high; then a second one starts from a proven threshold.
    pub(crate) fn search_sketch(
        &mut self,
        group: &Group<'_>,
        plan: Plan,
        parallel: bool,
        out: &mut [Selection],
    ) {
        let parallel = parallel && group.visible >= PARALLEL_KEYS;
        self.prepare(group);
        self.first_taus(group);
        loop {
            let scanned = self.divide(group, plan, parallel);
            self.scan(group, parallel);
            for (out, &tau) in out.iter_mut().zip(&self.taus) {
                if tau < f32::INFINITY {
                    out.stats.scanned += scanned;
                }
            }
            self.select(group, parallel, out);
            if self.taus.iter().all(|&tau| tau == f32::INFINITY) {
                break;
            }
        }
        if let Target::AtLeast { .. } = group.target {
            for out in out.iter() {
                self.history.note_survivors(out.stats.scanned_fraction());
            }
        }
    }

    fn prepare(&mut self, group: &Group<'_>) {
        self.prepared
            .prepare(group.kernel, group.queries, group.dim());
        self.norms.clear();
        self.norms
            .extend((0..group.len()).map(|g| self.prepared.norm(g)));
        for (i, Visible { segment, .. }) in
            Visible::segments(group.index, group.visible).enumerate()
        {
            if i == self.offsets.len() {
                self.offsets.push(SegmentOffsets::default());
            }
            self.prepared
                .offsets_into(group.kernel, segment.centre(), &mut self.offsets[i]);
        }
    }

    fn first_taus(&mut self, group: &Group<'_>) {
        self.taus.clear();
        self.taus.resize(group.len(), f32::NEG_INFINITY);
        match group.target {
            Target::AtLeast { tau, .. } => self.taus.fill(tau),
            Target::Top { k, .. } => {
                let scan = Scan {
                    group,
                    prepared: &self.prepared,
                    offsets: &self.offsets,
                };
                self.sample.estimate(&scan, k, &mut self.taus);
            }
        }
    }

    /// Divides the tiles that must be read into parts, and counts their visible keys.
    fn divide(&mut self, group: &Group<'_>, plan: Plan, parallel: bool) -> usize {
        self.partition.clear();
        self.descent.begin(group.len());
        if plan == Plan::Product {
            self.product
                .mark(group, &self.prepared, &self.taus, parallel);
        }
        for (i, visible) in Visible::segments(group.index, group.visible).enumerate() {
            if plan == Plan::Tree {
                self.descent.push_tiles(
                    group,
                    &visible,
                    i,
                    &self.taus,
                    &self.norms,
                    &mut self.partition,
                );
            } else if plan == Plan::Product {
                self.product
                    .push_tiles(i, &mut self.descent, &mut self.partition);
            } else {
                self.partition.push(i, 0..visible.tiles());
            }
        }
        if plan == Plan::Product {
            let (bytes, skipped) = (self.product.bytes, self.descent.skipped);
            self.history.note_product(group.visible, bytes, skipped);
        }
        if plan == Plan::Tree {
            let Descent {
                opened, skipped, ..
            } = self.descent;
            self.history
                .note_tree(group.visible, group.dim(), opened, skipped);
        }
        group.visible - self.descent.skipped
    }

    fn scan(&mut self, group: &Group<'_>, parallel: bool) {
        let count = self.partition.len();
        if self.parts.len() < count {
            self.parts.resize_with(count, Part::default);
        }
        let scan = Scan {
            group,
            prepared: &self.prepared,
            offsets: &self.offsets,
        };
        let (taus, partition) = (&self.taus, &self.partition);
        let work = |(i, part): (usize, &mut Part)| {
            part.begin(group.target, group.scale, taus.iter().copied());
            part.scan(&scan, partition.part(i));
        };
        let parts = &mut self.parts[..count];
        if parallel && count > 1 {
            parts.par_iter_mut().enumerate().for_each(work);
        } else {
            parts.iter_mut().enumerate().for_each(work);
        }
    }

    /// Completes every query whose candidates suffice, and leaves a proven threshold for the others.
    fn select(&mut self, group: &Group<'_>, parallel: bool, out: &mut [Selection]) {
        let queries = group.len();
        self.rescoring.resize_with(queries, Rescoring::default);
        let parts = &self.parts[..self.partition.len()];
        let skipped = &self.descent.tails;
        let work = |(g, ((rescoring, tau), out)): (
            usize,
            ((&mut Rescoring, &mut f32), &mut Selection),
        )| {
            if *tau == f32::INFINITY {
                return;
            }
            *tau = match rescoring.select(group, g, parts, (*tau, skipped[g]), out) {
                Outcome::Selected => f32::INFINITY,
                Outcome::Rescan(proven) => {
                    out.stats.rescanned = true;
                    proven
                }
            };
        };
        let taus = &mut self.taus;
        if parallel && queries > 1 {
            let states = self.rescoring.par_iter_mut().zip(taus.par_iter_mut());
            states.zip(out.par_iter_mut()).enumerate().for_each(work);
        } else {
            let states = self.rescoring.iter_mut().zip(taus.iter_mut());
            states.zip(out.iter_mut()).enumerate().for_each(work);
        }
    }
}

/// Whether a visible segment has coarse levels.
pub(crate) fn has_levels(index: &HierarchicalIndex, visible: usize) -> bool {
    Visible::segments(index, visible).any(|visible| !visible.segment.levels().is_empty())
}
