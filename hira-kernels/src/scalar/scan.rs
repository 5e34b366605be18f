//! Intervals and candidates, one tile at a time.

use crate::query::FLUSH_LINES;
use crate::scan::{Queries, Sink, Tiles};
use crate::tail::{Cuts, Pieces};
use crate::{QueryGroup, TILE, bf16, lanes};

pub(crate) fn intervals(
    tiles: Tiles<'_>,
    queries: Queries<'_>,
    lower: &mut [f32],
    upper: &mut [f32],
) {
    let slots = tiles.len() * TILE;
    for g in 0..queries.group.len() {
        for tile in 0..tiles.len() {
            let (low, high) = bounds(tiles, tile, queries, g);
            let at = g * slots + tile * TILE;
            lower[at..][..TILE].copy_from_slice(&low);
            upper[at..][..TILE].copy_from_slice(&high);
        }
    }
}

pub(crate) fn scan_block<const G: usize>(
    tiles: Tiles<'_>,
    cuts: Cuts,
    queries: Queries<'_>,
    first: usize,
    base: u32,
    sinks: &mut [Sink<'_>; G],
) {
    let mut pieces = Pieces::<G>::new();
    for (g, sink) in sinks.iter_mut().enumerate() {
        let mut tail = [0.0; TILE];
        let (mut from, mut piece) = (0, 0);
        while from < tiles.len() {
            let to = cuts.end(&tiles, from);
            let (mut weights, mut widest) = ([0.0; TILE], 0.0f32);
            for tile in from..to {
                let live = tiles.live(tile);
                let (lower, upper) = bounds(tiles, tile, queries, first + g);
                let slot = base + (tiles.first_slot() + tile * TILE) as u32;
                sink.take(slot, &lower[..live], &upper[..live], &mut weights[..live]);
                let residuals = parameters(tiles, tile).map(|[_, residual]| residual);
                widest = residuals.take(live).fold(widest, f32::max);
            }
            for (sum, weight) in tail.iter_mut().zip(weights) {
                *sum += weight;
            }
            pieces.sums[g][piece] = lanes::tree(weights);
            pieces.residuals[piece] = widest;
            (from, piece) = (to, piece + 1);
        }
        sink.add_tail(tail);
        pieces.finish(g, &tiles, cuts, &queries.constants(first + g), sink);
    }
}

/// Scale and residual norm of the sixteen keys of a tile.
fn parameters(tiles: Tiles<'_>, tile: usize) -> impl Iterator<Item = [f32; 2]> {
    let line = &tiles.lines()[(tile + 1) * tiles.stride() - 1];
    line.0.as_chunks::<4>().0.iter().map(|word| {
        let word = u32::from_le_bytes(*word);
        [(word >> 16) as u16, word as u16].map(bf16::decode)
    })
}

/// Bounds of the scores of query `g` with the sixteen keys of a tile; the operations are those of
/// [`QueryConstants`](crate::query::QueryConstants).
fn bounds(
    tiles: Tiles<'_>,
    tile: usize,
    queries: Queries<'_>,
    g: usize,
) -> ([f32; TILE], [f32; TILE]) {
    let query = queries.constants(g);
    let products = products(tiles, tile, queries.group, g);
    let [low, high] = query.ends(tiles.norm(tile));
    let (mut lower, mut upper) = ([0.0; TILE], [0.0; TILE]);
    for (l, [scale, residual]) in parameters(tiles, tile).enumerate() {
        let product = query.scale * products[l];
        lower[l] = (-query.norm).mul_add(residual, product.mul_add(scale, low));
        upper[l] = query.norm.mul_add(residual, product.mul_add(scale, high));
    }
    (lower, upper)
}

/// The integer products of one query's code with the sixteen keys' codes, as `f32`.
fn products(tiles: Tiles<'_>, tile: usize, group: &QueryGroup, g: usize) -> [f32; TILE] {
    let codes = &tiles.lines()[tile * tiles.stride()..][..group.lines()];
    let pairs = &group.pairs()[g * group.lines()..][..group.lines()];
    let biases = &group.biases()[g * group.flushes()..][..group.flushes()];
    let mut products = [0.0f32; TILE];
    for ((codes, pairs), [hi, lo]) in codes
        .chunks(FLUSH_LINES)
        .zip(pairs.chunks(FLUSH_LINES))
        .zip(biases)
    {
        let mut sums = [128 * hi + lo; TILE];
        for (line, &[even, odd]) in codes.iter().zip(pairs) {
            let query = [
                even as i16,
                odd as i16,
                (even >> 16) as i16,
                (odd >> 16) as i16,
            ]
            .map(i32::from);
            for (sum, quad) in sums.iter_mut().zip(line.0.as_chunks::<4>().0) {
                for i in 0..4 {
                    // Sums of codes with 128 added may wrap on the way; the last one fits.
                    *sum = sum.wrapping_add(query[i] * i32::from(quad[i]));
                }
            }
        }
        for (product, sum) in products.iter_mut().zip(sums) {
            *product += sum as f32;
        }
    }
    products
}
