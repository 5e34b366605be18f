//! The sketch of one segment: owned tiles that grow at the end.

use hira_kernels::{Kernel, Line, SketchView, TILE, prefer_large_pages, prefetch, tile_lines};

use crate::memory;
use crate::snapshot::SketchParts;

/// Quantised keys in slot order, sixteen to a tile.
#[derive(Clone)]
pub(crate) struct Sketch {
    dim: usize,
    len: usize,
    lines: Vec<Line>,
    norms: Vec<f32>,
}

impl Sketch {
    pub(crate) fn new(dim: usize) -> Self {
        Self {
            dim,
            len: 0,
            lines: Vec::new(),
            norms: Vec::new(),
        }
    }

    /// The sketch that was saved; the lengths are checked.
    pub(crate) fn restore(dim: usize, parts: SketchParts<'_>) -> Self {
        Self {
            dim,
            len: parts.len,
            lines: parts.lines.into_owned(),
            norms: parts.norms.into_owned(),
        }
    }

    pub(crate) fn view(&self) -> SketchView<'_> {
        SketchView {
            dim: self.dim,
            len: self.len,
            lines: &self.lines,
            norms: &self.norms,
        }
    }

    /// Number of keys that are quantised.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for exactly `len` keys in all.
    pub(crate) fn reserve(&mut self, len: usize) {
        let tiles = len.div_ceil(TILE);
        self.lines
            .reserve_exact((tiles * tile_lines(self.dim)).saturating_sub(self.lines.len()));
        prefer_large_pages(&mut self.lines);
        self.norms
            .reserve_exact(tiles.saturating_sub(self.norms.len()));
    }

    /// Gives spare room back.
    pub(crate) fn shrink(&mut self) {
        self.lines.shrink_to_fit();
        self.norms.shrink_to_fit();
    }

    /// Appends the rows of `keys`, quantised about `centre`; `limit` is the most keys that will ever be stored.
    pub(crate) fn append(&mut self, kernel: Kernel, keys: &[f32], centre: &[f32], limit: usize) {
        let len = self.len + keys.len() / self.dim;
        let (tiles, most) = (len.div_ceil(TILE), limit.div_ceil(TILE));
        let stride = tile_lines(self.dim);
        reserve(&mut self.lines, tiles * stride, stride, most * stride);
        reserve(&mut self.norms, tiles, 1, most);
        // The kernel itself resets a tile when it writes the first slot.
        self.lines.resize(tiles * stride, Line::EMPTY);
        self.norms.resize(tiles, 0.0);
        kernel.quantise_keys(keys, centre, self.len, &mut self.lines, &mut self.norms);
        self.len = len;
    }

    /// Has the processor fetch what the next key is written to.
    pub(crate) fn prefetch_end(&self) {
        let stride = tile_lines(self.dim);
        prefetch(&self.lines[(self.len / TILE * stride).min(self.lines.len())..]);
    }

    /// Drops the tiles from the one that holds slot `len` on, and returns how many keys are left.
    pub(crate) fn truncate_to_tile(&mut self, len: usize) -> usize {
        let tiles = len.min(self.len) / TILE;
        self.lines.truncate(tiles * tile_lines(self.dim));
        self.norms.truncate(tiles);
        self.len = tiles * TILE;
        self.len
    }

    pub(crate) fn bytes(&self) -> usize {
        memory::bytes(&self.lines) + memory::bytes(&self.norms)
    }
}

/// Makes room for `needed` elements in all and a sixteenth more: a quarter more than there was, at least `least`, and at most `most`.
///
/// The sixteenth is for the key that follows a long prompt, which would else have all of it copied.
/// Each element is then copied four times on average however small the appends are, and at most a quarter of the
/// memory is unused, where doubling would leave half.
fn reserve<T>(values: &mut Vec<T>, needed: usize, least: usize, most: usize) {
    let capacity = growth(values.capacity(), needed, least, most);
    if capacity > values.capacity() {
        values.reserve_exact(capacity - values.len());
        prefer_large_pages(values);
    }
}

/// The capacity that follows `capacity` when `needed` elements have to fit, as [`reserve`] says.
pub(crate) fn growth(capacity: usize, needed: usize, least: usize, most: usize) -> usize {
    if needed <= capacity {
        return capacity;
    }
    let target = (capacity + capacity / 4).max(needed + needed / 16);
    target.max(least).min(most).max(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_geometric_and_bounded() {
        let mut values: Vec<u8> = Vec::new();
        let mut moves = 0;
        for len in 1..=8192 {
            let before = values.capacity();
            reserve(&mut values, len, 16, 8192);
            values.push(0);
            moves += usize::from(values.capacity() != before);
            assert!(
                len < 16 || values.capacity() <= len + len / 4 + 1,
                "{len}: {}",
                values.capacity()
            );
        }
        assert!(moves < 32, "{moves}");
        assert_eq!(values.capacity(), 8192);
    }

    #[test]
    fn batches_make_the_same_tiles() {
        let (dim, kernel) = (5, Kernel::best());
        let keys: Vec<f32> = (0..50 * dim).map(|i| (i as f32 * 0.7).sin()).collect();
        let centre = vec![0.25; dim];
        let mut whole = Sketch::new(dim);
        whole.append(kernel, &keys, &centre, 64);
        for step in [1, 3, 16, 17] {
            let mut parts = Sketch::new(dim);
            for batch in keys.chunks(step * dim) {
                parts.append(kernel, batch, &centre, 64);
            }
            assert_eq!(parts.lines, whole.lines);
            assert_eq!(parts.norms, whole.norms);
            // Cut inside of the third tile and write it again.
            let kept = parts.truncate_to_tile(41);
            assert_eq!(kept, 32);
            parts.append(kernel, &keys[kept * dim..], &centre, 64);
            assert_eq!(parts.lines, whole.lines);
            assert_eq!(parts.norms, whole.norms);
        }
    }
}
