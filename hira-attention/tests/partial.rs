//! Attention in parts against attention in one piece, and against an f64 oracle.

mod common;

use common::{Problem, Shape, distance};
use hira_attention::{
    AttentionError, CacheShape, HiraAttentionConfig, HiraCache, PartKeys, PartialAttention,
    PlanPolicy,
};
use proptest::prelude::*;

const SHAPE: Shape = Shape {
    sequences: 2,
    heads: 6,
    kv_heads: 2,
    dim: 16,
    value_dim: 24,
};

/// Queries of a call.
const TOKENS: usize = 3;

fn cache_of(
    config: &HiraAttentionConfig,
    problem: &Problem,
    keys: std::ops::Range<usize>,
) -> HiraCache {
    let shape = problem.shape;
    let mut cache = config
        .init_cache(CacheShape {
            layers: 1,
            sequences: shape.sequences,
            kv_heads: shape.kv_heads,
            head_dim: shape.dim,
            value_dim: shape.value_dim,
            max_len: problem.tokens,
        })
        .unwrap();
    let (k, v) = (problem.k.slice(keys.clone()), problem.v.slice(keys));
    cache.append(0, &k, &v).unwrap();
    cache
}

fn part(
    config: &HiraAttentionConfig,
    problem: &Problem,
    cache: &mut HiraCache,
    keys: &PartKeys,
) -> PartialAttention {
    let mut part = PartialAttention::default();
    let attention = config.init_host().unwrap();
    let q = problem.q.slice(0..TOKENS);
    attention
        .partial_into(problem.shape.heads, &q, cache, 0, keys, &mut part)
        .unwrap();
    part
}

/// One part a shard, each with a cache of its own; `ends` are where the shards end.
fn shards(
    config: &HiraAttentionConfig,
    problem: &Problem,
    ends: &[usize],
) -> Vec<PartialAttention> {
    let mut start = 0;
    let parts = ends.iter().map(|&end| {
        let mut cache = cache_of(config, problem, start..end);
        let mut keys = PartKeys::new(0..end - start);
        keys.holds_sinks = start == 0;
        keys.holds_window = end == problem.tokens;
        start = end;
        part(config, problem, &mut cache, &keys)
    });
    parts.collect()
}

/// One part a range of the same cache.
fn ranges(
    config: &HiraAttentionConfig,
    problem: &Problem,
    ends: &[usize],
) -> Vec<PartialAttention> {
    let mut cache = cache_of(config, problem, 0..problem.tokens);
    let mut start = 0;
    let parts = ends.iter().map(|&end| {
        let keys = PartKeys::new(start..end);
        start = end;
        part(config, problem, &mut cache, &keys)
    });
    parts.collect()
}

/// Dense attention in f64 over the keys whose score `keep` accepts, `ln` of its sum of weights, and how many they are.
fn oracle(
    problem: &Problem,
    (sequence, head, token): (usize, usize, usize),
    scale: f64,
    keep: impl Fn(f64) -> bool,
) -> (Vec<f64>, f64, usize) {
    let q = problem.q.row(sequence, head, token);
    let kv_head = head / problem.shape.group();
    let score = |j: usize| -> f64 {
        let k = problem.k.row(sequence, kv_head, j);
        let products = q.iter().zip(k);
        products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let kept: Vec<(usize, f64)> = (0..problem.tokens)
        .map(|j| (j, score(j)))
        .filter(|&(_, score)| keep(score))
        .collect();
    let max = kept.iter().fold(f64::NEG_INFINITY, |max, x| max.max(x.1));
    let (mut out, mut sum) = (vec![0.0; problem.shape.value_dim], 0.0);
    for &(j, score) in &kept {
        let weight = (scale * (score - max)).exp();
        sum += weight;
        let value = problem.v.row(sequence, kv_head, j);
        let row = out.iter_mut().zip(value);
        row.for_each(|(o, &x)| *o += weight * f64::from(x));
    }
    out.iter_mut().for_each(|o| *o /= sum);
    (out, scale * max + sum.ln(), kept.len())
}

fn for_each_query(shape: Shape, mut f: impl FnMut((usize, usize, usize), usize)) {
    for row in 0..shape.sequences * shape.heads * TOKENS {
        let (head, token) = (row / TOKENS, row % TOKENS);
        f((head / shape.heads, head % shape.heads, token), row);
    }
}

/// Checks every query's answer and certificate; returns the largest ratio of a bound to the true error that is worth bounding.
fn check(problem: &Problem, scale: f64, merged: &PartialAttention, what: &str) {
    let dim = problem.shape.value_dim;
    for_each_query(problem.shape, |query, row| {
        let out = &merged.out[row * dim..(row + 1) * dim];
        let (dense, log_sum_exp, _) = oracle(problem, query, scale, |_| true);
        let certificate = merged.report.certificates[row];
        let sums = merged.sums[row];
        let (kept, log_kept) = (sums.log_sum_exp, sums.log_low);
        // what stands for the keys left out is an estimate, and rounded: nothing depends on its being within
        let high = sums.log_high + 1e-3;
        assert!(log_kept <= kept && kept <= high, "{what} {sums:?}");
        assert!(
            log_kept <= log_sum_exp && log_sum_exp <= sums.log_high,
            "{what} {query:?}: {log_sum_exp} is not within {sums:?}"
        );
        let error = distance(out, &dense);
        assert!(
            error <= f64::from(certificate.output_error_bound),
            "{what} {query:?}: {error} {certificate:?}"
        );
        // what was kept is known to a rounding, so it gives the true dropped mass
        let dropped = 1.0 - (kept - log_sum_exp).exp();
        assert!(
            dropped <= f64::from(certificate.dropped_mass_bound) + 1e-4,
            "{what} {query:?}: {dropped} {certificate:?}"
        );
    });
}

/// Two, three and seven parts, uneven ones, and some without a key.
fn splits(len: usize) -> Vec<Vec<usize>> {
    vec![
        vec![len / 2, len],
        vec![1, len / 3, len],
        vec![0, len, len],
        (1..=7).map(|i| i * len / 7).collect(),
        vec![5, 5, 8, len - 60, len - 59, len - 1, len],
    ]
}

#[test]
fn parts_of_dense_attention_merge_to_dense_attention() {
    let problem = Problem::random(21, SHAPE, 300);
    let config = HiraAttentionConfig::dense();
    let mut whole = cache_of(&config, &problem, 0..300);
    let one = part(&config, &problem, &mut whole, &PartKeys::new(0..300));
    for ends in splits(300) {
        for parts in [
            shards(&config, &problem, &ends),
            ranges(&config, &problem, &ends),
        ] {
            let merged = PartialAttention::merge(&parts).unwrap();
            check(&problem, 0.25, &merged, "dense");
            assert_eq!(merged.report.density(), 1.0);
            assert_eq!(merged.report.stored, 300);
            let dim = SHAPE.value_dim;
            for_each_query(SHAPE, |query, row| {
                let (dense, log_sum_exp, _) = oracle(&problem, query, 0.25, |_| true);
                let error = distance(&merged.out[row * dim..(row + 1) * dim], &dense);
                assert!(error < 1e-4, "{ends:?} {query:?}: {error}");
                assert!((merged.sums[row].log_sum_exp - log_sum_exp).abs() < 1e-4);
                // nothing but rounding is left, about as much as in one piece
                let [of_parts, of_one] = [&merged, &one].map(|of| of.report.certificates[row]);
                assert_eq!(of_parts.dropped_mass_bound, 0.0);
                let bounds = [of_parts, of_one].map(|of| of.output_error_bound);
                assert!(bounds[0] < 2.0 * bounds[1], "{bounds:?}");
            });
            // as they come, two at a time, from the other end
            let mut rest = parts.into_iter().rev();
            let mut sum = rest.next().unwrap();
            for part in rest {
                sum = PartialAttention::merge(&[part, sum]).unwrap();
            }
            check(&problem, 0.25, &sum, "one by one");
            for (a, b) in sum.out.iter().zip(&merged.out) {
                assert!((a - b).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn a_fixed_threshold_selects_the_same_keys_in_parts() {
    let problem = Problem::random(22, SHAPE, 400);
    for tau in [-1.0, 6.0, 25.0] {
        let config = HiraAttentionConfig {
            segment_len: 64,
            tail_compensation: false,
            ..HiraAttentionConfig::new()
                .with_threshold(tau)
                .with_sinks_and_window(0, 0)
                .with_plan(PlanPolicy::Sparse)
        };
        let mut whole = cache_of(&config, &problem, 0..400);
        let one = part(&config, &problem, &mut whole, &PartKeys::new(0..400));
        let both = |ends: Vec<usize>| {
            let shards = shards(&config, &problem, &ends);
            let ranges = ranges(&config, &problem, &ends);
            [(ends.clone(), shards), (ends, ranges)]
        };
        for (ends, parts) in splits(400).into_iter().flat_map(both) {
            let merged = PartialAttention::merge(&parts).unwrap();
            check(&problem, 0.25, &merged, "fixed");
            let dim = SHAPE.value_dim;
            for (heads, reports) in one.report.heads.iter().zip(&merged.report.heads) {
                assert_eq!(heads.attended, reports.attended, "{tau} {ends:?}");
                assert_eq!(heads.visible, reports.visible);
            }
            for_each_query(SHAPE, |query, row| {
                let range = row * dim..(row + 1) * dim;
                let near = |score: f64| (score - f64::from(tau)).abs() < 1e-4;
                assert_eq!(oracle(&problem, query, 0.25, near).2, 0, "a tie");
                let (kept, log_kept, count) =
                    oracle(&problem, query, 0.25, |score| score >= f64::from(tau));
                let out = &merged.out[range];
                if count == 0 {
                    assert!(out.iter().all(|&x| x == 0.0));
                    assert_eq!(merged.report.certificates[row].dropped_mass_bound, 1.0);
                } else {
                    assert!(distance(out, &kept) < 1e-4);
                    assert!((merged.sums[row].log_sum_exp - log_kept).abs() < 1e-4);
                }
                // what is proven of the parts is about as much as what is proven of the whole
                let [of_parts, of_one] = [&merged, &one].map(|of| of.report.certificates[row]);
                let mass = [of_parts, of_one].map(|of| of.dropped_mass_bound);
                assert!(mass[0] <= mass[1] * 1.05 + 1e-3, "{tau} {ends:?} {mass:?}");
            });
        }
    }
}

#[test]
fn every_range_of_a_cache_is_sparse_with_its_sinks() {
    let problem = Problem::random(23, SHAPE, 300);
    let config = HiraAttentionConfig::new()
        .with_top_k(20)
        .with_sinks_and_window(2, 5)
        .with_plan(PlanPolicy::Sparse);
    let parts = ranges(&config, &problem, &[200, 300]);
    assert!(parts[0].report.density() < 0.11);
    assert_eq!(parts[1].report.density(), 0.2);
    let merged = PartialAttention::merge(&parts).unwrap();
    check(&problem, 0.25, &merged, "ranges");
    let with_sinks = shards(&config, &problem, &[300]);
    let attended = with_sinks[0].report.heads[0].attended;
    assert!(attended > 60 && attended <= 3 * 27, "{attended}");
}

#[test]
fn hostile_keys_keep_their_certificates() {
    let shape = SHAPE;
    let config = |k| HiraAttentionConfig {
        scale: Some(1.0),
        ..HiraAttentionConfig::new()
            .with_top_k(k)
            .with_sinks_and_window(0, 0)
            .with_plan(PlanPolicy::Sparse)
    };
    let flat = |_: usize, _: f32| 1.0;
    let one_huge = |i: usize, x: f32| if i / 16 % 250 == 77 { 1e6 * x } else { x };
    let huge = |_: usize, x: f32| 1e15 * x;
    let tiny = |_: usize, x: f32| 1e-30 * x;
    let spread = |i: usize, x: f32| x * 10.0_f32.powi((i / 16 % 13) as i32 - 6);
    type Change = fn(usize, f32) -> f32;
    let changes: [(&str, Change); 5] = [
        ("flat", flat),
        ("one huge key", one_huge),
        ("huge keys", huge),
        ("tiny keys", tiny),
        ("a wide spread", spread),
    ];
    for (what, change) in changes {
        let mut problem = Problem::random(24, shape, 250);
        for (i, x) in problem.k.data.iter_mut().enumerate() {
            *x = change(i, *x);
        }
        for k in [1, 30] {
            for ends in splits(250) {
                let merged = PartialAttention::merge(&shards(&config(k), &problem, &ends)).unwrap();
                let dim = shape.value_dim;
                for_each_query(shape, |query, row| {
                    let (dense, log_sum_exp, _) = oracle(&problem, query, 1.0, |_| true);
                    let out = &merged.out[row * dim..(row + 1) * dim];
                    let certificate = merged.report.certificates[row];
                    let error = distance(out, &dense);
                    assert!(
                        error <= f64::from(certificate.output_error_bound),
                        "{what} {k} {ends:?} {query:?}: {error} {certificate:?}"
                    );
                    let sums = merged.sums[row];
                    assert!(sums.log_low <= log_sum_exp && log_sum_exp <= sums.log_high);
                });
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let problem = Problem::random(25, SHAPE, 20);
    let config = HiraAttentionConfig::new();
    let mut cache = cache_of(&config, &problem, 0..20);
    let attention = config.init_host().unwrap();
    let q = problem.q.slice(0..TOKENS);
    let mut out = PartialAttention::default();
    let mut refused = |q: &[f32], keys: PartKeys| {
        let done = attention.partial_into(SHAPE.heads, q, &mut cache, 0, &keys, &mut out);
        done.unwrap_err()
    };
    let error = refused(&q, PartKeys::new(3..21));
    assert!(matches!(
        error,
        AttentionError::Positions {
            start: 3,
            end: 21,
            stored: 20
        }
    ));
    let error = refused(&q[1..], PartKeys::new(0..20));
    assert!(matches!(error, AttentionError::Length { what: "q", .. }));
    let mut bad = q.clone();
    bad[40] = f32::NAN;
    let error = refused(&bad, PartKeys::new(0..20));
    assert!(matches!(error, AttentionError::NonFiniteQuery { .. }));
    let whole = part(&config, &problem, &mut cache, &PartKeys::new(0..20));
    assert!(PartialAttention::merge(&[]).is_err());
    assert!(PartialAttention::merge(&[whole, PartialAttention::default()]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_split_under_any_rule_is_certified(
        seed in any::<u64>(),
        tokens in 8_usize..200,
        cuts in prop::collection::vec(0.0_f64..1.0, 0..6),
        k in 1_usize..40,
        tau in -5.0_f32..30.0,
        fixed in any::<bool>(),
        tail_compensation in any::<bool>(),
        scale in prop::sample::select(vec![0.0_f32, 0.05, 0.25, 3.0]),
    ) {
        let problem = Problem::random(seed, SHAPE, tokens);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| (cut * tokens as f64) as usize).collect();
        ends.sort_unstable();
        ends.push(tokens);
        let rule = HiraAttentionConfig::new();
        let rule = if fixed { rule.with_threshold(tau) } else { rule.with_top_k(k) };
        let config = HiraAttentionConfig {
            scale: Some(scale),
            segment_len: 32,
            tail_compensation,
            tail_block: 16,
            ..rule.with_sinks_and_window(1, 2).with_plan(PlanPolicy::Sparse)
        };
        let merged = PartialAttention::merge(&shards(&config, &problem, &ends)).unwrap();
        check(&problem, f64::from(scale), &merged, "any");
    }
}
