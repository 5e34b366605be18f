//! The engine against f64 oracles: dense, sparse, decode, prefill, certificates, errors.

mod common;

use common::{Problem, Shape, distance};
use hira_attention::{
    AttentionError, AttentionReport, CacheShape, Certificate, HeadPlan, HiraAttentionConfig,
    HiraCache, HostAttention, PlanPolicy, Precision,
};
use hira_cache::CacheError;
use hira_index::{HierarchicalIndex, IndexConfig, SampleConfig};
use hira_search::{Plan, PlanChoice};
use hira_threshold::{Cut, RuleInput, Threshold, ThresholdRule};
use proptest::prelude::*;

const SHAPE: Shape = Shape {
    sequences: 2,
    heads: 6,
    kv_heads: 2,
    dim: 16,
    value_dim: 24,
};

fn start(config: &HiraAttentionConfig, shape: Shape, max_len: usize) -> (HostAttention, HiraCache) {
    let cache = config
        .init_cache(CacheShape {
            layers: 1,
            sequences: shape.sequences,
            kv_heads: shape.kv_heads,
            head_dim: shape.dim,
            value_dim: shape.value_dim,
            max_len,
        })
        .unwrap();
    (config.init_host().unwrap(), cache)
}

/// Feeds the tokens in batches of the given sizes; returns outputs `[sequences, heads, tokens, Dv]` and reports.
fn run(
    config: &HiraAttentionConfig,
    problem: &Problem,
    batches: &[usize],
) -> (Vec<f32>, Vec<AttentionReport>) {
    let shape = problem.shape;
    let (attention, mut cache) = start(config, shape, problem.tokens);
    let rows = shape.sequences * shape.heads;
    let mut all = vec![f32::NAN; rows * problem.tokens * shape.value_dim];
    let mut reports = Vec::new();
    let mut first = 0;
    for &batch in batches {
        let range = first..first + batch;
        let mut out = vec![f32::NAN; rows * batch * shape.value_dim];
        let report = attention
            .forward_into(
                shape.heads,
                &problem.q.slice(range.clone()),
                &problem.k.slice(range.clone()),
                &problem.v.slice(range.clone()),
                &mut cache,
                0,
                &mut out,
            )
            .unwrap();
        reports.push(report);
        for (row, head) in out.chunks_exact(batch * shape.value_dim).enumerate() {
            let at = (row * problem.tokens + first) * shape.value_dim;
            all[at..at + head.len()].copy_from_slice(head);
        }
        first += batch;
    }
    assert_eq!(first, problem.tokens);
    assert_eq!(cache.seq_len(0), problem.tokens);
    (all, reports)
}

fn for_each_query(shape: Shape, tokens: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    for sequence in 0..shape.sequences {
        for head in 0..shape.heads {
            for token in 0..tokens {
                let row = (sequence * shape.heads + head) * tokens + token;
                f(sequence, head, token, row * shape.value_dim);
            }
        }
    }
}

fn batchings(tokens: usize) -> Vec<Vec<usize>> {
    let mut ones_after_prefill = vec![tokens - 20];
    ones_after_prefill.extend([1; 20]);
    let mut mixed = vec![tokens - 40, 17, 1, 4];
    mixed.push(tokens - mixed.iter().sum::<usize>());
    vec![vec![tokens], ones_after_prefill, mixed]
}

/// Whatever makes segments of the keys, and whenever a thread has made them, a step gives the same bits. (But for a compensated tail, whose
/// weights are bounds: they depend on what was pruned.)
#[test]
fn segments_do_not_change_a_bit() {
    let problem = Problem::random(8, SHAPE, 420);
    let updates = [
        ("seal", 16),
        ("seal", 48),
        ("{ rebuild = { trigger = { every_n = { n = 37 } } } }", 512),
        ("{ incremental = { every = 29, rebuild_every = 3 } }", 512),
        ("{ dynamic = { base = 32 } }", 512),
    ];
    for (plan, batches) in [
        ("dense", vec![300, 1, 1, 70, 1, 47]),
        ("sparse", vec![300, 1, 1, 14, 1, 16, 16, 16, 16, 16, 16, 7]),
    ] {
        let bits = |update: &str, segment_len: usize, background: bool| -> Vec<u32> {
            let config = HiraAttentionConfig::from_toml(&format!(
                "plan = \"{plan}\"\ntail_compensation = false\ntop_k = 40\nmin_coarse_len = 0\nbranching_factor = 4\n\
                 segment_len = {segment_len}\nbackground_builds = {background}\n\
                 update_strategy = {update}"
            ));
            let (out, _) = run(&config.unwrap(), &problem, &batches);
            out.iter().map(|x| x.to_bits()).collect()
        };
        let expected = bits("\"seal\"", 8192, false);
        for (update, segment_len) in updates {
            let update = if update == "seal" { "\"seal\"" } else { update };
            for background in [false, true] {
                let same = bits(update, segment_len, background) == expected;
                assert!(same, "{plan} {update} {segment_len} {background}");
            }
        }
    }
}

#[test]
fn dense_is_dense_attention_in_any_batching() {
    let problem = Problem::random(1, SHAPE, 150);
    for config in [
        HiraAttentionConfig::dense(),
        HiraAttentionConfig::new(),
        HiraAttentionConfig::new().with_threshold(f32::NEG_INFINITY),
    ] {
        for batches in batchings(150) {
            let (out, reports) = run(&config, &problem, &batches);
            for_each_query(SHAPE, 150, |sequence, head, token, at| {
                let (expected, _) = problem.attend(sequence, head, token, 0.25, |_, _| true);
                let error = distance(&out[at..at + SHAPE.value_dim], &expected);
                assert!(
                    error < 1e-4,
                    "{batches:?}: {sequence} {head} {token}: {error}"
                );
            });
            assert!(
                reports
                    .iter()
                    .all(|report| report.dropped_mass_bound() == 0.0)
            );
            assert!(reports.iter().all(|report| report.density() == 1.0));
        }
    }
}

/// The answers of both plans are those over the stored keys and values: near to the oracle, and bit for bit what f32 gives of them.
#[test]
fn every_precision_attends_to_what_it_stores() {
    for precision in Precision::ALL {
        let given = Problem::random(9, SHAPE, 150);
        let stored = Problem::random(9, SHAPE, 150).stored(precision);
        for config in [
            HiraAttentionConfig::dense(),
            HiraAttentionConfig {
                use_hira_during_prefill: true,
                segment_len: 32,
                ..HiraAttentionConfig::new()
                    .with_top_k(9)
                    .with_plan(PlanPolicy::Sparse)
            },
        ] {
            for batches in batchings(150) {
                let (out, reports) =
                    run(&config.clone().with_precision(precision), &given, &batches);
                let (wide, wide_reports) = run(&config, &stored, &batches);
                assert_eq!(out, wide, "{precision} {batches:?}");
                for (report, wide) in reports.iter().zip(&wide_reports) {
                    assert_eq!(report.output_error_bound(), wide.output_error_bound());
                    assert_eq!(report.dropped_mass_bound(), wide.dropped_mass_bound());
                }
                if config.plan == PlanPolicy::Dense {
                    for_each_query(SHAPE, 150, |sequence, head, token, at| {
                        let (expected, _) = stored.attend(sequence, head, token, 0.25, |_, _| true);
                        let error = distance(&out[at..at + SHAPE.value_dim], &expected);
                        assert!(
                            error < 1e-4,
                            "{precision}: {sequence} {head} {token}: {error}"
                        );
                    });
                }
            }
        }
    }
}

#[test]
fn keys_and_values_that_a_precision_cannot_hold_are_refused() {
    let problem = Problem::random(6, SHAPE, 8);
    let config = HiraAttentionConfig::new().with_precision(Precision::F16);
    let (attention, mut cache) = start(&config, SHAPE, 10);
    let mut out = vec![0.0; SHAPE.sequences * SHAPE.heads * 8 * SHAPE.value_dim];
    let (q, mut k) = (problem.q.slice(0..8), problem.k.slice(0..8));
    let mut v = problem.v.slice(0..8);
    v[3] = 7e4;
    let error = attention
        .forward_into(SHAPE.heads, &q, &k, &v, &mut cache, 0, &mut out)
        .unwrap_err();
    assert!(matches!(
        error,
        AttentionError::Cache(CacheError::ValueOverflow {
            column: 3,
            precision: Precision::F16,
            ..
        })
    ));
    k[5] = -7e4;
    let error = attention
        .forward_into(SHAPE.heads, &q, &k, &v, &mut cache, 0, &mut out)
        .unwrap_err();
    assert!(matches!(
        error,
        AttentionError::Cache(CacheError::Keys { .. })
    ));
    assert_eq!(cache.seq_len(0), 0);
}

#[test]
fn a_threshold_of_minus_infinity_through_the_sparse_plan_is_dense() {
    let problem = Problem::random(2, SHAPE, 120);
    let config = HiraAttentionConfig {
        use_hira_during_prefill: true,
        ..HiraAttentionConfig::new()
            .with_threshold(f32::NEG_INFINITY)
            .with_plan(PlanPolicy::Sparse)
    };
    let (out, _) = run(&config, &problem, &[100, 20]);
    for_each_query(SHAPE, 120, |sequence, head, token, at| {
        let (expected, _) = problem.attend(sequence, head, token, 0.25, |_, _| true);
        let error = distance(&out[at..at + SHAPE.value_dim], &expected);
        assert!(error < 1e-4, "{sequence} {head} {token}: {error}");
    });
}

/// The keys that a query's rule chooses from: in a prefill those before its tile of 16 positions, else all that it sees.
fn searched(batches: &[usize], token: usize) -> usize {
    let mut end = 0;
    let batch = batches.iter().find(|&&batch| {
        end += batch;
        token < end
    });
    if *batch.unwrap() > 16 {
        token - token % 16
    } else {
        token + 1
    }
}

/// What a report says of one query.
fn certificate(
    reports: &[AttentionReport],
    batches: &[usize],
    row: usize,
    token: usize,
) -> Certificate {
    let mut first = 0;
    for (report, &batch) in reports.iter().zip(batches) {
        if token < first + batch {
            return report.certificates[row * batch + token - first];
        }
        first += batch;
    }
    panic!("token {token} is in no batch");
}

/// The keys that top-k among the first `searched`, with sinks, a window and all others attends to.
fn top_k_keep(scores: &[f64], k: usize, sinks: usize, window: usize, searched: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..searched).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut keep = vec![false; scores.len()];
    order.iter().take(k).for_each(|&j| keep[j] = true);
    let n = scores.len();
    keep.iter_mut().take(sinks).for_each(|kept| *kept = true);
    keep.iter_mut()
        .skip(n.saturating_sub(window).min(searched))
        .for_each(|kept| *kept = true);
    keep
}

#[test]
fn top_k_attends_to_the_top_keys_the_sinks_and_the_window_with_a_valid_certificate() {
    for precision in Precision::ALL {
        let problem = Problem::random(3, SHAPE, 200);
        top_k_attends(&problem, precision);
    }
}

fn top_k_attends(given: &Problem, precision: Precision) {
    let problem = Problem::random(3, SHAPE, 200).stored(precision);
    for (levels, segment_len) in [(1, 64), (3, 64), (1, 8192)] {
        let config = HiraAttentionConfig {
            use_hira_during_prefill: true,
            num_levels: levels,
            branching_factor: 4,
            segment_len,
            min_coarse_len: 0,
            ..HiraAttentionConfig::new()
                .with_top_k(12)
                .with_sinks_and_window(3, 9)
                .with_plan(PlanPolicy::Sparse)
                .with_tail_compensation(false)
                .with_precision(precision)
        };
        for batches in batchings(200) {
            let (out, reports) = run(&config, given, &batches);
            let worst_mass = reports
                .iter()
                .map(|r| r.dropped_mass_bound())
                .fold(0.0, f32::max);
            let worst_error = reports
                .iter()
                .map(|r| r.output_error_bound())
                .fold(0.0, f32::max);
            for_each_query(SHAPE, 200, |sequence, head, token, at| {
                let scores = problem.scores(sequence, head, token);
                let keep = top_k_keep(&scores, 12, 3, 9, searched(&batches, token));
                let answer = &out[at..at + SHAPE.value_dim];
                let (expected, dropped) =
                    problem.attend(sequence, head, token, 0.25, |j, _| keep[j]);
                let error = distance(answer, &expected);
                assert!(
                    error < 1e-4,
                    "{batches:?}: {sequence} {head} {token}: {error}"
                );
                assert!(dropped <= f64::from(worst_mass));
                let (dense, _) = problem.attend(sequence, head, token, 0.25, |_, _| true);
                assert!(distance(answer, &dense) <= f64::from(worst_error));
                let row = sequence * SHAPE.heads + head;
                let own = certificate(&reports, &batches, row, token);
                assert!(dropped <= f64::from(own.dropped_mass_bound));
                assert!(distance(answer, &dense) <= f64::from(own.output_error_bound));
            });
        }
    }
}

/// A sampled rule attends to the keys that reach its threshold, which is found here from the same positions.
#[test]
fn sampled_rules_attend_to_the_keys_that_reach_their_threshold() {
    let problem = Problem::random(12, SHAPE, 150);
    let sample = SampleConfig { size: 24, seed: 5 };
    let mut positions_only =
        HierarchicalIndex::new(IndexConfig::new(1).with_sample(sample)).unwrap();
    positions_only.append(&[0.0; 150]).unwrap();
    for rule in [
        ThresholdRule::Adaptive { c: 1.0 },
        ThresholdRule::SampleMax,
        ThresholdRule::SampleTopK { k: 20 },
        ThresholdRule::SampleMeanMax { weight: 0.6 },
        ThresholdRule::SampleGap,
        ThresholdRule::Budget { percent: 10.0 },
    ] {
        let config = HiraAttentionConfig {
            use_hira_during_prefill: true,
            sample_size: sample.size,
            sample_seed: sample.seed,
            segment_len: 64,
            ..HiraAttentionConfig::new()
                .with_rule(rule)
                .with_sinks_and_window(1, 2)
                .with_plan(PlanPolicy::Sparse)
                .with_tail_compensation(false)
        };
        let batches = [100, 25, 25];
        let (out, reports) = run(&config, &problem, &batches);
        let worst = |bound: fn(&AttentionReport) -> f32| {
            f64::from(reports.iter().map(bound).fold(0.0, f32::max))
        };
        let (mut left_out, mut skipped) = (0, 0);
        for_each_query(SHAPE, 150, |sequence, head, token, at| {
            let scores = problem.scores(sequence, head, token);
            let (visible, searched) = (scores.len(), searched(&batches, token));
            if searched == 0 {
                return;
            }
            let mut positions = Vec::new();
            positions_only.sample_positions(searched, &mut positions);
            let sample: Vec<f32> = positions
                .iter()
                .map(|&p| scores[p as usize] as f32)
                .collect();
            let Cut::AtLeast { tau } = rule.cut(&RuleInput {
                visible: searched,
                sample: &sample,
            }) else {
                panic!("a sampled rule sets a threshold");
            };
            // The canonical score is an f32: of a key this near, only the one that gave tau is known to reach it.
            let near: Vec<f64> = scores[..searched]
                .iter()
                .copied()
                .filter(|score| (score - f64::from(tau)).abs() < 1e-4)
                .collect();
            if near.len() > 1 || near.iter().any(|&score| score as f32 != tau) {
                skipped += 1;
                return;
            }
            let keep = |j: usize| {
                j < 1 || j + 2 >= visible || j >= searched || scores[j] >= f64::from(tau) - 1e-4
            };
            let answer = &out[at..at + SHAPE.value_dim];
            let (expected, dropped) = problem.attend(sequence, head, token, 0.25, |j, _| keep(j));
            let error = distance(answer, &expected);
            assert!(error < 1e-4, "{rule}: {sequence} {head} {token}: {error}");
            assert!(dropped <= worst(AttentionReport::dropped_mass_bound));
            left_out += (0..visible).filter(|&j| !keep(j)).count();
        });
        assert!(left_out > 1000, "{rule} left out {left_out} keys");
        assert!(
            skipped < 150 * SHAPE.heads / 10,
            "{rule}: {skipped} skipped"
        );
    }
}

#[test]
fn each_certificate_holds_for_its_own_query() {
    let problem = Problem::random(4, SHAPE, 300);
    let config = HiraAttentionConfig {
        use_hira_during_prefill: true,
        ..HiraAttentionConfig::new()
            .with_top_k(20)
            .with_sinks_and_window(0, 1)
            .with_plan(PlanPolicy::Sparse)
    };
    let (out, reports) = run(&config, &problem, &[1; 300]);
    let mut tight = 0;
    for_each_query(SHAPE, 300, |sequence, head, token, at| {
        let report = reports[token].heads[sequence * SHAPE.heads + head];
        let scores = problem.scores(sequence, head, token);
        let keep = top_k_keep(&scores, 20, 0, 1, token + 1);
        let (_, dropped) = problem.attend(sequence, head, token, 0.25, |j, _| keep[j]);
        let bound = f64::from(report.worst.dropped_mass_bound);
        assert!(dropped <= bound, "{dropped} > {bound}");
        tight += usize::from(bound <= 1.2 * dropped + 1e-6);
        let (dense, _) = problem.attend(sequence, head, token, 0.25, |_, _| true);
        let error = distance(&out[at..at + SHAPE.value_dim], &dense);
        assert!(error <= f64::from(report.worst.output_error_bound));
    });
    // the bound is close to the truth, not merely above it
    assert!(tight > 300 * SHAPE.heads, "{tight}");
}

/// Every answer of the rule by mass is dense or keeps its promise, in truth and by its certificate; norms that leave a rounded score without
/// meaning make it dense.
#[test]
fn a_mass_is_kept_or_the_answer_is_dense() {
    for (seed, magnify) in [(5, 1.0), (6, 3.0), (7, 1e5)] {
        let mut problem = Problem::random(seed, SHAPE, 300);
        problem.k.data.iter_mut().for_each(|key| *key *= magnify);
        for (mass, max_error) in [(0.5, None), (0.9, None), (0.99, None), (0.9, Some(0.5))] {
            // An error that is promised too may be held by another share of the mass, but not by a smaller one.
            let config = HiraAttentionConfig {
                max_error,
                ..HiraAttentionConfig::new()
            };
            let config = config
                .with_mass(mass)
                .with_sinks_and_window(1, 2)
                .with_plan(PlanPolicy::Sparse);
            let (out, reports) = run(&config, &problem, &[1; 300]);
            let (mut sparse, eps) = (0, 1.0 - f64::from(mass));
            for_each_query(SHAPE, 300, |sequence, head, token, at| {
                let report = reports[token].heads[sequence * SHAPE.heads + head];
                assert!(f64::from(report.worst.dropped_mass_bound) <= eps);
                let (dense, _) = problem.attend(sequence, head, token, 0.25, |_, _| true);
                let error = distance(&out[at..at + SHAPE.value_dim], &dense);
                assert!(error <= f64::from(report.worst.output_error_bound));
                sparse += usize::from(report.plan == HeadPlan::Sparse && report.density() < 1.0);
            });
            // A query of this norm has one key beyond all others, or two that rounding cannot tell apart.
            assert!(sparse > 1000 || magnify > 10.0, "{sparse} were sparse");
        }
    }
}

#[test]
fn results_do_not_depend_on_kernels_threads_or_segments() {
    let problem = Problem::random(5, SHAPE, 260);
    // a dense prefill, then sparse steps of several tokens
    let batches = [200, 15, 1, 15, 15, 14];
    let config = HiraAttentionConfig::new()
        .with_top_k(30)
        .with_plan(PlanPolicy::Sparse);
    let (expected, _) = run(&config, &problem, &batches);
    for kernel in ["scalar", "avx2", "avx512"] {
        let text =
            format!("kernel = \"{kernel}\"\ntop_k = 30\nplan = \"sparse\"\nsegment_len = 64");
        let Ok(config) = HiraAttentionConfig::from_toml(&text) else {
            println!("skipped: this machine has no {kernel}");
            continue;
        };
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let (out, _) = pool.install(|| run(&config, &problem, &batches));
            for_each_query(SHAPE, 260, |sequence, head, token, at| {
                let range = at..at + SHAPE.value_dim;
                // a dense prefill sums in the order of its kernel
                if token >= 200 {
                    assert_eq!(
                        out[range.clone()],
                        expected[range],
                        "{kernel}, {threads} threads: {sequence} {head} {token}"
                    );
                }
            });
        }
    }
}

/// A token's tile begins where its position says, whatever call brings it and whichever thread answers.
#[test]
fn a_sparse_prefill_gives_the_same_bits_in_any_calls_and_threads() {
    let problem = Problem::random(14, SHAPE, 400);
    let config = HiraAttentionConfig {
        use_hira_during_prefill: true,
        segment_len: 64,
        ..HiraAttentionConfig::new()
            .with_top_k(30)
            .with_sinks_and_window(2, 20)
            .with_tail_compensation(false)
            .with_plan(PlanPolicy::Sparse)
    };
    let (expected, _) = run(&config, &problem, &[400]);
    for batches in [vec![400], vec![100, 300], vec![17, 83, 201, 99]] {
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let (out, reports) = pool.install(|| run(&config, &problem, &batches));
            assert!(out == expected, "{batches:?} {threads}");
            assert!(reports.last().unwrap().density() < 0.9);
        }
    }
}

/// Keys wait for their sketch until the planner could go sparse; the first sparse step finds it, and finds what one that was there all along finds.
#[test]
fn a_late_sketch_gives_the_same_answers() {
    let (least, shape) = (
        384,
        Shape {
            sequences: 1,
            heads: 1,
            kv_heads: 1,
            dim: 128,
            value_dim: 128,
        },
    );
    let problem = Problem::random(8, shape, 440);
    let auto = HiraAttentionConfig {
        min_sparse_len: least,
        search_plan: PlanChoice::Force(Plan::SketchScan),
        ..HiraAttentionConfig::new()
            .with_top_k(4)
            .with_tail_compensation(false)
    }
    .with_sinks_and_window(0, 1);
    let at_once = auto.clone().with_plan(PlanPolicy::Sparse);
    for batch in [1, 5, 11] {
        let batches: Vec<usize> = (0..440)
            .step_by(batch)
            .map(|at| batch.min(440 - at))
            .collect();
        let (late, reports) = run(&auto, &problem, &batches);
        let (early, _) = run(&at_once, &problem, &batches);
        for report in &reports {
            let head = report.heads[0];
            let visible = report.stored;
            assert_eq!(head.plan == HeadPlan::Sparse, visible >= least, "{visible}");
            assert_eq!(head.scanned_fraction() < 1.0, visible >= least, "{visible}");
        }
        // several queries of a call see different numbers of keys: all from here on were sparse
        let same = (least - 1) * shape.value_dim;
        assert_eq!(late[same..], early[same..]);
    }
}

#[test]
fn errors_leave_the_cache_unchanged() {
    let problem = Problem::random(6, SHAPE, 10);
    let config = HiraAttentionConfig::new();
    let (attention, mut cache) = start(&config, SHAPE, 10);
    let (q, k, v) = (
        problem.q.slice(0..8),
        problem.k.slice(0..8),
        problem.v.slice(0..8),
    );
    let mut out = vec![0.0; SHAPE.sequences * SHAPE.heads * 8 * SHAPE.value_dim];
    let mut forward = |heads, q: &[f32], k: &[f32], v: &[f32], layer| {
        let result = attention.forward_into(heads, q, k, v, &mut cache, layer, &mut out);
        (result, cache.seq_len(0))
    };
    let (ok, len) = forward(SHAPE.heads, &q, &k, &v, 0);
    assert_eq!((ok.is_ok(), len), (true, 8));

    let (full, len) = forward(SHAPE.heads, &q, &k, &v, 0);
    assert!(matches!(
        full,
        Err(AttentionError::Cache(CacheError::Capacity {
            max_len: 10,
            stored: 8,
            requested: 8
        }))
    ));
    assert_eq!(len, 8);
    let (layer, _) = forward(SHAPE.heads, &q, &k, &v, 1);
    assert!(matches!(
        layer,
        Err(AttentionError::Cache(CacheError::Layer {
            layers: 1,
            received: 1
        }))
    ));
    let (heads, _) = forward(5, &q, &k, &v, 0);
    assert!(matches!(
        heads,
        Err(AttentionError::Heads {
            kv_heads: 2,
            heads: 5
        })
    ));
    let (length, _) = forward(SHAPE.heads, &q[1..], &k, &v, 0);
    assert!(matches!(
        length,
        Err(AttentionError::Length { what: "q", .. })
    ));

    let bad = |values: &[f32], at: usize, x: f32| {
        let mut values = values.to_vec();
        values[at] = x;
        values
    };
    for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
        for at in [0, 40] {
            // max_len is reached only after these checks: use a fresh cache
            let (attention, mut cache) = start(&config, SHAPE, 10);
            let mut out = out.clone();
            for (q, k, v) in [
                (bad(&q, at, x), k.clone(), v.clone()),
                (q.clone(), bad(&k, at, x), v.clone()),
                (q.clone(), k.clone(), bad(&v, at, x)),
            ] {
                let error = attention
                    .forward_into(SHAPE.heads, &q, &k, &v, &mut cache, 0, &mut out)
                    .unwrap_err();
                let text = format!("{error} {:?}", error);
                assert!(
                    text.contains("token") || text.contains("row"),
                    "the error names the position: {text}"
                );
                assert_eq!(cache.seq_len(0), 0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_shape_agrees_with_the_oracle(
        seed in any::<u64>(),
        dim in prop::sample::select(vec![1_usize, 3, 16, 64, 80]),
        value_dim in prop::sample::select(vec![1_usize, 5, 16, 64]),
        kv_heads in 1_usize..3,
        group in prop::sample::select(vec![1_usize, 3, 4, 9]),
        tokens in 1_usize..120,
        decode in 0_usize..12,
        k in 1_usize..40,
    ) {
        let shape = Shape { sequences: 1, heads: kv_heads * group, kv_heads, dim, value_dim };
        let problem = Problem::random(seed, shape, tokens);
        let decode = decode.min(tokens - 1);
        let mut batches = vec![tokens - decode];
        batches.extend(vec![1; decode]);
        let config = HiraAttentionConfig {
            use_hira_during_prefill: true,
            segment_len: 48,
            scale: Some(0.3),
            ..HiraAttentionConfig::new()
                .with_top_k(k)
                .with_sinks_and_window(1, 2)
                .with_plan(PlanPolicy::Sparse)
                .with_tail_compensation(false)
        };
        let (out, _) = run(&config, &problem, &batches);
        for_each_query(shape, tokens, |sequence, head, token, at| {
            let scores = problem.scores(sequence, head, token);
            let searched = searched(&batches, token);
            let keep = top_k_keep(&scores, k, 1, 2, searched);
            // scores that rounding could reorder may be selected either way
            let sorted = { let mut s = scores[..searched].to_vec(); s.sort_by(|a, b| b.total_cmp(a)); s };
            if k < sorted.len() && (sorted[k - 1] - sorted[k]).abs() < 1e-4 {
                return;
            }
            let (expected, _) = problem.attend(sequence, head, token, f64::from(0.3_f32), |j, _| keep[j]);
            let error = distance(&out[at..at + value_dim], &expected);
            assert!(error < 1e-3, "{sequence} {head} {token}: {error}");
        });
    }
}
