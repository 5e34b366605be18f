//! Tails by blocks of keys: where the weight of the keys that a scan did not keep lies, and how wide their intervals are.

use crate::TILE;
use std::ops::Range;

use crate::lanes;
use crate::query::QueryConstants;
use crate::scan::{BLOCK_TILES, Sink, Tiles};

/// The keys of one block of slots in one scan; see [`ScanQuery::block_keys`](crate::ScanQuery::block_keys).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockTail {
    /// `(base + slot) / block_keys` of those keys.
    pub block: u32,
    /// At least the sum over those keys that are no candidates of `exp(tail_scale * (upper - tau))`; 0 exactly where all are.
    pub sum: f32,
    /// At least `upper - lower` of each of those keys, candidates or not, in score units.
    pub width: f32,
}

/// Outward factor of a block's sum.
///
/// That of a whole tail, `TAIL_UP` of the scan, whose `2.2e-5` for the exponents and `4e-6` for the additions leave
/// `2.4e-5`: far above the four additions of the tree and the product with this factor, `5 * 2^-24`.
const SUM_UP: f32 = 1.000_05;

/// Outward factor of a width, over the exact value of its formula.
///
/// A width has three constants, rounded up, and four operations: `(1 + 2^-19) (1 - 2^-24)^4 > 1 + 2^-20`. The excess over the
/// slack, at least `2^-20 * 2 * 65 * 2^-132 > 2^-145`, covers `2^-150` for each of the ten operations, here and in the bounds, that may be subnormal.
const WIDTH_UP: f64 = 1.0 + 1.0 / (1u64 << 19) as f64;

/// How wide the intervals of a query are, from the largest residual norm `r` and the largest tile norm `N` among the keys:
/// `residual * r + (norm * N + slack)`.
///
/// A pair of bounds is `upper, lower = offset + scale t s +- (norm_q r + common)` with `common = error_q N + slack_q`, as
/// [`QueryConstants`] has it, with three roundings each (the fourth, that of `common`, is the same in both). Each is at most `2^-24` of its result,
/// and no result exceeds `(norm_q + error_q) N + |offset| + norm_q r + common`, because `|scale t s| <= ||q'|| ||s c||` with
/// `||q'|| <= norm_q + error_q` and `||s c|| <= N` (up to terms of second order). Eight such roundings stand for the six:
///
/// ```text
/// upper - lower <= 2 (norm_q r + common) + 2^-21 ((norm_q + error_q) N + |offset| + norm_q r + common)
/// ```
///
/// which grows with `r` and `N`, so their maxima give a bound for all keys.
#[derive(Clone, Copy)]
struct Width {
    residual: f32,
    norm: f32,
    slack: f32,
}

impl Width {
    #[inline(always)]
    fn new(query: &QueryConstants) -> Self {
        let rounding = 1.0 / (1u64 << 21) as f64;
        let twice = 2.0 + rounding;
        let [norm, error, slack] = [query.norm, query.error, query.slack].map(f64::from);
        let offset = f64::from(query.offset.abs());
        Self {
            residual: lanes::round_up(twice * norm * WIDTH_UP),
            norm: lanes::round_up((twice * error + rounding * (norm + error)) * WIDTH_UP),
            slack: lanes::round_up((twice * slack + rounding * offset) * WIDTH_UP),
        }
    }

    #[inline(always)]
    fn of(&self, residual: f32, norm: f32) -> f32 {
        self.residual * residual + (self.norm * norm + self.slack)
    }
}

/// How the tiles of a scan are cut into blocks of keys.
#[derive(Clone, Copy)]
pub(crate) struct Cuts {
    /// Tiles of a block; 0 if there are no blocks, and every run is one piece.
    tiles: usize,
    /// The block of slot 0 of the sketch.
    first: u32,
}

impl Cuts {
    /// # Panics
    ///
    /// If `keys` is not a multiple of 16 up to 1024, or `base` not one of `keys`, unless `keys` is 0.
    pub(crate) fn new(keys: usize, base: u32) -> Self {
        if keys == 0 {
            return Self { tiles: 0, first: 0 };
        }
        assert!(
            keys.is_multiple_of(TILE) && keys <= BLOCK_TILES * TILE,
            "a block has 1 to {BLOCK_TILES} whole tiles"
        );
        assert!(
            (base as usize).is_multiple_of(keys),
            "a scan's base begins a block"
        );
        Self {
            tiles: keys / TILE,
            first: (base as usize / keys) as u32,
        }
    }

    #[inline(always)]
    pub(crate) fn are_wanted(&self) -> bool {
        self.tiles > 0
    }

    /// The end of the longest run of at most [`BLOCK_TILES`] tiles and [`PIECES`] pieces from `from` on that ends with a block, or
    /// with everything.
    pub(crate) fn run_end(&self, tiles: &Tiles<'_>, from: usize) -> usize {
        let end = tiles.len().min(from + BLOCK_TILES);
        if self.tiles == 0 {
            return end;
        }
        let first = tiles.first_slot() / TILE;
        let at_end = match end == tiles.len() {
            true => first + end,
            false => (first + end) / self.tiles * self.tiles,
        };
        at_end.min(((first + from) / self.tiles + PIECES) * self.tiles) - first
    }

    /// The pieces of a run, in order: one a block.
    #[inline(always)]
    pub(crate) fn pieces(&self, run: &Tiles<'_>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (len, mut from) = (run.len(), 0);
        // Only the first piece may begin inside its block.
        let (step, mut to) = match self.tiles {
            0 => (len, len),
            block => (block, block - run.first_slot() / TILE % block),
        };
        std::iter::from_fn(move || {
            let piece = from..to.min(len);
            (from, to) = (piece.end, to + step);
            (!piece.is_empty()).then_some(piece)
        })
    }
}

/// Most pieces of a run: what is worked out for each of them is one register.
pub(crate) const PIECES: usize = TILE;

/// What a kernel finds in each piece of a run, for `G` queries; 0 past the last piece.
pub(crate) struct Pieces<const G: usize> {
    /// Sums of the tail lanes, as [`lanes::tree`] adds them up; 0 exactly if every key is a candidate, as no weight is 0.
    pub(crate) sums: [[f32; PIECES]; G],
    /// The largest residual norm of the keys, candidates included: one value for all queries.
    pub(crate) residuals: [f32; PIECES],
}

impl<const G: usize> Pieces<G> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self {
            sums: [[0.0; PIECES]; G],
            residuals: [0.0; PIECES],
        }
    }

    /// Adds the weights of every query to its sink's tail, and appends the pieces to its blocks.
    ///
    /// In every kernel, inlined into a function with its target features: the operations have one order and none is fused.
    #[inline(always)]
    pub(crate) fn finish(
        &self,
        run: &Tiles<'_>,
        cuts: Cuts,
        constants: &[QueryConstants; G],
        sinks: &mut [Sink<'_>; G],
    ) {
        // The largest of the run for all its pieces: this term is the small one.
        let norm = largest(run.norms_of(0..run.len()));
        let count = cuts.pieces(run).count();
        let first = cuts.first + (run.first_slot() / TILE / cuts.tiles) as u32;
        for ((sums, query), sink) in self.sums.iter().zip(constants).zip(sinks) {
            if sink.exponent == 0.0 {
                continue;
            }
            sink.add_tail(*sums);
            let width = Width::new(query);
            let mut tails = [BlockTail::default(); PIECES];
            for (piece, tail) in tails[..count].iter_mut().enumerate() {
                *tail = BlockTail {
                    block: first + piece as u32,
                    sum: sums[piece] * SUM_UP,
                    width: width.of(self.residuals[piece], norm),
                };
            }
            sink.out.blocks.extend_from_slice(&tails[..count]);
        }
    }
}

/// The largest of some numbers that are not negative.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [0.0; TILE];
    let (blocks, rest) = values.as_chunks::<TILE>();
    for block in blocks {
        for (lane, &value) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, value);
        }
    }
    rest.iter().copied().fold(lanes::largest(lanes), larger)
}
