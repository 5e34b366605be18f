//! Mean value vectors of blocks of positions, for the compensation of what a sparse step leaves out.
//!
//! # Numerics
//!
//! The mean `m` of `n` stored values `v_j` is summed in f64 and rounded to bf16, which has the range of f32: a step reads all means, and
//! half of the bytes is half of that time. Nothing has to be known of the rounding, because the
//! radius is measured from the mean *as it is stored*: `R >= max ||v_j - m||`. Differences of two f32 are exact in f64 up to one
//! rounding, so squares, sums and root err by less than `(D + 4) 2^-53` relative, which `1 + 2^-30` covers for any `D` below
//! `2^22`; the cast to f32 goes up one step. Values have norms below `2^63`, so nothing overflows.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{cast_slice, cast_slice_mut};
use hira_index::Counted;
use hira_kernels::{Precision, StoredSlice, StoredVec};

use crate::ValueStore;

/// What means are stored in.
const PRECISION: Precision = Precision::Bf16;

/// Blocks of a run that forks share: 16,384 positions at the default length of a block.
const RUN_BLOCKS: usize = 128;

/// A run that is shared while it is shorter is copied, so that runs stay few.
const FROZEN_BLOCKS: usize = 16;

/// The mean value of each complete block of positions, and how far the block's values can be from it.
///
/// Block `b` holds positions `b * block_keys ..`; the last, incomplete block has no mean yet. The means are functions of the stored
/// values alone, whatever the batches, truncations and forks that led to them; but a block that is completed after some of its values were
/// evicted, which no query sees whole, has a mean of nothing and a radius without limit.
///
/// # Complexity
///
/// A row costs O(Dv) amortised: a block is read once, when it is complete. Cloning is O(runs).
#[derive(Debug, Clone)]
pub struct BlockMeans {
    block_keys: usize,
    dim: usize,
    len: usize,
    runs: Vec<Arc<Run>>,
    /// Whether the last run takes no more blocks.
    frozen: bool,
    /// Sums of the block that is being read.
    sums: Vec<f64>,
    /// A row of it, widened, and its mean.
    row: Vec<f32>,
    mean: Vec<f32>,
}

#[derive(Debug, Clone)]
struct Run {
    /// The first block.
    start: usize,
    means: StoredVec,
    radii: Vec<f32>,
    norms: Vec<f32>,
}

/// Means of consecutive blocks, contiguous in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanRun<'a> {
    /// The first block.
    pub start: usize,
    /// Row-major `[blocks, Dv]`.
    pub means: StoredSlice<'a>,
    /// For each block an upper bound on the Euclidean distance of its values from its mean as stored.
    pub radii: &'a [f32],
    /// For each block an upper bound on the norm of its mean as stored.
    pub norms: &'a [f32],
}

impl BlockMeans {
    /// No blocks yet, of `block_keys` positions; 0 for never any.
    pub(crate) fn new(block_keys: usize, dim: usize) -> Self {
        Self {
            block_keys,
            dim,
            len: 0,
            runs: Vec::new(),
            frozen: false,
            sums: Vec::new(),
            row: Vec::new(),
            mean: Vec::new(),
        }
    }

    /// Positions of a block; 0 if there are no means.
    pub fn block_keys(&self) -> usize {
        self.block_keys
    }

    /// Complete blocks, those that were evicted included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no block is complete.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The means that are stored, in order.
    pub fn runs(&self) -> impl Iterator<Item = MeanRun<'_>> {
        self.runs.iter().map(|run| MeanRun {
            start: run.start,
            means: run.means.as_slice(),
            radii: &run.radii,
            norms: &run.norms,
        })
    }

    /// The bytes of every run, in the byte order of this machine: for files.
    pub(crate) fn encoded_runs(&self) -> impl Iterator<Item = Vec<u8>> {
        self.runs().map(|run| {
            let parts = [
                run.means.as_bytes(),
                cast_slice(run.radii),
                cast_slice(run.norms),
            ];
            parts.concat()
        })
    }

    /// The means of `len` values, of which `runs` are the encoded runs, those that were evicted left out; `None` if there are more blocks than the
    /// values have.
    pub(crate) fn restore(
        block_keys: usize,
        dim: usize,
        len: usize,
        runs: &[Vec<u8>],
    ) -> Option<Self> {
        let mut restored = Self::new(block_keys, dim);
        restored.len = len.checked_div(block_keys).unwrap_or(0);
        let block_bytes = dim * PRECISION.bytes() + 2 * size_of::<f32>();
        let blocks = |bytes: &Vec<u8>| bytes.len() / block_bytes;
        let mut start = (restored.len).checked_sub(runs.iter().map(blocks).sum())?;
        for bytes in runs {
            let blocks = blocks(bytes);
            if blocks == 0 || blocks > RUN_BLOCKS || bytes.len() != blocks * block_bytes {
                return None;
            }
            let mut run = Run {
                start,
                means: StoredVec::zeroed(PRECISION, blocks * dim, blocks * dim),
                radii: vec![0.0; blocks],
                norms: vec![0.0; blocks],
            };
            let (means, rest) = bytes.split_at_checked(blocks * dim * PRECISION.bytes())?;
            let (radii, norms) = rest.split_at_checked(blocks * size_of::<f32>())?;
            run.means.as_bytes_mut().copy_from_slice(means);
            cast_slice_mut(&mut run.radii).copy_from_slice(radii);
            cast_slice_mut(&mut run.norms).copy_from_slice(norms);
            restored.runs.push(Arc::new(run));
            start += blocks;
        }
        Some(restored)
    }

    /// Bytes of means and radii, with what is reserved for the next ones.
    pub fn bytes(&self) -> usize {
        self.bytes_once(&mut Counted::default())
    }

    /// The same without what `counted` has seen.
    pub(crate) fn bytes_once(&self, counted: &mut Counted) -> usize {
        let held = |run: &Arc<Run>| run.means.bytes() + 2 * run.radii.capacity() * size_of::<f32>();
        let runs = self.runs.iter().filter(|run| counted.is_new(&***run));
        runs.map(held).sum()
    }

    /// Ends the last run if it is long, so that forks share it for good.
    pub(crate) fn freeze(&mut self) {
        self.frozen = self
            .runs
            .last()
            .is_some_and(|run| run.radii.len() >= FROZEN_BLOCKS);
    }

    /// Bytes that one position adds, rounded up.
    pub(crate) fn bytes_per_token(block_keys: usize, dim: usize) -> usize {
        match block_keys {
            0 => 0,
            keys => (dim * PRECISION.bytes() + 2 * size_of::<f32>()).div_ceil(keys),
        }
    }

    /// Adds the blocks that are complete in `values`, which were longer or as long at every call before.
    pub(crate) fn follow(&mut self, values: &ValueStore) {
        if self.block_keys == 0 {
            return;
        }
        while (self.len + 1) * self.block_keys <= values.len() {
            self.push(values);
        }
    }

    fn push(&mut self, values: &ValueStore) {
        let start = self.len * self.block_keys;
        let block = start..start + self.block_keys;
        let (sums, row) = (&mut self.sums, &mut self.row);
        sums.clear();
        sums.resize(self.dim, 0.0);
        for_each_row(values, block.clone(), row, |row| {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += f64::from(x);
            }
        });
        let is_full = |run: &Arc<Run>| run.radii.len() >= RUN_BLOCKS;
        if self.frozen || self.runs.last().is_none_or(is_full) {
            self.frozen = false;
            self.runs.push(Arc::new(Run {
                start: self.len,
                means: StoredVec::new(PRECISION),
                radii: Vec::new(),
                norms: Vec::new(),
            }));
        }
        let Some(run) = self.runs.last_mut().map(Arc::make_mut) else {
            return;
        };
        if run.radii.len() == run.radii.capacity() {
            // an eighth of a run at a time: a short cache wastes little, and a run is moved a few times at most; a fork's begins with one
            let more = if run.start.is_multiple_of(RUN_BLOCKS) || !run.radii.is_empty() {
                RUN_BLOCKS / 8
            } else {
                1
            };
            run.means.reserve_exact(more * self.dim);
            run.radii.reserve_exact(more);
            run.norms.reserve_exact(more);
        }
        let share = 1.0 / self.block_keys as f64;
        let mean = &mut self.mean;
        let rounded = |&sum: &f64| PRECISION.round((sum * share) as f32);
        mean.clear();
        mean.extend(sums.iter().map(rounded));
        run.means.extend_rounded(mean);
        let mut farthest = 0.0f64;
        for_each_row(values, block, row, |row| {
            farthest = farthest.max(square_distance(row, mean));
        });
        let mut radius = farthest.sqrt() * (1.0 + f64::powi(2.0, -30));
        if values.row(start).is_none() {
            radius = f64::INFINITY;
        }
        run.radii.push((radius as f32).next_up());
        let square = |&x: &f32| f64::from(x) * f64::from(x);
        let norm = mean.iter().map(square).sum::<f64>().sqrt() * (1.0 + f64::powi(2.0, -30));
        run.norms.push((norm as f32).next_up());
        self.len += 1;
    }

    /// Drops the runs all of whose blocks lie before position `before`.
    pub(crate) fn evict(&mut self, before: usize) {
        if self.block_keys == 0 {
            return;
        }
        let before = (before / self.block_keys).min(self.len);
        let outside = |run: &Arc<Run>| run.start + run.radii.len() <= before;
        let gone = self.runs.partition_point(outside);
        self.runs.drain(..gone);
    }

    /// Forgets every block.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        (self.len, self.frozen) = (0, false);
    }

    /// Forgets the blocks that are not complete in the first `len` positions.
    pub(crate) fn truncate(&mut self, len: usize) {
        if self.block_keys == 0 || len / self.block_keys >= self.len {
            return;
        }
        self.len = len / self.block_keys;
        let kept = self.runs.partition_point(|run| run.start < self.len);
        self.runs.truncate(kept);
        self.frozen = false;
        if let Some(run) = self.runs.last_mut()
            && self.len - run.start < run.radii.len()
        {
            let kept = self.len - run.start;
            let run = Arc::make_mut(run);
            run.means.truncate(kept * self.dim);
            run.radii.truncate(kept);
            run.norms.truncate(kept);
        }
    }
}

/// Calls `read` with every row of `positions`, which are stored; `buffer` holds the rows that have to be widened.
fn for_each_row(
    values: &ValueStore,
    positions: Range<usize>,
    buffer: &mut Vec<f32>,
    mut read: impl FnMut(&[f32]),
) {
    let dim = values.dim();
    let mut at = positions.start;
    while let Some(run) = values.contiguous(at..positions.end)
        && !run.is_empty()
    {
        if let Some(rows) = run.as_f32() {
            rows.chunks_exact(dim).for_each(&mut read);
        } else {
            buffer.resize(dim, 0.0);
            for first in (0..run.len()).step_by(dim) {
                if let Some(row) = run.get(first..first + dim) {
                    row.widen_into(buffer);
                    read(buffer);
                }
            }
        }
        at += run.len() / dim;
    }
}

/// In eight lanes, so that no addition waits for the one before it.
fn square_distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32, y: f32| {
        let difference = f64::from(x) - f64::from(y);
        difference * difference
    };
    let mut lanes = [0.0; 8];
    let (blocks_a, rest_a) = a.as_chunks::<8>();
    let (blocks_b, rest_b) = b.as_chunks::<8>();
    for (a, b) in blocks_a.iter().zip(blocks_b) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(a).zip(b) {
            *lane += square(x, y);
        }
    }
    let rest = rest_a.iter().zip(rest_b).map(|(&x, &y)| square(x, y));
    lanes.iter().sum::<f64>() + rest.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use hira_kernels::Precision;

    use super::*;

    /// A value that no other position has, far from the mean now and then.
    fn row(i: usize) -> [f32; 3] {
        let x = (i as f32 * 0.37).sin();
        let far = if i.is_multiple_of(29) { 40.0 } else { 1.0 };
        [x * far, 1e-3 * i as f32, -x]
    }

    fn rows(range: Range<usize>) -> Vec<f32> {
        range.flat_map(row).collect()
    }

    fn check(means: &BlockMeans, values: &ValueStore, len: usize) {
        let block = means.block_keys();
        assert_eq!(means.len(), len / block);
        let mut seen = 0;
        for run in means.runs() {
            assert_eq!(run.start, seen);
            seen += run.radii.len();
            let means = run.means.widened();
            for (b, (mean, &radius)) in means.chunks_exact(3).zip(run.radii).enumerate() {
                let first = (run.start + b) * block;
                let rows: Vec<Vec<f64>> = (first..first + block)
                    .map(|i| values.row(i).expect("stored").widened().into_owned())
                    .map(|row| row.into_iter().map(f64::from).collect())
                    .collect();
                for (d, &mean) in mean.iter().enumerate() {
                    let exact = rows.iter().map(|row| row[d]).sum::<f64>() / block as f64;
                    assert!((f64::from(mean) - exact).abs() <= exact.abs() / 255.0 + 1e-9);
                }
                let distance = |row: &Vec<f64>| {
                    let squares = row
                        .iter()
                        .zip(mean)
                        .map(|(x, &m)| (x - f64::from(m)).powi(2));
                    squares.sum::<f64>().sqrt()
                };
                let farthest = rows.iter().map(distance).fold(0.0, f64::max);
                assert!(f64::from(radius) >= farthest);
                assert!(f64::from(radius) <= farthest * (1.0 + 1e-6) + 1e-40);
                let square: f64 = mean.iter().map(|&m| f64::from(m).powi(2)).sum();
                let norm = f64::from(run.norms[b]);
                assert!(norm >= square.sqrt() && norm <= square.sqrt() * (1.0 + 1e-6) + 1e-40);
            }
        }
        assert_eq!(seen, means.len());
    }

    #[test]
    fn means_and_radii_are_those_of_the_stored_values_in_any_batching() {
        for precision in Precision::ALL {
            for (block, run_len) in [(16, 16), (16, 48), (64, 48), (32, 8192)] {
                let mut whole = BlockMeans::new(block, 3);
                let mut all = ValueStore::new(3, run_len, precision);
                all.append(&rows(0..500));
                whole.follow(&all);
                check(&whole, &all, 500);
                for batch in [1, 7, 64, 333] {
                    let mut values = ValueStore::new(3, run_len, precision);
                    let mut means = BlockMeans::new(block, 3);
                    for start in (0..500).step_by(batch) {
                        values.append(&rows(start..(start + batch).min(500)));
                        means.follow(&values);
                    }
                    assert!(means.runs().eq(whole.runs()), "{block} {run_len} {batch}");
                }
            }
        }
    }

    #[test]
    fn truncation_and_forks_leave_the_means_of_what_is_stored() {
        for cut in [0, 1, 15, 16, 17, 100, 2047, 2048, 2049, 2500, 3000] {
            let mut values = ValueStore::new(3, 64, Precision::F32);
            let mut means = BlockMeans::new(16, 3);
            values.append(&rows(0..2500));
            means.follow(&values);
            if cut % 2 == 0 {
                means.freeze();
                values.freeze();
            }
            let (fork, fork_values) = (means.clone(), values.clone());
            values.truncate(cut);
            means.truncate(cut);
            check(&means, &values, cut.min(2500));
            values.append(&rows(7000..7300));
            means.follow(&values);
            check(&means, &values, cut.min(2500) + 300);
            check(&fork, &fork_values, 2500);
        }
    }

    #[test]
    fn without_blocks_there_is_nothing() {
        let mut values = ValueStore::new(3, 64, Precision::F32);
        values.append(&rows(0..100));
        let mut means = BlockMeans::new(0, 3);
        means.follow(&values);
        means.truncate(10);
        assert_eq!((means.len(), means.bytes()), (0, 0));
        assert_eq!(BlockMeans::bytes_per_token(0, 3), 0);
        assert_eq!(BlockMeans::bytes_per_token(64, 64), 3);
    }
}
