//! The index: sealed segments, an open one, and what moves keys from the second to the first.

use std::fmt;
use std::sync::Arc;

use hira_kernels::Kernel;

use crate::level::Level;
use crate::{IndexConfig, IndexError, IndexMemory, Segment, rows};

/// Most keys of an index: positions are 32 bits wide.
const MAX_LEN: usize = u32::MAX as usize;

/// The keys of one attention head, in the order of their positions, with what a search needs to know about them.
///
/// Keys are appended at the end and can be searched at once; only the end can be taken back. A clone shares the memory
/// of every sealed segment, and copies the open one only when either side appends to it: a fork costs O(segments).
///
/// # Examples
///
/// ```
/// use hira_index::{HierarchicalIndex, IndexConfig};
///
/// let mut prompt = HierarchicalIndex::new(IndexConfig::new(4).with_segment_len(16))?;
/// prompt.append(&[0.5; 4 * 40])?; // two segments fill up and are sealed
/// assert_eq!(prompt.segments().map(|segment| segment.len()).collect::<Vec<_>>(), [16, 16, 8]);
///
/// let mut answer = prompt.clone();
/// answer.append(&[1.0, 2.0, 3.0, 4.0])?;
/// answer.truncate(20); // reopens the second segment
/// assert_eq!((prompt.len(), answer.len()), (40, 20));
/// # Ok::<(), hira_index::IndexError>(())
/// ```
#[derive(Clone)]
pub struct HierarchicalIndex {
    config: IndexConfig,
    kernel: Kernel,
    sealed: Vec<Arc<Segment>>,
    open: Arc<Segment>,
}

impl HierarchicalIndex {
    /// An empty index that computes with the fastest kernel of this machine.
    ///
    /// # Errors
    ///
    /// Whatever [`IndexConfig::validate`] refuses.
    pub fn new(config: IndexConfig) -> Result<Self, IndexError> {
        Self::with_kernel(config, Kernel::best())
    }

    /// An empty index that computes with `kernel`. The choice changes the speed, not a bit of what is stored.
    ///
    /// # Errors
    ///
    /// Whatever [`IndexConfig::validate`] refuses.
    pub fn with_kernel(config: IndexConfig, kernel: Kernel) -> Result<Self, IndexError> {
        config.validate()?;
        let open = Arc::new(Segment::open(0, &config, vec![0.0; config.dim]));
        Ok(Self {
            config,
            kernel,
            sealed: Vec::new(),
            open,
        })
    }

    /// Number of rows in `keys`, if [`append`](Self::append) would store them.
    ///
    /// # Errors
    ///
    /// [`IndexError::Dimension`] if `keys` is not a whole number of rows, [`IndexError::NonFinite`] or
    /// [`IndexError::Magnitude`] for the first row that must not be stored, [`IndexError::Full`] if there are too many.
    pub fn check(&self, keys: &[f32]) -> Result<usize, IndexError> {
        let rows = rows::check(keys, self.config.dim)?;
        if rows > MAX_LEN - self.len() {
            return Err(IndexError::Full { limit: MAX_LEN });
        }
        Ok(rows)
    }

    /// Appends the rows of `keys`, all or none.
    ///
    /// A segment that reaches its full length is sealed on the way, so a long batch may seal several.
    ///
    /// # Shapes
    ///
    /// `keys`: any number of rows of [`dim`](Self::dim) values, row by row.
    ///
    /// # Complexity
    ///
    /// O(dim) a key, amortised, and the sealing of a segment every `segment_len` keys: the clustering of its keys.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check); the index is then unchanged.
    pub fn append(&mut self, keys: &[f32]) -> Result<(), IndexError> {
        self.check(keys)?;
        let mut rest = keys;
        while !rest.is_empty() {
            let room = (self.config.segment_len - self.open.len()) * self.config.dim;
            let (batch, later) = rest.split_at(room.min(rest.len()));
            let open = Arc::make_mut(&mut self.open);
            if batch.len() == room {
                // Sealing sketches all keys about their mean: no need to sketch these before.
                open.append_last(batch);
                self.seal();
            } else {
                open.append(self.kernel, batch, self.config.segment_len);
            }
            rest = later;
        }
        Ok(())
    }

    /// Seals the open segment now, however short: its coarse levels are built and later keys start a new segment.
    ///
    /// Nothing happens if the open segment is empty.
    ///
    /// # Complexity
    ///
    /// The clustering of the segment: for `n` keys O(n * b * dim) an iteration, per coarse level.
    pub fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let previous = self.sealed.last().map(|segment| &**segment);
        Arc::make_mut(&mut self.open).seal(self.kernel, &self.config, previous);
        let end = self.len();
        let next = Segment::open(end, &self.config, self.open.centre().to_vec());
        self.sealed
            .push(std::mem::replace(&mut self.open, Arc::new(next)));
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.open.start() + self.open.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dimension of a key.
    pub fn dim(&self) -> usize {
        self.config.dim
    }

    /// The configuration the index was made with.
    pub fn config(&self) -> &IndexConfig {
        &self.config
    }

    /// The kernel the index computes with.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The segments in the order of their positions: the sealed ones, then the open one if it holds a key.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        let open = (!self.open.is_empty()).then_some(&self.open);
        self.sealed.iter().chain(open).map(|segment| &**segment)
    }

    /// The key at `position`.
    ///
    /// # Complexity
    ///
    /// O(log segments).
    pub fn key(&self, position: usize) -> Option<&[f32]> {
        let next = self
            .sealed
            .partition_point(|segment| segment.start() + segment.len() <= position);
        let segment = self.sealed.get(next).unwrap_or(&self.open);
        let row = (position - segment.start()) * self.config.dim;
        segment.keys().get(row..row + self.config.dim)
    }

    /// Levels that a full segment has, the sketch included.
    pub fn num_levels(&self) -> usize {
        self.config.num_levels
    }

    /// Coarse level `i` of a segment; `None` if there is no such segment, or it has no such level.
    pub fn level(&self, segment: usize, i: usize) -> Option<&Level> {
        self.segments().nth(segment)?.levels().get(i)
    }

    /// Bytes allocated for keys, sketch and levels.
    pub fn memory_usage(&self) -> IndexMemory {
        let mut memory = IndexMemory {
            levels: vec![0; self.config.num_levels.saturating_sub(1)],
            ..IndexMemory::default()
        };
        for segment in self.segments() {
            memory.keys += segment.key_bytes();
            memory.sketch += segment.sketch_bytes();
            memory.product += segment.product_bytes();
            for (bytes, level) in memory.levels.iter_mut().zip(segment.levels()) {
                *bytes += level.bytes();
            }
        }
        memory
    }

    /// Forgets the keys from position `len` on; nothing happens if there are fewer.
    ///
    /// # Complexity
    ///
    /// O(segments) and, if `len` cuts a sealed segment, a copy and a sketch of the keys of it that stay.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        if len > self.open.start() {
            let kept = len - self.open.start();
            Arc::make_mut(&mut self.open).truncate(self.kernel, kept);
            return;
        }
        let whole = self
            .sealed
            .partition_point(|segment| segment.start() + segment.len() <= len);
        let cut = self.sealed.get(whole).cloned();
        self.sealed.truncate(whole);
        let start = self
            .sealed
            .last()
            .map_or(0, |segment| segment.start() + segment.len());
        let centre = self
            .sealed
            .last()
            .map_or_else(|| vec![0.0; self.config.dim], |last| last.centre().to_vec());
        let mut open = Segment::open(start, &self.config, centre);
        if let Some(cut) = cut {
            open.append(
                self.kernel,
                &cut.keys()[..(len - start) * self.config.dim],
                self.config.segment_len,
            );
        }
        self.open = Arc::new(open);
    }

    /// Forgets every key.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    pub(crate) fn sealed(&self) -> &[Arc<Segment>] {
        &self.sealed
    }

    pub(crate) fn open(&self) -> &Segment {
        &self.open
    }
}

/// A dump of a few lines: sizes, segments with the number of clusters on each level, and memory.
impl fmt::Display for HierarchicalIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "HierarchicalIndex: {} keys of dimension {}, {} levels, branching factor {}, kernel {}",
            self.len(),
            self.config.dim,
            self.config.num_levels,
            self.config.branching_factor,
            self.kernel.name()
        )?;
        for segment in self.segments() {
            let state = if segment.is_sealed() {
                "sealed"
            } else {
                "open"
            };
            write!(f, "  {state} segment at {}: ", segment.start())?;
            for level in segment.levels() {
                write!(f, "{} > ", level.len())?;
            }
            writeln!(f, "{} keys", segment.len())?;
        }
        write!(f, "  {}", self.memory_usage())
    }
}

impl fmt::Debug for HierarchicalIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
