//! Sums of value rows, wherever they are stored.

use std::ops::Range;

use hira_cache::HeadCache;
use hira_kernels::{Kernel, RowBatch, StoredSlice};

/// The value rows on disk that the queries of a KV head attend to: each read once, all in one batch.
///
/// Empty, and of no cost, where all values are in memory.
#[derive(Debug, Default)]
pub(crate) struct DiskValues {
    /// What the queries attend to, ascending, each once.
    positions: Vec<u32>,
    rows: Vec<u32>,
    batch: RowBatch,
    /// Where the runs on disk start, with the positions that are of each: in the order of the batch.
    parts: Vec<(usize, Range<usize>)>,
}

impl DiskValues {
    /// Reads what is on disk of the rows at `wanted`, one list a query.
    pub(crate) fn read<'a>(&mut self, head: &HeadCache, wanted: impl Iterator<Item = &'a [u32]>) {
        self.parts.clear();
        self.positions.clear();
        let values = head.values();
        if !values.runs().any(|(_, run)| run.is_on_disk()) {
            return;
        }
        wanted.for_each(|positions| self.positions.extend_from_slice(positions));
        self.positions.sort_unstable();
        self.positions.dedup();
        self.batch.begin(values.precision());
        let mut done = 0;
        while let Some(run) = self
            .positions
            .get(done)
            .and_then(|&p| values.run_at(p as usize))
        {
            let (start, end) = (run.start as u32, run.start + run.rows.len() / values.dim());
            let len = count_before(&self.positions[done..], end);
            let positions = done..done + len;
            if run.rows.is_on_disk() {
                self.rows.clear();
                self.rows
                    .extend(self.positions[positions.clone()].iter().map(|p| p - start));
                if self.batch.ask(run.rows, &self.rows, values.dim()) {
                    self.parts.push((run.start, positions));
                }
            }
            done += len;
        }
        self.batch.read();
    }

    /// The rows that were read of the run that starts at `run`, and their positions.
    fn part(&self, run: usize) -> Option<(StoredSlice<'_>, &[u32])> {
        let part = self.parts.binary_search_by_key(&run, |part| part.0).ok()?;
        let positions = self.parts[part].1.clone();
        Some((self.batch.part(part), &self.positions[positions]))
    }
}

/// Positions at the front of a list, ascending, that lie before `end`.
fn count_before(positions: &[u32], end: usize) -> usize {
    positions.partition_point(|&position| (position as usize) < end)
}

/// `out += sum of weights[i] * value of rows[i]`, rows in order; `rebased` is a buffer. A sum does not depend on where its rows are.
pub(crate) fn add_weighted_values(
    kernel: Kernel,
    (head, disk): (&HeadCache, &DiskValues),
    (rows, weights): (&[u32], &[f32]),
    rebased: &mut Vec<u32>,
    out: &mut [f32],
) {
    let values = head.values();
    let mut done = 0;
    while let Some(run) = rows.get(done).and_then(|&row| values.run_at(row as usize)) {
        let (start, stored) = (run.start as u32, run.rows);
        let len = count_before(&rows[done..], run.start + stored.len() / values.dim());
        let here = &rows[done..done + len];
        let weights = &weights[done..done + len];
        done += len;
        if let Some(region) = stored.region() {
            region.count_reads(len);
            if let Some((read, positions)) = disk.part(run.start)
                && places_into(here, positions, rebased)
            {
                kernel.weighted_sum_into(weights, read, rebased, out);
                continue;
            }
        }
        let in_run: &[u32] = if start == 0 {
            here
        } else {
            rebased.clear();
            rebased.extend(here.iter().map(|&row| row - start));
            rebased
        };
        kernel.weighted_sum_into(weights, stored, in_run, out);
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
