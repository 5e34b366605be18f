//! Rows of several regions on disk, read together.

use std::ops::Range;
use std::sync::Arc;

use crate::{Precision, Region, StoredRows, StoredSlice, StoredVec};

/// Rows whose gap is at most as many bytes are asked for together.
const GAP: usize = 16 << 10;

/// Copies of rows that are on disk, read in one batch: those that the system has in memory at once; all others are asked for, neighbours
/// together, before the first of them is waited for.
///
/// The rows are copied rather than read where they are mapped: a page that is touched there counts as this process's memory, with up to fifteen
/// around it that the system maps on the way.
///
/// # Examples
///
/// ```
/// use hira_kernels::{Precision, RowBatch, StoredRows, StoredVec};
///
/// let rows = StoredRows::from(StoredVec::rounded(Precision::F32, &[1.0, 2.0, 3.0, 4.0]));
/// let mut batch = RowBatch::default();
/// batch.begin(Precision::F32);
/// assert!(!batch.ask(&rows, &[1], 2), "they are in memory, to be read there");
/// assert!(batch.is_empty());
/// batch.read();
/// ```
#[derive(Debug, Default)]
pub struct RowBatch {
    values: StoredVec,
    /// The values of each part.
    parts: Vec<Range<usize>>,
    missing: Vec<Missing>,
}

/// A row that the system did not have in memory.
#[derive(Debug)]
struct Missing {
    region: Arc<Region>,
    start: usize,
    /// Where its bytes belong among those of the batch.
    to: Range<usize>,
}

impl RowBatch {
    /// Forgets the parts of the batch before, and keeps its room.
    pub fn begin(&mut self, precision: Precision) {
        self.values.reset(precision);
        self.parts.clear();
        self.missing.clear();
    }

    /// Adds a part, the rows of `dim` values at `picked`, which ascend, and says whether it did: not if `rows` are in memory.
    ///
    /// # Panics
    ///
    /// If there is no such row, or the precision is not that of the batch.
    pub fn ask(&mut self, rows: &StoredRows, picked: &[u32], dim: usize) -> bool {
        let Some((region, base)) = rows.on_disk() else {
            return false;
        };
        assert_eq!(rows.precision(), self.values.precision());
        let row_bytes = dim * rows.precision().bytes();
        let (first, missing) = (self.values.len(), self.missing.len());
        let mut to = first * rows.precision().bytes();
        self.values.extend_zeros(picked.len() * dim);
        self.parts.push(first..self.values.len());
        let mut asked: Option<Range<usize>> = None;
        for &row in picked {
            let start = base + row as usize * row_bytes;
            let end = start + row_bytes;
            let out = to..to + row_bytes;
            to = out.end;
            if region.read_cached(start, &mut self.values.bytes_mut()[out.clone()]) {
                continue;
            }
            match &mut asked {
                Some(asked) if start <= asked.end + GAP => asked.end = asked.end.max(end),
                _ => {
                    if let Some(asked) = asked.replace(start..end) {
                        region.will_need(asked);
                    }
                }
            }
            self.missing.push(Missing {
                region: Arc::clone(region),
                start,
                to: out,
            });
        }
        if let Some(asked) = asked {
            region.will_need(asked);
        }
        region.count_disk_reads(picked.len(), self.missing.len() - missing);
        true
    }

    /// Waits for the rows that were not in memory. One whose file cannot be read is taken from where it is mapped.
    pub fn read(&mut self) {
        for Missing { region, start, to } in self.missing.drain(..) {
            let out = &mut self.values.bytes_mut()[to];
            if region.read_at(start, out).is_err() {
                let end = start + out.len();
                out.copy_from_slice(&region.bytes()[start..end]);
            }
        }
    }

    /// Whether no part was added.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The rows of part `i`, in the order in which they were picked. Call [`read`](Self::read) before.
    ///
    /// # Panics
    ///
    /// If there is no such part.
    pub fn part(&self, i: usize) -> StoredSlice<'_> {
        self.values.as_slice().slice(self.parts[i].clone())
    }

    /// Bytes that are allocated.
    pub fn memory_usage(&self) -> usize {
        self.values.bytes()
            + self.parts.capacity() * size_of::<Range<usize>>()
            + self.missing.capacity() * size_of::<Missing>()
    }
}
