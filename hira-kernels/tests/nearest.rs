//! The nearest centroid: the same bits on every kernel, and what a search in f64 finds.

#[allow(dead_code, reason = "shared by several test files")]
mod common;

use common::{LENGTHS, bits, shifted, values};
use hira_kernels::{Centroids, Kernel};

/// Numbers of centroids around the blocks of 4, 8, 16 and 32 lanes.
const COUNTS: [usize; 12] = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 64, 100];

fn nearest(kernel: Kernel, points: &[f32], dim: usize, centroids: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let mut packed = Centroids::new(dim);
    packed.pack(&values(9, 3 * dim, 1.0)); // what was packed before leaves no trace
    packed.pack(centroids);
    assert_eq!(packed.len(), centroids.len() / dim);
    let len = points.len() / dim;
    let (mut labels, mut found) = (vec![u32::MAX; len], vec![f32::NAN; len]);
    kernel.nearest_into(points, &packed, &mut labels, &mut found);
    (labels, found)
}

#[test]
fn every_kernel_gives_the_bits_of_the_definition() {
    for dim in LENGTHS.into_iter().filter(|&dim| dim > 0) {
        for (seed, count) in COUNTS.into_iter().enumerate() {
            let len = [0, 1, 3, 4, 5, 8, 13][seed % 7];
            let points = shifted(&values(seed as u64, len * dim, 1.0), 1);
            let centroids = values(seed as u64 + 50, count * dim, 1.0);
            let points = &points[1..];
            let defined: Vec<(u32, f32)> = points
                .chunks_exact(dim)
                .map(|point| definition(point, &centroids))
                .collect();
            for kernel in Kernel::available() {
                let (labels, found) = nearest(kernel, points, dim, &centroids);
                let expected: Vec<u32> = defined.iter().map(|d| d.0).collect();
                assert_eq!(labels, expected, "{} {dim} {count}", kernel.name());
                let expected: Vec<f32> = defined.iter().map(|d| d.1).collect();
                assert_eq!(bits(&found), bits(&expected), "{} {dim}", kernel.name());
            }
        }
    }
}

fn definition(point: &[f32], centroids: &[f32]) -> (u32, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, centroid) in centroids.chunks_exact(point.len()).enumerate() {
        let pairs = point.iter().zip(centroid);
        let product = pairs.fold(0.0f32, |sum, (&x, &c)| x.mul_add(c, sum));
        let square: f64 = centroid.iter().map(|&c| f64::from(c) * f64::from(c)).sum();
        let value = product + (-square / 2.0) as f32 + 0.0;
        if value > best.1 {
            best = (i as u32, value);
        }
    }
    best
}

#[test]
fn distances_are_those_of_the_nearest() {
    let (dim, count, len) = (24, 40, 200);
    let (points, centroids) = (values(1, len * dim, 1.0), values(2, count * dim, 1.0));
    let (labels, found) = nearest(Kernel::best(), &points, dim, &centroids);
    for ((point, label), value) in points.chunks_exact(dim).zip(labels).zip(found) {
        let square = |a: &[f32], b: &[f32]| -> f64 {
            let pairs = a.iter().zip(b);
            pairs
                .map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2))
                .sum()
        };
        let own = square(point, &vec![0.0; dim]);
        let distance = own - 2.0 * f64::from(value);
        let row = &centroids[label as usize * dim..][..dim];
        assert!((distance - square(point, row)).abs() < 1e-5);
        for other in centroids.chunks_exact(dim) {
            assert!(distance <= square(point, other) + 1e-5);
        }
    }
}

#[test]
fn the_first_of_equals_is_taken() {
    for count in COUNTS {
        let centroids = [1.0, 2.0, 3.0].repeat(count);
        for kernel in Kernel::available() {
            let (labels, found) = nearest(kernel, &[3.0, 2.0, 1.0, 0.0, 0.0, 0.0], 3, &centroids);
            assert_eq!(
                (labels, found),
                (vec![0, 0], vec![3.0, -7.0]),
                "{}",
                kernel.name()
            );
        }
    }
}

#[test]
fn labels_of_points_that_are_not_finite_exist() {
    for kernel in Kernel::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (labels, _) = nearest(kernel, &[bad, 1.0], 1, &[0.0, 1.0, -1.0]);
            assert!(labels[0] < 3 && labels[1] == 1);
        }
    }
}
