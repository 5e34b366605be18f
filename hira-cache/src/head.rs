//! One KV head of one sequence: its index, its values, and their means by blocks.

use std::ops::Range;

use hira_index::{HierarchicalIndex, IndexError};
use hira_kernels::{MAX_NORM, Precision, StoredRows, StoredSlice, dense::RowHolder};
use hira_memory::Part;
use hira_search::SearchHistory;

use crate::{BlockMeans, CacheConfig, ValueStore};

/// Keys and values of a range of positions that are contiguous in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvRun<'a> {
    /// Position of the first row.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Keys as they are stored, row-major `[len, D]`.
    pub keys: StoredSlice<'a>,
    /// Values as they are stored, in the precision of the keys, row-major `[len, Dv]`.
    pub values: StoredSlice<'a>,
}

/// The keys (with their index) and the values of one KV head of one sequence.
#[derive(Debug, Clone)]
pub struct HeadCache {
    index: HierarchicalIndex,
    values: ValueStore,
    means: BlockMeans,
    max_key_norm: f32,
    max_value_norm: f32,
    history: Option<SparseHistory>,
    widening: Option<f32>,
    searches: SearchHistory,
}

/// Everything of a head that was saved.
pub(crate) struct HeadState {
    pub(crate) index: HierarchicalIndex,
    pub(crate) values: ValueStore,
    pub(crate) means: BlockMeans,
    pub(crate) max_key_norm: f32,
    pub(crate) max_value_norm: f32,
    pub(crate) history: Option<SparseHistory>,
    pub(crate) widening: Option<f32>,
    pub(crate) searches: SearchHistory,
}

/// Running means over a head's recent sparse steps, kept for the planner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseHistory {
    /// Survivors per visible key.
    pub survivor_fraction: f64,
    /// The proven bound on the dropped softmax mass.
    pub dropped_mass: f64,
}

/// Why the values of one head were refused.
pub(crate) enum ValueFault {
    NonFinite { token: usize, column: usize },
    Overflow { token: usize, column: usize },
    Magnitude { token: usize },
}

impl HeadCache {
    /// An empty head of a layer with this window, if it has one.
    pub(crate) fn new(config: &CacheConfig, window: Option<usize>) -> Result<Self, IndexError> {
        let index = config.index_of(window);
        let run_len = ValueStore::run_len_of(&index);
        let values = ValueStore::new(config.value_dim, run_len, index.precision);
        Ok(Self {
            index: HierarchicalIndex::with_kernel(index, config.kernel)?,
            values,
            means: BlockMeans::new(config.tail_block, config.value_dim),
            max_key_norm: 0.0,
            max_value_norm: 0.0,
            history: None,
            widening: None,
            searches: SearchHistory::default(),
        })
    }

    /// The head that was saved; `None` if it has not a value for every key.
    pub(crate) fn restore(state: HeadState) -> Option<Self> {
        (state.index.len() == state.values.len()).then_some(Self {
            index: state.index,
            values: state.values,
            means: state.means,
            max_key_norm: state.max_key_norm,
            max_value_norm: state.max_value_norm,
            history: state.history,
            widening: state.widening,
            searches: state.searches,
        })
    }

    /// What searches remember.
    pub(crate) fn searches(&self) -> &SearchHistory {
        &self.searches
    }

    /// Tokens that were appended and not taken back, those that were evicted included.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no token was appended, or all were taken back.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The position of the first token that is stored: those before it were evicted, in a layer with a window.
    pub fn evicted(&self) -> usize {
        self.index.evicted()
    }

    /// The index over the keys.
    pub fn index(&self) -> &HierarchicalIndex {
        &self.index
    }

    /// The values.
    pub fn values(&self) -> &ValueStore {
        &self.values
    }

    /// The mean values of the complete blocks of positions.
    pub fn means(&self) -> &BlockMeans {
        &self.means
    }

    /// An upper bound on the Euclidean norm of every key, as stored, that was ever stored since the last reset.
    pub fn max_key_norm(&self) -> f32 {
        self.max_key_norm
    }

    /// An upper bound on the Euclidean norm of every value, as stored, that was ever stored since the last reset.
    pub fn max_value_norm(&self) -> f32 {
        self.max_value_norm
    }

    /// What recent sparse steps came to, as recorded by the planner.
    pub fn history(&self) -> Option<SparseHistory> {
        self.history
    }

    /// Records what the planner measured. It steers the choice between dense and sparse, nothing else.
    pub fn record(&mut self, history: SparseHistory) {
        self.history = Some(history);
    }

    /// The share of the softmax mass that the last search which held an error limit was allowed to drop; 0 if only dense attention held it,
    /// and `None` if the configured rule does.
    pub fn widening(&self) -> Option<f32> {
        self.widening
    }

    /// Records [`widening`](Self::widening). It steers where the next step begins, nothing else.
    pub fn set_widening(&mut self, share: Option<f32>) {
        self.widening = share;
    }

    /// What searches of this head remember from one step to the next; lend it to the scratch that searches.
    ///
    /// It steers the choice of search plans and gives first thresholds. It changes speed, never an answer.
    pub fn search_history_mut(&mut self) -> &mut SearchHistory {
        &mut self.searches
    }

    /// Runs of keys and values over `positions`, in order: each is contiguous in both.
    pub fn runs(&self, positions: Range<usize>) -> impl Iterator<Item = KvRun<'_>> {
        self.index.segments().flat_map(move |segment| {
            let first = segment.start().max(positions.start);
            let end = (segment.start() + segment.len()).min(positions.end);
            RunsOfSegment {
                head: self,
                keys: segment.keys(),
                segment_start: segment.start(),
                next: first,
                end,
            }
        })
    }

    /// The rows of `positions`, if there are such and they are contiguous in both.
    ///
    /// # Complexity
    ///
    /// O(log segments).
    pub fn run(&self, positions: Range<usize>) -> Option<KvRun<'_>> {
        let len = positions.end.checked_sub(positions.start)?;
        let values = self.values.contiguous(positions.clone())?;
        let keys = self.index.contiguous(positions.clone())?;
        (values.len() == len * self.values.dim()).then_some(KvRun {
            start: positions.start,
            len,
            keys,
            values,
        })
    }

    /// Whether some rows are on disk.
    pub fn is_on_disk(&self) -> bool {
        let mut keys = self.index.segments();
        keys.any(|segment| segment.rows().is_on_disk())
            || self.values.runs().any(|(_, run)| run.is_on_disk())
    }

    /// Calls `what` with stored rows, keys and values, and the part of them that holds `positions`.
    fn for_stored(&self, positions: Range<usize>, what: impl Fn(&StoredRows, Range<usize>)) {
        let part = |rows: &StoredRows, start: usize, dim: usize| {
            let first = positions.start.max(start);
            let end = positions.end.min(start + rows.len() / dim);
            if first < end {
                what(rows, (first - start) * dim..(end - start) * dim);
            }
        };
        for segment in self.index.segments() {
            part(segment.rows(), segment.start(), self.index.dim());
        }
        for (start, run) in self.values.runs() {
            part(run, start, self.values.dim());
        }
    }

    /// Everything whose residence can change, and what cannot: each part with the position of its first row.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (Part, usize, &StoredRows)> {
        let keys = self.index.segments();
        let keys = keys.map(|segment| (Part::Keys, segment.start(), segment.rows()));
        let values = self.values.runs();
        keys.chain(values.map(|(start, run)| (Part::Values, start, run)))
    }

    /// Moves what is complete into regions, as far as the system and forks let it.
    pub(crate) fn move_to_regions(&mut self) {
        self.index.move_keys_to_regions();
        self.values.move_to_regions();
    }

    /// Waits for what is built in the background.
    pub(crate) fn finish_builds(&mut self) {
        self.index.finish_builds();
    }

    /// Has the processor fetch what the next token is written to.
    pub(crate) fn prefetch_end(&self) {
        self.index.prefetch_end();
        self.values.prefetch_end();
    }

    /// Everything that [`HeadCache::append`] would refuse in `values`.
    pub(crate) fn check_values(&self, values: &[f32]) -> Result<(), ValueFault> {
        let precision = self.values.precision();
        for (token, row) in values.chunks_exact(self.values.dim()).enumerate() {
            let norm = norm_upper(row, precision);
            if norm < f64::from(MAX_NORM) {
                continue;
            }
            let stored = |x: &f32| !precision.round(*x).is_finite();
            return Err(match row.iter().position(stored) {
                Some(column) if row[column].is_finite() => ValueFault::Overflow { token, column },
                Some(column) => ValueFault::NonFinite { token, column },
                None => ValueFault::Magnitude { token },
            });
        }
        Ok(())
    }

    /// Appends checked rows, rounded to the precision.
    pub(crate) fn append(&mut self, keys: &[f32], values: &[f32]) -> Result<(), IndexError> {
        self.index.append(keys)?;
        self.values.append(values);
        self.means.follow(&self.values);
        let precision = self.values.precision();
        let key_norm = max_norm(keys, self.index.dim(), precision);
        let value_norm = max_norm(values, self.values.dim(), precision);
        self.max_key_norm = self.max_key_norm.max(key_norm);
        self.max_value_norm = self.max_value_norm.max(value_norm);
        Ok(())
    }

    /// Drops what lies before position `before`, as far as it fills whole segments.
    pub(crate) fn evict(&mut self, before: usize) {
        self.index.evict(before);
        let evicted = self.index.evicted();
        self.values.evict(evicted);
        self.means.evict(evicted);
    }

    /// Forgets the last `tokens` tokens: what an attention takes back when it fails after it has stored them.
    pub fn forget_last(&mut self, tokens: usize) {
        self.truncate(self.len().saturating_sub(tokens));
    }

    /// A head of the same keys and values that shares the memory of all of them. What searches remember does not go with it.
    pub(crate) fn fork(&mut self) -> Self {
        self.values.freeze();
        self.means.freeze();
        Self {
            index: self.index.fork(),
            values: self.values.clone(),
            means: self.means.clone(),
            searches: SearchHistory::default(),
            ..*self
        }
    }

    /// Forgets the tokens from `len` on, none of which was evicted.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.index.truncate(len);
        self.values.truncate(len);
        self.means.truncate(len);
    }

    pub(crate) fn reset(&mut self) {
        self.index.clear();
        self.values.clear();
        self.means.clear();
        self.max_key_norm = 0.0;
        self.max_value_norm = 0.0;
        self.history = None;
        self.widening = None;
        self.searches = SearchHistory::default();
    }
}

/// Rows on disk are asked for without waiting, and their pages are taken out of this process's memory when they were read; nothing happens to
/// others.
impl RowHolder for HeadCache {
    fn will_need(&self, positions: Range<usize>) {
        self.for_stored(positions, |rows, values| rows.will_need(values));
    }

    fn forget(&self, positions: Range<usize>) {
        self.for_stored(positions, |rows, values| rows.forget(values));
    }
}

struct RunsOfSegment<'a> {
    head: &'a HeadCache,
    keys: StoredSlice<'a>,
    segment_start: usize,
    next: usize,
    end: usize,
}

impl<'a> Iterator for RunsOfSegment<'a> {
    type Item = KvRun<'a>;

    fn next(&mut self) -> Option<KvRun<'a>> {
        if self.next >= self.end {
            return None;
        }
        let values = self.head.values.contiguous(self.next..self.end)?;
        let len = values.len() / self.head.values.dim();
        let dim = self.head.index.dim();
        let first = (self.next - self.segment_start) * dim;
        let run = KvRun {
            start: self.next,
            len,
            keys: self.keys.get(first..first + len * dim)?,
            values,
        };
        self.next += len;
        Some(run)
    }
}

/// The Euclidean norm of a row as it is stored, rounded upwards; NaN or infinite if an element is.
///
/// In f64 the squares are exact (24-bit factors) and cannot overflow; the sum of `n` of them and the root err by less
/// than `(n + 1) 2^-53` relative, which `1 + 2^-30` covers for any `n` below 2^22.
fn norm_upper(row: &[f32], precision: Precision) -> f64 {
    let squares = match precision {
        Precision::F32 => sum_of_squares(row, |x| x),
        _ => sum_of_squares(row, |x| precision.round(x)),
    };
    squares.sqrt() * (1.0 + f64::powi(2.0, -30))
}

/// In eight lanes, so that no addition waits for the one before it.
#[inline(always)]
fn sum_of_squares(row: &[f32], stored: impl Fn(f32) -> f32) -> f64 {
    let square = |x: f32| f64::from(stored(x)) * f64::from(stored(x));
    let mut lanes = [0.0; 8];
    let (blocks, rest) = row.as_chunks::<8>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += square(x);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&x| square(x)).sum::<f64>()
}

/// The largest norm of a row as it is stored, rounded up to f32.
fn max_norm(rows: &[f32], dim: usize, precision: Precision) -> f32 {
    let norms = rows.chunks_exact(dim);
    let norms = norms.map(|row| norm_upper(row, precision));
    // a cast rounds to nearest: one step up makes it an upper bound
    (norms.fold(0.0, f64::max) as f32).next_up()
}
