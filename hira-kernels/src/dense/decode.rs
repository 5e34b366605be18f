//! One query of each head of a group over a run of keys, at the speed of memory.
//!
//! What makes it memory-bound is the order of the first loads. Tiles read several rows at once, or a few columns of each
//! row: orders that no hardware prefetcher follows. So every four keys and every sixteen values are first fetched by
//! one plain load a cache line, in order, and worked on in the first cache. Blocks are short, so that the two streams
//! alternate often and one is fetched while the other is worked on.
//!
//! Measured against a plain read of the same bytes, one core of a Zen 4, cold rows: without the fetch 0.4 for four
//! queries of 128 values on AVX2, with it 0.9 to 1.0; one query of 64 on AVX-512 0.8 and 1.0. Blocks of 16 keys 1.06, of 32
//! 0.95, of 64 0.84. Software prefetch instead, at any distance and to any cache, 0.4 to 0.98: it takes away the demand
//! misses that start the hardware's.

use super::simd::{Block, Simd, exp, zeros};
use super::tile::{Panel, Streams, tile};
use super::{BELOW_ALL, DenseScratch, DenseShape, carve};
use crate::SoftmaxState;
use crate::element::Element;

/// Keys of a block: sixteen scores a query.
const KEYS: usize = 16;
/// Keys after which sums are folded into the totals.
const FOLD: usize = 1024;

/// The state of all queries, in units of scores. Each buffer has one row a query.
struct Group<'a> {
    /// Queries.
    len: usize,
    shape: DenseShape,
    /// `dim` and `value_dim` in whole blocks of sixteen.
    padded_dim: usize,
    padded_value_dim: usize,
    /// `[padded_dim]`: queries, zeros at the end.
    queries: &'a mut [f32],
    /// `[16]`: scores of a block, then weights.
    weights: &'a mut [f32],
    /// `[16]`: sums of weights since the last fold, in lanes.
    sums: &'a mut [f32],
    /// `[padded_value_dim]`: sums of weighted values since the last fold.
    acc: &'a mut [f32],
    /// `[padded_value_dim]` and one: the same up to the last fold.
    total: &'a mut [f32],
    total_sum: &'a mut [f32],
    /// Largest score so far, the one that the totals refer to, and what the last block multiplies older sums by.
    max: &'a mut [f32],
    total_max: &'a mut [f32],
    rescale: &'a mut [f32],
}

#[inline(always)]
pub(super) fn decode<S: Simd, E: Element>(
    simd: S,
    queries: &[f32],
    [keys, values]: [&[E]; 2],
    shape: DenseShape,
    states: &mut [SoftmaxState],
    scratch: &mut DenseScratch,
) {
    let len = states.len();
    let (padded_dim, padded_value_dim) = (
        shape.dim.next_multiple_of(16),
        shape.value_dim.next_multiple_of(16),
    );
    let (mut rest, partial) =
        scratch.buffers(len * (padded_dim + 2 * padded_value_dim + 2 * KEYS + 4));
    let mut group = Group {
        len,
        shape,
        padded_dim,
        padded_value_dim,
        queries: carve(&mut rest, len * padded_dim),
        weights: carve(&mut rest, len * KEYS),
        sums: carve(&mut rest, len * KEYS),
        acc: carve(&mut rest, len * padded_value_dim),
        total: carve(&mut rest, len * padded_value_dim),
        total_sum: carve(&mut rest, len),
        max: carve(&mut rest, len),
        total_max: carve(&mut rest, len),
        rescale: carve(&mut rest, len),
    };
    group.start(queries);
    let rows = keys.len() / shape.dim;
    for first in (0..rows).step_by(FOLD) {
        let end = rows.min(first + FOLD);
        for from in (first..end).step_by(KEYS) {
            let to = end.min(from + KEYS);
            group.scores(simd, &keys[from * shape.dim..to * shape.dim], to - from);
            group.weigh(simd, to - from);
            group.values(
                simd,
                &values[from * shape.value_dim..to * shape.value_dim],
                to - from,
            );
        }
        group.fold();
    }
    group.finish(states, partial);
}

impl Group<'_> {
    /// Packs the queries, and attends to nothing.
    #[inline(always)]
    fn start(&mut self, queries: &[f32]) {
        for buffer in [
            &mut *self.sums,
            &mut *self.acc,
            &mut *self.total,
            &mut *self.total_sum,
            &mut *self.queries,
        ] {
            buffer.fill(0.0);
        }
        let rows = queries
            .chunks_exact(self.shape.dim)
            .zip(self.queries.chunks_exact_mut(self.padded_dim));
        for (query, padded) in rows {
            padded[..query.len()].copy_from_slice(query);
        }
        self.max.fill(BELOW_ALL);
        self.total_max.fill(BELOW_ALL);
    }

    /// Canonical scores of up to sixteen keys for every query.
    #[inline(always)]
    fn scores<S: Simd, E: Element>(&mut self, simd: S, keys: &[E], count: usize) {
        let mut g = 0;
        while g < self.len {
            g += match self.len - g {
                1 => self.scores_of::<S, E, 1>(simd, g, keys, count),
                2 => self.scores_of::<S, E, 2>(simd, g, keys, count),
                3 => self.scores_of::<S, E, 3>(simd, g, keys, count),
                _ => self.scores_of::<S, E, 4>(simd, g, keys, count),
            };
        }
    }

    /// The same for queries `g..g + R`; returns `R`. Scores past the last key repeat it.
    #[inline(always)]
    fn scores_of<S: Simd, E: Element, const R: usize>(
        &mut self,
        simd: S,
        g: usize,
        keys: &[E],
        count: usize,
    ) -> usize {
        let dim = self.shape.dim;
        let queries = &self.queries[g * self.padded_dim..(g + R) * self.padded_dim];
        for first in (0..KEYS).step_by(4) {
            if g == 0 && first < count {
                fetch(&keys[first * dim..count.min(first + 4) * dim]);
            }
            let keys = std::array::from_fn(|i| &keys[(first + i).min(count - 1) * dim..][..dim]);
            let sums = if 4 * R * 16 <= S::DECODE_SUMS * S::LANES {
                lanes_of::<S, E, R, 4>(simd, queries, keys)
            } else if 2 * R * 16 <= S::DECODE_SUMS * S::LANES {
                lanes_of::<S, E, R, 2>(simd, queries, keys)
            } else {
                lanes_of::<S, E, R, 1>(simd, queries, keys)
            };
            for (r, sums) in sums.into_iter().enumerate() {
                self.weights[(g + r) * KEYS + first..][..4].copy_from_slice(&simd.trees(sums));
            }
        }
        R
    }

    /// Turns the scores of a block into weights and adds them up.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, simd: S, count: usize) {
        let scale = simd.splat(self.shape.scale);
        for g in 0..self.len {
            let weights = &mut self.weights[g * KEYS..][..KEYS];
            let sums = &mut self.sums[g * KEYS..][..KEYS];
            let mut max = simd.splat(self.max[g]);
            self.rescale[g] = 1.0;
            let mut higher = false;
            for i in (0..KEYS).step_by(S::LANES) {
                // SAFETY: registers at 0, LANES, .. of a slice of sixteen, which LANES divides.
                higher |= simd.any_less(max, unsafe { simd.load(weights[i..].as_ptr()) });
            }
            if higher {
                let new = weights
                    .iter()
                    .fold(self.max[g], |a, &b| if a < b { b } else { a });
                let rescale = crate::exp::exp(self.shape.scale * (self.max[g] - new));
                sums.iter_mut().for_each(|sum| *sum *= rescale);
                (self.max[g], self.rescale[g], max) = (new, rescale, simd.splat(new));
            }
            for i in (0..KEYS).step_by(S::LANES) {
                let to = weights[i..].as_mut_ptr();
                // SAFETY: registers at 0, LANES, .. of a slice of sixteen, which LANES divides.
                unsafe { simd.store(to, exp(simd, simd.mul(scale, simd.sub(simd.load(to), max)))) };
            }
            weights[count..].fill(0.0);
            for i in (0..KEYS).step_by(S::LANES) {
                let to = sums[i..].as_mut_ptr();
                // SAFETY: registers at 0, LANES, .. of slices of sixteen, which LANES divides.
                unsafe {
                    simd.store(
                        to,
                        simd.add(simd.load(to), simd.load(weights[i..].as_ptr())),
                    )
                };
            }
        }
    }

    /// `acc = acc * rescale + sum of weight * value` over a block, for every query.
    #[inline(always)]
    fn values<S: Simd, E: Element>(&mut self, simd: S, values: &[E], count: usize) {
        let mut g = 0;
        while g < self.len {
            g += match self.len - g {
                1 => self.values_of::<S, E, 1>(simd, g, values, count),
                2 => self.values_of::<S, E, 2>(simd, g, values, count),
                3 => self.values_of::<S, E, 3>(simd, g, values, count),
                _ => self.values_of::<S, E, 4>(simd, g, values, count),
            };
        }
    }

    /// The same for queries `g..g + R`; returns `R`.
    #[inline(always)]
    fn values_of<S: Simd, E: Element, const R: usize>(
        &mut self,
        simd: S,
        g: usize,
        values: &[E],
        count: usize,
    ) -> usize {
        let dim = self.shape.value_dim;
        if g == 0 {
            fetch(values);
        }
        let mut column = 0;
        while column + S::LANES <= dim {
            let registers = (dim - column) / S::LANES;
            let used = if R * 8 <= S::DECODE_SUMS && registers >= 8 {
                self.columns::<S, E, R, 8>(simd, g, values, column, count)
            } else if R * 4 <= S::DECODE_SUMS && registers >= 4 {
                self.columns::<S, E, R, 4>(simd, g, values, column, count)
            } else if registers >= 2 {
                self.columns::<S, E, R, 2>(simd, g, values, column, count)
            } else {
                self.columns::<S, E, R, 1>(simd, g, values, column, count)
            };
            column += used * S::LANES;
        }
        if column < dim {
            self.last_columns::<S, E, R>(simd, g, values, column);
        }
        R
    }

    /// `V` registers of columns; returns `V`.
    #[inline(always)]
    fn columns<S: Simd, E: Element, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        g: usize,
        values: &[E],
        column: usize,
        count: usize,
    ) -> usize {
        let weights = &self.weights[g * KEYS..(g + R) * KEYS];
        let streams = Streams {
            from: std::array::from_fn(|r| weights[r * KEYS..].as_ptr()),
            step: 1,
        };
        let panel = Panel {
            from: values[column..].as_ptr(),
            step: self.shape.value_dim,
        };
        // SAFETY: `count` is at most sixteen, the weights of a query, and the rows of `values`; column + V * LANES is at
        // most a row.
        let sums = unsafe { tile::<S, E, R, V>(simd, streams, panel, count) };
        for (r, sums) in sums.into_iter().enumerate() {
            let rescale = simd.splat(self.rescale[g + r]);
            let acc = &mut self.acc[(g + r) * self.padded_value_dim + column..][..V * S::LANES];
            for (v, sum) in sums.into_iter().enumerate() {
                let to = acc[v * S::LANES..].as_mut_ptr();
                // SAFETY: register v < V of a slice of V registers.
                unsafe { simd.store(to, simd.fma(simd.load(to), rescale, sum)) };
            }
        }
        V
    }

    /// The columns past the last whole register.
    #[inline(always)]
    fn last_columns<S: Simd, E: Element, const R: usize>(
        &mut self,
        simd: S,
        g: usize,
        values: &[E],
        column: usize,
    ) {
        let mut sums = [simd.splat(0.0); R];
        for (i, value) in values.chunks_exact(self.shape.value_dim).enumerate() {
            // SAFETY: the row ends after the `value_dim - column` values that are read.
            let value =
                unsafe { simd.load_head(value[column..].as_ptr(), self.shape.value_dim - column) };
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = simd.fma(simd.splat(self.weights[(g + r) * KEYS + i]), value, *sum);
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            let rescale = simd.splat(self.rescale[g + r]);
            let to = self.acc[(g + r) * self.padded_value_dim + column..][..S::LANES].as_mut_ptr();
            // SAFETY: one register of a slice of LANES values.
            unsafe { simd.store(to, simd.fma(simd.load(to), rescale, sum)) };
        }
    }

    /// Moves the sums into the totals, which from then on refer to the present maximum.
    #[inline(always)]
    fn fold(&mut self) {
        for g in 0..self.len {
            let rescale = crate::exp::exp(self.shape.scale * (self.total_max[g] - self.max[g]));
            self.total_max[g] = self.max[g];
            let sums = &mut self.sums[g * KEYS..][..KEYS];
            self.total_sum[g] = self.total_sum[g] * rescale + sums.iter().sum::<f32>();
            sums.fill(0.0);
            let range = g * self.padded_value_dim..(g + 1) * self.padded_value_dim;
            for (total, acc) in self.total[range.clone()]
                .iter_mut()
                .zip(&mut self.acc[range])
            {
                *total = *total * rescale + *acc;
                *acc = 0.0;
            }
        }
    }

    /// Merges the totals into the callers' states.
    #[inline(always)]
    fn finish(&self, states: &mut [SoftmaxState], partial: &mut SoftmaxState) {
        for (g, state) in states.iter_mut().enumerate() {
            partial.acc.clear();
            partial.acc.extend_from_slice(
                &self.total[g * self.padded_value_dim..][..self.shape.value_dim],
            );
            partial.sum = self.total_sum[g];
            // A scale above 1 can take a score out of range, and `-inf` would mean that there is no key.
            partial.max = (self.shape.scale * self.max[g]).clamp(f32::MIN, f32::MAX);
            state.merge(partial);
        }
    }
}

/// Loads one value of every cache line, in order.
#[inline(always)]
fn fetch<E: Element>(values: &[E]) {
    let lines = values.iter().step_by(64 / size_of::<E>());
    std::hint::black_box(lines.fold(0, |bits, value| bits ^ value.bits()));
}

/// The sixteen lanes of the canonical score of four keys for `R` queries, `K` keys at a time.
#[inline(always)]
fn lanes_of<S: Simd, E: Element, const R: usize, const K: usize>(
    simd: S,
    queries: &[f32],
    keys: [&[E]; 4],
) -> [[Block<S>; 4]; R] {
    let dim = keys[0].len();
    let mut sums = [[zeros(simd); 4]; R];
    for first in (0..4).step_by(K) {
        let keys: [&[E]; K] = std::array::from_fn(|k| &keys[first + k][..dim]);
        let mut lanes = [[zeros(simd); K]; R];
        let whole = dim / 16 * 16;
        for block in (0..whole).step_by(16) {
            for part in 0..16 / S::LANES {
                let at = block + part * S::LANES;
                let mut x = [simd.splat(0.0); K];
                for (x, key) in x.iter_mut().zip(keys) {
                    // SAFETY: the block lies inside the key, which has `dim` values.
                    *x = unsafe { simd.load(key.as_ptr().add(at)) };
                }
                add_part(simd, queries, at, part, x, &mut lanes);
            }
        }
        for part in 0..16 / S::LANES {
            let at = whole + part * S::LANES;
            if at < dim {
                let mut x = [simd.splat(0.0); K];
                for (x, key) in x.iter_mut().zip(keys) {
                    let from = key[at..].as_ptr();
                    // SAFETY: `dim - at` values from there lie inside the key, of which at most LANES are read.
                    *x = unsafe {
                        if dim - at < S::LANES {
                            simd.load_head(from, dim - at)
                        } else {
                            simd.load(from)
                        }
                    };
                }
                add_part(simd, queries, at, part, x, &mut lanes);
            }
        }
        for (sums, lanes) in sums.iter_mut().zip(lanes) {
            sums[first..first + K].copy_from_slice(&lanes);
        }
    }
    sums
}

/// `lanes[r][k][part] += queries[r][at..] * x[k]`.
#[inline(always)]
fn add_part<S: Simd, const R: usize, const K: usize>(
    simd: S,
    queries: &[f32],
    at: usize,
    part: usize,
    x: [S::V; K],
    lanes: &mut [[Block<S>; K]; R],
) {
    let padded = queries.len() / R;
    debug_assert!(at + S::LANES <= padded);
    for (r, lanes) in lanes.iter_mut().enumerate() {
        // SAFETY: `queries` is R rows of `padded` values, a multiple of sixteen above `at`, which is one of LANES.
        let query = unsafe { simd.load(queries.as_ptr().add(r * padded + at)) };
        for (lanes, &x) in lanes.iter_mut().zip(&x) {
            lanes[part] = simd.fma(query, x, lanes[part]);
        }
    }
}
