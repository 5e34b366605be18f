//! The sketch scan: from intervals to candidates, with thresholds that rise while it runs.

use std::ops::Range;

use hira_kernels::{Candidates, QueryGroup, ScanQuery, SegmentOffsets, TILE, tile_lines};

use crate::blocks::{self, Apart};
use crate::group::Group;
use crate::partition::Run;
use crate::settle::Target;
use crate::tail;
use crate::visible::Visible;

/// Tiles scanned between two looks at the number of candidates: 1,024 keys.
const CHUNK_TILES: usize = 64;
/// A candidate list is cut down once it holds `2k` and this many more.
const SPARE_CANDIDATES: usize = 512;

/// What a scan reads.
#[derive(Clone, Copy)]
pub(crate) struct Scan<'a> {
    pub(crate) group: &'a Group<'a>,
    pub(crate) prepared: &'a QueryGroup,
    /// Of each visible segment.
    pub(crate) offsets: &'a [SegmentOffsets],
    /// Slots that are in no block of the tail.
    pub(crate) apart: &'a Apart,
}

/// One part's state: for each query its threshold and candidates. Every key of the part that is not a candidate is in the
/// candidates' tail, relative to that threshold.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) queries: Vec<ScanQuery>,
    pub(crate) found: Vec<Candidates>,
    /// If the tail is asked for by blocks, the tails of the keys that are in none, which are then not in those of `found`.
    pub(crate) apart: Vec<f64>,
    /// Length at which each candidate list is cut down next.
    limits: Vec<usize>,
    lower: Vec<f32>,
    upper: Vec<f32>,
}

impl Part {
    pub(crate) fn memory_usage(&self) -> usize {
        let found: usize = self
            .found
            .iter()
            .map(|found| {
                4 * (found.slots.capacity() + found.lower.capacity() + found.upper.capacity())
            })
            .sum();
        found + 4 * (self.lower.capacity() + self.upper.capacity())
    }

    /// Starts a pass with one threshold a query. A query whose threshold is `+inf` takes no part.
    pub(crate) fn begin(&mut self, group: &Group<'_>, taus: impl Iterator<Item = f32>) {
        self.queries.clear();
        self.queries.extend(taus.map(|tau| ScanQuery {
            tau,
            tail_scale: if tau == f32::INFINITY {
                0.0
            } else {
                group.scale
            },
            block_keys: group.tail_block,
        }));
        let queries = self.queries.len();
        self.found.resize_with(queries, Candidates::default);
        self.found.iter_mut().for_each(Candidates::clear);
        self.apart.clear();
        self.apart.resize(queries, 0.0);
        self.limits.clear();
        self.limits
            .extend(group.targets.iter().map(|target| match *target {
                Target::AtLeast { .. } | Target::Mass { .. } => usize::MAX,
                Target::Top { k, .. } => k.saturating_mul(2).saturating_add(SPARE_CANDIDATES),
            }));
    }

    /// Scans the part's runs.
    pub(crate) fn scan(&mut self, scan: &Scan<'_>, runs: &[Run]) {
        let Some(first) = runs.first() else { return };
        let mut segments = Visible::segments(scan.group.index, scan.group.seen)
            .enumerate()
            .skip(first.segment);
        let mut at = segments.next();
        for run in runs {
            while let Some((segment, visible)) = at {
                if segment == run.segment {
                    self.scan_run(scan, &visible, run);
                    break;
                }
                at = segments.next();
            }
        }
    }

    fn scan_run(&mut self, scan: &Scan<'_>, visible: &Visible<'_>, run: &Run) {
        let mut tile = run.tiles.start;
        while tile < run.tiles.end {
            let tiles = tile..run.tiles.end.min(tile + CHUNK_TILES);
            tile = tiles.end;
            let block_keys = scan.group.tail_block;
            if block_keys == 0 || visible.in_blocks(block_keys) {
                self.scan_visible(scan, visible, run, tiles);
            } else {
                // What goes into the tail belongs to no block.
                self.swap_tails(0);
                self.scan_visible(scan, visible, run, tiles);
                self.swap_tails(block_keys);
            }
            self.raise(scan.group, scan.apart);
        }
    }

    /// Exchanges the tails of keys in blocks with those of keys in none, before and after a scan of the latter.
    fn swap_tails(&mut self, block_keys: usize) {
        let tails = self.apart.iter_mut().zip(&mut self.found);
        tails.for_each(|(apart, found)| std::mem::swap(apart, &mut found.tail));
        let queries = self.queries.iter_mut();
        queries.for_each(|query| query.block_keys = block_keys);
    }

    fn scan_visible(
        &mut self,
        scan: &Scan<'_>,
        visible: &Visible<'_>,
        run: &Run,
        tiles: Range<usize>,
    ) {
        if visible.is_mixed() {
            self.scan_mixed(scan, visible, run, tiles);
        } else if tiles.start == visible.tiles().start && visible.is_cut_in_front() {
            let whole = tiles.start + 1;
            self.filter(scan, visible, run, tiles.start..whole);
            self.scan_tiles(scan, visible, run, whole..tiles.end);
        } else {
            self.scan_tiles(scan, visible, run, tiles);
        }
    }

    fn scan_tiles(
        &mut self,
        scan: &Scan<'_>,
        visible: &Visible<'_>,
        run: &Run,
        tiles: Range<usize>,
    ) {
        if let Some(mut sketch) = visible.sketch() {
            // What lies behind the run is left to whichever thread takes it.
            let end = (run.tiles.end * tile_lines(sketch.dim)).min(sketch.lines.len());
            sketch.lines = &sketch.lines[..end];
            scan.group.kernel.scan_into(
                sketch,
                tiles,
                visible.segment.start() as u32,
                scan.prepared,
                &scan.offsets[run.segment],
                &self.queries,
                &mut self.found,
            );
        }
    }

    /// Scans tiles of a segment in which hidden keys are mixed with visible ones: only tiles that hold one take the slow way.
    fn scan_mixed(
        &mut self,
        scan: &Scan<'_>,
        visible: &Visible<'_>,
        run: &Run,
        tiles: Range<usize>,
    ) {
        let mut tile = tiles.start;
        while tile < tiles.end {
            let start = tile;
            let whole = visible.sees_tile(start);
            tile += 1;
            while tile < tiles.end && visible.sees_tile(tile) == whole {
                tile += 1;
            }
            if whole {
                self.scan_tiles(scan, visible, run, start..tile);
            } else {
                self.filter(scan, visible, run, start..tile);
            }
        }
    }

    /// What `scan_into` does, for the visible keys among others.
    fn filter(&mut self, scan: &Scan<'_>, visible: &Visible<'_>, run: &Run, tiles: Range<usize>) {
        let Some(sketch) = visible.sketch() else {
            return;
        };
        let lanes = tiles.len() * TILE;
        let first = tiles.start * TILE;
        let slots = lanes.min(sketch.len - first);
        let base = visible.segment.start() as u32;
        let size = lanes * self.queries.len();
        self.lower.resize(size.max(self.lower.len()), 0.0);
        self.upper.resize(size.max(self.upper.len()), 0.0);
        scan.group.kernel.intervals_into(
            sketch,
            tiles,
            scan.prepared,
            &scan.offsets[run.segment],
            &mut self.lower[..size],
            &mut self.upper[..size],
        );
        for (g, (query, found)) in self.queries.iter().zip(&mut self.found).enumerate() {
            let lower = &self.lower[g * lanes..g * lanes + slots];
            let upper = &self.upper[g * lanes..g * lanes + slots];
            for (i, (&lower, &upper)) in lower.iter().zip(upper).enumerate() {
                let slot = first + i;
                let kept = upper >= query.tau;
                if (!kept && query.tail_scale == 0.0) || !visible.sees(slot) {
                    continue;
                }
                let block = || (base + slot as u32) / query.block_keys as u32;
                if kept {
                    if query.block_keys > 0 {
                        blocks::note_candidate(&mut found.blocks, block(), (lower, upper));
                    }
                    found.slots.push(base + slot as u32);
                    found.lower.push(lower);
                    found.upper.push(upper);
                } else {
                    let weight = tail::weight(query.tail_scale, upper, query.tau);
                    found.tail = tail::add(found.tail, weight);
                    if query.block_keys > 0 {
                        blocks::add_other(&mut found.blocks, block(), weight, (lower, upper));
                    }
                }
            }
        }
    }

    /// Cuts down the candidate list of every top-k query that has outgrown its limit.
    ///
    /// The `k`-th largest lower bound of any keys is a proven threshold: those `k` keys reach it, so the `k`-th best does.
    fn raise(&mut self, group: &Group<'_>, apart: &Apart) {
        for ((((query, found), tail_apart), limit), target) in self
            .queries
            .iter_mut()
            .zip(&mut self.found)
            .zip(&mut self.apart)
            .zip(&mut self.limits)
            .zip(group.targets)
        {
            let Target::Top { k, .. } = *target else {
                continue;
            };
            if found.slots.len() <= *limit {
                continue;
            }
            let tau = group.kernel.kth_largest(&found.lower, k);
            if tau > query.tau {
                drop_below(found, tail_apart, query, tau, apart);
                query.tau = tau;
            }
            // With many ties little is dropped: twice the length keeps the total work linear.
            *limit = (*limit).max(2 * found.slots.len());
        }
    }
}

/// Drops the candidates whose upper bound is below `to`, and moves the tails from the query's threshold to `to`.
fn drop_below(
    found: &mut Candidates,
    tail_apart: &mut f64,
    query: &ScanQuery,
    to: f32,
    apart: &Apart,
) {
    let (scale, from) = (query.tail_scale, query.tau);
    let mut sum = tail::rescale(found.tail, scale, from, to);
    let mut sum_apart = tail::rescale(*tail_apart, scale, from, to);
    blocks::raise(&mut found.blocks, scale, from, to);
    let mut dropped = blocks::Dropped::new(&mut found.blocks);
    let mut kept = 0;
    for i in 0..found.slots.len() {
        let (slot, lower, upper) = (found.slots[i], found.lower[i], found.upper[i]);
        found.slots[kept] = slot;
        found.lower[kept] = lower;
        found.upper[kept] = upper;
        if upper >= to {
            kept += 1;
        } else if scale > 0.0 {
            let weight = tail::weight(scale, upper, to);
            if query.block_keys > 0 && apart.holds(slot) {
                sum_apart = tail::add(sum_apart, weight);
                continue;
            }
            sum = tail::add(sum, weight);
            if query.block_keys > 0 {
                dropped.add(slot / query.block_keys as u32, weight);
            }
        }
    }
    found.slots.truncate(kept);
    found.lower.truncate(kept);
    found.upper.truncate(kept);
    found.tail = sum;
    *tail_apart = sum_apart;
}

#[cfg(test)]
mod tests {
    use hira_kernels::BlockTail;

    use super::*;

    #[test]
    fn a_raised_threshold_keeps_the_weight_of_what_it_drops() {
        let mut found = Candidates {
            slots: vec![1, 2, 3, 4],
            lower: vec![0.0, 3.0, 1.0, 2.0],
            upper: vec![1.0, 4.0, 2.0, 3.0],
            tail: 5.0,
            blocks: vec![BlockTail {
                block: 0,
                sum: 5.0,
                width: 1.0,
            }],
        };
        let mut tail_apart = 2.0;
        let query = ScanQuery {
            tau: 1.0,
            tail_scale: 0.5,
            block_keys: 16,
        };
        let apart = &Apart::default();
        drop_below(&mut found, &mut tail_apart, &query, 3.0, apart);
        assert_eq!(found.slots, [2, 4]);
        assert_eq!((found.lower, found.upper), (vec![3.0, 2.0], vec![4.0, 3.0]));
        // The old tail moves from the reference 1 to 3; the dropped upper bounds 1 and 2 join it.
        let exact = 5.0 * (-1.0f64).exp() + (-1.0f64).exp() + (-0.5f64).exp();
        assert!(found.tail >= exact && found.tail < exact * 1.001);
        let [block] = found.blocks[..] else {
            panic!("one block")
        };
        assert!(f64::from(block.sum) >= exact && f64::from(block.sum) < exact * 1.001);
        assert_eq!(block.width, 1.0);
        let exact = 2.0 * (-1.0f64).exp();
        assert!(tail_apart >= exact && tail_apart < exact * 1.001);
    }
}
