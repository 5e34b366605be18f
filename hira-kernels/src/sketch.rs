//! The sketch: int8 codes in tiles of sixteen keys, and how a key becomes one.

use crate::kernel::dispatch;
use crate::{Kernel, MAX_DIM, TILE, bf16, lanes};

/// One cache line of a sketch.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line(pub [u8; 64]);

impl Line {
    /// A line of zero bytes, for a buffer that [`Kernel::quantise_keys`] will fill.
    pub const EMPTY: Line = Line([0; 64]);
}

impl Default for Line {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// Code byte of a zero: codes `-127..=127` are stored with 128 added.
pub(crate) const ZERO_CODE: u8 = 128;

/// Lines per tile of sixteen keys of `dim` dimensions: one per four dimensions, and one of parameters.
///
/// Line `j` holds dimensions `4j..4j+4` of the sixteen keys, key by key: byte `4 * key + i` is dimension `4j + i`, so a
/// 32-bit lane of a vector register holds four dimensions of one key. The last line holds a little-endian `u32` per
/// key, `(bf16 bits of the scale) << 16 | (bf16 bits of the residual norm)`.
///
/// ```
/// assert_eq!(hira_kernels::tile_lines(64), 17);
/// assert_eq!(hira_kernels::tile_lines(3), 2);
/// ```
pub const fn tile_lines(dim: usize) -> usize {
    dim.div_ceil(4) + 1
}

/// A borrowed sketch of `len` keys; see [`tile_lines`] for the layout.
#[derive(Clone, Copy, Debug)]
pub struct SketchView<'a> {
    /// Dimensions per key.
    pub dim: usize,
    /// Keys; the last tile may be partly filled.
    pub len: usize,
    /// `tiles() * tile_lines(dim)` lines, or more.
    pub lines: &'a [Line],
    /// Per tile, at least the largest norm of its keys and of their decoded codes.
    pub norms: &'a [f32],
}

impl SketchView<'_> {
    /// Tiles that hold the keys, the partly filled one included.
    pub fn tiles(&self) -> usize {
        self.len.div_ceil(TILE)
    }
}

/// Parameters of quantised rows, one to a lane; see [`quantise_rows`].
struct RowParameters<const R: usize> {
    /// bf16 bits of the scale and of the residual norm, as stored.
    words: [u32; R],
    /// Rounded-up maximum of `||key||` and `||scale * code||`.
    norms: [f32; R],
}

impl<const R: usize> RowParameters<R> {
    /// Stores those of the first `count` rows, which lie in the lanes from `lane` on.
    #[inline(always)]
    fn store(&self, count: usize, lane: usize, parameters: &mut Line, norm: &mut f32) {
        let words = parameters.0.as_chunks_mut::<4>().0[lane..].iter_mut();
        for (to, word) in words.zip(&self.words[..count]) {
            *to = word.to_le_bytes();
        }
        let norms = self.norms[..count].iter();
        *norm = norms.fold(*norm, |norm, &x| if x > norm { x } else { norm });
    }
}

impl Kernel {
    /// Quantises the rows of `keys` about `centre` into slots `first..` of a sketch.
    ///
    /// For each row `k`: `k = centre + s*c + e`, with `s` the largest `|k - centre|` over 127 rounded up to bf16, `c`
    /// integers in `-127..=127`, and a stored residual norm of at least `||e||`. `norms` grows to cover the new rows.
    /// Slots are filled in order: writing slot 0 of a tile first resets the whole tile (code 0, `s = 0`, residual 0),
    /// whatever it held.
    ///
    /// # Numerics
    ///
    /// The same bits on every kernel. A row equal to `centre` gets `s = 0` and residual exactly 0.
    ///
    /// # Complexity
    ///
    /// `O(dim)` a row, without allocation.
    ///
    /// # Panics
    ///
    /// If `centre` (whose length is the dimension) is empty or longer than [`MAX_DIM`], `keys` is not a whole number
    /// of rows, or `lines` or `norms` is too short for the last slot. Rows must be finite with norm below
    /// [`MAX_NORM`](crate::MAX_NORM), and so must `centre`; others give a meaningless sketch.
    pub fn quantise_keys(
        self,
        keys: &[f32],
        centre: &[f32],
        first: usize,
        lines: &mut [Line],
        norms: &mut [f32],
    ) {
        let dim = centre.len();
        assert!(
            dim > 0 && dim <= MAX_DIM,
            "a row has 1 to {MAX_DIM} dimensions, not {dim}"
        );
        assert_eq!(keys.len() % dim, 0, "keys are whole rows of {dim}");
        let tiles = (first + keys.len() / dim).div_ceil(TILE);
        assert!(
            lines.len() >= tiles * tile_lines(dim),
            "lines hold {tiles} tiles"
        );
        assert!(norms.len() >= tiles, "norms hold {tiles} tiles");
        dispatch!(self, quantise_keys(keys, centre, first, lines, norms));
    }
}

/// The body of every kernel's `quantise_keys`: inlined into a function with that kernel's target features and vectorised
/// there by the compiler. It has no multiplication whose rounding a fused one would change: the bits are the same.
#[inline(always)]
pub(crate) fn quantise_keys(
    keys: &[f32],
    centre: &[f32],
    first: usize,
    lines: &mut [Line],
    norms: &mut [f32],
) {
    let dim = centre.len();
    let stride = tile_lines(dim);
    let (mut slot, mut rest) = (first, keys);
    while !rest.is_empty() {
        let (tile, lane) = (slot / TILE, slot % TILE);
        let count = (TILE - lane).min(rest.len() / dim);
        let (rows, later) = rest.split_at(count * dim);
        let tile_lines = &mut lines[tile * stride..][..stride];
        if lane == 0 {
            reset_tile(tile_lines);
            norms[tile] = 0.0;
        }
        let (parameters, codes) = tile_lines
            .split_last_mut()
            .expect("a tile has at least two lines");
        // A decode step appends one row: what is worked out for sixteen at a time would take most of its time.
        if count == 1 {
            let found = quantise_rows::<1>(rows, centre, lane, codes);
            found.store(count, lane, parameters, &mut norms[tile]);
        } else {
            let found = quantise_rows::<TILE>(rows, centre, lane, codes);
            found.store(count, lane, parameters, &mut norms[tile]);
        }
        (slot, rest) = (slot + count, later);
    }
}

fn reset_tile(lines: &mut [Line]) {
    lines.fill(Line([ZERO_CODE; 64]));
    if let Some(parameters) = lines.last_mut() {
        *parameters = Line::EMPTY;
    }
}

/// Writes the codes of up to `R` rows into the lanes from `lane` on of the code lines, and returns their parameters.
///
/// All of it is in `f32`, four times as wide as `f64`, and in units of the scale, so that squares neither overflow nor lose what matters to
/// underflow. With `u = 2^-24`, `x = k - mu` exactly, `n = ceil(D/16)`:
///
/// * `d = fl(k - mu)` has a relative error of `u` (a subnormal difference is exact), `t = fl(d / s)`, a product with a rounded reciprocal, two
///   more: `|t - x/s| <= 3.01 u |t|`, plus `2^-149` where `t` is subnormal. `rho = fl(t - c)`: `|rho - (t - c)| <= u |rho|`.
/// * So `|e/s - rho| <= 3.01 u |t| + u |rho|` by components, and with `||t|| <= (||c|| + ||rho||) (1 + u)` in norm
///   `||e|| <= s (||rho|| (1 + 4.1 u) + 3.1 u ||c||)`.
/// * A sum of squares in sixteen lanes and a tree: `n + 5` roundings of each term at most, so a root is low by a factor of at most
///   `1 + (n + 5) u`. `growth` is above that and the `4.1 u`, and `4 u ||c||` above `3.1 u ||c||` with what a root of codes can be low by.
/// * Underflow, of `t` or of squares, takes at most `D^(1/2) 2^-74 <= 2^-66` from `||rho||`. It takes something only if a
///   component of `x/s` is below `2^-63` and not zero: then `s` is above `2^-133`, the least scale, so it was rounded up from
///   `largest/127` by less than a factor of 2, some `|c|` is at least 63, and the difference of `4 u ||c||` and `3.1 u ||c||` is above `2^-19`.
#[inline(always)]
fn quantise_rows<const R: usize>(
    rows: &[f32],
    centre: &[f32],
    lane: usize,
    codes: &mut [Line],
) -> RowParameters<R> {
    let dim = centre.len();
    // What is worked out once a row is worked out for all of them at a time: row by row it would take longer than the rest.
    let (mut scales, mut ups, mut reciprocals) = ([0.0f32; R], [1.0f32; R], [1.0f32; R]);
    for (scale, row) in scales.iter_mut().zip(rows.chunks_exact(dim)) {
        *scale = largest_distance(row, centre);
    }
    let mut scale_bits = [0u32; R];
    for r in 0..R {
        let largest = scales[r];
        // A scale of at least 2^-133 where the quotient underflows: the code of a non-zero difference stays in range.
        let least = largest / 127.0;
        let least = if least < bf16::MIN_POSITIVE {
            bf16::MIN_POSITIVE
        } else {
            least
        };
        let bits = u32::from(bf16::round_up(least)) << 16;
        scale_bits[r] = if largest > 0.0 { bits } else { 0 };
        scales[r] = f32::from_bits(scale_bits[r]);
        // The reciprocal of a tiny scale would overflow. A power of two changes nothing else.
        ups[r] = if scales[r] < TINY { 1.0 / TINY } else { 1.0 };
        let reciprocal = 1.0 / (scales[r] * ups[r]);
        reciprocals[r] = if largest > 0.0 { reciprocal } else { 1.0 };
    }
    let mut sums = [[0.0f32; R]; 3];
    for (r, row) in rows.chunks_exact(dim).enumerate() {
        let found = quantise_row(row, centre, [ups[r], reciprocals[r]], lane + r, codes);
        for (sums, found) in sums.iter_mut().zip(found) {
            sums[r] = lanes::tree(found);
        }
    }
    let [code_squares, residual_squares, key_squares] = sums;
    let unit = 1.0 / (1u64 << 24) as f64;
    let growth = 1.0 + (dim.div_ceil(TILE) + 10) as f64 * unit;
    let root = |square: f32| f64::from(square).sqrt() * growth;
    let mut words = [0u32; R];
    let mut norms = [0.0f32; R];
    for r in 0..R {
        let (scale, code_norm) = (f64::from(scales[r]), root(code_squares[r]));
        let residual = scale * (root(residual_squares[r]) + 4.0 * unit * code_norm);
        words[r] = scale_bits[r] | u32::from(bf16::round_up(raised(residual)));
        let key_norm = root(key_squares[r]);
        let code_norm = scale * code_norm;
        norms[r] = raised(if code_norm > key_norm {
            code_norm
        } else {
            key_norm
        });
    }
    // Squares of small values may have underflowed, by 2^-150 each, which is nothing beside 2^-60. Below, and at norms that are not allowed
    // but do no harm, the norm is worked out in f64.
    for (r, row) in rows.chunks_exact(dim).enumerate() {
        if !(TINY..=f32::MAX).contains(&key_squares[r]) {
            let code_norm = f64::from(scales[r]) * root(code_squares[r]);
            norms[r] = lanes::round_up(lanes::norm_up(row).max(code_norm));
        }
    }
    RowParameters { words, norms }
}

/// The smallest `f32` that is not below `value`, which is not negative: [`lanes::round_up`] without a branch.
#[inline(always)]
fn raised(value: f64) -> f32 {
    let near = value as f32;
    f32::from_bits(near.to_bits() + u32::from(f64::from(near) < value))
}

/// Largest `|k - mu|`.
#[inline(always)]
fn largest_distance(row: &[f32], centre: &[f32]) -> f32 {
    let mut largest = [0.0f32; TILE];
    for block in 0..row.len().div_ceil(TILE) {
        let (key, mu) = (lanes::load(row, block), lanes::load(centre, block));
        for l in 0..TILE {
            let distance = (key[l] - mu[l]).abs();
            largest[l] = if distance > largest[l] {
                distance
            } else {
                largest[l]
            };
        }
    }
    lanes::largest(largest)
}

/// Writes the codes of one row into lane `lane`; returns the squares of codes, of residuals in units of the scale, and of the key.
#[inline(always)]
fn quantise_row(
    row: &[f32],
    centre: &[f32],
    [up, reciprocal]: [f32; 2],
    lane: usize,
    codes: &mut [Line],
) -> [[f32; TILE]; 3] {
    let mut code_squares = [0.0f32; TILE];
    let mut residual_squares = [0.0f32; TILE];
    let mut key_squares = [0.0f32; TILE];
    for block in 0..row.len().div_ceil(TILE) {
        let (key, mu) = (lanes::load(row, block), lanes::load(centre, block));
        let mut bytes = [0u8; TILE];
        for l in 0..TILE {
            // The scale is within one rounding of `largest / 127` or above it, so the quotient is below 127.5.
            let quotient = ((key[l] - mu[l]) * up) * reciprocal;
            let (code, rounded) = lanes::round(quotient);
            bytes[l] = code.wrapping_add(i32::from(ZERO_CODE)) as u8;
            let residual = quotient - rounded;
            code_squares[l] += rounded * rounded;
            residual_squares[l] += residual * residual;
            key_squares[l] += key[l] * key[l];
        }
        let quads = bytes.as_chunks::<4>().0;
        // One by one: as a loop it becomes a scatter, which takes longer.
        if let [first, second, third, fourth, ..] = &mut codes[4 * block..] {
            first.0[4 * lane..][..4].copy_from_slice(&quads[0]);
            second.0[4 * lane..][..4].copy_from_slice(&quads[1]);
            third.0[4 * lane..][..4].copy_from_slice(&quads[2]);
            fourth.0[4 * lane..][..4].copy_from_slice(&quads[3]);
        } else {
            for (line, quad) in codes[4 * block..].iter_mut().zip(quads) {
                line.0[4 * lane..][..4].copy_from_slice(quad);
            }
        }
    }
    [code_squares, residual_squares, key_squares]
}

/// `2^-60`: the reciprocal of a smaller scale is taken in two steps.
const TINY: f32 = 1.0 / (1u64 << 60) as f32;

#[cfg(test)]
mod tests {
    use super::*;

    /// Residual norm and norm as stored, and the same worked out in `f64`: `||e||`, `max(||k||, ||s c||)`.
    fn stored_and_true(row: &[f32], centre: &[f32]) -> ([f64; 2], [f64; 2]) {
        let dim = row.len();
        let mut lines = vec![Line::EMPTY; tile_lines(dim)];
        let mut norms = [0.0];
        Kernel::best().quantise_keys(row, centre, 0, &mut lines, &mut norms);
        let word: [u8; 4] = lines[dim.div_ceil(4)].0[..4]
            .try_into()
            .expect("four bytes");
        let word = u32::from_le_bytes(word);
        let scale = f64::from(bf16::decode((word >> 16) as u16));
        let residual = f64::from(bf16::decode(word as u16));
        let (mut error, mut key, mut code) = (0.0, 0.0, 0.0);
        for (i, (&k, &mu)) in row.iter().zip(centre).enumerate() {
            let c = scale * (f64::from(lines[i / 4].0[i % 4]) - f64::from(ZERO_CODE));
            error += (f64::from(k) - f64::from(mu) - c).powi(2);
            key += f64::from(k).powi(2);
            code += c.powi(2);
        }
        (
            [residual, f64::from(norms[0])],
            [error.sqrt(), key.max(code).sqrt()],
        )
    }

    #[test]
    fn stored_norms_are_above_the_true_ones_and_near_them() {
        for dim in [1, 3, 16, 64, 100, 1000, MAX_DIM] {
            for exponent in [-149, -140, -133, -126, -100, -61, -59, -20, 0, 30, 54] {
                for spread in [0, 3, 20] {
                    let magnitude = |i: usize| exponent - (i * 7 % (spread + 1)) as i32;
                    let value = |i: usize| {
                        let x = ((i * 7919 + 13) as f64).sin() * 1.9;
                        (x * 2f64.powi(magnitude(i))) as f32
                    };
                    let row: Vec<f32> = (0..dim).map(value).collect();
                    let centres = [
                        vec![0.0; dim],
                        row.iter().map(|x| x * 0.99).collect::<Vec<_>>(),
                        (0..dim).map(|i| value(i + 1)).collect(),
                        row.clone(),
                    ];
                    for centre in centres {
                        let (stored, exact) = stored_and_true(&row, &centre);
                        for (stored, exact) in stored.into_iter().zip(exact) {
                            assert!(stored >= exact, "{dim} 2^{exponent}: {stored:e} {exact:e}");
                        }
                        // bf16 has eight bits, and a scale of 2^-133 or less none to spare.
                        let least = 2f64.powi(-133) + exact[1] / 1e6;
                        assert!(stored[0] <= exact[0] * 1.02 + least, "{stored:?} {exact:?}");
                        assert!(
                            stored[1] <= exact[1] * 1.001 + least,
                            "{stored:?} {exact:?}"
                        );
                    }
                    let (stored, _) = stored_and_true(&row, &row);
                    assert_eq!(stored[0], 0.0);
                }
            }
        }
    }
}
