//! Value vectors of one head: runs of fixed length, shared between forks once they are full.

use std::{ops::Range, sync::Arc};

use hira_kernels::{Precision, StoredRows, StoredSlice, StoredVec, prefetch};

/// Rows are reserved in steps of this many, so that a run that is being filled wastes little.
const RESERVE_ROWS: usize = 512;

/// The values of one head in time order, in the precision in which they are stored.
///
/// # Complexity
///
/// Appending a row is O(Dv) amortised; cloning is O(runs), and the first append after a clone copies the last run.
#[derive(Debug, Clone)]
pub struct ValueStore {
    dim: usize,
    run_len: usize,
    len: usize,
    precision: Precision,
    /// Full runs in front that were evicted.
    evicted: usize,
    runs: Vec<Arc<StoredRows>>,
}

impl ValueStore {
    /// An empty store of `dim`-dimensional values in runs of `run_len` rows.
    pub(crate) fn new(dim: usize, run_len: usize, precision: Precision) -> Self {
        Self {
            dim,
            run_len,
            len: 0,
            precision,
            evicted: 0,
            runs: Vec::new(),
        }
    }

    /// Rows that were appended and not taken back, those that were evicted included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no row was appended, or all were taken back.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Dimension of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// What the rows are stored in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Rows of a full run: run `i` holds positions `i * run_len ..`.
    pub fn run_len(&self) -> usize {
        self.run_len
    }

    /// The rows of run `i`; `None` if there is no such run, or it was evicted.
    pub fn run(&self, i: usize) -> Option<StoredSlice<'_>> {
        let i = i.checked_sub(self.evicted)?;
        self.runs.get(i).map(|run| run.as_slice())
    }

    /// The runs that are stored, with the position of the first row of each and where they lie; all but the last are full.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = (usize, &StoredRows)> {
        let runs = self.runs.iter().enumerate();
        runs.map(|(i, run)| ((self.evicted + i) * self.run_len, &**run))
    }

    /// Run `i`, with where it lies; `None` if there is no such run, or it was evicted.
    pub fn stored(&self, i: usize) -> Option<&StoredRows> {
        let i = i.checked_sub(self.evicted)?;
        self.runs.get(i).map(|run| &**run)
    }

    /// Moves every full run into a [region](hira_kernels::Region), where its residence can change. One that a fork shares stays owned; so
    /// does everything where there are no regions.
    pub(crate) fn move_to_regions(&mut self) {
        let full = (self.len / self.run_len).saturating_sub(self.evicted);
        for run in self.runs[..full].iter_mut().filter_map(Arc::get_mut) {
            // a run that cannot be moved is one that stays in memory
            let _ = run.move_to_region();
        }
    }

    /// The row at `position`.
    pub fn row(&self, position: usize) -> Option<StoredSlice<'_>> {
        let run = self.run(position / self.run_len)?;
        let first = (position % self.run_len) * self.dim;
        run.get(first..first + self.dim)
    }

    /// The longest contiguous slice of rows that starts at `range.start` and stays inside `range`.
    pub(crate) fn contiguous(&self, range: Range<usize>) -> Option<StoredSlice<'_>> {
        let run = self.run(range.start / self.run_len)?;
        let first = range.start % self.run_len;
        let rows = (self.run_len - first).min(range.end.checked_sub(range.start)?);
        run.get(first * self.dim..(first + rows) * self.dim)
    }

    /// Bytes of the rows, with what is reserved for the next ones.
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(|run| run.bytes()).sum()
    }

    /// Has the processor fetch what the next row is written beside.
    pub(crate) fn prefetch_end(&self) {
        if let Some(run) = self.runs.last() {
            let last = run.len().saturating_sub(1)..run.len();
            match run.as_slice().slice(last) {
                StoredSlice::F32(last) => prefetch(last),
                StoredSlice::F16(last) => prefetch(last),
                StoredSlice::Bf16(last) => prefetch(last),
            }
        }
    }

    /// Appends rows, rounded to the precision; the caller has checked them.
    pub(crate) fn append(&mut self, mut rows: &[f32]) {
        while !rows.is_empty() {
            if self.len.is_multiple_of(self.run_len) {
                self.runs.push(Arc::new(StoredRows::new(self.precision)));
            }
            let room = self.run_len - self.len % self.run_len;
            let count = (rows.len() / self.dim).min(room);
            let (now, later) = rows.split_at(count * self.dim);
            if let Some(run) = self.runs.last_mut().map(Arc::make_mut) {
                let run = run.to_mut();
                let free = run.capacity() - run.len();
                if free < now.len() {
                    // A sixteenth more than a long prompt needs: the token after it would else have all of it copied.
                    let more = (RESERVE_ROWS * self.dim).max(run.len() / 8);
                    let more = more.max(now.len() + now.len() / 16);
                    run.reserve_exact(more.min(room * self.dim));
                }
                run.extend_rounded(now);
            }
            self.len += count;
            rows = later;
        }
    }

    /// Drops the runs all of whose rows lie before position `before`.
    pub(crate) fn evict(&mut self, before: usize) {
        let full = before.min(self.len) / self.run_len;
        if full > self.evicted {
            self.runs.drain(..full - self.evicted);
            self.evicted = full;
        }
    }

    /// Forgets every row.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        (self.evicted, self.len) = (0, 0);
    }

    /// Forgets the rows from `len` on, none of which was evicted.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let runs = len.div_ceil(self.run_len);
        self.runs.truncate(runs.saturating_sub(self.evicted));
        let kept = len % self.run_len;
        if kept != 0
            && let Some(run) = self.runs.last_mut()
        {
            if run.region().is_some() || Arc::get_mut(run).is_none() {
                // Of what others share, only what is kept is copied.
                let mut copy = StoredVec::new(self.precision);
                copy.extend(run.as_slice().slice(0..kept * self.dim));
                *run = Arc::new(copy.into());
            } else {
                Arc::make_mut(run).truncate(kept * self.dim);
            }
        }
        self.len = len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(range: Range<usize>) -> Vec<f32> {
        range.flat_map(|i| [i as f32, -(i as f32)]).collect()
    }

    #[test]
    fn rows_are_found_across_runs_after_any_batching() {
        for batch in [1, 3, 16, 50] {
            let mut store = ValueStore::new(2, 16, Precision::F32);
            for start in (0..50).step_by(batch) {
                store.append(&rows(start..(start + batch).min(50)));
            }
            assert_eq!(store.len(), 50);
            for i in 0..50 {
                assert_eq!(store.row(i), Some((&[i as f32, -(i as f32)]).into()));
            }
            assert_eq!(store.row(50), None);
            assert_eq!(store.contiguous(10..40), Some((&rows(10..16)).into()));
            assert_eq!(store.contiguous(48..50), Some((&rows(48..50)).into()));
        }
    }

    #[test]
    fn truncate_and_append_again() {
        for cut in [0, 1, 16, 17, 32, 49, 50, 60] {
            let mut store = ValueStore::new(2, 16, Precision::F32);
            store.append(&rows(0..50));
            let fork = store.clone();
            store.truncate(cut);
            assert_eq!(store.len(), cut.min(50));
            store.append(&rows(100..110));
            assert_eq!(store.row(cut.min(50)), Some((&[100.0, -100.0]).into()));
            assert_eq!(fork.len(), 50);
            assert_eq!(fork.row(49), Some((&[49.0, -49.0]).into()));
        }
    }

    #[test]
    fn eviction_drops_whole_runs_and_moves_no_row() {
        for (before, first) in [(0, 0), (15, 0), (16, 16), (40, 32), (48, 48), (99, 48)] {
            let mut store = ValueStore::new(2, 16, Precision::F32);
            store.append(&rows(0..50));
            store.evict(before);
            store.evict(before / 2);
            assert_eq!(store.len(), 50);
            for i in 0..50 {
                let expected = [i as f32, -(i as f32)];
                let expected = (i >= first).then_some((&expected).into());
                assert_eq!(store.row(i), expected, "{before}");
            }
            assert_eq!(store.contiguous(0..4).is_some(), first == 0);
            store.truncate(49);
            store.append(&rows(100..120));
            assert_eq!(store.row(49), Some((&[100.0, -100.0]).into()));
            assert_eq!(store.row(68), Some((&[119.0, -119.0]).into()));
            store.clear();
            store.append(&rows(7..9));
            assert_eq!(store.row(0), Some((&[7.0, -7.0]).into()));
        }
    }

    #[test]
    fn a_run_wastes_little() {
        for precision in Precision::ALL {
            let mut store = ValueStore::new(64, 8192, precision);
            for _ in 0..8000 {
                store.append(&[1.0; 64]);
            }
            assert!(store.bytes() < 8000 * 64 * precision.bytes() * 13 / 10);
            let mut whole = ValueStore::new(64, 8192, precision);
            whole.append(&vec![1.0; 8192 * 64]);
            assert_eq!(whole.bytes(), 8192 * 64 * precision.bytes());
        }
    }

    #[test]
    fn rows_are_rounded_when_they_are_stored() {
        for precision in Precision::ALL {
            let mut store = ValueStore::new(2, 16, precision);
            store.append(&[0.1, -1.0 / 3.0]);
            let expected = [0.1, -1.0 / 3.0].map(|x| precision.round(x));
            let row = store.row(0).unwrap();
            assert_eq!((row.precision(), store.precision()), (precision, precision));
            assert_eq!(row.widened()[..], expected);
        }
    }
}
