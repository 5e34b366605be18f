//! From slots to positions and clusters, and back.

use std::ops::Range;

use crate::{Level, Segment};

impl Segment {
    /// Position within the segment of the key in `slot` of the sketch.
    ///
    /// # Panics
    ///
    /// If the segment has an order and `slot` is not below [`len`](Self::len).
    pub fn position_of_slot(&self, slot: u32) -> u32 {
        self.order().map_or(slot, |order| order[slot as usize])
    }

    /// The slots of a cluster: those of its descendants, which are contiguous.
    ///
    /// # Panics
    ///
    /// If there is no such level or cluster.
    pub fn slots(&self, level: usize, cluster: usize) -> Range<u32> {
        self.below(&self.levels()[level..], cluster)
    }

    /// The positions within the segment of the members of a cluster, in slot order.
    ///
    /// # Panics
    ///
    /// If there is no such level or cluster.
    pub fn members(&self, level: usize, cluster: usize) -> impl Iterator<Item = u32> {
        self.slots(level, cluster)
            .map(|slot| self.position_of_slot(slot))
    }

    /// The slot of the key at `position` of the segment; `None` if there is no such key.
    ///
    /// # Complexity
    ///
    /// O(len): nothing that a search does needs this direction.
    pub fn slot_of_position(&self, position: u32) -> Option<u32> {
        match self.order() {
            None => ((position as usize) < self.len()).then_some(position),
            Some(order) => order
                .iter()
                .position(|&p| p == position)
                .map(|slot| slot as u32),
        }
    }

    /// The clusters that hold `slot`: one on each coarse level, the coarsest first.
    ///
    /// Empty if the segment has no coarse levels.
    ///
    /// # Complexity
    ///
    /// O(levels * log(clusters)).
    pub fn clusters_of_slot(&self, slot: u32) -> Vec<u32> {
        let mut child = slot;
        let mut path: Vec<u32> = Vec::with_capacity(self.levels().len());
        for level in self.levels().iter().rev() {
            child = level.parent(child);
            path.push(child);
        }
        path.reverse();
        path
    }

    /// The clusters of the finest coarse level that belong to a cluster.
    pub(crate) fn leaves(&self, level: usize, cluster: usize) -> Range<u32> {
        self.below(&self.levels()[level..self.levels().len() - 1], cluster)
    }

    fn below(&self, levels: &[Level], cluster: usize) -> Range<u32> {
        let cluster = cluster as u32;
        levels.iter().fold(cluster..cluster + 1, |range, level| {
            level.children(range.start as usize).start..level.children(range.end as usize - 1).end
        })
    }
}
