//! Keys of every kind that an index has to cope with.
#![allow(
    dead_code,
    reason = "every test file is a crate of its own and uses a part"
)]

use hira_index::{
    BuilderConfig, DynamicUpdater, HierarchicalIndex, IncrementalUpdater, IndexConfig,
    KMeansBuilder, KMeansStart, KdAxis, KdTreeBuilder, RandomizedBuilder, RebuildTrigger,
    RebuildUpdater, UpdateConfig,
};
use hira_kernels::Precision;
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
        .flat_map(|i| {
            let key = index.key(i).expect("a position below the length");
            key.widened().into_owned()
        })
        .collect()
}

/// What an index of that precision stores of `keys`.
pub(crate) fn rounded(precision: Precision, keys: &[f32]) -> Vec<f32> {
    keys.iter().map(|&x| precision.round(x)).collect()
}

/// `keys`, brought into the range of the precision if they are beyond it.
pub(crate) fn fitting(precision: Precision, mut keys: Vec<f32>) -> Vec<f32> {
    for x in &mut keys {
        *x = match precision {
            Precision::F32 => *x,
            Precision::F16 => x.clamp(-65_504.0, 65_504.0),
            // A norm just below the limit must not be rounded up to it.
            Precision::Bf16 => *x * 0.99,
        };
    }
    keys
}

pub(crate) fn precision() -> impl Strategy<Value = Precision> {
    prop::sample::select(&Precision::ALL[..])
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

/// Every builder, with settings off their defaults among them.
pub(crate) fn builders() -> Vec<BuilderConfig> {
    vec![
        BuilderConfig::default(),
        BuilderConfig::KMeans(KMeansBuilder {
            start: KMeansStart::Random,
            max_iterations: 3,
            nredo: 2,
            spherical: true,
            seed: 7,
            ..KMeansBuilder::default()
        }),
        BuilderConfig::Randomized(RandomizedBuilder::default()),
        BuilderConfig::KdTree(KdTreeBuilder {
            axis: KdAxis::MaxVariance,
        }),
        BuilderConfig::KdTree(KdTreeBuilder {
            axis: KdAxis::Principal,
        }),
        BuilderConfig::Chunk,
    ]
}

pub(crate) fn builder() -> impl Strategy<Value = BuilderConfig> {
    prop::sample::select(builders())
}

/// Every updater, so small that a few hundred keys make it do everything it does.
pub(crate) fn updates() -> Vec<UpdateConfig> {
    let rebuild = |trigger| UpdateConfig::Rebuild(RebuildUpdater { trigger });
    let incremental = |every, rebuild_every| {
        UpdateConfig::Incremental(IncrementalUpdater {
            every,
            rebuild_every,
        })
    };
    vec![
        UpdateConfig::Seal,
        rebuild(RebuildTrigger::Always),
        rebuild(RebuildTrigger::EveryN { n: 10 }),
        rebuild(RebuildTrigger::Growth { ratio: 0.3 }),
        incremental(1, 1000),
        incremental(6, 4),
        UpdateConfig::Dynamic(DynamicUpdater {
            base: 8,
            ratio: 2.0,
        }),
        UpdateConfig::Dynamic(DynamicUpdater {
            base: 5,
            ratio: 1.5,
        }),
    ]
}

pub(crate) fn update() -> impl Strategy<Value = UpdateConfig> {
    prop::sample::select(updates())
}
