//! Lloyd's iterations over rows of keys: a start on a sample, iterations on it, one final assignment.
//!
//! Clusters decide how fast a search is, never what it finds, so `f32` distances are good enough here; what is promised
//! is that the same keys, seed and number of clusters give the same clusters, that none is empty, and that no input
//! (duplicates, zeros, subnormals, norms near the limit) makes it fail. It runs on the calling thread: whoever has
//! several heads to index has better work for the others.

use hira_kernels::{Centroids, Kernel};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::chunk::even_ends;
use super::{KMeansBuilder, KMeansStart};
use crate::rows;

/// Rows of the sample, per cluster, and at least.
const SAMPLE: usize = 16;
const MIN_SAMPLE: usize = 512;

/// Most clusters that a single run looks for: the cost of a run grows with their number, that of two nested runs with
/// its root.
const MAX_FANOUT: usize = 64;

/// Clusters of the rows of `keys`, with the buffers for it.
pub(crate) struct Lloyd<'a> {
    config: KMeansBuilder,
    kernel: Kernel,
    keys: &'a [f32],
    dim: usize,
    packed: Centroids,
    points: Vec<f32>,
    labels: Vec<u32>,
    values: Vec<f32>,
}

impl<'a> Lloyd<'a> {
    pub(crate) fn new(config: KMeansBuilder, kernel: Kernel, keys: &'a [f32], dim: usize) -> Self {
        Self {
            config,
            kernel,
            keys,
            dim,
            packed: Centroids::new(dim),
            points: Vec::new(),
            labels: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Reorders `rows` into `clusters` runs, none of them empty, and returns their ends. Rows keep their order within a
    /// run. There are as many runs as rows if those are fewer, and about `clusters` runs if that is above 64.
    ///
    /// # Complexity
    ///
    /// O(rows * min(clusters, 64) * dim), and as much for each iteration on at most 16 rows a cluster (512 at least).
    pub(crate) fn split(&mut self, rows: &mut [u32], clusters: usize) -> Vec<usize> {
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

    /// One run of k-means; `clusters` is at least 1 and at most the number of rows.
    fn split_once(&mut self, rows: &mut [u32], clusters: usize) -> Vec<usize> {
        let len = rows.len();
        if clusters <= 1 {
            return vec![len];
        }
        if !self.gather_points(rows) {
            // All rows are equal: any division is as good as another.
            return even_ends(len, clusters);
        }
        let mut random =
            StdRng::seed_from_u64(self.config.seed ^ (len as u64) << 32 ^ clusters as u64);
        let sample = self.sample(clusters, &mut random);
        let squares: Vec<f32> = sample
            .chunks_exact(self.dim)
            .map(|point| self.kernel.score(point, point))
            .collect();
        let mut best = (f64::INFINITY, Vec::new());
        for _ in 0..self.config.nredo.max(1) {
            let start = match self.config.start {
                KMeansStart::PlusPlus => self.plus_plus(&sample, &squares, clusters, &mut random),
                KMeansStart::Random => self.random_points(&sample, clusters, &mut random),
            };
            let found = self.iterate(&sample, &squares, start);
            if best.1.is_empty() || found.0 < best.0 {
                best = found;
            }
        }
        self.packed.pack(&self.chained(&best.1));
        self.labels.resize(len, 0);
        self.values.resize(len, 0.0);
        let (labels, values) = (&mut self.labels[..len], &mut self.values[..len]);
        self.kernel
            .nearest_into(&self.points, &self.packed, labels, values);
        fill_empty(labels, clusters);
        gather(rows, labels, clusters)
    }

    /// Copies the rows to `points`, moved to their mean and scaled into the unit cube, or with a norm of 1 if clusters are of directions;
    /// false if all points are equal.
    ///
    /// Then no distance overflows, none of subnormal keys underflows as a whole, and keys far from the origin do not
    /// lose their differences to cancellation.
    fn gather_points(&mut self, rows: &[u32]) -> bool {
        let (keys, dim) = (self.keys, self.dim);
        let key = |row: u32| &keys[row as usize * dim..][..dim];
        self.points.clear();
        self.points.reserve(rows.len() * dim);
        if self.config.spherical {
            for &row in rows {
                self.points.extend_from_slice(key(row));
            }
            self.points.chunks_exact_mut(dim).for_each(to_unit);
            let (first, rest) = self.points.split_at(dim);
            return rest.chunks_exact(dim).any(|point| point != first);
        }
        let mean = rows::mean(rows.iter().map(|&row| key(row)), dim);
        // In f32: a difference is off by half a unit, which is nothing to a cluster. Norms are below 2^63, so none overflows.
        let mut largest = vec![0.0f32; dim];
        for &row in rows {
            for ((largest, &x), &mu) in largest.iter_mut().zip(key(row)).zip(&mean) {
                let difference = (x - mu).abs();
                *largest = if difference > *largest {
                    difference
                } else {
                    *largest
                };
            }
        }
        let largest = largest.into_iter().fold(0.0f32, f32::max);
        if largest == 0.0 {
            return false;
        }
        // Two powers of two, since one that makes subnormal differences large would overflow; exact but for what becomes
        // subnormal itself, beside a difference of at least 1/2.
        let exponent = -f64::from(largest).log2().ceil() as i32;
        let (up, rest) = (
            exponent.clamp(-100, 100),
            exponent - exponent.clamp(-100, 100),
        );
        let (up, rest) = (2.0f32.powi(up), 2.0f32.powi(rest));
        for &row in rows {
            let pairs = key(row).iter().zip(&mean);
            self.points
                .extend(pairs.map(|(&x, &mu)| (x - mu) * up * rest));
        }
        true
    }

    /// At most `SAMPLE` points a cluster, one from each of as many equal stretches of time.
    fn sample(&self, clusters: usize, random: &mut StdRng) -> Vec<f32> {
        let len = self.points.len() / self.dim;
        let wanted = (clusters * SAMPLE).max(MIN_SAMPLE);
        if len <= wanted {
            return self.points.clone();
        }
        let mut sample = Vec::with_capacity(wanted * self.dim);
        for i in 0..wanted {
            let (first, end) = (i * len / wanted, (i + 1) * len / wanted);
            let row = random.random_range(first..end);
            sample.extend_from_slice(&self.points[row * self.dim..][..self.dim]);
        }
        sample
    }

    /// k-means++: each further centroid is a point drawn with probability proportional to its squared distance from the
    /// centroids so far.
    fn plus_plus(
        &self,
        points: &[f32],
        squares: &[f32],
        clusters: usize,
        random: &mut StdRng,
    ) -> Vec<f32> {
        let len = squares.len();
        let mut distances = vec![f32::INFINITY; len];
        let mut scores = vec![0.0; len];
        let mut centroids = Vec::with_capacity(clusters * self.dim);
        let mut chosen = random.random_range(0..len);
        for _ in 0..clusters {
            let centroid = &points[chosen * self.dim..][..self.dim];
            centroids.extend_from_slice(centroid);
            self.kernel.scores_into(centroid, points, &mut scores);
            let square = squares[chosen];
            for ((distance, &score), &own) in distances.iter_mut().zip(&scores).zip(squares) {
                *distance = distance.min((own - 2.0 * score + square).max(0.0));
            }
            distances[chosen] = 0.0;
            chosen = draw(&distances, random);
        }
        centroids
    }

    /// Distinct points, drawn uniformly: the first steps of a shuffle.
    fn random_points(&self, points: &[f32], clusters: usize, random: &mut StdRng) -> Vec<f32> {
        let mut left: Vec<usize> = (0..points.len() / self.dim).collect();
        let mut centroids = Vec::with_capacity(clusters * self.dim);
        for i in 0..clusters {
            let drawn = random.random_range(i..left.len());
            left.swap(i, drawn);
            centroids.extend_from_slice(&points[left[i] * self.dim..][..self.dim]);
        }
        centroids
    }

    /// The centroids in an order in which each is followed by the nearest of those that are left.
    ///
    /// Clusters are neither a multiple of a tile nor aligned to one, so a search that reads one of them reads a part of its neighbours.
    /// If those are alike, it wants them as well: top-64 by the tree plan on 5,000 clustered keys (20 centres of norm 15, noise 0.15, `D` 64)
    /// scanned 0.095 of them without the chain and 0.062 with it.
    fn chained(&self, centroids: &[f32]) -> Vec<f32> {
        let row = |i: usize| &centroids[i * self.dim..][..self.dim];
        let mut left: Vec<usize> = (1..centroids.len() / self.dim).collect();
        let mut last = 0;
        let mut chain = row(0).to_vec();
        while !left.is_empty() {
            let distances = left
                .iter()
                .map(|&i| rows::square_distance(row(last), row(i)));
            let nearest = distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
            // In the order of the centroids, so that the first of equals is taken.
            last = left.remove(nearest.map_or(0, |(at, _)| at));
            chain.extend_from_slice(row(last));
        }
        chain
    }

    /// Lloyd's iterations: the last centroids, and the sum of squared distances to those before them. A centroid that lost all its points
    /// moves to the point that is worst served.
    fn iterate(
        &mut self,
        points: &[f32],
        squares: &[f32],
        mut centroids: Vec<f32>,
    ) -> (f64, Vec<f32>) {
        let (dim, len) = (self.dim, squares.len());
        let clusters = centroids.len() / dim;
        let (mut labels, mut values) = (vec![0u32; len], vec![0.0f32; len]);
        let mut counts = vec![0u32; clusters];
        let mut last = f64::INFINITY;
        let mut before: Vec<f32> = Vec::new();
        let mut best = vec![0.0f32; len];
        for _ in 0..self.config.max_iterations {
            self.assign(points, &centroids, &before, &mut labels, &mut best);
            for ((value, &best), square) in values.iter_mut().zip(&best).zip(squares) {
                *value = (square - 2.0 * best).max(0.0);
            }
            let total: f64 = values.iter().map(|&d| f64::from(d)).sum();
            before.clone_from(&centroids);
            centroids.fill(0.0);
            counts.fill(0);
            for (point, &label) in points.chunks_exact(dim).zip(&labels) {
                counts[label as usize] += 1;
                let sums = &mut centroids[label as usize * dim..][..dim];
                for (sum, x) in sums.iter_mut().zip(point) {
                    *sum += x;
                }
            }
            for (sum, &count) in centroids.chunks_exact_mut(dim).zip(&counts) {
                if count > 0 {
                    sum.iter_mut().for_each(|x| *x /= count as f32);
                    if self.config.spherical {
                        to_unit(sum);
                    }
                } else if let Some(worst) = worst_served(&values) {
                    sum.copy_from_slice(&points[worst * dim..][..dim]);
                    values[worst] = 0.0;
                }
            }
            let settled = last - total <= f64::from(self.config.tolerance) * total;
            last = total;
            if settled {
                break;
            }
        }
        (last, centroids)
    }
}

impl Lloyd<'_> {
    /// The nearest centroid of each point, and the largest `x . c - ||c||^2 / 2`, as [`Kernel::nearest_into`] finds them.
    ///
    /// `before` are the centroids that `labels` and `best` are of; none at the first time. A point whose centroid stayed where it was has
    /// to be compared with those that moved only: the others give what they gave. The numbers are the same, bit for bit, and after a few
    /// iterations most centroids stay.
    fn assign(
        &mut self,
        points: &[f32],
        centroids: &[f32],
        before: &[f32],
        labels: &mut [u32],
        best: &mut [f32],
    ) {
        let dim = self.dim;
        let pairs = centroids.chunks_exact(dim).zip(before.chunks_exact(dim));
        let moved: Vec<bool> = pairs.map(|(now, before)| now != before).collect();
        let changed: Vec<u32> = (0..moved.len() as u32)
            .filter(|&i| moved[i as usize])
            .collect();
        if before.is_empty() || 2 * changed.len() > moved.len() {
            self.packed.pack(centroids);
            self.kernel.nearest_into(points, &self.packed, labels, best);
            return;
        }
        if changed.is_empty() {
            return;
        }
        let rows = |from: &[f32], these: &[u32]| {
            let mut rows = Vec::with_capacity(these.len() * dim);
            for &i in these {
                rows.extend_from_slice(&from[i as usize * dim..][..dim]);
            }
            rows
        };
        let (mut found, mut values) = (vec![0; labels.len()], vec![0.0; labels.len()]);
        self.packed.pack(&rows(centroids, &changed));
        self.kernel
            .nearest_into(points, &self.packed, &mut found, &mut values);
        let mut left = Vec::new();
        for (i, (label, best)) in labels.iter_mut().zip(&mut *best).enumerate() {
            let other = changed[found[i] as usize];
            if moved[*label as usize] {
                left.push(i as u32);
            } else if values[i] > *best || values[i] == *best && other < *label {
                // The first of equals.
                (*label, *best) = (other, values[i]);
            }
        }
        let (found, values) = (&mut found[..left.len()], &mut values[..left.len()]);
        self.packed.pack(centroids);
        self.kernel
            .nearest_into(&rows(points, &left), &self.packed, found, values);
        for ((&i, &label), &value) in left.iter().zip(&*found).zip(&*values) {
            (labels[i as usize], best[i as usize]) = (label, value);
        }
    }
}

/// Scales a row to a norm of 1; a row of zeros stays.
fn to_unit(row: &mut [f32]) {
    let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if square > 0.0 {
        let scale = square.sqrt().recip();
        row.iter_mut()
            .for_each(|x| *x = (f64::from(*x) * scale) as f32);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn split(keys: &[f32], dim: usize, clusters: usize) -> (Vec<u32>, Vec<usize>) {
        split_by(
            KMeansBuilder::default(),
            Kernel::best(),
            keys,
            dim,
            clusters,
        )
    }

    fn split_by(
        config: KMeansBuilder,
        kernel: Kernel,
        keys: &[f32],
        dim: usize,
        clusters: usize,
    ) -> (Vec<u32>, Vec<usize>) {
        let mut rows: Vec<u32> = (0..(keys.len() / dim) as u32).collect();
        let ends = Lloyd::new(config, kernel, keys, dim).split(&mut rows, clusters);
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
    fn centroids_that_stay_are_not_asked_again_and_nothing_changes() {
        let dim = 5;
        // Small integers: equal distances abound.
        let value = |i: usize| ((i as f32 * 1.37).sin() * 3.0).round();
        let points: Vec<f32> = (0..300 * dim).map(value).collect();
        let mut centroids: Vec<f32> = (0..20 * dim).map(|i| value(i * 7 + 3)).collect();
        let mut lloyd = Lloyd::new(KMeansBuilder::default(), Kernel::best(), &points, dim);
        let (mut labels, mut best) = (vec![0; 300], vec![0.0; 300]);
        lloyd.assign(&points, &centroids, &[], &mut labels, &mut best);
        for step in 0..40usize {
            let before = centroids.clone();
            for moved in 0..step % 13 {
                let at = (moved * 11 + step * 3) % centroids.len();
                centroids[at] = value(step * 31 + moved);
            }
            lloyd.assign(&points, &centroids, &before, &mut labels, &mut best);
            let (mut all, mut values) = (vec![0; 300], vec![0.0; 300]);
            lloyd.assign(&points, &centroids, &[], &mut all, &mut values);
            assert_eq!((&labels, &best), (&all, &values), "{step}");
        }
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
        for spherical in [false, true] {
            let config = KMeansBuilder {
                spherical,
                ..KMeansBuilder::default()
            };
            let expected = split_by(config, Kernel::Scalar, &keys, 20, 30);
            for kernel in Kernel::available() {
                let found = split_by(config, kernel, &keys, 20, 30);
                assert_eq!(found, expected, "{}", kernel.name());
            }
        }
    }

    #[test]
    fn directions_are_found_whatever_the_norms() {
        // Two directions, with norms from 1 to 400, the second half of each reversed in time.
        let keys: Vec<f32> = (0..400)
            .flat_map(|i| {
                let (norm, noise) = (1.0 + i as f32, 0.05 * (i as f32 * 1.7).sin());
                if i % 2 == 0 {
                    [norm, norm * noise]
                } else {
                    [norm * noise, norm]
                }
            })
            .collect();
        let config = KMeansBuilder {
            spherical: true,
            ..KMeansBuilder::default()
        };
        let (rows, ends) = split_by(config, Kernel::best(), &keys, 2, 2);
        assert_eq!(ends, [200, 400]);
        for run in rows.chunks(200) {
            assert!(run.iter().all(|row| row % 2 == run[0] % 2));
        }
        assert_ne!(split(&keys, 2, 2).1, [200, 400]);
    }

    #[test]
    fn restarts_and_iterations_bring_clusters_closer() {
        let keys: Vec<f32> = (0..600 * 8).map(|i| (i as f32 * 12.9898).sin()).collect();
        let spread = |config: KMeansBuilder| -> f64 {
            let (rows, ends) = split_by(config, Kernel::best(), &keys, 8, 24);
            let mut start = 0;
            let mut sum = 0.0;
            for end in ends {
                let members = || {
                    rows[start..end]
                        .iter()
                        .map(|&row| &keys[row as usize * 8..][..8])
                };
                let mean = rows::mean(members(), 8);
                for key in members() {
                    let pairs = key.iter().zip(&mean);
                    sum += pairs.map(|(&x, &m)| f64::from(x - m).powi(2)).sum::<f64>();
                }
                start = end;
            }
            sum
        };
        let base = KMeansBuilder {
            start: KMeansStart::Random,
            ..KMeansBuilder::default()
        };
        let none = spread(KMeansBuilder {
            max_iterations: 0,
            ..base
        });
        let one = spread(KMeansBuilder {
            max_iterations: 1,
            ..base
        });
        let many = spread(base);
        assert!(many < one && one < none, "{none} {one} {many}");
        let redone = spread(KMeansBuilder { nredo: 8, ..base });
        assert!(redone < many, "{many} {redone}");
    }
}
