//! A run of consecutive keys with everything that is known about them.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use hira_kernels::{
    Kernel, ProductView, SketchView, StoredRows, StoredSlice, StoredVec, TILE, prefetch,
};

use crate::level::Level;
use crate::sketch::{Sketch, growth};
use crate::snapshot::SavedSegment;
use crate::update::Insertion;
use crate::widen::Widener;
use crate::{
    BuildInput, Builder, IndexConfig, IndexError, ProductCodes, build_checked, memory, rows,
};

/// Consecutive keys of an index: exact rows, their sketch and, once sealed, their coarse levels.
///
/// The exact keys are always in the order in which they were appended. The sketch is in *slot* order: the same until
/// the segment is sealed with coarse levels, and then such that every cluster is a run of slots; [`order`](Self::order)
/// leads from a slot back to the key.
///
/// # Examples
///
/// ```
/// use hira_index::{HierarchicalIndex, IndexConfig};
///
/// let mut index = HierarchicalIndex::new(IndexConfig::new(1).with_branching_factor(2).with_min_coarse_len(0))?;
/// index.append(&[0.0, 9.0, 1.0, 8.0])?;
/// index.seal();
/// let segment = index.segments().next().expect("four keys are stored");
/// assert!(segment.is_sealed());
/// assert_eq!(segment.keys(), (&[0.0, 9.0, 1.0, 8.0]).into());
/// // Two clusters of two keys, near to each other: slots 0 and 1, slots 2 and 3.
/// let first = [segment.position_of_slot(0), segment.position_of_slot(1)];
/// assert!(first == [0, 2] || first == [1, 3]);
/// # Ok::<(), hira_index::IndexError>(())
/// ```
#[derive(Clone)]
pub struct Segment {
    start: usize,
    dim: usize,
    pub(crate) keys: StoredRows,
    centre: Vec<f32>,
    pub(crate) sketch: Option<Sketch>,
    pub(crate) product: Option<ProductCodes>,
    pub(crate) order: Option<Vec<u32>>,
    pub(crate) levels: Vec<Level>,
    pub(crate) state: State,
    /// Times that keys joined the clusters since they were built.
    pub(crate) updates: u32,
    pub(crate) build_error: Option<IndexError>,
    /// What it has been saved as; only once it changes no more.
    pub(crate) saved: OnceLock<SavedSegment>,
}

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It takes keys.
    Open,
    /// It takes no keys, and is being built into another on a thread.
    Closed,
    /// It takes no keys, so that forks can share it, and is built together with those that follow.
    Frozen,
    /// It has what it will have.
    Sealed,
}

impl Segment {
    /// Position in the index of the segment's first key.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Dimension of a key.
    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len() / self.dim
    }

    /// Whether the segment holds no key. Segments that an index shows hold at least one.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The exact keys, `len() * dim` values as they are stored, in the order in which they were appended.
    pub fn keys(&self) -> StoredSlice<'_> {
        self.keys.as_slice()
    }

    /// The quantised keys in slot order; `None` in an index of no levels, and while the keys of an open segment wait to be quantised
    /// (see [`IndexConfig::sketch_from`]).
    pub fn sketch(&self) -> Option<SketchView<'_>> {
        let complete = |sketch: &&Sketch| sketch.len() == self.len();
        self.sketch.as_ref().filter(complete).map(Sketch::view)
    }

    /// What is quantised of the keys: a prefix of them, if the segment is open.
    pub(crate) fn partial_sketch(&self) -> Option<SketchView<'_>> {
        self.sketch.as_ref().map(Sketch::view)
    }

    /// The product codes in slot order, about [`centre`](Self::centre); `None` if the segment is open or
    /// [`IndexConfig::product_of`] says that it has none.
    pub fn product(&self) -> Option<ProductView<'_>> {
        self.product.as_ref().map(ProductCodes::view)
    }

    /// The point about which the sketch is quantised. Once the segment is built this is the mean of its keys.
    pub fn centre(&self) -> &[f32] {
        &self.centre
    }

    /// Position within the segment of every slot; `None` if slots are positions.
    ///
    /// Within a cluster of the finest coarse level the positions ascend.
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// The coarse levels, the coarsest first; empty if there are none.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Whether the segment takes no further keys.
    pub fn is_sealed(&self) -> bool {
        self.state != State::Open
    }

    /// Whether the segment is complete but its levels are still being built on another thread.
    pub fn is_building(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether the segment was short when the index was [forked](crate::HierarchicalIndex::fork): it has a sketch, and gets coarse
    /// levels together with the keys that follow.
    pub fn is_frozen(&self) -> bool {
        self.state == State::Frozen
    }

    /// How often keys joined the clusters of the segment since it was built.
    pub fn updates(&self) -> u32 {
        self.updates
    }

    /// Why the segment has no coarse levels although it should: what its builder returned was an error or could not be used.
    pub fn build_error(&self) -> Option<IndexError> {
        self.build_error
    }

    /// An open segment without keys. Its sketch is about `centre`, unless a first batch says better.
    pub(crate) fn open(start: usize, config: &IndexConfig, centre: Vec<f32>) -> Self {
        Self {
            start,
            dim: config.dim,
            keys: StoredRows::new(config.precision),
            centre,
            sketch: (config.num_levels > 0).then(|| Sketch::new(config.dim)),
            product: None,
            order: None,
            levels: Vec::new(),
            state: State::Open,
            updates: 0,
            build_error: None,
            saved: OnceLock::new(),
        }
    }

    /// A segment of checked rows, without a sketch: only [`seal`](Self::seal) may follow.
    pub(crate) fn of_keys(start: usize, config: &IndexConfig, keys: StoredVec) -> Self {
        Self {
            keys: keys.into(),
            ..Self::open(start, config, Vec::new())
        }
    }

    pub(crate) fn into_keys(self) -> StoredVec {
        self.keys.into_owned()
    }

    /// The exact keys, with where they lie.
    pub fn rows(&self) -> &StoredRows {
        &self.keys
    }

    /// Moves the keys of a sealed segment into a region, if the system lets it.
    pub(crate) fn move_keys_to_region(&mut self) -> std::io::Result<()> {
        self.keys.move_to_region()
    }

    /// Takes no more keys: the segment is about to be built into another.
    pub(crate) fn close(&mut self) {
        self.state = State::Closed;
    }

    /// Takes no more keys, and gives spare room back: forks are about to share the segment. Its keys are sketched.
    pub(crate) fn freeze(&mut self) {
        self.keys.to_mut().shrink_to_fit();
        if let Some(sketch) = &mut self.sketch {
            sketch.shrink();
        }
        self.state = State::Frozen;
    }

    /// A frozen segment of the keys of segments that follow each other, at least one key.
    pub(crate) fn frozen_of(
        kernel: Kernel,
        config: &IndexConfig,
        start: usize,
        keys: StoredVec,
    ) -> Self {
        let mut segment = Self::of_keys(start, config, keys);
        let wide = segment.keys.as_slice().widened();
        let centre = rows::mean_of(kernel, &wide, config.dim);
        let sketch = (config.num_levels > 0).then(|| sketch_in_order(kernel, &wide, &centre, None));
        drop(wide);
        segment.centre = centre;
        segment.sketch = sketch;
        segment.freeze();
        segment
    }

    /// Appends checked rows, rounded, and sketches what is due. The segment stays open and will hold at most `segment_len` keys.
    pub(crate) fn append(
        &mut self,
        kernel: Kernel,
        keys: &[f32],
        config: &IndexConfig,
        widener: &mut Widener,
    ) {
        self.reserve(keys.len(), config.segment_len);
        self.keys.to_mut().extend_rounded(keys);
        self.sketch_due(kernel, config, widener);
    }

    /// The same for rows that another segment stores: they are copied.
    pub(crate) fn append_stored(
        &mut self,
        kernel: Kernel,
        keys: StoredSlice<'_>,
        config: &IndexConfig,
        widener: &mut Widener,
    ) {
        self.reserve(keys.len(), config.segment_len);
        self.keys.to_mut().extend(keys);
        self.sketch_due(kernel, config, widener);
    }

    /// Appends rows, rounded, of a segment that is built at once, which sketches them.
    pub(crate) fn append_last(&mut self, keys: &[f32]) {
        self.reserve(keys.len(), self.len() + keys.len() / self.dim);
        self.keys.to_mut().extend_rounded(keys);
    }

    /// Makes room for `added` values more; `limit` is the most keys that will ever be stored.
    fn reserve(&mut self, added: usize, limit: usize) {
        let needed = self.keys.len() + added;
        let (least, most) = (TILE * self.dim, limit * self.dim);
        let keys = self.keys.to_mut();
        let capacity = growth(keys.capacity(), needed, least, most);
        keys.reserve_exact(capacity - keys.len());
    }

    /// Has the processor fetch what the next key is written to.
    pub(crate) fn prefetch_end(&self, config: &IndexConfig) {
        if let Some(sketch) = &self.sketch
            && config.sketched_of(self.start, self.len() + 1) > sketch.len()
        {
            prefetch(&self.centre);
            sketch.prefetch_end();
        }
    }

    /// Whether keys wait to be sketched.
    pub(crate) fn lacks_sketch(&self) -> bool {
        let sketch = self.sketch.as_ref();
        sketch.is_some_and(|sketch| sketch.len() < self.len())
    }

    /// Sketches the keys that [`IndexConfig::sketched_of`] wants sketched and that are not.
    fn sketch_due(&mut self, kernel: Kernel, config: &IndexConfig, widener: &mut Widener) {
        let due = config.sketched_of(self.start, self.len());
        self.sketch_to(due, kernel, config, widener);
    }

    /// Sketches all keys: the segment is about to be closed, and is searched as it is until it is built.
    pub(crate) fn complete_sketch(
        &mut self,
        kernel: Kernel,
        config: &IndexConfig,
        widener: &mut Widener,
    ) {
        self.sketch_to(self.len(), kernel, config, widener);
    }

    /// Sketches the keys before `end` that are not sketched yet. The first of them decide about the centre: it is the mean of
    /// what the segment holds, if that is a tile at least.
    fn sketch_to(
        &mut self,
        end: usize,
        kernel: Kernel,
        config: &IndexConfig,
        widener: &mut Widener,
    ) {
        let Some(sketch) = &mut self.sketch else {
            return;
        };
        let (done, len) = (sketch.len(), self.keys.len() / self.dim);
        if done >= end {
            return;
        }
        if done == 0 && len >= TILE {
            let all = widener.widen(self.keys.as_slice());
            self.centre = rows::mean_of(kernel, all, self.dim);
        }
        let values = done * self.dim..end * self.dim;
        let due = widener.widen(self.keys.as_slice().slice(values));
        sketch.append(kernel, due, &self.centre, config.segment_len);
    }

    /// Completes the segment: clusters its keys, orders the slots by cluster and sketches them about their mean.
    ///
    /// If the builder fails, the segment has no coarse levels and keeps the reason.
    pub(crate) fn seal(&mut self, kernel: Kernel, config: &IndexConfig, builder: &dyn Builder) {
        let keys = self.take_keys();
        let wide = keys.as_slice().widened();
        let levels = config.coarse_levels(wide.len() / self.dim);
        if levels > 0 {
            let branching = config.branching_factor;
            let input = BuildInput::new(&wide, self.dim, kernel, levels, branching);
            match build_checked(builder, &input) {
                Ok(hierarchy) => {
                    self.levels = Level::all(&wide, self.dim, &hierarchy);
                    self.order = Some(hierarchy.into_order());
                }
                Err(error) => self.build_error = Some(error),
            }
        }
        self.finish(kernel, config, &wide);
        drop(wide);
        self.keys = keys.into();
    }

    /// The keys, without spare room; whoever takes them puts them back.
    fn take_keys(&mut self) -> StoredVec {
        let empty = StoredRows::new(self.keys.precision());
        let mut keys = std::mem::replace(&mut self.keys, empty).into_owned();
        keys.shrink_to_fit();
        keys
    }

    /// The segment with further keys in its clusters; it has levels.
    pub(crate) fn joined(
        &self,
        kernel: Kernel,
        config: &IndexConfig,
        others: &[Arc<Segment>],
    ) -> Self {
        let keys = keys_of(
            [self]
                .into_iter()
                .chain(others.iter().map(|other| &**other)),
        );
        let wide = keys.as_slice().widened();
        let (levels, order) = Insertion::run(kernel, config, self, &wide);
        let mut joined = Self::of_keys(self.start, config, StoredVec::new(config.precision));
        joined.levels = levels;
        joined.order = Some(order);
        joined.updates = self.updates + 1;
        joined.finish(kernel, config, &wide);
        drop(wide);
        Self {
            keys: keys.into(),
            ..joined
        }
    }

    /// What follows once the order of the slots is known; `keys` are the segment's in `f32`.
    fn finish(&mut self, kernel: Kernel, config: &IndexConfig, keys: &[f32]) {
        self.centre = rows::mean_of(kernel, keys, self.dim);
        let order = self.order.as_deref();
        self.sketch =
            (config.num_levels > 0).then(|| sketch_in_order(kernel, keys, &self.centre, order));
        self.product = config
            .product_of(keys.len() / self.dim)
            .map(|product| ProductCodes::new(kernel, product, keys, &self.centre, order));
        self.state = State::Sealed;
    }

    /// Keeps the first `len` keys of an open segment.
    pub(crate) fn truncate(&mut self, kernel: Kernel, len: usize) {
        self.keys.truncate(len * self.dim);
        if let Some(sketch) = &mut self.sketch
            && sketch.len() > len
        {
            // The last tile is written again: its norm and its unused slots must not remember dropped keys.
            let kept = sketch.truncate_to_tile(len);
            let last = self.keys.as_slice().slice(kept * self.dim..len * self.dim);
            sketch.append(kernel, &last.widened(), &self.centre, len);
        }
    }

    /// What the sketch of the first `len` slots has to be, made anew from the keys.
    pub(crate) fn sketch_again(&self, kernel: Kernel, len: usize) -> Sketch {
        let keys = self.wide_keys();
        match self.order.as_deref() {
            None => sketch_in_order(kernel, &keys[..len * self.dim], &self.centre, None),
            Some(order) => sketch_in_order(kernel, &keys, &self.centre, Some(&order[..len])),
        }
    }

    /// What the product codes have to be, made anew from the keys and the same codebooks.
    pub(crate) fn product_again(&self, kernel: Kernel) -> Option<ProductCodes> {
        let order = self.order.as_deref();
        let product = self.product.as_ref()?;
        Some(product.again(kernel, &self.wide_keys(), &self.centre, order))
    }

    /// The keys in `f32`.
    pub(crate) fn wide_keys(&self) -> Cow<'_, [f32]> {
        self.keys.as_slice().widened()
    }

    pub(crate) fn product_bytes(&self) -> usize {
        self.product.as_ref().map_or(0, ProductCodes::bytes)
    }

    pub(crate) fn key_bytes(&self) -> usize {
        self.keys.bytes()
    }

    pub(crate) fn sketch_bytes(&self) -> usize {
        self.sketch.as_ref().map_or(0, Sketch::bytes)
            + self.order.as_ref().map_or(0, memory::bytes)
            + memory::bytes(&self.centre)
    }
}

/// The keys of segments that follow each other, bit for bit.
pub(crate) fn keys_of<'a>(segments: impl Iterator<Item = &'a Segment> + Clone) -> StoredVec {
    let precision = segments.clone().next().map(|first| first.keys.precision());
    let len = segments.clone().map(|segment| segment.keys.len()).sum();
    let mut keys = StoredVec::with_capacity(precision.unwrap_or_default(), len);
    for segment in segments {
        keys.extend(segment.keys());
    }
    keys
}

/// Sketches `keys` in the order given (their own if `None`), a tile at a time.
fn sketch_in_order(kernel: Kernel, keys: &[f32], centre: &[f32], order: Option<&[u32]>) -> Sketch {
    let dim = centre.len();
    let len = keys.len() / dim;
    let mut sketch = Sketch::new(dim);
    match order {
        None => sketch.append(kernel, keys, centre, len),
        Some(order) => {
            sketch.reserve(len);
            let mut tile = Vec::with_capacity(TILE * dim);
            for slots in order.chunks(TILE) {
                tile.clear();
                for &position in slots {
                    tile.extend_from_slice(&keys[position as usize * dim..][..dim]);
                }
                sketch.append(kernel, &tile, centre, len);
            }
        }
    }
    sketch
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("start", &self.start)
            .field("len", &self.len())
            .field("sealed", &self.is_sealed())
            .field("levels", &self.levels)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KMeansBuilder, ProductConfig};

    fn sealed() -> (Segment, IndexConfig) {
        sealed_of(1.0)
    }

    fn sealed_of(scale: f32) -> (Segment, IndexConfig) {
        let config = IndexConfig::new(3)
            .with_branching_factor(4)
            .with_min_coarse_len(0)
            .with_product(Some(ProductConfig::default().with_subvectors(2)));
        let keys: Vec<f32> = (0..40 * 3)
            .map(|i| scale * (i as f32 * 0.77).sin())
            .collect();
        let mut segment = Segment::open(0, &config, vec![0.0; 3]);
        segment.append(Kernel::best(), &keys, &config, &mut Widener::default());
        segment.seal(Kernel::best(), &config, &KMeansBuilder::default());
        (segment, config)
    }

    /// The keys of a segment, each value moved by what `by` says.
    fn moved(segment: &Segment, by: impl Fn(usize) -> f32) -> StoredRows {
        let keys = segment.wide_keys();
        let keys: Vec<f32> = keys.iter().enumerate().map(|(i, x)| x + by(i)).collect();
        StoredVec::F32(keys).into()
    }

    /// What validation says of a segment after `damage`.
    fn found(damage: impl FnOnce(&mut Segment)) -> Result<(), &'static str> {
        let (mut segment, config) = sealed();
        damage(&mut segment);
        segment.validate(Kernel::best(), &config)
    }

    #[test]
    fn validation_finds_damage() {
        assert_eq!(found(|_| ()), Ok(()));
        assert_eq!(
            found(|segment| segment.order = Some(vec![0; 40])),
            Err("slots are a permutation of positions")
        );
        assert_eq!(
            found(|segment| segment.keys = moved(segment, |i| if i == 7 { 1.0 } else { 0.0 })),
            Err("the sketch is what its keys give")
        );
        assert_eq!(
            found(|segment| segment.sketch = None),
            Err("it has a sketch unless there are no levels")
        );
        assert_eq!(
            found(|segment| segment.state = State::Open),
            Err("an open segment has no coarse levels")
        );
        assert_eq!(
            found(|segment| segment.product = None),
            Err("it has product codes if it is to have them")
        );
        let other = sealed_of(-1.0).0.product;
        assert_eq!(
            found(|segment| segment.product = other),
            Err("the product codes are what the keys give")
        );
        assert!(found(|segment| drop(segment.levels.remove(0))).is_err());
        assert!(found(|segment| segment.levels.swap(0, 1)).is_err());
    }

    #[test]
    fn validation_finds_keys_outside_of_their_clusters() {
        // Levels of keys that have since moved away: the sketch is made anew, the levels are not.
        let moved = |by: f32| {
            found(|segment| {
                segment.keys = self::moved(segment, |_| by);
                segment.sketch = Some(segment.sketch_again(Kernel::best(), 40));
                segment.product = segment.product_again(Kernel::best());
            })
        };
        assert_eq!(moved(0.0), Ok(()));
        assert_eq!(moved(10.0), Err("a ball contains its members"));
        assert!(moved(1e-3).is_err());
    }
}
