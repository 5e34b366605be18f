//! The AVX2 implementation: eight lanes, 16-bit dot products.
//!
//! The token's methods are safe: they may be called with any arguments that type-check. The arguments' types carry the
//! checks (`Rows`, `Tiles`, `Queries`), and each function below checks what it needs beyond them.

#![allow(
    clippy::needless_range_loop,
    reason = "one index names a query, half or strip in several arrays of registers"
)]

mod mass;
mod order;
pub(crate) mod product;
mod scan;
pub(crate) mod score;
pub(crate) mod softmax;

use crate::Avx2;
use crate::element::Element;
use crate::portable::portable_methods;
use crate::product::{CodeTiles, Query};
use crate::scan::{Queries, Sink, Tiles};
use crate::score::Rows;
use crate::tail::Cuts;

impl Avx2 {
    portable_methods!("avx2,fma,f16c");

    pub(crate) fn kth_largest(self, values: &[f32], k: usize) -> f32 {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { order::kth_largest(values, k) }
    }

    pub(crate) fn extremes(self, values: &[f32]) -> [f32; 2] {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { order::extremes(values) }
    }

    pub(crate) fn least_at(self, values: &[f32], limit: f32) -> f32 {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { order::least_at(values, limit) }
    }

    pub(crate) fn mass_splits<const N: usize>(
        self,
        keys: crate::mass::Weighed<'_>,
        taus: [f32; N],
        at_taus: [f32; N],
    ) -> [[f64; 2]; N] {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { mass::splits(keys, taus, at_taus) }
    }

    /// No wider: there is no instruction that compresses lanes.
    pub(crate) fn places_within(
        self,
        values: &[f32],
        within: std::ops::Range<f32>,
        places: &mut [u32],
    ) -> usize {
        crate::order::places_within(values, within, places)
    }

    /// No wider either.
    pub(crate) fn pick_within(
        self,
        values: &[f32],
        within: std::ops::Range<f32>,
        places: &mut [u32],
        picked: &mut [f32],
    ) -> usize {
        crate::order::pick_within(values, within, places, picked)
    }

    pub(crate) fn scores<E: Element>(self, query: &[f32], rows: Rows<'_, E>, out: &mut [f32]) {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { score::scores(query, rows, out) }
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

    pub(crate) fn weighted_sums<E: Element, const N: usize>(
        self,
        weights: [&[f32]; N],
        rows: Rows<'_, E>,
        out: [&mut [f32]; N],
    ) {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { softmax::weighted_sums(weights, rows, out) }
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

    pub(crate) fn scan_block<const G: usize>(
        self,
        tiles: Tiles<'_>,
        cuts: Cuts,
        queries: Queries<'_>,
        first: usize,
        base: u32,
        sinks: &mut [Sink<'_>; G],
    ) {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { scan::scan_block(tiles, cuts, queries, first, base, sinks) }
    }
}
