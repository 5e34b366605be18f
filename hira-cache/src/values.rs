//! Value vectors of one head: runs of fixed length, shared between forks once they are full.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use hira_index::IndexConfig;
use hira_kernels::{Precision, StoredSlice, StoredVec, prefetch};

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
    runs: Vec<Arc<StoredVec>>,
    /// What each run has been saved as, once it is full.
    saved: Vec<Arc<OnceLock<u128>>>,
}

impl ValueStore {
    /// An empty store of `dim`-dimensional values in runs of `run_len` rows.
    pub(crate) fn new(dim: usize, run_len: usize, precision: Precision) -> Self {
        Self {
            dim,
            run_len,
            len: 0,
            precision,
            runs: Vec::new(),
            saved: Vec::new(),
        }
    }

    /// Rows of a full run of the values beside an index of this configuration.
    pub(crate) fn run_len_of(config: &IndexConfig) -> usize {
        config.segment_len.max(1)
    }

    /// The store of `full` runs, each with the hash that it was saved as if that is known, and of what comes after them. `None` if they are not of the
    /// lengths that they should have.
    pub(crate) fn restore(
        dim: usize,
        run_len: usize,
        precision: Precision,
        full: Vec<(StoredVec, Option<u128>)>,
        last: StoredVec,
    ) -> Option<Self> {
        let mut store = Self::new(dim, run_len, precision);
        let run_values = run_len.checked_mul(dim)?;
        for (run, hash) in full {
            let saved = hash.map_or_else(OnceLock::new, OnceLock::from);
            if run.len() != run_values {
                return None;
            }
            store.runs.push(Arc::new(run));
            store.saved.push(Arc::new(saved));
        }
        if !last.len().is_multiple_of(dim) || last.len() >= run_values {
            return None;
        }
        store.len = (store.runs.len().checked_mul(run_len)?).checked_add(last.len() / dim)?;
        if !last.is_empty() {
            store.runs.push(Arc::new(last));
            store.saved.push(Arc::default());
        }
        Some(store)
    }

    /// Where whoever saves run `i` notes the hash that it has been saved as; `None` if the run is not full. Clones that share the run share the note.
    pub(crate) fn saved(&self, i: usize) -> Option<&OnceLock<u128>> {
        let is_full = (i + 1) * self.run_len <= self.len;
        self.saved.get(i).filter(|_| is_full).map(|saved| &**saved)
    }

    /// Rows stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no row is stored.
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

    /// The rows of run `i`.
    pub fn run(&self, i: usize) -> Option<StoredSlice<'_>> {
        self.runs.get(i).map(|run| run.as_slice())
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
                self.runs.push(Arc::new(StoredVec::new(self.precision)));
                self.saved.push(Arc::default());
            }
            let room = self.run_len - self.len % self.run_len;
            let count = (rows.len() / self.dim).min(room);
            let (now, later) = rows.split_at(count * self.dim);
            if let Some(run) = self.runs.last_mut().map(Arc::make_mut) {
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

    /// Forgets the rows from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.runs.truncate(len.div_ceil(self.run_len));
        self.saved.truncate(self.runs.len());
        let kept = len % self.run_len;
        if kept != 0
            && let (Some(run), Some(saved)) = (self.runs.last_mut(), self.saved.last_mut())
        {
            Arc::make_mut(run).truncate(kept * self.dim);
            *saved = Arc::default();
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
