//! Building one segment of 8,192 keys by every builder, the sketch alone beside a copy of the bytes that it reads and writes, and one
//! step of each updater.
//!
//! Keys are those of a capture (`$HIRA_CAPTURES`, else `shared/captures` beside the repository) or, without one, clustered noise. What is
//! built is validated before it is timed. One thread, as one head is built.

use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use hira_index::{
    BuilderConfig, DynamicUpdater, HierarchicalIndex, IncrementalUpdater, IndexConfig,
    KMeansBuilder, KdAxis, KdTreeBuilder, RandomizedBuilder, RebuildUpdater, UpdateConfig,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::SafeTensors;

const CAPTURE: &str = "smollm2-opticks-8192-layer14.safetensors";

/// Where the keys come from, their dimension, and the keys `[N, D]` of one KV head.
fn head() -> (&'static str, usize, Vec<f32>) {
    let folder = std::env::var_os("HIRA_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"),
        PathBuf::from,
    );
    match std::fs::read(folder.join(CAPTURE)) {
        Err(_) => ("synthetic", 64, clustered(8192, 64)),
        Ok(bytes) => {
            let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
            let tensor = file.tensor("k").expect("keys");
            let [_, len, dim] = tensor.shape()[..] else {
                panic!("three dimensions")
            };
            let values = tensor.data().as_chunks::<2>().0.iter().take(len * dim);
            let keys = values.map(|&b| f16::from_le_bytes(b).to_f32()).collect();
            ("capture", dim, keys)
        }
    }
}

fn clustered(len: usize, dim: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(0);
    let centres: Vec<f32> = (0..20 * dim).map(|_| rng.random_range(-3.0..3.0)).collect();
    let mut keys = Vec::with_capacity(len * dim);
    for _ in 0..len {
        let centre = rng.random_range(0..20usize);
        for x in &centres[centre * dim..][..dim] {
            keys.push(x + rng.random_range(-0.3f32..0.3));
        }
    }
    keys
}

fn index(config: &IndexConfig, keys: &[f32]) -> HierarchicalIndex {
    let mut index = HierarchicalIndex::new(config.clone()).expect("a valid shape");
    index.append(keys).expect("valid keys");
    index.seal();
    index
}

fn builders(c: &mut Criterion) {
    let (source, dim, keys) = head();
    let len = keys.len() / dim;
    let mut group = c.benchmark_group(format!("build/{source}/{len}"));
    group
        .sample_size(10)
        .throughput(Throughput::Elements(len as u64));
    for (name, builder) in [
        ("k-means", BuilderConfig::default()),
        (
            "k-means, 3 starts",
            BuilderConfig::KMeans(KMeansBuilder {
                nredo: 3,
                ..KMeansBuilder::default()
            }),
        ),
        (
            "randomized",
            BuilderConfig::Randomized(RandomizedBuilder::default()),
        ),
        ("kd-tree", BuilderConfig::KdTree(KdTreeBuilder::default())),
        (
            "principal",
            BuilderConfig::KdTree(KdTreeBuilder {
                axis: KdAxis::Principal,
            }),
        ),
        ("chunk", BuilderConfig::Chunk),
    ] {
        let config = IndexConfig::new(dim).with_builder(builder);
        index(&config, &keys).validate().expect("a whole index");
        group.bench_function(name, |b| b.iter(|| index(&config, black_box(&keys))));
    }
    group.finish();
}

fn sketch_only(c: &mut Criterion) {
    let (source, dim, keys) = head();
    let len = keys.len() / dim;
    let config = IndexConfig::new(dim).with_num_levels(1);
    let built = index(&config, &keys);
    built.validate().expect("a whole index");
    let sketch = vec![1u8; built.memory_usage().sketch];
    let mut group = c.benchmark_group(format!("sketch/{source}/{len}"));
    group.throughput(Throughput::Elements(len as u64));
    group.bench_function("sketch only", |b| {
        b.iter(|| index(&config, black_box(&keys)))
    });
    // What it cannot do without: the keys are read and stored, the sketch is stored.
    group.bench_function("copy", |b| {
        b.iter(|| (black_box(&keys).clone(), black_box(&sketch).clone()));
    });
    group.finish();
}

fn updates(c: &mut Criterion) {
    let (source, dim, keys) = head();
    let (built, added) = keys.split_at(6144 * dim);
    let added = &added[..512 * dim];
    let mut group = c.benchmark_group(format!("update/{source}/6144 + 512"));
    group.sample_size(10);
    for (name, update) in [
        ("rebuild", UpdateConfig::Rebuild(RebuildUpdater::default())),
        (
            "incremental",
            UpdateConfig::Incremental(IncrementalUpdater::default()),
        ),
        ("dynamic", UpdateConfig::Dynamic(DynamicUpdater::default())),
    ] {
        let config = IndexConfig::new(dim).with_update(update);
        let before = index(&config, built);
        let step = |mut index: HierarchicalIndex| {
            index.append(black_box(added)).expect("valid keys");
            index.seal();
            index
        };
        step(before.clone()).validate().expect("a whole index");
        group.bench_function(name, |b| {
            b.iter_batched(|| before.clone(), step, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, builders, sketch_only, updates);
criterion_main!(benches);
