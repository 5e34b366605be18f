//! What an index refuses, it refuses whole.

mod common;

use common::{Kind, bits, keys, small_config, stored};
use hira_index::{
    BuilderConfig, DynamicUpdater, HierarchicalIndex, IncrementalUpdater, IndexConfig, IndexError,
    KMeansBuilder, ProductConfig, RebuildTrigger, RebuildUpdater, UpdateConfig,
};
use hira_kernels::Precision;
use serde::Deserialize;
use serde::de::value::{Error, MapDeserializer};

#[test]
fn a_refused_batch_changes_nothing() {
    let dim = 5;
    let mut index = HierarchicalIndex::new(small_config(dim)).unwrap();
    index.append(&keys(Kind::Offset, 100, dim, 1)).unwrap();
    let (before, dump) = (stored(&index), index.to_string());
    let good = keys(Kind::Offset, 200, dim, 2);

    let mut nan = good.clone();
    nan[150 * dim + 3] = f32::NAN;
    let mut infinite = good.clone();
    infinite[199 * dim] = f32::NEG_INFINITY;
    let mut large = good.clone();
    large[70 * dim + 2] = 2.0f32.powi(63);
    let cases = [
        (
            &nan[..],
            IndexError::NonFinite {
                row: 150,
                column: 3,
            },
        ),
        (
            &infinite[..],
            IndexError::NonFinite {
                row: 199,
                column: 0,
            },
        ),
        (&large[..], IndexError::Magnitude { row: 70 }),
        (
            &good[1..],
            IndexError::Dimension {
                expected: dim,
                received: 200 * dim - 1,
            },
        ),
    ];
    for (batch, error) in cases {
        assert_eq!(index.check(batch), Err(error));
        assert_eq!(index.append(batch), Err(error));
        assert_eq!(bits(&stored(&index)), bits(&before));
        assert_eq!(index.to_string(), dump);
        index.validate().unwrap();
    }
    assert_eq!(index.check(&good), Ok(200));
    assert_eq!(index.check(&[]), Ok(0));
    index.append(&[]).unwrap();
    index.append(&good).unwrap();
    assert_eq!(index.len(), 300);
}

#[test]
fn what_a_precision_cannot_hold_is_refused_before_anything_is_stored() {
    let dim = 5;
    for (precision, value) in [(Precision::F16, -65_520.0), (Precision::Bf16, f32::MAX)] {
        let config = small_config(dim).with_precision(precision);
        let mut index = HierarchicalIndex::new(config).unwrap();
        index.append(&keys(Kind::Offset, 100, dim, 1)).unwrap();
        let (before, dump) = (stored(&index), index.to_string());
        let mut batch = keys(Kind::Offset, 200, dim, 2);
        batch[170 * dim + 4] = value;
        let error = IndexError::Overflow {
            row: 170,
            column: 4,
            precision,
        };
        assert_eq!(index.check(&batch), Err(error));
        assert_eq!(index.append(&batch), Err(error));
        assert_eq!(
            error.to_string(),
            format!("the value in row 170, column 4 is too large for {precision}")
        );
        assert_eq!(bits(&stored(&index)), bits(&before));
        assert_eq!(index.to_string(), dump);
        index.validate().unwrap();
    }
}

#[test]
fn configurations_are_checked_by_key() {
    let refused = |config: IndexConfig| match HierarchicalIndex::new(config) {
        Err(IndexError::Config { key, .. }) => key,
        other => panic!("expected a refusal, received {other:?}"),
    };
    let config = IndexConfig::new(4);
    assert_eq!(
        HierarchicalIndex::new(IndexConfig::new(0)).unwrap_err(),
        IndexError::ZeroDimension
    );
    assert_eq!(refused(IndexConfig::new((1 << 16) + 1)), "dim");
    assert_eq!(refused(config.clone().with_num_levels(9)), "num_levels");
    assert_eq!(
        refused(config.clone().with_branching_factor(1)),
        "branching_factor"
    );
    assert_eq!(
        refused(config.clone().with_branching_factor(1025)),
        "branching_factor"
    );
    for segment_len in [0, 8, 17, 100, (1 << 30) + 16] {
        assert_eq!(
            refused(config.clone().with_segment_len(segment_len)),
            "segment_len"
        );
    }
    for tolerance in [-1.0, f32::NAN, f32::INFINITY] {
        let builder = BuilderConfig::KMeans(KMeansBuilder {
            tolerance,
            ..KMeansBuilder::default()
        });
        assert_eq!(
            refused(config.clone().with_builder(builder)),
            "builder.k_means.tolerance"
        );
    }
    let builder = BuilderConfig::KMeans(KMeansBuilder {
        nredo: 0,
        ..KMeansBuilder::default()
    });
    assert_eq!(
        refused(config.clone().with_builder(builder)),
        "builder.k_means.nredo"
    );
    let rebuild = |trigger| UpdateConfig::Rebuild(RebuildUpdater { trigger });
    let growth = "update.rebuild.trigger.growth.ratio";
    for (update, key) in [
        (
            rebuild(RebuildTrigger::EveryN { n: 0 }),
            "update.rebuild.trigger.every_n.n",
        ),
        (rebuild(RebuildTrigger::Growth { ratio: 0.0 }), growth),
        (rebuild(RebuildTrigger::Growth { ratio: f32::NAN }), growth),
        (
            UpdateConfig::Incremental(IncrementalUpdater {
                every: 0,
                rebuild_every: 1,
            }),
            "update.incremental.every",
        ),
        (
            UpdateConfig::Incremental(IncrementalUpdater {
                every: 1,
                rebuild_every: 0,
            }),
            "update.incremental.rebuild_every",
        ),
        (
            UpdateConfig::Dynamic(DynamicUpdater {
                base: 0,
                ratio: 2.0,
            }),
            "update.dynamic.base",
        ),
        (
            UpdateConfig::Dynamic(DynamicUpdater {
                base: 1,
                ratio: 1.0,
            }),
            "update.dynamic.ratio",
        ),
    ] {
        assert_eq!(refused(config.clone().with_update(update)), key);
    }
    for (product, key) in [
        (ProductConfig::default().with_bits(6), "product.bits"),
        (
            ProductConfig::default().with_subvectors(0),
            "product.subvectors",
        ),
        (ProductConfig::default().with_train(0), "product.train"),
    ] {
        assert_eq!(refused(config.clone().with_product(Some(product))), key);
    }
    for extreme in [
        config
            .clone()
            .with_num_levels(8)
            .with_branching_factor(1024)
            .with_min_coarse_len(0),
        config
            .clone()
            .with_num_levels(8)
            .with_branching_factor(2)
            .with_min_coarse_len(0),
        config
            .with_builder(BuilderConfig::KMeans(KMeansBuilder {
                max_iterations: 0,
                tolerance: 0.0,
                seed: u64::MAX,
                ..KMeansBuilder::default()
            }))
            .with_min_coarse_len(0),
    ] {
        let mut index = HierarchicalIndex::new(extreme.with_segment_len(16)).unwrap();
        index.append(&keys(Kind::Offset, 40, 4, 3)).unwrap();
        index.seal();
        index.validate().unwrap();
    }
}

#[test]
fn configurations_have_defaults_and_no_unknown_keys() {
    let read = |pairs: &[(&'static str, usize)]| {
        IndexConfig::deserialize(MapDeserializer::<_, Error>::new(pairs.iter().copied()))
    };
    assert_eq!(read(&[]), Ok(IndexConfig::default()));
    assert_eq!(
        read(&[("dim", 80), ("segment_len", 4096)]),
        Ok(IndexConfig::new(80).with_segment_len(4096))
    );
    assert!(
        read(&[("dim", 80), ("segments", 4096)])
            .unwrap_err()
            .to_string()
            .contains("segments")
    );

    let update = |name: &'static str| {
        UpdateConfig::deserialize(serde::de::value::StrDeserializer::<Error>::new(name))
    };
    assert_eq!(update("seal"), Ok(UpdateConfig::Seal));
    assert_eq!(
        update("incremental"),
        Ok(UpdateConfig::Incremental(IncrementalUpdater::default()))
    );
    let unknown = update("Seal").unwrap_err().to_string();
    assert!(
        unknown.contains("`Seal`") && unknown.contains("`dynamic`"),
        "{unknown}"
    );
    let trigger = |name: &'static str| {
        RebuildTrigger::deserialize(serde::de::value::StrDeserializer::<Error>::new(name))
    };
    assert_eq!(trigger("always"), Ok(RebuildTrigger::Always));
    assert_eq!(trigger("growth"), Ok(RebuildTrigger::Growth { ratio: 0.1 }));
    let builder = |name: &'static str| {
        BuilderConfig::deserialize(serde::de::value::StrDeserializer::<Error>::new(name))
    };
    assert_eq!(builder("k_means"), Ok(BuilderConfig::default()));
    assert_eq!(builder("chunk"), Ok(BuilderConfig::Chunk));
    let precision = |name: &'static str| {
        Precision::deserialize(serde::de::value::StrDeserializer::<Error>::new(name))
    };
    for known in Precision::ALL {
        assert_eq!(precision(known.name()), Ok(known));
    }
    let unknown = precision("fp16").unwrap_err().to_string();
    assert!(unknown.contains("`fp16`") && unknown.contains("`bf16`"));
}
