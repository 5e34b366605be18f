//! Layers with a sliding window: dense and sparse, decode and prefill, agree with f64 attention over the window, and with a cache that forgets nothing.

use hira_attention::{
    AttentionError, AttentionReport, CacheShape, HiraAttentionConfig, HiraCache, HostAttention,
    PartKeys, PartialAttention, PlanPolicy, WindowLayers,
};
use hira_cache::CacheError;
use hira_threshold::ThresholdRule;
use proptest::prelude::*;

const HEADS: usize = 2;
const SEQUENCES: usize = 2;
const DIM: usize = 8;
const VALUE_DIM: usize = 5;
const SEGMENT_LEN: usize = 48;

/// Numbers between -1 and 1 that look random.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| 2.0 * next()).collect()
}

fn config(plan: PlanPolicy, window: usize) -> HiraAttentionConfig {
    HiraAttentionConfig {
        segment_len: SEGMENT_LEN,
        min_sparse_len: 20,
        tail_block: 16,
        top_k: 9,
        sink_tokens: 3,
        recent_window: 5,
        max_decode_tokens: 4,
        evict_slack: 6,
        plan,
        ..HiraAttentionConfig::new()
    }
    .with_sliding_window(window, WindowLayers::Layers(vec![0]))
}

fn shape(max_len: usize) -> CacheShape {
    CacheShape {
        layers: 2,
        sequences: SEQUENCES,
        kv_heads: 1,
        head_dim: DIM,
        value_dim: VALUE_DIM,
        max_len,
    }
}

/// A cache, what was appended to it (token by token, each `[B, D]`), and the engine that answers from it.
struct Session {
    attention: HostAttention,
    cache: HiraCache,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// New tokens, in the layouts of a call.
struct Batch {
    tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Batch {
    fn new(tokens: usize, seed: u64) -> Self {
        Self {
            tokens,
            q: noise(SEQUENCES * HEADS * tokens * DIM, seed),
            k: noise(SEQUENCES * tokens * DIM, seed + 1),
            v: noise(SEQUENCES * tokens * VALUE_DIM, seed + 2),
        }
    }
}

impl Session {
    fn new(config: &HiraAttentionConfig) -> Self {
        Self {
            attention: config.init_host().unwrap(),
            cache: config.init_cache(shape(5000)).unwrap(),
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    fn len(&self) -> usize {
        self.keys.len() / (SEQUENCES * DIM)
    }

    fn forward(&mut self, batch: &Batch, layer: usize) -> (Vec<f32>, AttentionReport) {
        let mut out = vec![0.0; SEQUENCES * HEADS * batch.tokens * VALUE_DIM];
        let report = self
            .attention
            .forward_into(
                HEADS,
                &batch.q,
                &batch.k,
                &batch.v,
                &mut self.cache,
                layer,
                &mut out,
            )
            .unwrap();
        if layer == 0 {
            for token in 0..batch.tokens {
                for sequence in 0..SEQUENCES {
                    let row = sequence * batch.tokens + token;
                    self.keys.extend_from_slice(&batch.k[row * DIM..][..DIM]);
                    self.values
                        .extend_from_slice(&batch.v[row * VALUE_DIM..][..VALUE_DIM]);
                }
            }
        }
        (out, report)
    }

    /// Keeps `len` tokens, or as few as a layer with a window can: what it has forgotten does not come back. Returns how many.
    fn truncate(&mut self, len: usize) -> usize {
        let len = match self.cache.truncate(len) {
            Err(CacheError::Evicted { least, received }) => {
                assert_eq!(received, len);
                self.cache.truncate(least).unwrap();
                least
            }
            kept => {
                kept.unwrap();
                len
            }
        };
        self.keys.truncate(len * SEQUENCES * DIM);
        self.values.truncate(len * SEQUENCES * VALUE_DIM);
        len
    }

    /// Dense attention in f64 over the positions `seen`.
    fn expected(&self, query: &[f32], sequence: usize, seen: std::ops::Range<usize>) -> Vec<f64> {
        let scale = 1.0 / (DIM as f32).sqrt();
        let logit = |at: usize| -> f64 {
            let key = &self.keys[(at * SEQUENCES + sequence) * DIM..][..DIM];
            let products = query.iter().zip(key);
            let score: f64 = products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            f64::from(scale) * score
        };
        let logits: Vec<f64> = seen.clone().map(logit).collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut out, mut sum) = (vec![0.0; VALUE_DIM], 0.0);
        for (at, logit) in seen.zip(logits) {
            let weight = (logit - most).exp();
            sum += weight;
            let value = &self.values[(at * SEQUENCES + sequence) * VALUE_DIM..][..VALUE_DIM];
            for (out, &x) in out.iter_mut().zip(value) {
                *out += weight * f64::from(x);
            }
        }
        out.iter().map(|x| x / sum).collect()
    }

    /// Every answer to the last `batch` is that of the window, within its certificate; returns the largest error.
    fn check(&self, batch: &Batch, out: &[f32], report: &AttentionReport, window: usize) -> f64 {
        let before = self.len() - batch.tokens;
        let mut worst = 0.0_f64;
        for (row, found) in out.chunks_exact(VALUE_DIM).enumerate() {
            let (head, token) = (row / batch.tokens, row % batch.tokens);
            let visible = before + token + 1;
            let seen = visible.saturating_sub(window)..visible;
            let query = &batch.q[row * DIM..][..DIM];
            let expected = self.expected(query, head / HEADS, seen.clone());
            let squares = found.iter().zip(&expected);
            let error: f64 = squares.map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
            let certificate = report.certificates[row];
            let bound = f64::from(certificate.output_error_bound);
            assert!(
                error.sqrt() <= bound * (1.0 + 1e-6) + 1e-12,
                "{seen:?}: {} beside {bound}",
                error.sqrt()
            );
            worst = worst.max(error.sqrt());
        }
        let seen = |token: usize| (before + token + 1).min(window) as u64;
        let visible: u64 = (0..batch.tokens).map(seen).sum();
        for head in &report.heads {
            assert_eq!(head.visible, visible);
            assert!(head.attended <= visible);
        }
        worst
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_attends_to_the_window(
        window in prop_oneof![
            Just(1usize), Just(15), Just(16), Just(17), 1usize..60, 60usize..300, Just(5000),
        ],
        plan in prop::sample::select(vec![PlanPolicy::Dense, PlanPolicy::Sparse, PlanPolicy::Auto]),
        prefill in any::<bool>(),
        compensated in any::<bool>(),
        rule in prop::sample::select(vec![
            ThresholdRule::TopK { k: 9 },
            ThresholdRule::Percentile { percent: 20.0 },
            ThresholdRule::Mass { mass: 0.9 },
            ThresholdRule::Adaptive { c: 1.0 },
        ]),
        steps in prop::collection::vec(
            prop_oneof![
                4 => Just((1usize, 0usize)),
                2 => (2usize..6, Just(0)),
                2 => (6usize..140, Just(0)),
                1 => (1usize..3, 1usize..7),
            ],
            2..14,
        ),
        seed in any::<u64>(),
    ) {
        let mut some = config(plan, window).with_rule(rule).with_tail_compensation(compensated);
        some.use_hira_during_prefill = prefill;
        let whole = HiraAttentionConfig { evict_slack: usize::MAX, ..some.clone() };
        let (mut some, mut whole) = (Session::new(&some), Session::new(&whole));
        for (i, (tokens, back)) in steps.into_iter().enumerate() {
            if back > 0 {
                let len = some.len().saturating_sub(back);
                let kept = some.truncate(len);
                prop_assert_eq!(whole.truncate(kept), kept);
            }
            let batch = Batch::new(tokens, seed.wrapping_add(100 * i as u64));
            let (out, report) = some.forward(&batch, 0);
            some.check(&batch, &out, &report, window);
            let (twin, its) = whole.forward(&batch, 0);
            whole.check(&batch, &twin, &its, window);
            // Compensation's weights come from proven ranges, which may depend on segments; so may an automatic plan.
            if !compensated && plan != PlanPolicy::Auto {
                prop_assert_eq!(bits(&out), bits(&twin));
            }
            let layer = whole.cache.layer(0).unwrap();
            prop_assert_eq!(layer.evicted(), 0);
            // The layer without a window sees everything.
            let (out, report) = some.forward(&batch, 1);
            some.check(&batch, &out, &report, usize::MAX);
        }
    }
}

/// Sparse steps leave keys out and compensate for blocks inside the window only; over a long decode nothing grows.
#[test]
fn a_long_decode_stays_within_the_window() {
    let window = 150;
    for plan in [PlanPolicy::Sparse, PlanPolicy::Dense] {
        let mut config = config(plan, window).with_top_k(12);
        config.num_levels = 2;
        let mut session = Session::new(&config);
        let prompt = Batch::new(400, 1);
        let (out, report) = session.forward(&prompt, 0);
        session.check(&prompt, &out, &report, window);
        let mut most = (0, 0);
        for step in 0..1200 {
            let batch = Batch::new(1, 10 + 3 * step);
            let (out, report) = session.forward(&batch, 0);
            if step % 7 == 0 {
                let worst = session.check(&batch, &out, &report, window);
                assert!(worst < 1.0);
            }
            let sparse = plan == PlanPolicy::Sparse;
            assert_eq!(report.density() < 0.5, sparse, "{}", report.density());
            let head = &session.cache.layer(0).unwrap().heads()[0];
            let rows = head.len() - head.evicted();
            assert!(
                rows <= window + config.evict_slack + SEGMENT_LEN + 1,
                "{rows}"
            );
            let bytes = session.cache.memory().total();
            if step < 200 {
                most.0 = most.0.max(bytes);
            } else {
                most.1 = most.1.max(bytes);
            }
        }
        // Beyond that only the log of the sample grows, by its logarithm.
        assert!(most.1 < most.0 + most.0 / 4, "{most:?}");
    }
}

#[test]
fn a_part_of_what_was_evicted_is_refused() {
    let mut session = Session::new(&config(PlanPolicy::Dense, 20));
    session.forward(&Batch::new(300, 5), 0);
    session.forward(&Batch::new(1, 6), 0);
    let q = noise(SEQUENCES * HEADS * DIM, 7);
    let evicted = session.cache.layer(0).unwrap().evicted();
    assert!(evicted > 200);
    let mut part = PartialAttention::default();
    let mut partial = |positions: std::ops::Range<usize>| {
        let keys = PartKeys::new(positions);
        let cache = &mut session.cache;
        session
            .attention
            .partial_into(HEADS, &q, cache, 0, &keys, &mut part)
    };
    assert!(partial(evicted..301).is_ok());
    assert!(matches!(
        partial(evicted - 1..301),
        Err(AttentionError::Positions { .. })
    ));
}

#[test]
fn windows_are_read_from_configurations() {
    let config = HiraAttentionConfig::from_toml(
        "sliding_window = 512\nwindow_layers = { except_every = 6 }",
    )
    .unwrap();
    let windows: Vec<_> = (0..7).map(|layer| config.window_of(layer)).collect();
    let local = Some(512);
    assert_eq!(windows, [local, local, local, local, local, None, local]);
    let all = HiraAttentionConfig::from_json("{\"sliding_window\": 4096}").unwrap();
    assert_eq!(all.window_of(31), Some(4096));
    assert_eq!(HiraAttentionConfig::new().window_of(0), None);
    for refused in [
        "sliding_window = 0",
        "window_layers = { except_every = 0 }",
        "window_layers = \"some\"",
    ] {
        assert!(
            HiraAttentionConfig::from_toml(refused).is_err(),
            "{refused}"
        );
    }
}
