//! The tree plan's descent: which tiles can hold a key that reaches the threshold.

use std::ops::Range;

use hira_index::Segment;
use hira_kernels::TILE;

use crate::group::Group;
use crate::partition::Partition;
use crate::tail;
use crate::visible::Visible;

/// Buffers and counts of a descent.
#[derive(Debug, Default)]
pub(crate) struct Descent {
    /// Clusters still to be opened: level and index.
    stack: Vec<(usize, u32)>,
    /// One bit a tile of the current segment.
    marks: Vec<u64>,
    /// Slots of pruned clusters of the current segment, and their upper bound for each query.
    pruned: Vec<Range<u32>>,
    bounds: Vec<f32>,
    /// For each query, the weight of the keys in tiles that no part reads, relative to its threshold.
    pub(crate) tails: Vec<f64>,
    /// Cluster bounds computed (one for the whole group counts once).
    pub(crate) opened: usize,
    /// Visible keys in tiles that no part reads.
    pub(crate) skipped: usize,
}

impl Descent {
    pub(crate) fn memory_usage(&self) -> usize {
        self.stack.capacity() * size_of::<(usize, u32)>()
            + 8 * (self.marks.capacity() + self.tails.capacity())
            + self.pruned.capacity() * size_of::<Range<u32>>()
            + 4 * self.bounds.capacity()
    }

    /// Starts a pass in which nothing is skipped yet.
    pub(crate) fn begin(&mut self, queries: usize) {
        self.tails.clear();
        self.tails.resize(queries, 0.0);
        self.opened = 0;
        self.skipped = 0;
    }

    /// Pushes the tiles of segment `i` that may hold a key with a score of at least its query's threshold.
    ///
    /// A cluster is pruned if its outward bound misses the threshold of every query of the group. `norms` are upper bounds
    /// on the queries' norms.
    pub(crate) fn push_tiles(
        &mut self,
        group: &Group<'_>,
        visible: &Visible<'_>,
        i: usize,
        taus: &[f32],
        norms: &[f32],
        partition: &mut Partition,
    ) {
        let tiles = visible.tiles();
        if visible.segment.levels().is_empty() || visible.is_mixed() {
            partition.push(i, 0..tiles);
            return;
        }
        self.marks.clear();
        self.marks.resize(tiles.div_ceil(64), 0);
        self.pruned.clear();
        self.bounds.clear();
        self.prune(group, visible, taus, norms);
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

    /// Descends from the coarsest clusters: marks the tiles of the leaf clusters that stay, and keeps what is pruned.
    fn prune(&mut self, group: &Group<'_>, visible: &Visible<'_>, taus: &[f32], norms: &[f32]) {
        let levels = visible.segment.levels();
        self.stack.clear();
        self.stack
            .extend((0..levels[0].len() as u32).map(|cluster| (0, cluster)));
        while let Some((depth, cluster)) = self.stack.pop() {
            let level = &levels[depth];
            let first = self.bounds.len();
            let mut reached = false;
            for (g, (&tau, &norm)) in taus.iter().zip(norms).enumerate() {
                let bound = level.upper_bound(group.kernel, cluster as usize, group.query(g), norm);
                reached |= bound >= tau;
                self.bounds.push(bound);
            }
            self.opened += 1;
            if !reached {
                self.pruned
                    .push(slots_below(visible.segment, depth, cluster));
                continue;
            }
            self.bounds.truncate(first);
            let children = level.children(cluster as usize);
            if depth + 1 < levels.len() {
                self.stack.extend(children.map(|child| (depth + 1, child)));
            } else {
                self.mark(children, visible.len);
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
            let (start, end) = (slots.start as usize, (slots.end as usize).min(visible.len));
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
