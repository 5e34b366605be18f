//! How the keys of a query are divided among cubes.

use super::DeviceShape;
use super::combine::MAX_PARTS;
use super::shape::CHUNK;

/// Cubes that keep a large device busy; with fewer queries each is cut into more splits.
pub(super) const BUSY: usize = 2048;

/// Runs of whole chunks, one a cube.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Splits {
    pub(super) chunks: usize,
    pub(super) chunks_each: usize,
    pub(super) count: usize,
}

impl Splits {
    pub(super) fn new(shape: &DeviceShape, len: usize) -> Self {
        let chunks = len.div_ceil(CHUNK);
        let wanted = BUSY
            .div_ceil(shape.queries())
            .clamp(1, MAX_PARTS)
            .min(chunks);
        let chunks_each = chunks.div_ceil(wanted);
        Self {
            chunks,
            chunks_each,
            count: chunks.div_ceil(chunks_each),
        }
    }

    /// Keys of a split.
    pub(super) fn keys(&self) -> usize {
        self.chunks_each * CHUNK
    }
}
