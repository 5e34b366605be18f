//! Sequences of different lengths, and forks on several threads: the bits that each gets alone.

mod common;

use common::{Problem, Shape};
use hira_attention::{CacheShape, HiraAttentionConfig, HiraCache, HostAttention};

const ONE: Shape = Shape {
    sequences: 1,
    heads: 4,
    kv_heads: 2,
    dim: 8,
    value_dim: 12,
};

fn config(plan: &str) -> HiraAttentionConfig {
    HiraAttentionConfig::from_toml(&format!(
        "plan = \"{plan}\"\ntail_compensation = false\ntop_k = 12\nmin_sparse_len = 0\nmin_coarse_len = 0\nbranching_factor = 4\n\
         segment_len = 48\nsink_tokens = 2\nrecent_window = 4\nbackground_builds = true\nuse_hira_during_prefill = true\nmax_decode_tokens = 2"
    ))
    .unwrap()
}

fn cache(config: &HiraAttentionConfig, sequences: usize) -> HiraCache {
    let shape = CacheShape {
        layers: 1,
        sequences,
        kv_heads: ONE.kv_heads,
        head_dim: ONE.dim,
        value_dim: ONE.value_dim,
        max_len: 400,
    };
    config.init_cache(shape).unwrap()
}

/// The tokens `range` of a problem of one sequence, appended and attended to: output bits `[Hq, L, Dv]`.
fn alone(
    attention: &HostAttention,
    problem: &Problem,
    range: std::ops::Range<usize>,
    cache: &mut HiraCache,
) -> Vec<u32> {
    let mut out = vec![f32::NAN; ONE.heads * range.len() * ONE.value_dim];
    let [q, k, v] = [&problem.q, &problem.k, &problem.v].map(|rows| rows.slice(range.clone()));
    let report = attention
        .forward_into(ONE.heads, &q, &k, &v, cache, 0, &mut out)
        .unwrap();
    assert_eq!(report.stored, range.end);
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_batch_of_different_lengths_gives_what_each_gets_alone() {
    // new tokens of each sequence, call by call
    let calls = [
        [120, 70, 9],
        [1, 1, 1],
        [0, 1, 1],
        [3, 5, 0],
        [2, 2, 2],
        [1, 0, 0],
        [30, 0, 17],
        [1, 1, 1],
    ];
    let total = |b: usize| calls.iter().map(|lens| lens[b]).sum();
    for plan in ["dense", "sparse", "auto"] {
        let config = config(plan);
        let attention = config.init_host().unwrap();
        let problems = [0, 1, 2].map(|b| Problem::random(b as u64, ONE, total(b)));
        let mut batch = cache(&config, 3);
        let mut single = [0, 1, 2].map(|_| cache(&config, 1));
        let mut done = [0; 3];
        for lens in calls {
            let tokens = *lens.iter().max().unwrap();
            // padded with what must not be read
            let padded = |rows: fn(&Problem) -> &common::Rows| -> Vec<f32> {
                let mut all = Vec::new();
                for b in 0..3 {
                    let rows = rows(&problems[b]);
                    for head in 0..rows.heads {
                        for t in 0..tokens {
                            match t < lens[b] {
                                true => all.extend_from_slice(rows.row(0, head, done[b] + t)),
                                false => all.extend(vec![f32::NAN; rows.dim]),
                            }
                        }
                    }
                }
                all
            };
            let (q, k, v) = (padded(|p| &p.q), padded(|p| &p.k), padded(|p| &p.v));
            let mut out = vec![f32::NAN; 3 * ONE.heads * tokens * ONE.value_dim];
            let report = if lens.iter().all(|&len| len == tokens) {
                attention.forward_into(ONE.heads, &q, &k, &v, &mut batch, 0, &mut out)
            } else {
                attention.forward_ragged_into(ONE.heads, &q, &k, &v, &lens, &mut batch, 0, &mut out)
            };
            let report = report.unwrap();
            for b in 0..3 {
                let range = done[b]..done[b] + lens[b];
                let queries = lens[b] as u64;
                let heads = &report.heads[b * ONE.heads..][..ONE.heads];
                assert!(heads.iter().all(|head| head.queries == queries));
                let expected = match range.is_empty() {
                    true => Vec::new(),
                    false => alone(&attention, &problems[b], range, &mut single[b]),
                };
                for head in 0..ONE.heads {
                    let first = (b * ONE.heads + head) * tokens * ONE.value_dim;
                    let found = &out[first..first + tokens * ONE.value_dim];
                    let (found, padding) = found.split_at(lens[b] * ONE.value_dim);
                    let found: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
                    let row = lens[b] * ONE.value_dim;
                    assert_eq!(
                        found,
                        expected[head * row..(head + 1) * row],
                        "{plan} {lens:?} {b}"
                    );
                    assert!(padding.iter().all(|&x| x == 0.0));
                }
                done[b] += lens[b];
            }
        }
        assert_eq!(batch.layer(0).unwrap().lens().collect::<Vec<_>>(), done);
    }
}

#[test]
fn a_refused_ragged_call_stores_nothing() {
    let config = config("sparse");
    let attention = config.init_host().unwrap();
    let mut batch = cache(&config, 2);
    let rows = |heads: usize, dim: usize| vec![0.5; 2 * heads * dim];
    let (q, k, v) = (rows(4, 8), rows(2, 8), rows(2, 12));
    let mut out = rows(4, 12);
    for lens in [&[2, 1][..], &[1]] {
        let refused = attention.forward_ragged_into(4, &q, &k, &v, lens, &mut batch, 0, &mut out);
        assert!(refused.is_err());
        assert!(batch.is_empty());
    }
}

#[test]
fn forks_decoded_on_several_threads_give_the_bits_of_one_thread() {
    for plan in ["dense", "sparse"] {
        let config = config(plan);
        let attention = config.init_host().unwrap();
        let problem = Problem::random(7, ONE, 300);
        let mut prompt = cache(&config, 1);
        alone(&attention, &problem, 0..130, &mut prompt);
        // each fork goes on from another token, so all append different keys
        let decode = |fork: &mut HiraCache, own: usize| -> Vec<Vec<u32>> {
            let steps = (0..60).map(|step| {
                let token = 130 + own * 7 + step;
                let mut out = vec![f32::NAN; ONE.heads * ONE.value_dim];
                let [q, k, v] =
                    [&problem.q, &problem.k, &problem.v].map(|rows| rows.slice(token..token + 1));
                attention
                    .forward_into(ONE.heads, &q, &k, &v, fork, 0, &mut out)
                    .unwrap();
                if step % 13 == 5 {
                    drop(fork.fork());
                }
                out.into_iter().map(f32::to_bits).collect()
            });
            steps.collect()
        };
        let expected: Vec<_> = (0..12)
            .map(|own| {
                // never forked: what forks give must not depend on where segments end
                let mut copy = cache(&config, 1);
                alone(&attention, &problem, 0..130, &mut copy);
                decode(&mut copy, own)
            })
            .collect();
        let mut forks: Vec<HiraCache> = (0..12).map(|_| prompt.fork()).collect();
        std::thread::scope(|scope| {
            let decode = &decode;
            let threads: Vec<_> = forks
                .iter_mut()
                .enumerate()
                .map(|(own, fork)| scope.spawn(move || decode(fork, own)))
                .collect();
            for (thread, expected) in threads.into_iter().zip(&expected) {
                assert_eq!(&thread.join().unwrap(), expected, "{plan}");
            }
        });
    }
}
