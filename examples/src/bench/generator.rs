//! Keys and values beyond the captures: rows with the mean, the covariance and the spread of norms of recorded ones.
//!
//! # The model
//!
//! A fit to recorded rows `k_1 .. k_N` keeps their mean `mu`; the Cholesky factor `L` of their covariance `L L^T`; the quantiles of the
//! radii `r_i = ||x_i|| / sqrt(D)` with `x_i = L^-1 (k_i - mu)`, whose mean square is 1; and the correlation `c` of neighbours, the mean
//! cosine between `x_i` and `x_(i+1)`. A drawn row is
//!
//! ```text
//! x' = c x + sqrt(1 - c^2) z       z: independent, mean 0, variance 1
//! k  = mu + r L (sqrt(D) x' / ||x'||)      r: one of the fitted radii, at random
//! ```
//!
//! So mean, covariance, neighbourhood and the spread of norms are those of the recording. What is not: shapes that an ellipsoid does not
//! have, and the dependence of values on keys: generated heads are flatter than recorded ones. A [`Problem`](super::Problem) keeps the
//! recorded first and last rows, the sinks and the neighbours of the queries. The table says which rows are generated, and holds one context
//! with recorded and generated keys side by side.

use rayon::prelude::*;

/// Rows that are drawn as one chain; the chains are independent, so a draw does not depend on the number of threads.
const CHAIN: usize = 4096;

/// Quantiles of the radii that are kept.
const RADII: usize = 1024;

/// What a [`Generator`] is fitted with is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{rows} rows of dimension {dim} have no covariance to fit: more rows than dimensions are needed"
)]
pub struct TooFewRows {
    /// Rows that were given.
    pub rows: usize,
    /// Their dimension.
    pub dim: usize,
}

/// A distribution of rows, fitted to recorded ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Generator {
    dim: usize,
    mean: Vec<f32>,
    /// The Cholesky factor, column by column: `[column][row]`, zero above the diagonal.
    factor: Vec<f32>,
    /// Ascending.
    radii: Vec<f32>,
    /// Correlation of neighbours.
    correlation: f32,
}

impl Generator {
    /// Fits the model of this module to `rows`.
    ///
    /// # Shapes
    ///
    /// `rows`: `[N, D]` with `N > D`.
    ///
    /// # Numerics
    ///
    /// In f64. A millionth of the mean variance is added to the covariance's diagonal, so that a direction without spread is no error.
    ///
    /// # Complexity
    ///
    /// `O(N D^2 + D^3)`.
    ///
    /// # Errors
    ///
    /// [`TooFewRows`].
    pub fn fit(rows: &[f32], dim: usize) -> Result<Self, TooFewRows> {
        let count = rows.len() / dim.max(1);
        if count <= dim {
            return Err(TooFewRows { rows: count, dim });
        }
        let mean = mean(rows, dim);
        let factor = cholesky(covariance(rows, &mean), dim);
        let mut radii = Vec::with_capacity(count);
        let mut neighbours = 0.0;
        let mut before: Vec<f64> = Vec::new();
        for row in rows.chunks_exact(dim) {
            let white = whitened(row, &mean, &factor);
            let square = dot(&white, &white) / dim as f64;
            radii.push(square.sqrt() as f32);
            let white: Vec<f64> = white.iter().map(|x| x / square.sqrt().max(1e-30)).collect();
            if !before.is_empty() {
                neighbours += dot(&white, &before) / dim as f64;
            }
            before = white;
        }
        radii.sort_by(f32::total_cmp);
        let kept = RADII.min(count);
        let quantile = |i: usize| radii[i * (count - 1) / (kept - 1).max(1)];
        Ok(Self {
            dim,
            radii: (0..kept).map(quantile).collect(),
            correlation: (neighbours / (count - 1) as f64).clamp(0.0, 0.99) as f32,
            mean: mean.iter().map(|&x| x as f32).collect(),
            factor: (0..dim * dim)
                .map(|i| factor[i % dim * dim + i / dim] as f32)
                .collect(),
        })
    }

    /// Draws `count` rows, `[count, D]`: the same for the same seed.
    pub fn draw(&self, count: usize, seed: u64) -> Vec<f32> {
        let mut rows = vec![0.0; count * self.dim];
        rows.par_chunks_mut(CHAIN * self.dim)
            .enumerate()
            .for_each(|(chain, rows)| {
                let mut random = Random(mixed(seed) ^ mixed(chain as u64 + 1));
                self.draw_chain(rows, &mut random);
            });
        rows
    }

    fn draw_chain(&self, rows: &mut [f32], random: &mut Random) {
        let fresh = (1.0 - self.correlation * self.correlation).sqrt();
        let mut white: Vec<f32> = (0..self.dim).map(|_| random.normal()).collect();
        for row in rows.chunks_exact_mut(self.dim) {
            for x in &mut white {
                *x = self.correlation * *x + fresh * random.normal();
            }
            let square: f32 = white.iter().map(|x| x * x).sum();
            let radius = self.radii[random.below(self.radii.len())];
            let stretch = radius * (self.dim as f32 / square.max(f32::MIN_POSITIVE)).sqrt();
            row.copy_from_slice(&self.mean);
            for (j, (column, x)) in self.factor.chunks_exact(self.dim).zip(&white).enumerate() {
                let x = stretch * x;
                let below = row[j..].iter_mut().zip(&column[j..]);
                below.for_each(|(out, &factor)| *out += x * factor);
            }
        }
    }
}

fn mean(rows: &[f32], dim: usize) -> Vec<f64> {
    let mut mean = vec![0.0; dim];
    for row in rows.chunks_exact(dim) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let count = (rows.len() / dim) as f64;
    mean.iter_mut().for_each(|sum| *sum /= count);
    mean
}

/// `[D, D]`, row by row.
fn covariance(rows: &[f32], mean: &[f64]) -> Vec<f64> {
    let dim = mean.len();
    let mut sums = vec![0.0; dim * dim];
    let mut centred = vec![0.0; dim];
    for row in rows.chunks_exact(dim) {
        for ((centred, &x), mean) in centred.iter_mut().zip(row).zip(mean) {
            *centred = f64::from(x) - mean;
        }
        for (sums, &x) in sums.chunks_exact_mut(dim).zip(&centred) {
            sums.iter_mut()
                .zip(&centred)
                .for_each(|(sum, y)| *sum += x * y);
        }
    }
    let count = (rows.len() / dim) as f64;
    sums.iter_mut().for_each(|sum| *sum /= count);
    let trace: f64 = sums.iter().step_by(dim + 1).sum();
    let ridge = (1e-6 * trace / dim as f64).max(f64::MIN_POSITIVE);
    sums.iter_mut()
        .step_by(dim + 1)
        .for_each(|variance| *variance += ridge);
    sums
}

/// The lower triangle `L` of `matrix = L L^T`, row by row.
fn cholesky(matrix: Vec<f64>, dim: usize) -> Vec<f64> {
    let mut factor = vec![0.0; dim * dim];
    for i in 0..dim {
        for j in 0..=i {
            let rest = matrix[i * dim + j]
                - dot(&factor[i * dim..i * dim + j], &factor[j * dim..j * dim + j]);
            factor[i * dim + j] = if i == j {
                rest.max(f64::MIN_POSITIVE).sqrt()
            } else {
                rest / factor[j * dim + j]
            };
        }
    }
    factor
}

/// `L^-1 (row - mean)`, by forward substitution.
fn whitened(row: &[f32], mean: &[f64], factor: &[f64]) -> Vec<f64> {
    let dim = mean.len();
    let mut white: Vec<f64> = Vec::with_capacity(dim);
    for i in 0..dim {
        let line = &factor[i * dim..=i * dim + i];
        let rest = f64::from(row[i]) - mean[i] - dot(&line[..i], &white);
        white.push(rest / line[i]);
    }
    white
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The finaliser of SplitMix64.
fn mixed(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// SplitMix64: a few operations a number, where a draw of a million keys takes half a billion of them.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// Mean 0, variance 1: a sum of four uniform numbers. A row adds up dozens of them, which is as good as normal.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum::<u64>();
        // four uniform numbers on [0, 1) have the variance 1/3
        ((sum as f32 + 2.0) / 65536.0 - 2.0) * 3.0_f32.sqrt()
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIM: usize = 6;

    /// Rows with a mean, unequal variances, correlated columns, correlated neighbours and a heavy tail of norms.
    fn recorded(count: usize) -> Vec<f32> {
        let mut random = Random(7);
        let mut state = [0.0; DIM];
        let mut rows = Vec::new();
        for _ in 0..count {
            state = state.map(|x| 0.6 * x + 0.8 * random.normal());
            let radius = if random.below(8) == 0 { 2.0 } else { 0.7 };
            for column in 0..DIM {
                let shared = 0.5 * state[(column + 1) % DIM];
                rows.push(
                    3.0 - column as f32 + radius * (column + 1) as f32 * (state[column] + shared),
                );
            }
        }
        rows
    }

    fn norms(rows: &[f32]) -> (f64, f64) {
        let norms: Vec<f64> = rows
            .chunks_exact(DIM)
            .map(|row| {
                row.iter()
                    .map(|&x| f64::from(x).powi(2))
                    .sum::<f64>()
                    .sqrt()
            })
            .collect();
        let mean = norms.iter().sum::<f64>() / norms.len() as f64;
        let variance = norms.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / norms.len() as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn drawn_rows_have_the_statistics_of_the_recorded_ones() {
        let recorded = recorded(20_000);
        let fit = Generator::fit(&recorded, DIM).expect("enough rows");
        let drawn = fit.draw(50_000, 1);
        let (of_recorded, of_drawn) = (mean(&recorded, DIM), mean(&drawn, DIM));
        let (wanted, got) = (
            covariance(&recorded, &of_recorded),
            covariance(&drawn, &of_drawn),
        );
        for i in 0..DIM {
            let deviation = wanted[i * DIM + i].sqrt();
            let error = (of_recorded[i] - of_drawn[i]).abs() / deviation;
            assert!(error < 0.05, "mean {i}: {error} deviations");
            for j in 0..DIM {
                let scale = deviation * wanted[j * DIM + j].sqrt();
                let error = (wanted[i * DIM + j] - got[i * DIM + j]).abs() / scale;
                assert!(error < 0.05, "covariance {i} {j}: {error}");
            }
        }
        let ((mean, spread), (drawn_mean, drawn_spread)) = (norms(&recorded), norms(&drawn));
        assert!(
            (mean / drawn_mean - 1.0).abs() < 0.05,
            "{mean} {drawn_mean}"
        );
        assert!(
            (spread / drawn_spread - 1.0).abs() < 0.1,
            "{spread} {drawn_spread}"
        );
        let again = Generator::fit(&drawn, DIM).expect("enough rows");
        assert!((again.correlation - fit.correlation).abs() < 0.05);
        assert!(fit.correlation > 0.3, "neighbours are correlated");
    }

    #[test]
    fn a_draw_depends_on_its_seed_alone() {
        let fit = Generator::fit(&recorded(100), DIM).expect("enough rows");
        let rows = fit.draw(CHAIN + 100, 5);
        assert_eq!(rows, fit.draw(CHAIN + 100, 5));
        assert_eq!(rows[..CHAIN * DIM], fit.draw(CHAIN, 5));
        assert_ne!(rows, fit.draw(CHAIN + 100, 6));
    }

    #[test]
    fn a_fit_needs_more_rows_than_dimensions_and_bears_a_constant_column() {
        let error = Generator::fit(&[0.0; 12], 4).expect_err("three rows");
        assert_eq!(error, TooFewRows { rows: 3, dim: 4 });
        let rows: Vec<f32> = (0..40).flat_map(|i| [i as f32, 2.0]).collect();
        let drawn = Generator::fit(&rows, 2).expect("enough rows").draw(50, 0);
        assert!(drawn.iter().all(|x| x.is_finite()));
        assert!(drawn.chunks_exact(2).all(|row| (row[1] - 2.0).abs() < 0.1));
    }
}
