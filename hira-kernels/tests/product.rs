//! Product codes: what a reach promises, bounds that are never below a score and near to it, and the same bits everywhere.

#[allow(dead_code, reason = "shared by several test files")]
mod common;

use common::{Product, awkward, bits, mean, row, rows, values};
use hira_kernels::{Kernel, ProductShape, ProductTables, QueryGroup, TILE};
use proptest::prelude::*;

/// Dimensions, and numbers of subvectors that divide them or do not.
const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (1, 16),
    (3, 2),
    (10, 4),
    (16, 16),
    (64, 2),
    (64, 8),
    (64, 16),
    (64, 21),
    (80, 16),
    (128, 127),
    (256, 5),
];

fn dot(a: &[f32], b: impl IntoIterator<Item = f64>) -> f64 {
    a.iter().zip(b).map(|(&a, b)| f64::from(a) * b).sum()
}

fn norm(a: impl IntoIterator<Item = f64>) -> f64 {
    a.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// The decoded part of a slot, about the centre, and its level.
fn decode(product: &Product, slot: usize) -> (Vec<f64>, f64) {
    let shape = product.shape;
    let mut decoded = Vec::new();
    for m in 0..shape.subvectors() {
        let code = shape.code(&product.codes, slot, m);
        let entry = |i: usize| f64::from(product.entries[i * shape.entries() + code]);
        decoded.extend(shape.dims(m).map(entry));
    }
    let level = shape.code(&product.codes, slot, shape.subvectors());
    (decoded, f64::from(product.levels[level]))
}

/// Asserts everything that codes and bounds promise about these keys and queries.
fn check(keys: &[f32], queries: &[f32], centre: &[f32], subvectors: usize, bits_each: u32) {
    let dim = centre.len();
    let product = Product::new(Kernel::Scalar, keys, centre, subvectors, bits_each);
    let shape = product.shape;
    assert_eq!(shape.dims(shape.subvectors() - 1).end, dim);
    for (slot, key) in keys.chunks_exact(dim).enumerate() {
        let (decoded, level) = decode(&product, slot);
        let parts = key.iter().zip(centre).zip(&decoded);
        let error = norm(parts.map(|((&k, &mu), &c)| f64::from(k) - f64::from(mu) - c));
        let reach = f64::from(product.reaches[slot]);
        assert!(
            level >= reach && reach >= error,
            "slot {slot}: {level:e} {reach:e} {error:e}"
        );
        let key_norm = norm(key.iter().map(|&k| f64::from(k)));
        let magnitude = key_norm + norm(decoded.iter().copied());
        let gamma = (dim.div_ceil(16) + 4) as f64 * 6e-8;
        assert!(reach <= error * (1.0 + 1e-6) + (gamma + 1e-10) * magnitude + 3e-45);
    }
    let expected = product.bounds(Kernel::Scalar, queries);
    for kernel in Kernel::available() {
        assert_eq!(
            Product::new(kernel, keys, centre, subvectors, bits_each),
            product
        );
        let found = product.bounds(kernel, queries);
        assert_eq!(bits(&found), bits(&expected), "{} {shape:?}", kernel.name());
    }
    check_bounds(&product, keys, queries, &expected);
}

fn check_bounds(product: &Product, keys: &[f32], queries: &[f32], bounds: &[f32]) {
    let (shape, dim) = (product.shape, product.shape.dim());
    let tiles = product.view().tiles();
    let mut group = QueryGroup::new();
    group.prepare(Kernel::Scalar, queries, dim);
    for (g, bounds) in bounds.chunks_exact(tiles).enumerate() {
        let (query, query_norm) = (group.query(g), f64::from(group.norm(g)));
        let offset = dot(query, product.centre.iter().map(|&mu| f64::from(mu)));
        let step = step(product, query, query_norm);
        for (tile, (&bound, keys)) in bounds.iter().zip(keys.chunks(TILE * dim)).enumerate() {
            let mut nearest = f64::NEG_INFINITY;
            let mut magnitude =
                offset.abs() + query_norm * norm(product.centre.iter().map(|&mu| f64::from(mu)));
            for (lane, key) in keys.chunks_exact(dim).enumerate() {
                let score = Kernel::Scalar.score(query, key);
                assert!(score <= bound, "tile {tile}: {score:e} above {bound:e}");
                assert!(dot(query, key.iter().map(|&k| f64::from(k))) <= f64::from(bound));
                let (decoded, level) = decode(product, tile * TILE + lane);
                let estimate = offset + dot(query, decoded.iter().copied()) + query_norm * level;
                nearest = nearest.max(estimate);
                magnitude += query_norm * (level + norm(decoded));
            }
            // One step a row is all that the bytes add, but for the rounding to f32.
            let rows = (shape.subvectors() + 1) as f64;
            let above = f64::from(bound) - nearest;
            let allowed = rows * step * 1.000_001 + magnitude * 1e-6 + (dim + 66) as f64 * 2e-40;
            assert!(above <= allowed, "tile {tile}: {above:e} of {allowed:e}");
        }
    }
}

/// The largest range of any row's products over 255.
fn step(product: &Product, query: &[f32], query_norm: f64) -> f64 {
    let shape = product.shape;
    let range = |values: Vec<f64>| {
        let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        highest - values.iter().copied().fold(f64::INFINITY, f64::min)
    };
    let products = |m: usize| {
        let entry = |i: usize, j: usize| f64::from(product.entries[i * shape.entries() + j]);
        let product = |j: usize| dot(&query[shape.dims(m)], shape.dims(m).map(|i| entry(i, j)));
        range((0..shape.entries()).map(product).collect())
    };
    let reaches = product.levels.iter().map(|&l| query_norm * f64::from(l));
    (0..shape.subvectors())
        .map(products)
        .chain([range(reaches.collect())])
        .fold(0.0, f64::max)
        / 255.0
}

#[test]
fn bounds_hold_at_every_magnitude() {
    for (i, (dim, subvectors)) in SHAPES.into_iter().enumerate() {
        for bits in [4, 8] {
            for (j, scale) in [1.0, 1e-20, 1e-45, 1e8, 1e17].into_iter().enumerate() {
                let keys = awkward((i * 7 + j) as u64, 37, dim, scale);
                let scale = if scale > 1e16 { 1.0 } else { scale };
                for query_scale in [1.0, 1e-42, 1e15] {
                    let mut queries = values(77, 3 * dim, query_scale);
                    queries[dim..2 * dim].fill(0.0);
                    check(&keys, &queries, &vec![0.0; dim], subvectors, bits);
                    check(&keys, &queries, &values(78, dim, scale), subvectors, bits);
                }
            }
        }
    }
}

#[test]
fn bounds_hold_at_the_magnitude_limit() {
    for (dim, subvectors) in [(1, 1), (16, 3), (64, 16)] {
        let spread = 9.2e18 / (dim as f32).sqrt();
        let mut keys = vec![spread; 5 * dim];
        keys[dim..2 * dim].fill(-spread);
        keys[2 * dim..3 * dim].fill(0.0);
        keys[2 * dim] = 9.2e18;
        keys[3 * dim..4 * dim].fill(1.0);
        keys[4 * dim..].iter_mut().step_by(2).for_each(|v| *v = -*v);
        for centre in [vec![0.0; dim], vec![-spread; dim], vec![spread; dim]] {
            for bits in [4, 8] {
                check(&keys, &keys, &centre, subvectors, bits);
            }
        }
    }
}

#[test]
fn rounding_alone_is_covered() {
    // One key twice: its code is exact, so that only the reach's rounding terms separate score and bound.
    for dim in [64, 1000, 2048, 65_536] {
        for seed in 0..40 {
            if dim > 10_000 && seed > 3 {
                continue;
            }
            let key = values(seed, dim, 1.0);
            let mut keys = key.clone();
            keys.extend(&key);
            let query: Vec<f32> = key.iter().map(|v| v.abs().mul_add(0.3, 1.0)).collect();
            check(&keys, &query, &vec![0.0; dim], 16, 4);
            check(&keys, &query, &vec![1000.0; dim], 16, 4);
        }
    }
}

#[test]
fn kernels_agree_on_every_number_of_pairs_tiles_and_queries() {
    for subvectors in 1..=20 {
        let dim = 2 * subvectors;
        for count in [1, 15, 16, 17, 100] {
            let keys = values(count as u64, count * dim, 1.0);
            for queries in [1, 2, 3, 4, 5, 9] {
                let queries = values(3, queries * dim, 2.0);
                check(&keys, &queries, &mean(&keys, dim), subvectors, 4);
            }
        }
        let keys = values(9, 33 * dim, 1.0);
        check(
            &keys,
            &values(5, 5 * dim, 2.0),
            &mean(&keys, dim),
            subvectors,
            8,
        );
    }
}

#[test]
fn a_range_of_tiles_has_the_bounds_of_the_whole() {
    let (dim, count) = (24, 16 * 9 + 3);
    let keys = values(4, count * dim, 1.0);
    let queries = values(5, 3 * dim, 1.0);
    for bits_each in [4, 8] {
        let product = Product::new(Kernel::best(), &keys, &mean(&keys, dim), 6, bits_each);
        let tiles = product.view().tiles();
        for kernel in Kernel::available() {
            let whole = product.bounds(kernel, &queries);
            let mut group = QueryGroup::new();
            group.prepare(kernel, &queries, dim);
            let mut tables = ProductTables::new();
            tables.prepare(kernel, &group, product.view(), &product.centre);
            for (from, to) in [(0, 4), (4, 4), (3, 10)] {
                let mut part = vec![f32::NAN; 3 * (to - from)];
                kernel.product_bounds_into(product.view(), from..to, &tables, &mut part);
                let expected: Vec<f32> = whole
                    .chunks_exact(tiles)
                    .flat_map(|row| &row[from..to])
                    .copied()
                    .collect();
                assert_eq!(bits(&part), bits(&expected));
            }
        }
    }
}

#[test]
fn lanes_past_the_last_key_do_not_raise_a_bound() {
    let dim = 8;
    let keys = values(6, 17 * dim, 1.0);
    let query = values(7, dim, 1.0);
    for bits in [4, 8] {
        let product = Product::new(Kernel::best(), &keys, &mean(&keys, dim), 4, bits);
        let shape: ProductShape = product.shape;
        for row in 0..=shape.subvectors() {
            for slot in 17..32 {
                let code = |slot| shape.code(&product.codes, slot, row);
                assert_eq!(code(slot), code(16));
            }
        }
        let bounds = product.bounds(Kernel::best(), &query);
        check_bounds(&product, &keys, &query, &bounds);
    }
}

fn problem() -> impl Strategy<Value = (Vec<f32>, Vec<f32>, Vec<f32>, usize)> {
    prop::sample::select(&SHAPES[..]).prop_flat_map(|(dim, subvectors)| {
        let rows = (rows(dim, 1..40), rows(dim, 1..6), row(dim), 0usize..3);
        rows.prop_map(move |(keys, queries, centre, choice)| {
            let centre = match choice {
                0 => vec![0.0; dim],
                1 => mean(&keys, dim),
                _ => centre,
            };
            (keys, queries, centre, subvectors)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn bounds_are_never_below_a_score(
        (keys, queries, centre, subvectors) in problem(),
        bits in prop::sample::select(&[4u32, 8][..]),
    ) {
        check(&keys, &queries, &centre, subvectors, bits);
    }
}
