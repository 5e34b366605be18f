//! The comparison rules against their definitions, written naively in `f64`.

use hira_attention::{CacheShape, HiraAttentionConfig, PlanPolicy};
use hira_cache::HiraCache;
use hira_examples::eval::compare::{ComparisonHost, ComparisonRule, PAGE, SINKS};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const SHAPE: CacheShape = CacheShape {
    layers: 1,
    sequences: 1,
    kv_heads: 2,
    head_dim: 16,
    value_dim: 8,
    max_len: 160,
};
const HEADS: usize = 4;
const LEN: usize = 150;
/// Queries that see fewer keys are dense.
const SPARSE_FROM: usize = 40;

/// Queries `[Hq, LEN, D]`, keys and values `[Hkv, LEN, ..]`.
struct Rows {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Rows {
    fn random(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rows = |len: usize| (0..len).map(|_| rng.random_range(-1.5..1.5f32)).collect();
        Self {
            q: rows(HEADS * LEN * SHAPE.head_dim),
            k: rows(SHAPE.kv_heads * LEN * SHAPE.head_dim),
            v: rows(SHAPE.kv_heads * LEN * SHAPE.value_dim),
        }
    }

    /// The rows of some tokens, head by head.
    fn part(rows: &[f32], dim: usize, tokens: std::ops::Range<usize>) -> Vec<f32> {
        let heads = rows.chunks_exact(LEN * dim);
        heads
            .flat_map(|head| &head[tokens.start * dim..tokens.end * dim])
            .copied()
            .collect()
    }

    fn key(&self, head: usize, position: usize) -> &[f32] {
        let start = (head * LEN + position) * SHAPE.head_dim;
        &self.k[start..start + SHAPE.head_dim]
    }

    fn score(&self, head: usize, token: usize, position: usize) -> f64 {
        let start = (head * LEN + token) * SHAPE.head_dim;
        let query = &self.q[start..start + SHAPE.head_dim];
        let key = self.key(head / 2, position);
        query
            .iter()
            .zip(key)
            .map(|(q, k)| f64::from(*q) * f64::from(*k))
            .sum()
    }

    /// Softmax weights over some positions.
    fn weights(&self, head: usize, token: usize, positions: &[usize]) -> Vec<f64> {
        let scale = 1.0 / (SHAPE.head_dim as f64).sqrt();
        let logits = positions
            .iter()
            .map(|&p| scale * self.score(head, token, p));
        let weights: Vec<f64> = logits.map(f64::exp).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    fn output(&self, head: usize, token: usize, positions: &[usize]) -> Vec<f64> {
        let weights = self.weights(head, token, positions);
        let value = |position: usize, i: usize| {
            f64::from(self.v[(head / 2 * LEN + position) * SHAPE.value_dim + i])
        };
        (0..SHAPE.value_dim)
            .map(|i| {
                let terms = weights.iter().zip(positions);
                terms.map(|(weight, &p)| weight * value(p, i)).sum()
            })
            .collect()
    }
}

/// What each token of a head attends to, by the papers' definitions.
fn selections_naive(
    rule: ComparisonRule,
    rows: &Rows,
    head: usize,
    prefill: usize,
) -> Vec<Vec<usize>> {
    let mut kept: Vec<(usize, f64)> = Vec::new();
    (0..LEN)
        .map(|token| {
            let visible = token + 1;
            let dense = visible < SPARSE_FROM || token < prefill;
            let all: Vec<usize> = (0..visible).collect();
            match rule {
                ComparisonRule::H2o { budget } => {
                    while !dense && kept.len() > budget - 1 {
                        let older = &kept[..kept.len() - (budget - 1) / 2];
                        let least = older.iter().map(|key| key.1).fold(f64::INFINITY, f64::min);
                        let evicted = older.iter().position(|key| key.1 == least);
                        kept.remove(evicted.expect("a least"));
                    }
                    kept.push((token, 0.0));
                    let positions: Vec<usize> = kept.iter().map(|key| key.0).collect();
                    let weights = rows.weights(head, token, &positions);
                    for (key, weight) in kept.iter_mut().zip(weights) {
                        key.1 += weight;
                    }
                    positions
                }
                _ if dense => all,
                ComparisonRule::Streaming { budget } => all
                    .into_iter()
                    .filter(|&p| p < SINKS || p + budget - SINKS >= visible)
                    .collect(),
                ComparisonRule::Quest { budget } => {
                    let bound = |page: &[usize]| -> f64 {
                        (0..SHAPE.head_dim)
                            .map(|i| {
                                let q = rows.q[(head * LEN + token) * SHAPE.head_dim + i];
                                let terms = page
                                    .iter()
                                    .map(|&p| f64::from(q) * f64::from(rows.key(head / 2, p)[i]));
                                terms.fold(f64::NEG_INFINITY, f64::max)
                            })
                            .sum()
                    };
                    let mut pages: Vec<&[usize]> = all.chunks(PAGE).collect();
                    pages.sort_by(|a, b| bound(b).total_cmp(&bound(a)));
                    pages.truncate(budget.div_ceil(PAGE));
                    let mut positions = pages.concat();
                    positions.sort_unstable();
                    positions
                }
                _ => unreachable!("the rules that are tested"),
            }
        })
        .collect()
}

/// The positions that the last token of each call attended to: by head and token.
type Selected = Vec<Vec<Vec<u32>>>;

fn run(
    host: &ComparisonHost,
    rows: &Rows,
    cache: &mut HiraCache,
    cuts: &[usize],
) -> (Vec<Vec<f32>>, Selected, u64) {
    let (dim, value_dim) = (SHAPE.head_dim, SHAPE.value_dim);
    let mut out = vec![vec![0.0; LEN * value_dim]; HEADS];
    let mut selections = vec![vec![Vec::new(); LEN]; HEADS];
    let mut attended = 0;
    let mut start = 0;
    for &end in cuts {
        let tokens = end - start;
        let mut part = vec![0.0; HEADS * tokens * value_dim];
        let report = host
            .forward_into(
                HEADS,
                &Rows::part(&rows.q, dim, start..end),
                &Rows::part(&rows.k, dim, start..end),
                &Rows::part(&rows.v, value_dim, start..end),
                cache,
                0,
                &mut part,
            )
            .expect("an answer");
        attended += report.heads.iter().map(|head| head.attended).sum::<u64>();
        for (head, rows) in part.chunks_exact(tokens * value_dim).enumerate() {
            out[head][start * value_dim..end * value_dim].copy_from_slice(rows);
        }
        for (head, positions) in host.selections().into_iter().enumerate() {
            selections[head][end - 1] = positions;
        }
        start = end;
    }
    (out, selections, attended)
}

fn base(sparse_prefill: bool) -> HiraAttentionConfig {
    HiraAttentionConfig {
        min_sparse_len: SPARSE_FROM,
        use_hira_during_prefill: sparse_prefill,
        segment_len: 64,
        plan: PlanPolicy::Auto,
        ..HiraAttentionConfig::new()
    }
}

fn rules() -> [ComparisonRule; 6] {
    [
        ComparisonRule::Quest { budget: 32 },
        ComparisonRule::Quest { budget: 50 },
        ComparisonRule::Streaming { budget: 5 },
        ComparisonRule::Streaming { budget: 30 },
        ComparisonRule::H2o { budget: 2 },
        ComparisonRule::H2o { budget: 21 },
    ]
}

#[test]
fn every_rule_selects_and_answers_as_its_paper_says() {
    // a prefill of 60 tokens, a call of several, and decode steps
    let mut cuts = vec![60, 75];
    cuts.extend(76..=LEN);
    for rule in rules() {
        for sparse_prefill in [false, true] {
            let rows = Rows::random(9);
            let config = base(sparse_prefill);
            let host = ComparisonHost::new(rule, &config).expect("a host");
            let mut cache = HiraAttentionConfig {
                num_levels: 0,
                ..config
            }
            .init_cache(SHAPE)
            .expect("a cache");
            let (out, selections, attended) = run(&host, &rows, &mut cache, &cuts);
            let mut expected_attended = 0;
            for head in 0..HEADS {
                let prefill = if sparse_prefill { 0 } else { 60 };
                let expected = selections_naive(rule, &rows, head, prefill);
                for (token, positions) in expected.iter().enumerate() {
                    expected_attended += positions.len() as u64;
                    if cuts.contains(&(token + 1)) {
                        let found = &selections[head][token];
                        assert!(
                            found
                                .iter()
                                .map(|&p| p as usize)
                                .eq(positions.iter().copied()),
                            "{rule} head {head} token {token}: {found:?} {positions:?}"
                        );
                    }
                    let answer = &out[head][token * SHAPE.value_dim..(token + 1) * SHAPE.value_dim];
                    for (a, b) in answer.iter().zip(rows.output(head, token, positions)) {
                        assert!(
                            (f64::from(*a) - b).abs() < 1e-5,
                            "{rule} head {head} token {token}"
                        );
                    }
                }
            }
            assert_eq!(attended, expected_attended, "{rule}");
        }
    }
}

#[test]
fn a_budget_beyond_the_keys_is_dense_and_says_so() {
    let rows = Rows::random(4);
    for rule in [
        ComparisonRule::Quest { budget: 160 },
        ComparisonRule::Streaming { budget: 160 },
        ComparisonRule::H2o { budget: 160 },
    ] {
        let config = base(true);
        let host = ComparisonHost::new(rule, &config).expect("a host");
        let mut cache = config.init_cache(SHAPE).expect("a cache");
        let (out, selections, _) = run(&host, &rows, &mut cache, &[LEN]);
        assert!(selections.iter().all(|head| head[LEN - 1].len() == LEN));
        let dense = rows.output(3, LEN - 1, &(0..LEN).collect::<Vec<_>>());
        let answer = &out[3][(LEN - 1) * SHAPE.value_dim..];
        for (a, b) in answer.iter().zip(dense) {
            assert!((f64::from(*a) - b).abs() < 1e-5, "{rule}");
        }
    }
}

#[test]
fn a_cache_that_was_cut_back_starts_heavy_hitters_anew() {
    let rows = Rows::random(2);
    let config = base(true);
    let rule = ComparisonRule::H2o { budget: 20 };
    let host = ComparisonHost::new(rule, &config).expect("a host");
    let mut cache = config.init_cache(SHAPE).expect("a cache");
    run(&host, &rows, &mut cache, &[100]);
    cache.truncate(0).expect("nothing is evicted");
    let (again, _, _) = run(&host, &rows, &mut cache, &[LEN]);
    let fresh = ComparisonHost::new(rule, &config).expect("a host");
    let mut cache = config.init_cache(SHAPE).expect("a cache");
    let (first, _, _) = run(&fresh, &rows, &mut cache, &[LEN]);
    assert_eq!(again, first);
}

/// What `Measured` reports is what its definitions give, and it changes no answer.
#[cfg(feature = "flex")]
mod measured {
    use super::*;
    use burn::tensor::{Tensor, TensorData};
    use burn_flex::Flex;
    use hira_attention::AttentionProcessor;
    use hira_examples::eval::{EvalRule, Measured, Measuring};

    fn tensor(rows: Vec<f32>, heads: usize, tokens: usize, dim: usize) -> Tensor<Flex, 4> {
        Tensor::from_data(
            TensorData::new(rows, [1, heads, tokens, dim]),
            &Default::default(),
        )
    }

    /// Reads the rows in calls that end at `cuts`, and gives the outputs `[Hq, LEN, Dv]` and the keys attended to.
    fn read(
        attention: &dyn AttentionProcessor<Flex>,
        rows: &Rows,
        cache: &mut HiraCache,
        cuts: &[usize],
    ) -> (Vec<f32>, u64) {
        let (dim, value_dim) = (SHAPE.head_dim, SHAPE.value_dim);
        let (mut outs, mut attended, mut start) = (Vec::new(), 0, 0);
        for &end in cuts {
            let part = |of: &[f32], heads, dim| {
                tensor(Rows::part(of, dim, start..end), heads, end - start, dim)
            };
            let q = part(&rows.q, HEADS, dim);
            let k = part(&rows.k, SHAPE.kv_heads, dim);
            let v = part(&rows.v, SHAPE.kv_heads, value_dim);
            let (out, report) = attention.process(q, k, v, cache, 0).expect("an answer");
            outs.push(out);
            attended += report.heads.iter().map(|head| head.attended).sum::<u64>();
            start = end;
        }
        let out = Tensor::cat(outs, 2).into_data().to_vec::<f32>();
        (out.expect("floats"), attended)
    }

    #[test]
    fn measured_answers_are_the_rule_s_own_and_are_held_against_dense() {
        let config = HiraAttentionConfig {
            sink_tokens: 2,
            recent_window: 6,
            plan: PlanPolicy::Sparse,
            ..base(true)
        };
        let cuts = [70, 90, 91, LEN];
        let rows = Rows::random(12);
        for text in [
            "top-k=9",
            "sample-max",
            "dense",
            "quest=32",
            "streaming=20",
            "h2o=16",
        ] {
            let rule: EvalRule = text.parse().expect("a rule");
            let device = Default::default();
            let measuring = Measuring {
                layers: Some(vec![0]),
                every: 15,
                from: 45,
            };
            let measured = Measured::<Flex>::new(&rule, &config, measuring, &device).expect("one");
            let recalls = measured.recalls();
            let cache = || rule.config(&config).init_cache(SHAPE).expect("a cache");
            let found = read(&measured, &rows, &mut cache(), &cuts);
            // A measured query is a call of its own, and the others are what they are between such calls: a tile of a prefill shares its search.
            let alone = |position: usize| position >= 45 && position.is_multiple_of(15);
            let ends = (1..=LEN).filter(|&end| match rule {
                EvalRule::Hira(_) => alone(end) || alone(end - 1) || cuts.contains(&end),
                // these answer token by token, however they are called
                _ => true,
            });
            let plain = rule
                .processor::<Flex>(&config, &device)
                .expect("an attention");
            let ends: Vec<usize> = ends.collect();
            let expected = read(&*plain, &rows, &mut cache(), &ends);
            assert_eq!(found.1, expected.1, "{text}");
            for (a, b) in found.0.iter().zip(&expected.0) {
                assert!((a - b).abs() < 1e-5, "{text}");
            }
            let total = recalls.total();
            // positions 45, 60, 75, .. 135 of four heads
            assert_eq!((total.queries, total.violations), (4 * 7, 0), "{text}");
            let mut error = 0.0;
            for position in (45..LEN).step_by(15) {
                for head in 0..HEADS {
                    let all: Vec<usize> = (0..=position).collect();
                    let truth = rows.output(head, position, &all);
                    let start = (head * LEN + position) * SHAPE.value_dim;
                    let out = &found.0[start..start + SHAPE.value_dim];
                    let norm = |x: f64| x * x;
                    let distance: f64 = truth
                        .iter()
                        .zip(out)
                        .map(|(a, b)| norm(a - f64::from(*b)))
                        .sum();
                    let length: f64 = truth.iter().map(|x| norm(*x)).sum();
                    error += (distance / length).sqrt();
                }
            }
            assert!((total.relative_error - error).abs() < 1e-4, "{text}");
            let kept = total.mean(total.kept_mass);
            match text {
                "dense" => assert_eq!((kept, total.mean(total.density)), (1.0, 1.0)),
                _ => assert!(kept > 0.05 && kept < 0.999, "{text}: {kept}"),
            }
            assert_eq!(recalls.by_layer().len(), 1);
            recalls.reset();
            assert_eq!(recalls.total().queries, 0);
        }
    }

    #[test]
    fn the_kept_mass_is_that_of_the_selected_keys() {
        let config = HiraAttentionConfig {
            sink_tokens: 1,
            recent_window: 3,
            plan: PlanPolicy::Sparse,
            min_sparse_len: 0,
            ..base(true)
        };
        let rows = Rows::random(30);
        let rule: EvalRule = "top-k=5".parse().expect("a rule");
        let measuring = Measuring {
            layers: None,
            every: LEN - 1,
            from: 1,
        };
        let measured =
            Measured::<Flex>::new(&rule, &config, measuring, &Default::default()).expect("one");
        let mut cache = config.init_cache(SHAPE).expect("a cache");
        read(&measured, &rows, &mut cache, &[LEN]);
        let mut expected = 0.0;
        for head in 0..HEADS {
            let all: Vec<usize> = (0..LEN).collect();
            let weights = rows.weights(head, LEN - 1, &all);
            let mut order = all.clone();
            order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
            let is_kept = |p: &usize| *p < 1 || *p + 3 >= LEN || order[..5].contains(p);
            expected += all
                .iter()
                .filter(|p| is_kept(p))
                .map(|&p| weights[p])
                .sum::<f64>();
        }
        let total = measured.recalls().total();
        assert_eq!(total.queries, 4);
        assert!(
            (total.kept_mass - expected).abs() < 1e-6,
            "{total:?} {expected}"
        );
    }
}
