//! Causal attention of many queries, in blocks that stay in the first caches.
//!
//! A *row* is one (position, head) pair. A block of up to 48 rows is transposed once into a panel, dimension by
//! dimension, so that the lanes of a register are rows; keys and values are then read where they lie, one value at a
//! time, and broadcast. With rows as lanes nothing is ever reduced across a register: maxima, exponentials, sums and the
//! rescaling of the online softmax are all lane by lane, no dimension needs padding, no key or value of `f32` is copied, and
//! the two products are the same [`tile`]. Those of 16 bits are widened a block at a time, which is copied as often as there are blocks
//! of rows.
//!
//! Measured on one core of a Zen 4 with `D = Dv = 64`: 90 of 116 Gflop/s with AVX-512; the exponentials take most of the
//! rest. With AVX2 a tile of three registers by four streams fills all sixteen registers and spills a sum: 48 Gflop/s,
//! against 80 for two by four.

use super::simd::{Simd, exp};
use super::tile::{Panel, Streams, tile};
use super::{BELOW_ALL, DenseScratch, DenseShape, KeyRun, KeyWindow, QueryBlock, carve};
use crate::element::Element;
use crate::stored::for_elements;
use crate::{Precision, StoredSlice};

/// Rows of a block: three registers of AVX-512, which with eight streams makes 24 sums.
const ROWS: usize = 48;
/// Keys of a block: with 64 dimensions each of the two products works on 40 KiB, half of that a stream.
const KEYS: usize = 64;
/// Blocks after which sums are folded into the totals.
const FOLD: usize = 32;

/// A block of rows on its way through the keys. Every buffer is rows of `lanes` values, one for each row of the block.
struct Rows<'a, S> {
    simd: S,
    shape: DenseShape,
    block: QueryBlock,
    /// Keys that a row sees at most.
    window: usize,
    /// First row, and how many.
    first: usize,
    count: usize,
    /// `count` in whole blocks of sixteen; the lanes past it repeat the last row with a query of zeros.
    lanes: usize,
    /// `[D]`: the queries, transposed.
    panel: &'a mut [f32],
    /// `[KEYS]`: scores of a block of keys, then weights.
    weights: &'a mut [f32],
    /// `[Dv]` and `[1]`: sums of weighted values and of weights since the last fold.
    acc: &'a mut [f32],
    sum: &'a mut [f32],
    /// The same up to the last fold, in units of `exp(scale * total_max)`.
    total: &'a mut [f32],
    total_sum: &'a mut [f32],
    total_max: &'a mut [f32],
    /// Largest score so far, what the last block multiplies older sums by, and how many of its keys a row sees.
    max: &'a mut [f32],
    rescale: &'a mut [f32],
    limit: &'a mut [f32],
    /// How many of its keys lie before the window of a row.
    floor: &'a mut [f32],
    /// Blocks since the last fold.
    blocks: usize,
}

#[inline(always)]
pub(super) fn prefill<S: Simd>(
    simd: S,
    queries: &[f32],
    (runs, window): (&[KeyRun<'_>], KeyWindow),
    shape: DenseShape,
    block: QueryBlock,
    out: &mut [f32],
    scratch: &mut DenseScratch,
) {
    let narrow = |run: &KeyRun<'_>| run.keys.precision() != Precision::F32;
    let wide_len = if runs.iter().any(narrow) { KEYS } else { 0 };
    let rows_len = ROWS * (shape.dim + 2 * shape.value_dim + KEYS + 7);
    let (buffer, _) = scratch.buffers(rows_len + wide_len * (shape.dim + shape.value_dim));
    let (buffer, mut wide) = buffer.split_at_mut(rows_len);
    let wide_keys = carve(&mut wide, wide_len * shape.dim);
    let wide_values = carve(&mut wide, wide_len * shape.value_dim);
    let count = block.len * block.heads;
    for first in (0..count).step_by(ROWS) {
        let mut rows = Rows::start(
            simd,
            shape,
            (block, window.len),
            first,
            ROWS.min(count - first),
            &mut *buffer,
        );
        rows.pack(queries);
        let mut base = window.base;
        let seen_from = rows.first_seen(0);
        for run in runs {
            let len =
                (run.keys.len() / shape.dim).min(rows.visible(rows.count - 1).saturating_sub(base));
            let before = (seen_from.saturating_sub(base) / KEYS * KEYS).min(len);
            if let Some((holder, start)) = run.holder {
                holder.will_need(start + before..start + len);
            }
            for from in (before..len).step_by(KEYS) {
                let to = len.min(from + KEYS);
                let keys = run.keys.slice(from * shape.dim..to * shape.dim);
                let values = run
                    .values
                    .slice(from * shape.value_dim..to * shape.value_dim);
                let keys = widened(simd, keys, wide_keys);
                let values = widened(simd, values, wide_values);
                rows.attend(base + from, to - from, keys, values);
            }
            if let Some((holder, start)) = run.holder {
                holder.forget(start..start + len);
            }
            base += len;
        }
        rows.fold();
        rows.write(out);
    }
}

impl<'a, S: Simd> Rows<'a, S> {
    #[inline(always)]
    fn start(
        simd: S,
        shape: DenseShape,
        (block, window): (QueryBlock, usize),
        first: usize,
        count: usize,
        mut buffer: &'a mut [f32],
    ) -> Self {
        let lanes = count.next_multiple_of(16);
        let mut next = |rows: usize| carve(&mut buffer, rows * lanes);
        let (panel, weights) = (next(shape.dim), next(KEYS));
        let (acc, sum, total, total_sum) = (
            next(shape.value_dim),
            next(1),
            next(shape.value_dim),
            next(1),
        );
        let (total_max, max, rescale) = (next(1), next(1), next(1));
        let (limit, floor) = (next(1), next(1));
        for sums in [
            &mut *panel,
            &mut *acc,
            &mut *sum,
            &mut *total,
            &mut *total_sum,
        ] {
            sums.fill(0.0);
        }
        max.fill(BELOW_ALL);
        total_max.fill(BELOW_ALL);
        Self {
            simd,
            shape,
            block,
            window,
            first,
            count,
            lanes,
            panel,
            weights,
            acc,
            sum,
            total,
            total_sum,
            total_max,
            max,
            rescale,
            limit,
            floor,
            blocks: 0,
        }
    }

    /// Keys that the row of a lane sees.
    #[inline(always)]
    fn visible(&self, lane: usize) -> usize {
        self.block.start + (self.first + lane.min(self.count - 1)) / self.block.heads + 1
    }

    /// The first key that the row of a lane sees.
    #[inline(always)]
    fn first_seen(&self, lane: usize) -> usize {
        self.visible(lane).saturating_sub(self.window)
    }

    /// Transposes the queries into the panel.
    #[inline(always)]
    fn pack(&mut self, queries: &[f32]) {
        for lane in 0..self.count {
            let start = self
                .block
                .queries
                .start(self.first + lane, self.block.heads);
            let query = &queries[start..start + self.shape.dim];
            for (&x, to) in query
                .iter()
                .zip(self.panel[lane..].iter_mut().step_by(self.lanes))
            {
                *to = x;
            }
        }
    }

    /// Attends to `count` keys, of which the first is at position `base`.
    #[inline(always)]
    fn attend(&mut self, base: usize, count: usize, keys: &[f32], values: &[f32]) {
        self.scores(keys, count);
        let masked = base + count > self.visible(0);
        let floored = base < self.first_seen(self.lanes - 1);
        if floored {
            for lane in 0..self.lanes {
                self.floor[lane] = self.first_seen(lane).saturating_sub(base).min(KEYS) as f32;
            }
        }
        if masked || floored {
            for lane in 0..self.lanes {
                self.limit[lane] = self.visible(lane).saturating_sub(base).min(KEYS) as f32;
            }
        }
        for lane in (0..self.lanes).step_by(S::LANES) {
            match (masked, floored) {
                (false, false) => self.weigh::<false, false>(lane, count),
                (true, false) => self.weigh::<true, false>(lane, count),
                (_, true) => self.weigh::<true, true>(lane, count),
            }
        }
        self.values(values, count);
        self.blocks += 1;
        if self.blocks == FOLD {
            self.fold();
        }
    }

    /// `weights[key] = score` for every lane.
    #[inline(always)]
    fn scores(&mut self, keys: &[f32], count: usize) {
        for first in (0..count).step_by(S::PREFILL_STREAMS) {
            match S::PREFILL_STREAMS {
                8 => self.scores_of::<8>(keys, first, count),
                _ => self.scores_of::<4>(keys, first, count),
            }
        }
    }

    /// Scores of up to `R` keys; streams past the last key repeat it and are not stored.
    #[inline(always)]
    fn scores_of<const R: usize>(&mut self, keys: &[f32], first: usize, count: usize) {
        let dim = self.shape.dim;
        let from =
            std::array::from_fn(|i| keys[(first + i).min(count - 1) * dim..][..dim].as_ptr());
        let streams = Streams { from, step: 1 };
        let used = R.min(count - first);
        let mut lane = 0;
        while lane < self.lanes {
            lane += match self.registers(lane) {
                1 => self.score_tile::<R, 1>(streams, first, used, lane),
                2 => self.score_tile::<R, 2>(streams, first, used, lane),
                _ => self.score_tile::<R, 3>(streams, first, used, lane),
            };
        }
    }

    /// Registers of the next tile at `lane`.
    #[inline(always)]
    fn registers(&self, lane: usize) -> usize {
        ((self.lanes - lane) / S::LANES).min(S::PREFILL_REGISTERS)
    }

    /// Scores of the first `used` streams for `V` registers of lanes; returns how many lanes.
    #[inline(always)]
    fn score_tile<const R: usize, const V: usize>(
        &mut self,
        streams: Streams<R>,
        first: usize,
        used: usize,
        lane: usize,
    ) -> usize {
        let panel = Panel {
            from: self.panel[lane..].as_ptr(),
            step: self.lanes,
        };
        // SAFETY: every stream is a key of `dim` values; the panel has `dim` rows of `lanes`, and V registers from `lane`
        // lie inside one (`registers`).
        let sums = unsafe { tile::<S, f32, R, V>(self.simd, streams, panel, self.shape.dim) };
        for (i, sums) in sums.into_iter().enumerate().take(used) {
            let row = &mut self.weights[(first + i) * self.lanes + lane..][..V * S::LANES];
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: register v < V of a slice of V registers.
                unsafe { self.simd.store(row[v * S::LANES..].as_mut_ptr(), sum) };
            }
        }
        V * S::LANES
    }

    /// Turns the scores of one register of lanes into weights and adds them up. If `MASKED`, keys from a lane's limit on
    /// weigh 0 and do not enter its maximum; their weight before that may be anything. So do those before its floor if `FLOORED`.
    #[inline(always)]
    fn weigh<const MASKED: bool, const FLOORED: bool>(&mut self, lane: usize, count: usize) {
        let simd = self.simd;
        let (zero, scale) = (simd.splat(0.0), simd.splat(self.shape.scale));
        let limit = self.read(&*self.limit, lane);
        let floor = self.read(&*self.floor, lane);
        let below_all = simd.splat(BELOW_ALL);
        let old = self.read(&*self.max, lane);
        let mut max = old;
        let column = &mut self.weights[lane..(count - 1) * self.lanes + lane + S::LANES];
        let (from, step) = (column.as_mut_ptr(), self.lanes);
        for key in 0..count {
            // SAFETY: `column` ends with the register of the last key.
            let mut score = unsafe { simd.load(from.add(key * step)) };
            if MASKED {
                score = simd.select_less(simd.splat(key as f32), limit, score, below_all);
            }
            if FLOORED {
                score = simd.select_less(simd.splat(key as f32), floor, below_all, score);
            }
            max = simd.max(max, score);
        }
        let mut sum = zero;
        for key in 0..count {
            // SAFETY: as above.
            let score = unsafe { simd.load(from.add(key * step)) };
            let mut weight = exp(simd, simd.mul(scale, simd.sub(score, max)));
            if MASKED {
                weight = simd.select_less(simd.splat(key as f32), limit, weight, zero);
            }
            if FLOORED {
                weight = simd.select_less(simd.splat(key as f32), floor, zero, weight);
            }
            sum = simd.add(sum, weight);
            // SAFETY: as above.
            unsafe { simd.store(from.add(key * step), weight) };
        }
        let rescale = exp(simd, simd.mul(scale, simd.sub(old, max)));
        let sum = simd.fma(self.read(&*self.sum, lane), rescale, sum);
        write(simd, self.sum, lane, sum);
        write(simd, self.max, lane, max);
        write(simd, self.rescale, lane, rescale);
    }

    /// The register at `buffer[at..]`.
    #[inline(always)]
    fn read(&self, buffer: &[f32], at: usize) -> S::V {
        // SAFETY: the slice has LANES values.
        unsafe { self.simd.load(buffer[at..at + S::LANES].as_ptr()) }
    }

    /// `acc = acc * rescale + sum of weight * value` for every lane.
    #[inline(always)]
    fn values(&mut self, values: &[f32], count: usize) {
        for first in (0..self.shape.value_dim).step_by(S::PREFILL_STREAMS) {
            match S::PREFILL_STREAMS {
                8 => self.values_of::<8>(values, first, count),
                _ => self.values_of::<4>(values, first, count),
            }
        }
    }

    /// Up to `R` columns of the values; streams past the last column repeat it and are not stored.
    #[inline(always)]
    fn values_of<const R: usize>(&mut self, values: &[f32], first: usize, count: usize) {
        let dim = self.shape.value_dim;
        let streams = Streams {
            from: std::array::from_fn(|i| values[(first + i).min(dim - 1)..].as_ptr()),
            step: dim,
        };
        let used = R.min(dim - first);
        let mut lane = 0;
        while lane < self.lanes {
            lane += match self.registers(lane) {
                1 => self.value_tile::<R, 1>(streams, first, used, count, lane),
                2 => self.value_tile::<R, 2>(streams, first, used, count, lane),
                _ => self.value_tile::<R, 3>(streams, first, used, count, lane),
            };
        }
    }

    /// The first `used` of `R` columns for `V` registers of lanes; returns how many lanes.
    #[inline(always)]
    fn value_tile<const R: usize, const V: usize>(
        &mut self,
        streams: Streams<R>,
        first: usize,
        used: usize,
        count: usize,
        lane: usize,
    ) -> usize {
        let simd = self.simd;
        let panel = Panel {
            from: self.weights[lane..].as_ptr(),
            step: self.lanes,
        };
        // SAFETY: every stream is a column of `count` value rows; the weights are `count` rows of `lanes` or more, and V
        // registers from `lane` lie inside one (`registers`).
        let sums = unsafe { tile::<S, f32, R, V>(simd, streams, panel, count) };
        for (i, sums) in sums.into_iter().enumerate().take(used) {
            for (v, sum) in sums.into_iter().enumerate() {
                let at = lane + v * S::LANES;
                let rescale = self.read(&*self.rescale, at);
                let at = (first + i) * self.lanes + at;
                let sum = simd.fma(self.read(&*self.acc, at), rescale, sum);
                write(simd, self.acc, at, sum);
            }
        }
        V * S::LANES
    }

    /// Moves the sums into the totals, which from then on refer to the present maximum.
    #[inline(always)]
    fn fold(&mut self) {
        let simd = self.simd;
        let (zero, scale) = (simd.splat(0.0), simd.splat(self.shape.scale));
        for lane in (0..self.lanes).step_by(S::LANES) {
            let max = self.read(&*self.max, lane);
            let rescale = exp(
                simd,
                simd.mul(scale, simd.sub(self.read(&*self.total_max, lane), max)),
            );
            write(simd, self.total_max, lane, max);
            let sum = simd.fma(
                self.read(&*self.total_sum, lane),
                rescale,
                self.read(&*self.sum, lane),
            );
            write(simd, self.total_sum, lane, sum);
            write(simd, self.sum, lane, zero);
            for column in 0..self.shape.value_dim {
                let at = column * self.lanes + lane;
                let sum = simd.fma(
                    self.read(&*self.total, at),
                    rescale,
                    self.read(&*self.acc, at),
                );
                write(simd, self.total, at, sum);
                write(simd, self.acc, at, zero);
            }
        }
        self.blocks = 0;
    }

    /// Divides and writes the output rows.
    #[inline(always)]
    fn write(&self, out: &mut [f32]) {
        for lane in 0..self.count {
            let start = self.block.out.start(self.first + lane, self.block.heads);
            let row = &mut out[start..start + self.shape.value_dim];
            for (x, total) in row
                .iter_mut()
                .zip(self.total[lane..].iter().step_by(self.lanes))
            {
                *x = total / self.total_sum[lane];
            }
        }
    }
}

/// The values in `f32`, in `buffer` if they are not stored so.
#[inline(always)]
fn widened<'a, S: Simd>(simd: S, values: StoredSlice<'a>, buffer: &'a mut [f32]) -> &'a [f32] {
    if let Some(values) = values.as_f32() {
        return values;
    }
    let buffer = &mut buffer[..values.len()];
    for_elements!(values, values => widen_into(simd, values, buffer));
    buffer
}

#[inline(always)]
fn widen_into<S: Simd, E: Element>(simd: S, values: &[E], out: &mut [f32]) {
    let whole = values.len() - values.len() % S::LANES;
    for (values, out) in values[..whole]
        .chunks_exact(S::LANES)
        .zip(out.chunks_exact_mut(S::LANES))
    {
        // SAFETY: both are LANES values.
        unsafe { simd.store(out.as_mut_ptr(), simd.load(values.as_ptr())) };
    }
    for (out, value) in out[whole..].iter_mut().zip(&values[whole..]) {
        *out = value.widen();
    }
}

/// Writes the register at `buffer[at..]`.
#[inline(always)]
fn write<S: Simd>(simd: S, buffer: &mut [f32], at: usize, x: S::V) {
    // SAFETY: the slice has LANES values.
    unsafe { simd.store(buffer[at..at + S::LANES].as_mut_ptr(), x) };
}
