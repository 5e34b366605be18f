//! Tiers, forks and files change speed and memory, never an answer: random histories with random policies and budgets against a cache in main
//! memory that is copied, not forked, and never saved.
#![cfg(target_os = "linux")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hira_attention::{
    AttentionError, AttentionReport, CacheShape, HiraAttentionConfig, PlanPolicy, ThresholdStrategy,
};
use hira_cache::persist::{LoadOptions, SaveOptions};
use hira_cache::{CacheError, HiraCache};
use hira_kernels::Precision;
use hira_memory::{MemoryError, MemoryPolicy, Part, Tier};
use hira_search::{Plan, PlanChoice};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 16;
const SEGMENT: usize = 64;
const ROW: usize = 2 * DIM * 4;
/// What the open segments of two layers may grow to, with room for a batch.
const LEAST: usize = 2 * KV_HEADS * SEGMENT * ROW;

fn shape(max_len: usize) -> CacheShape {
    CacheShape {
        layers: 2,
        sequences: 1,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        value_dim: DIM,
        max_len,
    }
}

fn config() -> HiraAttentionConfig {
    HiraAttentionConfig {
        segment_len: SEGMENT,
        min_coarse_len: 32,
        branching_factor: 4,
        min_sparse_len: 32,
        tail_block: 16,
        ..HiraAttentionConfig::new()
            .with_top_k(12)
            .with_sinks_and_window(2, 6)
    }
}

fn tiered(config: &HiraAttentionConfig, folder: &Path, budget: usize) -> HiraAttentionConfig {
    config
        .clone()
        .with_host_budget(budget)
        .with_disk_path(folder)
}

fn rows(rng: &mut StdRng, count: usize) -> Vec<f32> {
    (0..count * DIM)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect()
}

fn exact_in_memory(cache: &HiraCache) -> usize {
    let memory = cache.memory();
    let entries = memory.entries().iter();
    let exact = entries.filter(|entry| matches!(entry.part, Part::Keys | Part::Values));
    let here: usize = exact
        .filter(|entry| entry.tier != Tier::Disk)
        .map(|entry| entry.bytes)
        .sum();
    let layers = (0..2).flat_map(|layer| cache.layer(layer).unwrap().heads());
    here - layers.map(|head| head.means().bytes()).sum::<usize>()
}

#[derive(Debug, Clone)]
enum Step {
    /// So many tokens to a layer.
    Forward(usize, usize),
    Truncate(usize),
    Fork,
    /// Saves, and goes on with what is loaded, mapped or not.
    SaveAndLoad(bool),
    Drop,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2usize, 1..4usize).prop_map(|(layer, tokens)| Step::Forward(layer, tokens)),
        5 => (0..2usize, 17..200usize).prop_map(|(layer, tokens)| Step::Forward(layer, tokens)),
        1 => (0..600usize).prop_map(Step::Truncate),
        2 => Just(Step::Fork),
        2 => any::<bool>().prop_map(Step::SaveAndLoad),
        1 => Just(Step::Drop),
        1 => Just(Step::Reset),
    ]
}

fn policy() -> impl Strategy<Value = MemoryPolicy> {
    prop_oneof![
        Just(MemoryPolicy::AllDevice),
        Just(MemoryPolicy::AllHost),
        Just(MemoryPolicy::Hybrid { num_fast_levels: 2 }),
        (0.1f32..1.0).prop_map(|target_usage| MemoryPolicy::Adaptive { target_usage }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn answers_do_not_depend_on_tiers_forks_or_files(
        steps in prop::collection::vec(step(), 4..28),
        policy in policy(),
        budget in 2 * LEAST..8 * LEAST,
        sampled in any::<bool>(),
        compensated in any::<bool>(),
        plan in prop_oneof![Just(PlanPolicy::Auto), Just(PlanPolicy::Sparse), Just(PlanPolicy::Dense)],
        precision in prop_oneof![Just(Precision::F32), Just(Precision::F16), Just(Precision::Bf16)],
        seed in any::<u64>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config().with_plan(plan).with_precision(precision);
        config.memory_policy = policy;
        config.use_hira_during_prefill = sampled;
        config.tail_compensation = compensated;
        if sampled {
            config.threshold_strategy = ThresholdStrategy::SampleTopK;
        }
        let host = HiraAttentionConfig { memory_policy: MemoryPolicy::AllHost, ..config.clone() };
        let attention = config.init_host().unwrap();
        let mut caches = vec![(
            host.init_cache(shape(2000)).unwrap(),
            tiered(&config, folder.path(), budget).init_cache(shape(2000)).unwrap(),
        )];
        let files = tempfile::tempdir().unwrap();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut has_forked = false;
        for step in steps {
            let last = caches.len() - 1;
            let (plain, placed) = &mut caches[last];
            match step {
                Step::Forward(layer, tokens) => {
                    if plain.seq_len(layer) + tokens > 2000 {
                        continue;
                    }
                    let [q, k, v] = [HEADS, KV_HEADS, KV_HEADS].map(|heads| rows(&mut rng, heads * tokens));
                    let mut outs = [(); 2].map(|()| vec![f32::NAN; HEADS * tokens * DIM]);
                    let [expected, found] = &mut outs;
                    let a = attention.forward_into(HEADS, &q, &k, &v, plain, layer, expected).unwrap();
                    let b = attention.forward_into(HEADS, &q, &k, &v, placed, layer, found).unwrap();
                    let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(expected), bits(found));
                    if !has_forked {
                        // a fork's segments end elsewhere: their bounds are others
                        prop_assert_eq!(a.certificates, b.certificates);
                    }
                    prop_assert!(exact_in_memory(placed) <= budget, "{} of {budget}", exact_in_memory(placed));
                }
                Step::Truncate(len) => {
                    plain.truncate(len).unwrap();
                    placed.truncate(len).unwrap();
                }
                Step::Fork => {
                    // Where a fork's segments end decides bounds, and with them plans and what is compensated.
                    let forks = !compensated && plan != PlanPolicy::Auto;
                    let fork = if forks { placed.fork() } else { placed.clone() };
                    has_forked |= forks;
                    let fork = (plain.clone(), fork);
                    caches.push(fork);
                }
                Step::SaveAndLoad(mapped) => {
                    placed.save(files.path(), &SaveOptions::default()).unwrap();
                    let options = LoadOptions::default().with_mapped(mapped);
                    *placed = HiraCache::load(files.path(), placed.config().clone(), &options).unwrap().cache;
                    prop_assert!(exact_in_memory(placed) <= budget, "{} of {budget}", exact_in_memory(placed));
                }
                Step::Drop => {
                    if last > 0 {
                        caches.remove(0);
                    }
                }
                Step::Reset => {
                    plain.reset();
                    placed.reset();
                }
            }
        }
        for (plain, placed) in &caches {
            for layer in 0..2 {
                let heads = |cache: &HiraCache| cache.layer(layer).unwrap().heads().to_vec();
                for (plain, placed) in heads(plain).iter().zip(&heads(placed)) {
                    for position in 0..plain.len() {
                        prop_assert_eq!(plain.run(position..position + 1), placed.run(position..position + 1));
                    }
                    prop_assert_eq!(placed.index().validate(), Ok(()));
                }
            }
        }
        prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// A cache of ten segments with room in memory for three, and one in memory.
fn long(policy: MemoryPolicy, folder: &Path) -> (HiraAttentionConfig, HiraCache, HiraCache) {
    let mut config = config();
    config.memory_policy = policy;
    let mut plain = config.init_cache(shape(2000)).unwrap();
    let placed = tiered(&config, folder, 3 * LEAST);
    let mut placed = placed.init_cache(shape(2000)).unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    for layer in 0..2 {
        let [keys, values] = [(); 2].map(|()| rows(&mut rng, KV_HEADS * 10 * SEGMENT));
        plain.append(layer, &keys, &values).unwrap();
        placed.append(layer, &keys, &values).unwrap();
    }
    (config, plain, placed)
}

#[test]
fn rows_lie_where_the_report_says() {
    let exact = 2 * KV_HEADS * 10 * SEGMENT * ROW;
    for policy in [
        MemoryPolicy::AllHost,
        MemoryPolicy::AllDevice,
        MemoryPolicy::Adaptive { target_usage: 0.8 },
        MemoryPolicy::Hybrid { num_fast_levels: 2 },
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (_, plain, placed) = long(policy, folder.path());
        let on_disk = placed.memory().on(Tier::Disk);
        let here = exact_in_memory(&placed);
        assert_eq!(on_disk + here, exact, "{policy:?}");
        assert!(here <= 3 * LEAST && here > 0, "{policy:?}: {here}");
        if let MemoryPolicy::Hybrid { .. } = policy {
            // sinks, and the window: the last segment
            assert_eq!(here, 2 * KV_HEADS * 2 * SEGMENT * ROW);
        }
        let statistics = placed.tier_statistics();
        assert!(statistics.demoted_bytes >= on_disk as u64);
        assert_eq!(statistics.failed_moves, 0);
        assert_eq!(plain.memory().on(Tier::Disk), 0);
        assert_eq!(plain.tier_statistics().demoted_bytes, 0);
        let head = &placed.layer(0).unwrap().heads()[0];
        let first = head.index().segment(0).unwrap();
        assert!(!first.rows().is_on_disk(), "sinks are pinned");
    }
}

#[test]
fn adaptive_brings_back_what_steps_read() {
    let folder = tempfile::tempdir().unwrap();
    // Room for what is pinned or open, and for more.
    let config = HiraAttentionConfig {
        memory_policy: MemoryPolicy::Adaptive { target_usage: 1.0 },
        // a search that scores every key reads all of them alike
        search_plan: PlanChoice::Force(Plan::SketchScan),
        ..config()
    };
    let placed = tiered(&config, folder.path(), 6 * LEAST);
    let mut cache = placed.init_cache(shape(2000)).unwrap();
    // Queries point to the keys of the third segment.
    let wanted = 2;
    let mut rng = StdRng::seed_from_u64(7);
    for layer in 0..2 {
        let [mut keys, values] = [(); 2].map(|()| rows(&mut rng, KV_HEADS * 10 * SEGMENT));
        for head in keys.chunks_exact_mut(10 * SEGMENT * DIM) {
            let segment = head.chunks_exact_mut(SEGMENT * DIM).nth(wanted).unwrap();
            segment.iter_mut().step_by(DIM).for_each(|x| *x += 4.0);
        }
        cache.append(layer, &keys, &values).unwrap();
    }
    let mut query = vec![0.0; HEADS * DIM];
    query.iter_mut().step_by(DIM).for_each(|x| *x = 20.0);
    let attention = config.with_plan(PlanPolicy::Sparse).init_host().unwrap();
    let is_on_disk = |cache: &HiraCache| {
        let heads = cache.layer(0).unwrap().heads();
        let segments = heads
            .iter()
            .map(|head| head.index().segment(wanted).unwrap());
        segments
            .map(|segment| segment.rows().is_on_disk())
            .collect::<Vec<_>>()
    };
    assert_eq!(is_on_disk(&cache), [true; KV_HEADS]);
    let small = vec![1e-3; KV_HEADS * DIM];
    let mut out = vec![0.0; HEADS * DIM];
    for _ in 0..600 {
        attention
            .forward_into(HEADS, &query, &small, &small, &mut cache, 0, &mut out)
            .unwrap();
    }
    let statistics = cache.tier_statistics();
    assert!(statistics.promoted_bytes > 0, "{statistics:?}");
    assert!(
        statistics.disk_rows > 0 && statistics.hits > 0,
        "{statistics:?}"
    );
    assert_eq!(is_on_disk(&cache), [false; KV_HEADS]);
}

fn refusal(cache: &mut HiraCache, tokens: usize) -> MemoryError {
    let before = cache.clone();
    let rows = vec![0.5; KV_HEADS * tokens * DIM];
    let error = cache.append(0, &rows, &rows).unwrap_err();
    assert_eq!(cache.seq_len(0), before.seq_len(0));
    for (head, old) in cache
        .layer(0)
        .unwrap()
        .heads()
        .iter()
        .zip(before.layer(0).unwrap().heads())
    {
        assert_eq!(
            head.run(0..head.len().min(SEGMENT)),
            old.run(0..head.len().min(SEGMENT))
        );
        assert_eq!(head.index().validate(), Ok(()));
    }
    match error {
        CacheError::Memory(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_fits_nowhere_is_refused_before_it_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let config = HiraAttentionConfig {
        host_budget: Some(3 * LEAST),
        ..config()
    };
    let mut cache = config.init_cache(shape(5000)).unwrap();
    let error = refusal(&mut cache, 7 * SEGMENT);
    assert!(
        matches!(
            error,
            MemoryError::TierFull {
                tier: Tier::Host,
                ..
            }
        ),
        "{error}"
    );
    let half = vec![0.5; KV_HEADS * 5 * SEGMENT * DIM];
    cache.append(0, &half, &half).unwrap();
    assert!(exact_in_memory(&cache) <= 3 * LEAST);
    refusal(&mut cache, 2 * SEGMENT);

    let config = HiraAttentionConfig {
        disk_budget: Some(2 * LEAST),
        disk_path: Some(folder.path().to_path_buf()),
        ..config
    };
    let mut cache = config.init_cache(shape(5000)).unwrap();
    cache.append(0, &half, &half).unwrap();
    let error = refusal(&mut cache, 10 * SEGMENT);
    assert!(
        matches!(
            error,
            MemoryError::TierFull {
                tier: Tier::Disk,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(cache.tier_statistics().failed_moves, 0);
}

#[test]
fn a_folder_that_cannot_take_rows_is_a_typed_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    for path in [folder.path().join("missing"), file] {
        let config = config().with_disk_path(&path);
        match config.init_cache(shape(100)).unwrap_err() {
            AttentionError::Cache(CacheError::Memory(MemoryError::Spill { folder, .. })) => {
                assert_eq!(folder, path);
            }
            other => panic!("{other:?}"),
        }
    }
    let closed = folder.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).unwrap();
    match config().with_disk_path(&closed).init_cache(shape(100)) {
        Ok(_) => println!("skipped: this user may write to any folder"),
        Err(AttentionError::Cache(CacheError::Memory(MemoryError::Spill { kind, .. }))) => {
            assert_eq!(kind, std::io::ErrorKind::PermissionDenied);
        }
        Err(other) => panic!("{other:?}"),
    }
    let error = HiraAttentionConfig::from_toml("disk_budget = 100").unwrap_err();
    assert!(error.to_string().contains("disk_budget"), "{error}");
}

#[test]
fn readers_of_a_fork_and_moves_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (config, mut plain, mut placed) =
        long(MemoryPolicy::Adaptive { target_usage: 0.8 }, folder.path());
    let attention = config.init_host().unwrap();
    let mut rng = StdRng::seed_from_u64(3);
    let [q, k, v] = [HEADS, KV_HEADS, KV_HEADS].map(|heads| rows(&mut rng, heads));
    let mut expected = vec![0.0; HEADS * DIM];
    let mut fork = placed.clone();
    attention
        .forward_into(HEADS, &q, &k, &v, &mut plain, 0, &mut expected)
        .unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // moves rows that the other thread reads
            let more = vec![0.25; KV_HEADS * 100 * DIM];
            for _ in 0..10 {
                placed.append(1, &more, &more).unwrap();
            }
        });
        for _ in 0..40 {
            let (mut out, mut report) = (vec![0.0; HEADS * DIM], AttentionReport::new(0, 0));
            attention
                .forward_reusing(HEADS, &q, &k, &v, &mut fork, 0, &mut out, &mut report)
                .unwrap();
            assert_eq!(out, expected);
            fork.truncate(10 * SEGMENT).unwrap();
        }
    });
}

#[test]
fn what_one_layer_holds_is_known_when_room_is_made_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let budget = 2 * LEAST + 2048;
    let placed = tiered(&config(), folder.path(), budget);
    let mut cache = placed.init_cache(shape(2000)).unwrap();
    let mut rng = StdRng::seed_from_u64(0);
    for (layer, tokens) in [(0, 67), (1, 38), (1, 150), (0, 34)] {
        let [keys, values] = [KV_HEADS; 2].map(|heads| rows(&mut rng, heads * tokens));
        cache.append(layer, &keys, &values).unwrap();
        let held = exact_in_memory(&cache);
        assert!(held <= budget, "{held} of {budget}");
    }
}
