//! How a key becomes a product code.

use super::ProductShape;
use crate::{TILE, lanes, query};

/// Covers the evaluation of a key's tables in `f64`; see [`ProductTables::prepare`](super::ProductTables::prepare).
const TABLE_ERROR: f64 = 1.0 / (1u64 << 35) as f64;

/// The body of every kernel's `product_encode`: inlined into a function with that kernel's target features. No product in
/// it is summed by a fused operation: the bits are the same.
///
/// The residual `e = k - mu - k_hat` is computed in `f64` with two roundings a component, so it is off by at most
/// `2^-53 (|k_i - mu_i| + |e_i|) (1 + 2^-52)`; as for the sketch, `||e|| <= computed * NORM_UP * (1 + 2^-40) +
/// 2^-50 ||k_hat||`, and `TABLE_ERROR` has room for the last term beside its own.
#[inline(always)]
pub(crate) fn encode(
    shape: ProductShape,
    keys: &[f32],
    centre: &[f32],
    entries: &[f32],
    codes: &mut [u8],
    reaches: &mut [f32],
) {
    let (dim, width) = (shape.dim(), shape.entries());
    let gamma = query::gamma(dim);
    let outward = 1.0 + 1.0 / (1u64 << 40) as f64;
    codes.fill(0);
    for (slot, (row, reach)) in keys.chunks_exact(dim).zip(reaches).enumerate() {
        let mut residuals = [0.0f64; TILE];
        let mut code_squares = [0.0f64; TILE];
        for m in 0..shape.subvectors() {
            let dims = shape.dims(m);
            let book = &entries[dims.start * width..dims.end * width];
            let code = nearest(&row[dims.clone()], &centre[dims.clone()], book, width);
            shape.put(codes, slot, m, code);
            for (i, book) in dims.zip(book.chunks_exact(width)) {
                let entry = f64::from(book[code]);
                let residual = (f64::from(row[i]) - f64::from(centre[i])) - entry;
                residuals[i % TILE] += residual * residual;
                code_squares[i % TILE] += entry * entry;
            }
        }
        let residual = lanes::tree_f64(residuals).sqrt() * lanes::NORM_UP * outward;
        let code_norm = lanes::tree_f64(code_squares).sqrt() * lanes::NORM_UP;
        let rounding = gamma * lanes::norm_up(row) + TABLE_ERROR * code_norm;
        *reach = lanes::round_up((residual + rounding) * outward);
    }
    for m in 0..shape.subvectors() {
        pad(shape, codes, keys.len() / dim, m);
    }
}

/// Fills row `row` of the slots past the last key with that key's code.
fn pad(shape: ProductShape, codes: &mut [u8], len: usize, row: usize) {
    if let Some(last) = len.checked_sub(1) {
        let code = shape.code(codes, last, row);
        for slot in len..len.next_multiple_of(TILE) {
            shape.put(codes, slot, row, code);
        }
    }
}

/// The first entry of `book` (`[row.len()][width]`) with the least distance from `row - centre`.
#[inline(always)]
fn nearest(row: &[f32], centre: &[f32], book: &[f32], width: usize) -> usize {
    let mut best = ([f32::INFINITY; TILE], [0u32; TILE]);
    for block in 0..width / TILE {
        let mut distances = [0.0f32; TILE];
        for ((&key, &mu), book) in row.iter().zip(centre).zip(book.chunks_exact(width)) {
            let (value, book) = (key - mu, &book[block * TILE..][..TILE]);
            for (distance, entry) in distances.iter_mut().zip(book) {
                let difference = value - entry;
                *distance += difference * difference;
            }
        }
        for ((distance, least), block_of) in distances.iter().zip(&mut best.0).zip(&mut best.1) {
            let closer = distance < least;
            *least = if closer { *distance } else { *least };
            *block_of = if closer { block as u32 } else { *block_of };
        }
    }
    let least = fold(best.0, f32::min);
    let mut entries = best.1;
    for (l, (entry, &distance)) in entries.iter_mut().zip(&best.0).enumerate() {
        let found = *entry * TILE as u32 + l as u32;
        *entry = if distance == least { found } else { u32::MAX };
    }
    fold(entries, u32::min) as usize
}

/// Sixteen lanes into one, halves upon halves.
#[inline(always)]
fn fold<T: Copy>(mut lanes: [T; TILE], of: impl Fn(T, T) -> T) -> T {
    let mut half = TILE / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = of(lanes[l], lanes[l + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Writes the row of reaches.
pub(super) fn write_levels(shape: ProductShape, levels: &[f32], reaches: &[f32], codes: &mut [u8]) {
    let row = shape.subvectors();
    for (slot, &reach) in reaches.iter().enumerate() {
        let level = levels.partition_point(|&level| level < reach);
        assert!(level < levels.len(), "the last level covers every reach");
        shape.put(codes, slot, row, level);
    }
    pad(shape, codes, reaches.len(), row);
}
