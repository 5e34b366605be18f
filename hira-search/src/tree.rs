//! The tree plan's descent: which tiles can hold a key that reaches the threshold.

use std::ops::Range;

use hira_index::{Level, Segment};
use hira_kernels::TILE;

use crate::group::Group;
use crate::partition::Partition;
use crate::plan::MAX_COARSE;
use crate::tail;
use crate::visible::Visible;

/// Buffers and counts of a descent.
#[derive(Debug, Default)]
pub(crate) struct Descent {
    /// Runs of clusters to be opened on this level and on the next one.
    runs: Vec<Range<u32>>,
    below: Vec<Range<u32>>,
    /// Bounds of one run, `[queries][clusters]`.
    run_bounds: Vec<f32>,
    /// One bit a tile of the current segment.
    marks: Vec<u64>,
    /// Slots of pruned clusters of the current segment, and their upper bound for each query.
    pruned: Vec<Range<u32>>,
    bounds: Vec<f32>,
    /// For each query, the weight of the keys in tiles that no part reads, relative to its threshold.
    pub(crate) tails: Vec<f64>,
    /// Clusters opened and clusters that stayed, on each level.
    pub(crate) levels: [(usize, usize); MAX_COARSE],
    /// Whether every segment that has levels was descended to its last one.
    pub(crate) full: bool,
    /// Visible keys in tiles that no part reads.
    pub(crate) skipped: usize,
}

impl Descent {
    pub(crate) fn memory_usage(&self) -> usize {
        let ranges = self.runs.capacity() + self.below.capacity() + self.pruned.capacity();
        ranges * size_of::<Range<u32>>()
            + 8 * (self.marks.capacity() + self.tails.capacity())
            + 4 * (self.bounds.capacity() + self.run_bounds.capacity())
    }

    /// Starts a pass in which nothing is skipped yet.
    pub(crate) fn begin(&mut self, queries: usize) {
        self.tails.clear();
        self.tails.resize(queries, 0.0);
        self.levels = [(0, 0); MAX_COARSE];
        self.full = true;
        self.skipped = 0;
    }

    /// Pushes the tiles of segment `i` that may hold a key with a score of at least its query's threshold.
    ///
    /// A cluster is pruned if its outward bound misses the threshold of every query of the group; of the levels the first `depth` are
    /// looked at. `norms` are upper bounds on the queries' norms. A query whose threshold is `+inf` takes no part.
    pub(crate) fn push_tiles(
        &mut self,
        group: &Group<'_>,
        visible: &Visible<'_>,
        i: usize,
        depth: usize,
        (taus, norms): (&[f32], &[f32]),
        partition: &mut Partition,
    ) {
        let tiles = visible.tiles();
        if depth == 0 || visible.segment.levels().is_empty() || visible.is_mixed() {
            partition.push(i, tiles);
            return;
        }
        // Slots are not positions where there are levels, so that the whole segment is visible.
        let tiles = tiles.end;
        self.marks.clear();
        self.marks.resize(tiles.div_ceil(64), 0);
        self.pruned.clear();
        self.bounds.clear();
        self.prune(group, visible, depth, taus, norms);
        self.count_skipped(group, visible, taus);
        let mut tile = 0;
        while tile < tiles {
            let start = tile;
            while tile < tiles && self.is_marked(tile) {
                tile += 1;
            }
            partition.push(i, start..tile);
            tile += usize::from(start == tile);
        }
    }

    /// Descends level by level, a run of neighbouring clusters at a time: marks the tiles of the clusters that stay on the last level, and
    /// keeps what is pruned.
    fn prune(
        &mut self,
        group: &Group<'_>,
        visible: &Visible<'_>,
        depth: usize,
        taus: &[f32],
        norms: &[f32],
    ) {
        let levels = visible.segment.levels();
        self.full &= depth >= levels.len();
        let levels = &levels[..depth.min(levels.len())];
        self.runs.clear();
        self.runs.push(0..levels[0].len() as u32);
        for (depth, level) in levels.iter().enumerate() {
            self.below.clear();
            for at in 0..self.runs.len() {
                let run = self.runs[at].clone();
                self.bound_run(group, level, run.clone(), taus, norms);
                for (i, cluster) in run.clone().enumerate() {
                    let bounds = self.run_bounds[i..].iter().step_by(run.len());
                    if !bounds.clone().zip(taus).any(|(bound, tau)| bound >= tau) {
                        self.pruned
                            .push(slots_below(visible.segment, depth, cluster));
                        self.bounds.extend(bounds);
                        continue;
                    }
                    self.levels[depth].1 += 1;
                    if depth + 1 == levels.len() {
                        self.mark(slots_below(visible.segment, depth, cluster), visible.to);
                    } else {
                        push_run(&mut self.below, level.children(cluster as usize));
                    }
                }
                self.levels[depth].0 += run.len();
            }
            std::mem::swap(&mut self.runs, &mut self.below);
        }
    }

    /// Bounds of the clusters `run` for every query, `-inf` for those that take no part.
    fn bound_run(
        &mut self,
        group: &Group<'_>,
        level: &Level,
        run: Range<u32>,
        taus: &[f32],
        norms: &[f32],
    ) {
        let run = run.start as usize..run.end as usize;
        self.run_bounds.clear();
        self.run_bounds
            .resize(taus.len() * run.len(), f32::NEG_INFINITY);
        let bounds = self.run_bounds.chunks_exact_mut(run.len());
        for (g, (bounds, (&tau, &norm))) in bounds.zip(taus.iter().zip(norms)).enumerate() {
            if tau < f32::INFINITY {
                level.upper_bounds_into(group.kernel, run.clone(), group.query(g), norm, bounds);
            }
        }
    }

    fn mark(&mut self, slots: Range<u32>, limit: usize) {
        let end = (slots.end as usize).min(limit);
        for tile in slots.start as usize / TILE..end.div_ceil(TILE) {
            self.marks[tile / 64] |= 1 << (tile % 64);
        }
    }

    fn is_marked(&self, tile: usize) -> bool {
        self.marks[tile / 64] >> (tile % 64) & 1 == 1
    }

    /// Adds the pruned keys in unmarked tiles to the tails; a marked tile's keys are all accounted for by the scan.
    fn count_skipped(&mut self, group: &Group<'_>, visible: &Visible<'_>, taus: &[f32]) {
        let queries = taus.len();
        for (i, slots) in self.pruned.iter().enumerate() {
            let (start, end) = (slots.start as usize, (slots.end as usize).min(visible.to));
            let skipped: usize = (start / TILE..end.div_ceil(TILE))
                .filter(|&tile| !self.is_marked(tile))
                .map(|tile| end.min((tile + 1) * TILE) - start.max(tile * TILE))
                .sum();
            self.skipped += skipped;
            if group.scale == 0.0 || skipped == 0 {
                continue;
            }
            let bounds = &self.bounds[i * queries..(i + 1) * queries];
            for ((sum, &bound), &tau) in self.tails.iter_mut().zip(bounds).zip(taus) {
                if tau < f32::INFINITY {
                    let weight = tail::weight(group.scale, bound, tau);
                    *sum = tail::add(*sum, tail::mul(skipped as f64, weight));
                }
            }
        }
    }
}

/// Appends a run, to the last one if it follows that.
fn push_run(runs: &mut Vec<Range<u32>>, run: Range<u32>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

/// The slots of a cluster: those of its first to its last descendant, which are contiguous.
fn slots_below(segment: &Segment, depth: usize, cluster: u32) -> Range<u32> {
    let levels = segment.levels();
    let mut range = cluster..cluster + 1;
    for level in &levels[depth..] {
        range = if range.is_empty() {
            0..0
        } else {
            level.children(range.start as usize).start..level.children(range.end as usize - 1).end
        };
    }
    range
}
