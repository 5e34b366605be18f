//! A dense prefill with a window is what f64 gives for the keys inside, wherever the runs begin and are cut.

use hira_kernels::dense::{DenseScratch, DenseShape, KeyRun, KeyWindow, QueryBlock, RowStrides};
use hira_kernels::{Kernel, StoredSlice};

/// Numbers between -1 and 1 that look random.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Softmax over the keys `first..=position` in f64.
fn expected(
    query: &[f32],
    (keys, values): (&[f32], &[f32]),
    shape: DenseShape,
    seen: std::ops::Range<usize>,
) -> Vec<f64> {
    let logit = |at: usize| -> f64 {
        let key = &keys[at * shape.dim..][..shape.dim];
        let products = query.iter().zip(key);
        let score: f64 = products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        f64::from(shape.scale) * score
    };
    let logits: Vec<f64> = seen.clone().map(logit).collect();
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut out = vec![0.0; shape.value_dim];
    let mut sum = 0.0;
    for (at, logit) in seen.zip(logits) {
        let weight = (logit - most).exp();
        sum += weight;
        let value = &values[at * shape.value_dim..][..shape.value_dim];
        for (out, &x) in out.iter_mut().zip(value) {
            *out += weight * f64::from(x);
        }
    }
    out.iter().map(|x| x / sum).collect()
}

#[test]
fn a_window_masks_what_lies_before_it() {
    let (len, heads) = (400, 2);
    for (dim, value_dim, scale) in [(8, 5, 1.0), (3, 17, 20.0)] {
        let shape = DenseShape {
            dim,
            value_dim,
            scale,
        };
        let keys = noise(len * dim, 1);
        let values = noise(len * value_dim, 2);
        let queries = noise(len * heads * dim, 3);
        for kernel in Kernel::available() {
            let mut scratch = DenseScratch::new();
            for (start, count) in [(0, 400), (0, 1), (63, 65), (150, 100), (399, 1)] {
                for window in [1, 2, 16, 47, 64, 65, 100, 399, 400, usize::MAX] {
                    let least = (start + 1_usize).saturating_sub(window);
                    for (base, run) in [(least, 1000), (least, 70), (least / 2, 1000)] {
                        let cut = |from: usize| {
                            let to = len.min(from + run);
                            let slice = |rows: &[f32], dim: usize| -> Vec<f32> {
                                rows[from * dim..to * dim].to_vec()
                            };
                            (slice(&keys, dim), slice(&values, value_dim))
                        };
                        let runs: Vec<_> = (base..len).step_by(run).map(cut).collect();
                        let runs: Vec<KeyRun<'_>> = runs
                            .iter()
                            .map(|(k, v)| KeyRun::new(StoredSlice::F32(k), StoredSlice::F32(v)))
                            .collect();
                        let block = QueryBlock {
                            start,
                            len: count,
                            heads,
                            queries: RowStrides::position_major(heads, dim),
                            out: RowStrides::position_major(heads, value_dim),
                        };
                        let window = KeyWindow { base, len: window };
                        let queries = &queries[start * heads * dim..];
                        let mut out = vec![f32::NAN; count * heads * value_dim];
                        kernel.dense_window_prefill_into(
                            queries,
                            &runs,
                            window,
                            shape,
                            block,
                            &mut out,
                            &mut scratch,
                        );
                        let rows = out.chunks_exact(value_dim);
                        for (row, found) in rows.enumerate() {
                            let visible = start + row / heads + 1;
                            let seen = visible.saturating_sub(window.len)..visible;
                            let query = &queries[row * dim..][..dim];
                            let expected = expected(query, (&keys, &values), shape, seen);
                            for (&found, expected) in found.iter().zip(expected) {
                                let error = (f64::from(found) - expected).abs();
                                assert!(error < 1e-4, "{kernel:?} {window:?} {row}: {error}");
                            }
                        }
                    }
                }
            }
        }
    }
}
