//! Every kernel against the scalar one, bit for bit, at lengths around every vector width and on unaligned slices.

#[allow(dead_code, reason = "shared by several test files")]
mod common;

use common::{LENGTHS, Sketch, bits, mean, shifted, values};
use hira_kernels::{Candidates, Kernel, Precision, ScanQuery, StoredVec, TILE};

/// Numbers of keys or rows around the blocks of four rows, sixteen keys and 64 tiles.
const COUNTS: [usize; 12] = [0, 1, 3, 4, 5, 15, 16, 17, 33, 100, 1024, 1041];

fn others() -> impl Iterator<Item = Kernel> {
    Kernel::available().filter(|&kernel| kernel != Kernel::Scalar)
}

#[test]
fn scores_have_the_same_bits() {
    for (seed, &dim) in LENGTHS.iter().enumerate() {
        for shift in 0..3 {
            let query = shifted(&values(seed as u64, dim, 1.0), shift);
            let key = shifted(&values(seed as u64 + 99, dim, 1e3), 2 - shift);
            let (query, key) = (&query[shift..], &key[2 - shift..]);
            let expected = Kernel::Scalar.score(query, key);
            for kernel in others() {
                assert_eq!(
                    kernel.score(query, key).to_bits(),
                    expected.to_bits(),
                    "{} at {dim}",
                    kernel.name()
                );
            }
        }
    }
}

#[test]
fn signed_zeros_and_subnormal_products_have_the_same_bits() {
    for dim in [1, 16, 17, 40] {
        for (a, b) in [(-0.0, 0.0), (1e-30, -1e-30), (-1e-45, 1e-3), (0.0, -0.0)] {
            let (query, key) = (vec![a; dim], vec![b; dim]);
            let expected = Kernel::Scalar.score(&query, &key);
            for kernel in others() {
                assert_eq!(kernel.score(&query, &key).to_bits(), expected.to_bits());
            }
        }
    }
}

#[test]
fn box_sums_have_the_same_bits_and_reach_every_corner() {
    for (seed, &dim) in LENGTHS.iter().enumerate().filter(|&(_, &dim)| dim > 0) {
        for count in [0, 1, 2, 5, 17] {
            let query = values(seed as u64, dim, 1.0);
            let a = shifted(&values(seed as u64 + 5, count * dim, 10.0), 1);
            let b = shifted(&values(seed as u64 + 6, count * dim, 10.0), 1);
            let pairs = || a[1..].iter().zip(&b[1..]);
            let lo: Vec<f32> = pairs().map(|(a, b)| a.min(*b)).collect();
            let hi: Vec<f32> = pairs().map(|(a, b)| a.max(*b)).collect();
            let mut expected = vec![0.0; count];
            Kernel::Scalar.box_sums_into(&query, &lo, &hi, &mut expected);
            for (i, &sum) in expected.iter().enumerate() {
                let corner = |(q, (lo, hi)): (&f32, (&f32, &f32))| {
                    f64::from(*q) * f64::from(if *q > 0.0 { *hi } else { *lo })
                };
                let row = lo[i * dim..].iter().zip(&hi[i * dim..]);
                let exact: f64 = query.iter().zip(row).map(corner).sum();
                let slack = 1e-6 * dim as f64 * 10.0;
                assert!((f64::from(sum) - exact).abs() <= slack, "{sum} {exact}");
            }
            for kernel in others() {
                let mut sums = vec![f32::NAN; count];
                kernel.box_sums_into(&query, &lo, &hi, &mut sums);
                assert_eq!(bits(&sums), bits(&expected), "{} at {dim}", kernel.name());
            }
        }
    }
}

#[test]
fn columns_and_squares_of_rows_have_the_same_bits() {
    for (seed, &dim) in LENGTHS.iter().enumerate().filter(|&(_, &dim)| dim > 0) {
        let rows = values(seed as u64, 9 * dim, 3.0);
        let naive: Vec<f64> = (0..dim)
            .map(|column| {
                let column = rows.chunks_exact(dim).map(|row| f64::from(row[column]));
                column.fold(0.5, |sum, x| sum + x)
            })
            .collect();
        let square = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let squares: Vec<f64> = rows.chunks_exact(dim).map(square).collect();
        for kernel in Kernel::available() {
            let mut sums = vec![0.5; dim];
            kernel.add_columns(&rows, &mut sums);
            assert_eq!(sums, naive, "{} at {dim}", kernel.name());
            for limit in [0.0, 1e-3, squares[4] as f32 * 1.001, 1e30] {
                let below = kernel.rows_below(&rows, dim, limit, Precision::F32);
                let expected = squares.iter().position(|&s| s >= f64::from(limit));
                assert_eq!(below, expected.unwrap_or(9), "{} at {dim}", kernel.name());
            }
            for precision in Precision::ALL {
                let rounded: Vec<f32> = rows.iter().map(|&x| precision.round(x)).collect();
                for limit in [1e-3, squares[4] as f32 * 1.001] {
                    let expected = kernel.rows_below(&rounded, dim, limit, Precision::F32);
                    assert_eq!(kernel.rows_below(&rows, dim, limit, precision), expected);
                }
            }
            let mut large = rows.clone();
            large[4 * dim] = 65_520.0;
            for (precision, expected) in Precision::ALL.into_iter().zip([9, 4, 9]) {
                let below = kernel.rows_below(&large, dim, f32::INFINITY, precision);
                assert_eq!(below, expected, "{precision}");
            }
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut rows = rows.clone();
                rows[7 * dim + dim / 2] = bad;
                for precision in Precision::ALL {
                    assert_eq!(kernel.rows_below(&rows, dim, f32::INFINITY, precision), 7);
                }
            }
        }
    }
}

#[test]
fn runs_and_gathered_rows_have_the_bits_of_single_scores() {
    for dim in [1, 3, 16, 64, 80, 96, 128] {
        for count in COUNTS {
            let query = values(1, dim, 1.0);
            let keys = shifted(&values(2, count * dim, 1.0), 1);
            let keys = &keys[1..];
            let rows: Vec<u32> = (0..count as u32)
                .map(|i| (i * 7 + 3) % count.max(1) as u32)
                .collect();
            let score = |row: usize| Kernel::Scalar.score(&query, &keys[row * dim..][..dim]);
            for kernel in Kernel::available() {
                let mut out = vec![f32::NAN; count];
                kernel.scores_into(&query, keys, &mut out);
                assert_eq!(bits(&out), bits(&(0..count).map(score).collect::<Vec<_>>()));
                kernel.scores_at_into(&query, keys, &rows, &mut out);
                let expected: Vec<f32> = rows.iter().map(|&row| score(row as usize)).collect();
                assert_eq!(bits(&out), bits(&expected));
            }
        }
    }
}

/// Ordinary rows, subnormal ones of each type, its largest values and zeros of both signs.
fn stored(precision: Precision, count: usize, dim: usize) -> StoredVec {
    let mut rows = values(5, count * dim, 1.0);
    for (i, x) in rows.iter_mut().enumerate() {
        match i % 23 {
            3 => *x *= 1e-7,
            5 => *x = 6e-8 * x.signum(),
            7 => *x *= 1e-40,
            11 => *x = 65_504.0 * x.signum(),
            13 => *x = 0.0 * x.signum(),
            _ => {}
        }
    }
    StoredVec::rounded(precision, &rows)
}

#[test]
fn stored_rows_have_the_bits_of_their_widened_rows() {
    for precision in Precision::ALL {
        for dim in LENGTHS.into_iter().filter(|&dim| dim > 0) {
            for count in [0, 1, 3, 4, 5, 17] {
                // One value past the start of the allocation, which no vector is aligned to.
                let data = stored(precision, 1, count * dim + 1);
                let keys = data.as_slice().slice(1..count * dim + 1);
                let wide = keys.widened();
                let query = values(1, dim, 1.0);
                let rows: Vec<u32> = (0..count as u32)
                    .map(|i| (i * 7 + 3) % count.max(1) as u32)
                    .collect();
                let (mut expected, mut gathered) = (vec![f32::NAN; count], vec![f32::NAN; count]);
                Kernel::Scalar.scores_into(&query, &wide, &mut expected);
                Kernel::Scalar.scores_at_into(&query, &wide, &rows, &mut gathered);
                let weights = values(2, count, 1.0);
                let start = values(3, dim, 1.0);
                let mut sum = start.clone();
                Kernel::Scalar.weighted_sum_into(&weights, &wide, &rows, &mut sum);
                for kernel in Kernel::available() {
                    let what = format!("{} {precision} {count} rows of {dim}", kernel.name());
                    let mut out = vec![f32::NAN; count];
                    kernel.scores_into(&query, keys, &mut out);
                    assert_eq!(bits(&out), bits(&expected), "{what}");
                    kernel.scores_at_into(&query, keys, &rows, &mut out);
                    assert_eq!(bits(&out), bits(&gathered), "{what}");
                    for (row, score) in keys.rows(dim).zip(&expected) {
                        assert_eq!(kernel.score(&query, row).to_bits(), score.to_bits());
                    }
                    let mut out = start.clone();
                    kernel.weighted_sum_into(&weights, keys, &rows, &mut out);
                    assert_eq!(bits(&out), bits(&sum), "{what}");
                }
            }
        }
    }
}

#[test]
fn sketches_are_equal() {
    for dim in LENGTHS
        .into_iter()
        .filter(|&dim| dim > 0)
        .chain([1024, 1025, 2500])
    {
        let count = if dim > 300 { 18 } else { 37 };
        let mut keys = values(dim as u64, count * dim, 1.0);
        keys[..dim].fill(0.0);
        keys[dim..2 * dim]
            .iter_mut()
            .for_each(|value| *value *= 1e-41);
        keys[2 * dim..3 * dim]
            .iter_mut()
            .for_each(|value| *value *= 1e17);
        for centre in [vec![0.0; dim], mean(&keys, dim), keys[..dim].to_vec()] {
            let expected = Sketch::new(Kernel::Scalar, &keys, &centre);
            for kernel in others() {
                let found = Sketch::new(kernel, &keys, &centre);
                assert!(found == expected, "{} at {dim}", kernel.name());
            }
        }
    }
}

#[test]
fn slots_filled_one_by_one_make_the_same_sketch() {
    let (dim, count) = (20, 50);
    let keys = values(5, count * dim, 1.0);
    let centre = mean(&keys, dim);
    for kernel in Kernel::available() {
        let whole = Sketch::new(kernel, &keys, &centre);
        let mut parts = whole.clone();
        parts.lines.fill(hira_kernels::Line([7; 64]));
        parts.norms.fill(f32::NAN);
        for (slot, row) in keys.chunks_exact(dim).enumerate() {
            kernel.quantise_keys(row, &centre, slot, &mut parts.lines, &mut parts.norms);
        }
        assert!(parts == whole);
    }
}

#[test]
fn intervals_have_the_same_bits() {
    for dim in [1, 3, 4, 5, 16, 63, 64, 80, 128, 257, 1023, 1024, 1028, 2500] {
        for count in [1, 15, 16, 17, 40] {
            let keys = values(11, count * dim, 2.0);
            for queries in [1, 2, 3, 4, 5, 8, 9] {
                let rows = values(12, queries * dim, 3.0);
                let sketch = Sketch::new(Kernel::Scalar, &keys, &mean(&keys, dim));
                let expected = sketch.intervals(Kernel::Scalar, &rows);
                for kernel in others() {
                    let found = sketch.intervals(kernel, &rows);
                    assert_eq!(
                        bits(&found.0),
                        bits(&expected.0),
                        "{} at {dim}",
                        kernel.name()
                    );
                    assert_eq!(
                        bits(&found.1),
                        bits(&expected.1),
                        "{} at {dim}",
                        kernel.name()
                    );
                }
            }
        }
    }
}

#[test]
fn scans_find_the_same_candidates_and_tails() {
    for dim in [3, 64, 80, 1100] {
        for count in COUNTS
            .into_iter()
            .filter(|&count| count > 0 && count * dim < 200_000)
        {
            let keys = values(21, count * dim, 1.0);
            let sketch = Sketch::new(Kernel::Scalar, &keys, &mean(&keys, dim));
            for queries in [1, 2, 3, 4, 7] {
                let rows = values(22, queries * dim, 4.0);
                let thresholds: Vec<ScanQuery> = (0..queries)
                    .map(|g| ScanQuery {
                        tau: [0.5, f32::NEG_INFINITY, 2.0, f32::INFINITY, -1.0][g % 5],
                        tail_scale: [0.3, 2.0, 0.0, 1.0, 1e30, 0.0, 0.125][g % 7],
                        block_keys: 0,
                    })
                    .collect();
                let scan = |kernel: Kernel| {
                    let (group, offsets) = sketch.queries(kernel, &rows);
                    let mut out = vec![Candidates::default(); queries];
                    // Twice, from a later tile too: candidates are appended.
                    for from in [0, sketch.tiles() / 3] {
                        let tiles = from..sketch.tiles();
                        let base = 5;
                        kernel.scan_into(
                            sketch.view(),
                            tiles,
                            base,
                            &group,
                            &offsets,
                            &thresholds,
                            &mut out,
                        );
                    }
                    out
                };
                let expected = scan(Kernel::Scalar);
                for kernel in others() {
                    assert_eq!(
                        scan(kernel),
                        expected,
                        "{} at {dim}, {count}",
                        kernel.name()
                    );
                }
            }
        }
    }
}

#[test]
fn candidates_are_the_slots_whose_upper_bound_reaches_tau() {
    let (dim, count) = (24, 1500);
    let keys = values(31, count * dim, 1.0);
    for kernel in Kernel::available() {
        let sketch = Sketch::new(kernel, &keys, &mean(&keys, dim));
        let query = values(32, dim, 1.0);
        let (lower, upper) = sketch.intervals(kernel, &query);
        // A bound of a key: ties are kept.
        for tau in [f32::NEG_INFINITY, 0.0, upper[77], 1.0, f32::INFINITY] {
            let (group, offsets) = sketch.queries(kernel, &query);
            let mut out = [Candidates::default()];
            let threshold = [ScanQuery {
                tau,
                tail_scale: 0.5,
                block_keys: 0,
            }];
            kernel.scan_into(
                sketch.view(),
                0..sketch.tiles(),
                100,
                &group,
                &offsets,
                &threshold,
                &mut out,
            );
            let kept: Vec<usize> = (0..count).filter(|&i| upper[i] >= tau).collect();
            assert_eq!(
                out[0].slots,
                kept.iter().map(|&i| 100 + i as u32).collect::<Vec<_>>()
            );
            assert_eq!(
                out[0].upper,
                kept.iter().map(|&i| upper[i]).collect::<Vec<_>>()
            );
            assert_eq!(
                out[0].lower,
                kept.iter().map(|&i| lower[i]).collect::<Vec<_>>()
            );
            let weight = |&i: &usize| (0.5 * (f64::from(upper[i]) - f64::from(tau))).exp();
            let tail: f64 = (0..count)
                .filter(|&i| upper[i] < tau)
                .map(|i| weight(&i))
                .sum();
            assert!(out[0].tail >= tail && out[0].tail <= tail * 1.000_22 + 1e-30);
        }
    }
}

#[test]
fn softmax_weights_and_sums_have_the_same_bits() {
    for (seed, count) in LENGTHS.into_iter().enumerate() {
        let mut scores = shifted(&values(seed as u64, count, 300.0), 1);
        if count > 8 {
            scores[4] = f32::NEG_INFINITY;
        }
        let scores = &scores[1..];
        for (scale, max) in [(0.125, 300.0), (1.0, 300.0), (0.3, -100.0), (0.0, 0.0)] {
            let mut expected = vec![f32::NAN; count];
            let sum = Kernel::Scalar.exp_weights_into(scores, scale, max, &mut expected);
            for kernel in others() {
                let mut found = vec![f32::NAN; count + 1];
                let other = kernel.exp_weights_into(scores, scale, max, &mut found[1..]);
                if scale > 0.0 {
                    assert_eq!(bits(&found[1..]), bits(&expected), "{}", kernel.name());
                    assert_eq!(other.to_bits(), sum.to_bits(), "{}", kernel.name());
                }
            }
        }
    }
}

#[test]
fn weighted_sums_have_the_same_bits() {
    for dim in LENGTHS.into_iter().filter(|&dim| dim > 0) {
        for count in [0, 1, 2, 13, 40] {
            let data = shifted(&values(41, (count + 1) * dim, 1.0), 3);
            let weights = values(42, count, 1.0);
            let rows: Vec<u32> = (0..count as u32)
                .map(|i| (i * 5 + 1) % count as u32)
                .collect();
            let start = values(43, dim, 1.0);
            let mut expected = start.clone();
            Kernel::Scalar.weighted_sum_into(&weights, &data[3..], &rows, &mut expected);
            for kernel in others() {
                let mut found = start.clone();
                kernel.weighted_sum_into(&weights, &data[3..], &rows, &mut found);
                assert_eq!(bits(&found), bits(&expected), "{} at {dim}", kernel.name());
            }
        }
    }
}

#[test]
fn a_scan_that_starts_past_the_keys_finds_nothing() {
    let dim = 8;
    let keys = values(51, 16 * dim, 1.0);
    for kernel in Kernel::available() {
        let mut sketch = Sketch::new(kernel, &keys, &vec![0.0; dim]);
        sketch.len = 3;
        let (lower, upper) = {
            let (group, offsets) = sketch.queries(kernel, &keys[..dim]);
            let (mut lower, mut upper) = ([0.0; TILE], [0.0; TILE]);
            kernel.intervals_into(
                sketch.view(),
                0..1,
                &group,
                &offsets,
                &mut lower,
                &mut upper,
            );
            (lower, upper)
        };
        assert!(
            lower[3..]
                .iter()
                .chain(&upper[3..])
                .all(|&bound| bound == f32::NEG_INFINITY)
        );
        assert!(lower[..3].iter().all(|bound| bound.is_finite()));
        sketch.len = 0;
        let (group, offsets) = sketch.queries(kernel, &keys[..dim]);
        let mut out = [Candidates::default()];
        let threshold = [ScanQuery {
            tau: f32::NEG_INFINITY,
            tail_scale: 1.0,
            block_keys: 0,
        }];
        kernel.scan_into(
            sketch.view(),
            0..1,
            0,
            &group,
            &offsets,
            &threshold,
            &mut out,
        );
        assert_eq!(out[0], Candidates::default());
    }
}

#[test]
fn tail_weights_bound_the_sum_and_have_the_same_bits() {
    for count in COUNTS.into_iter().chain([1025, 2100]) {
        let mut bounds = values(61, count + 1, 40.0);
        if count > 20 {
            bounds[3] = f32::INFINITY;
            bounds[7] = f32::NEG_INFINITY;
            bounds[9] = 5.0;
            bounds[11] = f32::MIN;
        }
        let bounds = &bounds[1..];
        for (tau, scale) in [
            (5.0, 0.125),
            (40.0, 3.0),
            (-1.0, 1e-18),
            (0.0, 0.0),
            (-50.0, 1.0),
            (f32::MAX, 1e-30),
        ] {
            let below = bounds.iter().filter(|&&bound| bound < tau);
            let weights = below
                .clone()
                .map(|&bound| (f64::from(scale) * (f64::from(bound) - f64::from(tau))).exp());
            let exact: f64 = weights.filter(|weight| !weight.is_nan()).sum();
            let expected = Kernel::Scalar.tail_weight(bounds, tau, scale);
            assert!(
                expected >= exact,
                "{count} {tau} {scale}: {expected} {exact}"
            );
            assert!(expected <= exact * 1.000_22 + below.count() as f64 * 5e-38);
            for kernel in others() {
                let found = kernel.tail_weight(bounds, tau, scale);
                assert_eq!(found.to_bits(), expected.to_bits(), "{}", kernel.name());
            }
        }
    }
}

#[test]
fn the_kth_largest_is_that_of_a_sort() {
    for (seed, &count) in COUNTS.iter().enumerate() {
        let plain = values(seed as u64, count, 1e3);
        let tied: Vec<f32> = plain.iter().map(|value| (value / 400.0).round()).collect();
        let near: Vec<f32> = plain.iter().map(|value| 1e30 + value).collect();
        let mut extreme = plain.clone();
        for (i, value) in extreme.iter_mut().enumerate() {
            *value = match i % 7 {
                0 => f32::INFINITY,
                1 => f32::NEG_INFINITY,
                2 => -0.0,
                3 => 0.0,
                4 => f32::from_bits(1 + i as u32),
                _ => *value,
            };
        }
        for values in [plain, tied, near, extreme] {
            let mut sorted = values.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for k in (0..=count + 1).step_by(1 + count / 40) {
                let expected = match k {
                    0 => f32::INFINITY,
                    k if k > count => f32::NEG_INFINITY,
                    k => sorted[k - 1],
                };
                for kernel in Kernel::available() {
                    let found = kernel.kth_largest(&values, k);
                    assert_eq!(found, expected, "{} {k} of {count}", kernel.name());
                }
            }
        }
    }
}
