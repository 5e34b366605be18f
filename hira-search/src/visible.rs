//! The part of a segment that a query may see.

use hira_index::{HierarchicalIndex, Segment};
use hira_kernels::{SketchView, TILE, tile_lines};

/// A segment, and how many of its keys (in time order) lie below the query's `visible` limit: at least one.
#[derive(Clone, Copy)]
pub(crate) struct Visible<'a> {
    pub(crate) segment: &'a Segment,
    pub(crate) len: usize,
}

/// Whether every segment with a visible key is sketched: not in an index of no levels, nor while keys wait for their sketch
/// ([`IndexConfig::sketch_from`](hira_index::IndexConfig::sketch_from)).
pub(crate) fn has_sketch(index: &HierarchicalIndex, visible: usize) -> bool {
    let mut segments = Visible::segments(index, visible);
    index.num_levels() > 0 && segments.all(|visible| visible.segment.sketch().is_some())
}

impl<'a> Visible<'a> {
    /// The segments that hold positions below `visible`, in order: a prefix of the index's segments.
    pub(crate) fn segments(
        index: &'a HierarchicalIndex,
        visible: usize,
    ) -> impl Iterator<Item = Visible<'a>> {
        index
            .segments()
            .take_while(move |segment| segment.start() < visible)
            .map(move |segment| Visible {
                segment,
                len: segment.len().min(visible - segment.start()),
            })
    }

    /// The `i`-th of them.
    pub(crate) fn nth(index: &'a HierarchicalIndex, visible: usize, i: usize) -> Option<Self> {
        let segment = index.segment(i)?;
        let len = visible.checked_sub(segment.start())?.min(segment.len());
        (len > 0).then_some(Self { segment, len })
    }

    /// Whether hidden keys are mixed with visible ones in slot order, so that every slot must be looked at.
    pub(crate) fn is_mixed(&self) -> bool {
        self.len < self.segment.len() && self.segment.order().is_some()
    }

    /// Whether slots are positions, and those that a multiple of `block_keys` (not 0) divides start a block.
    pub(crate) fn in_blocks(&self, block_keys: usize) -> bool {
        self.segment.order().is_none() && self.segment.start().is_multiple_of(block_keys)
    }

    /// Whether a slot's key is visible.
    pub(crate) fn sees(&self, slot: usize) -> bool {
        (self.segment.position_of_slot(slot as u32) as usize) < self.len
    }

    /// Whether every key of a tile is visible.
    pub(crate) fn sees_tile(&self, tile: usize) -> bool {
        let end = self.segment.len().min((tile + 1) * TILE);
        (tile * TILE..end).all(|slot| self.sees(slot))
    }

    /// Number of slots that must be read to see every visible key.
    pub(crate) fn slots(&self) -> usize {
        if self.is_mixed() {
            self.segment.len()
        } else {
            self.len
        }
    }

    /// Number of tiles that must be read to see every visible key.
    pub(crate) fn tiles(&self) -> usize {
        self.slots().div_ceil(TILE)
    }

    /// The sketch of those tiles; hidden keys are in it only if [`is_mixed`](Self::is_mixed).
    pub(crate) fn sketch(&self) -> Option<SketchView<'a>> {
        let whole = self.segment.sketch()?;
        let tiles = self.tiles();
        Some(SketchView {
            dim: whole.dim,
            len: self.slots(),
            lines: &whole.lines[..tiles * tile_lines(whole.dim)],
            norms: &whole.norms[..tiles],
        })
    }
}
