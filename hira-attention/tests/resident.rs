//! What a cache reports is what the process grows by. No other test shares this binary: it would be counted.
#![cfg(target_os = "linux")]

use hira_attention::{CacheShape, HiraAttentionConfig, PlanPolicy};
use hira_kernels::Precision;
use hira_memory::Tier;

const KV_HEADS: usize = 2;
const DIM: usize = 64;
const LEN: usize = 40 * 2048;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse::<usize>();
    kibibytes.unwrap() * 1024
}

fn rows(count: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u32 | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..count * DIM).map(|_| next()).collect()
}

/// Growth of the process, and the report's bytes in main memory and on disk, after decode steps.
fn grown(config: &HiraAttentionConfig) -> (f64, f64, f64) {
    let shape = CacheShape {
        layers: 1,
        sequences: 1,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        value_dim: DIM,
        max_len: LEN + 100,
    };
    let before = resident();
    let mut cache = config.init_cache(shape).unwrap();
    for part in 0..40 {
        let [keys, values] = [2 * part, 2 * part + 1].map(|seed| rows(KV_HEADS * 2048, seed));
        cache.append(0, &keys, &values).unwrap();
    }
    let attention = config.init_host().unwrap();
    let mut out = vec![0.0; KV_HEADS * DIM];
    for step in 0..10 {
        let row = rows(KV_HEADS, 1000 + step);
        attention
            .forward_into(KV_HEADS, &row, &row, &row, &mut cache, 0, &mut out)
            .unwrap();
    }
    let grown = resident().saturating_sub(before);
    let (memory, statistics) = (cache.memory(), cache.tier_statistics());
    println!("grown by {grown}\n{memory}\n{statistics:?}");
    let on_disk = memory.on(Tier::Disk);
    (
        grown as f64,
        (memory.total() - on_disk) as f64,
        on_disk as f64,
    )
}

#[test]
fn the_process_grows_by_what_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let config = HiraAttentionConfig {
        segment_len: 2048,
        precision: Precision::F32,
        ..HiraAttentionConfig::new().with_top_k(64)
    };
    let exact = (KV_HEADS * LEN * 2 * DIM * 4) as f64;
    // What the first cache needs of scratch and thread stacks is not counted for the second.
    let (grown_all, here, _) = grown(&config);
    assert!(
        (0.9 * here..1.15 * here).contains(&grown_all),
        "{grown_all} for {here}"
    );
    for plan in [PlanPolicy::Sparse, PlanPolicy::Dense] {
        let budget = exact as usize / 4;
        let placed = config.clone().with_plan(plan);
        let placed = placed
            .with_host_budget(budget)
            .with_disk_path(folder.path());
        let (grown, here, on_disk) = grown(&placed);
        assert!(on_disk > 0.7 * exact, "{on_disk}");
        assert!(here < 0.6 * exact, "{here}");
        // pages that the allocator keeps from the cache before would be found again, so only the upper side is tight
        assert!(grown < 1.15 * here + 4e6, "{plan:?}: {grown} for {here}");
    }
}
