//! The dense plan: every visible key, in parallel over KV heads and ranges.

use std::ops::Range;

use hira_cache::{HeadCache, KvRun};
use hira_kernels::{
    Kernel, SoftmaxState, StoredVec, Team,
    dense::{DenseShape, KeyRun, KeyWindow, QueryBlock, RowHolder, RowStrides},
};
use rayon::prelude::*;

use crate::scratch::{HeadScratch, ScratchPool};

/// Keys of a run that lies in one piece for a prefill.
const KEY_RANGE: usize = 2048;

/// Keys of one task of a decode step that sees `visible` keys: a quarter of them, within limits.
///
/// It does not depend on the number of threads, so neither does the order of sums. Shorter ranges divide better among threads, longer ones
/// stream better: three heads on two cores of a Zen 4, cold, take 118 us at 2,048 keys in one range each and 104 us in ranges of 512, but
/// at 8,192 keys 400 us in ranges of 2,048 and 450 us in ranges of 512.
fn decode_range(visible: usize) -> usize {
    visible.div_ceil(4).next_multiple_of(512).clamp(512, 2048)
}

/// Query positions of one task of a prefill.
pub(crate) const QUERY_BLOCK: usize = 64;

/// What the dense plan needs beside the head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DenseStep {
    pub(crate) kernel: Kernel,
    pub(crate) scale: f32,
    pub(crate) dim: usize,
    pub(crate) value_dim: usize,
}

/// Shape of a prefill: the first `block` of `tokens` new tokens are answered, after `before` stored ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefill {
    pub(crate) group: usize,
    pub(crate) tokens: usize,
    pub(crate) block: usize,
    pub(crate) before: usize,
    /// Keys that a query sees at most.
    pub(crate) window: usize,
}

impl Prefill {
    /// The first key that any of the tokens sees.
    fn first(&self) -> usize {
        (self.before + 1).saturating_sub(self.window)
    }
}

impl DenseStep {
    pub(crate) fn shape(&self) -> DenseShape {
        DenseShape {
            dim: self.dim,
            value_dim: self.value_dim,
            scale: self.scale,
        }
    }

    /// Answers the `G` queries of one KV head, which see `positions`, at least one. Their states are the first of `scratch.states`.
    ///
    /// # Shapes
    ///
    /// `queries` `[G, D]`, `out` `[G, Dv]`.
    pub(crate) fn decode(
        &self,
        (team, pool): (&Team, &ScratchPool),
        head: &HeadCache,
        queries: &[f32],
        positions: Range<usize>,
        scratch: &mut HeadScratch,
        out: &mut [f32],
    ) {
        let group = queries.len() / self.dim;
        let length = decode_range(positions.len());
        // Ranges end at multiples of their length: segments often do, too, and what lies in one is not copied.
        let (from, to) = (positions.start / length, positions.end.div_ceil(length));
        let ranges = to - from;
        let states = &mut scratch.states;
        states.resize_with(ranges * group, || SoftmaxState::new(self.value_dim));
        for state in states.iter_mut() {
            state.reset(self.value_dim);
        }
        let on_disk = head.is_on_disk();
        let attend = |range: usize, states: &mut [SoftmaxState], dense: &mut _, copy: &mut _| {
            let start = (from + range) * length;
            let here = positions.start.max(start)..positions.end.min(start + length);
            if on_disk {
                head.will_need(here.clone());
            }
            let run = one_run(head, here.clone(), copy);
            self.kernel
                .dense_decode_into(queries, run, self.shape(), states, dense);
            if on_disk {
                head.forget(here);
            }
        };
        let tasks = states.chunks_exact_mut(group).enumerate();
        team.for_each(tasks, |(range, states)| {
            pool.with(|scratch| attend(range, states, &mut scratch.dense, &mut scratch.copy));
        });
        let (first, later) = states.split_at_mut(group);
        for range in later.chunks_exact(group) {
            for (state, other) in first.iter_mut().zip(range) {
                state.merge(other);
            }
        }
        for (state, out) in first.iter().zip(out.chunks_exact_mut(self.value_dim)) {
            state.finish_into(out);
        }
    }
}

/// Causal attention of the first `shape.block` new tokens of every head.
///
/// # Shapes
///
/// `q` `[B, Hq, L, D]`, `out` `[B, Hq, L, Dv]`; `heads` are the `B * Hkv` KV heads.
pub(crate) fn prefill(
    step: &DenseStep,
    pool: &ScratchPool,
    heads: &[HeadCache],
    shape: Prefill,
    q: &[f32],
    out: &mut [f32],
) {
    let Prefill {
        group,
        tokens,
        block,
        before,
        window,
    } = shape;
    let first_key = shape.first();
    let (dim, value_dim) = (step.dim, step.value_dim);
    // tasks write `[head][token, G, Dv]`, contiguous for each task, which is then brought into the order of `out`
    let rows = block * group;
    let mut by_token = vec![0.0; heads.len() * rows * value_dim];
    by_token
        .par_chunks_exact_mut(rows * value_dim)
        .zip(heads)
        .zip(q.par_chunks_exact(group * tokens * dim))
        .for_each(|((by_token, head), q)| {
            let copies = range_copies(head, first_key..before + block);
            by_token
                .par_chunks_mut(QUERY_BLOCK * group * value_dim)
                .enumerate()
                .for_each(|(i, out)| {
                    let first = i * QUERY_BLOCK;
                    let queries = out.len() / (group * value_dim);
                    let runs = runs_of(head, &copies, first_key..before + first + queries);
                    let window = KeyWindow {
                        base: first_key,
                        len: window,
                    };
                    let block = QueryBlock {
                        start: before + first,
                        len: queries,
                        heads: group,
                        queries: RowStrides::head_major(tokens, dim),
                        out: RowStrides::position_major(group, value_dim),
                    };
                    pool.with(|scratch| {
                        step.kernel.dense_window_prefill_into(
                            &q[first * dim..],
                            &runs,
                            window,
                            step.shape(),
                            block,
                            out,
                            &mut scratch.dense,
                        );
                    });
                });
        });
    out.par_chunks_exact_mut(tokens * value_dim)
        .enumerate()
        .for_each(|(head, out)| {
            let by_token = &by_token[head / group * rows * value_dim..];
            for (token, out) in out.chunks_exact_mut(value_dim).take(block).enumerate() {
                let start = (token * group + head % group) * value_dim;
                out.copy_from_slice(&by_token[start..start + value_dim]);
            }
        });
}

/// `positions` in ranges that end at multiples of [`KEY_RANGE`].
fn key_ranges(positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let ranges = positions.start / KEY_RANGE..positions.end.div_ceil(KEY_RANGE);
    ranges.map(move |range| {
        let (start, end) = (range * KEY_RANGE, (range + 1) * KEY_RANGE);
        positions.start.max(start)..positions.end.min(end)
    })
}

/// For each range of the `stored` positions, what [`runs_of`] needs of it.
pub(crate) fn range_copies(head: &HeadCache, stored: Range<usize>) -> Vec<RangeCopy> {
    let copies = key_ranges(stored).map(|range| {
        let mut copy = RangeCopy::default();
        one_run(head, range, &mut copy);
        copy
    });
    copies.collect()
}

/// The positions `visible`, which begin as those did that the copies were made for, in runs that do not depend on the segments.
pub(crate) fn runs_of<'a>(
    head: &'a HeadCache,
    copies: &'a [RangeCopy],
    visible: Range<usize>,
) -> Vec<KeyRun<'a>> {
    let on_disk = head.is_on_disk();
    let ranges = key_ranges(visible).zip(copies);
    let runs = ranges.map(|(range, copy)| {
        let start = range.start;
        let run = copy.run(head, range);
        if on_disk {
            run.held_by(head, start)
        } else {
            run
        }
    });
    runs.collect()
}

/// Rows of one range that lie in several segments, side by side as they are stored.
///
/// Sums are folded at the ends of runs, so runs must not follow the segments: these depend on how keys were appended, on the updater, and
/// on what a thread has built by now, and a step must give the same bits whatever they are.
#[derive(Debug, Default)]
pub(crate) struct RangeCopy {
    keys: StoredVec,
    values: StoredVec,
}

impl RangeCopy {
    /// The rows of `positions`, which start the range that this was made for.
    fn run<'a>(&'a self, head: &'a HeadCache, positions: Range<usize>) -> KeyRun<'a> {
        match head.run(positions.clone()) {
            Some(run) => key_run(run),
            None => {
                let (keys, values) = (self.keys.as_slice(), self.values.as_slice());
                KeyRun::new(
                    keys.slice(0..positions.len() * head.index().dim()),
                    values.slice(0..positions.len() * head.values().dim()),
                )
            }
        }
    }
}

/// The rows of `positions` as one run, copied only if they do not lie so.
fn one_run<'a>(
    head: &'a HeadCache,
    positions: Range<usize>,
    copy: &'a mut RangeCopy,
) -> KeyRun<'a> {
    if let Some(run) = head.run(positions.clone()) {
        return key_run(run);
    }
    let precision = head.values().precision();
    copy.keys.reset(precision);
    copy.values.reset(precision);
    for run in head.runs(positions.clone()) {
        copy.keys.extend(run.keys);
        copy.values.extend(run.values);
    }
    copy.run(head, positions)
}

fn key_run(run: KvRun<'_>) -> KeyRun<'_> {
    KeyRun::new(run.keys, run.values)
}
