//! The device engine through Burn's tensors, on wgpu: against the host engine, and against attention in f64.
#![cfg(feature = "wgpu")]

mod common;

use burn::tensor::{Tensor, TensorData};
use burn_wgpu::Wgpu;
use common::{Problem, Rows, Shape, distance};
use hira_attention::{
    AttentionError, CacheShape, HeadPlan, HiraAttention, HiraAttentionConfig, HiraCache,
    PlanPolicy, Precision,
};
use hira_cache::CacheError;
use hira_index::burn::DeviceEngineError;
use hira_memory::{MemoryPolicy, Part, Tier};
use hira_threshold::ThresholdRule;

/// Two sequences, groups of three queries.
const SHAPE: Shape = Shape {
    sequences: 2,
    heads: 6,
    kv_heads: 2,
    dim: 32,
    value_dim: 16,
};

const SCALE: f64 = 0.25;

fn cache_of(config: &HiraAttentionConfig, max_len: usize) -> HiraCache {
    let shape = CacheShape {
        layers: 2,
        sequences: SHAPE.sequences,
        kv_heads: SHAPE.kv_heads,
        head_dim: SHAPE.dim,
        value_dim: SHAPE.value_dim,
        max_len,
    };
    config.init_cache(shape).unwrap()
}

fn sparse() -> HiraAttentionConfig {
    HiraAttentionConfig::new()
        .with_plan(PlanPolicy::Sparse)
        .with_scale(SCALE as f32)
        .with_sinks_and_window(2, 5)
}

fn tensor(rows: &Rows, range: std::ops::Range<usize>) -> Tensor<Wgpu, 4> {
    let shape = [SHAPE.sequences, rows.heads, range.len(), rows.dim];
    Tensor::from_data(
        TensorData::new(rows.slice(range), shape),
        &Default::default(),
    )
}

fn floats(tensor: Tensor<Wgpu, 4>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap()
}

fn tensors(problem: &Problem, range: std::ops::Range<usize>) -> [Tensor<Wgpu, 4>; 3] {
    [&problem.q, &problem.k, &problem.v].map(|rows| tensor(rows, range.clone()))
}

/// Decode steps by `config`, each held against f64: which keys were attended to, the output, the certificate.
fn decodes_as_in_f64(config: HiraAttentionConfig, problem: &Problem, from: usize) {
    let rule = config.rule().unwrap();
    let (sinks, window) = (config.sink_tokens, config.recent_window);
    let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
    let mut cache = cache_of(&config, problem.tokens);
    let [q, k, v] = tensors(problem, 0..from);
    attention.forward(q, k, v, &mut cache, 1);
    for token in from..problem.tokens {
        let [q, k, v] = tensors(problem, token..token + 1);
        let (out, mut report) = attention.forward(q, k, v, &mut cache, 1);
        // nothing is claimed before somebody looks
        assert!(report.is_pending());
        assert_eq!(
            (report.dropped_mass_bound(), report.output_error_bound()),
            (1.0, f32::INFINITY)
        );
        let attended = report.attended().unwrap().expect("a sparse step");
        report.fetch().unwrap();
        assert!(!report.is_pending());
        assert_eq!(report.heads.len(), SHAPE.sequences * SHAPE.heads);
        let out = floats(out);
        for (row, attended) in attended.iter().enumerate() {
            let (sequence, head) = (row / SHAPE.heads, row % SHAPE.heads);
            let about = format!("{rule}, token {token}, sequence {sequence}, head {head}");
            let (answer, certificate) = (report.heads[row], report.certificates[row]);
            assert_eq!(answer.visible, token as u64 + 1, "{about}");
            assert_eq!(answer.attended, attended.len() as u64, "{about}");
            assert!(answer.survivors >= answer.attended, "{about}");
            let scores = problem.scores(sequence, head, token);
            let always = |j: usize| j < sinks || j + window > token;
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let tau = match rule.count(token + 1) {
                Some(k) => Some(sorted[k - 1]),
                None => rule.tau().map(f64::from),
            };
            let missing = (0..=token).filter(|&j| !attended.contains(&(j as u32)));
            if let Some(tau) = tau {
                // f64 and canonical scores differ by rounding, not by more
                let missed = missing
                    .clone()
                    .filter(|&j| always(j) || scores[j] > tau + 1e-4);
                assert_eq!(missed.count(), 0, "{about}");
                let extra = attended.iter().map(|&j| j as usize);
                let extra = extra.filter(|&j| !always(j) && scores[j] < tau - 1e-4);
                assert_eq!(extra.count(), 0, "{about}");
            }
            let keep = |j: usize, _| attended.contains(&(j as u32));
            let (of_attended, dropped) = problem.attend(sequence, head, token, SCALE, keep);
            let (dense, _) = problem.attend(sequence, head, token, SCALE, |_, _| true);
            assert!(
                dropped <= f64::from(certificate.dropped_mass_bound) + 1e-6,
                "{about}"
            );
            if let ThresholdRule::Mass { mass } = rule {
                assert!(certificate.dropped_mass_bound <= 1.0 - mass, "{about}");
            }
            let out = &out[row * SHAPE.value_dim..(row + 1) * SHAPE.value_dim];
            let error = distance(out, &dense);
            assert!(
                error <= f64::from(certificate.output_error_bound),
                "{about}: {error}"
            );
            if !config.tail_compensation {
                let error = distance(out, &of_attended);
                assert!(error < 1e-4, "{about}: {error}");
            }
        }
    }
}

#[test]
fn wgpu_decodes_by_every_rule_as_in_f64() {
    let problem = Problem::random(31, SHAPE, 203);
    for (config, compensation) in [
        (sparse().with_top_k(17), false),
        (sparse().with_top_k(17), true),
        (sparse().with_percentile(6.0), true),
        (sparse().with_threshold(3.0), false),
        (sparse().with_mass(0.9), true),
    ] {
        let config = config.with_tail_compensation(compensation);
        decodes_as_in_f64(config, &problem, 201);
    }
}

#[test]
fn wgpu_grows_past_its_first_capacity() {
    let problem = Problem::random(32, SHAPE, 1031);
    decodes_as_in_f64(
        sparse().with_top_k(40).with_tail_compensation(false),
        &problem,
        1020,
    );
}

#[test]
fn wgpu_stores_bf16() {
    let problem = Problem::random(33, SHAPE, 80).stored(Precision::Bf16);
    let config = sparse()
        .with_top_k(9)
        .with_precision(Precision::Bf16)
        .with_tail_compensation(false);
    decodes_as_in_f64(config, &problem, 77);
}

/// The same calls on the host engine: outputs, numbers of keys, and dropped masses that are of one size.
#[test]
fn wgpu_agrees_with_the_host_engine() {
    let problem = Problem::random(34, SHAPE, 140);
    for config in [
        sparse().with_top_k(20).with_tail_compensation(false),
        HiraAttentionConfig::dense().with_scale(SCALE as f32),
    ] {
        let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
        let mut cache = cache_of(&config, 140);
        let mut on_host = cache_of(&config, 140);
        // a prompt, another prompt, some tokens at once, one by one
        for range in [0..70, 70..100, 100..104, 104..105, 105..106] {
            let [q, k, v] = tensors(&problem, range.clone());
            let (out, mut report) = attention.forward(q, k, v, &mut cache, 0);
            report.fetch().unwrap();
            let mut expected =
                vec![0.0; SHAPE.sequences * SHAPE.heads * range.len() * SHAPE.value_dim];
            let on_host = attention
                .engine()
                .forward_into(
                    SHAPE.heads,
                    &problem.q.slice(range.clone()),
                    &problem.k.slice(range.clone()),
                    &problem.v.slice(range.clone()),
                    &mut on_host,
                    0,
                    &mut expected,
                )
                .unwrap();
            for (ours, theirs) in floats(out).iter().zip(&expected) {
                assert!((ours - theirs).abs() < 1e-4, "{range:?}: {ours} {theirs}");
            }
            assert_eq!(report.stored, on_host.stored);
            assert_eq!(report.certificates.len(), on_host.certificates.len());
            for (ours, theirs) in report.heads.iter().zip(&on_host.heads) {
                assert_eq!(
                    (ours.queries, ours.visible),
                    (theirs.queries, theirs.visible)
                );
                assert_eq!(ours.attended, theirs.attended, "{range:?}");
                assert_eq!(ours.plan, theirs.plan);
            }
        }
        assert_eq!((cache.seq_len(0), cache.seq_len(1)), (106, 0));
        let memory = cache.memory();
        assert_eq!(memory.on(Tier::Host) - memory.of(Part::Sample), 0);
        assert!(memory.on(Tier::Device) >= memory.of(Part::Keys));
        assert!(memory.of(Part::Keys) > 0);
    }
}

#[test]
fn wgpu_forks_and_truncates() {
    let problem = Problem::random(35, SHAPE, 60);
    let config = sparse().with_top_k(8);
    let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
    let mut cache = cache_of(&config, 60);
    let step = |cache: &mut HiraCache, range| {
        let [q, k, v] = tensors(&problem, range);
        floats(attention.forward(q, k, v, cache, 0).0)
    };
    step(&mut cache, 0..50);
    let mut fork = cache.clone();
    let first = step(&mut cache, 50..51);
    step(&mut fork, 55..56);
    assert_eq!((cache.seq_len(0), fork.seq_len(0)), (51, 51));
    fork.truncate(50).unwrap();
    assert_eq!(step(&mut fork, 50..51), first);
    cache.truncate(50).unwrap();
    assert_eq!(step(&mut cache, 50..51), first);
    cache.reset();
    assert_eq!((cache.seq_len(0), cache.memory().on(Tier::Device)), (0, 0));
}

#[test]
fn wgpu_refuses_what_the_device_engine_does_not_do() {
    let problem = Problem::random(36, SHAPE, 20);
    let refused = |config: HiraAttentionConfig, max_len| {
        let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
        let mut cache = cache_of(&config, max_len);
        let [q, k, v] = tensors(&problem, 0..20);
        let error = attention.try_forward(q, k, v, &mut cache, 0).unwrap_err();
        assert_eq!(cache.seq_len(0), 0);
        error
    };
    let mut limited = sparse().with_threshold(1.0);
    limited.max_candidates = Some(5);
    for (config, named) in [
        (
            sparse().with_rule(ThresholdRule::Adaptive { c: 1.0 }),
            "threshold_strategy",
        ),
        (sparse().with_max_error(1e-3), "max_error"),
        (limited, "max_candidates"),
    ] {
        match refused(config, 20) {
            AttentionError::DeviceSetting { key, .. } => assert_eq!(key, named),
            other => panic!("{named}: {other}"),
        }
    }
    let mut hybrid = sparse();
    hybrid.memory_policy = MemoryPolicy::Hybrid { num_fast_levels: 1 };
    assert!(matches!(
        refused(hybrid, 20),
        AttentionError::Cache(CacheError::DevicePolicy { .. })
    ));
    let mut poor = sparse();
    poor.memory_budget = Some(1000);
    assert!(matches!(
        refused(poor, 20),
        AttentionError::Cache(CacheError::Memory(_))
    ));
    assert!(matches!(
        refused(sparse(), 10),
        AttentionError::Cache(CacheError::Capacity { .. })
    ));
    // a rule that the device lacks runs on the host if everything is to lie there
    let mut config = sparse().with_rule(ThresholdRule::Adaptive { c: 1.0 });
    config.memory_policy = MemoryPolicy::AllHost;
    let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
    let mut cache = cache_of(&config, 20);
    let [q, k, v] = tensors(&problem, 0..20);
    let (_, report) = attention.try_forward(q, k, v, &mut cache, 0).unwrap();
    assert!(!report.is_pending());
    assert_eq!(cache.memory().on(Tier::Device), 0);
}

#[test]
fn wgpu_says_later_that_a_row_was_not_finite() {
    let mut problem = Problem::random(37, SHAPE, 12);
    let at = 7 * SHAPE.dim + 3;
    problem.k.data[at] = f32::NAN;
    let config = sparse().with_top_k(4);
    let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
    let mut cache = cache_of(&config, 12);
    let [q, k, v] = tensors(&problem, 0..12);
    let (_, mut report) = attention.forward(q, k, v, &mut cache, 0);
    assert!(matches!(
        report.fetch(),
        Err(AttentionError::Device(DeviceEngineError::NonFinite {
            what: "keys",
            position: 7
        }))
    ));
    assert!(report.is_pending());
    assert!(report.heads.iter().all(|head| head.plan == HeadPlan::Dense));
}

#[test]
fn wgpu_layers_in_main_memory_and_on_the_device_do_not_mix() {
    let problem = Problem::random(38, SHAPE, 20);
    let config = sparse().with_top_k(4);
    let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
    let mut cache = cache_of(&config, 20);
    let [q, k, v] = tensors(&problem, 0..19);
    attention.forward(q.clone(), k.clone(), v.clone(), &mut cache, 0);
    assert!(matches!(
        cache.append_tensors(0, k.clone(), v.clone()),
        Err(CacheError::OnDevice)
    ));
    // filled in main memory, a layer stays there
    cache.append_tensors(1, k, v).unwrap();
    let [q, k, v] = tensors(&problem, 19..20);
    let (_, report) = attention.forward(q, k, v, &mut cache, 1);
    assert!(!report.is_pending());
    assert_eq!((cache.seq_len(0), cache.seq_len(1)), (19, 20));
}
