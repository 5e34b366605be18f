//! Rows on disk that several queries read.

use std::ops::Range;

use crate::{RowBatch, StoredRows, StoredSlice};

/// Copies of the rows on disk that some queries want, each read once, all in one batch.
///
/// The rows belong to positions of a sequence, and lie in runs: those of a run follow each other, from the run's first position on. Empty, and
/// of no cost, where no run is on disk.
///
/// # Examples
///
/// ```
/// use hira_kernels::{DiskRows, Precision, StoredRows, StoredVec};
///
/// let run = StoredRows::from(StoredVec::rounded(Precision::F32, &[1.0, 2.0, 3.0, 4.0]));
/// let mut disk = DiskRows::default();
/// disk.read(2, [(7, &run)].into_iter(), [&[7, 8][..], &[8]].into_iter());
/// assert!(disk.rows_of(7, &[8], &mut Vec::new()).is_none(), "the run is in memory, to be read there");
/// ```
#[derive(Debug, Default)]
pub struct DiskRows {
    /// What the queries want, ascending, each once.
    positions: Vec<u32>,
    /// Those of a run, counted from its start.
    rows: Vec<u32>,
    batch: RowBatch,
    /// Where the runs on disk start, with the positions that are of each: in the order of the batch.
    parts: Vec<(usize, Range<usize>)>,
}

impl DiskRows {
    /// Forgets what was read before, and reads what is on disk of the rows of `dim` values at the positions `wanted`, ascending, one list a query.
    /// The `runs` come with their first positions, which ascend.
    pub fn read<'a, 'b>(
        &mut self,
        dim: usize,
        runs: impl Iterator<Item = (usize, &'a StoredRows)>,
        wanted: impl Iterator<Item = &'b [u32]>,
    ) {
        self.parts.clear();
        let mut wanted = Some(wanted);
        for (start, rows) in runs {
            if !rows.is_on_disk() {
                continue;
            }
            if let Some(wanted) = wanted.take() {
                self.gather(wanted);
                self.batch.begin(rows.precision());
            }
            let here = Range {
                start: self.before(start),
                end: self.before(start + rows.len() / dim),
            };
            if here.is_empty() {
                continue;
            }
            self.rows.clear();
            let positions = &self.positions[here.clone()];
            self.rows.extend(positions.iter().map(|p| p - start as u32));
            if self.batch.ask(rows, &self.rows, dim) {
                self.parts.push((start, here));
            }
        }
        if !self.parts.is_empty() {
            self.batch.read();
        }
    }

    fn gather<'b>(&mut self, wanted: impl Iterator<Item = &'b [u32]>) {
        self.positions.clear();
        let mut lists = 0;
        for positions in wanted {
            self.positions.extend_from_slice(positions);
            lists += 1;
        }
        if lists > 1 {
            self.positions.sort_unstable();
            self.positions.dedup();
        }
    }

    /// How many positions lie before `end`.
    fn before(&self, end: usize) -> usize {
        self.positions
            .partition_point(|&position| (position as usize) < end)
    }

    /// The rows that were read of the run that starts at position `run`, and in `places` where among them those at `positions` are, which ascend;
    /// `None` if one of them was not read.
    pub fn rows_of(
        &self,
        run: usize,
        positions: &[u32],
        places: &mut Vec<u32>,
    ) -> Option<StoredSlice<'_>> {
        let part = self.parts.binary_search_by_key(&run, |part| part.0).ok()?;
        let read = &self.positions[self.parts[part].1.clone()];
        places_into(positions, read, places).then(|| self.batch.part(part))
    }

    /// Bytes that are allocated.
    pub fn memory_usage(&self) -> usize {
        4 * (self.positions.capacity() + self.rows.capacity())
            + self.batch.memory_usage()
            + self.parts.capacity() * size_of::<(usize, Range<usize>)>()
    }
}

/// Where each of `rows` is among `positions`; false if one is not there. Both ascend.
fn places_into(rows: &[u32], positions: &[u32], places: &mut Vec<u32>) -> bool {
    places.clear();
    let mut place = 0;
    for &row in rows {
        place += positions[place..].partition_point(|&position| position < row);
        if positions.get(place) != Some(&row) {
            return false;
        }
        places.push(place as u32);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_among_those_that_were_read() {
        let mut places = Vec::new();
        assert!(places_into(&[3, 7], &[1, 3, 4, 7], &mut places));
        assert_eq!(places, [1, 3]);
        assert!(places_into(&[], &[], &mut places));
        assert!(!places_into(&[3, 8], &[1, 3, 4, 7], &mut places));
        assert!(!places_into(&[0], &[1], &mut places));
    }
}
