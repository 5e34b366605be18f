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

/// Parameters of one quantised row; see [`quantise_row`].
#[derive(Clone, Copy)]
pub(crate) struct RowParameters {
    /// bf16 bits of the scale and of the residual norm, as stored.
    word: u32,
    /// Rounded-up maximum of `||key||` and `||scale * code||`.
    norm: f32,
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
    for (i, row) in keys.chunks_exact(dim).enumerate() {
        let (tile, lane) = ((first + i) / TILE, (first + i) % TILE);
        let tile_lines = &mut lines[tile * stride..][..stride];
        if lane == 0 {
            reset_tile(tile_lines);
            norms[tile] = 0.0;
        }
        let (parameters, codes) = tile_lines
            .split_last_mut()
            .expect("a tile has at least two lines");
        let found = quantise_row(row, centre, lane, codes);
        parameters.0[4 * lane..][..4].copy_from_slice(&found.word.to_le_bytes());
        norms[tile] = norms[tile].max(found.norm);
    }
}

fn reset_tile(lines: &mut [Line]) {
    lines.fill(Line([ZERO_CODE; 64]));
    if let Some(parameters) = lines.last_mut() {
        *parameters = Line::EMPTY;
    }
}

/// Writes the codes of one row into lane `lane` of the code lines, and returns its parameters.
///
/// The residual `e = k - mu - s*c` is computed in `f64`: `k - mu` rounds once, `s*c` (8 by 7 bits) is exact, their
/// difference rounds once. So component `i` is off by at most `2^-53 (|k_i - mu_i| + |e_i|) (1 + 2^-52)`, and with
/// `||k - mu|| <= ||s c|| + ||e||` the vector by at most `2^-53 (||s c|| + 2 ||e||) (1 + 2^-52)`. Hence
/// `||e|| <= computed * NORM_UP * (1 + 2^-40) + 2^-50 ||s c||`: the two factors cover the sum, the square root and the
/// `2 ||e||` term. Squares in `f64` neither overflow (`2^130 dim`) nor underflow (components are multiples of `2^-149`).
#[inline(always)]
fn quantise_row(row: &[f32], centre: &[f32], lane: usize, codes: &mut [Line]) -> RowParameters {
    let blocks = row.len().div_ceil(TILE);
    let mut largest = [0.0f32; TILE];
    for block in 0..blocks {
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
    let largest = largest.into_iter().fold(0.0f32, f32::max);
    // A scale of at least 2^-133 where the quotient underflows: the code of a non-zero difference stays in range.
    let scale_bits = if largest > 0.0 {
        bf16::round_up((largest / 127.0).max(bf16::MIN_POSITIVE))
    } else {
        0
    };
    let scale = bf16::decode(scale_bits);
    let divisor = if largest > 0.0 { scale } else { 1.0 };

    let mut code_squares = [0i32; TILE];
    let mut residual_squares = [0.0f64; TILE];
    let mut key_squares = [0.0f64; TILE];
    for block in 0..blocks {
        let (key, mu) = (lanes::load(row, block), lanes::load(centre, block));
        let mut bytes = [0u8; TILE];
        for l in 0..TILE {
            // `scale` is within one rounding of `largest / 127` or above it, so the quotient is below 127.5.
            let (code, rounded) = lanes::round((key[l] - mu[l]) / divisor);
            bytes[l] = code.wrapping_add(i32::from(ZERO_CODE)) as u8;
            code_squares[l] += code.wrapping_mul(code);
            let residual =
                (f64::from(key[l]) - f64::from(mu[l])) - f64::from(scale) * f64::from(rounded);
            residual_squares[l] += residual * residual;
            key_squares[l] += f64::from(key[l]) * f64::from(key[l]);
        }
        for (line, quad) in codes[4 * block..].iter_mut().zip(bytes.as_chunks::<4>().0) {
            line.0[4 * lane..][..4].copy_from_slice(quad);
        }
    }

    // 127^2 * MAX_DIM < 2^31: the integer sum is exact.
    let code_norm = f64::from(scale) * f64::from(code_squares.iter().sum::<i32>()).sqrt();
    let residual = lanes::tree_f64(residual_squares).sqrt() * lanes::NORM_UP;
    let residual = residual * (1.0 + 1.0 / (1u64 << 40) as f64) + code_norm / (1u64 << 50) as f64;
    let residual_bits = bf16::round_up(lanes::round_up(residual));
    let norm = lanes::tree_f64(key_squares).sqrt().max(code_norm) * lanes::NORM_UP;
    RowParameters {
        word: u32::from(scale_bits) << 16 | u32::from(residual_bits),
        norm: lanes::round_up(norm),
    }
}
