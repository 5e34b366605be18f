//! A segment as plain parts, and the bytes that these are in a file.
//!
//! [`Segment::parts`] shows what a segment consists of beside its exact rows; [`SegmentParts::encode`] and [`SegmentParts::decode`] turn that
//! into bytes and back; [`Segment::restore`] and [`HierarchicalIndex::restore`](crate::HierarchicalIndex::restore) check it and make of it the
//! segment and the index that it was: searches and later appends give the same bits. Nothing is sketched or clustered again. Only the sample is
//! made anew, which is a function of its seed and of the number of keys.

use std::borrow::Cow;
use std::sync::OnceLock;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use hira_kernels::Line;

use crate::{IndexError, Segment};

/// A segment without its exact rows.
///
/// # Examples
///
/// ```
/// use hira_index::{HierarchicalIndex, IndexConfig, Segment, SegmentParts};
/// use hira_kernels::{Kernel, Precision, StoredVec};
///
/// let config = IndexConfig::new(2).with_min_coarse_len(0);
/// let mut index = HierarchicalIndex::new(config.clone())?;
/// index.append(&[1.0, 0.0, 0.5, 2.0])?;
/// index.seal();
/// let mut bytes = Vec::new();
/// let segment = index.segment(0).expect("it was sealed");
/// segment.parts().encode(&mut bytes);
///
/// let keys = StoredVec::rounded(Precision::F32, &[1.0, 0.0, 0.5, 2.0]);
/// let again = Segment::restore(&config, keys, SegmentParts::decode(&bytes)?)?;
/// let index_again = HierarchicalIndex::restore(config, Kernel::best(), vec![again.into()], None)?;
/// assert_eq!(index_again.dump(), index.dump());
/// # Ok::<(), hira_index::IndexError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentParts<'a> {
    /// Position of the first key.
    pub start: usize,
    /// Number of keys.
    pub len: usize,
    /// Whether the segment takes no further keys.
    pub is_sealed: bool,
    /// Whether it is [frozen](Segment::is_frozen), too.
    pub is_frozen: bool,
    /// Times that keys joined the clusters since they were built.
    pub updates: u32,
    /// Whether it has no coarse levels because its builder failed.
    pub is_undivided: bool,
    /// The point about which the sketch is quantised.
    pub centre: Cow<'a, [f32]>,
    /// The sketch; `None` in an index of no levels.
    pub sketch: Option<SketchParts<'a>>,
    /// The product codes.
    pub product: Option<ProductParts<'a>>,
    /// Position of every slot; `None` if slots are positions.
    pub order: Option<Cow<'a, [u32]>>,
    /// The coarse levels, the coarsest first.
    pub levels: Vec<LevelParts<'a>>,
}

/// A sketch: see [`hira_kernels::SketchView`].
#[derive(Debug, Clone, PartialEq)]
pub struct SketchParts<'a> {
    /// Number of keys that are quantised.
    pub len: usize,
    /// The lines of all tiles.
    pub lines: Cow<'a, [Line]>,
    /// A bound on the norms in each tile.
    pub norms: Cow<'a, [f32]>,
}

/// Product codes: see [`hira_kernels::ProductView`].
#[derive(Debug, Clone, PartialEq)]
pub struct ProductParts<'a> {
    /// The codebooks.
    pub entries: Cow<'a, [f32]>,
    /// The levels of the reaches.
    pub levels: Cow<'a, [f32]>,
    /// The codes of all tiles.
    pub codes: Cow<'a, [u8]>,
}

/// Clusters of one level: see [`Level`](crate::Level).
#[derive(Debug, Clone, PartialEq)]
pub struct LevelParts<'a> {
    /// Centroids, row by row.
    pub centroids: Cow<'a, [f32]>,
    /// Lower corners of the boxes.
    pub lo: Cow<'a, [f32]>,
    /// Upper corners of the boxes.
    pub hi: Cow<'a, [f32]>,
    /// Radius, norm of the centroid and norm of the box of each cluster.
    pub scalars: Cow<'a, [[f32; 3]]>,
    /// Where the children of each cluster end.
    pub ends: Cow<'a, [u32]>,
}

/// What a segment is called where it was saved: hashes of its exact rows and of the bytes of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedSegment {
    /// Hash of the exact rows.
    pub rows: u128,
    /// Hash of the encoded parts.
    pub parts: u128,
    /// Bytes of the encoded parts.
    pub parts_len: u64,
}

impl Segment {
    /// Where whoever saves the segment notes what it has been saved as, so that it is not read again for that; `None` while the segment can
    /// still change. Clones of the index that share the segment share the note.
    pub fn saved(&self) -> Option<&OnceLock<SavedSegment>> {
        (self.is_sealed() && !self.is_building()).then_some(&self.saved)
    }
}

/// What [`SegmentParts::encode`] says of which optional parts there are.
const HAS_SKETCH: u64 = 1;
const HAS_PRODUCT: u64 = 2;
const HAS_ORDER: u64 = 4;
const IS_SEALED: u64 = 8;
const IS_UNDIVIDED: u64 = 16;
const IS_FROZEN: u64 = 32;

impl SegmentParts<'_> {
    /// Appends the parts to `out`, in the byte order of this machine.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flag = |holds: bool, flag: u64| if holds { flag } else { 0 };
        let flags = flag(self.sketch.is_some(), HAS_SKETCH)
            | flag(self.product.is_some(), HAS_PRODUCT)
            | flag(self.order.is_some(), HAS_ORDER)
            | flag(self.is_sealed, IS_SEALED)
            | flag(self.is_undivided, IS_UNDIVIDED)
            | flag(self.is_frozen, IS_FROZEN);
        let numbers = [
            flags,
            self.start as u64,
            self.len as u64,
            u64::from(self.updates),
            self.levels.len() as u64,
        ];
        out.extend_from_slice(cast_slice(&numbers));
        put(out, &self.centre);
        if let Some(sketch) = &self.sketch {
            out.extend_from_slice(&(sketch.len as u64).to_ne_bytes());
            put(out, &sketch.lines);
            put(out, &sketch.norms);
        }
        if let Some(product) = &self.product {
            put(out, &product.entries);
            put(out, &product.levels);
            put(out, &product.codes);
        }
        if let Some(order) = &self.order {
            put(out, order);
        }
        for level in &self.levels {
            put(out, &level.centroids);
            put(out, &level.lo);
            put(out, &level.hi);
            put(out, &level.scalars);
            put(out, &level.ends);
        }
    }
}

impl SegmentParts<'static> {
    /// The parts that [`encode`](SegmentParts::encode) made `bytes` of. Whether they fit together is for [`Segment::restore`] to say.
    ///
    /// # Errors
    ///
    /// [`IndexError::Snapshot`] if the bytes are not those of parts. No more is allocated than there are bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let mut from = Decoder { bytes };
        let flags = from.number()?;
        if flags >= 2 * IS_FROZEN {
            return Err(broken("it has parts that are known"));
        }
        let has = |flag: u64| flags & flag != 0;
        let (start, len) = (from.length()?, from.length()?);
        let updates = from.number()?;
        let levels = from.length()?;
        let parts = Self {
            start,
            len,
            is_sealed: has(IS_SEALED),
            is_frozen: has(IS_FROZEN),
            updates: u32::try_from(updates).map_err(|_| broken("its updates are 32 bits"))?,
            is_undivided: has(IS_UNDIVIDED),
            centre: from.values()?,
            sketch: has(HAS_SKETCH)
                .then(|| {
                    Ok::<_, IndexError>(SketchParts {
                        len: from.length()?,
                        lines: from.values()?,
                        norms: from.values()?,
                    })
                })
                .transpose()?,
            product: has(HAS_PRODUCT)
                .then(|| {
                    Ok::<_, IndexError>(ProductParts {
                        entries: from.values()?,
                        levels: from.values()?,
                        codes: from.values()?,
                    })
                })
                .transpose()?,
            order: has(HAS_ORDER).then(|| from.values()).transpose()?,
            // a level takes five lengths at least: a wrong number ends at the end of the bytes
            levels: (0..levels)
                .map(|_| {
                    Ok(LevelParts {
                        centroids: from.values()?,
                        lo: from.values()?,
                        hi: from.values()?,
                        scalars: from.values()?,
                        ends: from.values()?,
                    })
                })
                .collect::<Result<_, IndexError>>()?,
        };
        if from.bytes.is_empty() {
            Ok(parts)
        } else {
            Err(broken("it ends where its parts end"))
        }
    }
}

/// The error of parts that do not fit.
pub(crate) fn broken(what: &'static str) -> IndexError {
    IndexError::Snapshot { what }
}

/// The number of `values`, and they.
fn put<T: Pod>(out: &mut Vec<u8>, values: &[T]) {
    out.extend_from_slice(&(values.len() as u64).to_ne_bytes());
    out.extend_from_slice(cast_slice(values));
}

/// What is still to be decoded.
struct Decoder<'a> {
    bytes: &'a [u8],
}

impl Decoder<'_> {
    fn number(&mut self) -> Result<u64, IndexError> {
        let (number, rest) = self
            .bytes
            .split_first_chunk::<8>()
            .ok_or(broken("its parts are complete"))?;
        self.bytes = rest;
        Ok(u64::from_ne_bytes(*number))
    }

    fn length(&mut self) -> Result<usize, IndexError> {
        usize::try_from(self.number()?).map_err(|_| broken("its lengths fit this machine"))
    }

    fn values<T: Pod>(&mut self) -> Result<Cow<'static, [T]>, IndexError> {
        let len = self.length()?;
        let (values, rest) = len
            .checked_mul(size_of::<T>())
            .and_then(|size| self.bytes.split_at_checked(size))
            .ok_or(broken("its parts are complete"))?;
        self.bytes = rest;
        let mut copy = vec![T::zeroed(); len];
        cast_slice_mut(&mut copy).copy_from_slice(values);
        Ok(copy.into())
    }
}
