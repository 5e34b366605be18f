//! The part of a segment that a query may see.

use std::ops::Range;

use hira_index::{HierarchicalIndex, Segment};
use hira_kernels::{SketchView, TILE, tile_lines};

use crate::positions::Positions;

/// The positions that a group of queries sees, and the first segment that holds one of them.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) first: usize,
    pub(crate) end: usize,
    /// Segments of the index before it.
    skip: usize,
}

impl Seen {
    /// For positions that the index stores.
    pub(crate) fn of(index: &HierarchicalIndex, positions: Positions) -> Self {
        let Positions { first, end } = positions;
        let before = |segment: &&Segment| segment.start() + segment.len() <= first;
        let skip = if first == 0 {
            0
        } else {
            index.segments().take_while(before).count()
        };
        Self { first, end, skip }
    }

    /// Number of positions.
    pub(crate) fn len(&self) -> usize {
        self.end.saturating_sub(self.first)
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.first..self.end
    }

    /// The blocks of `block_keys` positions that hold one of them.
    pub(crate) fn blocks(&self, block_keys: usize) -> Range<usize> {
        self.first / block_keys..self.end.div_ceil(block_keys)
    }
}

/// A segment, and which of its keys (in time order, counted from its start) a query sees: `from..to`, at least one.
#[derive(Clone, Copy)]
pub(crate) struct Visible<'a> {
    pub(crate) segment: &'a Segment,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// Whether every segment with a visible key is sketched: not in an index of no levels, nor while keys wait for their sketch
/// ([`IndexConfig::sketch_from`](hira_index::IndexConfig::sketch_from)).
pub(crate) fn has_sketch(index: &HierarchicalIndex, seen: Seen) -> bool {
    let mut segments = Visible::segments(index, seen);
    index.num_levels() > 0 && segments.all(|visible| visible.segment.sketch().is_some())
}

impl<'a> Visible<'a> {
    /// The segments that hold a position that is seen, in order.
    pub(crate) fn segments(
        index: &'a HierarchicalIndex,
        seen: Seen,
    ) -> impl Iterator<Item = Visible<'a>> {
        index
            .segments()
            .skip(seen.skip)
            .map_while(move |segment| Self::of(segment, seen))
    }

    /// The `i`-th of them.
    pub(crate) fn nth(index: &'a HierarchicalIndex, seen: Seen, i: usize) -> Option<Self> {
        Self::of(index.segment(seen.skip + i)?, seen)
    }

    fn of(segment: &'a Segment, seen: Seen) -> Option<Self> {
        let from = seen.first.saturating_sub(segment.start());
        let to = seen.end.saturating_sub(segment.start()).min(segment.len());
        (from < to).then_some(Self { segment, from, to })
    }

    /// Number of visible keys.
    pub(crate) fn len(&self) -> usize {
        self.to - self.from
    }

    /// Whether hidden keys are mixed with visible ones in slot order, so that every slot must be looked at.
    pub(crate) fn is_mixed(&self) -> bool {
        self.len() < self.segment.len() && self.segment.order().is_some()
    }

    /// Whether slots are positions, and those that a multiple of `block_keys` (not 0) divides start a block.
    pub(crate) fn in_blocks(&self, block_keys: usize) -> bool {
        self.segment.order().is_none() && self.segment.start().is_multiple_of(block_keys)
    }

    /// Whether a slot's key is visible.
    pub(crate) fn sees(&self, slot: usize) -> bool {
        (self.from..self.to).contains(&(self.segment.position_of_slot(slot as u32) as usize))
    }

    /// Whether every key of a tile is visible.
    pub(crate) fn sees_tile(&self, tile: usize) -> bool {
        let end = self.segment.len().min((tile + 1) * TILE);
        (tile * TILE..end).all(|slot| self.sees(slot))
    }

    /// The slots that must be read to see every visible key.
    pub(crate) fn slots(&self) -> Range<usize> {
        if self.is_mixed() {
            0..self.segment.len()
        } else {
            self.from..self.to
        }
    }

    /// The tiles that must be read to see every visible key.
    pub(crate) fn tiles(&self) -> Range<usize> {
        let slots = self.slots();
        slots.start / TILE..slots.end.div_ceil(TILE)
    }

    /// Those of them that hold sixteen of the slots.
    pub(crate) fn whole_tiles(&self) -> Range<usize> {
        let slots = self.slots();
        let first = slots.start.div_ceil(TILE);
        first..first.max(slots.end / TILE)
    }

    /// Whether slots are positions, and the first tile holds keys before those that are visible.
    pub(crate) fn is_cut_in_front(&self) -> bool {
        !self.slots().start.is_multiple_of(TILE)
    }

    /// The sketch up to the last of those tiles. Of the slots from the first of them on, some are hidden only if
    /// [`is_mixed`](Self::is_mixed) or, in the first tile, [`is_cut_in_front`](Self::is_cut_in_front).
    pub(crate) fn sketch(&self) -> Option<SketchView<'a>> {
        let whole = self.segment.sketch()?;
        let tiles = self.tiles().end;
        Some(SketchView {
            dim: whole.dim,
            len: self.slots().end,
            lines: &whole.lines[..tiles * tile_lines(whole.dim)],
            norms: &whole.norms[..tiles],
        })
    }
}
