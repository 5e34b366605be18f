//! Exact values as they are stored: a slice and a vector of them, in any precision.

use std::borrow::Cow;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::{Precision, prefer_large_pages};

/// Values of exact rows, row by row, in the precision in which they are stored.
///
/// Whatever takes one also takes a slice, array or vector of `f32`, [`half::f16`] or [`half::bf16`].
///
/// # Examples
///
/// ```
/// use hira_kernels::{Kernel, Precision, StoredVec};
///
/// let rows = [1.0, 0.1, 2.0, 0.2];
/// let mut stored = StoredVec::new(Precision::Bf16);
/// stored.extend_rounded(&rows);
/// let keys = stored.as_slice();
///
/// let mut scores = [0.0; 2];
/// Kernel::best().scores_into(&[1.0, 0.0], keys, &mut scores); // of the stored values
/// assert_eq!(scores, [1.0, 2.0]);
/// assert_eq!(keys.slice(2..4).widened()[..], [2.0, Precision::Bf16.round(0.2)]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StoredSlice<'a> {
    /// Values as they are.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// Upper halves of `f32`.
    Bf16(&'a [bf16]),
}

/// Runs `$body` with the slice behind `$stored` as `$values`: compiled once for each type of value.
macro_rules! for_elements {
    ($stored:expr, $values:ident => $body:expr) => {
        match $stored {
            $crate::StoredSlice::F32($values) => $body,
            $crate::StoredSlice::F16($values) => $body,
            $crate::StoredSlice::Bf16($values) => $body,
        }
    };
}
pub(crate) use for_elements;

impl<'a> StoredSlice<'a> {
    /// How the values are stored.
    pub fn precision(self) -> Precision {
        match self {
            StoredSlice::F32(_) => Precision::F32,
            StoredSlice::F16(_) => Precision::F16,
            StoredSlice::Bf16(_) => Precision::Bf16,
        }
    }

    /// Number of values.
    pub fn len(self) -> usize {
        for_elements!(self, values => values.len())
    }

    /// Whether there is no value.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The values in `range`.
    ///
    /// # Panics
    ///
    /// If it does not lie inside.
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            StoredSlice::F32(values) => StoredSlice::F32(&values[range]),
            StoredSlice::F16(values) => StoredSlice::F16(&values[range]),
            StoredSlice::Bf16(values) => StoredSlice::Bf16(&values[range]),
        }
    }

    /// The values in `range`, if it lies inside.
    pub fn get(self, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= self.len()).then(|| self.slice(range))
    }

    /// The `i`-th value, widened.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub fn value(self, i: usize) -> f32 {
        match self {
            StoredSlice::F32(values) => values[i],
            StoredSlice::F16(values) => values[i].to_f32(),
            StoredSlice::Bf16(values) => values[i].to_f32(),
        }
    }

    /// Rows of `dim` values; what is left over is left out.
    ///
    /// # Panics
    ///
    /// If `dim` is 0.
    pub fn rows(self, dim: usize) -> impl ExactSizeIterator<Item = Self> {
        let rows = self.len() / dim;
        (0..rows).map(move |row| self.slice(row * dim..(row + 1) * dim))
    }

    /// The values as they are, if they are stored in `f32`.
    pub fn as_f32(self) -> Option<&'a [f32]> {
        match self {
            StoredSlice::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The values in `f32`, which is exact; no copy if that is how they are stored.
    pub fn widened(self) -> Cow<'a, [f32]> {
        match self {
            StoredSlice::F32(values) => Cow::Borrowed(values),
            StoredSlice::F16(values) => Cow::Owned(values.to_f32_vec()),
            StoredSlice::Bf16(values) => Cow::Owned(values.to_f32_vec()),
        }
    }

    /// Writes the values in `f32`, which is exact.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn widen_into(self, out: &mut [f32]) {
        assert_eq!(self.len(), out.len(), "one output per value");
        match self {
            StoredSlice::F32(values) => out.copy_from_slice(values),
            StoredSlice::F16(values) => values.convert_to_f32_slice(out),
            StoredSlice::Bf16(values) => values.convert_to_f32_slice(out),
        }
    }
}

/// Values of exact rows, owned: grows by rows of `f32`, which it rounds, or by values of its own precision, which it copies.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredVec {
    /// Values as they are.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// Upper halves of `f32`.
    Bf16(Vec<bf16>),
}

/// Runs `$body` with the vector behind `$stored` as `$values`.
macro_rules! for_vectors {
    ($stored:expr, $values:ident => $body:expr) => {
        match $stored {
            StoredVec::F32($values) => $body,
            StoredVec::F16($values) => $body,
            StoredVec::Bf16($values) => $body,
        }
    };
}

impl StoredVec {
    /// No values; nothing is allocated.
    pub fn new(precision: Precision) -> Self {
        Self::with_capacity(precision, 0)
    }

    /// No values, with room for `capacity`.
    pub fn with_capacity(precision: Precision, capacity: usize) -> Self {
        match precision {
            Precision::F32 => Self::F32(Vec::with_capacity(capacity)),
            Precision::F16 => Self::F16(Vec::with_capacity(capacity)),
            Precision::Bf16 => Self::Bf16(Vec::with_capacity(capacity)),
        }
    }

    /// `values`, each [rounded](Precision::round) to `precision`.
    pub fn rounded(precision: Precision, values: &[f32]) -> Self {
        let mut stored = Self::with_capacity(precision, values.len());
        stored.extend_rounded(values);
        stored
    }

    /// All values.
    pub fn as_slice(&self) -> StoredSlice<'_> {
        match self {
            Self::F32(values) => StoredSlice::F32(values),
            Self::F16(values) => StoredSlice::F16(values),
            Self::Bf16(values) => StoredSlice::Bf16(values),
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

    /// Values that there is room for.
    pub fn capacity(&self) -> usize {
        for_vectors!(self, values => values.capacity())
    }

    /// Bytes that are allocated.
    pub fn bytes(&self) -> usize {
        self.capacity() * self.precision().bytes()
    }

    /// Makes room for `additional` values more, and for no others; see [`prefer_large_pages`].
    pub fn reserve_exact(&mut self, additional: usize) {
        for_vectors!(self, values => {
            let before = values.capacity();
            values.reserve_exact(additional);
            if values.capacity() > before {
                prefer_large_pages(values);
            }
        });
    }

    /// Gives back the room that is not used.
    pub fn shrink_to_fit(&mut self) {
        for_vectors!(self, values => values.shrink_to_fit());
    }

    /// Drops all values, and keeps the room for more if `precision` is what it was.
    pub fn reset(&mut self, precision: Precision) {
        if self.precision() == precision {
            self.truncate(0);
        } else {
            *self = Self::new(precision);
        }
    }

    /// Keeps the first `len` values; nothing happens if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        for_vectors!(self, values => values.truncate(len));
    }

    /// Appends `values`, each [rounded](Precision::round) to the precision.
    pub fn extend_rounded(&mut self, values: &[f32]) {
        let len = self.len();
        match self {
            Self::F32(stored) => stored.extend_from_slice(values),
            Self::F16(stored) => {
                stored.resize(len + values.len(), f16::ZERO);
                stored[len..].convert_from_f32_slice(values);
            }
            Self::Bf16(stored) => {
                stored.resize(len + values.len(), bf16::ZERO);
                stored[len..].convert_from_f32_slice(values);
            }
        }
    }

    /// Appends values of the same precision, bit for bit.
    ///
    /// # Panics
    ///
    /// If the precisions differ.
    pub fn extend(&mut self, values: StoredSlice<'_>) {
        match (self, values) {
            (Self::F32(stored), StoredSlice::F32(values)) => stored.extend_from_slice(values),
            (Self::F16(stored), StoredSlice::F16(values)) => stored.extend_from_slice(values),
            (Self::Bf16(stored), StoredSlice::Bf16(values)) => stored.extend_from_slice(values),
            (stored, values) => panic!(
                "values are stored in {}, not {}",
                stored.precision(),
                values.precision()
            ),
        }
    }
}

impl StoredVec {
    /// Appends `len` zeros.
    pub(crate) fn extend_zeros(&mut self, len: usize) {
        let len = self.len() + len;
        match self {
            Self::F32(values) => values.resize(len, 0.0),
            Self::F16(values) => values.resize(len, f16::ZERO),
            Self::Bf16(values) => values.resize(len, bf16::ZERO),
        }
    }

    /// The bytes of the values, to be written as they are in memory.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        fn bytes<T>(values: &mut [T]) -> &mut [u8] {
            let bytes = size_of_val(values);
            // SAFETY: called with numbers without padding of which every pattern of bits is one, borrowed mutably for as long.
            unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), bytes) }
        }
        for_vectors!(self, values => bytes(values))
    }
}

/// No values of `f32`.
impl Default for StoredVec {
    fn default() -> Self {
        Self::new(Precision::F32)
    }
}

impl<'a> From<&'a StoredVec> for StoredSlice<'a> {
    fn from(stored: &'a StoredVec) -> Self {
        stored.as_slice()
    }
}

/// Borrowed values of one type as a [`StoredSlice`].
macro_rules! from_values {
    ($($variant:ident: $element:ty),*) => {
        $(
            impl<'a> From<&'a [$element]> for StoredSlice<'a> {
                fn from(values: &'a [$element]) -> Self {
                    StoredSlice::$variant(values)
                }
            }

            impl<'a, const N: usize> From<&'a [$element; N]> for StoredSlice<'a> {
                fn from(values: &'a [$element; N]) -> Self {
                    StoredSlice::$variant(values)
                }
            }

            impl<'a> From<&'a Vec<$element>> for StoredSlice<'a> {
                fn from(values: &'a Vec<$element>) -> Self {
                    StoredSlice::$variant(values)
                }
            }

            impl<'a> From<&'a Cow<'_, [$element]>> for StoredSlice<'a> {
                fn from(values: &'a Cow<'_, [$element]>) -> Self {
                    StoredSlice::$variant(values)
                }
            }
        )*
    };
}
from_values!(F32: f32, F16: f16, Bf16: bf16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_once_and_copied_as_they_are() {
        let values: Vec<f32> = (0..100).map(|i| (i as f32 * 0.77).sin()).collect();
        for precision in Precision::ALL {
            let stored = StoredVec::rounded(precision, &values);
            let slice = stored.as_slice();
            let expected: Vec<f32> = values.iter().map(|&x| precision.round(x)).collect();
            assert_eq!(slice.widened()[..], expected[..]);
            assert_eq!((slice.precision(), slice.len()), (precision, 100));
            assert_eq!(stored.bytes(), 100 * precision.bytes());

            let mut copy = StoredVec::new(precision);
            copy.extend(slice.slice(0..30));
            copy.extend_rounded(&values[30..]);
            assert_eq!(copy, stored);
            copy.truncate(31);
            assert_eq!(copy.as_slice(), slice.slice(0..31));
            copy.reset(precision);
            assert!(copy.is_empty() && copy.capacity() >= 100);
            copy.reset(Precision::F32);
            assert_eq!(copy, StoredVec::default());
            assert_eq!(slice.rows(30).len(), 3);
            assert_eq!(slice.rows(30).nth(2), slice.get(60..90));
            assert_eq!(slice.get(90..101), None);
            assert_eq!(slice.value(7), expected[7]);
            let mut out = [0.0; 3];
            slice.slice(5..8).widen_into(&mut out);
            assert_eq!(out, expected[5..8]);
        }
    }

    #[test]
    #[should_panic(expected = "values are stored in f16, not bf16")]
    fn values_of_another_precision_are_refused() {
        let other = StoredVec::rounded(Precision::Bf16, &[1.0]);
        StoredVec::new(Precision::F16).extend(other.as_slice());
    }
}
