//! Every available kernel against a naive f64 oracle, and the kernels against one another bit for bit.

use proptest::prelude::*;

use super::{DenseScratch, DenseShape, KeyRun, QueryBlock, RowStrides};
use crate::{Kernel, Precision, SoftmaxState, StoredVec};

/// Values in `[-1, 1)` from a seed.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Attention of one query over `keys`, in f64.
fn attention_naive(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    value_dim: usize,
    scale: f32,
) -> Vec<f64> {
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
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let column = |c: usize| {
        (0..weights.len())
            .map(|i| weights[i] * f64::from(values[i * value_dim + c]))
            .sum::<f64>()
    };
    (0..value_dim).map(|c| column(c) / sum).collect()
}

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(found) - expected).abs() <= tolerance,
            "{what}, component {i}: {found} is not {expected}"
        );
    }
}

fn max_abs(values: &[f32]) -> f64 {
    f64::from(
        values
            .iter()
            .fold(0.0f32, |max, value| max.max(value.abs())),
    )
}

/// Queries, keys and values of one KV head.
struct Case {
    shape: DenseShape,
    heads: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Case {
    fn new(dims: (usize, usize), heads: usize, positions: usize, len: usize, seed: u64) -> Self {
        let (dim, value_dim) = dims;
        Self {
            shape: DenseShape {
                dim,
                value_dim,
                scale: 4.0 / (dim as f32).sqrt(),
            },
            heads,
            queries: noise(positions * heads * dim, seed),
            keys: noise(len * dim, seed + 1),
            values: noise(len * value_dim, seed + 2),
        }
    }

    fn len(&self) -> usize {
        self.keys.len() / self.shape.dim
    }

    /// Rows `from..to`.
    fn run(&self, from: usize, to: usize) -> KeyRun<'_> {
        let DenseShape { dim, value_dim, .. } = self.shape;
        let values = &self.values[from * value_dim..to * value_dim];
        KeyRun::new(&self.keys[from * dim..to * dim], values)
    }

    /// The bounds of the runs between the given cuts, which ascend.
    fn bounds(&self, cuts: &[usize]) -> Vec<(usize, usize)> {
        let mut bounds = vec![0];
        bounds.extend(cuts.iter().map(|&cut| cut.min(self.len())));
        bounds.push(self.len());
        bounds.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    /// The runs between the given cuts.
    fn runs(&self, cuts: &[usize]) -> Vec<KeyRun<'_>> {
        let bounds = self.bounds(cuts).into_iter();
        bounds.map(|(from, to)| self.run(from, to)).collect()
    }

    fn states(&self) -> Vec<SoftmaxState> {
        vec![SoftmaxState::new(self.shape.value_dim); self.heads]
    }

    fn decode(
        &self,
        kernel: Kernel,
        cuts: &[usize],
        scratch: &mut DenseScratch,
    ) -> Vec<SoftmaxState> {
        self.decode_runs(kernel, &self.runs(cuts), scratch)
    }

    fn decode_runs(
        &self,
        kernel: Kernel,
        runs: &[KeyRun<'_>],
        scratch: &mut DenseScratch,
    ) -> Vec<SoftmaxState> {
        let mut states = self.states();
        for &run in runs {
            kernel.dense_decode_into(&self.queries, run, self.shape, &mut states, scratch);
        }
        states
    }

    fn check_decode(&self, states: &[SoftmaxState], tolerance: f64, what: &str) {
        let mut out = vec![0.0; self.shape.value_dim];
        for (query, state) in self.queries.chunks_exact(self.shape.dim).zip(states) {
            let expected = attention_naive(
                query,
                &self.keys,
                &self.values,
                self.shape.value_dim,
                self.shape.scale,
            );
            state.finish_into(&mut out);
            assert_close(&out, &expected, tolerance * max_abs(&self.values), what);
        }
    }

    /// Prefill of the last positions, with queries `[L, G, D]` and output `[G, L, Dv]`.
    fn prefill(&self, kernel: Kernel, cuts: &[usize], scratch: &mut DenseScratch) -> Vec<f32> {
        self.prefill_runs(kernel, &self.runs(cuts), scratch)
    }

    fn prefill_runs(
        &self,
        kernel: Kernel,
        runs: &[KeyRun<'_>],
        scratch: &mut DenseScratch,
    ) -> Vec<f32> {
        let DenseShape { dim, value_dim, .. } = self.shape;
        let len = self.queries.len() / (dim * self.heads);
        let block = QueryBlock {
            start: self.len() - len,
            len,
            heads: self.heads,
            queries: RowStrides::position_major(self.heads, dim),
            out: RowStrides::head_major(len, value_dim),
        };
        let mut out = vec![f32::NAN; len * self.heads * value_dim];
        kernel.dense_prefill_into(&self.queries, runs, self.shape, block, &mut out, scratch);
        out
    }

    fn check_prefill(&self, out: &[f32], tolerance: f64, what: &str) {
        let DenseShape {
            dim,
            value_dim,
            scale,
        } = self.shape;
        let len = self.queries.len() / (dim * self.heads);
        for (row, query) in self.queries.chunks_exact(dim).enumerate() {
            let (position, head) = (row / self.heads, row % self.heads);
            let seen = self.run(0, self.len() - len + position + 1);
            let (keys, values) = (seen.keys.widened(), seen.values.widened());
            let expected = attention_naive(query, &keys, &values, value_dim, scale);
            let found = &out[(head * len + position) * value_dim..][..value_dim];
            assert_close(found, &expected, tolerance * max_abs(&self.values), what);
        }
    }
}

const DIMS: [usize; 8] = [1, 3, 16, 64, 80, 96, 128, 256];
const LENGTHS: [usize; 9] = [1, 2, 15, 16, 17, 63, 64, 65, 200];

#[test]
fn decode_agrees_with_the_oracle() {
    let mut scratch = DenseScratch::new();
    for (i, &dim) in DIMS.iter().enumerate() {
        for heads in [1, 3, 4, 8] {
            for len in LENGTHS {
                let case = Case::new(
                    (dim, DIMS[(i * 3 + heads) % 8]),
                    heads,
                    1,
                    len,
                    (i * 1000 + len) as u64,
                );
                for cuts in [vec![], vec![len / 3, len / 2 + 1]] {
                    let expected = case.decode(Kernel::Scalar, &cuts, &mut scratch);
                    case.check_decode(
                        &expected,
                        1e-5,
                        &format!("dim {dim}, {heads} heads, {len} keys"),
                    );
                    for kernel in Kernel::available() {
                        assert_eq!(
                            case.decode(kernel, &cuts, &mut scratch),
                            expected,
                            "{}",
                            kernel.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn decode_uses_the_canonical_score() {
    for dim in DIMS {
        let case = Case::new((dim, 3), 5, 1, 33, 7);
        for kernel in Kernel::available() {
            let mut scores = vec![0.0; case.len()];
            for (g, query) in case.queries.chunks_exact(dim).enumerate() {
                kernel.scores_into(query, &case.keys, &mut scores);
                let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let state = &case.decode(kernel, &[], &mut DenseScratch::new())[g];
                assert_eq!(state.max, best * case.shape.scale);
            }
        }
    }
}

#[test]
fn decoded_ranges_merge() {
    let case = Case::new((64, 64), 3, 1, 3000, 11);
    let mut scratch = DenseScratch::new();
    for kernel in Kernel::available() {
        let mut merged = case.states();
        for run in case.runs(&[1500, 1501, 2999]) {
            let mut states = case.states();
            kernel.dense_decode_into(&case.queries, run, case.shape, &mut states, &mut scratch);
            merged
                .iter_mut()
                .zip(&states)
                .for_each(|(merged, state)| merged.merge(state));
        }
        case.check_decode(&merged, 1e-5, kernel.name());
    }
}

#[test]
fn prefill_agrees_with_the_oracle() {
    let mut scratch = DenseScratch::new();
    for (i, &dim) in DIMS.iter().enumerate() {
        for heads in [1, 3, 4, 8] {
            for positions in LENGTHS {
                // The scalar kernel's fused steps are library calls on a machine without them in its baseline: it leaves
                // out the largest shapes, and the others are compared with one another there.
                let large = positions * heads * dim > 200 * 3 * 64;
                let kernels = || {
                    Kernel::available().skip(usize::from(large && Kernel::best() != Kernel::Scalar))
                };
                let before = [0, 1, 70][(i + heads + positions) % 3];
                let dims = (dim, DIMS[(i * 5 + heads) % 8]);
                let case = Case::new(
                    dims,
                    heads,
                    positions,
                    before + positions,
                    (i * 999 + positions) as u64,
                );
                for cuts in [vec![], vec![positions / 3, before + positions / 2]] {
                    if cuts.is_sorted() {
                        let expected = case.prefill(Kernel::best(), &cuts, &mut scratch);
                        let what =
                            format!("dims {dims:?}, {heads} heads, {positions} after {before}");
                        case.check_prefill(&expected, 1e-5, &what);
                        for kernel in kernels() {
                            assert_eq!(
                                case.prefill(kernel, &cuts, &mut scratch),
                                expected,
                                "{}, {what}",
                                kernel.name()
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn prefill_in_parts_gives_the_whole() {
    let case = Case::new((64, 64), 3, 100, 100, 5);
    let mut scratch = DenseScratch::new();
    let rows = RowStrides::position_major(3, 64);
    for kernel in Kernel::available() {
        let whole = case.prefill(kernel, &[], &mut scratch);
        for (start, len) in [(0, 33), (33, 1), (34, 66)] {
            let block = QueryBlock {
                start,
                len,
                heads: 3,
                queries: rows,
                out: rows,
            };
            let mut out = vec![0.0; len * 3 * 64];
            let queries = &case.queries[start * 3 * 64..];
            kernel.dense_prefill_into(
                queries,
                &case.runs(&[]),
                case.shape,
                block,
                &mut out,
                &mut scratch,
            );
            for (row, found) in out.chunks_exact(64).enumerate() {
                let (position, head) = (start + row / 3, row % 3);
                let expected: Vec<f64> = whole[(head * 100 + position) * 64..][..64]
                    .iter()
                    .map(|&x| f64::from(x))
                    .collect();
                assert_close(found, &expected, 1e-6, kernel.name());
            }
        }
    }
}

/// `case` with its rows rounded to `precision`, and the same rows as they are stored.
fn stored(mut case: Case, precision: Precision) -> (Case, [StoredVec; 2]) {
    for values in [&mut case.keys, &mut case.values] {
        values.iter_mut().for_each(|x| *x = precision.round(*x));
    }
    let rows = [&case.keys, &case.values].map(|values| StoredVec::rounded(precision, values));
    (case, rows)
}

/// Runs of stored rows between the given cuts.
fn stored_runs<'a>(case: &Case, rows: &'a [StoredVec; 2], cuts: &[usize]) -> Vec<KeyRun<'a>> {
    let DenseShape { dim, value_dim, .. } = case.shape;
    let run = |(from, to)| {
        let keys = rows[0].as_slice().slice(from * dim..to * dim);
        KeyRun::new(
            keys,
            rows[1].as_slice().slice(from * value_dim..to * value_dim),
        )
    };
    case.bounds(cuts).into_iter().map(run).collect()
}

#[test]
fn stored_rows_give_the_bits_of_their_widened_rows() {
    let mut scratch = DenseScratch::new();
    for (i, &dim) in DIMS.iter().chain(&[24, 20, 7]).enumerate() {
        for (heads, len) in [(1, 1), (3, 15), (4, 33), (8, 200), (3, 1100)] {
            for precision in [Precision::F16, Precision::Bf16] {
                let dims = (dim, DIMS[(i * 3 + heads) % 8]);
                let (case, rows) = stored(Case::new(dims, heads, 1, len, i as u64), precision);
                let cuts = [len / 3, len / 2 + 1];
                let expected = case.decode(Kernel::best(), &cuts, &mut scratch);
                case.check_decode(&expected, 1e-5, precision.name());
                let runs = stored_runs(&case, &rows, &cuts);
                for kernel in Kernel::available() {
                    let found = case.decode_runs(kernel, &runs, &mut scratch);
                    assert_eq!(found, expected, "{} {precision} {dims:?}", kernel.name());
                }
            }
        }
        for (heads, positions, before) in [(1, 1, 0), (3, 17, 70), (4, 65, 1), (3, 1, 130)] {
            for precision in [Precision::F16, Precision::Bf16] {
                let dims = (dim, DIMS[(i * 5 + heads) % 8]);
                let len = before + positions;
                let case = Case::new(dims, heads, positions, len, i as u64);
                let (case, rows) = stored(case, precision);
                let cuts = [len / 3, len / 2 + 1];
                let expected = case.prefill(Kernel::best(), &cuts, &mut scratch);
                case.check_prefill(&expected, 1e-5, precision.name());
                let mut runs = stored_runs(&case, &rows, &cuts);
                for kernel in Kernel::available() {
                    let found = case.prefill_runs(kernel, &runs, &mut scratch);
                    assert_eq!(found, expected, "{} {precision} {dims:?}", kernel.name());
                }
                // A run may be stored in another precision than the next.
                runs[0] = case.runs(&cuts)[0];
                let found = case.prefill_runs(Kernel::best(), &runs, &mut scratch);
                assert_eq!(found, expected);
            }
        }
    }
}

#[test]
#[should_panic(expected = "keys and values are stored alike")]
fn a_run_of_two_precisions_panics() {
    let (case, rows) = stored(Case::new((4, 2), 1, 1, 5, 1), Precision::F16);
    let run = KeyRun::new(&rows[0], &case.values);
    case.decode_runs(Kernel::best(), &[run], &mut DenseScratch::new());
}

#[test]
fn long_sums_of_equal_values_do_not_drift() {
    // One running sum of 30000 equal terms is off by more than 1e-4.
    let (dim, len) = (1, 30_000);
    let mut case = Case::new((dim, 1), 1, 1, len, 3);
    case.shape.scale = 0.0;
    case.values.fill(0.1);
    let mut scratch = DenseScratch::new();
    for kernel in Kernel::available() {
        case.check_decode(&case.decode(kernel, &[], &mut scratch), 1e-6, kernel.name());
        case.check_prefill(
            &case.prefill(kernel, &[], &mut scratch),
            1e-6,
            kernel.name(),
        );
        // And against a denominator whose rounding differs: half the weight on the first key.
        let (mut peaked, peak) = (Case::new((dim, 1), 1, 1, len, 3), (len as f32).ln());
        peaked.shape.scale = 1.0;
        peaked.queries.fill(1.0);
        peaked.keys.fill(0.0);
        peaked.keys[0] = peak;
        peaked.values.fill(0.1);
        peaked.check_decode(
            &peaked.decode(kernel, &[], &mut scratch),
            5e-6,
            kernel.name(),
        );
        peaked.check_prefill(
            &peaked.prefill(kernel, &[], &mut scratch),
            5e-6,
            kernel.name(),
        );
    }
}

#[test]
fn scores_of_any_size_and_any_scale_stay_finite() {
    let mut scratch = DenseScratch::new();
    for scale in [0.0, f32::MIN_POSITIVE, 0.125, 1.0, 1e9, f32::MAX] {
        for magnitude in [0.0f32, 1e-30, 1.0, 1e10, 1.1e18] {
            let mut case = Case::new((64, 16), 3, 40, 100, 21);
            case.shape.scale = scale;
            // Norms up to 8 * 1.1e18 < 2^63; equal and opposite rows reach scores of about +-2^125.
            case.queries
                .iter_mut()
                .chain(&mut case.keys)
                .for_each(|x| *x = magnitude * x.signum());
            for kernel in Kernel::available() {
                let out = case.prefill(kernel, &[50], &mut scratch);
                assert!(
                    out.iter().all(|x| x.abs() <= 1.000_001),
                    "{} scale {scale} x {magnitude}",
                    kernel.name()
                );
                let last = Case {
                    queries: case.queries[..3 * 64].to_vec(),
                    heads: 3,
                    ..Case::new((64, 16), 3, 1, 100, 21)
                };
                let last = Case {
                    keys: case.keys.clone(),
                    shape: case.shape,
                    ..last
                };
                for state in last.decode(kernel, &[50], &mut scratch) {
                    let mut out = [0.0; 16];
                    state.finish_into(&mut out);
                    assert!(
                        out.iter().all(|x| x.abs() <= 1.000_001),
                        "{} scale {scale} x {magnitude}",
                        kernel.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_huge_scale_selects_the_best_key() {
    let mut case = Case::new((8, 4), 1, 1, 60, 2);
    case.shape.scale = f32::MAX;
    case.keys.iter_mut().for_each(|x| *x *= 1e18);
    let mut scratch = DenseScratch::new();
    for kernel in Kernel::available() {
        let mut scores = vec![0.0; 60];
        kernel.scores_into(&case.queries, &case.keys, &mut scores);
        let best = (0..60)
            .max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
            .unwrap();
        let value = &case.values[best * 4..][..4];
        let mut out = [0.0; 4];
        case.decode(kernel, &[], &mut scratch)[0].finish_into(&mut out);
        assert_eq!(out, value);
        assert_eq!(case.prefill(kernel, &[], &mut scratch), value);
    }
}

#[test]
fn no_keys_and_no_queries_change_nothing() {
    let case = Case::new((4, 2), 2, 1, 5, 1);
    let mut scratch = DenseScratch::new();
    for kernel in Kernel::available() {
        let mut states = case.states();
        kernel.dense_decode_into(
            &case.queries,
            case.run(2, 2),
            case.shape,
            &mut states,
            &mut scratch,
        );
        assert!(states.iter().all(SoftmaxState::is_empty));
        let rows = RowStrides::position_major(2, 4);
        let block = QueryBlock {
            start: 3,
            len: 0,
            heads: 2,
            queries: rows,
            out: rows,
        };
        kernel.dense_prefill_into(
            &[],
            &case.runs(&[]),
            case.shape,
            block,
            &mut [],
            &mut scratch,
        );
    }
}

#[test]
#[should_panic(expected = "the last query is at position 6")]
fn a_query_past_the_keys_panics() {
    let case = Case::new((4, 2), 1, 3, 5, 1);
    let (queries, out) = (
        RowStrides::position_major(1, 4),
        RowStrides::position_major(1, 2),
    );
    let block = QueryBlock {
        start: 4,
        len: 3,
        heads: 1,
        queries,
        out,
    };
    let (runs, mut rows) = (case.runs(&[]), [0.0; 6]);
    Kernel::best().dense_prefill_into(
        &case.queries,
        &runs,
        case.shape,
        block,
        &mut rows,
        &mut DenseScratch::new(),
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_decode_agrees(
        dim in 1usize..140, value_dim in 1usize..140, heads in 1usize..10, len in 1usize..2300,
        cut in 0usize..2300, seed in any::<u32>(),
    ) {
        let case = Case::new((dim, value_dim), heads, 1, len, u64::from(seed));
        let mut scratch = DenseScratch::new();
        let cuts = [cut.min(len)];
        let expected = case.decode(Kernel::best(), &cuts, &mut scratch);
        case.check_decode(&expected, 1e-5, "best");
        for kernel in Kernel::available() {
            if kernel != Kernel::Scalar || dim * heads * len < 100_000 {
                prop_assert_eq!(&case.decode(kernel, &cuts, &mut scratch), &expected);
            }
        }
    }

    #[test]
    fn any_prefill_agrees(
        dim in 1usize..100, value_dim in 1usize..100, heads in 1usize..7, positions in 1usize..120,
        before in 0usize..150, cut in 0usize..270, seed in any::<u32>(),
    ) {
        let case = Case::new((dim, value_dim), heads, positions, before + positions, u64::from(seed));
        let mut scratch = DenseScratch::new();
        let cuts = [cut.min(before + positions)];
        let expected = case.prefill(Kernel::best(), &cuts, &mut scratch);
        case.check_prefill(&expected, 1e-5, "best");
        for kernel in Kernel::available() {
            if kernel != Kernel::Scalar || dim * heads * positions < 4_000 {
                prop_assert_eq!(&case.prefill(kernel, &cuts, &mut scratch), &expected);
            }
        }
    }
}
