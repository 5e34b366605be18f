//! A decode step in steady state asks the allocator for nothing, and a cache grows by its keys.
//!
//! The counts are those of the calling thread, so the steps stay on it; no other test shares this binary.

use hira_attention::{AttentionReport, CacheShape, HiraAttentionConfig, PlanPolicy};
use hira_kernels::Precision;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const DIM: usize = 64;

fn shape(max_len: usize) -> CacheShape {
    CacheShape {
        layers: 1,
        sequences: 1,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        value_dim: DIM,
        max_len,
    }
}

fn rows(rng: &mut StdRng, count: usize) -> Vec<f32> {
    (0..count * DIM)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect()
}

/// Steps from a context of `context` keys whose allocations are counted, after as many that are not.
const STEPS: usize = 24;

fn allocations(config: &HiraAttentionConfig, context: usize) -> u64 {
    let mut rng = StdRng::seed_from_u64(context as u64);
    let mut cache = config.init_cache(shape(context + 1000)).expect("valid");
    let (keys, values) = (
        rows(&mut rng, KV_HEADS * context),
        rows(&mut rng, KV_HEADS * context),
    );
    cache.append(0, &keys, &values).expect("room");
    let attention = config.init_host().expect("valid");
    let mut out = vec![0.0; HEADS * DIM];
    let mut report = AttentionReport::new(0, 0);
    let tokens: Vec<[Vec<f32>; 3]> = (0..2 * STEPS)
        .map(|_| [HEADS, KV_HEADS, KV_HEADS].map(|count| rows(&mut rng, count)))
        .collect();
    let mut step = |[q, k, v]: &[Vec<f32>; 3]| {
        attention
            .forward_reusing(HEADS, q, k, v, &mut cache, 0, &mut out, &mut report)
            .expect("a valid step");
    };
    tokens[..STEPS].iter().for_each(&mut step);
    allocation_counter::measure(|| tokens[STEPS..].iter().for_each(&mut step)).count_total
}

#[test]
fn a_step_in_steady_state_does_not_allocate() {
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    alone.expect("one thread").install(|| {
        for precision in Precision::ALL {
            for plan in [PlanPolicy::Dense, PlanPolicy::Sparse] {
                let config = HiraAttentionConfig::new()
                    .with_top_k(64)
                    .with_plan(plan)
                    .with_precision(precision);
                let counted = allocations(&config, 4096);
                assert_eq!(counted, 0, "{plan:?} {precision}");
            }
        }
    });
}

#[test]
fn a_long_cache_takes_at_most_1_27_times_its_keys_and_values() {
    let len = 3 * 8192;
    let config = HiraAttentionConfig::new();
    let mut cache = config.init_cache(shape(len)).expect("valid");
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..len / 1024 {
        let (keys, values) = (
            rows(&mut rng, KV_HEADS * 1024),
            rows(&mut rng, KV_HEADS * 1024),
        );
        cache.append(0, &keys, &values).expect("room");
    }
    let exact = KV_HEADS * len * 2 * DIM * size_of::<f32>();
    let ratio = cache.memory().total() as f64 / exact as f64;
    println!("{ratio:.3} times the keys and values");
    assert!((1.13..1.27).contains(&ratio), "{ratio}");
}
