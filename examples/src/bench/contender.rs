//! The ways to take a decode step: each is built on copies of the same data and timed call by call.

use burn::tensor::{
    Tensor, TensorData, activation::softmax, module::attention, ops::AttentionModuleOptions,
};
use hira_attention::{
    AttentionError, AttentionReport, CacheShape, HiraAttentionConfig, HiraBackend,
};

use super::Problem;

/// Why a contender cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ContenderError {
    /// The engine refused.
    #[error(transparent)]
    Attention(#[from] AttentionError),
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

/// A call: the layer's copy and the row of queries; the output is `[Hq, D]`.
type Call<'a> = dyn FnMut(usize, usize) -> Result<(Vec<f32>, f64, Option<AttentionReport>), AttentionError>
    + 'a;

/// One way to take a decode step.
pub struct Contender<'a> {
    /// What it is.
    pub name: &'static str,
    /// The selection that it is to attend to; `None`: every key.
    pub config: Option<HiraAttentionConfig>,
    /// Whether each call appends its token first, so that it sees what is stored so far.
    pub appends: bool,
    /// Takes a step; returns the output, the seconds it took, and the engine's report.
    pub call: Box<Call<'a>>,
}

fn engine<'a, B: HiraBackend>(
    name: &'static str,
    config: HiraAttentionConfig,
    problem: &'a Problem,
    copies: usize,
    device: &'a B::Device,
) -> Result<Contender<'a>, AttentionError> {
    let attention = config.init::<B>(device)?;
    let before = problem.len - problem.rows;
    let mut cache = config.init_cache(CacheShape {
        layers: copies,
        sequences: 1,
        kv_heads: problem.kv_heads,
        head_dim: problem.dim,
        value_dim: problem.dim,
        max_len: problem.len,
    })?;
    let keys = problem.tokens(&problem.keys, 0..before);
    let values = problem.tokens(&problem.values, 0..before);
    for layer in 0..copies {
        cache.append(layer, &keys, &values)?;
    }
    let sparse = config.plan != hira_attention::PlanPolicy::Dense;
    Ok(Contender {
        name,
        config: Some(config).filter(|_| sparse),
        appends: true,
        call: Box::new(move |layer, row| {
            let (q, k, v) = step::<B>(problem, row, device);
            let start = std::time::Instant::now();
            let (out, report) = attention.try_forward(q, k, v, &mut cache, layer)?;
            let out = read(out);
            Ok((out, start.elapsed().as_secs_f64(), Some(report)))
        }),
    })
}

/// Hira, with everything that a step needs: append, search, scores, softmax, values, certificate.
///
/// # Errors
///
/// [`AttentionError`] if the configuration or the data is refused.
pub fn hira<'a, B: HiraBackend>(
    config: HiraAttentionConfig,
    problem: &'a Problem,
    copies: usize,
    device: &'a B::Device,
) -> Result<Contender<'a>, AttentionError> {
    engine::<B>("hira", config, problem, copies, device)
}

/// Our own dense attention over the same kind of cache, append included.
///
/// # Errors
///
/// [`AttentionError`] if the data is refused.
pub fn dense<'a, B: HiraBackend>(
    problem: &'a Problem,
    copies: usize,
    device: &'a B::Device,
) -> Result<Contender<'a>, AttentionError> {
    engine::<B>(
        "dense (ours)",
        HiraAttentionConfig::dense(),
        problem,
        copies,
        device,
    )
}

/// `burn::tensor::module::attention` on tensors `[1, Hkv, G, D]` and `[1, Hkv, N, D]`: the queries of a group are rows, so that
/// keys and values are read once for the group, which is its best case. Nothing is appended.
pub fn burn_attention<'a, B: HiraBackend>(
    problem: &'a Problem,
    copies: usize,
    device: &'a B::Device,
) -> Contender<'a> {
    let layers = tensors::<B>(problem, copies, device);
    Contender {
        name: "module::attention",
        config: None,
        appends: false,
        call: Box::new(move |layer, row| {
            let q = grouped::<B>(problem, row, device);
            let (k, v) = layers[layer].clone();
            let start = std::time::Instant::now();
            let out = attention(q, k, v, None, None, AttentionModuleOptions::default());
            let out = read(out);
            Ok((out, start.elapsed().as_secs_f64(), None))
        }),
    }
}

/// `softmax(Q K^T) V` in tensor operations, on the shapes of [`burn_attention`].
pub fn burn_operations<'a, B: HiraBackend>(
    problem: &'a Problem,
    copies: usize,
    device: &'a B::Device,
) -> Contender<'a> {
    let layers = tensors::<B>(problem, copies, device);
    let scale = 1.0 / (problem.dim as f64).sqrt();
    Contender {
        name: "tensor operations",
        config: None,
        appends: false,
        call: Box::new(move |layer, row| {
            let q = grouped::<B>(problem, row, device);
            let (k, v) = layers[layer].clone();
            let start = std::time::Instant::now();
            let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(scale);
            let out = read(softmax(scores, 3).matmul(v));
            Ok((out, start.elapsed().as_secs_f64(), None))
        }),
    }
}

type Layer<B> = (Tensor<B, 4>, Tensor<B, 4>);

fn tensors<B: HiraBackend>(problem: &Problem, copies: usize, device: &B::Device) -> Vec<Layer<B>> {
    let shape = [1, problem.kv_heads, problem.len, problem.dim];
    let tensor = |data: &[f32]| Tensor::from_data(TensorData::new(data.to_vec(), shape), device);
    (0..copies)
        .map(|_| (tensor(&problem.keys), tensor(&problem.values)))
        .collect()
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
