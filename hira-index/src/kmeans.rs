//! k-means over rows of keys: a k-means++ start on a sample, Lloyd's iterations, one final assignment.
//!
//! Clusters decide how fast a search is, never what it finds, so `f32` distances are good enough here; what is promised
//! is that the same keys, seed and number of clusters give the same clusters, that none is empty, and that no input
//! (duplicates, zeros, subnormals, norms near the limit) makes it fail. It runs on the calling thread: whoever has
//! several heads to index has better work for the others.
//!
//! # References
//!
//! D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007, section 2.2.

use std::ops::Range;

use hira_kernels::Kernel;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::level::Level;
use crate::{IndexConfig, KMeansConfig, rows};

/// Rows of the sample, per cluster.
const SAMPLE: usize = 64;

/// Most clusters that a single run looks for: the cost of a run grows with their number, that of two nested runs with
/// its root.
const MAX_FANOUT: usize = 64;

/// Clusters of the rows of `keys`.
pub(crate) struct KMeans<'a> {
    kernel: Kernel,
    keys: &'a [f32],
    dim: usize,
    config: KMeansConfig,
}

impl<'a> KMeans<'a> {
    pub(crate) fn new(kernel: Kernel, keys: &'a [f32], config: &IndexConfig) -> Self {
        Self {
            kernel,
            keys,
            dim: config.dim,
            config: config.kmeans,
        }
    }

    /// Reorders `rows` into `clusters` runs, none of them empty, and returns their ends. Rows keep their order within a
    /// run. There are as many runs as rows if those are fewer, and about `clusters` runs if that is above 64.
    ///
    /// # Complexity
    ///
    /// O(rows * min(clusters, 64) * dim * iterations), the iterations on at most 64 rows a cluster.
    pub(crate) fn split(&self, rows: &mut [u32], clusters: usize) -> Vec<usize> {
        if clusters <= MAX_FANOUT {
            return self.split_once(rows, clusters.clamp(1, rows.len()));
        }
        let groups = (clusters as f64).sqrt().ceil() as usize;
        let len = rows.len();
        let mut ends = Vec::with_capacity(clusters);
        let mut start = 0;
        for end in self.split(rows, groups.min(MAX_FANOUT)) {
            // In proportion to the rows up to here, less what earlier groups took.
            let share = (clusters * end).div_ceil(len).saturating_sub(ends.len());
            let inner = self.split(&mut rows[start..end], share.max(1));
            ends.extend(inner.into_iter().map(|inner| start + inner));
            start = end;
        }
        ends
    }

    /// Reorders `rows` by the nearest centroid among the clusters `guide` of `level`, and returns the clusters that
    /// received any, with their runs.
    pub(crate) fn assign(
        &self,
        rows: &mut [u32],
        level: &Level,
        guide: Range<usize>,
    ) -> Vec<(usize, Range<usize>)> {
        let centroids: Vec<f32> = guide
            .clone()
            .flat_map(|i| level.centroid(i))
            .copied()
            .collect();
        let mut nearest = Nearest::new(self.kernel, self.dim, centroids);
        let labels: Vec<u32> = rows
            .iter()
            .map(|&row| nearest.of(self.key(row)).0)
            .collect();
        let ends = gather(rows, &labels, guide.len());
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let runs = starts
            .zip(ends.iter().copied())
            .map(|(start, end)| start..end);
        guide.zip(runs).filter(|(_, run)| !run.is_empty()).collect()
    }

    fn key(&self, row: u32) -> &'a [f32] {
        &self.keys[row as usize * self.dim..][..self.dim]
    }

    /// One run of k-means; `clusters` is at least 1 and at most the number of rows.
    fn split_once(&self, rows: &mut [u32], clusters: usize) -> Vec<usize> {
        let len = rows.len();
        if clusters <= 1 {
            return vec![len];
        }
        let Some(points) = self.normalised(rows) else {
            // All rows are equal: any division is as good as another.
            return (1..=clusters).map(|i| i * len / clusters).collect();
        };
        let mut random =
            StdRng::seed_from_u64(self.config.seed ^ (len as u64) << 32 ^ clusters as u64);
        let sample = self.sample(&points, clusters, &mut random);
        let centroids = self.start(&sample, clusters, &mut random);
        let mut nearest = self.iterate(&sample, Nearest::new(self.kernel, self.dim, centroids));
        let mut labels: Vec<u32> = points
            .chunks_exact(self.dim)
            .map(|point| nearest.of(point).0)
            .collect();
        fill_empty(&mut labels, clusters);
        gather(rows, &labels, clusters)
    }

    /// The rows, moved to their mean and scaled into the unit cube; `None` if they are all equal.
    ///
    /// Then no distance overflows, none of subnormal keys underflows as a whole, and keys far from the origin do not
    /// lose their differences to cancellation.
    fn normalised(&self, rows: &[u32]) -> Option<Vec<f32>> {
        let mean = rows::mean(rows.iter().map(|&row| self.key(row)), self.dim);
        let mut largest = 0.0f64;
        for &row in rows {
            for (&x, &mu) in self.key(row).iter().zip(&mean) {
                largest = largest.max((f64::from(x) - f64::from(mu)).abs());
            }
        }
        if largest == 0.0 {
            return None;
        }
        // At most 2^149, for subnormal keys.
        let scale = largest.recip();
        let mut points = Vec::with_capacity(rows.len() * self.dim);
        for &row in rows {
            let pairs = self.key(row).iter().zip(&mean);
            points.extend(pairs.map(|(&x, &mu)| ((f64::from(x) - f64::from(mu)) * scale) as f32));
        }
        Some(points)
    }

    /// At most `SAMPLE` points a cluster, one from each of as many equal stretches of time.
    fn sample(&self, points: &[f32], clusters: usize, random: &mut StdRng) -> Vec<f32> {
        let len = points.len() / self.dim;
        let wanted = clusters * SAMPLE;
        if len <= wanted {
            return points.to_vec();
        }
        let mut sample = Vec::with_capacity(wanted * self.dim);
        for i in 0..wanted {
            let (first, end) = (i * len / wanted, (i + 1) * len / wanted);
            let row = random.random_range(first..end);
            sample.extend_from_slice(&points[row * self.dim..][..self.dim]);
        }
        sample
    }

    /// k-means++: each further centroid is a point drawn with probability proportional to its squared distance from the
    /// centroids so far.
    fn start(&self, points: &[f32], clusters: usize, random: &mut StdRng) -> Vec<f32> {
        let len = points.len() / self.dim;
        let squares: Vec<f32> = points
            .chunks_exact(self.dim)
            .map(|p| self.kernel.score(p, p))
            .collect();
        let mut distances = vec![f32::INFINITY; len];
        let mut scores = vec![0.0; len];
        let mut centroids = Vec::with_capacity(clusters * self.dim);
        let mut chosen = random.random_range(0..len);
        for _ in 0..clusters {
            let centroid = &points[chosen * self.dim..][..self.dim];
            centroids.extend_from_slice(centroid);
            self.kernel.scores_into(centroid, points, &mut scores);
            let square = squares[chosen];
            for ((distance, &score), &own) in distances.iter_mut().zip(&scores).zip(&squares) {
                *distance = distance.min((own - 2.0 * score + square).max(0.0));
            }
            distances[chosen] = 0.0;
            chosen = draw(&distances, random);
        }
        centroids
    }

    /// Lloyd's iterations. A centroid that lost all its points moves to the point that is worst served.
    fn iterate(&self, points: &[f32], mut nearest: Nearest) -> Nearest {
        let clusters = nearest.len();
        let mut last = f64::INFINITY;
        let mut distances = Vec::with_capacity(points.len() / self.dim);
        for _ in 0..self.config.max_iterations {
            let mut sums = vec![0.0f32; clusters * self.dim];
            let mut counts = vec![0u32; clusters];
            distances.clear();
            for point in points.chunks_exact(self.dim) {
                let (cluster, distance) = nearest.of(point);
                let cluster = cluster as usize;
                counts[cluster] += 1;
                distances.push(distance);
                for (sum, x) in sums[cluster * self.dim..][..self.dim].iter_mut().zip(point) {
                    *sum += x;
                }
            }
            let total: f64 = distances.iter().map(|&d| f64::from(d)).sum();
            for (sum, &count) in sums.chunks_exact_mut(self.dim).zip(&counts) {
                if count > 0 {
                    sum.iter_mut().for_each(|x| *x /= count as f32);
                } else if let Some(worst) = worst_served(&distances) {
                    sum.copy_from_slice(&points[worst * self.dim..][..self.dim]);
                    distances[worst] = 0.0;
                }
            }
            nearest = Nearest::new(self.kernel, self.dim, sums);
            if last - total <= f64::from(self.config.tolerance) * total {
                break;
            }
            last = total;
        }
        nearest
    }
}

/// An index with probability proportional to its weight; any, if all weights are zero.
fn draw(weights: &[f32], random: &mut StdRng) -> usize {
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let mut rest = random.random_range(0.0..1.0) * total;
    for (i, &weight) in weights.iter().enumerate() {
        rest -= f64::from(weight);
        if rest < 0.0 {
            return i;
        }
    }
    random.random_range(0..weights.len())
}

fn worst_served(distances: &[f32]) -> Option<usize> {
    (0..distances.len()).max_by(|&a, &b| distances[a].total_cmp(&distances[b]).then(b.cmp(&a)))
}

/// Gives every empty cluster the later half of the largest. Needs at least as many labels as clusters.
fn fill_empty(labels: &mut [u32], clusters: usize) {
    let mut counts = vec![0usize; clusters];
    for &label in labels.iter() {
        counts[label as usize] += 1;
    }
    for empty in 0..clusters {
        if counts[empty] > 0 {
            continue;
        }
        let largest = (0..clusters)
            .max_by_key(|&i| (counts[i], clusters - i))
            .unwrap_or(0);
        let given = counts[largest] / 2;
        let members = labels
            .iter_mut()
            .rev()
            .filter(|label| **label as usize == largest);
        members.take(given).for_each(|label| *label = empty as u32);
        counts[largest] -= given;
        counts[empty] = given;
    }
}

/// Reorders `rows` by label, stably, and returns where each label ends.
fn gather(rows: &mut [u32], labels: &[u32], clusters: usize) -> Vec<usize> {
    let mut ends = vec![0usize; clusters];
    for &label in labels {
        ends[label as usize] += 1;
    }
    let mut sum = 0;
    let mut next: Vec<usize> = ends
        .iter_mut()
        .map(|end| {
            let start = sum;
            sum += *end;
            *end = sum;
            start
        })
        .collect();
    let before = rows.to_vec();
    for (&row, &label) in before.iter().zip(labels) {
        rows[next[label as usize]] = row;
        next[label as usize] += 1;
    }
    ends
}

/// Centroids, ready to be asked which is nearest.
struct Nearest {
    kernel: Kernel,
    centroids: Vec<f32>,
    /// `||c||^2 / 2` each: the nearest centroid is the one with the largest `x . c - ||c||^2 / 2`.
    half_squares: Vec<f32>,
    scores: Vec<f32>,
}

impl Nearest {
    fn new(kernel: Kernel, dim: usize, centroids: Vec<f32>) -> Self {
        let half_squares: Vec<f32> = centroids
            .chunks_exact(dim)
            .map(|c| kernel.score(c, c) / 2.0)
            .collect();
        let scores = vec![0.0; half_squares.len()];
        Self {
            kernel,
            centroids,
            half_squares,
            scores,
        }
    }

    fn len(&self) -> usize {
        self.half_squares.len()
    }

    /// The nearest centroid (the first of equals), and the squared distance to it.
    fn of(&mut self, point: &[f32]) -> (u32, f32) {
        self.kernel
            .scores_into(point, &self.centroids, &mut self.scores);
        for (score, half) in self.scores.iter_mut().zip(&self.half_squares) {
            *score -= half;
        }
        let best = largest(&self.scores);
        let nearest = self
            .scores
            .iter()
            .position(|&score| score == best)
            .unwrap_or(0);
        let square = self.kernel.score(point, point);
        (nearest as u32, (square - 2.0 * best).max(0.0))
    }
}

/// The largest value, `-inf` if there is none. In lanes: the compiler vectorises this, not a search for a position.
fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (blocks, rest) = values.as_chunks::<8>();
    let mut lanes = [f32::NEG_INFINITY; 8];
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, x);
        }
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(keys: &[f32], dim: usize, clusters: usize) -> (Vec<u32>, Vec<usize>) {
        let config = IndexConfig::new(dim);
        let mut rows: Vec<u32> = (0..(keys.len() / dim) as u32).collect();
        let ends = KMeans::new(Kernel::best(), keys, &config).split(&mut rows, clusters);
        (rows, ends)
    }

    fn assert_partition(keys: &[f32], dim: usize, clusters: usize) -> usize {
        let (rows, ends) = split(keys, dim, clusters);
        let len = keys.len() / dim;
        assert!(ends.is_sorted_by(|a, b| a < b), "empty cluster: {ends:?}");
        assert!(ends[0] > 0 && ends.last() == Some(&len));
        let mut start = 0;
        for &end in &ends {
            assert!(rows[start..end].is_sorted(), "time order within a cluster");
            start = end;
        }
        let mut sorted = rows.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..len as u32).collect::<Vec<_>>());
        assert_eq!(
            split(keys, dim, clusters),
            (rows, ends.clone()),
            "the same again"
        );
        ends.len()
    }

    #[test]
    fn separate_blobs_are_found() {
        // Four blobs far apart, interleaved in time, on top of a common offset.
        let keys: Vec<f32> = (0..400)
            .flat_map(|i| {
                let (blob, noise) = (i % 4, (i as f32 * 1.7).sin());
                [
                    1000.0 + 100.0 * (blob % 2) as f32 + noise,
                    -500.0 + 100.0 * (blob / 2) as f32 - noise,
                ]
            })
            .collect();
        let (rows, ends) = split(&keys, 2, 4);
        assert_eq!(ends, [100, 200, 300, 400]);
        for run in rows.chunks(100) {
            assert!(run.iter().all(|row| row % 4 == run[0] % 4));
        }
    }

    #[test]
    fn degenerate_rows_make_full_clusters() {
        let two_values: Vec<f32> = (0..300)
            .map(|i| if i % 100 == 0 { 5.0 } else { 1.0 })
            .collect();
        let subnormal: Vec<f32> = (0..300).map(f32::from_bits).collect();
        let large: Vec<f32> = (0..300)
            .map(|i| if i % 2 == 0 { 9e18 } else { -9e18 })
            .collect();
        let outlier: Vec<f32> = (0..300)
            .map(|i| if i == 7 { 1e18 } else { 1e-18 * i as f32 })
            .collect();
        for keys in [
            vec![0.0; 300],
            vec![-3.5; 300],
            two_values,
            subnormal,
            large,
            outlier,
        ] {
            for dim in [1, 3] {
                for clusters in [1, 2, 7, 64] {
                    assert_eq!(
                        assert_partition(&keys, dim, clusters),
                        clusters,
                        "dim {dim}"
                    );
                }
                assert!((80..=100).contains(&assert_partition(&keys, dim, 90)));
            }
        }
    }

    #[test]
    fn as_many_clusters_as_rows_at_most() {
        assert_eq!(split(&[3.0, 1.0, 2.0], 1, 10).1, [1, 2, 3]);
        assert_eq!(split(&[3.0], 1, 1).1, [1]);
    }

    #[test]
    fn many_clusters_are_split_in_two_stages() {
        let keys: Vec<f32> = (0..4000 * 3).map(|i| (i as f32 * 0.731).sin()).collect();
        let clusters = assert_partition(&keys, 3, 500);
        assert!((400..=600).contains(&clusters), "{clusters}");
    }

    #[test]
    fn every_kernel_finds_the_same_clusters() {
        let keys: Vec<f32> = (0..1000 * 20).map(|i| (i as f32 * 0.37).sin()).collect();
        let config = IndexConfig::new(20);
        let of = |kernel| {
            let mut rows: Vec<u32> = (0..1000).collect();
            (
                KMeans::new(kernel, &keys, &config).split(&mut rows, 30),
                rows,
            )
        };
        let expected = of(Kernel::Scalar);
        for kernel in Kernel::available() {
            assert_eq!(of(kernel), expected, "{}", kernel.name());
        }
    }
}
