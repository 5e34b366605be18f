//! The product plan's first pass: which tiles can hold a key that reaches the threshold, by their product codes.

use hira_kernels::{ProductTables, ProductView, QueryGroup, TILE, Team};

use crate::group::Group;
use crate::partition::Partition;
use crate::tail;
use crate::tree::Descent;
use crate::visible::Visible;

/// Unmarked tiles between two marked ones that are read nevertheless: as many take less time than the start of a run.
/// Measured on 65,536 keys of 20 clusters in time order, where 56 % of the tiles are marked and a search is then slower than without
/// the pass: 945 us from memory with no bridge, 570 us with this one.
const BRIDGE: usize = 4;

/// Buffers and counts of a first pass.
#[derive(Debug, Default)]
pub(crate) struct ProductPass {
    /// One for each visible segment, kept for their memory.
    segments: Vec<SegmentPass>,
    /// Bytes of codes that were read.
    pub(crate) bytes: usize,
    /// Visible keys of the segments that have codes.
    pub(crate) coded: usize,
}

/// What the pass finds in one segment.
#[derive(Debug, Default)]
struct SegmentPass {
    /// First tile with a visible key.
    first: usize,
    tables: ProductTables,
    /// Upper bound of each tile for each query, `[queries][tiles]`.
    bounds: Vec<f32>,
    /// Whether a tile must be read.
    marks: Vec<bool>,
    /// Visible keys of each unmarked tile after the whole ones; 0 for a marked one.
    seen: Vec<u8>,
    /// For each query, the weight of the visible keys in unmarked tiles, relative to its threshold.
    tails: Vec<f64>,
    /// Visible keys in unmarked tiles.
    skipped: usize,
    bytes: usize,
    coded: usize,
}

impl ProductPass {
    pub(crate) fn memory_usage(&self) -> usize {
        self.segments.iter().map(SegmentPass::memory_usage).sum()
    }

    /// Bounds the tiles of every visible segment; a segment without codes has all of its tiles marked.
    ///
    /// The tail is summed by segments, in their order: the same bits on every pool.
    pub(crate) fn mark(
        &mut self,
        group: &Group<'_>,
        prepared: &QueryGroup,
        taus: &[f32],
        team: &Team,
    ) {
        let segments = Visible::segments(group.index, group.seen);
        let count = segments.count();
        if self.segments.len() < count {
            self.segments.resize_with(count, SegmentPass::default);
        }
        let segments = Visible::segments(group.index, group.seen);
        let work = |(pass, visible): (&mut SegmentPass, Visible<'_>)| {
            pass.mark(group, &visible, prepared, taus);
        };
        team.for_each(self.segments.iter_mut().zip(segments), work);
        self.bytes = self.segments[..count].iter().map(|pass| pass.bytes).sum();
        self.coded = self.segments[..count].iter().map(|pass| pass.coded).sum();
    }

    /// Pushes the marked tiles of segment `i`, and adds what the others hold to the tails and counts of `skipped`.
    pub(crate) fn push_tiles(&self, i: usize, skipped: &mut Descent, partition: &mut Partition) {
        let pass = &self.segments[i];
        for (sum, &tail) in skipped.tails.iter_mut().zip(&pass.tails) {
            *sum = tail::add(*sum, tail);
        }
        skipped.skipped += pass.skipped;
        let mut start = pass.first;
        for run in pass.marks.chunk_by(|a, b| a == b) {
            let end = start + run.len();
            if run[0] {
                partition.push(i, start..end);
            }
            start = end;
        }
    }
}

impl SegmentPass {
    fn memory_usage(&self) -> usize {
        self.tables.memory_usage()
            + self.marks.capacity()
            + self.seen.capacity()
            + 4 * self.bounds.capacity()
            + 8 * self.tails.capacity()
    }

    fn mark(
        &mut self,
        group: &Group<'_>,
        visible: &Visible<'_>,
        prepared: &QueryGroup,
        taus: &[f32],
    ) {
        let tiles = visible.tiles().len();
        self.first = visible.tiles().start;
        self.marks.clear();
        self.tails.clear();
        self.tails.resize(taus.len(), 0.0);
        self.skipped = 0;
        self.bytes = 0;
        self.coded = 0;
        let Some(product) = visible.segment.product() else {
            self.marks.resize(tiles, true);
            return;
        };
        self.marks.resize(tiles, false);
        self.bytes = tiles * product.shape.tile_bytes();
        self.coded = visible.len();
        self.bound(group, visible, product, prepared);
        for (bounds, &tau) in self.bounds.chunks_exact(tiles).zip(taus) {
            for (mark, &bound) in self.marks.iter_mut().zip(bounds) {
                *mark |= bound >= tau;
            }
        }
        // Of this one some keys are hidden: it is read rather than counted.
        self.marks[0] |= visible.is_cut_in_front();
        bridge(&mut self.marks);
        self.count_skipped(group, visible, taus);
    }

    /// Bounds that hold for every key of a tile, visible or not.
    fn bound(
        &mut self,
        group: &Group<'_>,
        visible: &Visible<'_>,
        product: ProductView<'_>,
        prepared: &QueryGroup,
    ) {
        let (kernel, tiles) = (group.kernel, visible.tiles());
        self.tables
            .prepare(kernel, prepared, product, visible.segment.centre());
        self.bounds.clear();
        self.bounds.resize(prepared.len() * tiles.len(), 0.0);
        kernel.product_bounds_into(product, tiles, &self.tables, &mut self.bounds);
    }

    /// Counts the visible keys of unmarked tiles, and bounds their weight: each scores at most the bound of its tile, which
    /// is below the threshold.
    fn count_skipped(&mut self, group: &Group<'_>, visible: &Visible<'_>, taus: &[f32]) {
        let tiles = self.marks.len();
        // From here on a tile may hold keys that are hidden, or fewer than sixteen.
        let whole = if visible.is_mixed() {
            0
        } else {
            visible.to / TILE - self.first
        };
        let seen = |tile: usize| {
            let start = (self.first + tile) * TILE;
            let slots = start..visible.slots().end.min(start + TILE);
            if self.marks[tile] {
                0
            } else if visible.is_mixed() {
                slots.filter(|&slot| visible.sees(slot)).count() as u8
            } else {
                slots.len() as u8
            }
        };
        self.seen.clear();
        self.seen.extend((whole..tiles).map(seen));
        let unmarked = self.marks[..whole].iter().filter(|&&mark| !mark).count();
        let others = self.seen.iter().map(|&seen| usize::from(seen));
        self.skipped = unmarked * TILE + others.sum::<usize>();
        if group.scale == 0.0 || self.skipped == 0 {
            return;
        }
        let rows = self.bounds.chunks_exact_mut(tiles);
        for ((sum, bounds), &tau) in self.tails.iter_mut().zip(rows).zip(taus) {
            if tau == f32::INFINITY {
                continue;
            }
            for (bound, &mark) in bounds.iter_mut().zip(&self.marks) {
                // No longer below the threshold, so not summed.
                *bound = if mark { f32::INFINITY } else { *bound };
            }
            let (bounds, others) = bounds.split_at(whole);
            let weight = group.kernel.tail_weight(bounds, tau, group.scale);
            *sum = tail::mul(TILE as f64, weight);
            for (&bound, &seen) in others.iter().zip(&self.seen) {
                if bound < tau {
                    let weight = tail::weight(group.scale, bound, tau);
                    *sum = tail::add(*sum, tail::mul(f64::from(seen), weight));
                }
            }
        }
    }
}

/// Marks the tiles of every gap of at most [`BRIDGE`] tiles between two marks.
fn bridge(marks: &mut [bool]) {
    let mut next = None;
    for tile in 0..marks.len() {
        if marks[tile] {
            if let Some(next) = next
                && tile - next <= BRIDGE
            {
                marks[next..tile].fill(true);
            }
            next = Some(tile + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_gaps_between_marks_are_bridged() {
        let bridged = |tiles: &[usize]| {
            let mut marks = [false; 40];
            tiles.iter().for_each(|&tile| marks[tile] = true);
            bridge(&mut marks);
            (0..40).filter(|&tile| marks[tile]).collect::<Vec<_>>()
        };
        assert!(bridged(&[]).is_empty());
        assert_eq!(bridged(&[3]), [3]);
        assert_eq!(
            bridged(&[3, 4, 6, 11, 17]),
            [3, 4, 5, 6, 7, 8, 9, 10, 11, 17]
        );
        assert_eq!(bridged(&[0, 39]), [0, 39]);
    }
}
