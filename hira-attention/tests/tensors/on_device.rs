//! The device engine through Burn's tensors, on wgpu: against the host engine, and against attention in f64.

use burn::tensor::{Tensor, TensorData};
use burn_wgpu::Wgpu;
use hira_attention::{
    AttentionError, CacheShape, HeadPlan, HiraAttention, HiraAttentionConfig, HiraCache,
    PlanPolicy, Precision,
};
use hira_cache::CacheError;
use hira_index::burn::DeviceEngineError;
use hira_memory::{MemoryError, MemoryPolicy, Part, Tier};
use hira_threshold::ThresholdRule;

use crate::common::{Problem, Rows, Shape, distance};

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

const HYBRID: MemoryPolicy = MemoryPolicy::Hybrid { num_fast_levels: 1 };

#[test]
fn wgpu_grows_past_its_first_capacity() {
    let problem = Problem::random(32, SHAPE, 1031);
    for policy in [MemoryPolicy::AllDevice, HYBRID] {
        let config = sparse().with_top_k(40).with_tail_compensation(false);
        decodes_as_in_f64(config.with_memory_policy(policy), &problem, 1020);
    }
}

/// Steps of two caches, whose exact rows lie in different places: the same keys, the same answers.
#[test]
fn wgpu_hybrid_answers_as_if_all_were_on_the_device() {
    let problem = Problem::random(39, SHAPE, 203);
    for (config, compensation) in [
        (sparse().with_top_k(17), false),
        (sparse().with_top_k(17), true),
        (sparse().with_percentile(6.0), true),
        (sparse().with_threshold(3.0), false),
        (sparse().with_mass(0.9), true),
        (HiraAttentionConfig::dense().with_scale(SCALE as f32), false),
    ] {
        let config = config.with_tail_compensation(compensation);
        let hybrid = config.clone().with_memory_policy(HYBRID);
        let mut caches = [cache_of(&config, 203), cache_of(&hybrid, 203)];
        // a prompt, another, a few tokens at once, and steps
        for range in [0..150, 150..190, 190..199, 199..200, 200..201] {
            let answers = caches.each_mut().map(|cache| {
                let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
                let [q, k, v] = tensors(&problem, range.clone());
                let (out, mut report) = attention.forward(q, k, v, cache, 0);
                let attended = report.attended().unwrap();
                report.fetch().unwrap();
                (floats(out), attended, report.heads, report.certificates)
            });
            let [(out, attended, heads, certificates), other] = answers;
            assert_eq!(attended, other.1, "{range:?}");
            assert_eq!((&heads, &certificates), (&other.2, &other.3), "{range:?}");
            for (ours, theirs) in other.0.iter().zip(&out) {
                assert!((ours - theirs).abs() < 1e-5, "{range:?}: {ours} {theirs}");
            }
        }
        let [all, some] = caches.map(|cache| cache.memory());
        let rows = |dim: usize| SHAPE.sequences * SHAPE.kv_heads * 1024 * dim * 4;
        assert_eq!(some.of(Part::Keys), rows(SHAPE.dim));
        assert_eq!(some.of(Part::Sketch), all.of(Part::Sketch));
        assert_eq!(some.total(), all.total());
        let moved = rows(SHAPE.dim) + rows(SHAPE.value_dim);
        assert_eq!(all.on(Tier::Device) - some.on(Tier::Device), moved);
    }
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
    for policy in [MemoryPolicy::AllDevice, HYBRID] {
        forks_and_truncates(sparse().with_top_k(8).with_memory_policy(policy));
    }
}

fn forks_and_truncates(config: HiraAttentionConfig) {
    let problem = Problem::random(35, SHAPE, 60);
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
    let mut poor = sparse();
    poor.memory_budget = Some(1000);
    let hybrid = sparse().with_memory_policy(HYBRID);
    for poor in [
        poor,
        sparse().with_device_budget(1000),
        hybrid.clone().with_device_budget(1000),
    ] {
        assert!(matches!(
            refused(poor, 20),
            AttentionError::Cache(CacheError::Memory(_))
        ));
    }
    match refused(hybrid.with_host_budget(1000), 20) {
        AttentionError::Cache(CacheError::Memory(MemoryError::TierFull {
            tier, limit, ..
        })) => {
            assert_eq!((tier, limit), (Tier::Host, 1000));
        }
        other => panic!("host_budget: {other}"),
    }
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

/// Budgets hold to the byte, and what they refuse changes nothing.
#[test]
fn wgpu_budgets_hold_where_a_layer_grows() {
    let problem = Problem::random(40, SHAPE, 1030);
    let config = sparse().with_top_k(8).with_memory_policy(HYBRID);
    // of 1024 tokens: codes, scale and residual; means of blocks; exact rows
    let keys = SHAPE.sequences * SHAPE.kv_heads * 1024;
    let device = keys * (SHAPE.dim + 4) + keys / 64 * SHAPE.value_dim * 4;
    let host = keys * (SHAPE.dim + SHAPE.value_dim) * 4;
    for (config, tier) in [
        (config.clone().with_device_budget(device), Tier::Device),
        (config.clone().with_host_budget(host), Tier::Host),
    ] {
        let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
        let mut cache = cache_of(&config, 1030);
        let step = |cache: &mut HiraCache, range| {
            let [q, k, v] = tensors(&problem, range);
            attention.try_forward(q, k, v, cache, 0)
        };
        step(&mut cache, 0..1024).unwrap();
        let memory = cache.memory();
        assert_eq!(memory.on(Tier::Device), device);
        assert_eq!(memory.on(Tier::Host) - memory.of(Part::Sample), host);
        match step(&mut cache, 1024..1025).unwrap_err() {
            AttentionError::Cache(CacheError::Memory(MemoryError::TierFull {
                tier: full,
                requested,
                ..
            })) => {
                assert_eq!(full, tier);
                // of 1030 positions, rounded up to 2048
                assert_eq!(requested, if tier == Tier::Device { device } else { host });
            }
            other => panic!("{tier}: {other}"),
        }
        assert_eq!((cache.seq_len(0), cache.memory()), (1024, memory));
        cache.truncate(1000).unwrap();
        step(&mut cache, 1000..1001).unwrap();
    }
}

#[test]
fn wgpu_adaptive_moves_rows_by_what_the_device_holds() {
    let problem = Problem::random(41, SHAPE, 600);
    let keys = SHAPE.sequences * SHAPE.kv_heads * 1024;
    let below = keys * (SHAPE.dim + 4) + keys / 64 * SHAPE.value_dim * 4;
    let rows = keys * (SHAPE.dim + SHAPE.value_dim) * 4;
    let policy = MemoryPolicy::Adaptive { target_usage: 0.5 };
    let config = sparse()
        .with_top_k(8)
        .with_memory_policy(policy)
        // half of it holds one layer's rows beside two sketches
        .with_device_budget(2 * (2 * below + rows) + 1000);
    let attention: HiraAttention<Wgpu> = config.init(&Default::default()).unwrap();
    let all = sparse().with_top_k(8);
    let mut expected = cache_of(&all, 600);
    let mut cache = cache_of(&config, 600);
    let mut step = |cache: &mut HiraCache, layer, range: std::ops::Range<usize>| {
        let answer = |cache: &mut HiraCache| {
            let [q, k, v] = tensors(&problem, range.clone());
            floats(attention.forward(q, k, v, cache, layer).0)
        };
        let (received, expected) = (answer(cache), answer(&mut expected));
        for (ours, theirs) in received.iter().zip(&expected) {
            assert!((ours - theirs).abs() < 1e-5, "{range:?}: {ours} {theirs}");
        }
        let memory = cache.memory();
        let host = memory.on(Tier::Host) - memory.of(Part::Sample);
        (memory.on(Tier::Device), host)
    };
    assert_eq!(step(&mut cache, 0, 0..200), (below + rows, 0));
    // the second layer's rows would pass the target
    assert_eq!(step(&mut cache, 1, 0..200), (2 * below + rows, rows));
    assert_eq!(
        step(&mut cache, 1, 200..255),
        (2 * below + rows, rows),
        "nothing to look at"
    );
    // with the first layer gone there is room: at the next look they come back
    cache.layer_mut(0).unwrap().device_mut().clear();
    assert_eq!(step(&mut cache, 1, 255..256), (below + rows, 0));
    assert_eq!(step(&mut cache, 1, 256..257), (below + rows, 0));
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
