//! Certificates against oracles in f64: neither bound is ever below the truth, with and without compensation, over difficult inputs,
//! histories, plans, precisions and threads, and over real attention keys.

mod common;

use std::path::{Path, PathBuf};

use half::f16;
use hira_attention::{
    AttentionReport, CacheShape, HiraAttentionConfig, HiraCache, HostAttention, PlanPolicy,
    Precision,
};
use hira_kernels::Kernel;
use hira_search::{Plan, PlanChoice};
use hira_threshold::ThresholdRule;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use safetensors::SafeTensors;

const DIM: usize = 16;
const VALUE_DIM: usize = 12;
const KV_HEADS: usize = 2;
const GROUP: usize = 3;
const MAX_LEN: usize = 2048;

/// What keys, values and queries look like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    /// Scores so small that every key weighs the same.
    Flat,
    /// A rare key that takes all of the mass.
    OneHuge,
    /// Four distinct keys.
    EqualKeys,
    /// Scores up to 1e9: rounding alone moves weights.
    HugeNorms,
    ZeroValues,
    HugeValues,
    TinyValues,
    /// Values far from the origin and near to each other.
    FarValues,
}

const KINDS: [Kind; 9] = [
    Kind::Plain,
    Kind::Flat,
    Kind::OneHuge,
    Kind::EqualKeys,
    Kind::HugeNorms,
    Kind::ZeroValues,
    Kind::HugeValues,
    Kind::TinyValues,
    Kind::FarValues,
];

impl Kind {
    fn rows(self, rng: &mut StdRng, what: char, count: usize, dim: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for _ in 0..count {
            let huge = rng.random_range(0..60) == 0;
            let pick = rng.random_range(0..4_u64);
            let mut fixed = StdRng::seed_from_u64(pick);
            let factor = match (self, what) {
                (Kind::Flat, 'q') => 1e-6,
                (Kind::OneHuge, 'k') if huge => 40.0,
                (Kind::HugeNorms, 'q' | 'k') => 1e4,
                (Kind::ZeroValues, 'v') => 0.0,
                (Kind::HugeValues, 'v') => 1e4,
                (Kind::TinyValues, 'v') => 1e-4,
                _ => 1.5,
            };
            let offset = if (self, what) == (Kind::FarValues, 'v') {
                50.0
            } else {
                0.0
            };
            let equal = (self, what) == (Kind::EqualKeys, 'k');
            out.extend((0..dim).map(|_| {
                let x: f32 = if equal {
                    fixed.random_range(-1.0..1.0)
                } else {
                    rng.random_range(-1.0..1.0)
                };
                factor * x + offset
            }));
        }
        out
    }
}

/// An engine, a cache, and what must be in it.
#[derive(Clone)]
struct Session {
    config: HiraAttentionConfig,
    attention: HostAttention,
    cache: HiraCache,
    scale: f64,
    /// Of each KV head, as stored.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    checks: usize,
}

impl Session {
    fn new(config: &HiraAttentionConfig) -> Self {
        let shape = CacheShape {
            layers: 1,
            sequences: 1,
            kv_heads: KV_HEADS,
            head_dim: DIM,
            value_dim: VALUE_DIM,
            max_len: MAX_LEN,
        };
        Self {
            attention: config.init_host().unwrap(),
            cache: config.init_cache(shape).unwrap(),
            scale: f64::from(config.scale.unwrap_or(0.25)),
            config: config.clone(),
            keys: vec![Vec::new(); KV_HEADS],
            values: vec![Vec::new(); KV_HEADS],
            checks: 0,
        }
    }

    fn len(&self) -> usize {
        self.keys[0].len() / DIM
    }

    /// The new rows of every head, `[heads, tokens, dim]`, noted as they are stored.
    fn note(&mut self, keys: &[f32], values: &[f32], tokens: usize) {
        let round = |x: f32| match self.config.precision {
            Precision::F32 => x,
            Precision::F16 => f16::from_f32_const(x).to_f32_const(),
            Precision::Bf16 => half::bf16::from_f32_const(x).to_f32_const(),
        };
        for (head, rows) in self.keys.iter_mut().zip(keys.chunks_exact(tokens * DIM)) {
            head.extend(rows.iter().map(|&x| round(x)));
        }
        let values = values.chunks_exact(tokens * VALUE_DIM);
        for (head, rows) in self.values.iter_mut().zip(values) {
            head.extend(rows.iter().map(|&x| round(x)));
        }
    }

    fn append(&mut self, rng: &mut StdRng, kind: Kind, tokens: usize) {
        let keys = kind.rows(rng, 'k', KV_HEADS * tokens, DIM);
        let values = kind.rows(rng, 'v', KV_HEADS * tokens, VALUE_DIM);
        self.cache.append(0, &keys, &values).unwrap();
        self.note(&keys, &values, tokens);
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(len).expect("nothing is evicted");
        for (keys, values) in self.keys.iter_mut().zip(&mut self.values) {
            keys.truncate(len * DIM);
            values.truncate(len * VALUE_DIM);
        }
    }

    /// One token, and the certificates of its queries.
    fn step(&mut self, rng: &mut StdRng, kind: Kind) {
        let queries = kind.rows(rng, 'q', KV_HEADS * GROUP, DIM);
        let keys = kind.rows(rng, 'k', KV_HEADS, DIM);
        let values = kind.rows(rng, 'v', KV_HEADS, VALUE_DIM);
        self.note(&keys, &values, 1);
        let heads = KV_HEADS * GROUP;
        let mut out = vec![f32::NAN; heads * VALUE_DIM];
        let report = self
            .attention
            .forward_into(
                heads,
                &queries,
                &keys,
                &values,
                &mut self.cache,
                0,
                &mut out,
            )
            .unwrap();
        for (head, (query, out)) in queries
            .chunks_exact(DIM)
            .zip(out.chunks_exact(VALUE_DIM))
            .enumerate()
        {
            let kv_head = head / GROUP;
            let certificate = report.heads[head].worst;
            let oracle = Oracle::new(
                (&self.config, self.scale),
                query,
                (&self.keys[kv_head], &self.values[kv_head]),
                VALUE_DIM,
            );
            let what = format!(
                "{kind:?}, {} keys, head {head}: {certificate:?}",
                self.len()
            );
            oracle.check(out, certificate, &what);
            self.checks += 1;
        }
    }
}

/// Dense attention of one query in f64, and the mass that its rule leaves out.
struct Oracle {
    dense: Vec<f64>,
    dropped: f64,
}

impl Oracle {
    fn new(
        (config, scale): (&HiraAttentionConfig, f64),
        query: &[f32],
        (keys, values): (&[f32], &[f32]),
        value_dim: usize,
    ) -> Self {
        let dim = query.len();
        let n = keys.len() / dim;
        let rows = keys.chunks_exact(dim);
        let exact: Vec<f64> = rows
            .map(|key| {
                let products = key.iter().zip(query);
                products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            })
            .collect();
        let mut canonical = vec![0.0; n];
        Kernel::Scalar.scores_into(query, keys, &mut canonical);
        let rule = config.rule().unwrap();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| (canonical[b] + 0.0).total_cmp(&(canonical[a] + 0.0)));
        let mut attended = vec![false; n];
        match rule {
            ThresholdRule::Fixed { tau } => {
                (0..n).for_each(|j| attended[j] = canonical[j] >= tau);
            }
            _ => order[..rule.count(n).unwrap().min(n)]
                .iter()
                .for_each(|&j| attended[j] = true),
        }
        attended
            .iter_mut()
            .take(config.sink_tokens)
            .for_each(|a| *a = true);
        let window = n.saturating_sub(config.recent_window);
        attended.iter_mut().skip(window).for_each(|a| *a = true);
        let max = exact.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut dense = vec![0.0; value_dim];
        let (mut all, mut left) = (0.0, 0.0);
        for (j, &score) in exact.iter().enumerate() {
            let weight = (scale * (score - max)).exp();
            all += weight;
            if !attended[j] {
                left += weight;
            }
            let value = &values[j * value_dim..][..value_dim];
            dense
                .iter_mut()
                .zip(value)
                .for_each(|(sum, &x)| *sum += weight * f64::from(x));
        }
        dense.iter_mut().for_each(|sum| *sum /= all);
        Self {
            dense,
            dropped: left / all,
        }
    }

    fn error(&self, out: &[f32]) -> f64 {
        common::distance(out, &self.dense)
    }

    /// Asserts both bounds; returns the error and its bound.
    fn check(
        &self,
        out: &[f32],
        certificate: hira_attention::Certificate,
        what: &str,
    ) -> (f64, f64) {
        let (mass, bound) = (
            f64::from(certificate.dropped_mass_bound),
            f64::from(certificate.output_error_bound),
        );
        let error = self.error(out);
        // the oracle's own rounding
        let dropped = self.dropped * (1.0 - 1e-12);
        assert!(dropped <= mass, "dropped {dropped}: {what}");
        assert!(error * (1.0 - 1e-12) <= bound, "error {error}: {what}");
        (error, bound)
    }
}

fn sparse(compensated: bool) -> HiraAttentionConfig {
    HiraAttentionConfig {
        segment_len: 128,
        tail_block: 16,
        ..HiraAttentionConfig::new()
            .with_top_k(12)
            .with_sinks_and_window(2, 9)
            .with_plan(PlanPolicy::Sparse)
            .with_tail_compensation(compensated)
    }
}

#[test]
fn certificates_hold_for_every_kind_of_input() {
    let mut checks = 0;
    for (seed, kind) in (0..).zip(KINDS) {
        let mut rng = StdRng::seed_from_u64(seed);
        for (k, sinks, window, scale) in [
            (12, 2, 9, None),
            (1, 0, 0, Some(0.25)),
            (40, 4, 70, Some(3.0)),
            (5, 0, 1000, Some(0.1)),
            (12, 300, 9, Some(0.0)),
        ] {
            for compensated in [true, false] {
                let config = HiraAttentionConfig {
                    scale,
                    ..sparse(compensated)
                        .with_top_k(k)
                        .with_sinks_and_window(sinks, window)
                };
                let mut session = Session::new(&config);
                (0..3).for_each(|_| session.step(&mut rng, kind));
                session.append(&mut rng, kind, 300);
                (0..12).for_each(|_| session.step(&mut rng, kind));
                checks += session.checks;
            }
        }
    }
    assert!(checks >= 8000, "{checks}");
}

#[test]
fn certificates_hold_after_any_history() {
    for seed in 0..24 {
        let mut rng = StdRng::seed_from_u64(100 + seed);
        let kind = KINDS[seed as usize % KINDS.len()];
        let config = HiraAttentionConfig {
            tail_block: [16, 32, 64, 48][seed as usize % 4],
            segment_len: [64, 128, 192, 8192][seed as usize / 2 % 4],
            precision: Precision::ALL[seed as usize % 3],
            ..sparse(true)
        };
        let mut session = Session::new(&config);
        for _ in 0..14 {
            match rng.random_range(0..5) {
                0 => {
                    let len = rng.random_range(0..=session.len());
                    session.truncate(len);
                }
                1 => {
                    // the fork goes its own way and is dropped
                    let mut fork = session.clone();
                    let tokens = rng.random_range(1..100);
                    fork.append(&mut rng, kind, tokens);
                    fork.step(&mut rng, kind);
                }
                2 => (0..20).for_each(|_| session.step(&mut rng, kind)),
                _ => {
                    let tokens = rng.random_range(1..120);
                    session.append(&mut rng, kind, tokens);
                }
            }
            (0..2).for_each(|_| session.step(&mut rng, kind));
        }
        assert!(session.checks > 100);
    }
}

#[test]
fn certificates_hold_for_every_plan_precision_and_rule() {
    let product = "product = { subvectors = 4, bits = 4 }\n";
    for (seed, plan) in (0..).zip([Plan::Dense, Plan::SketchScan, Plan::Tree, Plan::Product]) {
        for precision in Precision::ALL {
            for rule in [
                ThresholdRule::TopK { k: 20 },
                ThresholdRule::Percentile { percent: 3.0 },
                ThresholdRule::Fixed { tau: 1.5 },
                // above every score: only sinks and window are attended to
                ThresholdRule::Fixed { tau: 1e6 },
            ] {
                let text = format!("{product}min_coarse_len = 0\nbranching_factor = 4");
                let base = HiraAttentionConfig::from_toml(&text).unwrap();
                let config = HiraAttentionConfig {
                    product: base.product,
                    min_coarse_len: 0,
                    branching_factor: 4,
                    search_plan: PlanChoice::Force(plan),
                    precision,
                    ..sparse(true).with_rule(rule)
                };
                let mut rng = StdRng::seed_from_u64(seed);
                let mut session = Session::new(&config);
                session.append(&mut rng, Kind::Plain, 500);
                (0..6).for_each(|_| session.step(&mut rng, Kind::Plain));
            }
        }
    }
}

/// A compensated answer is a function of the calls: neither kernels nor threads change a bit of it or of its certificate.
#[test]
fn compensation_gives_the_same_bits_on_every_kernel_and_thread_count() {
    let mut expected: Option<(Vec<u32>, Vec<AttentionReport>)> = None;
    for kernel in ["scalar", "avx2", "avx512"] {
        let Ok(named) = HiraAttentionConfig::from_toml(&format!("kernel = \"{kernel}\"")) else {
            println!("skipped: this machine has no {kernel}");
            continue;
        };
        let config = HiraAttentionConfig {
            kernel: named.kernel,
            segment_len: 1024,
            ..sparse(true)
        };
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let answer = pool.unwrap().install(|| {
                let mut rng = StdRng::seed_from_u64(7);
                let mut session = Session::new(&config);
                session.append(&mut rng, Kind::Plain, 1500);
                let (mut bits, mut reports) = (Vec::new(), Vec::new());
                for _ in 0..8 {
                    let queries = Kind::Plain.rows(&mut rng, 'q', KV_HEADS * GROUP, DIM);
                    let keys = Kind::Plain.rows(&mut rng, 'k', KV_HEADS, DIM);
                    let values = Kind::Plain.rows(&mut rng, 'v', KV_HEADS, VALUE_DIM);
                    let mut out = vec![0.0; KV_HEADS * GROUP * VALUE_DIM];
                    let heads = KV_HEADS * GROUP;
                    let (attention, cache) = (&session.attention, &mut session.cache);
                    let report = attention
                        .forward_into(heads, &queries, &keys, &values, cache, 0, &mut out)
                        .unwrap();
                    bits.extend(out.iter().map(|x| x.to_bits()));
                    reports.push(report);
                }
                (bits, reports)
            });
            let expected = expected.get_or_insert_with(|| answer.clone());
            assert!(*expected == answer, "{kernel}, {threads} threads");
        }
    }
}

/// Keys that no query may see yet do not stand in for others: a batch of tokens gives what they give one by one.
#[test]
fn later_tokens_are_in_no_mean() {
    let config = HiraAttentionConfig {
        // one by one in the batch too: a prefill shares its searches
        max_decode_tokens: 40,
        ..sparse(true)
    };
    let mut rng = StdRng::seed_from_u64(9);
    let mut session = Session::new(&config);
    session.append(&mut rng, Kind::FarValues, 200);
    let mut one_by_one = session.clone();
    let heads = KV_HEADS * GROUP;
    let tokens = 40;
    let queries = Kind::Plain.rows(&mut rng, 'q', heads * tokens, DIM);
    let keys = Kind::Plain.rows(&mut rng, 'k', KV_HEADS * tokens, DIM);
    // nothing like the values before: a mean that held one of them would show
    let values: Vec<f32> = Kind::Plain.rows(&mut rng, 'v', KV_HEADS * tokens, VALUE_DIM);
    let mut batch = vec![0.0; heads * tokens * VALUE_DIM];
    let cache = &mut session.cache;
    let attention = &session.attention;
    attention
        .forward_into(heads, &queries, &keys, &values, cache, 0, &mut batch)
        .unwrap();
    let of_token = |rows: &[f32], token: usize, dim: usize| -> Vec<f32> {
        let heads = rows.chunks_exact(tokens * dim);
        heads
            .flat_map(|head| head[token * dim..(token + 1) * dim].to_vec())
            .collect()
    };
    for token in 0..tokens {
        let mut out = vec![0.0; heads * VALUE_DIM];
        let [q, k] = [&queries, &keys].map(|rows| of_token(rows, token, DIM));
        let v = of_token(&values, token, VALUE_DIM);
        let attention = &one_by_one.attention;
        attention
            .forward_into(heads, &q, &k, &v, &mut one_by_one.cache, 0, &mut out)
            .unwrap();
        let expected = of_token(&batch, token, VALUE_DIM);
        for (a, b) in out.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-3, "token {token}: {a} {b}");
        }
    }
}

/// Real attention keys: the bounds hold, and compensation pays.
///
/// Reads `$HIRA_CAPTURES`, or `shared/captures` beside the repository; without either it says so and checks nothing.
#[test]
fn certificates_hold_on_captures_where_compensation_pays() {
    let folder = match std::env::var_os("HIRA_CAPTURES") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"),
    };
    if !folder.is_dir() {
        println!("skipped: no captures at {}", folder.display());
        return;
    }
    for layer in [0, 3, 14, 26] {
        let path = folder.join(format!("smollm2-opticks-8192-layer{layer:02}.safetensors"));
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let values = |name: &str| -> (Vec<f32>, Vec<usize>) {
            let tensor = file.tensor(name).unwrap();
            let values = tensor.data().as_chunks::<2>().0.iter();
            let values = values.map(|&b| f16::from_le_bytes(b).to_f32()).collect();
            (values, tensor.shape().to_vec())
        };
        let ((k, kv_shape), (v, _), (q, q_shape)) = (values("k"), values("v"), values("q"));
        let [kv_heads, len, dim] = kv_shape[..] else {
            panic!("three dimensions")
        };
        let (heads, rows) = (q_shape[0], q_shape[1]);
        let span = |data: &[f32], whole: usize, from: usize, to: usize| -> Vec<f32> {
            let heads = data.chunks_exact(whole * dim);
            heads
                .flat_map(|head| head[from * dim..to * dim].to_vec())
                .collect()
        };
        for top_k in [256, 64] {
            let mut errors = [vec![Vec::new(); heads], vec![Vec::new(); heads]];
            let mut bounds = errors.clone();
            for compensated in [false, true] {
                let config = HiraAttentionConfig::new()
                    .with_top_k(top_k)
                    .with_plan(PlanPolicy::Sparse)
                    .with_tail_compensation(compensated);
                let attention = config.init_host().unwrap();
                let shape = CacheShape {
                    layers: 1,
                    sequences: 1,
                    kv_heads,
                    head_dim: dim,
                    value_dim: dim,
                    max_len: len,
                };
                let mut cache = config.init_cache(shape).unwrap();
                let mut stored = 0;
                for row in (5..rows).step_by(20) {
                    let at = len - rows + row;
                    let (keys, values) = (span(&k, len, stored, at), span(&v, len, stored, at));
                    cache.append(0, &keys, &values).unwrap();
                    stored = at + 1;
                    let mut out = vec![0.0; heads * dim];
                    let report = attention
                        .forward_into(
                            heads,
                            &span(&q, rows, row, row + 1),
                            &span(&k, len, at, at + 1),
                            &span(&v, len, at, at + 1),
                            &mut cache,
                            0,
                            &mut out,
                        )
                        .unwrap();
                    for head in 0..heads {
                        let first = head * kv_heads / heads * len * dim;
                        let seen = first..first + stored * dim;
                        let query = &q[(head * rows + row) * dim..][..dim];
                        let kv = (&k[seen.clone()], &v[seen]);
                        let oracle = Oracle::new((&config, 0.125), query, kv, dim);
                        let what = format!("layer {layer}, row {row}, head {head}");
                        let answer = &out[head * dim..(head + 1) * dim];
                        let (error, bound) = oracle.check(answer, report.heads[head].worst, &what);
                        errors[usize::from(compensated)][head].push(error);
                        bounds[usize::from(compensated)][head].push(bound);
                    }
                }
            }
            let gain = |all: &mut [Vec<Vec<f64>>; 2]| {
                let [without, with] = all;
                let heads = without.iter_mut().zip(with);
                let mut gains: Vec<f64> = heads.map(|(a, b)| median(a) / median(b)).collect();
                median(&mut gains)
            };
            let (error, bound) = (gain(&mut errors), gain(&mut bounds));
            println!("layer {layer}, top-{top_k}: errors {error:.2}, bounds {bound:.2} times less");
            assert!(bound > 1.0, "layer {layer}, top-{top_k}: {bound}");
            if layer > 0 && top_k == 256 {
                assert!(error >= 2.5, "layer {layer}: {error}");
            }
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
