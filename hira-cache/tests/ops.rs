//! Forks, sequences of different lengths and prefixes against caches of plain vectors, over random histories; what forks cost.

use hira_cache::{CacheConfig, CacheError, HiraCache, PrefixError, PrefixStore, memory_of};
use hira_index::IndexConfig;
use proptest::prelude::*;

const DIM: usize = 3;
const SEQUENCES: usize = 3;
const KV_HEADS: usize = 2;
const MAX_LEN: usize = 150;

fn config(sequences: usize) -> CacheConfig {
    CacheConfig::new(2, sequences, KV_HEADS, DIM, MAX_LEN)
        .with_tail_block(16)
        .with_index(IndexConfig {
            num_levels: 3,
            branching_factor: 4,
            segment_len: 48,
            min_coarse_len: 0,
            ..IndexConfig::new(DIM)
        })
}

/// The row of a token: a function of what was appended, where it stands and the head.
fn row(token: u32, position: usize, layer: usize, head: usize) -> [f32; DIM] {
    let seed = token as usize * 7919 + position * 31 + layer * 613 + head * 104_729;
    std::array::from_fn(|c| ((seed + c * 17) % 1009) as f32 / 100.0 - 5.0)
}

/// What a cache must hold: the tokens of each sequence.
type Naive = Vec<Vec<u32>>;

/// Appends `tokens[b]` to sequence `b`, padded with what must not be read.
fn append(cache: &mut HiraCache, naive: &mut Naive, tokens: &[Vec<u32>]) -> Result<(), CacheError> {
    let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
    let lens: Vec<usize> = tokens.iter().map(Vec::len).collect();
    for layer in 0..2 {
        let mut keys = Vec::new();
        for (tokens, before) in tokens.iter().zip(&*naive) {
            for head in 0..KV_HEADS {
                for t in 0..longest {
                    match tokens.get(t) {
                        Some(&token) => keys.extend(row(token, before.len() + t, layer, head)),
                        None => keys.extend([f32::NAN; DIM]),
                    }
                }
            }
        }
        let values: Vec<f32> = keys.iter().map(|x| -x).collect();
        if lens.iter().all(|&len| len == longest) {
            cache.append(layer, &keys, &values)?;
        } else {
            cache.append_lens(layer, &keys, &values, &lens)?;
        }
    }
    for (naive, tokens) in naive.iter_mut().zip(tokens) {
        naive.extend(tokens);
    }
    Ok(())
}

fn assert_holds(cache: &HiraCache, naive: &Naive) {
    for layer in 0..2 {
        let cache = cache.layer(layer).unwrap();
        assert_eq!(cache.sequences(), naive.len());
        let lens: Vec<usize> = cache.lens().collect();
        assert_eq!(lens, naive.iter().map(Vec::len).collect::<Vec<_>>());
        for (i, head) in cache.heads().iter().enumerate() {
            let tokens = &naive[i / KV_HEADS];
            head.index().validate().unwrap();
            assert_eq!(head.values().len(), tokens.len());
            assert_eq!(head.means().len(), tokens.len() / 16);
            for (position, &token) in tokens.iter().enumerate() {
                let key = row(token, position, layer, i % KV_HEADS);
                assert_eq!(head.index().key(position), Some((&key).into()));
                let value = key.map(|x| -x);
                assert_eq!(head.values().row(position), Some((&value).into()));
            }
            assert_eq!(head.values().row(tokens.len()), None);
            let mut next = 0;
            for run in head.runs(0..tokens.len()) {
                assert_eq!(run.start, next);
                next += run.len;
            }
            assert_eq!(next, tokens.len());
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Append([usize; SEQUENCES]),
    Truncate(usize),
    TruncateSequence(usize, usize),
    Crop(isize),
    Fork,
    Clone,
    Reorder([usize; SEQUENCES]),
    Select(Vec<usize>),
    Reset,
    Store,
    Longest { keep: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let sequence = 0..SEQUENCES;
    prop_oneof![
        3 => (0_usize..40).prop_map(|len| Op::Append([len; SEQUENCES])),
        3 => prop::array::uniform3(0_usize..30).prop_map(Op::Append),
        1 => (0_usize..160).prop_map(Op::Truncate),
        1 => (sequence.clone(), 0_usize..100).prop_map(|(s, len)| Op::TruncateSequence(s, len)),
        1 => (-40_isize..100).prop_map(Op::Crop),
        2 => Just(Op::Fork),
        1 => Just(Op::Clone),
        2 => prop::array::uniform3(sequence.clone()).prop_map(Op::Reorder),
        1 => prop::collection::vec(sequence, 1..4).prop_map(Op::Select),
        1 => Just(Op::Reset),
        2 => Just(Op::Store),
        2 => (0_usize..100).prop_map(|keep| Op::Longest { keep }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_history_holds_what_plain_vectors_hold(ops in prop::collection::vec((op(), 0_usize..4), 1..24)) {
        let mut pairs = vec![(HiraCache::new(config(SEQUENCES)).unwrap(), vec![Vec::new(); SEQUENCES])];
        let mut store = PrefixStore::new(usize::MAX);
        let mut stored: Vec<Vec<u32>> = Vec::new();
        let mut next = 0_u32;
        for (op, on) in ops {
            let on = on % pairs.len();
            let mut new = None;
            let (cache, naive) = &mut pairs[on];
            match op {
                Op::Append(lens) => {
                    let tokens: Vec<Vec<u32>> = (lens.iter().zip(&*naive))
                        .map(|(&len, _)| (0..len).map(|_| { next += 1; next % 5 }).collect())
                        .collect();
                    let fits = naive.iter().zip(lens).all(|(n, len)| n.len() + len <= MAX_LEN);
                    let tokens = &tokens[..naive.len()];
                    prop_assert_eq!(append(cache, naive, tokens).is_ok(), fits);
                }
                Op::Truncate(len) => {
                    cache.truncate(len).unwrap();
                    naive.iter_mut().for_each(|tokens| tokens.truncate(len));
                }
                Op::TruncateSequence(sequence, len) => {
                    let there = sequence < naive.len();
                    prop_assert_eq!(cache.truncate_sequence(sequence, len).is_ok(), there);
                    naive.iter_mut().skip(sequence).take(1).for_each(|tokens| tokens.truncate(len));
                }
                Op::Crop(len) => {
                    let dropped = if len < 0 { len.unsigned_abs() } else { 0 };
                    let fits = naive.iter().all(|tokens| tokens.len() >= dropped);
                    prop_assert_eq!(cache.crop(len).is_ok(), fits);
                    if fits {
                        naive.iter_mut().for_each(|tokens| {
                            let kept = if len < 0 { tokens.len() - dropped } else { len.unsigned_abs() };
                            tokens.truncate(kept);
                        });
                    }
                }
                Op::Fork => new = Some((cache.fork(), naive.clone())),
                Op::Clone => new = Some((cache.clone(), naive.clone())),
                Op::Reorder(order) => {
                    let order: Vec<usize> = order.iter().map(|i| i % naive.len()).take(naive.len()).collect();
                    cache.reorder(&order).unwrap();
                    *naive = order.iter().map(|&i| naive[i].clone()).collect();
                }
                Op::Select(chosen) => {
                    let chosen: Vec<usize> = chosen.iter().map(|i| i % naive.len()).collect();
                    let selected = cache.select(&chosen).unwrap();
                    new = Some((selected, chosen.iter().map(|&i| naive[i].clone()).collect()));
                }
                Op::Reset => {
                    cache.reset();
                    naive.iter_mut().for_each(Vec::clear);
                }
                Op::Store => {
                    let mut first = cache.select(&[0]).unwrap();
                    store.insert("model", &naive[0], &mut first).unwrap();
                    stored.push(naive[0].clone());
                }
                Op::Longest { keep } => {
                    let mut wanted = naive[0].clone();
                    wanted.truncate(keep);
                    wanted.extend([1, 2, 3]);
                    let shared = |tokens: &Vec<u32>| tokens.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
                    let longest = stored.iter().map(shared).max().unwrap_or(0);
                    match store.longest("model", &wanted) {
                        Some((len, found)) => {
                            prop_assert_eq!(len, longest);
                            wanted.truncate(len);
                            new = Some((found, vec![wanted]));
                        }
                        None => prop_assert_eq!(longest, 0),
                    }
                }
            }
            if let Some(new) = new {
                if pairs.len() < 4 { pairs.push(new) } else { pairs[(on + 1) % 4] = new }
            }
            for (cache, naive) in &pairs {
                assert_holds(cache, naive);
            }
        }
    }
}

#[test]
fn refused_operations_leave_the_cache_unchanged() {
    let mut cache = HiraCache::new(config(SEQUENCES)).unwrap();
    let mut naive = vec![Vec::new(); SEQUENCES];
    append(&mut cache, &mut naive, &[vec![1; 9], vec![2; 4], vec![]]).unwrap();
    let rows = [0.0; SEQUENCES * KV_HEADS * 2 * DIM];
    for lens in [&[1, 3, 0][..], &[1, 1], &[0; 4]] {
        assert!(
            cache.append_lens(0, &rows, &rows, lens).is_err(),
            "{lens:?}"
        );
    }
    assert!(matches!(
        cache.append_lens(0, &rows, &rows, &[1, 3, 0]),
        Err(CacheError::NewTokens {
            sequence: 1,
            tokens: 2,
            received: 3
        })
    ));
    assert!(matches!(
        cache.crop(-1),
        Err(CacheError::Crop {
            sequence: 2,
            stored: 0,
            received: 1
        })
    ));
    assert!(matches!(
        cache.reorder(&[0, 3, 0]),
        Err(CacheError::Sequence {
            sequences: 3,
            received: 3
        })
    ));
    assert!(matches!(
        cache.reorder(&[0, 1]),
        Err(CacheError::Length {
            what: "order",
            expected: 3,
            received: 2
        })
    ));
    assert!(matches!(
        cache.select(&[]),
        Err(CacheError::Config {
            key: "sequences",
            ..
        })
    ));
    assert!(cache.truncate_sequence(3, 0).is_err());
    assert_holds(&cache, &naive);
}

#[test]
fn prefixes_are_kept_within_the_budget_and_the_oldest_go_first() {
    let mut cache = HiraCache::new(config(1)).unwrap();
    let mut naive = vec![Vec::new()];
    append(&mut cache, &mut naive, &[vec![1; 100]]).unwrap();
    let one = cache.memory().total();
    let mut store = PrefixStore::new(3 * one);
    for token in 1..=4 {
        let mut cache = HiraCache::new(config(1)).unwrap();
        append(&mut cache, &mut vec![Vec::new()], &[vec![token; 100]]).unwrap();
        store.insert("m", &[token; 100], &mut cache).unwrap();
        store.longest("m", &[1; 5]); // the first is in use
        assert!(store.bytes() <= 3 * one);
    }
    assert!(
        store
            .longest("m", &[1; 100])
            .is_some_and(|(len, _)| len == 100)
    );
    assert!(store.longest("m", &[2; 100]).is_none(), "evicted");
    assert!(store.longest("m", &[4; 100]).is_some());
    assert!(store.longest("other", &[4; 100]).is_none());
    let kept = store.len();
    let mut small = PrefixStore::new(one / 2);
    assert!(matches!(
        small.insert("m", &[1; 100], &mut cache),
        Err(PrefixError::Budget { .. })
    ));
    assert!(matches!(
        store.insert("m", &[1; 101], &mut cache),
        Err(PrefixError::Short {
            tokens: 101,
            stored: 100
        })
    ));
    let mut several = HiraCache::new(config(2)).unwrap();
    assert!(matches!(
        store.insert("m", &[], &mut several),
        Err(PrefixError::Sequences { received: 2 })
    ));
    assert_eq!((store.len(), small.len()), (kept, 0));
}

/// Resident bytes of this process, where the system tells.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Heads of SmolLM2-135M, two layers of thirty: all are alike.
#[test]
fn sixty_four_forks_of_a_long_prefix_cost_their_own_tokens_and_two_percent() {
    const LAYERS: usize = 2;
    const HEADS: usize = 3;
    const WIDE: usize = 64;
    const OWN: usize = 16;
    for prefix in [8000, 8192] {
        let shape = CacheConfig::new(LAYERS, 1, HEADS, WIDE, 10_000).with_index(IndexConfig {
            num_levels: 1,
            ..IndexConfig::new(WIDE)
        });
        let mut cache = HiraCache::new(shape).unwrap();
        let rows = |tokens: usize, seed: usize| -> Vec<f32> {
            let values = (0..HEADS * tokens * WIDE).map(|i| ((i * 37 + seed) % 101) as f32 / 50.0);
            values.collect()
        };
        for layer in 0..LAYERS {
            let keys = rows(prefix, layer);
            cache.append(layer, &keys, &keys).unwrap();
        }
        // the first fork gives spare room back
        drop(cache.fork());
        let one = cache.memory().total();
        let before = resident();
        let mut forks: Vec<HiraCache> = (0..64).map(|_| cache.fork()).collect();
        let idle = memory_of(forks.iter().chain([&cache])).total();
        let shown = |bytes: usize| 100.0 * (bytes as f64 / one as f64 - 1.0);
        println!("{prefix}: 64 forks {:.2} % more", shown(idle));
        assert!(idle <= one + one / 50);
        for (i, fork) in forks.iter_mut().enumerate() {
            for token in 0..OWN {
                for layer in 0..LAYERS {
                    let keys = rows(1, i + token);
                    fork.append(layer, &keys, &keys).unwrap();
                }
            }
        }
        let own = 64 * OWN * LAYERS * cache.bytes_per_token();
        let all = memory_of(forks.iter().chain([&cache])).total();
        println!(
            "{prefix}: with {OWN} tokens each {:.2} % more, {:.2} % without them",
            shown(all),
            shown(all - own)
        );
        assert!(all - own <= one + one / 50);
        if let (Some(before), Some(after)) = (before, resident()) {
            let grown = after.saturating_sub(before);
            println!(
                "{prefix}: the process grew by {grown} bytes, {own} of them tokens, of a cache of {one}"
            );
            // With structures and the allocator's own: the claim is that no prefix was copied.
            assert!(grown <= own + one / 10, "{grown}");
        }
    }
}
