//! Proven intervals for the scores of a query group, and the slots that may reach a threshold.

use std::ops::Range;

use crate::kernel::dispatch;
use crate::lanes::{self, ROUND};
use crate::query::QueryConstants;
use crate::tail::{BlockTail, Cuts};
use crate::{Kernel, Line, QueryGroup, SegmentOffsets, SketchView, TILE, tile_lines};

/// Threshold of one query of a scan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScanQuery {
    /// Slots whose upper bound (score units) reaches this become candidates. `-inf` keeps every slot.
    pub tau: f32,
    /// Logit scale of the tail sum, finite and at least 0; 0 turns the tail sum off.
    pub tail_scale: f32,
    /// Slots of a block of [`Candidates::blocks`]: a multiple of 16, at most 1024, the same for every query of a scan; 0 turns them
    /// off, and so does a `tail_scale` of 0.
    pub block_keys: usize,
}

/// What a scan found for one query; appended to by every call, so that one value gathers a list of segments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Slots whose upper bound reaches tau, ascending within one scan.
    pub slots: Vec<u32>,
    /// Proven lower bound of each candidate's canonical score.
    pub lower: Vec<f32>,
    /// Proven upper bound of each candidate's canonical score.
    pub upper: Vec<f32>,
    /// At least the sum over all other scanned keys of `exp(tail_scale * (upper - tau))`; 0 while that is off.
    pub tail: f64,
    /// The same by blocks of slots, if asked for: one entry for each block and call that scanned a key of the block, ascending within one
    /// scan. A block that two calls share has two.
    pub blocks: Vec<BlockTail>,
}

impl Candidates {
    /// Forgets the candidates and the tails; keeps the memory.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.lower.clear();
        self.upper.clear();
        self.tail = 0.0;
        self.blocks.clear();
    }

    /// Candidates found so far.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no candidate.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn reserve(&mut self, candidates: usize) {
        self.slots.reserve(candidates);
        self.lower.reserve(candidates);
        self.upper.reserve(candidates);
    }

    pub(crate) fn push(&mut self, slot: u32, lower: f32, upper: f32) {
        self.slots.push(slot);
        self.lower.push(lower);
        self.upper.push(upper);
    }
}

/// Tiles whose tail is summed in `f32` lanes before it goes into `f64`.
///
/// Part of the result's definition: every kernel sums in this order, so the tails agree bit for bit.
pub(crate) const BLOCK_TILES: usize = 64;

/// Queries that share one pass over the tiles; larger groups take several passes over each block.
///
/// Up to eight in one pass (AVX-512, sixteen accumulators) take 5 to 7 % longer from the second cache at 6 to 8 queries and D 64, 2 % at
/// D 128, and gain nothing clear from memory: a block's second pass finds it in a cache.
pub(crate) const MAX_SHARED: usize = 4;

/// `2^f` on `[-1/2, 1/2]`, from above: the minimax cubic of relative error `7.48e-5`, times `1 + 7.6e-5`, lowest first.
///
/// Evaluated with three fused operations it lies in `[2^f, 2^f (1 + 1.6e-4)]` (checked over the interval by a test).
pub(crate) const EXP2_UP: [f32; 4] = [1.000_004, 0.693_313_66, 0.242_629_57, 0.055_175_863];

/// Arguments of `2^y` are raised to this: no key's weight is lost to underflow, and no operation meets a subnormal.
pub(crate) const MIN_EXPONENT: f32 = -125.0;

/// Outward factor of a block's tail.
///
/// `y = (upper - tau) * (tail_scale * log2 e)` has four roundings (the difference, the constant and two products), so at
/// most `125 * 4 * 2^-24 < 3.1e-5` absolute error where it is not raised, a factor of `1 + 2.2e-5` of `2^y`; 64
/// non-negative terms a lane, and with blocks of keys the four levels of a tree, lose at most `68 * 2^-24 < 4.1e-6`. The
/// cubic is never low. In all below `1 + 5e-5`.
const TAIL_UP: f64 = 1.000_05;

/// A checked run of tiles of a sketch: what the kernels trust.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    /// The lines of the run, and behind them those of the sketch that may be fetched ahead.
    reach: &'a [Line],
    norms: &'a [f32],
    stride: usize,
    /// First slot of the run.
    first: usize,
    /// Slots of the run that hold a key.
    live: usize,
}

impl<'a> Tiles<'a> {
    /// # Panics
    ///
    /// If `tiles` reaches past the lines or the norms of the sketch.
    fn new(sketch: SketchView<'a>, tiles: Range<usize>) -> Self {
        let stride = tile_lines(sketch.dim);
        assert!(tiles.start <= tiles.end, "a range of tiles ascends");
        let first = tiles.start * TILE;
        let count = tiles.len();
        assert!(
            sketch.lines.len() >= tiles.end * stride,
            "the sketch has the lines of its tiles"
        );
        Self {
            reach: &sketch.lines[tiles.start * stride..],
            norms: &sketch.norms[tiles.start..][..count],
            stride,
            first,
            live: sketch.len.saturating_sub(first).min(count * TILE),
        }
    }

    /// The tiles `from..to` of this run.
    pub(crate) fn slice(&self, from: usize, to: usize) -> Self {
        Self {
            reach: &self.reach[from * self.stride..],
            norms: &self.norms[from..to],
            stride: self.stride,
            first: self.first + from * TILE,
            live: self
                .live
                .saturating_sub(from * TILE)
                .min((to - from) * TILE),
        }
    }

    /// Tiles of the run; `len() * stride()` lines are there.
    pub(crate) fn len(&self) -> usize {
        self.norms.len()
    }

    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// All lines of the run.
    pub(crate) fn lines(&self) -> &'a [Line] {
        &self.reach[..self.len() * self.stride]
    }

    /// The lines of the tile that lies `tile` tiles behind the start of the run, in the run or behind it; none where nothing more will be read.
    #[inline(always)]
    pub(crate) fn reached(&self, tile: usize) -> &'a [Line] {
        let from = tile * self.stride;
        self.reach.get(from..from + self.stride).unwrap_or(&[])
    }

    pub(crate) fn norm(&self, tile: usize) -> f32 {
        self.norms[tile]
    }

    #[inline(always)]
    pub(crate) fn norms_of(&self, tiles: Range<usize>) -> &'a [f32] {
        &self.norms[tiles]
    }

    pub(crate) fn first_slot(&self) -> usize {
        self.first
    }

    /// Keys in tile `tile`, 0 to 16; only the last tile of a sketch has fewer than 16.
    pub(crate) fn live(&self, tile: usize) -> usize {
        self.live.saturating_sub(tile * TILE).min(TILE)
    }

    /// Runs of up to [`BLOCK_TILES`] tiles that hold at least one key and cut no block of keys in two.
    fn runs(&self, cuts: Cuts) -> impl Iterator<Item = Self> {
        let tiles = self.slice(0, self.live.div_ceil(TILE));
        let mut from = 0;
        std::iter::from_fn(move || {
            let to = cuts.run_end(&tiles, from);
            (from < to).then(|| tiles.slice(std::mem::replace(&mut from, to), to))
        })
    }
}

/// A checked query group with its offsets for one segment.
#[derive(Clone, Copy)]
pub(crate) struct Queries<'a> {
    pub(crate) group: &'a QueryGroup,
    offsets: &'a SegmentOffsets,
}

impl<'a> Queries<'a> {
    fn new(group: &'a QueryGroup, offsets: &'a SegmentOffsets, dim: usize) -> Self {
        assert_eq!(
            group.dim(),
            dim,
            "the sketch has the dimension of the queries"
        );
        assert_eq!(offsets.offset.len(), group.len(), "one offset per query");
        assert_eq!(offsets.slack.len(), group.len(), "one slack per query");
        Self { group, offsets }
    }

    pub(crate) fn constants(&self, g: usize) -> QueryConstants {
        self.group.constants(g, self.offsets)
    }
}

/// Where the candidates of one block and one query go: what the kernels need of [`ScanQuery`] and [`Candidates`].
pub(crate) struct Sink<'a> {
    pub(crate) tau: f32,
    /// `tail_scale * log2(e)`, 0 where the tail is off.
    pub(crate) exponent: f32,
    pub(crate) out: &'a mut Candidates,
}

impl Sink<'_> {
    /// Adds a block's tail lanes, or the sums of its pieces.
    pub(crate) fn add_tail(&mut self, terms: [f32; TILE]) {
        if self.exponent > 0.0 {
            self.out.tail += lanes::tree_f64(terms.map(f64::from)) * TAIL_UP;
        }
    }

    /// Handles one tile's bounds, lane by lane: candidates to the vectors, the others' weights to the tail lanes.
    #[inline(always)]
    pub(crate) fn take(&mut self, slot: u32, lower: &[f32], upper: &[f32], tail: &mut [f32]) {
        for l in 0..lower.len() {
            if upper[l] >= self.tau {
                self.out.push(slot + l as u32, lower[l], upper[l]);
            } else if self.exponent > 0.0 {
                tail[l] += exp2_up((upper[l] - self.tau) * self.exponent);
            }
        }
    }
}

/// At least `2^y` for `y <= 0`; see [`EXP2_UP`]. Every kernel does these operations in this order.
#[inline(always)]
pub(crate) fn exp2_up(y: f32) -> f32 {
    let y = if y > MIN_EXPONENT { y } else { MIN_EXPONENT };
    let shifted = y + ROUND;
    let f = y - (shifted - ROUND);
    let [c0, c1, c2, c3] = EXP2_UP;
    let p = c3.mul_add(f, c2).mul_add(f, c1).mul_add(f, c0);
    // The low bits of `shifted` hold the integer: moved into the exponent they multiply by its power of two. The cubic is
    // at least 0.7 and the integer at least -125, so the exponent of the product stays that of a normal number.
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// The body of every kernel's `tail_weight`: inlined into a function with that kernel's target features. In blocks like
/// those of a scan, whose constants' derivations hold here too.
#[inline(always)]
pub(crate) fn tail_weight(bounds: &[f32], tau: f32, exponent: f32) -> f64 {
    let mut sum = 0.0;
    for block in bounds.chunks(BLOCK_TILES * TILE) {
        let mut terms = [0.0f32; TILE];
        for bounds in block.chunks(TILE) {
            for (term, &bound) in terms.iter_mut().zip(bounds) {
                let weight = exp2_up((bound - tau) * exponent);
                *term += if bound < tau { weight } else { 0.0 };
            }
        }
        sum += lanes::tree_f64(terms.map(f64::from)) * TAIL_UP;
    }
    sum
}

impl Kernel {
    /// Writes proven bounds of the canonical score of every query with every key of `tiles`.
    ///
    /// # Shapes
    ///
    /// `lower` and `upper`: `[group.len()][tiles.len() * 16]`. Lanes past `sketch.len` get `-inf` in both.
    ///
    /// # Units
    ///
    /// Scores.
    ///
    /// # Numerics
    ///
    /// `lower <= kernel.score(query, key) <= upper`, always; derived at [`QueryGroup::prepare`]. The same bits on
    /// every kernel. The centre of `offsets` must be the one the keys were quantised about.
    ///
    /// # Panics
    ///
    /// If the dimensions of `sketch` and `group` differ, `offsets` belongs to a group of another length, `tiles`
    /// reaches past the sketch, or `lower` or `upper` has another length.
    pub fn intervals_into(
        self,
        sketch: SketchView<'_>,
        tiles: Range<usize>,
        group: &QueryGroup,
        offsets: &SegmentOffsets,
        lower: &mut [f32],
        upper: &mut [f32],
    ) {
        let queries = Queries::new(group, offsets, sketch.dim);
        let tiles = Tiles::new(sketch, tiles);
        let slots = tiles.len() * TILE;
        assert_eq!(
            lower.len(),
            group.len() * slots,
            "lower bounds are [queries][slots]"
        );
        assert_eq!(
            upper.len(),
            group.len() * slots,
            "upper bounds are [queries][slots]"
        );
        if slots == 0 || group.is_empty() {
            return;
        }
        dispatch!(self, intervals(tiles, queries, lower, upper));
        for row in lower
            .chunks_exact_mut(slots)
            .chain(upper.chunks_exact_mut(slots))
        {
            row[tiles.live..].fill(f32::NEG_INFINITY);
        }
    }

    /// Finds every key of `tiles` whose score may reach its query's threshold: one pass serves the whole group.
    ///
    /// Appends `base + slot` and the bounds of every slot whose upper bound is at least `queries[g].tau` to `out[g]`,
    /// ascending, and adds the weights of the other keys to `out[g].tail`, and by blocks of `queries[g].block_keys` slots to
    /// `out[g].blocks`. Keys past `sketch.len` do not exist.
    ///
    /// # Units
    ///
    /// `tau` and bounds are scores; `tail_scale` turns a score into a logit.
    ///
    /// # Numerics
    ///
    /// The bounds are those of [`intervals_into`](Self::intervals_into). The tail gains at least
    /// `sum exp(tail_scale * (upper - tau))`, and at most that times `1 + 2.2e-4` plus `2^-124` a key. The same bits on
    /// every kernel for the same calls (the tail depends on how a range is cut into calls and blocks, by rounding only). The sums of
    /// the blocks are bounds in the same way, and a block's width is at least `upper - lower` of its keys, candidates included.
    ///
    /// # Complexity
    ///
    /// `O(tiles * dim * queries)` integer operations; reads each tile once. Allocates only where a candidate buffer
    /// has to grow: room for 1040 more candidates is kept ahead of the scan. Where that pays the lines of the sketch behind `tiles` are
    /// fetched ahead, for the next call: let `sketch.lines` end where a scan in several calls does.
    ///
    /// # Panics
    ///
    /// As [`intervals_into`](Self::intervals_into); if `queries` or `out` has not one entry per query; if a `tau` is
    /// NaN, a `tail_scale` is negative or not finite, or `base + slot` overflows; if the queries differ in `block_keys`, or that is not a
    /// multiple of 16 up to 1024, or `base` is no multiple of it.
    #[expect(
        clippy::too_many_arguments,
        reason = "slices in, slices out: every argument is a borrowed buffer"
    )]
    pub fn scan_into(
        self,
        sketch: SketchView<'_>,
        tiles: Range<usize>,
        base: u32,
        group: &QueryGroup,
        offsets: &SegmentOffsets,
        queries: &[ScanQuery],
        out: &mut [Candidates],
    ) {
        assert_eq!(queries.len(), group.len(), "one threshold per query");
        assert_eq!(out.len(), group.len(), "one output per query");
        for query in queries {
            assert!(!query.tau.is_nan(), "tau is a number");
            assert!(
                query.tail_scale >= 0.0 && query.tail_scale.is_finite(),
                "tail_scale is finite and not negative"
            );
            assert_eq!(
                query.block_keys, queries[0].block_keys,
                "the queries of a scan have the same blocks"
            );
        }
        let cuts = Cuts::new(queries.first().map_or(0, |query| query.block_keys), base);
        let rows = Queries::new(group, offsets, sketch.dim);
        let tiles = Tiles::new(sketch, tiles);
        assert!(
            base as usize + tiles.first + tiles.len() * TILE <= u32::MAX as usize,
            "slots are u32"
        );
        for block in tiles.runs(cuts) {
            for g in (0..group.len()).step_by(MAX_SHARED) {
                let shared = MAX_SHARED.min(group.len() - g);
                let mut sinks = queries[g..g + shared]
                    .iter()
                    .zip(&mut out[g..g + shared])
                    .map(|(query, out)| Sink {
                        tau: query.tau,
                        exponent: query.tail_scale * std::f32::consts::LOG2_E,
                        out,
                    });
                // One block function for each group size: the accumulators of all its queries stay in registers.
                match shared {
                    1 => self.scan_block(block, cuts, rows, g, base, take::<1>(&mut sinks)),
                    2 => self.scan_block(block, cuts, rows, g, base, take::<2>(&mut sinks)),
                    3 => self.scan_block(block, cuts, rows, g, base, take::<3>(&mut sinks)),
                    _ => self.scan_block(block, cuts, rows, g, base, take::<4>(&mut sinks)),
                }
            }
        }
    }

    /// At least the sum of `exp(tail_scale * (bound - tau))` over the `bounds` below `tau`.
    ///
    /// For bounds that stand for more than one key each, as those of tiles and clusters do: times the number of keys this is
    /// what [`scan_into`](Self::scan_into) would have added to a tail.
    ///
    /// # Numerics
    ///
    /// As for a tail of [`scan_into`](Self::scan_into): at most `1 + 2.2e-4` times the sum, plus `2^-124` a bound; the same
    /// bits on every kernel.
    ///
    /// # Panics
    ///
    /// If `tau` is NaN, or `tail_scale` is negative or not finite.
    pub fn tail_weight(self, bounds: &[f32], tau: f32, tail_scale: f32) -> f64 {
        assert!(!tau.is_nan(), "tau is a number");
        assert!(
            tail_scale >= 0.0 && tail_scale.is_finite(),
            "tail_scale is finite and not negative"
        );
        dispatch!(
            self,
            tail_weight(bounds, tau, tail_scale * std::f32::consts::LOG2_E)
        )
    }

    fn scan_block<const G: usize>(
        self,
        block: Tiles<'_>,
        cuts: Cuts,
        queries: Queries<'_>,
        g: usize,
        base: u32,
        mut sinks: [Sink<'_>; G],
    ) {
        // Every key of the block may be a candidate: with room for all of them, what is allocated in the course of a decode does not depend on the
        // kernel, and soon is nothing.
        for sink in &mut sinks {
            sink.out.reserve((block.len() + 1) * TILE);
        }
        dispatch!(self, scan_block(block, cuts, queries, g, base, &mut sinks));
    }
}

/// The next `G` sinks; there are as many.
fn take<'a, const G: usize>(sinks: &mut impl Iterator<Item = Sink<'a>>) -> [Sink<'a>; G] {
    std::array::from_fn(|_| sinks.next().expect("the group has G queries left"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_up_is_above_by_at_most_its_margin() {
        let steps = 2_000_000;
        for i in 0..=steps {
            let y = -125.0 * (i as f32 / steps as f32).powi(3);
            let exact = f64::from(y).exp2();
            let bound = f64::from(exp2_up(y));
            assert!(
                bound >= exact && bound <= exact * 1.000_16,
                "{y}: {bound} against {exact}"
            );
        }
        assert_eq!(exp2_up(f32::NEG_INFINITY), exp2_up(-125.0));
    }
}
