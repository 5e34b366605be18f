//! Inputs and the sketch of a set of keys, shared by the test files.

use hira_kernels::{
    Kernel, Line, ProductShape, ProductTables, ProductView, QueryGroup, SegmentOffsets, SketchView,
    TILE, tile_lines,
};
use proptest::prelude::*;
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

/// Rows of one kind after the other: ordinary, sparse, constant, one large component, tiny, huge, zero, repeated.
pub(crate) fn awkward(seed: u64, count: usize, dim: usize, scale: f32) -> Vec<f32> {
    let mut keys = values(seed, count * dim, scale);
    for (i, row) in keys.chunks_exact_mut(dim).enumerate() {
        match i % 9 {
            1 => row.iter_mut().skip(1).step_by(2).for_each(|v| *v = 0.0),
            2 => row.fill(scale),
            3 => row[i % dim] *= 1e4,
            4 => row.iter_mut().for_each(|v| *v *= 1e-25),
            5 => row.fill(0.0),
            6 => row
                .iter_mut()
                .for_each(|v| *v = v.signum() * f32::from_bits(1)),
            7 => row.fill(-0.0),
            _ => {}
        }
    }
    let repeated = keys[..dim].to_vec();
    if count > 10 {
        keys[10 * dim..11 * dim].copy_from_slice(&repeated);
    }
    keys
}

/// The mean of the rows.
pub(crate) fn mean(keys: &[f32], dim: usize) -> Vec<f32> {
    let rows = (keys.len() / dim).max(1) as f32;
    (0..dim)
        .map(|d| keys.iter().skip(d).step_by(dim).map(|v| v / rows).sum())
        .collect()
}

/// A row of ordinary, zero, subnormal and wide-ranging values, at any scale.
pub(crate) fn row(dim: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        8 => -1.0f32..1.0,
        1 => Just(0.0f32),
        1 => prop::num::f32::SUBNORMAL,
        1 => (-126i32..40).prop_map(|e| (e as f32).exp2()),
    ];
    (prop::collection::vec(value, dim), -60i32..40).prop_map(|(mut row, exponent)| {
        let scale = (exponent as f32).exp2();
        row.iter_mut().for_each(|v| *v *= scale);
        // Norms stay below 2^58, whatever the mixture: 2^40 * 2^40 would pass the limit.
        let largest = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        if largest > 2.9e17 / 16.0 {
            let shrink = 1.8e16 / largest;
            row.iter_mut().for_each(|v| *v *= shrink);
        }
        row
    })
}

/// Rows of that kind, end to end.
pub(crate) fn rows(dim: usize, count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(row(dim), count).prop_map(|rows| rows.concat())
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

/// Owned product codes, with codebooks of entries taken from the keys themselves.
#[derive(PartialEq, Debug, Clone)]
pub(crate) struct Product {
    pub(crate) shape: ProductShape,
    pub(crate) centre: Vec<f32>,
    pub(crate) entries: Vec<f32>,
    pub(crate) levels: Vec<f32>,
    pub(crate) reaches: Vec<f32>,
    pub(crate) codes: Vec<u8>,
}

impl Product {
    pub(crate) fn new(
        kernel: Kernel,
        keys: &[f32],
        centre: &[f32],
        subvectors: usize,
        bits: u32,
    ) -> Self {
        let dim = centre.len();
        let len = keys.len() / dim;
        let shape = ProductShape::new(dim, subvectors, bits);
        let count = shape.entries();
        // An entry is near to some keys, equal to one, and the mean of none.
        let entry = |i: usize, j: usize| {
            (keys[(j * 5 + 2) % len * dim + i] - centre[i]) * (1.0 + j as f32 / 64.0)
        };
        let entries: Vec<f32> = (0..dim)
            .flat_map(|i| (0..count).map(move |j| (i, j)))
            .map(|(i, j)| entry(i, j))
            .collect();
        let mut codes = vec![0xa5; len.div_ceil(TILE) * shape.tile_bytes()];
        let mut reaches = vec![f32::NAN; len];
        kernel.product_encode(shape, keys, centre, &entries, &mut codes, &mut reaches);
        let mut sorted = reaches.clone();
        sorted.sort_by(f32::total_cmp);
        let levels: Vec<f32> = (1..=count)
            .map(|j| sorted[(j * len).div_ceil(count) - 1])
            .collect();
        kernel.product_levels(shape, &levels, &reaches, &mut codes);
        Self {
            shape,
            centre: centre.to_vec(),
            entries,
            levels,
            reaches,
            codes,
        }
    }

    pub(crate) fn view(&self) -> ProductView<'_> {
        ProductView {
            shape: self.shape,
            len: self.reaches.len(),
            entries: &self.entries,
            levels: &self.levels,
            codes: &self.codes,
        }
    }

    /// The bounds of all tiles, `[queries][tiles]`.
    pub(crate) fn bounds(&self, kernel: Kernel, queries: &[f32]) -> Vec<f32> {
        let mut group = QueryGroup::new();
        group.prepare(kernel, queries, self.shape.dim());
        let mut tables = ProductTables::new();
        tables.prepare(kernel, &group, self.view(), &self.centre);
        let tiles = self.view().tiles();
        let mut bounds = vec![f32::NAN; group.len() * tiles];
        kernel.product_bounds_into(self.view(), 0..tiles, &tables, &mut bounds);
        bounds
    }
}

/// The bit patterns, which unlike the values compare equal exactly when nothing differs.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
