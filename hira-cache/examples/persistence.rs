//! How long it takes to save and load a cache of the size of SmolLM2-135M's: 30 layers of 3 KV heads of dimension 64, 8,192 tokens of `f32`.
//!
//! `cargo run --release -p hira-cache --no-default-features --example persistence [FOLDER] [TOKENS]`. The folder is a new one in the
//! system's folder for temporary files unless it is named. Loading reads what was just written, so files are in the system's cache.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use hira_cache::persist::{Inspection, LoadOptions, SaveOptions, Verify};
use hira_cache::{CacheConfig, HiraCache};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const LAYERS: usize = 30;
const HEADS: usize = 3;
const DIM: usize = 64;

fn append(cache: &mut HiraCache, random: &mut StdRng, tokens: usize) -> Result<(), Box<dyn Error>> {
    for layer in 0..LAYERS {
        let mut rows = || -> Vec<f32> {
            let values = 0..HEADS * tokens * DIM;
            values.map(|_| random.random_range(-1.0..1.0)).collect()
        };
        let (keys, values) = (rows(), rows());
        cache.append(layer, &keys, &values)?;
    }
    Ok(())
}

/// Runs `work`, prints how long it took, and gives back what it returned.
fn timed<T>(what: &str, bytes: impl Fn(&T) -> u64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    let seconds = start.elapsed().as_secs_f64();
    let bytes = bytes(&done);
    println!(
        "{what:<34} {:>9.1} ms  {:>6.2} GB/s of {bytes} bytes",
        seconds * 1e3,
        bytes as f64 / seconds / 1e9
    );
    done
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let temporary = tempfile::tempdir()?;
    let folder = arguments
        .next()
        .map_or_else(|| temporary.path().join("cache"), PathBuf::from);
    let tokens: usize = arguments.next().map_or(Ok(8192), |tokens| tokens.parse())?;
    let config = CacheConfig::new(LAYERS, 1, HEADS, DIM, 2 * tokens + 64);
    let mut random = StdRng::seed_from_u64(1);
    let mut cache = HiraCache::new(config.clone())?;
    append(&mut cache, &mut random, tokens)?;
    let options = SaveOptions::default().with_model("random");
    let save = |cache: &HiraCache| cache.save(&folder, &options);
    let written = |report: &Result<hira_cache::SaveReport, _>| {
        report.as_ref().map_or(0, |report| report.written_bytes)
    };
    timed("save", written, || save(&cache))?;
    timed("save again", written, || save(&cache))?;
    append(&mut cache, &mut random, 16)?;
    timed("save after 16 tokens more", written, || save(&cache))?;
    append(&mut cache, &mut random, 16)?;
    timed("save after 16 tokens more", written, || save(&cache))?;
    let all = Inspection::read(&folder, Verify::Manifest)?.file_bytes;
    for mapped in [false, true] {
        for verify in [Verify::All, Verify::Manifest] {
            let options = LoadOptions::default()
                .with_verify(verify)
                .with_mapped(mapped);
            let load = || HiraCache::load(&folder, config.clone(), &options);
            let how = if mapped { "map" } else { "load" };
            for _ in 0..3 {
                let loaded = timed(&format!("{how}, verify {verify:?}"), |_| all, load)?;
                assert_eq!(loaded.cache.len(), tokens + 32);
            }
        }
    }
    Ok(())
}
