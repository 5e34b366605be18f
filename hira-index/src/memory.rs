//! How many bytes an index holds, and where.

use std::collections::HashSet;
use std::fmt;

/// Bytes that an index has allocated, by part. Memory that is shared with a fork counts in each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexMemory {
    /// The exact keys, and room to widen those of an append if they are stored in 16 bits.
    pub keys: usize,
    /// The sketch: codes and parameters of the tiles, their norms, the segment centres, and the order of the slots.
    pub sketch: usize,
    /// The product codes with their codebooks, where segments have them.
    pub product: usize,
    /// The coarse levels, level 0 (the coarsest) first.
    pub levels: Vec<usize>,
    /// The sample of positions, and what undoes it.
    pub sample: usize,
}

/// Which pieces of memory were counted already, by their addresses: forks share segments, and a sum over several must not count them twice.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    seen: HashSet<usize>,
}

impl Counted {
    /// Whether the piece was not seen before; from now on it was. It must outlive the count.
    pub fn is_new<T>(&mut self, piece: &T) -> bool {
        self.seen.insert(std::ptr::from_ref(piece).addr())
    }

    /// Whether the piece was seen before.
    pub fn has<T>(&self, piece: &T) -> bool {
        self.seen.contains(&std::ptr::from_ref(piece).addr())
    }
}

impl IndexMemory {
    /// Bytes of all parts.
    pub fn total(&self) -> usize {
        let parts = self.keys + self.sketch + self.product + self.sample;
        parts + self.levels.iter().sum::<usize>()
    }
}

impl fmt::Display for IndexMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes: keys {}, sketch {}",
            self.total(),
            self.keys,
            self.sketch
        )?;
        if self.product > 0 {
            write!(f, ", product {}", self.product)?;
        }
        for (i, bytes) in self.levels.iter().enumerate() {
            write!(f, ", level {i} {bytes}")?;
        }
        write!(f, ", sample {}", self.sample)
    }
}

/// Bytes that a vector has allocated.
pub(crate) fn bytes<T>(values: &Vec<T>) -> usize {
    values.capacity() * size_of::<T>()
}
