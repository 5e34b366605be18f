//! Bounds of tiles by product codes, one lane at a time.

use crate::TILE;
use crate::product::{CodeTiles, Query};

pub(crate) fn product_bounds<const G: usize>(
    tiles: CodeTiles<'_>,
    queries: [Query<'_>; G],
    bounds: &mut [&mut [f32]; G],
) {
    for (query, bounds) in queries.iter().zip(bounds) {
        for (tile, bound) in tiles.iter().zip(bounds.iter_mut()) {
            let sums = if tiles.shape().has_nibbles() {
                nibble_sums(tile, query)
            } else {
                byte_sums(tile, query)
            };
            *bound = f32::from(sums.into_iter().fold(0, u16::max));
        }
        query.constants.finish(bounds);
    }
}

fn nibble_sums(tile: &[u8], query: &Query<'_>) -> [u16; TILE] {
    let mut sums = [0; TILE];
    for (pair, codes) in tile.as_chunks::<TILE>().0.iter().enumerate() {
        let [low, high] = query.pair(pair);
        for (sum, &code) in sums.iter_mut().zip(codes) {
            let (first, second) = (usize::from(code & 0x0f), usize::from(code >> 4));
            *sum += u16::from(low[first]) + u16::from(high[second]);
        }
    }
    sums
}

/// Also what the other kernels do: a table of 256 bytes is longer than their shuffles reach.
fn byte_sums(tile: &[u8], query: &Query<'_>) -> [u16; TILE] {
    let mut sums = [0; TILE];
    let tables = query.tables.as_chunks::<256>().0;
    for (codes, table) in tile.as_chunks::<TILE>().0.iter().zip(tables) {
        for (sum, &code) in sums.iter_mut().zip(codes) {
            *sum += u16::from(table[usize::from(code)]);
        }
    }
    sums
}
