//! How the tiles of one pass are divided among tasks.

use std::ops::Range;

use hira_kernels::TILE;

/// Tiles of one part: 4,096 keys, about 3 microseconds of scanning, so that starting a task costs little beside it.
pub(crate) const PART_TILES: usize = 4096 / TILE;

/// Consecutive tiles of one segment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    /// Index of the segment among the visible ones.
    pub(crate) segment: usize,
    /// Its tiles.
    pub(crate) tiles: Range<usize>,
}

/// The runs of a pass, packed into parts of [`PART_TILES`] tiles (the last one may be smaller).
///
/// A part depends on the tiles only, never on the number of threads: whatever is summed per part and then over parts has
/// the same bits on every pool.
#[derive(Debug, Default)]
pub(crate) struct Partition {
    runs: Vec<Run>,
    /// Runs of each part.
    parts: Vec<Range<usize>>,
    /// Tiles in the last part.
    filled: usize,
}

impl Partition {
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.parts.clear();
        self.filled = PART_TILES;
    }

    /// Appends consecutive tiles of a segment.
    pub(crate) fn push(&mut self, segment: usize, tiles: Range<usize>) {
        let mut start = tiles.start;
        while start < tiles.end {
            if self.filled == PART_TILES {
                self.parts.push(self.runs.len()..self.runs.len());
                self.filled = 0;
            }
            let end = tiles.end.min(start + PART_TILES - self.filled);
            self.runs.push(Run {
                segment,
                tiles: start..end,
            });
            if let Some(part) = self.parts.last_mut() {
                part.end = self.runs.len();
            }
            self.filled += end - start;
            start = end;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// The runs of part `i`.
    pub(crate) fn part(&self, i: usize) -> &[Run] {
        &self.runs[self.parts[i].clone()]
    }

    pub(crate) fn memory_usage(&self) -> usize {
        self.runs.capacity() * size_of::<Run>() + self.parts.capacity() * size_of::<Range<usize>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_every_tile_once_in_order() {
        let mut partition = Partition::default();
        partition.clear();
        let lengths = [1, 255, 300, 0, 1000, 7];
        for (segment, &tiles) in lengths.iter().enumerate() {
            partition.push(segment, 0..tiles);
        }
        let mut seen = vec![0; lengths.len()];
        for i in 0..partition.len() {
            let mut filled = 0;
            for run in partition.part(i) {
                assert_eq!(run.tiles.start, seen[run.segment]);
                seen[run.segment] = run.tiles.end;
                filled += run.tiles.len();
            }
            assert!(filled == PART_TILES || i + 1 == partition.len());
        }
        assert_eq!(seen, lengths);
    }
}
