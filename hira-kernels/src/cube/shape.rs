//! The shape of a device layer, and what follows from it.

use crate::Precision;

use super::DeviceError;

/// Keys to a tile, as in a sketch of the host.
pub(super) const TILE: usize = 16;

/// Keys that one cube of a scan takes at a time; capacities are whole chunks, so that no kernel reads past a buffer.
pub(super) const CHUNK: usize = 1024;

/// Keys of a block that has a mean value.
pub(super) const BLOCK: usize = 64;

/// Units of a cube of the decode kernels.
pub(super) const UNITS: u32 = 256;

/// Keys that one unit of a scan takes: the largest of their lower bounds is one entry of the maxima.
pub(super) const KEYS: usize = CHUNK / UNITS as usize;

/// Most queries that share a head.
pub(super) const MAX_GROUP: usize = 16;

/// What a [`DeviceLayer`](super::DeviceLayer) stores.
///
/// # Shapes
///
/// `heads` is `B * Hkv`, `group` is `Hq / Hkv`, `dim` is `D` and `value_dim` is `Dv`, both multiples of 16 up to 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceShape {
    /// Key and value heads, all sequences of the batch together.
    pub heads: usize,
    /// Queries that share a head, 1 to 16.
    pub group: usize,
    /// Dimensions of a key.
    pub dim: usize,
    /// Dimensions of a value.
    pub value_dim: usize,
    /// How exact keys and values are stored.
    pub precision: Precision,
}

impl DeviceShape {
    /// Whether there are kernels for this shape.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        for received in [self.dim, self.value_dim] {
            if received == 0 || received > 256 || !received.is_multiple_of(16) {
                return Err(DeviceError::Dimension { received });
            }
        }
        let (heads, group) = (self.heads, self.group);
        if heads == 0 || group == 0 || group > MAX_GROUP || heads * group > 65_535 {
            return Err(DeviceError::Heads { heads, group });
        }
        Ok(())
    }

    /// Queries of all heads.
    pub fn queries(&self) -> usize {
        self.heads * self.group
    }

    /// Words of four values or eight, four words to a vector: vectors of one exact row of `dim` values.
    pub(super) fn row_vectors(&self, dim: usize) -> usize {
        dim * self.precision.bytes() / 16
    }

    /// Most keys that a layer may hold: positions and every index into a buffer are `u32`.
    pub(super) fn limit(&self) -> usize {
        let widest = self
            .row_vectors(self.dim)
            .max(self.row_vectors(self.value_dim));
        let per_key = self.heads * widest.max(self.group);
        (u32::MAX as usize / per_key).saturating_sub(CHUNK) / CHUNK * CHUNK
    }
}
