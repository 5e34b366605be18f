//! Intervals and candidates: `vpdpbusd` over the tile lines, then one epilogue in sixteen lanes.

use core::arch::x86_64::*;

use super::ahead::ahead_tiles;
use super::softmax::store;
use crate::lanes::ROUND;
use crate::query::{FLUSH_LINES, QueryConstants};
use crate::scan::{BLOCK_TILES, EXP2_UP, MAX_SHARED, MIN_EXPONENT, Queries, Sink, Tiles};
use crate::tail::{Cuts, PIECES, Pieces};
use crate::{Line, TILE};

/// Lines whose products are written out one after the other: a loop of one line has as many other instructions as products.
const UNROLLED: usize = 4;

/// The part of a query group that one pass serves.
#[derive(Clone, Copy)]
struct Group<'a, const G: usize> {
    /// Words per query; `words[g]` points to that many.
    lines: usize,
    words: [*const [i32; 2]; G],
    biases: [&'a [[i32; 2]]; G],
    constants: [QueryConstants; G],
}

impl<'a, const G: usize> Group<'a, G> {
    fn new(queries: Queries<'a>, first: usize) -> Self {
        let (lines, flushes) = (queries.group.lines(), queries.group.flushes());
        let words = |g: usize| &queries.group.words()[(first + g) * lines..][..lines];
        let biases = |g: usize| &queries.group.biases()[(first + g) * flushes..][..flushes];
        Self {
            lines,
            words: std::array::from_fn(|g| words(g).as_ptr()),
            biases: std::array::from_fn(biases),
            constants: std::array::from_fn(|g| queries.constants(first + g)),
        }
    }
}

/// `scale * t` of `G` queries with the sixteen keys of a tile: [`QueryConstants`]'s name for the decoded product of codes.
///
/// `U` lines at a time have accumulators of their own: `2 G U` of them hide the four cycles of `vpdpbusd` from four on.
/// One tile after the other, because the fetch of lines follows one ascending address: with two tiles side by side a
/// scan from memory ran at under half the speed, whatever was prefetched.
///
/// At `G = 3` the 96 `vpdpbusd` of a tile (D 64) leave little on Zen 4: it runs at 34 GB/s from the second cache without tail sums and at 27 with them,
/// where a plain read of memory reaches 24 to 31. So what a scan from memory gains from large pages is 1.26 times at `G = 3` and 1.6 at `G = 1`. On Zen 5, whose
/// registers are multiplied in one piece, it runs at 60 and 48 GB/s, and memory alone binds it.
///
/// Inlined by force, with its accumulators: a call would pass them through memory (half the speed at `G = 3`).
///
/// # Safety
///
/// The machine has the target features of this module's other functions.
#[inline(always)]
unsafe fn products<const G: usize, const U: usize>(
    tiles: Tiles<'_>,
    tile: usize,
    group: &Group<'_, G>,
) -> [__m512; G] {
    let lines = &tiles.lines()[tile * tiles.stride()..][..tiles.stride()];
    let count = group.lines;
    assert!(count < lines.len());
    // SAFETY: the caller vouches for the target features, and `count < lines.len()`.
    unsafe {
        let sums = flush::<G, U>(lines, 0, count.min(FLUSH_LINES), group);
        let mut products = sums.map(|sum| _mm512_cvtepi32_ps(sum));
        let mut from = FLUSH_LINES;
        while from < count {
            let sums = flush::<G, U>(lines, from, count.min(from + FLUSH_LINES), group);
            for g in 0..G {
                products[g] = _mm512_add_ps(products[g], _mm512_cvtepi32_ps(sums[g]));
            }
            from += FLUSH_LINES;
        }
        for g in 0..G {
            products[g] = _mm512_mul_ps(_mm512_set1_ps(group.constants[g].scale), products[g]);
        }
        products
    }
}

/// The integer products of the lines `from..to`, where a flush begins and ends.
///
/// # Safety
///
/// The machine has the target features of this module's other functions; `to` is at most the words of a query and the number of
/// `lines`.
#[inline(always)]
unsafe fn flush<const G: usize, const U: usize>(
    lines: &[Line],
    from: usize,
    to: usize,
    group: &Group<'_, G>,
) -> [__m512i; G] {
    // SAFETY: the caller vouches for the target features. `j + u < to`, so line `j + u` is one of the tile's (64 bytes,
    // aligned to 64), and word `j + u` one of those behind each pointer.
    unsafe {
        let mut hi = [[_mm512_setzero_si512(); U]; G];
        let mut lo = [[_mm512_setzero_si512(); U]; G];
        for g in 0..G {
            let [bias_hi, bias_lo] = group.biases[g][from / FLUSH_LINES];
            hi[g][0] = _mm512_set1_epi32(bias_hi);
            lo[g][0] = _mm512_set1_epi32(bias_lo);
        }
        let mut j = from;
        while j + UNROLLED <= to {
            for u in 0..UNROLLED {
                let codes = _mm512_load_si512(lines.as_ptr().add(j + u).cast());
                for g in 0..G {
                    let [word_hi, word_lo] = *group.words[g].add(j + u);
                    let (hi, lo) = (&mut hi[g][u % U], &mut lo[g][u % U]);
                    *hi = _mm512_dpbusd_epi32(*hi, codes, _mm512_set1_epi32(word_hi));
                    *lo = _mm512_dpbusd_epi32(*lo, codes, _mm512_set1_epi32(word_lo));
                }
            }
            j += UNROLLED;
        }
        while j < to {
            let codes = _mm512_load_si512(lines.as_ptr().add(j).cast());
            for g in 0..G {
                let [word_hi, word_lo] = *group.words[g].add(j);
                hi[g][0] = _mm512_dpbusd_epi32(hi[g][0], codes, _mm512_set1_epi32(word_hi));
                lo[g][0] = _mm512_dpbusd_epi32(lo[g][0], codes, _mm512_set1_epi32(word_lo));
            }
            j += 1;
        }
        std::array::from_fn(|g| {
            for u in 1..U {
                hi[g][0] = _mm512_add_epi32(hi[g][0], hi[g][u]);
                lo[g][0] = _mm512_add_epi32(lo[g][0], lo[g][u]);
            }
            // 128 hi + lo fits (see FLUSH): one exact integer sum, one rounding.
            _mm512_add_epi32(_mm512_slli_epi32::<7>(hi[g][0]), lo[g][0])
        })
    }
}

/// Scales and residual norms of the sixteen keys of a tile; a bf16 is the upper half of an `f32`.
#[inline]
#[target_feature(enable = "avx512f")]
fn parameters(tiles: Tiles<'_>, tile: usize) -> [__m512; 2] {
    let line = &tiles.lines()[(tile + 1) * tiles.stride() - 1];
    // SAFETY: a line is 64 bytes, aligned to 64.
    let words = unsafe { _mm512_load_si512((&raw const *line).cast()) };
    let scale = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
    [
        _mm512_castsi512_ps(scale),
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)),
    ]
}

/// The upper bounds of a query whose `offset + common` is `high`; see [`QueryConstants`].
#[inline]
#[target_feature(enable = "avx512f")]
fn upper_bounds(
    product: __m512,
    [scale, residual]: [__m512; 2],
    query: &QueryConstants,
    high: f32,
) -> __m512 {
    let estimate = _mm512_fmadd_ps(product, scale, _mm512_set1_ps(high));
    _mm512_fmadd_ps(_mm512_set1_ps(query.norm), residual, estimate)
}

/// The lower bounds of a query whose `offset - common` is `low`.
#[inline]
#[target_feature(enable = "avx512f")]
fn lower_bounds(
    product: __m512,
    [scale, residual]: [__m512; 2],
    query: &QueryConstants,
    low: f32,
) -> __m512 {
    let estimate = _mm512_fmadd_ps(product, scale, _mm512_set1_ps(low));
    _mm512_fnmadd_ps(_mm512_set1_ps(query.norm), residual, estimate)
}

/// Writes the bounds of every query with every lane of the tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,popcnt")]
pub(super) fn intervals(
    tiles: Tiles<'_>,
    queries: Queries<'_>,
    lower: &mut [f32],
    upper: &mut [f32],
) {
    let total = queries.group.len();
    for first in (0..total).step_by(MAX_SHARED) {
        match total - first {
            1 => intervals_of::<1, 2>(tiles, queries, first, lower, upper),
            2 => intervals_of::<2, 1>(tiles, queries, first, lower, upper),
            3 => intervals_of::<3, 1>(tiles, queries, first, lower, upper),
            _ => intervals_of::<4, 1>(tiles, queries, first, lower, upper),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,popcnt")]
fn intervals_of<const G: usize, const U: usize>(
    tiles: Tiles<'_>,
    queries: Queries<'_>,
    first: usize,
    lower: &mut [f32],
    upper: &mut [f32],
) {
    let group = Group::<G>::new(queries, first);
    let slots = tiles.len() * TILE;
    for tile in 0..tiles.len() {
        // SAFETY: this function has the target features.
        let products = unsafe { products::<G, U>(tiles, tile, &group) };
        let parameters = parameters(tiles, tile);
        for g in 0..G {
            let query = &group.constants[g];
            let [low, high] = query.ends(tiles.norm(tile));
            let at = (first + g) * slots + tile * TILE;
            write(
                lower_bounds(products[g], parameters, query, low),
                &mut lower[at..][..TILE],
            );
            write(
                upper_bounds(products[g], parameters, query, high),
                &mut upper[at..][..TILE],
            );
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn write(values: __m512, out: &mut [f32]) {
    assert!(out.len() == TILE);
    // SAFETY: the slice has room for the sixteen lanes.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
}

/// One block of a scan for `G` queries; `TAIL` if any of them asks for the tail sum, `BLOCKS` if for that by blocks of keys.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,popcnt")]
pub(super) fn scan_block<const G: usize, const U: usize, const TAIL: bool, const BLOCKS: bool>(
    tiles: Tiles<'_>,
    cuts: Cuts,
    queries: Queries<'_>,
    first: usize,
    base: u32,
    sinks: &mut [Sink<'_>; G],
) {
    assert!(tiles.len() <= BLOCK_TILES);
    let group = Group::<G>::new(queries, first);
    // `offset + common` of every tile: as many operations as lanes of a register, ahead of the loop that has no room.
    let mut highs = [[0.0; BLOCK_TILES]; G];
    for g in 0..G {
        for tile in 0..tiles.len() {
            highs[g][tile] = group.constants[g].ends(tiles.norm(tile))[1];
        }
    }
    let mut writers: [Writer; G] = std::array::from_fn(|g| Writer::new(&mut sinks[g], tiles.len()));
    let first_slot = base + tiles.first_slot() as u32;
    let mut tails = [_mm512_setzero_ps(); G];
    // The tails of the pieces, and their largest residual norms. Those of the piece at work stay in registers: stores at every tile queue up
    // behind one to a line that is in no cache, and take 5 % of a scan for four queries from memory.
    let mut weights = [[_mm512_setzero_ps(); PIECES]; G];
    let mut widest = [_mm512_setzero_ps(); PIECES];
    let mut wide = _mm512_setzero_ps();
    // One bit for each tile that ends a piece: with a loop a piece a scan from the second cache took 2 to 4 % longer.
    let mut ends = 0u64;
    if BLOCKS {
        for piece in cuts.pieces(&tiles) {
            ends |= 1 << (piece.end - 1);
        }
    }
    let mut piece = 0;
    let ahead = ahead_tiles(G, tiles.stride());
    for tile in 0..tiles.len() {
        if let Some(ahead) = ahead {
            for line in tiles.reached(tile + ahead) {
                _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).cast());
            }
        }
        // SAFETY: this function has the target features.
        let products = unsafe { products::<G, U>(tiles, tile, &group) };
        let parameters = parameters(tiles, tile);
        let live = (0xffff_u32 >> (TILE - tiles.live(tile))) as u16;
        if BLOCKS {
            wide = _mm512_mask_max_ps(wide, live, wide, parameters[1]);
        }
        for g in 0..G {
            let (query, writer) = (&group.constants[g], &mut writers[g]);
            let tau = _mm512_set1_ps(writer.tau);
            let upper = upper_bounds(products[g], parameters, query, highs[g][tile]);
            let candidates = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(live, upper, tau);
            if candidates != 0 {
                let low = query.ends(tiles.norm(tile))[0];
                let lower = lower_bounds(products[g], parameters, query, low);
                writer.put(first_slot + (tile * TILE) as u32, candidates, lower, upper);
            }
            if TAIL {
                let y = _mm512_mul_ps(_mm512_sub_ps(upper, tau), _mm512_set1_ps(writer.exponent));
                let tail = &mut tails[g];
                *tail = _mm512_mask_add_ps(*tail, live & !candidates, *tail, exp2_up(y));
            }
        }
        if BLOCKS && ends >> tile & 1 != 0 {
            widest[piece % PIECES] = std::mem::replace(&mut wide, _mm512_setzero_ps());
            for g in 0..G {
                weights[g][piece % PIECES] = std::mem::replace(&mut tails[g], _mm512_setzero_ps());
            }
            piece += 1;
        }
    }
    for g in 0..G {
        writers[g].finish(&mut sinks[g]);
        if TAIL && !BLOCKS {
            sinks[g].add_tail(store(tails[g]));
        }
    }
    if BLOCKS {
        let mut pieces = Pieces::<G>::new();
        for g in 0..G {
            pieces.sums[g] = across(&weights[g], |a, b| _mm512_add_ps(a, b));
        }
        pieces.residuals = across(&widest, |a, b| _mm512_max_ps(a, b));
        pieces.finish(&tiles, cuts, &group.constants, sinks);
    }
}

/// Sixteen registers, each folded to one number in the order of [`crate::lanes::tree`].
#[inline]
#[target_feature(enable = "avx512f")]
fn across(
    registers: &[__m512; PIECES],
    fold: impl Fn(__m512, __m512) -> __m512 + Copy,
) -> [f32; PIECES] {
    let mut out = [0.0; PIECES];
    for (out, registers) in out
        .as_chunks_mut::<4>()
        .0
        .iter_mut()
        .zip(registers.as_chunks().0)
    {
        *out = across_four(*registers, fold);
    }
    out
}

/// Four registers, in the same way.
#[inline]
#[target_feature(enable = "avx512f")]
fn across_four([a, b, c, d]: [__m512; 4], fold: impl Fn(__m512, __m512) -> __m512) -> [f32; 4] {
    // Eight lanes of each, two to a register: lane l with lane l + 8.
    let halves = |a, b| {
        fold(
            _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
        )
    };
    let (ab, cd) = (halves(a, b), halves(c, d));
    // Four lanes of each: lane l with lane l + 4.
    let quarters = fold(
        _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
    );
    let pairs = fold(quarters, _mm512_permute_ps::<0b01_00_11_10>(quarters));
    let ones = fold(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs));
    let ones = store(ones);
    [ones[0], ones[4], ones[8], ones[12]]
}

/// [`crate::scan::exp2_up`] in sixteen lanes, bit for bit; lanes with `y > 0` hold anything.
///
/// A chord between whole exponents with a table of sixteen factors takes 7 operations instead of 12 and makes tails 0.4 % larger: it
/// gains 8 % from the second cache, and nothing from memory.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2_up(y: __m512) -> __m512 {
    // Among the bit patterns of negative floats, as signed integers, the larger value is the smaller integer: an integer
    // minimum raises to MIN_EXPONENT, on a port that the multiplications leave free.
    let floor = _mm512_castps_si512(_mm512_set1_ps(MIN_EXPONENT));
    let y = _mm512_castsi512_ps(_mm512_min_epi32(_mm512_castps_si512(y), floor));
    let round = _mm512_set1_ps(ROUND);
    let shifted = _mm512_add_ps(y, round);
    let f = _mm512_sub_ps(y, _mm512_sub_ps(shifted, round));
    let mut p = _mm512_set1_ps(EXP2_UP[3]);
    for c in EXP2_UP[..3].iter().rev() {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(*c));
    }
    let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent))
}

/// Appends candidates to the vectors of a [`Sink`] through pointers, within capacity that was reserved ahead.
struct Writer {
    tau: f32,
    exponent: f32,
    slots: *mut u32,
    lower: *mut f32,
    upper: *mut f32,
    written: usize,
    /// Elements that may be written: sixteen more than the candidates that a block can have.
    room: usize,
}

impl Writer {
    /// Reserves for every key of `tiles` tiles, and the sixteen elements that a full store may write past them.
    fn new(sink: &mut Sink<'_>, tiles: usize) -> Self {
        let room = (tiles + 1) * TILE;
        let out = &mut *sink.out;
        let len = out.slots.len();
        assert!(
            out.lower.len() == len && out.upper.len() == len,
            "candidates have a slot and two bounds each"
        );
        out.slots.reserve(room);
        out.lower.reserve(room);
        out.upper.reserve(room);
        Self {
            tau: sink.tau,
            exponent: sink.exponent,
            slots: out.slots.spare_capacity_mut().as_mut_ptr().cast(),
            lower: out.lower.spare_capacity_mut().as_mut_ptr().cast(),
            upper: out.upper.spare_capacity_mut().as_mut_ptr().cast(),
            written: 0,
            room,
        }
    }

    /// Compressed in registers and stored whole: `vpcompressd` to memory is microcoded on Zen 4.
    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    fn put(&mut self, slot: u32, candidates: u16, lower: __m512, upper: __m512) {
        assert!(self.written + TILE <= self.room);
        let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        let slots = _mm512_add_epi32(_mm512_set1_epi32(slot as i32), lanes);
        // SAFETY: `new` reserved `room` elements behind each pointer, and `written + 16 <= room` was asserted above. The
        // vectors are not touched before `finish`: the sink is borrowed mutably until then.
        unsafe {
            let at = self.written;
            _mm512_storeu_si512(
                self.slots.add(at).cast(),
                _mm512_maskz_compress_epi32(candidates, slots),
            );
            _mm512_storeu_ps(
                self.lower.add(at),
                _mm512_maskz_compress_ps(candidates, lower),
            );
            _mm512_storeu_ps(
                self.upper.add(at),
                _mm512_maskz_compress_ps(candidates, upper),
            );
        }
        self.written += candidates.count_ones() as usize;
    }

    /// Makes the written candidates part of the vectors of `sink`, the one that `new` was given.
    fn finish(&self, sink: &mut Sink<'_>) {
        let out = &mut *sink.out;
        let len = out.slots.len() + self.written;
        assert!(
            len <= out.slots.capacity()
                && len <= out.lower.capacity()
                && len <= out.upper.capacity()
        );
        // SAFETY: `put` wrote the `written` elements after the old length (no one else wrote in between), and the new
        // length is within capacity.
        unsafe {
            out.slots.set_len(len);
            out.lower.set_len(len);
            out.upper.set_len(len);
        }
    }
}
