//! Saved caches: any history of appends, truncations, forks, saves and loads against a cache that was never saved, and what is refused.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hira_cache::persist::{Inspection, LoadOptions, PersistError, SaveOptions, Verify};
use hira_cache::{CacheConfig, CacheError, HeadCache, HiraCache};
use hira_index::{IndexConfig, ProductConfig, UpdateConfig};
use hira_kernels::{Precision, Region};
use hira_memory::{Budget, Part, Tier};
use proptest::prelude::*;

const DIM: usize = 5;
const HEADS: usize = 4;

fn config(precision: Precision, variant: usize) -> CacheConfig {
    let mut index = IndexConfig {
        dim: DIM,
        num_levels: 3,
        branching_factor: 4,
        segment_len: 32,
        min_coarse_len: 8,
        precision,
        ..IndexConfig::default()
    };
    match variant {
        1 => index.product = Some(ProductConfig::default()),
        2 => index.update = UpdateConfig::Dynamic(Default::default()),
        3 => (index.num_levels, index.sketch_from) = (1, 40),
        4 => index.num_levels = 0,
        5 => index.background = true,
        _ => {}
    }
    // a window of the second layer, so that it evicts
    let windows = match variant {
        6 => vec![None, Some(40)],
        _ => Vec::new(),
    };
    CacheConfig::new(2, 1, 2, DIM, 400)
        .with_windows(windows)
        .with_value_dim(3)
        .with_tail_block(16)
        .with_index(index)
}

fn rows(seed: u64, len: usize) -> Vec<f32> {
    let value = |i: u64| ((seed * 7919 + i * 104_729) % 1009) as f32 / 100.0 - 5.0;
    (0..len as u64).map(value).collect()
}

fn append(cache: &mut HiraCache, seed: u64, tokens: usize) {
    for layer in 0..2 {
        let keys = rows(seed + layer as u64, HEADS / 2 * tokens * DIM);
        let values = rows(seed + 50 + layer as u64, HEADS / 2 * tokens * 3);
        cache.append(layer, &keys, &values).unwrap();
    }
}

/// Everything that a head is, and that later answers and appends depend on.
fn assert_same(found: &HiraCache, expected: &HiraCache) {
    assert_eq!(found.len(), expected.len());
    for layer in 0..2 {
        let heads = |cache: &'_ HiraCache| cache.layer(layer).unwrap().heads().to_vec();
        for (a, b) in heads(found).into_iter().zip(heads(expected)) {
            let (x, y) = (a.index(), b.index());
            let all = |index: &hira_index::HierarchicalIndex| -> Vec<u8> {
                let mut bytes = Vec::new();
                for segment in index.sealed().iter().map(|s| &**s).chain([index.open()]) {
                    segment.parts().encode(&mut bytes);
                    bytes.extend_from_slice(segment.keys().as_bytes());
                }
                bytes
            };
            assert_eq!(x.dump(), y.dump());
            assert!(all(x) == all(y));
            let (mut s, mut t) = (Vec::new(), Vec::new());
            x.sample_positions(usize::MAX, &mut s);
            y.sample_positions(usize::MAX, &mut t);
            assert_eq!(s, t);
            let runs = |head: &'_ hira_cache::HeadCache| -> Vec<_> {
                let runs = head.values().runs();
                runs.map(|(start, rows)| (start, rows.as_slice().as_bytes().to_vec()))
                    .collect()
            };
            assert_eq!(runs(&a), runs(&b));
            assert!(a.means().runs().eq(b.means().runs()));
            let norms = |h: &hira_cache::HeadCache| [h.max_key_norm(), h.max_value_norm()];
            assert_eq!(norms(&a).map(f32::to_bits), norms(&b).map(f32::to_bits));
            assert_eq!((a.history(), a.widening()), (b.history(), b.widening()));
        }
    }
}

fn load(folder: &Path, config: &CacheConfig) -> Result<HiraCache, PersistError> {
    load_with(folder, config, &LoadOptions::default())
}

fn load_with(
    folder: &Path,
    config: &CacheConfig,
    options: &LoadOptions,
) -> Result<HiraCache, PersistError> {
    HiraCache::load(folder, config.clone(), options).map(|loaded| loaded.cache)
}

/// The heads of all layers.
fn heads(cache: &HiraCache) -> impl Iterator<Item = &HeadCache> {
    let layers = (0..cache.config().layers).map(|layer| cache.layer(layer).unwrap());
    layers.flat_map(|layer| layer.heads())
}

/// Runs of exact rows that are read where the files have them.
fn rows_on_disk(cache: &HiraCache) -> usize {
    let on_disk = |head: &HeadCache| {
        let keys = head
            .index()
            .sealed()
            .iter()
            .map(|segment| segment.rows().is_on_disk());
        let values = head.values().runs().map(|(_, rows)| rows.is_on_disk());
        keys.chain(values).filter(|&on_disk| on_disk).count()
    };
    heads(cache).map(on_disk).sum()
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Truncate(usize),
    Fork,
    Swap,
    Save(bool),
    Load(bool, LoadOptions),
}

fn load_options() -> impl Strategy<Value = LoadOptions> {
    (any::<bool>(), any::<bool>()).prop_map(|(mapped, all)| {
        let verify = if all { Verify::All } else { Verify::Manifest };
        LoadOptions::default()
            .with_mapped(mapped)
            .with_verify(verify)
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40usize).prop_map(Step::Append),
        2 => (0..120usize).prop_map(Step::Truncate),
        1 => Just(Step::Fork),
        1 => Just(Step::Swap),
        3 => any::<bool>().prop_map(Step::Save),
        3 => (any::<bool>(), load_options()).prop_map(|(which, options)| Step::Load(which, options)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two folders and two forks: each folder always holds what was saved there last, and what is loaded goes on as the original does.
    #[test]
    fn saved_caches_are_those_that_were_never_saved(
        steps in prop::collection::vec(step(), 1..24),
        precision in prop::sample::select(Precision::ALL.to_vec()),
        variant in 0..7usize,
    ) {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let config = config(precision, variant);
        // each a cache that is saved and loaded, and one that never is
        let empty = HiraCache::new(config.clone()).unwrap();
        let mut forks = [(empty.clone(), empty.clone()), (empty.clone(), empty)];
        let mut saved: [Option<HiraCache>; 2] = [None, None];
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(tokens) => {
                    let tokens = tokens.min(400 - forks[0].0.len());
                    append(&mut forks[0].0, i as u64, tokens);
                    append(&mut forks[0].1, i as u64, tokens);
                }
                Step::Truncate(len) => {
                    // a window may refuse: both or neither
                    let cut = forks[0].0.truncate(len).is_ok();
                    prop_assert_eq!(cut, forks[0].1.truncate(len).is_ok());
                }
                Step::Fork => forks[1] = (forks[0].0.fork(), forks[0].1.fork()),
                Step::Swap => forks.swap(0, 1),
                Step::Save(which) => {
                    let which = usize::from(which);
                    let folder = folders[which].path();
                    forks[0].0.save(folder, &SaveOptions::default()).unwrap();
                    saved[which] = Some(forks[0].1.clone());
                }
                Step::Load(which, options) => {
                    let which = usize::from(which);
                    let loaded = load_with(folders[which].path(), &config, &options);
                    match &saved[which] {
                        None => prop_assert!(matches!(loaded, Err(PersistError::Missing { .. })), "{loaded:?}"),
                        // in the background the time of a build decides which segments there are
                        Some(expected) if variant != 5 => {
                            let loaded = loaded.unwrap();
                            assert_same(&loaded, expected);
                            forks[0] = (loaded, expected.clone());
                        }
                        Some(expected) => {
                            let loaded = loaded.unwrap();
                            prop_assert_eq!(loaded.len(), expected.len());
                            for (a, b) in (0..2).flat_map(|layer| {
                                let heads = |cache: &HiraCache| cache.layer(layer).unwrap().heads().to_vec();
                                heads(&loaded).into_iter().zip(heads(expected))
                            }) {
                                a.index().validate().unwrap();
                                for position in 0..b.len() {
                                    prop_assert_eq!(a.index().key(position), b.index().key(position));
                                    prop_assert_eq!(a.values().row(position), b.values().row(position));
                                }
                            }
                            forks[0] = (loaded, expected.clone());
                        }
                    }
                }
            }
        }
        if variant != 5 {
            assert_same(&forks[0].0, &forks[0].1);
        }
        for head in forks[0].0.layer(0).unwrap().heads() {
            head.index().validate().unwrap();
        }
    }
}

fn saved(tokens: usize) -> (tempfile::TempDir, CacheConfig, HiraCache) {
    let folder = tempfile::tempdir().unwrap();
    let config = config(Precision::F32, 1);
    let mut cache = HiraCache::new(config.clone()).unwrap();
    append(&mut cache, 1, tokens);
    let options = SaveOptions::default().with_model("one");
    cache.save(folder.path(), &options).unwrap();
    (folder, config, cache)
}

#[test]
fn only_what_is_new_is_written() {
    let (folder, config, mut cache) = saved(250);
    let options = SaveOptions::default();
    let again = cache.save(folder.path(), &options).unwrap();
    assert_eq!((again.written_parts, again.written_bytes), (0, 0));
    append(&mut cache, 9, 1);
    let more = cache.save(folder.path(), &options).unwrap();
    assert!(more.written_bytes * 4 < more.kept_bytes, "{more:?}");
    assert_same(&load(folder.path(), &config).unwrap(), &cache);
    // what is loaded knows what it was saved as, and another folder gets all of it
    let loaded = load(folder.path(), &config).unwrap();
    assert_eq!(
        loaded.save(folder.path(), &options).unwrap().written_parts,
        0
    );
    let other = tempfile::tempdir().unwrap();
    loaded.save(other.path(), &options).unwrap();
    assert_same(&load(other.path(), &config).unwrap(), &cache);
    cache.reset();
    cache.save(folder.path(), &options).unwrap();
    assert!(
        Inspection::read(folder.path(), Verify::All)
            .unwrap()
            .file_bytes
            < 20_000
    );
    assert!(load(folder.path(), &config).unwrap().is_empty());
}

/// Rows that stay in the files are no other rows, whoever saves there in the meantime, and count as what is on disk.
#[test]
fn mapped_rows_stay_in_the_files() {
    if !Region::is_supported() {
        return;
    }
    let (folder, config, mut cache) = saved(250);
    assert_eq!(rows_on_disk(&load(folder.path(), &config).unwrap()), 0);
    let mapped = LoadOptions::default().with_mapped(true);
    let mut loaded = load_with(folder.path(), &config, &mapped).unwrap();
    // keys and values of seven complete segments, two layers of two heads each
    assert_eq!(rows_on_disk(&loaded), 2 * 7 * HEADS);
    let rows = 7 * 32 * HEADS * (DIM + 3) * 4;
    assert!(loaded.memory().on(Tier::Disk) >= rows);
    assert_same(&loaded, &cache);

    // the state that is mapped is replaced, and its files are removed
    let options = SaveOptions::default();
    let mut other = HiraCache::new(config.clone()).unwrap();
    append(&mut other, 77, 33);
    other.save(folder.path(), &options).unwrap();
    assert_same(&loaded, &cache);
    append(&mut cache, 5, 60);
    append(&mut loaded, 5, 60);
    assert_same(&loaded, &cache);
    loaded.truncate(100).unwrap();
    cache.truncate(100).unwrap();
    assert_same(&loaded, &cache);
    loaded.save(folder.path(), &options).unwrap();
    assert_same(&load(folder.path(), &config).unwrap(), &cache);
}

/// A cache that is larger than main memory's budget is loaded without ever being in it; what comes later keeps to the budget, and to that of the disk.
#[test]
fn a_tier_below_maps_what_it_loads() {
    if !Region::is_supported() {
        return;
    }
    let (folder, config, mut cache) = saved(250);
    let spill = tempfile::tempdir().unwrap();
    let limit = 120_000;
    let with = |disk: usize| {
        let config = config.clone().with_host_budget(Budget::limited(limit));
        config.with_disk(spill.path(), Budget::limited(disk))
    };
    // the files that were loaded take nothing of the disk's budget
    let mut loaded = load(folder.path(), &with(0)).unwrap();
    assert_eq!(rows_on_disk(&loaded), 2 * 7 * HEADS);
    assert_same(&loaded, &cache);
    let mut loaded_with_room = load(folder.path(), &with(1 << 20)).unwrap();
    for cache in [&mut cache, &mut loaded, &mut loaded_with_room] {
        append(cache, 6, 6);
    }
    assert_same(&loaded, &cache);
    for cache in [&mut cache, &mut loaded_with_room] {
        append(cache, 7, 90);
    }
    assert_same(&loaded_with_room, &cache);
    let rows = |part| {
        let memory = loaded_with_room.memory();
        let here = memory.entries().iter();
        let here = here.filter(|entry| entry.tier == Tier::Host && entry.part == part);
        here.map(|entry| entry.bytes).sum::<usize>()
    };
    assert!(rows(Part::Keys) + rows(Part::Values) <= limit + means_bytes(&loaded_with_room));
}

/// Bit for bit, and the same rows when it is turned back.
#[test]
fn what_is_reindexed_is_what_was_appended_there() {
    let (_folder, config, mut cache) = saved(250);
    let mut other = config.clone();
    other.index.segment_len = 80;
    other.index.num_levels = 1;
    other.index.product = None;
    other.tail_block = 32;
    let mut expected = HiraCache::new(other.clone()).unwrap();
    append(&mut expected, 1, 250);
    let mut found = cache.reindexed(other.clone()).unwrap();
    assert_same(&found, &expected);
    append(&mut found, 4, 30);
    append(&mut expected, 4, 30);
    assert_same(&found, &expected);
    // there and back again: the rows, as batches decide about centres
    append(&mut cache, 4, 30);
    let back = found.reindexed(config).unwrap();
    for (a, b) in heads(&back).zip(heads(&cache)) {
        a.index().validate().unwrap();
        for position in 0..280 {
            assert_eq!(a.index().key(position), b.index().key(position));
            assert_eq!(a.values().row(position), b.values().row(position));
        }
    }

    let mut refused = other.clone();
    refused.kv_heads = 3;
    let message = cache.reindexed(refused).unwrap_err().to_string();
    assert_eq!(
        message,
        "kv_heads: must be that of the cache whose tokens are taken over, received 3"
    );
    refused = other.clone();
    refused.max_len = 279;
    assert!(matches!(
        cache.reindexed(refused),
        Err(CacheError::Capacity { .. })
    ));
    let mut windowed = HiraCache::new(other.clone().with_windows(vec![None, Some(40)])).unwrap();
    append(&mut windowed, 1, 250);
    append(&mut windowed, 2, 1);
    assert!(matches!(
        windowed.reindexed(other),
        Err(CacheError::Forgotten { layer: 1, .. })
    ));
}

/// Means of values are reported with the values, and are not in the budget of rows.
fn means_bytes(cache: &HiraCache) -> usize {
    heads(cache).map(|head| head.means().bytes()).sum()
}

/// A bit in every byte of the manifest and of the headers and in some of every part, many lengths, no file: the state as it was, or an error.
#[test]
fn damaged_files_are_refused() {
    let (folder, config, mut cache) = saved(70);
    append(&mut cache, 5, 30);
    let options = SaveOptions::default().with_model("one");
    cache.save(folder.path(), &options).unwrap();
    let mapped = LoadOptions::default().with_mapped(true);
    let check = |what: &str| match load(folder.path(), &config) {
        Ok(loaded) => {
            assert_same(&loaded, &cache);
            let loaded = load_with(folder.path(), &config, &mapped).unwrap();
            assert_same(&loaded, &cache);
            1
        }
        Err(error) => {
            assert!(!error.to_string().is_empty(), "{what}");
            let refused = load_with(folder.path(), &config, &mapped).unwrap_err();
            assert_eq!(refused.to_string(), error.to_string(), "{what}");
            0
        }
    };
    let mut files: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.retain(|path| !path.ends_with("LOCK"));
    assert!(files.len() >= 2);
    for path in files {
        let bytes = fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let is_manifest = name == "MANIFEST";
        let mut harmless = 0;
        let mut tried = 0;
        // every byte of the manifest and of the headers, and by a prime step some of every part
        let step = if is_manifest { 1 } else { 61 };
        for at in (0..bytes.len().min(80)).chain((80..bytes.len()).step_by(step)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            harmless += check(&format!("{name}, bit at {at}"));
            tried += 1;
        }
        // only padding may change unnoticed
        assert!(!is_manifest || harmless == 0);
        assert!(harmless < tried);
        for len in (0..64)
            .chain((64..bytes.len()).step_by(997))
            .chain([bytes.len() - 1])
        {
            fs::write(&path, &bytes[..len]).unwrap();
            assert_eq!(check("cut"), 0, "{name} cut to {len}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        fs::write(&path, &longer).unwrap();
        assert_eq!(check("longer"), 0);
        fs::remove_file(&path).unwrap();
        assert_eq!(check("removed"), 0);
        assert!(matches!(
            load(folder.path(), &config),
            Err(PersistError::Missing { .. })
        ));
        fs::write(&path, &bytes).unwrap();
        assert_eq!(check("whole"), 1);
    }
}

#[test]
fn another_model_layout_version_or_byte_order_is_named() {
    let (folder, config, _) = saved(40);
    let folder = folder.path();
    let message = |config: &CacheConfig, model: Option<&str>| {
        let mut options = LoadOptions::default();
        options.model = model.map(str::to_owned);
        HiraCache::load(folder, config.clone(), &options)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message(&config, Some("two")),
        "the cache was saved for the model \"one\", expected \"two\""
    );
    let mut other = config.clone();
    other.index.precision = Precision::Bf16;
    assert_eq!(
        message(&other, None),
        "the cache was saved with index.precision = \"f32\", expected \"bf16\""
    );
    other = config.clone();
    other.index.product = None;
    assert!(message(&other, None).starts_with("the cache was saved with index.product = {"));
    other = config.clone();
    other.layers = 3;
    assert_eq!(
        message(&other, None),
        "the cache was saved with layers = 2, expected 3"
    );
    other = config.clone();
    other.max_len = 39;
    assert_eq!(
        message(&other, None),
        "the cache was saved with len = 40, expected at most max_len, 39"
    );
    other = config.clone();
    (other.max_len, other.index.background) = (1000, true);
    assert_eq!(load(folder, &other).unwrap().config().max_len, 1000);

    let path = folder.join("MANIFEST");
    let bytes = fs::read(&path).unwrap();
    let edit = |at: usize, new: [u8; 4]| {
        let mut edited = bytes.clone();
        edited[at..at + 4].copy_from_slice(&new);
        fs::write(&path, edited).unwrap();
        load(folder, &config).unwrap_err()
    };
    let marker: [u8; 4] = [bytes[11], bytes[10], bytes[9], bytes[8]];
    assert!(
        matches!(edit(8, marker), PersistError::Endianness { expected, found, .. } if expected != found)
    );
    let error = edit(12, 7u32.to_ne_bytes());
    assert!(
        matches!(
            error,
            PersistError::Version {
                expected: 2,
                found: 7,
                ..
            }
        ),
        "{error}"
    );
    // a later version is not replaced
    let empty = HiraCache::new(config.clone()).unwrap();
    let refused = empty.save(folder, &SaveOptions::default());
    assert!(matches!(refused, Err(PersistError::Version { .. })));
    assert!(matches!(edit(0, *b"GGUF"), PersistError::Foreign { .. }));
    fs::write(&path, &bytes).unwrap();
    assert_eq!(load(folder, &config).unwrap().len(), 40);
}

#[test]
fn two_writers_and_files_in_the_way() {
    let (folder, config, mut cache) = saved(40);
    let lock = fs::File::options()
        .write(true)
        .open(folder.path().join("LOCK"))
        .unwrap();
    lock.try_lock().unwrap();
    append(&mut cache, 3, 10);
    let refused = cache
        .save(folder.path(), &SaveOptions::default())
        .unwrap_err();
    assert!(matches!(refused, PersistError::Locked { .. }), "{refused}");
    assert_eq!(load(folder.path(), &config).unwrap().len(), 40);
    drop(lock);
    cache.save(folder.path(), &SaveOptions::default()).unwrap();
    assert_eq!(load(folder.path(), &config).unwrap().len(), 50);

    let nowhere = folder.path().join("nowhere");
    assert!(
        matches!(load(&nowhere, &config), Err(PersistError::Missing { path, .. }) if path.starts_with(&nowhere))
    );
    let inspected = Inspection::read(folder.path(), Verify::Manifest).unwrap();
    assert_eq!((inspected.len, inspected.is_verified), (50, false));
}

/// What this test binary does when it is started again as a child; see [`child`].
const ROLE: &str = "HIRA_PERSIST_CHILD";

fn child(role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "child_process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, role)
        .env("HIRA_PERSIST_FOLDER", folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The cache after `saves` steps of the child that saves in a loop.
fn advance(cache: &mut HiraCache, step: u64) {
    if cache.len() > 300 {
        cache.truncate(150).unwrap();
    }
    append(cache, step, 1 + (step % 23) as usize);
}

/// Nothing unless it was started as a child: then it saves, as its role says, and exits with what came of it.
#[test]
fn child_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let folder = std::env::var("HIRA_PERSIST_FOLDER").unwrap();
    let folder = Path::new(&folder);
    let config = config(Precision::F32, 1);
    if role == "loop" {
        let mut cache = HiraCache::new(config.clone()).unwrap();
        for step in 0.. {
            advance(&mut cache, step);
            let options = SaveOptions::default().with_tokens(vec![vec![step as u32]]);
            cache.save(folder, &options).unwrap();
            fs::write(folder.join("saved"), step.to_string()).unwrap();
        }
    }
    let mut cache = HiraCache::new(config).unwrap();
    append(&mut cache, 1, 380);
    let code = match cache.save(folder, &SaveOptions::default()) {
        Ok(_) => 10,
        Err(PersistError::Full { .. }) => 11,
        Err(PersistError::Denied { .. }) => 12,
        Err(_) => 13,
    };
    std::process::exit(code);
}

#[cfg(unix)]
#[test]
fn a_process_that_is_killed_while_it_saves_leaves_a_whole_state() {
    let config = config(Precision::F32, 1);
    let mut states = 0;
    for round in 0..24u64 {
        let folder = tempfile::tempdir().unwrap();
        let mut process = child("loop", folder.path()).spawn().unwrap();
        // any moment will do: what is checked holds at all of them
        std::thread::sleep(std::time::Duration::from_micros(
            20_000 + round * 7_919 % 120_000,
        ));
        process.kill().unwrap();
        process.wait().unwrap();
        let reported = fs::read_to_string(folder.path().join("saved"));
        let reported = reported.ok().and_then(|step| step.parse::<u64>().ok());
        match HiraCache::load(folder.path(), config.clone(), &LoadOptions::default()) {
            Ok(loaded) => {
                let step = u64::from(loaded.tokens[0][0]);
                assert!(reported.is_none_or(|reported| step == reported || step == reported + 1));
                let mut expected = HiraCache::new(config.clone()).unwrap();
                (0..=step).for_each(|step| advance(&mut expected, step));
                assert_same(&loaded.cache, &expected);
                // and the next save goes on from there, without what was interrupted
                loaded
                    .cache
                    .save(folder.path(), &SaveOptions::default())
                    .unwrap();
                assert_same(&load(folder.path(), &config).unwrap(), &expected);
                states += 1;
            }
            Err(error) => {
                assert!(matches!(error, PersistError::Missing { .. }), "{error}");
                assert_eq!(reported, None, "{error}");
            }
        }
    }
    assert!(states > 0, "no round was long enough for a single save");
}

#[cfg(unix)]
#[test]
fn a_full_device_leaves_the_last_state() {
    let (folder, config, cache) = saved(40);
    let mut program = child("once", folder.path());
    // files of at most 64 KiB (or 128, where the unit is a kilobyte); the signal would end the process
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args())
        .envs(
            program
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert_eq!(shell.status().unwrap().code(), Some(11));
    assert_same(&load(folder.path(), &config).unwrap(), &cache);
    assert_eq!(program.status().unwrap().code(), Some(10));
    assert_eq!(load(folder.path(), &config).unwrap().len(), 380);
}

#[cfg(unix)]
#[test]
fn a_folder_that_may_not_be_written_is_named() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    let (folder, config, cache) = saved(40);
    let mut program = child("once", folder.path());
    // root may write everywhere: the child is somebody else then
    let is_root = fs::metadata(folder.path()).unwrap().uid() == 0;
    if is_root {
        program.uid(65_534);
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(
        folder.path().join("LOCK"),
        fs::Permissions::from_mode(0o444),
    )
    .unwrap();
    match program.status() {
        Ok(status) => assert_eq!(status.code(), Some(12)),
        Err(error) => eprintln!("skipped: the test cannot be started as another user: {error}"),
    }
    assert_same(&load(folder.path(), &config).unwrap(), &cache);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
}
