//! The AVX2 implementation: eight lanes, 16-bit dot products.
//!
//! The token's methods are safe: they may be called with any arguments that type-check. The arguments' types carry the
//! checks (`Rows`, `Tiles`, `Queries`), and each function below checks what it needs beyond them.

#![allow(
    clippy::needless_range_loop,
    reason = "one index names a query, half or strip in several arrays of registers"
)]

pub(crate) mod product;
mod scan;
pub(crate) mod score;
pub(crate) mod softmax;

use crate::product::{self as codes, CodeTiles, Query};
use crate::scan::{Queries, Sink, Tiles};
use crate::score::Rows;
use crate::{Avx2, Line, ProductShape, ProductTables, ProductView, QueryGroup};

impl Avx2 {
    pub(crate) fn scores(self, query: &[f32], rows: Rows<'_>, out: &mut [f32]) {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { score::scores(query, rows, out) }
    }

    pub(crate) fn box_sums(self, query: &[f32], lo: &[f32], hi: &[f32], out: &mut [f32]) {
        #[target_feature(enable = "avx2,fma")]
        fn vectorised(query: &[f32], lo: &[f32], hi: &[f32], out: &mut [f32]) {
            crate::boxes::box_sums(query, lo, hi, out);
        }
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { vectorised(query, lo, hi, out) }
    }

    pub(crate) fn add_columns(self, rows: &[f32], sums: &mut [f64]) {
        #[target_feature(enable = "avx2,fma")]
        fn vectorised(rows: &[f32], sums: &mut [f64]) {
            crate::columns::add_columns(rows, sums);
        }
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { vectorised(rows, sums) }
    }

    pub(crate) fn rows_below(self, rows: &[f32], dim: usize, limit: f32) -> usize {
        #[target_feature(enable = "avx2,fma")]
        fn vectorised(rows: &[f32], dim: usize, limit: f32) -> usize {
            crate::columns::rows_below(rows, dim, limit)
        }
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { vectorised(rows, dim, limit) }
    }

    pub(crate) fn quantise_keys(
        self,
        keys: &[f32],
        centre: &[f32],
        first: usize,
        lines: &mut [Line],
        norms: &mut [f32],
    ) {
        #[target_feature(enable = "avx2,fma")]
        fn vectorised(
            keys: &[f32],
            centre: &[f32],
            first: usize,
            lines: &mut [Line],
            norms: &mut [f32],
        ) {
            crate::sketch::quantise_keys(keys, centre, first, lines, norms);
        }
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { vectorised(keys, centre, first, lines, norms) }
    }

    pub(crate) fn prepare_queries(self, group: &mut QueryGroup) {
        #[target_feature(enable = "avx2,fma")]
        fn vectorised(group: &mut QueryGroup) {
            group.quantise();
        }
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { vectorised(group) }
    }

    pub(crate) fn product_encode(
        self,
        shape: ProductShape,
        keys: &[f32],
        centre: &[f32],
        entries: &[f32],
        codes: &mut [u8],
        reaches: &mut [f32],
    ) {
        #[target_feature(enable = "avx2,fma")]
        fn vectorised(
            shape: ProductShape,
            keys: &[f32],
            centre: &[f32],
            entries: &[f32],
            codes: &mut [u8],
            reaches: &mut [f32],
        ) {
            codes::encode(shape, keys, centre, entries, codes, reaches);
        }
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { vectorised(shape, keys, centre, entries, codes, reaches) }
    }

    pub(crate) fn product_tables(
        self,
        tables: &mut ProductTables,
        group: &QueryGroup,
        product: ProductView<'_>,
        centre: &[f32],
    ) {
        #[target_feature(enable = "avx2,fma")]
        fn vectorised(
            tables: &mut ProductTables,
            group: &QueryGroup,
            product: ProductView<'_>,
            centre: &[f32],
        ) {
            tables.fill(group, product, centre);
        }
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { vectorised(tables, group, product, centre) }
    }

    pub(crate) fn product_bounds<const G: usize>(
        self,
        tiles: CodeTiles<'_>,
        queries: [Query<'_>; G],
        bounds: &mut [&mut [f32]; G],
    ) {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { product::bounds(tiles, queries, bounds) }
    }

    pub(crate) fn exp_weights(
        self,
        scores: &[f32],
        scale: f32,
        max_score: f32,
        weights: &mut [f32],
    ) -> f32 {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { softmax::exp_weights(scores, scale, max_score, weights) }
    }

    pub(crate) fn weighted_sum(self, weights: &[f32], rows: Rows<'_>, out: &mut [f32]) {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { softmax::weighted_sum(weights, rows, out) }
    }

    pub(crate) fn intervals(
        self,
        tiles: Tiles<'_>,
        queries: Queries<'_>,
        lower: &mut [f32],
        upper: &mut [f32],
    ) {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { scan::intervals(tiles, queries, lower, upper) }
    }

    pub(crate) fn tail_weight(self, bounds: &[f32], tau: f32, exponent: f32) -> f64 {
        #[target_feature(enable = "avx2,fma")]
        fn vectorised(bounds: &[f32], tau: f32, exponent: f32) -> f64 {
            crate::scan::tail_weight(bounds, tau, exponent)
        }
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { vectorised(bounds, tau, exponent) }
    }

    pub(crate) fn scan_block<const G: usize>(
        self,
        tiles: Tiles<'_>,
        queries: Queries<'_>,
        first: usize,
        base: u32,
        sinks: &mut [Sink<'_>; G],
    ) {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { scan::scan_block(tiles, queries, first, base, sinks) }
    }
}
