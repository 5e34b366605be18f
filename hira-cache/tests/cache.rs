//! The cache against a naive one over random histories, and everything that it must refuse.

use hira_cache::{CacheConfig, CacheError, HiraCache};
use hira_index::{IndexConfig, IndexError};
use hira_kernels::{Precision, StoredVec};
use hira_memory::{Budget, MemoryError, MemoryPolicy, Part, Tier};
use proptest::prelude::*;

const DIM: usize = 5;
const VALUE_DIM: usize = 3;
const SEQUENCES: usize = 2;
const KV_HEADS: usize = 3;
const HEADS: usize = SEQUENCES * KV_HEADS;
const MAX_LEN: usize = 200;

fn config() -> CacheConfig {
    CacheConfig::new(2, SEQUENCES, KV_HEADS, DIM, MAX_LEN)
        .with_value_dim(VALUE_DIM)
        .with_tail_block(32)
        .with_index(IndexConfig {
            dim: DIM,
            num_levels: 3,
            branching_factor: 4,
            segment_len: 32,
            min_coarse_len: 0,
            ..IndexConfig::default()
        })
}

/// Row `position` of `head`, as written by history `stamp`.
fn row(stamp: u64, head: usize, position: usize, dim: usize) -> Vec<f32> {
    let seed = stamp * 7919 + head as u64 * 104_729 + position as u64 * 31;
    (0..dim as u64)
        .map(|c| ((seed + c * 17) % 1009) as f32 / 100.0 - 5.0)
        .collect()
}

/// The same as it is stored.
fn stored(precision: Precision, stamp: u64, head: usize, position: usize, dim: usize) -> StoredVec {
    StoredVec::rounded(precision, &row(stamp, head, position, dim))
}

fn batch(stamp: u64, start: usize, tokens: usize, dim: usize) -> Vec<f32> {
    (0..HEADS)
        .flat_map(|head| (start..start + tokens).flat_map(move |p| row(stamp, head, p, dim)))
        .collect()
}

/// What a layer must hold: the stamp that each position was written with.
fn assert_holds(cache: &HiraCache, layer: usize, stamps: &[u64]) {
    let precision = cache.config().index.precision;
    let cache = cache.layer(layer).unwrap();
    assert_eq!(cache.len(), stamps.len());
    for (i, head) in cache.heads().iter().enumerate() {
        head.index().validate().unwrap();
        assert_eq!(head.values().len(), stamps.len());
        for (position, &stamp) in stamps.iter().enumerate() {
            let key = stored(precision, stamp, i, position, DIM);
            assert_eq!(head.index().key(position), Some((&key).into()));
            let value = stored(precision, stamp + 1, i, position, VALUE_DIM);
            assert_eq!(head.values().row(position), Some((&value).into()));
            for (row, bound) in [(key, head.max_key_norm()), (value, head.max_value_norm())] {
                let squares = row.as_slice().widened().iter().map(|x| x * x).sum::<f32>();
                assert!(squares.sqrt() <= bound * 1.000_001, "{bound}");
            }
        }
        for (start, end) in [(0, stamps.len()), (3, 9), (17, stamps.len())] {
            if start < end {
                // one run if the first is that long, and if there are as many
                let first = head.runs(start..end).next();
                let whole = first.filter(|run| end <= stamps.len() && run.len == end - start);
                assert_eq!(head.run(start..end), whole, "{start}..{end}");
            }
        }
        let mut next = 5.min(stamps.len());
        for run in head.runs(5..stamps.len()) {
            assert_eq!(run.start, next);
            assert_eq!(run.keys.len(), run.len * DIM);
            assert_eq!(run.values.len(), run.len * VALUE_DIM);
            let key = stored(precision, stamps[next], i, next, DIM);
            assert_eq!(run.keys.slice(0..DIM), key.as_slice());
            let value = stored(precision, stamps[next] + 1, i, next, VALUE_DIM);
            assert_eq!(run.values.slice(0..VALUE_DIM), value.as_slice());
            next += run.len;
        }
        assert_eq!(next, stamps.len());
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Append(usize),
    Truncate(usize),
    Reset,
    Fork,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0_usize..70).prop_map(Operation::Append),
        2 => (0_usize..220).prop_map(Operation::Truncate),
        1 => Just(Operation::Reset),
        1 => Just(Operation::Fork),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_history_holds_what_a_naive_cache_holds(
        operations in prop::collection::vec(operation(), 1..14),
        precision in prop::sample::select(&Precision::ALL[..]),
    ) {
        let mut config = config();
        config.index.precision = precision;
        let mut cache = HiraCache::new(config).unwrap();
        let mut naive: Vec<u64> = Vec::new();
        let mut forks: Vec<(HiraCache, Vec<u64>)> = Vec::new();
        for (step, operation) in operations.into_iter().enumerate() {
            let stamp = 2 * step as u64;
            match operation {
                Operation::Append(tokens) => {
                    let keys = batch(stamp, naive.len(), tokens, DIM);
                    let values = batch(stamp + 1, naive.len(), tokens, VALUE_DIM);
                    let result = cache.append(1, &keys, &values);
                    if naive.len() + tokens <= MAX_LEN {
                        result.unwrap();
                        naive.extend(std::iter::repeat_n(stamp, tokens));
                    } else {
                        let full = matches!(result, Err(CacheError::Capacity { .. }));
                        prop_assert!(full);
                    }
                }
                Operation::Truncate(len) => {
                    cache.truncate(len).unwrap();
                    naive.truncate(len);
                }
                Operation::Reset => {
                    cache.reset();
                    naive.clear();
                }
                Operation::Fork => forks.push((cache.clone(), naive.clone())),
            }
            assert_holds(&cache, 1, &naive);
            assert_holds(&cache, 0, &[]);
        }
        for (fork, naive) in forks {
            assert_holds(&fork, 1, &naive);
        }
    }
}

#[test]
fn refused_batches_leave_the_cache_unchanged() {
    let mut cache = HiraCache::new(config()).unwrap();
    let (keys, values) = (batch(0, 0, 10, DIM), batch(1, 0, 10, VALUE_DIM));
    cache.append(0, &keys, &values).unwrap();
    let last_head = 10 * DIM * (HEADS - 1);

    let mut bad = keys.clone();
    bad[last_head + 3 * DIM + 2] = f32::NAN;
    match cache.append(0, &bad, &values) {
        Err(CacheError::Keys {
            sequence: 1,
            head: 2,
            source,
        }) => {
            assert!(matches!(
                source,
                IndexError::NonFinite { row: 3, column: 2 }
            ));
        }
        other => panic!("{other:?}"),
    }
    let mut bad = values.clone();
    bad[10 * VALUE_DIM + 4 * VALUE_DIM + 1] = f32::NEG_INFINITY;
    assert!(matches!(
        cache.append(0, &keys, &bad),
        Err(CacheError::NonFiniteValue {
            sequence: 0,
            head: 1,
            token: 4,
            column: 1
        })
    ));
    bad[10 * VALUE_DIM + 4 * VALUE_DIM + 1] = 2e19;
    assert!(matches!(
        cache.append(0, &keys, &bad),
        Err(CacheError::ValueMagnitude {
            sequence: 0,
            head: 1,
            token: 4
        })
    ));
    assert!(matches!(
        cache.append(0, &keys[1..], &values),
        Err(CacheError::PartialToken {
            multiple: 30,
            received: 299
        })
    ));
    assert!(matches!(
        cache.append(0, &keys, &values[1..]),
        Err(CacheError::Length {
            what: "values",
            expected: 180,
            received: 179
        })
    ));
    assert!(matches!(
        cache.append(2, &keys, &values),
        Err(CacheError::Layer {
            layers: 2,
            received: 2
        })
    ));
    assert_holds(&cache, 0, &[0; 10]);
    // and it goes on as if nothing had happened
    cache
        .append(0, &batch(0, 10, 40, DIM), &batch(1, 10, 40, VALUE_DIM))
        .unwrap();
    assert_holds(&cache, 0, &[0; 50]);
}

#[test]
fn what_the_precision_cannot_hold_is_refused() {
    let (keys, values) = (batch(0, 0, 10, DIM), batch(1, 0, 10, VALUE_DIM));
    for (stored_in, large) in [(Precision::F16, 65_520.0), (Precision::Bf16, f32::MIN)] {
        let mut config = config();
        config.index.precision = stored_in;
        let mut cache = HiraCache::new(config).unwrap();
        cache.append(0, &keys, &values).unwrap();
        let mut bad = keys.clone();
        bad[10 * DIM + 2] = large;
        match cache.append(0, &bad, &values) {
            Err(CacheError::Keys {
                sequence: 0,
                head: 1,
                source,
            }) => assert!(matches!(
                source,
                IndexError::Overflow { row: 0, column: 2, precision } if precision == stored_in
            )),
            other => panic!("{other:?}"),
        }
        let mut bad = values.clone();
        bad[10 * VALUE_DIM + 4 * VALUE_DIM + 1] = large;
        let error = cache.append(0, &keys, &bad).unwrap_err();
        assert!(matches!(
            error,
            CacheError::ValueOverflow { sequence: 0, head: 1, token: 4, column: 1, precision }
                if precision == stored_in
        ));
        assert!(error.to_string().contains(stored_in.name()), "{error}");
        assert_holds(&cache, 0, &[0; 10]);
    }
    // Exactly: a value whose norm is below the limit until it is rounded.
    let mut config = config();
    config.index.precision = Precision::Bf16;
    let mut cache = HiraCache::new(config).unwrap();
    let mut bad = values.clone();
    bad[..VALUE_DIM].fill(0.0);
    bad[0] = 2.0f32.powi(63).next_down();
    assert!(matches!(
        cache.append(0, &keys, &bad),
        Err(CacheError::ValueMagnitude {
            sequence: 0,
            head: 0,
            token: 0
        })
    ));
}

#[test]
fn the_budget_is_a_hard_limit() {
    let unlimited = HiraCache::new(config()).unwrap();
    let budget = 64 * unlimited.bytes_per_token();
    let mut cache = HiraCache::new(config().with_budget(Budget::limited(budget))).unwrap();
    let mut stored = 0;
    loop {
        let keys = batch(0, stored, 1, DIM);
        let values = batch(1, stored, 1, VALUE_DIM);
        match cache.append(0, &keys, &values) {
            Ok(()) => stored += 1,
            Err(CacheError::Memory(MemoryError::BudgetExceeded {
                limit,
                used,
                requested,
            })) => {
                assert_eq!(limit, budget);
                assert!(used + requested > limit);
                break;
            }
            other => panic!("{other:?}"),
        }
        assert!(stored <= 64);
    }
    assert!(stored > 0);
    assert_holds(&cache, 0, &vec![0; stored]);
}

#[test]
fn impossible_shapes_name_the_key() {
    for (key, config) in [
        ("layers", CacheConfig::new(0, 1, 1, 1, 1)),
        ("sequences", CacheConfig::new(1, 0, 1, 1, 1)),
        ("kv_heads", CacheConfig::new(1, 1, 0, 1, 1)),
        ("head_dim", CacheConfig::new(1, 1, 1, 0, 1)),
        (
            "value_dim",
            CacheConfig::new(1, 1, 1, 1, 1).with_value_dim(0),
        ),
        ("max_len", CacheConfig::new(1, 1, 1, 1, 0)),
        ("max_len", CacheConfig::new(1, 1, 1, 1, 1 << 32)),
        (
            "target_usage",
            CacheConfig::new(1, 1, 1, 1, 1)
                .with_memory_policy(MemoryPolicy::Adaptive { target_usage: 0.0 }),
        ),
        (
            "segment_len",
            CacheConfig::new(1, 1, 1, 1, 1).with_index(IndexConfig {
                segment_len: 17,
                ..IndexConfig::default()
            }),
        ),
    ] {
        let error = HiraCache::new(config).unwrap_err();
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
}

#[test]
fn info_reports_shape_length_and_memory_by_part() {
    let mut config = config();
    config.tiers = vec![Tier::Device, Tier::Host];
    let mut cache =
        HiraCache::new(config.with_memory_policy(MemoryPolicy::Hybrid { num_fast_levels: 1 }))
            .unwrap();
    for layer in 0..2 {
        cache
            .append(layer, &batch(0, 0, 64, DIM), &batch(1, 0, 64, VALUE_DIM))
            .unwrap();
    }
    let info = cache.info();
    assert_eq!((info.seq_len, info.max_len, info.layers), (64, MAX_LEN, 2));
    let keys = 2 * HEADS * 64 * DIM * 4;
    assert_eq!(info.memory.of(Part::Keys), keys);
    let layers = (0..2).map(|layer| cache.layer(layer).unwrap().heads());
    let means: usize = layers.flatten().map(|head| head.means().bytes()).sum();
    assert!(means >= 2 * HEADS * VALUE_DIM * 4);
    let values = 2 * HEADS * 64 * VALUE_DIM * 4;
    assert_eq!(info.memory.of(Part::Values), values + means);
    assert!(info.memory.of(Part::Sketch) > 0 && info.memory.of(Part::Level(0)) > 0);
    assert_eq!(
        info.memory.on(Tier::Device),
        info.memory.of(Part::Sketch) + info.memory.of(Part::Level(0))
    );
    assert!(info.to_string().contains("64 of 200 tokens"));
    cache
        .append(0, &batch(0, 64, 1, DIM), &batch(1, 64, 1, VALUE_DIM))
        .unwrap();
    assert_eq!(
        (cache.seq_len(0), cache.seq_len(1), cache.len()),
        (65, 64, 64)
    );
}
