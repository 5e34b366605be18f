//! Inputs and the sketch of a set of keys, shared by the test files.

use hira_kernels::{Kernel, Line, QueryGroup, SegmentOffsets, SketchView, TILE, tile_lines};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Lengths on both sides of every vector width and of every block of the code.
pub(crate) const LENGTHS: [usize; 24] = [
    0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512,
    513,
];

/// `count` values in `[-1, 1]`, times `scale`.
pub(crate) fn values(seed: u64, count: usize, scale: f32) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| scale * random.random_range(-1.0f32..1.0))
        .collect()
}

/// A copy of `values` that starts `shift` floats past an allocation's start, and the offset to slice it at.
pub(crate) fn shifted(values: &[f32], shift: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; shift];
    out.extend_from_slice(values);
    out
}

/// The mean of the rows.
pub(crate) fn mean(keys: &[f32], dim: usize) -> Vec<f32> {
    let rows = (keys.len() / dim).max(1) as f32;
    (0..dim)
        .map(|d| keys.iter().skip(d).step_by(dim).map(|v| v / rows).sum())
        .collect()
}

/// An owned sketch.
#[derive(PartialEq, Debug, Clone)]
pub(crate) struct Sketch {
    pub(crate) dim: usize,
    pub(crate) len: usize,
    pub(crate) centre: Vec<f32>,
    pub(crate) lines: Vec<Line>,
    pub(crate) norms: Vec<f32>,
}

impl Sketch {
    pub(crate) fn new(kernel: Kernel, keys: &[f32], centre: &[f32]) -> Self {
        let dim = centre.len();
        let len = keys.len() / dim;
        let tiles = len.div_ceil(TILE);
        let mut lines = vec![Line([0xa5; 64]); tiles * tile_lines(dim)];
        let mut norms = vec![f32::NAN; tiles];
        kernel.quantise_keys(keys, centre, 0, &mut lines, &mut norms);
        Self {
            dim,
            len,
            centre: centre.to_vec(),
            lines,
            norms,
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

    pub(crate) fn tiles(&self) -> usize {
        self.len.div_ceil(TILE)
    }

    /// The group and offsets of some queries on this sketch.
    pub(crate) fn queries(&self, kernel: Kernel, queries: &[f32]) -> (QueryGroup, SegmentOffsets) {
        let mut group = QueryGroup::new();
        group.prepare(kernel, queries, self.dim);
        let mut offsets = SegmentOffsets::default();
        group.offsets_into(kernel, &self.centre, &mut offsets);
        (group, offsets)
    }

    /// All intervals, `[queries][tiles * 16]`.
    pub(crate) fn intervals(&self, kernel: Kernel, queries: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (group, offsets) = self.queries(kernel, queries);
        let count = group.len() * self.tiles() * TILE;
        let (mut lower, mut upper) = (vec![f32::NAN; count], vec![f32::NAN; count]);
        kernel.intervals_into(
            self.view(),
            0..self.tiles(),
            &group,
            &offsets,
            &mut lower,
            &mut upper,
        );
        (lower, upper)
    }
}

/// The bit patterns, which unlike the values compare equal exactly when nothing differs.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
