//! Dense decode in bytes a second beside a plain read of the same bytes, and prefill beside the peak of the multipliers.
//!
//! Inputs are noise: neither the order of loads nor the number of steps depends on the values. Every timed answer is
//! checked against brute force first.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hira_kernels::dense::{DenseScratch, DenseShape, KeyRun, QueryBlock, RowStrides};
use hira_kernels::{Kernel, Precision, SoftmaxState, StoredSlice, StoredVec};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Bytes of keys, and of values, in `f32`: with both, four times what the last cache of a server core holds, twice in 16 bits.
const COLD_BYTES: usize = 64 << 20;

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Attention of one query in f64, over the keys that `values` has rows for.
fn check(found: &[f32], query: &[f32], keys: &[f32], values: &[f32], scale: f32) {
    let dot = |key: &[f32]| {
        query
            .iter()
            .zip(key)
            .map(|(&q, &k)| f64::from(q) * f64::from(k))
            .sum::<f64>()
    };
    let logits: Vec<f64> = keys
        .chunks_exact(query.len())
        .map(|key| f64::from(scale) * dot(key))
        .collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut expected = vec![0.0; found.len()];
    let mut sum = 0.0;
    for (logit, value) in logits.iter().zip(values.chunks_exact(found.len())) {
        let weight = (logit - max).exp();
        sum += weight;
        expected
            .iter_mut()
            .zip(value)
            .for_each(|(expected, &value)| *expected += weight * f64::from(value));
    }
    for (&found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(found) - expected / sum).abs() < 1e-5,
            "{found} is not {}",
            expected / sum
        );
    }
}

/// Reads one value of every cache line.
fn read(values: StoredSlice<'_>) -> u32 {
    fn read<T: Copy>(values: &[T], bits: impl Fn(T) -> u32) -> u32 {
        let lines = values.iter().step_by(64 / size_of::<T>());
        lines.fold(0, |sum, &value| sum ^ bits(value))
    }
    match values {
        StoredSlice::F32(values) => read(values, f32::to_bits),
        StoredSlice::F16(values) => read(values, |x| u32::from(x.to_bits())),
        StoredSlice::Bf16(values) => read(values, |x| u32::from(x.to_bits())),
    }
}

fn decode(c: &mut Criterion) {
    for dim in [64, 128] {
        let len = COLD_BYTES / (4 * dim);
        let (keys, values) = (noise(len * dim, 1), noise(len * dim, 2));
        for precision in Precision::ALL {
            let [keys, values] = [&keys, &values].map(|x| StoredVec::rounded(precision, x));
            decode_stored(c, dim, keys.as_slice(), values.as_slice());
        }
    }
}

/// The same keys in every precision: times compare, and bytes a second.
fn decode_stored(c: &mut Criterion, dim: usize, keys: StoredSlice<'_>, values: StoredSlice<'_>) {
    let mut scratch = DenseScratch::new();
    let (wide_keys, wide_values) = (keys.widened(), values.widened());
    let run = KeyRun::new(keys, values);
    let precision = keys.precision();
    let shape = DenseShape {
        dim,
        value_dim: dim,
        scale: 1.0 / (dim as f32).sqrt(),
    };
    let mut group = c.benchmark_group(format!("decode/{dim}/{precision}"));
    let bytes = 2 * keys.len() * precision.bytes();
    group
        .throughput(Throughput::Bytes(bytes as u64))
        .sample_size(10);
    group.bench_function("plain read", |b| {
        b.iter(|| read(black_box(keys)) ^ read(black_box(values)))
    });
    for kernel in Kernel::available().filter(|&kernel| kernel != Kernel::Scalar) {
        for heads in [1, 3, 4, 8] {
            let queries = noise(heads * dim, 3);
            let mut states = vec![SoftmaxState::new(dim); heads];
            kernel.dense_decode_into(&queries, run, shape, &mut states, &mut scratch);
            let mut out = vec![0.0; dim];
            states[0].finish_into(&mut out);
            check(&out, &queries[..dim], &wide_keys, &wide_values, shape.scale);
            group.bench_function(format!("{} {heads} queries", kernel.name()), |b| {
                b.iter(|| {
                    states.iter_mut().for_each(|state| state.reset(dim));
                    kernel.dense_decode_into(
                        black_box(&queries),
                        run,
                        shape,
                        &mut states,
                        &mut scratch,
                    );
                });
            });
        }
    }
    group.finish();
}

fn prefill(c: &mut Criterion) {
    let mut scratch = DenseScratch::new();
    for (dim, heads, len) in [(64, 3, 2048), (64, 1, 8192), (128, 3, 2048)] {
        let (queries, keys) = (noise(heads * len * dim, 1), noise(len * dim, 2));
        let values = noise(len * dim, 3);
        let runs = [KeyRun::new(&keys, &values)];
        let shape = DenseShape {
            dim,
            value_dim: dim,
            scale: 1.0 / (dim as f32).sqrt(),
        };
        let rows = RowStrides::head_major(len, dim);
        let block = QueryBlock {
            start: 0,
            len,
            heads,
            queries: rows,
            out: rows,
        };
        let mut out = vec![0.0; queries.len()];
        let mut group = c.benchmark_group(format!("prefill/{dim}"));
        // Elements are flop.
        let flop = 4 * dim * heads * (len * (len + 1) / 2);
        group
            .throughput(Throughput::Elements(flop as u64))
            .sample_size(10);
        for kernel in Kernel::available().filter(|&kernel| kernel != Kernel::Scalar) {
            kernel.dense_prefill_into(&queries, &runs, shape, block, &mut out, &mut scratch);
            let last = (len - 1) * dim..len * dim;
            check(
                &out[last.clone()],
                &queries[last],
                &keys,
                &values,
                shape.scale,
            );
            group.bench_function(
                format!("{} {heads} heads {len} tokens", kernel.name()),
                |b| {
                    b.iter(|| {
                        kernel.dense_prefill_into(
                            black_box(&queries),
                            &runs,
                            shape,
                            block,
                            &mut out,
                            &mut scratch,
                        );
                    });
                },
            );
        }
        group.finish();
    }
}

/// The peak: sixteen independent chains of fused steps. Elements are flop.
#[cfg(target_arch = "x86_64")]
fn peak(c: &mut Criterion) {
    #[target_feature(enable = "avx512f")]
    fn chains(steps: usize) -> f32 {
        use std::arch::x86_64::*;
        let step = _mm512_set1_ps(0.999);
        let mut sums = [step; 16];
        for _ in 0..steps {
            sums.iter_mut()
                .for_each(|sum| *sum = _mm512_fmadd_ps(*sum, step, step));
        }
        _mm512_reduce_add_ps(sums.into_iter().fold(step, |a, b| _mm512_add_ps(a, b)))
    }
    if !is_x86_feature_detected!("avx512f") {
        return;
    }
    let steps = 1 << 20;
    let mut group = c.benchmark_group("peak");
    group.throughput(Throughput::Elements((steps * 16 * 32) as u64));
    // SAFETY: the feature was detected above.
    group.bench_function("avx512", |b| b.iter(|| unsafe { chains(black_box(steps)) }));
    group.finish();
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_: &mut Criterion) {}

criterion_group!(benches, peak, decode, prefill);
criterion_main!(benches);
