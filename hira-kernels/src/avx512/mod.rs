//! The AVX-512 implementation: sixteen lanes, 8-bit dot products.
//!
//! The token's methods are safe: they may be called with any arguments that type-check. The arguments' types carry the
//! checks (`Rows`, `Tiles`, `Queries`), and each function below checks what it needs beyond them.

#![allow(
    clippy::needless_range_loop,
    reason = "one index names a query, half or strip in several arrays of registers"
)]

mod ahead;
mod ceiling;
mod mass;
mod order;
mod product;
mod scan;
mod score;
mod softmax;

use crate::Avx512;
use crate::element::Element;
use crate::portable::portable_methods;
use crate::product::{CodeTiles, Query};
use crate::scan::{Queries, Sink, Tiles};
use crate::score::Rows;
use crate::tail::Cuts;

impl Avx512 {
    portable_methods!("avx512f,avx512bw,avx512vl,avx512dq");

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

    pub(crate) fn places_within(
        self,
        values: &[f32],
        within: std::ops::Range<f32>,
        places: &mut [u32],
    ) -> usize {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { order::places_within(values, within, places) }
    }

    pub(crate) fn pick_within(
        self,
        values: &[f32],
        within: std::ops::Range<f32>,
        places: &mut [u32],
        picked: &mut [f32],
    ) -> usize {
        // SAFETY: the token proves that this machine has the target features of the function.
        unsafe { order::pick_within(values, within, places, picked) }
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
        let tail = sinks.iter().any(|sink| sink.exponent > 0.0);
        macro_rules! scan {
            ($lines:literal, $tail:literal, $blocks:literal) => {
                // SAFETY: the token proves that this machine has the target features of the function.
                unsafe {
                    scan::scan_block::<G, $lines, $tail, $blocks>(
                        tiles, cuts, queries, first, base, sinks,
                    )
                }
            };
        }
        match (G, tail, cuts.are_wanted()) {
            (1, true, true) => scan!(2, true, true),
            (1, true, false) => scan!(2, true, false),
            (1, false, _) => scan!(2, false, false),
            (_, true, true) => scan!(1, true, true),
            (_, true, false) => scan!(1, true, false),
            (_, false, _) => scan!(1, false, false),
        }
    }
}
