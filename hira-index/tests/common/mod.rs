//! Keys of every kind that an index has to cope with.
#![allow(
    dead_code,
    reason = "every test file is a crate of its own and uses a part"
)]

use hira_index::{HierarchicalIndex, IndexConfig};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What the values of the keys look like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Uniform about a common offset, as keys of attention heads are.
    Offset,
    /// A handful of distinct rows.
    Duplicates,
    /// Zeros of both signs.
    Zeros,
    /// Subnormal values.
    Subnormal,
    /// Norms from `1e-20` to `1e15`, row by row.
    Spread,
    /// Norms just below the limit.
    Limit,
}

pub(crate) const KINDS: [Kind; 6] = [
    Kind::Offset,
    Kind::Duplicates,
    Kind::Zeros,
    Kind::Subnormal,
    Kind::Spread,
    Kind::Limit,
];

pub(crate) fn keys(kind: Kind, len: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut keys = Vec::with_capacity(len * dim);
    for _ in 0..len {
        let row_scale = match kind {
            Kind::Spread => 10.0f32.powi(random.random_range(-20..15)),
            Kind::Limit => 9.2e18 / (dim as f32).sqrt(),
            _ => 1.0,
        };
        let duplicate = random.random_range(0..5);
        for column in 0..dim {
            let x = random.random_range(-1.0f32..1.0);
            keys.push(match kind {
                Kind::Offset => x + (column as f32).sin() * 3.0,
                Kind::Duplicates => ((duplicate * 7 + column) % 11) as f32 - 5.0,
                Kind::Zeros => {
                    if x < 0.0 {
                        -0.0
                    } else {
                        0.0
                    }
                }
                Kind::Subnormal => x * f32::MIN_POSITIVE / 4.0,
                Kind::Spread | Kind::Limit => x * row_scale,
            });
        }
    }
    keys
}

/// Small segments of three levels, so that a few hundred keys fill several.
pub(crate) fn small_config(dim: usize) -> IndexConfig {
    IndexConfig::new(dim)
        .with_segment_len(64)
        .with_branching_factor(4)
        .with_min_coarse_len(0)
}

/// The keys of an index, read back one by one.
pub(crate) fn stored(index: &HierarchicalIndex) -> Vec<f32> {
    (0..index.len())
        .flat_map(|i| index.key(i).expect("a position below the length"))
        .copied()
        .collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

pub(crate) fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(&KINDS[..])
}

pub(crate) fn dim() -> impl Strategy<Value = usize> {
    prop::sample::select(&[1usize, 3, 16, 64, 80, 128][..])
}
