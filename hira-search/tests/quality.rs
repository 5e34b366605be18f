//! Clusters do not decay: after eight updates the tree plan reads hardly more keys than after building anew.
//!
//! Reads `$HIRA_CAPTURES`, or `shared/captures` beside the repository, for real attention keys; without either it says so and checks
//! synthetic ones only.

mod common;

use std::path::{Path, PathBuf};

use common::search;
use half::f16;
use hira_index::{HierarchicalIndex, IncrementalUpdater, IndexConfig, UpdateConfig};
use hira_search::{Plan, PlanChoice, SearchConfig, search_naive};
use hira_threshold::ThresholdRule;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::SafeTensors;

/// Updates, and keys in each.
const UPDATES: usize = 8;
const KEYS: usize = 512;

/// How many times more keys may be read than after building anew.
const LIMIT: f64 = 1.15;

/// Keys read by the tree plan for all queries, each on its own, as a fraction of all keys.
///
/// The threshold is the 64th best score, given to the search: then what it reads is a matter of the clusters alone, not of how well it
/// guessed a first threshold.
fn scanned(index: &HierarchicalIndex, queries: &[f32]) -> f64 {
    let best = ThresholdRule::TopK { k: 64 };
    let config = SearchConfig::default().with_plan(PlanChoice::Force(Plan::Tree));
    let queries = queries.chunks_exact(index.dim());
    let all = queries.len() * index.len();
    let scanned = queries.map(|query| {
        let (_, scores) = search_naive(index, query, index.len(), &best).unwrap();
        let tau = scores.iter().copied().fold(f32::INFINITY, f32::min);
        let rule = ThresholdRule::Fixed { tau };
        let found = search(index, query, index.len(), &rule, 0.0, config.clone());
        assert!(found[0].positions.len() >= scores.len());
        found[0].stats.scanned
    });
    scanned.sum::<usize>() as f64 / all as f64
}

/// Compares an index of `keys` whose last eight batches joined its clusters with one that was built at once.
fn compare(name: &str, keys: &[f32], dim: usize, queries: &[f32]) -> (f64, f64) {
    let update = UpdateConfig::Incremental(IncrementalUpdater {
        every: KEYS,
        rebuild_every: u32::MAX,
    });
    let config = IndexConfig::new(dim)
        .with_segment_len(16384)
        .with_min_coarse_len(KEYS);
    let first = keys.len() - UPDATES * KEYS * dim;
    let mut updated = HierarchicalIndex::new(config.clone().with_update(update)).unwrap();
    updated.append(&keys[..first]).unwrap();
    for batch in keys[first..].chunks(KEYS * dim) {
        updated.append(batch).unwrap();
    }
    let mut fresh = HierarchicalIndex::new(config).unwrap();
    fresh.append(keys).unwrap();
    fresh.seal();
    for (index, updates) in [(&updated, UPDATES as u32), (&fresh, 0)] {
        let segments: Vec<_> = index.segments().collect();
        assert_eq!(segments.len(), 1);
        assert_eq!(
            (segments[0].len(), segments[0].updates()),
            (keys.len() / dim, updates)
        );
        index.validate().unwrap();
    }
    let (updated, fresh) = (scanned(&updated, queries), scanned(&fresh, queries));
    println!(
        "{name}: {updated:.4} of the keys scanned after updates, {fresh:.4} after building anew"
    );
    assert!(
        updated <= LIMIT * fresh,
        "{name}: {updated} against {fresh}"
    );
    (updated, fresh)
}

/// A sum of uniform values that is nearly normal, with variance 1.
fn normal(random: &mut StdRng) -> f32 {
    (0..12).map(|_| random.random_range(-0.5f32..0.5)).sum()
}

/// Twenty centres of norm 15, noise of 0.15 in each column.
#[test]
fn clusters_of_synthetic_keys_do_not_decay() {
    let dim = 64;
    let random = &mut StdRng::seed_from_u64(1);
    let mut centres: Vec<f32> = (0..20 * dim).map(|_| normal(random)).collect();
    for centre in centres.chunks_mut(dim) {
        let norm = centre.iter().map(|x| x * x).sum::<f32>().sqrt();
        centre.iter_mut().for_each(|x| *x *= 15.0 / norm);
    }
    let mut around = |count: usize, noise: f32| -> Vec<f32> {
        let mut rows = Vec::with_capacity(count * dim);
        for _ in 0..count {
            let centre = random.random_range(0..20usize);
            for x in &centres[centre * dim..][..dim] {
                rows.push(x + noise * normal(random));
            }
        }
        rows
    };
    for len in [5000, 8192] {
        let keys = around(len, 0.15);
        let queries = around(48, 0.5);
        let (updated, _) = compare(&format!("{len} clustered keys"), &keys, dim, &queries);
        assert!(updated < 0.5, "the tree prunes: {updated}");
    }
}

#[test]
fn clusters_of_captured_keys_do_not_decay() {
    let folder = std::env::var_os("HIRA_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"),
        PathBuf::from,
    );
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!(
            "skipped: no captures at {} (set HIRA_CAPTURES)",
            folder.display()
        );
        return;
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|ending| ending == "safetensors")
    });
    files.sort();
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let [(keys, [heads, len, dim]), (queries, [query_heads, rows, _])] =
            ["k", "q"].map(|name| {
                let tensor = tensors.tensor(name).unwrap();
                let values = tensor.data().as_chunks::<2>().0.iter();
                let values: Vec<f32> = values.map(|&b| f16::from_le_bytes(b).to_f32()).collect();
                let shape: [usize; 3] = tensor.shape().try_into().unwrap();
                (values, shape)
            });
        let group = query_heads / heads;
        for head in 0..heads {
            // The last rows of the group's queries, which see nearly all keys.
            let last = (head * group..(head + 1) * group).flat_map(|q| {
                let end = (q + 1) * rows * dim;
                &queries[end - 8 * dim..end]
            });
            let last: Vec<f32> = last.copied().collect();
            let keys = &keys[head * len * dim..(head + 1) * len * dim];
            let name = format!("{} head {head}", file.file_name().unwrap().display());
            compare(&name, keys, dim, &last);
        }
    }
}
