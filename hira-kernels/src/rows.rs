//! Exact rows that are complete: owned, or in a region.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::{Precision, Region, StoredSlice, StoredVec};

/// Stored values that are owned, or that lie in a [`Region`], whose residence can change.
///
/// Wherever they lie [`as_slice`](Self::as_slice) gives the same values. A clone of owned values copies them; a clone of values in
/// a region shares it, and with it where they are.
///
/// # Examples
///
/// ```
/// use hira_kernels::{Precision, Region, StoredRows, StoredVec};
///
/// let mut rows = StoredRows::from(StoredVec::rounded(Precision::F16, &[1.0, 2.0, 3.0]));
/// if Region::is_supported() {
///     rows.move_to_region()?;
///     assert!(rows.region().is_some());
/// }
/// assert_eq!(rows.as_slice().widened()[..], [1.0, 2.0, 3.0]);
/// rows.to_mut().truncate(1); // owned again
/// assert!(rows.region().is_none());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct StoredRows {
    rows: Rows,
}

#[derive(Debug, Clone)]
enum Rows {
    Owned(StoredVec),
    Region(RegionRows),
}

#[derive(Debug, Clone)]
struct RegionRows {
    region: Arc<Region>,
    /// The first byte.
    start: usize,
    /// Number of values.
    len: usize,
    precision: Precision,
}

impl StoredRows {
    /// No values; nothing is allocated.
    pub fn new(precision: Precision) -> Self {
        StoredVec::new(precision).into()
    }

    /// `len` values of a region, the first of which begins at byte `start`; `None` if they do not lie inside, or `start` is not a multiple of a
    /// value's size, as the region's address is.
    pub fn in_region(
        region: Arc<Region>,
        start: usize,
        len: usize,
        precision: Precision,
    ) -> Option<Self> {
        let size = precision.bytes();
        let end = len.checked_mul(size)?.checked_add(start)?;
        let bytes = region.bytes().get(start..end)?;
        let is_aligned = bytes.as_ptr().addr().is_multiple_of(size);
        (is_aligned || len == 0).then_some(Self {
            rows: Rows::Region(RegionRows {
                region,
                start,
                len,
                precision,
            }),
        })
    }

    /// All values.
    #[inline]
    pub fn as_slice(&self) -> StoredSlice<'_> {
        match &self.rows {
            Rows::Owned(values) => values.as_slice(),
            Rows::Region(rows) => rows.as_slice(),
        }
    }

    /// How the values are stored.
    pub fn precision(&self) -> Precision {
        self.as_slice().precision()
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Bytes that are allocated or, of values in a region, those of the pages of all of the region.
    pub fn bytes(&self) -> usize {
        match &self.rows {
            Rows::Owned(values) => values.bytes(),
            Rows::Region(rows) => rows.region.allocated_bytes(),
        }
    }

    /// The region that the values lie in, unless they are owned.
    pub fn region(&self) -> Option<&Arc<Region>> {
        match &self.rows {
            Rows::Owned(_) => None,
            Rows::Region(rows) => Some(&rows.region),
        }
    }

    /// Whether reading the values means reading a file.
    #[inline]
    pub fn is_on_disk(&self) -> bool {
        match &self.rows {
            Rows::Owned(_) => false,
            Rows::Region(rows) => rows.region.is_on_disk(),
        }
    }

    /// Moves owned values into a region of their own; nothing happens if they are in one.
    ///
    /// # Errors
    ///
    /// As [`Region::from_bytes`]; the values then stay owned.
    pub fn move_to_region(&mut self) -> io::Result<()> {
        if let Rows::Owned(values) = &self.rows {
            let rows = RegionRows {
                region: Arc::new(Region::from_bytes(values.as_slice().as_bytes())?),
                start: 0,
                len: values.len(),
                precision: values.precision(),
            };
            self.rows = Rows::Region(rows);
        }
        Ok(())
    }

    /// The values as an owned vector, which they are from now on: those in a region are copied.
    pub fn to_mut(&mut self) -> &mut StoredVec {
        loop {
            match self.rows {
                Rows::Owned(ref mut values) => return values,
                Rows::Region(ref rows) => self.rows = Rows::Owned(owned(rows.as_slice())),
            }
        }
    }

    /// The values, owned: copied if they are in a region.
    pub fn into_owned(self) -> StoredVec {
        match self.rows {
            Rows::Owned(values) => values,
            Rows::Region(rows) => owned(rows.as_slice()),
        }
    }

    /// Keeps the first `len` values, owned from now on; nothing happens if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        match &mut self.rows {
            Rows::Owned(values) => values.truncate(len),
            Rows::Region(rows) => {
                self.rows = Rows::Owned(owned(rows.as_slice().slice(0..len)));
            }
        }
    }

    /// Asks the system to read some values that are on disk, without waiting for it; see [`Region::will_need`].
    pub fn will_need(&self, values: Range<usize>) {
        if let Rows::Region(from) = &self.rows
            && from.region.is_on_disk()
        {
            from.region.will_need(from.bytes_of(values));
        }
    }

    /// The region on disk that the values lie in, and the byte of it at which they begin.
    pub(crate) fn on_disk(&self) -> Option<(&Arc<Region>, usize)> {
        match &self.rows {
            Rows::Region(from) if from.region.is_on_disk() => Some((&from.region, from.start)),
            _ => None,
        }
    }

    /// Takes the pages of rows on disk out of this process's memory; see [`Region::forget`].
    pub fn forget(&self, values: Range<usize>) {
        if let Rows::Region(from) = &self.rows
            && from.region.is_on_disk()
        {
            from.region.forget(from.bytes_of(values));
        }
    }
}

impl RegionRows {
    /// The bytes of some values.
    fn bytes_of(&self, values: Range<usize>) -> Range<usize> {
        let size = self.precision.bytes();
        self.start + values.start * size..self.start + values.end * size
    }

    #[inline]
    fn as_slice(&self) -> StoredSlice<'_> {
        let bytes = &self.region.bytes()[self.bytes_of(0..self.len)];
        // an empty region has no address of its own
        if bytes.is_empty() {
            return match self.precision {
                Precision::F32 => StoredSlice::F32(&[]),
                Precision::F16 => StoredSlice::F16(&[]),
                Precision::Bf16 => StoredSlice::Bf16(&[]),
            };
        }
        let (start, len) = (bytes.as_ptr(), self.len);
        debug_assert!(start.addr().is_multiple_of(self.precision.bytes()));
        match self.precision {
            Precision::F32 => {
                // SAFETY: `in_region` and `move_to_region` checked that the address is a multiple of the size; every pattern of bits is an `f32`.
                StoredSlice::F32(unsafe { std::slice::from_raw_parts(start.cast::<f32>(), len) })
            }
            Precision::F16 => {
                // SAFETY: as above; every pattern of bits is an `f16`.
                StoredSlice::F16(unsafe { std::slice::from_raw_parts(start.cast::<f16>(), len) })
            }
            Precision::Bf16 => {
                // SAFETY: as above; every pattern of bits is a `bf16`.
                StoredSlice::Bf16(unsafe { std::slice::from_raw_parts(start.cast::<bf16>(), len) })
            }
        }
    }
}

fn owned(values: StoredSlice<'_>) -> StoredVec {
    let mut owned = StoredVec::with_capacity(values.precision(), values.len());
    owned.extend(values);
    owned
}

impl From<StoredVec> for StoredRows {
    fn from(values: StoredVec) -> Self {
        Self {
            rows: Rows::Owned(values),
        }
    }
}

impl<'a> From<&'a StoredRows> for StoredSlice<'a> {
    fn from(rows: &'a StoredRows) -> Self {
        rows.as_slice()
    }
}

impl PartialEq for StoredRows {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}
