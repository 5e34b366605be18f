//! Balanced halves: a k-d tree, or its sibling along principal directions.

use serde::{Deserialize, Serialize};

use super::{BuildInput, Builder, Hierarchy};
use crate::{IndexError, rows};

/// Keys that the principal direction is found from.
const SAMPLE: usize = 128;
/// Steps of the power iteration. More did not make clusters tighter: any direction of large variance divides well.
const POWER_STEPS: usize = 4;

/// Halves the keys at a median, again and again: clusters of equal size, the same at every run, without a seed.
///
/// # References
///
/// J. Bentley, "Multidimensional binary search trees used for associative searching", CACM 18(9), 1975. The principal direction:
/// R. Sproull, "Refinements to nearest-neighbor searching in k-dimensional trees", Algorithmica 6, 1991, section 4.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KdTreeBuilder {
    /// Along what keys are halved. Default: the axis of largest variance.
    pub axis: KdAxis,
}

/// Along what a [`KdTreeBuilder`] halves keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KdAxis {
    /// The coordinate of largest variance.
    #[default]
    MaxVariance,
    /// The direction of largest variance, found by a few power iterations on at most 128 of the keys.
    Principal,
}

impl Builder for KdTreeBuilder {
    /// # Complexity
    ///
    /// O(keys * dim * log(branching_factor)) a level.
    fn build(&self, input: &BuildInput<'_>) -> Result<Hierarchy, IndexError> {
        let mut halving = Halving {
            axis: self.axis,
            input: *input,
            projections: vec![0.0; input.len()],
            scores: Vec::new(),
        };
        Hierarchy::divide(input, |rows, clusters| {
            let mut ends = Vec::with_capacity(clusters);
            halving.halve(rows, clusters, 0, &mut ends);
            ends
        })
    }
}

struct Halving<'a> {
    axis: KdAxis,
    input: BuildInput<'a>,
    /// By position, of the rows that are being halved.
    projections: Vec<f32>,
    /// Of the rows that are being projected.
    scores: Vec<f32>,
}

impl Halving<'_> {
    /// Divides `rows`, which start at slot `start`, into `clusters` runs of nearly equal length and pushes their ends.
    fn halve(&mut self, rows: &mut [u32], clusters: usize, start: usize, ends: &mut Vec<usize>) {
        if clusters <= 1 {
            ends.push(start + rows.len());
            return;
        }
        let left = clusters / 2;
        // At least `left` and at most `len - (clusters - left)` rows, because there are at least as many rows as clusters.
        let middle = rows.len() * left / clusters;
        self.project(rows);
        let projections = &self.projections;
        rows.select_nth_unstable_by(middle, |&a, &b| {
            let (at, bt) = (projections[a as usize], projections[b as usize]);
            at.total_cmp(&bt).then(a.cmp(&b))
        });
        let (low, high) = rows.split_at_mut(middle);
        // What follows must not depend on how the selection left its sides.
        low.sort_unstable();
        high.sort_unstable();
        self.halve(low, left, start, ends);
        self.halve(high, clusters - left, start + middle, ends);
    }

    /// Writes the coordinate of each row along which they are to be halved.
    fn project(&mut self, rows: &[u32]) {
        let input = self.input;
        let mean = rows::mean(rows.iter().map(|&row| input.key(row)), input.dim);
        let axis = largest_variance(rows.iter().map(|&row| input.key(row)), &mean);
        if self.axis == KdAxis::Principal {
            let step = rows.len().div_ceil(SAMPLE);
            let sample = || rows.iter().step_by(step).map(|&row| input.key(row));
            if let Some(direction) = principal(sample, &mean, axis) {
                // A unit vector: no score overflows.
                let direction: Vec<f32> = direction.into_iter().map(|x| x as f32).collect();
                self.scores.resize(rows.len(), 0.0);
                let kernel = input.kernel;
                kernel.scores_at_into(&direction, input.keys, rows, &mut self.scores);
                for (&row, &score) in rows.iter().zip(&self.scores) {
                    self.projections[row as usize] = score;
                }
                return;
            }
        }
        for &row in rows {
            self.projections[row as usize] = input.key(row)[axis];
        }
    }
}

/// The coordinate of largest variance; the first of equals.
fn largest_variance<'a>(rows: impl Iterator<Item = &'a [f32]>, mean: &[f32]) -> usize {
    let mut variances = vec![0.0f64; mean.len()];
    for row in rows {
        for ((sum, &x), &mu) in variances.iter_mut().zip(row).zip(mean) {
            let difference = f64::from(x) - f64::from(mu);
            *sum += difference * difference;
        }
    }
    let first = |best: usize, i: usize| {
        if variances[i] > variances[best] {
            i
        } else {
            best
        }
    };
    (0..variances.len()).fold(0, first)
}

/// A unit vector near to the first principal direction; `None` if the rows have no extent. The sum of a power step is the covariance
/// times the vector before. It begins along `axis`, whose variance is the largest of all axes, so it is not orthogonal to what is sought.
fn principal<'a, I: Iterator<Item = &'a [f32]>>(
    rows: impl Fn() -> I,
    mean: &[f32],
    axis: usize,
) -> Option<Vec<f64>> {
    let mut direction = vec![0.0f64; mean.len()];
    direction[axis] = 1.0;
    for _ in 0..POWER_STEPS {
        let mut next = vec![0.0f64; mean.len()];
        for row in rows() {
            let centred = |(&x, &mu): (&f32, &f32)| f64::from(x) - f64::from(mu);
            let pairs = row.iter().zip(mean).map(centred).zip(&direction);
            let along = lanes_sum(pairs.map(|(x, v)| x * v));
            for (next, x) in next.iter_mut().zip(row.iter().zip(mean).map(centred)) {
                *next += along * x;
            }
        }
        // In two steps: squares of values down to 2^-149 times 2^-149 would underflow.
        let largest = next.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
        if largest == 0.0 {
            return None;
        }
        next.iter_mut().for_each(|x| *x /= largest);
        let norm = next.iter().map(|x| x * x).sum::<f64>().sqrt();
        next.iter_mut().for_each(|x| *x /= norm);
        direction = next;
    }
    Some(direction)
}

/// A sum in four interleaved lanes, so that additions need not wait for each other.
fn lanes_sum(values: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [0.0f64; 4];
    for (i, value) in values.enumerate() {
        lanes[i % 4] += value;
    }
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}
