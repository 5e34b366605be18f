//! Value vectors of one head: runs that forks share once they are full, or once they are frozen.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use hira_index::{Counted, IndexConfig};
use hira_kernels::{Precision, StoredRows, StoredSlice, StoredVec, prefetch};

/// Rows are reserved in steps of this many, so that a run that is being filled wastes little.
const RESERVE_ROWS: usize = 512;

/// The same for a run that begins where the store was forked.
const FORKED_ROWS: usize = 16;

/// The values of one head in time order, in the precision in which they are stored.
///
/// They lie in runs. A run ends at a multiple of [`run_len`](Self::run_len) or where the store was forked; once the rows up to the next
/// multiple are there, they are one run again.
///
/// # Complexity
///
/// Appending a row is O(Dv) amortised; cloning is O(runs), and the first append after a clone copies the last run. A fork copies none.
#[derive(Debug, Clone)]
pub struct ValueStore {
    dim: usize,
    run_len: usize,
    len: usize,
    precision: Precision,
    runs: Vec<Run>,
    /// Whether the last run takes no more rows.
    frozen: bool,
}

#[derive(Debug, Clone)]
struct Run {
    /// Position of the first row.
    start: usize,
    rows: Arc<StoredRows>,
    /// Whether the store had been forked where it begins: it may stay short, so it reserves little.
    forked: bool,
    /// What it has been saved as, once it takes no more rows.
    saved: Arc<OnceLock<u128>>,
}

impl Run {
    fn new(start: usize, rows: StoredRows) -> Self {
        Self {
            start,
            rows: Arc::new(rows),
            forked: false,
            saved: Arc::default(),
        }
    }
}

/// Consecutive values, contiguous in memory.
#[derive(Debug, Clone, Copy)]
pub struct ValueRun<'a> {
    /// Position of the first row.
    pub start: usize,
    /// The rows, with where they lie.
    pub rows: &'a StoredRows,
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
            frozen: false,
        }
    }

    /// Rows of a full run of the values beside an index of this configuration.
    pub(crate) fn run_len_of(config: &IndexConfig) -> usize {
        config.segment_len.max(1)
    }

    /// The store of `complete` runs from position `start` on, each with the hash that it was saved as if that is known, and of what comes after
    /// them: without such rows the last run takes no more. `None` if they are not of the lengths that they should have.
    pub(crate) fn restore(
        dim: usize,
        (run_len, start): (usize, usize),
        precision: Precision,
        complete: Vec<(StoredRows, Option<u128>)>,
        last: StoredVec,
    ) -> Option<Self> {
        let mut store = Self::new(dim, run_len, precision);
        store.len = start;
        let is_complete = last.is_empty();
        let last = (!last.is_empty()).then_some((last.into(), None));
        for (rows, hash) in complete.into_iter().chain(last) {
            let count = rows.len() / dim;
            let room = run_len - store.len % run_len;
            if count == 0 || count > room || !rows.len().is_multiple_of(dim) {
                return None;
            }
            store.runs.push(Run {
                saved: Arc::new(hash.map_or_else(OnceLock::new, OnceLock::from)),
                ..Run::new(store.len, rows)
            });
            store.len = store.len.checked_add(count)?;
        }
        store.frozen = is_complete && !store.len.is_multiple_of(run_len);
        Some(store)
    }

    /// The runs that take no more rows, each with where whoever saves it notes the hash that it has been saved as. Clones that share a run share the
    /// note.
    pub(crate) fn complete_runs(&self) -> impl Iterator<Item = (StoredSlice<'_>, &OnceLock<u128>)> {
        let runs = self.runs.iter().take(self.complete());
        runs.map(|run| (run.rows.as_slice(), &*run.saved))
    }

    /// The rows behind them.
    pub(crate) fn last_rows(&self) -> Option<StoredSlice<'_>> {
        let run = self.runs.get(self.complete());
        run.map(|run| run.rows.as_slice())
    }

    /// Position of the first row that is stored, or of the next one.
    pub(crate) fn first(&self) -> usize {
        self.runs.first().map_or(self.len, |run| run.start)
    }

    fn complete(&self) -> usize {
        let takes_rows = !self.frozen && !self.len.is_multiple_of(self.run_len);
        self.runs.len() - usize::from(takes_rows && !self.runs.is_empty())
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

    /// Rows of a full run.
    pub fn run_len(&self) -> usize {
        self.run_len
    }

    /// The run that holds `position`; `None` if there is no such row, or it was evicted.
    ///
    /// # Complexity
    ///
    /// O(log runs); O(1) if the store was never forked.
    pub fn run_at(&self, position: usize) -> Option<ValueRun<'_>> {
        if position >= self.len {
            return None;
        }
        // Without frozen runs before it, this is the place.
        let first = self.runs.first()?.start / self.run_len;
        let place = (position / self.run_len).checked_sub(first)?;
        let holds = |run: &Run| run.start <= position && position < run.start + self.rows_of(run);
        let run = match self.runs.get(place) {
            Some(run) if holds(run) => run,
            _ => {
                let next = self.runs.partition_point(|run| run.start <= position);
                self.runs.get(next.checked_sub(1)?)?
            }
        };
        Some(ValueRun {
            start: run.start,
            rows: &run.rows,
        })
    }

    fn rows_of(&self, run: &Run) -> usize {
        run.rows.len() / self.dim
    }

    /// The runs that are stored, with the position of the first row of each and where they lie.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = (usize, &StoredRows)> {
        self.runs.iter().map(|run| (run.start, &*run.rows))
    }

    /// Moves every full run into a [region](hira_kernels::Region), where its residence can change. One that a fork shares stays owned; so
    /// does everything where there are no regions.
    pub(crate) fn move_to_regions(&mut self) {
        let complete = self.len / self.run_len * self.run_len;
        for run in self.runs.iter_mut().filter(|run| run.start < complete) {
            if let Some(rows) = Arc::get_mut(&mut run.rows) {
                // a run that cannot be moved is one that stays in memory
                let _ = rows.move_to_region();
            }
        }
    }

    /// The row at `position`.
    pub fn row(&self, position: usize) -> Option<StoredSlice<'_>> {
        let run = self.run_at(position)?;
        let first = (position - run.start) * self.dim;
        run.rows.as_slice().get(first..first + self.dim)
    }

    /// The longest contiguous slice of rows that starts at `range.start` and stays inside `range`; not more than are stored.
    pub(crate) fn contiguous(&self, range: Range<usize>) -> Option<StoredSlice<'_>> {
        let wanted = range.end.checked_sub(range.start)?;
        let run = self.run_at(range.start)?;
        let first = range.start - run.start;
        let rows = (run.rows.len() / self.dim - first).min(wanted);
        let stored = run.rows.as_slice();
        stored.get(first * self.dim..(first + rows) * self.dim)
    }

    /// Bytes of the rows, with what is reserved for the next ones.
    pub fn bytes(&self) -> usize {
        self.bytes_once(&mut Counted::default())
    }

    /// The same without what `counted` has seen.
    pub(crate) fn bytes_once(&self, counted: &mut Counted) -> usize {
        let rows = self.runs.iter().map(|run| &*run.rows);
        let rows = rows.filter(|rows| counted.is_new(*rows));
        rows.map(StoredRows::bytes).sum()
    }

    /// Has the processor fetch what the next row is written beside.
    pub(crate) fn prefetch_end(&self) {
        if let Some(run) = self.runs.last() {
            let rows = &run.rows;
            let last = rows.len().saturating_sub(1)..rows.len();
            match rows.as_slice().slice(last) {
                StoredSlice::F32(last) => prefetch(last),
                StoredSlice::F16(last) => prefetch(last),
                StoredSlice::Bf16(last) => prefetch(last),
            }
        }
    }

    /// Appends rows, rounded to the precision; the caller has checked them.
    pub(crate) fn append(&mut self, mut rows: &[f32]) {
        while !rows.is_empty() {
            if self.frozen || self.len.is_multiple_of(self.run_len) {
                self.runs.push(Run {
                    forked: self.frozen,
                    ..Run::new(self.len, StoredRows::new(self.precision))
                });
                self.frozen = false;
            }
            let room = self.run_len - self.len % self.run_len;
            let count = (rows.len() / self.dim).min(room);
            let (now, later) = rows.split_at(count * self.dim);
            let mut is_piece = false;
            if let Some(run) = self.runs.last_mut() {
                is_piece = !run.start.is_multiple_of(self.run_len);
                let least = if run.forked {
                    FORKED_ROWS
                } else {
                    RESERVE_ROWS
                };
                let run = Arc::make_mut(&mut run.rows).to_mut();
                let free = run.capacity() - run.len();
                if free < now.len() {
                    // A sixteenth more than a long prompt needs: the token after it would else have all of it copied.
                    let more = (least * self.dim).max(run.len() / 8);
                    let more = more.max(now.len() + now.len() / 16);
                    run.reserve_exact(more.min(room * self.dim));
                }
                run.extend_rounded(now);
            }
            self.len += count;
            rows = later;
            if self.len.is_multiple_of(self.run_len) && is_piece {
                self.join_from(self.first_piece());
            }
        }
    }

    /// Drops the runs all of whose rows lie before position `before`, but the one that takes the next row.
    pub(crate) fn evict(&mut self, before: usize) {
        let outside = |run: &Run| run.start + self.rows_of(run) <= before;
        let outside = self.runs.partition_point(outside);
        self.runs.drain(..outside.min(self.complete()));
    }

    /// Forgets every row.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        (self.len, self.frozen) = (0, false);
    }

    /// The first of the runs between the last multiple of `run_len` before the last row and the end.
    fn first_piece(&self) -> usize {
        let start = self.len.saturating_sub(1) / self.run_len * self.run_len;
        self.runs.partition_point(|run| run.start < start)
    }

    /// Makes one run of the last ones.
    fn join_from(&mut self, first: usize) {
        let Some(start) = self.runs.get(first).map(|run| run.start) else {
            return;
        };
        let mut rows = StoredVec::new(self.precision);
        rows.reserve_exact((self.len - start) * self.dim);
        for run in self.runs.drain(first..) {
            rows.extend(run.rows.as_slice());
        }
        self.runs.push(Run::new(start, rows.into()));
    }

    /// Ends the last run, so that forks go on in runs of their own and share all of this one. Runs that were ended so before, and are not
    /// much longer, become one with it.
    pub(crate) fn freeze(&mut self) {
        if self.frozen || self.is_empty() {
            return;
        }
        self.frozen = true;
        if self.len.is_multiple_of(self.run_len) {
            return;
        }
        let least = self.first_piece();
        let mut first = self.runs.len() - 1;
        let mut rows = self.rows_of(&self.runs[first]);
        while first > least && self.rows_of(&self.runs[first - 1]) < 2 * rows {
            first -= 1;
            rows += self.rows_of(&self.runs[first]);
        }
        if first + 1 < self.runs.len() {
            self.join_from(first);
        } else if let Some(run) = self.runs.last_mut()
            && let Some(rows) = Arc::get_mut(&mut run.rows)
            && rows.region().is_none()
        {
            rows.to_mut().shrink_to_fit();
        }
    }

    /// Forgets the rows from `len` on, none of which was evicted.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.runs
            .truncate(self.runs.partition_point(|run| run.start < len));
        self.len = len;
        self.frozen = false;
        if let Some(run) = self.runs.last_mut() {
            let kept = (len - run.start) * self.dim;
            if kept < run.rows.len() {
                run.saved = Arc::default();
                // What is left of a shared run is copied, and nothing else of it.
                match Arc::get_mut(&mut run.rows) {
                    Some(rows) if rows.region().is_none() => rows.truncate(kept),
                    _ => {
                        let mut rows = StoredVec::new(self.precision);
                        rows.extend(run.rows.as_slice().slice(0..kept));
                        run.rows = Arc::new(rows.into());
                    }
                }
            } else {
                // It ended here, full or frozen.
                self.frozen = !len.is_multiple_of(self.run_len);
            }
        }
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
    fn forks_share_every_row_and_runs_grow_together_again() {
        let mut store = ValueStore::new(2, 64, Precision::F32);
        let mut forks = Vec::new();
        for step in 0..300 {
            store.append(&rows(step..step + 1));
            if step % 3 == 0 {
                store.freeze();
                forks.push(store.clone());
            }
            for i in 0..=step {
                assert_eq!(store.row(i), Some((&rows(i..i + 1)).into()));
            }
            assert_eq!(store.row(step + 1), None);
        }
        // Whole runs, and at most a logarithm of pieces.
        assert_eq!(
            store.runs[..4]
                .iter()
                .map(|run| run.start)
                .collect::<Vec<_>>(),
            [0, 64, 128, 192]
        );
        assert!(store.runs.len() <= 4 + 6, "{}", store.runs.len());
        for (i, mut fork) in forks.into_iter().enumerate() {
            let len = 3 * i + 1;
            assert_eq!(fork.len(), len);
            let before = fork.bytes();
            fork.append(&rows(900..901));
            // 16 rows are reserved, but for the run that is whole again
            assert!(fork.bytes() <= before + 64 * 8, "{len}");
            fork.truncate(len / 2);
            fork.append(&rows(len / 2..len));
            for i in 0..len {
                assert_eq!(fork.row(i), Some((&rows(i..i + 1)).into()));
            }
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
