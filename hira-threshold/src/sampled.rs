//! The sampled rules: a threshold from the scores `s_1..s_m` of `m` sampled keys.
//!
//! Sums are taken in f64 in the order of the sample, so the same sample in the same order gives the same bits. Scores are
//! finite and below `2^127` in magnitude: no sum and no square overflows in f64. Every result is a finite f32, and `+0.0`
//! where it is zero. An empty sample says nothing, and then [`EVERYTHING`] keeps every key, which is always safe.

use std::cell::RefCell;

use crate::kth_largest;
use crate::share::share;

/// A threshold that every finite score reaches.
const EVERYTHING: f32 = f32::MIN;

/// `mean + c * std`, with the standard deviation of the sample as a population.
pub(crate) fn adaptive(sample: &[f32], c: f32) -> f32 {
    if sample.is_empty() {
        return EVERYTHING;
    }
    let mean = mean(sample);
    let squares = sample
        .iter()
        .map(|&score| (f64::from(score) - mean).powi(2));
    let deviation = (squares.sum::<f64>() / sample.len() as f64).sqrt();
    finite(mean + f64::from(c) * deviation)
}

/// The largest score.
pub(crate) fn max(sample: &[f32]) -> f32 {
    let largest = sample.iter().copied().max_by(f32::total_cmp);
    largest.map_or(EVERYTHING, |largest| finite(f64::from(largest)))
}

/// The `ceil(k * m / visible)`-th largest score; everything if `k` keys or fewer are visible.
pub(crate) fn top_k(sample: &[f32], k: usize, visible: usize) -> f32 {
    if k >= visible {
        return EVERYTHING;
    }
    let rank = (k as u128 * sample.len() as u128).div_ceil(visible as u128);
    ranked(sample, rank as usize)
}

/// `mean + weight * (max - mean)`, within `mean..=max`.
pub(crate) fn mean_max(sample: &[f32], weight: f32) -> f32 {
    let largest = max(sample);
    // The difference may cancel: at the upper end the largest score itself is meant.
    if sample.is_empty() || weight == 1.0 {
        return largest;
    }
    let largest = f64::from(largest);
    // Rounding can take the mean of equal scores no further than this.
    let mean = mean(sample).min(largest);
    let between = mean + f64::from(weight) * (largest - mean);
    finite(between.min(largest))
}

/// The upper edge of the widest gap in the upper half: with `d_1 >= .. >= d_m`, the `d_i` of the largest
/// `d_i - d_(i + 1)` for `1 <= i <= m / 2`; of equal gaps the lowest, and `d_1` if there is no gap.
pub(crate) fn gap(sample: &[f32]) -> f32 {
    with_copy(sample, |scores| {
        scores.sort_unstable_by(|a, b| b.total_cmp(a));
        let Some(&first) = scores.first() else {
            return EVERYTHING;
        };
        let mut edge = first;
        let mut widest = 0.0;
        for pair in scores.windows(2).take(scores.len() / 2) {
            let width = f64::from(pair[0]) - f64::from(pair[1]);
            if width >= widest {
                (edge, widest) = (pair[0], width);
            }
        }
        finite(f64::from(edge))
    })
}

/// The `ceil(percent / 100 * m)`-th largest score; everything at 100 percent.
pub(crate) fn budget(sample: &[f32], percent: f32) -> f32 {
    if percent == 100.0 {
        return EVERYTHING;
    }
    ranked(sample, share(percent, sample.len()))
}

/// The `rank`-th largest score, with a rank within `1..=m`.
fn ranked(sample: &[f32], rank: usize) -> f32 {
    if sample.is_empty() {
        return EVERYTHING;
    }
    let rank = rank.clamp(1, sample.len());
    finite(f64::from(with_copy(sample, |scores| {
        kth_largest(scores, rank)
    })))
}

fn mean(sample: &[f32]) -> f64 {
    sample.iter().map(|&score| f64::from(score)).sum::<f64>() / sample.len() as f64
}

/// The nearest finite f32; adding `+0.0` leaves one zero.
fn finite(tau: f64) -> f32 {
    (tau as f32).clamp(f32::MIN, f32::MAX) + 0.0
}

/// Lends a copy of the sample that may be reordered. Each thread keeps the memory of its largest one, because a rule has
/// no place for it and a search must not allocate in steady state.
fn with_copy<R>(sample: &[f32], use_it: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static COPY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    COPY.with_borrow_mut(|copy| {
        copy.clear();
        copy.extend_from_slice(sample);
        use_it(copy)
    })
}
