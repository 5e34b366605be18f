//! The ways to take a decode step: each is built on copies of the same data and timed call by call.

use std::time::Instant;

use burn::tensor::{
    Tensor, TensorData, activation::softmax, module::attention, ops::AttentionModuleOptions,
};
use hira_attention::{
    AttentionError, AttentionReport, CacheShape, HiraAttentionConfig, HiraBackend, PlanPolicy,
};
use hira_cache::HiraCache;
use hira_index::IndexError;
use hira_search::SearchError;
use hira_threshold::ThresholdRule;

use super::Problem;

/// Why a contender cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ContenderError {
    /// The engine refused.
    #[error(transparent)]
    Attention(#[from] AttentionError),
    /// The index refused the keys.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The searcher refused a query.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The answer is not the right one.
    #[error("{name}: an answer is off by {error:e}, {allowed:e} is allowed")]
    Wrong {
        /// The contender.
        name: &'static str,
        /// Largest difference.
        error: f64,
        /// What rounding explains.
        allowed: f64,
    },
}

/// What a call gives: the output `[Hq, D]`, the seconds it took, and the engine's report.
pub(super) type Taken = (Vec<f32>, f64, Option<AttentionReport>);

/// A call: the copy and the row of queries.
type Call<'a> = dyn FnMut(usize, usize) -> Result<Taken, AttentionError> + 'a;

/// What a contender is to attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every key of the problem: nothing is appended.
    All,
    /// Every key stored so far: each call appends its token first.
    Visible,
    /// The selection of the configuration of this number, over the keys stored so far; a head that goes dense: all of them.
    Selected(usize),
    /// Every key stored so far, as near as the report's certificate promises: something stands in for those that were left out.
    Certified,
}

/// One way to take a decode step.
pub struct Contender<'a> {
    /// What it is.
    pub name: &'static str,
    /// The rule, or `dense`.
    pub rule: String,
    /// What it attends to.
    pub scope: Scope,
    /// Takes a step.
    pub call: Box<Call<'a>>,
}

/// Tokens that are stored at a time while a cache is filled.
const CHUNK: usize = 1 << 14;

/// A cache whose `copies` layers all hold the keys and values before the first row of queries.
///
/// # Errors
///
/// [`AttentionError`] if the configuration or the data is refused.
pub(super) fn filled(
    config: &HiraAttentionConfig,
    problem: &Problem,
    copies: usize,
) -> Result<HiraCache, AttentionError> {
    let before = problem.len - problem.rows;
    let mut cache = config.init_cache(CacheShape {
        layers: copies,
        sequences: 1,
        kv_heads: problem.kv_heads,
        head_dim: problem.dim,
        value_dim: problem.dim,
        max_len: problem.len,
    })?;
    for start in (0..before).step_by(CHUNK) {
        let range = start..before.min(start + CHUNK);
        let keys = problem.tokens(&problem.keys, range.clone());
        let values = problem.tokens(&problem.values, range);
        for layer in 0..copies {
            cache.append(layer, &keys, &values)?;
        }
    }
    Ok(cache)
}

/// A step with everything that it needs: append, search, scores, softmax, values, certificate; dense if the configuration says so.
///
/// # Errors
///
/// [`AttentionError`] if the configuration is refused.
pub(super) fn engine<'a, B: HiraBackend>(
    config: &HiraAttentionConfig,
    number: usize,
    mut cache: HiraCache,
    problem: &'a Problem,
    device: &'a B::Device,
) -> Result<Contender<'a>, AttentionError> {
    let attention = config.init::<B>(device)?;
    let dense = config.plan == PlanPolicy::Dense;
    Ok(Contender {
        name: match (dense, config.tail_compensation) {
            (true, _) => "dense (ours)",
            (false, true) => "hira",
            (false, false) => "hira (uncompensated)",
        },
        rule: match dense {
            true => "dense".to_owned(),
            false => config.rule()?.to_string(),
        },
        scope: match (dense, config.tail_compensation, config.rule()?) {
            (true, ..) => Scope::Visible,
            // How many keys a share of the mass takes depends on what was proven on the way.
            (false, true, _) | (false, false, ThresholdRule::Mass { .. }) => Scope::Certified,
            (false, false, _) => Scope::Selected(number),
        },
        call: Box::new(move |layer, row| {
            let (q, k, v) = step::<B>(problem, row, device);
            let start = Instant::now();
            let (out, report) = attention.try_forward(q, k, v, &mut cache, layer)?;
            let out = read(out);
            Ok((out, start.elapsed().as_secs_f64(), Some(report)))
        }),
    })
}

/// Keys and values of one copy as tensors `[1, Hkv, N, D]`.
pub(super) type Layer<B> = (Tensor<B, 4>, Tensor<B, 4>);

/// Copies of the problem's keys and values, for both of Burn's contenders: clones share them.
pub(super) fn layers<B: HiraBackend>(
    problem: &Problem,
    copies: usize,
    device: &B::Device,
) -> Vec<Layer<B>> {
    let shape = [1, problem.kv_heads, problem.len, problem.dim];
    let tensor = |data: &[f32]| Tensor::from_data(TensorData::new(data.to_vec(), shape), device);
    (0..copies)
        .map(|_| (tensor(&problem.keys), tensor(&problem.values)))
        .collect()
}

/// `burn::tensor::module::attention` on tensors `[1, Hkv, G, D]` and `[1, Hkv, N, D]`: the queries of a group are rows, so that
/// keys and values are read once for the group, which is its best case. Nothing is appended.
pub(super) fn burn_attention<'a, B: HiraBackend>(
    layers: Vec<Layer<B>>,
    problem: &'a Problem,
    device: &'a B::Device,
) -> Contender<'a> {
    Contender {
        name: "module::attention",
        rule: "dense".to_owned(),
        scope: Scope::All,
        call: Box::new(move |layer, row| {
            let q = grouped::<B>(problem, row, device);
            let (k, v) = layers[layer].clone();
            let start = Instant::now();
            let out = attention(q, k, v, None, None, AttentionModuleOptions::default());
            let out = read(out);
            Ok((out, start.elapsed().as_secs_f64(), None))
        }),
    }
}

/// `softmax(Q K^T) V` in tensor operations, on the shapes of [`burn_attention`].
pub(super) fn burn_operations<'a, B: HiraBackend>(
    layers: Vec<Layer<B>>,
    problem: &'a Problem,
    device: &'a B::Device,
) -> Contender<'a> {
    let scale = 1.0 / (problem.dim as f64).sqrt();
    Contender {
        name: "tensor operations",
        rule: "dense".to_owned(),
        scope: Scope::All,
        call: Box::new(move |layer, row| {
            let q = grouped::<B>(problem, row, device);
            let (k, v) = layers[layer].clone();
            let start = Instant::now();
            let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(scale);
            let out = read(softmax(scores, 3).matmul(v));
            Ok((out, start.elapsed().as_secs_f64(), None))
        }),
    }
}

fn grouped<B: HiraBackend>(problem: &Problem, row: usize, device: &B::Device) -> Tensor<B, 4> {
    let shape = [1, problem.kv_heads, problem.group, problem.dim];
    Tensor::from_data(
        TensorData::new(problem.queries_of(row).to_vec(), shape),
        device,
    )
}

/// The new token of `row`: q `[1, Hq, 1, D]`, k and v `[1, Hkv, 1, D]`.
fn step<B: HiraBackend>(
    problem: &Problem,
    row: usize,
    device: &B::Device,
) -> (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>) {
    let position = problem.visible(row) - 1;
    let kv = |data: &[f32]| {
        let data = problem.tokens(data, position..position + 1);
        Tensor::from_data(
            TensorData::new(data, [1, problem.kv_heads, 1, problem.dim]),
            device,
        )
    };
    let q = TensorData::new(
        problem.queries_of(row).to_vec(),
        [1, problem.heads(), 1, problem.dim],
    );
    (
        Tensor::from_data(q, device),
        kv(&problem.keys),
        kv(&problem.values),
    )
}

fn read<B: HiraBackend>(out: Tensor<B, 4>) -> Vec<f32> {
    out.into_data()
        .convert::<f32>()
        .into_vec()
        .unwrap_or_default()
}
