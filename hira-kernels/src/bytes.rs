//! Exact rows and sketches as the bytes that they are in memory: for files.
//!
//! Bytes are in the order of this machine. Whoever stores them says which that is, and refuses those of another.

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};

use crate::stored::for_elements;
use crate::{Line, Precision, StoredSlice, StoredVec};

// SAFETY: 64 bytes at an alignment of 64, so there is no padding; zeros are a valid line.
unsafe impl Zeroable for Line {}
// SAFETY: as above; every bit pattern is valid, and `repr(C)` fixes the layout.
unsafe impl Pod for Line {}

impl Line {
    /// The bytes of lines.
    pub fn bytes(lines: &[Line]) -> &[u8] {
        cast_slice(lines)
    }

    /// The bytes of lines, to be overwritten; whatever is written is a sketch of something.
    pub fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
        cast_slice_mut(lines)
    }
}

impl<'a> StoredSlice<'a> {
    /// The values as they lie in memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::{Precision, StoredVec};
    ///
    /// let stored = StoredVec::rounded(Precision::Bf16, &[1.0, 0.1]);
    /// let mut copy = StoredVec::zeroed(Precision::Bf16, 2, 2);
    /// copy.as_bytes_mut().copy_from_slice(stored.as_slice().as_bytes());
    /// assert_eq!(copy, stored);
    /// ```
    pub fn as_bytes(self) -> &'a [u8] {
        for_elements!(self, values => cast_slice(values))
    }
}

impl StoredVec {
    /// `len` zeros, with room for `capacity` values in all.
    pub fn zeroed(precision: Precision, len: usize, capacity: usize) -> Self {
        let mut stored = Self::new(precision);
        stored.reserve_exact(capacity.max(len));
        match &mut stored {
            Self::F32(values) => values.resize(len, 0.0),
            Self::F16(values) => values.resize(len, half::f16::ZERO),
            Self::Bf16(values) => values.resize(len, half::bf16::ZERO),
        }
        stored
    }

    /// The values as they lie in memory, to be overwritten.
    ///
    /// Every bit pattern is a value; whether it may be stored as part of a row (finite, a norm below [`MAX_NORM`](crate::MAX_NORM)) is for
    /// the caller to know.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(values) => cast_slice_mut(values),
            Self::F16(values) => cast_slice_mut(values),
            Self::Bf16(values) => cast_slice_mut(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_values() {
        for precision in Precision::ALL {
            let values: Vec<f32> = (0..50).map(|i| (i as f32 * 0.3).sin()).collect();
            let stored = StoredVec::rounded(precision, &values);
            let bytes = stored.as_slice().as_bytes();
            assert_eq!(bytes.len(), 50 * precision.bytes());
            let mut copy = StoredVec::zeroed(precision, 50, 70);
            assert!(copy.capacity() >= 70);
            assert_eq!(copy.as_slice().widened()[..], [0.0; 50]);
            copy.as_bytes_mut().copy_from_slice(bytes);
            assert_eq!(copy, stored);
        }
        let mut lines = [Line::EMPTY; 3];
        Line::bytes_mut(&mut lines)[130] = 7;
        assert_eq!(lines[2].0[2], 7);
        assert_eq!(
            Line::bytes(&lines)
                .iter()
                .map(|&x| u32::from(x))
                .sum::<u32>(),
            7
        );
    }
}
