//! The index: sealed segments, an open one, and what moves keys from the second to the first.

mod fork;

use std::ops::Range;
use std::sync::Arc;

use hira_kernels::{Kernel, StoredSlice};

use crate::level::Level;
use crate::reservoir::{Reservoir, sample_parts};
use crate::update::{Pending, Tail, Task};
use crate::widen::Widener;
use crate::{Builder, Counted, IndexConfig, IndexError, IndexMemory, Segment, rows};

/// Most keys of an index: positions are 32 bits wide.
pub(crate) const MAX_LEN: usize = u32::MAX as usize;

/// The keys of one attention head, in the order of their positions, with what a search needs to know about them.
///
/// Keys are appended at the end and can be searched at once; only the end can be taken back, and what lies in front can be
/// [evicted](Self::evict) by whole segments, which leaves every other key at its position. A clone shares the memory
/// of every sealed segment, and copies the open one only when either side appends to it; [`fork`](Self::fork) shares that, too.
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
    builder: Arc<dyn Builder>,
    sealed: Vec<Arc<Segment>>,
    open: Arc<Segment>,
    reservoir: Reservoir,
    /// Builds that are under way on another thread.
    pending: Vec<Pending>,
    widener: Widener,
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
            reservoir: Reservoir::new(config.sample),
            builder: config.builder.init(),
            config,
            kernel,
            sealed: Vec::new(),
            open,
            pending: Vec::new(),
            widener: Widener::default(),
        })
    }

    /// An empty index whose segments `builder` divides, instead of the one that the configuration names.
    ///
    /// Clusters that outgrow their size under an incremental update are divided by k-means.
    ///
    /// # Errors
    ///
    /// Whatever [`IndexConfig::validate`] refuses.
    pub fn with_builder(
        config: IndexConfig,
        builder: Arc<dyn Builder>,
    ) -> Result<Self, IndexError> {
        Ok(Self {
            builder,
            ..Self::new(config)?
        })
    }

    /// Number of rows in `keys`, if [`append`](Self::append) would store them.
    ///
    /// # Errors
    ///
    /// [`IndexError::Dimension`] if `keys` is not a whole number of rows, [`IndexError::NonFinite`],
    /// [`IndexError::Overflow`] or [`IndexError::Magnitude`] for the first row that must not be stored, [`IndexError::Full`] if there are too many.
    pub fn check(&self, keys: &[f32]) -> Result<usize, IndexError> {
        let rows = rows::check(self.kernel, keys, self.config.dim, self.config.precision)?;
        if rows > MAX_LEN - self.len() {
            return Err(IndexError::Full { limit: MAX_LEN });
        }
        Ok(rows)
    }

    /// Has the processor fetch what the next key is written to, without waiting for it: a hint, for whoever appends to several indexes in turn.
    pub fn prefetch_end(&self) {
        self.open.prefetch_end(&self.config);
        self.reservoir.prefetch_end();
    }

    /// Appends the rows of `keys`, [rounded](hira_kernels::Precision::round) to [`IndexConfig::precision`], all or none.
    ///
    /// They can be searched at once. What becomes of the open segment, and when, is up to [`IndexConfig::update`]; one that reaches its
    /// full length is always sealed on the way, so a long batch may seal several. A builder that fails loses nothing and is no reason to
    /// refuse keys: see [`Segment::build_error`].
    ///
    /// # Shapes
    ///
    /// `keys`: any number of rows of [`dim`](Self::dim) values, row by row.
    ///
    /// # Complexity
    ///
    /// O(dim) a key, amortised, and what the updater does: by default the clustering of a segment every `segment_len` keys.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check); the index is then unchanged.
    pub fn append(&mut self, keys: &[f32]) -> Result<(), IndexError> {
        self.check(keys)?;
        self.take_finished();
        let dim = self.config.dim;
        let updater = self.config.update;
        let mut rest = keys;
        while !rest.is_empty() {
            let tail = |open| Tail {
                sealed: &self.sealed,
                open,
                config: &self.config,
            };
            let room = updater.updater().room(tail(self.open.len()));
            let added = room.min(rest.len() / dim);
            let (batch, later) = rest.split_at(added * dim);
            let full = added == room;
            let due = full || updater.updater().is_due(tail(self.open.len() + added));
            let open = Arc::make_mut(&mut self.open);
            if due && !self.config.background {
                // Building sketches all keys about their mean: no need to sketch these before.
                open.append_last(batch);
                self.build();
            } else {
                open.append(self.kernel, batch, &self.config, &mut self.widener);
                if due {
                    self.build_in_background(full);
                }
            }
            rest = later;
        }
        self.widener.shrink(dim);
        self.reservoir.extend_to(self.len());
        Ok(())
    }

    /// Does now what the updater would do later: the open segment is sealed, however short, and its coarse levels are built, together with
    /// those sealed segments that the updater would build with it. Later keys start a new segment.
    ///
    /// With the default updater no other segment is touched. Nothing happens if the open segment is empty.
    ///
    /// # Complexity
    ///
    /// The clustering of the segment: for `n` keys O(n * b * dim) an iteration, per coarse level. In the background: O(segments).
    pub fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        if self.config.background {
            self.build_in_background(true);
        } else {
            self.build();
        }
    }

    fn new_open(&self, start: usize) -> Arc<Segment> {
        let centre = self.open.centre().to_vec();
        Arc::new(Segment::open(start, &self.config, centre))
    }

    /// Waits for everything that is being built in the background, and takes it over.
    ///
    /// Searches find the same before and after; this is for whoever wants to measure or save what was built.
    pub fn finish_builds(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            pending.install(&mut self.sealed);
        }
    }

    /// Moves the keys of every sealed segment into a [region](hira_kernels::Region), where their residence can change. Those that a fork or a
    /// build shares stay owned; so does everything where there are no regions.
    ///
    /// # Complexity
    ///
    /// O(segments), and a copy of the keys that are moved.
    pub fn move_keys_to_regions(&mut self) {
        self.take_finished();
        for segment in self.sealed.iter_mut().filter_map(Arc::get_mut) {
            // keys that cannot be moved are keys that stay in memory
            let _ = segment.move_keys_to_region();
        }
    }

    /// Number of builds that are under way in the background.
    pub fn pending_builds(&self) -> usize {
        self.pending.len()
    }

    fn take_finished(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            if pending.is_done() {
                pending.install(&mut self.sealed);
            } else {
                self.pending.push(pending);
            }
        }
    }

    /// The first of the sealed segments that are built together with the open one.
    fn first_to_build(&self) -> usize {
        self.config.update.updater().first(Tail {
            sealed: &self.sealed,
            open: self.open.len(),
            config: &self.config,
        })
    }

    /// Builds the open segment, with those that belong to it, on this thread.
    fn build(&mut self) {
        let first = self.first_to_build();
        self.close_open();
        let inputs = self.sealed.split_off(first);
        let built = self.task(inputs).run();
        self.sealed.extend(built);
        self.centre_open(self.open.start());
    }

    /// Has the open segment built, with those that belong to it, on another thread. If one of these is being built already, the open keys
    /// wait for that, unless this `must` be now.
    fn build_in_background(&mut self, must: bool) {
        let first = self.first_to_build();
        let mut reaching = self.pending.iter();
        if reaching.any(|pending| pending.reaches(&self.sealed, first)) {
            if !must {
                return;
            }
            self.finish_builds();
        }
        // Waiting has changed the segments.
        let first = self.first_to_build();
        if self.open.lacks_sketch() {
            let open = Arc::make_mut(&mut self.open);
            open.complete_sketch(self.kernel, &self.config, &mut self.widener);
            self.widener.shrink(self.config.dim);
        }
        self.close_open();
        let task = self.task(self.sealed[first..].to_vec());
        self.pending.push(Pending::start(task));
    }

    /// Moves the open segment to the sealed ones, as it is, and opens another.
    fn close_open(&mut self) {
        let end = self.len();
        Arc::make_mut(&mut self.open).close();
        let next = self.new_open(end);
        let closed = std::mem::replace(&mut self.open, next);
        self.sealed.push(closed);
    }

    /// The next segment is quantised about the mean of the one before, until it has a batch of its own.
    fn centre_open(&mut self, start: usize) {
        if let Some(last) = self.sealed.last() {
            let centre = last.centre().to_vec();
            self.open = Arc::new(Segment::open(start, &self.config, centre));
        }
    }

    fn task(&self, inputs: Vec<Arc<Segment>>) -> Task {
        Task {
            inputs,
            config: self.config.clone(),
            kernel: self.kernel,
            builder: Arc::clone(&self.builder),
        }
    }

    /// Number of keys that were appended and not taken back, those that were evicted included: the position of the next one.
    pub fn len(&self) -> usize {
        self.open.start() + self.open.len()
    }

    /// Whether no key was appended, or all were taken back.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of keys that [`evict`](Self::evict) has dropped: the position of the first key that is stored.
    pub fn evicted(&self) -> usize {
        let first = self.sealed.first();
        first.map_or(self.open.start(), |segment| segment.start())
    }

    /// The positions of the keys that are stored.
    pub fn positions(&self) -> Range<usize> {
        self.evicted()..self.len()
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

    /// The `i`-th of the [`segments`](Self::segments).
    ///
    /// # Complexity
    ///
    /// O(1).
    pub fn segment(&self, i: usize) -> Option<&Segment> {
        match self.sealed.get(i) {
            Some(segment) => Some(segment),
            None => (i == self.sealed.len() && !self.open.is_empty()).then_some(&self.open),
        }
    }

    /// The key at `position`, as it is stored; `None` if there is none, or it was evicted.
    ///
    /// # Complexity
    ///
    /// O(log segments).
    pub fn key(&self, position: usize) -> Option<StoredSlice<'_>> {
        self.contiguous(position..position.checked_add(1)?)
    }

    /// The keys at `positions`, row by row, as they are stored; `None` if they lie in several segments, or are not all stored.
    ///
    /// # Complexity
    ///
    /// O(log segments).
    pub fn contiguous(&self, positions: Range<usize>) -> Option<StoredSlice<'_>> {
        let next = self
            .sealed
            .partition_point(|segment| segment.start() + segment.len() <= positions.start);
        let segment = self.sealed.get(next).unwrap_or(&self.open);
        let dim = self.config.dim;
        let first = positions.start.checked_sub(segment.start())?;
        let end = positions.end.checked_sub(segment.start())?;
        segment.keys().get(first * dim..end.checked_mul(dim)?)
    }

    /// Overwrites `out` with the sampled positions among the first `visible`: [`SampleConfig::size`](crate::SampleConfig::size)
    /// of them, or all if fewer are visible. Beyond the stored keys, `visible` means all of them.
    ///
    /// A uniform sample without repetition. It depends on the sample's seed and on `visible` alone: not on the keys, not on
    /// how they were appended or taken back, and not on whether there are later ones. The order is that of the sample's
    /// slots, which later keys do not change except where they take a slot.
    ///
    /// # Complexity
    ///
    /// O(size) for all keys; for fewer, O(1) more for each replacement in the sample since, `size * ln(len / visible)` on
    /// average. No allocation once `out` has room.
    ///
    /// ```
    /// use hira_index::{HierarchicalIndex, IndexConfig, SampleConfig};
    ///
    /// let sample = SampleConfig { size: 3, seed: 7 };
    /// let mut index = HierarchicalIndex::new(IndexConfig::new(2).with_sample(sample))?;
    /// index.append(&[0.5; 2 * 100])?;
    /// let (mut early, mut late) = (Vec::new(), Vec::new());
    /// index.sample_positions(50, &mut early);
    /// index.truncate(50);
    /// index.sample_positions(50, &mut late);
    /// assert_eq!((early.len(), &early), (3, &late));
    /// # Ok::<(), hira_index::IndexError>(())
    /// ```
    pub fn sample_positions(&self, visible: usize, out: &mut Vec<u32>) {
        self.reservoir.positions_into(visible, out);
    }

    /// Overwrites `out` with the sampled positions among `positions`: those of [`sample_positions`](Self::sample_positions) if the range begins
    /// at 0, and else one position of each of [`SampleConfig::size`](crate::SampleConfig::size) parts of it that are equally long, ascending; all
    /// of them if the range is no longer than that. Positions that are not stored are cut off.
    ///
    /// It depends on the sample's seed and on the range alone. Within a part every position is as likely as any other.
    ///
    /// # Complexity
    ///
    /// O(size). No allocation once `out` has room.
    pub fn sample_range(&self, positions: Range<usize>, out: &mut Vec<u32>) {
        if positions.start == 0 && self.evicted() == 0 {
            return self.sample_positions(positions.end, out);
        }
        let stored = self.positions();
        let range = positions.start.max(stored.start)..positions.end.min(stored.end);
        sample_parts(self.config.sample, range, out);
    }

    /// Levels that a full segment has, the sketch included.
    pub fn num_levels(&self) -> usize {
        self.config.num_levels
    }

    /// Coarse level `i` of a segment; `None` if there is no such segment, or it has no such level.
    pub fn level(&self, segment: usize, i: usize) -> Option<&Level> {
        self.segments().nth(segment)?.levels().get(i)
    }

    /// Bytes allocated for keys, sketch, levels and sample.
    pub fn memory_usage(&self) -> IndexMemory {
        self.memory_usage_once(&mut Counted::default())
    }

    /// As [`memory_usage`](Self::memory_usage), without what `counted` has seen: over several indexes, what they share counts once.
    pub fn memory_usage_once(&self, counted: &mut Counted) -> IndexMemory {
        let mut memory = IndexMemory {
            levels: vec![0; self.config.num_levels.saturating_sub(1)],
            keys: self.widener.bytes(),
            sample: self.reservoir.memory_usage(counted),
            ..IndexMemory::default()
        };
        let segments = self
            .segments()
            .filter(|segment| counted.is_new(segment.rows()));
        for segment in segments {
            memory.keys += segment.key_bytes();
            memory.sketch += segment.sketch_bytes();
            memory.product += segment.product_bytes();
            for (bytes, level) in memory.levels.iter_mut().zip(segment.levels()) {
                *bytes += level.memory_usage();
            }
        }
        memory
    }

    /// Drops the sealed segments all of whose keys lie before position `before`; every other key keeps its position.
    ///
    /// What was evicted does not come back. The open segment stays, and so does one that is being built in the background, with those
    /// behind it: of the keys before `before`, fewer than [`segment_len`](IndexConfig::segment_len) stay otherwise.
    ///
    /// # Complexity
    ///
    /// O(segments).
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_index::{HierarchicalIndex, IndexConfig};
    ///
    /// let mut index = HierarchicalIndex::new(IndexConfig::new(4).with_segment_len(16))?;
    /// index.append(&[0.5; 4 * 40])?;
    /// index.evict(20);
    /// assert_eq!(index.positions(), 16..40);
    /// assert!(index.key(15).is_none() && index.key(16).is_some());
    /// # Ok::<(), hira_index::IndexError>(())
    /// ```
    pub fn evict(&mut self, before: usize) {
        let outside = self
            .sealed
            .partition_point(|segment| segment.start() + segment.len() <= before);
        let idle = (0..outside).take_while(|&i| !self.is_pending(i)).count();
        self.sealed.drain(..idle);
    }

    /// Forgets the keys from position `len` on; nothing happens if there are fewer.
    ///
    /// Keys that were evicted do not come back: if `len` lies before [`evicted`](Self::evicted), no key is left, and the next one goes to
    /// position `len`.
    ///
    /// # Complexity
    ///
    /// O(segments) and, if `len` cuts a sealed segment, a copy and a sketch of the keys of it that stay.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        self.reservoir.truncate(len);
        let first = self.evicted().min(len);
        if len > self.open.start() {
            let kept = len - self.open.start();
            Arc::make_mut(&mut self.open).truncate(self.kernel, kept);
            return;
        }
        let whole = self
            .sealed
            .partition_point(|segment| segment.start() + segment.len() <= len);
        let cut = self.sealed.get(whole).filter(|cut| cut.start() < len);
        let cut = cut.cloned();
        self.sealed.truncate(whole);
        let start = self
            .sealed
            .last()
            .map_or(first, |segment| segment.start() + segment.len());
        let centre = self
            .sealed
            .last()
            .map_or_else(|| vec![0.0; self.config.dim], |last| last.centre().to_vec());
        let mut open = Segment::open(start, &self.config, centre);
        if let Some(cut) = cut {
            let kept = cut.keys().slice(0..(len - start) * self.config.dim);
            open.append_stored(self.kernel, kept, &self.config, &mut self.widener);
            self.widener.shrink(self.config.dim);
        }
        self.open = Arc::new(open);
        // Nobody waits for what is built of keys that are forgotten.
        let sealed = &self.sealed;
        self.pending.retain(|pending| pending.is_of_use(sealed));
    }

    /// Forgets every key.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// The sealed segments, which clones of the index share, in the order of their positions.
    pub fn sealed(&self) -> &[Arc<Segment>] {
        &self.sealed
    }

    /// Puts segments that were checked in the place of those that there are, and samples their positions.
    pub(crate) fn put(&mut self, sealed: Vec<Arc<Segment>>, open: Segment) {
        self.sealed = sealed;
        self.open = Arc::new(open);
        self.reservoir.truncate(0);
        self.reservoir.extend_to(self.len());
    }

    /// The segment that takes new keys; it may hold none.
    pub fn open(&self) -> &Segment {
        &self.open
    }

    pub(crate) fn reservoir(&self) -> &Reservoir {
        &self.reservoir
    }

    /// Whether the sealed segment `i` is part of a build that is under way.
    pub(crate) fn is_pending(&self, i: usize) -> bool {
        let mut pending = self.pending.iter();
        pending.any(|pending| pending.covers(&self.sealed, i))
    }
}
