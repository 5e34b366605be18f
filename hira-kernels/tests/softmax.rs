//! Softmax weights, weighted sums and merged states against `f64`.

#[allow(dead_code, reason = "shared by several test files")]
mod common;

use common::{LENGTHS, values};
use hira_kernels::{Kernel, SoftmaxState};

#[test]
fn weights_are_exponentials_and_their_sum() {
    for (seed, count) in LENGTHS.into_iter().enumerate() {
        let scores = values(seed as u64, count, 40.0);
        let max = scores.iter().copied().fold(-40.0, f32::max);
        for kernel in Kernel::available() {
            let mut weights = vec![f32::NAN; count];
            let sum = kernel.exp_weights_into(&scores, 0.25, max, &mut weights);
            for (&score, &weight) in scores.iter().zip(&weights) {
                let x = 0.25 * (f64::from(score) - f64::from(max));
                // The exponential's own error, and two roundings of its argument.
                let bound = x.exp() * (2.4e-7 + x.abs() * 1.2e-7);
                assert!(
                    (f64::from(weight) - x.exp()).abs() <= bound,
                    "{x}: {weight}"
                );
                assert!(score != max || weight == 1.0);
            }
            let exact: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            assert!((f64::from(sum) - exact).abs() <= exact * 1e-5);
        }
    }
}

#[test]
fn far_below_the_maximum_weights_are_zero() {
    for kernel in Kernel::available() {
        let scores = [f32::NEG_INFINITY, -1e30, -88.0, 0.0];
        let mut weights = [f32::NAN; 4];
        assert_eq!(
            kernel.exp_weights_into(&scores, 1.0, 0.0, &mut weights),
            1.0
        );
        assert_eq!(weights, [0.0, 0.0, 0.0, 1.0]);
    }
}

#[test]
fn weighted_sums_add_to_what_was_there() {
    for dim in [1, 3, 16, 64, 80, 96, 128, 200, 256] {
        let count = 50;
        let data = values(7, count * dim, 1.0);
        let weights = values(8, count, 1.0);
        let rows: Vec<u32> = (0..count as u32).map(|i| (i * 17) % count as u32).collect();
        let start = values(9, dim, 1.0);
        for kernel in Kernel::available() {
            let mut out = start.clone();
            kernel.weighted_sum_into(&weights, &data, &rows, &mut out);
            for d in 0..dim {
                let terms = rows.iter().zip(&weights).map(|(&row, &weight)| {
                    f64::from(weight) * f64::from(data[row as usize * dim + d])
                });
                let exact = f64::from(start[d]) + terms.sum::<f64>();
                assert!((f64::from(out[d]) - exact).abs() < 1e-5);
            }
            // In two calls: the same bits.
            let mut halves = start.clone();
            kernel.weighted_sum_into(&weights[..20], &data, &rows[..20], &mut halves);
            kernel.weighted_sum_into(&weights[20..], &data, &rows[20..], &mut halves);
            assert_eq!(halves, out);
        }
    }
}

#[test]
fn merged_states_are_attention_over_all_keys() {
    let (count, dim) = (90, 24);
    let logits = values(1, count, 30.0);
    let data = values(2, count * dim, 1.0);
    let state = |from: usize, to: usize| {
        let kernel = Kernel::best();
        let mut state = SoftmaxState::new(dim);
        state.max = logits[from..to]
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        let mut weights = vec![0.0; to - from];
        state.sum = kernel.exp_weights_into(&logits[from..to], 1.0, state.max, &mut weights);
        let rows: Vec<u32> = (from as u32..to as u32).collect();
        kernel.weighted_sum_into(&weights, &data, &rows, &mut state.acc);
        state
    };
    let exact_max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |i: usize| (f64::from(logits[i]) - f64::from(exact_max)).exp();
    let total: f64 = (0..count).map(weight).sum();
    for cuts in [[30, 60], [1, 89], [45, 46]] {
        let mut merged = SoftmaxState::new(dim);
        merged.merge(&SoftmaxState::new(dim));
        assert!(merged.is_empty());
        for (from, to) in [(cuts[1], count), (0, cuts[0]), (cuts[0], cuts[1])] {
            merged.merge(&state(from, to));
            merged.merge(&SoftmaxState::new(dim));
        }
        let mut out = vec![0.0; dim];
        merged.finish_into(&mut out);
        for d in 0..dim {
            let sum: f64 = (0..count)
                .map(|i| weight(i) * f64::from(data[i * dim + d]))
                .sum();
            assert!((f64::from(out[d]) - sum / total).abs() < 1e-5);
        }
        let exact = f64::from(exact_max) + total.ln();
        assert!((f64::from(merged.log_sum_exp()) - exact).abs() < 1e-5);
    }
}

#[test]
fn merging_commutes_and_an_empty_state_is_neutral() {
    let left = SoftmaxState {
        max: 2.5,
        sum: 3.25,
        acc: values(3, 9, 1.0),
    };
    let right = SoftmaxState {
        max: -1.0,
        sum: 17.0,
        acc: values(4, 9, 1.0),
    };
    let (mut a, mut b) = (left.clone(), right.clone());
    a.merge(&right);
    b.merge(&left);
    assert_eq!(a, b);
    let mut c = SoftmaxState::new(9);
    c.merge(&left);
    assert_eq!(c, left);
    c.reset(4);
    let mut out = [1.0; 4];
    c.finish_into(&mut out);
    assert_eq!((out, c.log_sum_exp()), ([0.0; 4], f32::NEG_INFINITY));
}
