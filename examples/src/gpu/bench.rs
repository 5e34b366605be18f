//! One decode step on a device: timed, and its keys checked.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use burn::tensor::{
    Tensor, activation::softmax, backend::ExecutionError, module::attention,
    ops::AttentionModuleOptions,
};
use hira_attention::{
    AttentionError, CacheShape, HiraAttention, HiraAttentionConfig, HiraBackend, HiraCache,
    PlanPolicy, Precision,
};
use hira_cache::CacheError;
use hira_index::RowPlace;
use hira_index::burn::{
    DeviceEngineError, DeviceLayout, HostAccessError, device_append, device_rows, with_host,
};

use super::{
    Case, GpuRows, Outcome,
    truth::{Truth, worst_error},
};
use crate::bench::Spread;
use crate::element::Element;

/// Tokens that a layer goes to and fro: one of them completes a block of values, as every 64th token does.
const STEPS: usize = 64;

/// Bytes over which copies rotate: a few times the L2 cache of any card.
const ROTATED: usize = 256 << 20;

/// Seconds of one round of measurements, about.
const ROUND: f64 = 0.2;

/// An answer of Burn's attention may differ from f64 by this much of the reference's norm, as in sdpa.py: bf16 has 8 bits.
const TOLERANCE: f64 = 1.0 / 64.0;

/// How cases are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Keys of a query.
    pub top_k: usize,
    /// Most steps of a round; slow steps are fewer.
    pub steps: usize,
    /// Rounds: medians and quartiles are over their means.
    pub rounds: usize,
    /// What tensors are of: bf16 where the device has it.
    pub element: Element,
}

/// Why a case could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuBenchError {
    /// Attention refused.
    #[error(transparent)]
    Attention(#[from] AttentionError),
    /// The cache refused.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The device engine refused.
    #[error(transparent)]
    Device(#[from] DeviceEngineError),
    /// The backend failed.
    #[error(transparent)]
    Execution(#[from] ExecutionError),
    /// A tensor could not be read.
    #[error(transparent)]
    Host(#[from] HostAccessError),
    /// The backend has no device engine.
    #[error("the backend has no device engine")]
    NoDevice,
    /// Keys that belong to the answer were not attended to.
    #[error("{missed} keys that are among the top were not attended to")]
    Missed {
        /// Keys.
        missed: usize,
    },
    /// Nothing was measured.
    #[error("no round was measured")]
    NoRound,
}

/// GB/s of copying a large tensor, read and written bytes counted.
///
/// # Errors
///
/// [`GpuBenchError::Execution`].
pub fn bandwidth<B: HiraBackend>(
    device: &B::Device,
    elements: usize,
    settings: &Settings,
) -> Result<f64, GpuBenchError> {
    let tensor = Tensor::<B, 1>::ones([elements], device);
    let bytes = 2 * elements * size_of::<B::FloatElem>();
    let micros = timed::<B>(device, settings, |_| {
        let _copy = tensor.clone().mul_scalar(2.0);
        Ok(())
    })?;
    Ok(bytes as f64 / micros.median / 1e3)
}

/// Measures a case.
///
/// # Errors
///
/// [`GpuBenchError`].
pub fn measure<B: HiraBackend>(
    rows: &GpuRows,
    case: Case,
    settings: &Settings,
    device: &B::Device,
) -> Result<Outcome, GpuBenchError> {
    let mut bench = Bench::<B>::new(rows, case, settings, device)?;
    for layer in 0..bench.copies {
        bench.fill(layer)?;
    }
    // again, now that memory is there and kernels are compiled
    bench.cache.layer_mut(0)?.truncate(0)?;
    let build_us = bench.fill(0)?;
    let truth = Truth::of(rows, case, settings.top_k, case.context - STEPS + 1);
    // on full layers, before they are cut
    let burn = bench.burn(&truth)?;
    bench.cache.truncate(case.context - STEPS)?;

    // which keys: the first step, before anything is timed
    let sparse = bench.attention(PlanPolicy::Auto)?;
    let [q, k, v] = bench.token()?;
    let (_, mut report) = sparse.try_forward(q, k, v, &mut bench.cache, 0)?;
    let missed = match report.attended()? {
        Some(attended) => truth.missed(&attended),
        // every key was attended to
        None if report.is_pending() => 0,
        None => return Err(GpuBenchError::NoDevice),
    };
    report.fetch()?;
    if missed > 0 {
        return Err(GpuBenchError::Missed { missed });
    }
    let dense = bench.attention(PlanPolicy::Dense)?;
    let exact_rows = report.scanned_fraction() + report.density();
    Ok(Outcome {
        context: case.context,
        batch: case.batch,
        copies: bench.copies,
        step: bench.steps(&sparse)?,
        dense: bench.steps(&dense)?,
        append: bench.appends()?,
        build_us,
        burn,
        density: report.density(),
        scanned: report.scanned_fraction(),
        dropped: report.dropped_mass_bound(),
        // the sketch of every key; exact rows of survivors and values of attended keys, for each query head
        bytes: case.batch * rows.kv_heads * case.context * (rows.dim + 4)
            + case.batch
                * rows.heads
                * (exact_rows * (2 * rows.dim * case.context) as f64) as usize,
    })
}

/// A case on its device.
struct Bench<'a, B: HiraBackend> {
    rows: &'a GpuRows,
    case: Case,
    settings: &'a Settings,
    device: &'a B::Device,
    config: HiraAttentionConfig,
    /// A layer for each copy.
    cache: HiraCache,
    copies: usize,
    /// `[B, Hq, 1, D]`.
    q: Tensor<B, 4>,
}

impl<'a, B: HiraBackend> Bench<'a, B> {
    fn new(
        rows: &'a GpuRows,
        case: Case,
        settings: &'a Settings,
        device: &'a B::Device,
    ) -> Result<Self, GpuBenchError> {
        let Case { context, batch } = case;
        let (kv_heads, dim) = (rows.kv_heads, rows.dim);
        let copies = ROTATED.div_ceil(4 * batch * kv_heads * context * dim);
        let copies = copies.clamp(1, 16);
        let config = HiraAttentionConfig::new()
            .with_top_k(settings.top_k)
            .with_precision(Precision::Bf16)
            .with_sinks_and_window(0, 0);
        let mut cache = config.init_cache(CacheShape {
            layers: copies,
            sequences: batch,
            kv_heads,
            head_dim: dim,
            value_dim: dim,
            max_len: context,
        })?;
        let layout = DeviceLayout {
            sequences: batch,
            heads: rows.heads,
            kv_heads,
            head_dim: dim,
            value_dim: dim,
            max_len: context,
            precision: cache.config().index.precision,
            rows: RowPlace::default(),
        };
        for layer in 0..copies {
            if !cache.prepare_device::<B>(layer, &layout, settings.element.dtype(), device)? {
                return Err(GpuBenchError::NoDevice);
            }
        }
        let queries = rows.queries[..batch * rows.heads * dim].iter();
        let queries = queries.map(|x| x.to_f32()).collect();
        let q = settings
            .element
            .tensor(queries, [batch, rows.heads, 1, dim], device);
        Ok(Self {
            rows,
            case,
            settings,
            device,
            config,
            cache,
            copies,
            q,
        })
    }

    fn attention(&self, plan: PlanPolicy) -> Result<HiraAttention<B>, GpuBenchError> {
        let config = self.config.clone().with_plan(plan);
        Ok(config.init(self.device).map_err(AttentionError::from)?)
    }

    /// Keys and values of some tokens, the same for every sequence, each with memory of its own: `[B, Hkv, n, D]`.
    fn keys_and_values(&self, range: std::ops::Range<usize>) -> [Tensor<B, 4>; 2] {
        let rows = self.rows;
        [&rows.keys, &rows.values].map(|all| {
            let shape = [1, rows.kv_heads, range.len(), rows.dim];
            let part = rows.part(all, range.clone());
            let one = self
                .settings
                .element
                .tensor::<B, 4>(part, shape, self.device);
            match self.case.batch {
                1 => one,
                batch => one.repeat_dim(0, batch),
            }
        })
    }

    /// Stores and sketches the whole context in a layer: microseconds, without the way of the rows to the device.
    fn fill(&mut self, layer: usize) -> Result<f64, GpuBenchError> {
        let mut micros = 0.0;
        let piece = self.case.piece();
        for start in (0..self.case.context).step_by(piece) {
            let end = (start + piece).min(self.case.context);
            let [keys, values] = self.keys_and_values(start..end);
            let store = self.cache.device_store_mut(layer)?;
            B::sync(self.device)?;
            let begin = Instant::now();
            device_append::<B>(store, keys, values)?;
            B::sync(self.device)?;
            micros += begin.elapsed().as_secs_f64() * 1e6;
        }
        Ok(micros)
    }

    /// Query, key and value of the next token.
    fn token(&self) -> Result<[Tensor<B, 4>; 3], GpuBenchError> {
        let next = self.case.context - STEPS;
        let [k, v] = self.keys_and_values(next..next + 1);
        B::sync(self.device)?;
        Ok([self.q.clone(), k, v])
    }

    /// Forgets the tokens of the steps of a layer when they are all there.
    fn step_back(cache: &mut HiraCache, layer: usize, context: usize) -> Result<(), GpuBenchError> {
        if cache.seq_len(layer) == context {
            cache.layer_mut(layer)?.truncate(context - STEPS)?;
        }
        Ok(())
    }

    /// Decode steps: append, threshold, search, values.
    fn steps(&mut self, attention: &HiraAttention<B>) -> Result<Spread, GpuBenchError> {
        let [q, k, v] = self.token()?;
        let (copies, context) = (self.copies, self.case.context);
        let cache = &mut self.cache;
        timed::<B>(self.device, self.settings, |i| {
            let layer = i % copies;
            Self::step_back(cache, layer, context)?;
            attention.try_forward(q.clone(), k.clone(), v.clone(), cache, layer)?;
            Ok(())
        })
    }

    /// The append of a token alone.
    fn appends(&mut self) -> Result<Spread, GpuBenchError> {
        let [_, k, v] = self.token()?;
        let (copies, context) = (self.copies, self.case.context);
        let cache = &mut self.cache;
        timed::<B>(self.device, self.settings, |i| {
            let layer = i % copies;
            Self::step_back(cache, layer, context)?;
            device_append::<B>(cache.device_store_mut(layer)?, k.clone(), v.clone())?;
            Ok(())
        })
    }

    /// The faster of Burn's attentions whose answer is right: its own operation, and the product, softmax and product that it is made of. The
    /// queries of a group are rows, so that keys and values are read once a group.
    fn burn(&mut self, truth: &Truth) -> Result<Option<(String, Spread)>, GpuBenchError> {
        let [batch, heads, _, dim] = self.q.dims();
        let kv_heads = self.rows.kv_heads;
        let mut copies = Vec::with_capacity(self.copies);
        for layer in 0..self.copies {
            copies.push(match self.settings.element {
                Element::Bf16 => {
                    device_rows::<B>(self.cache.device_store_mut(layer)?, 0..self.case.context)?
                }
                _ => self.keys_and_values(0..self.case.context),
            });
        }
        let q = self
            .q
            .clone()
            .reshape([batch, kv_heads, heads / kv_heads, dim]);
        let operation = |copy: usize| {
            let [k, v] = copies[copy].clone();
            let options = AttentionModuleOptions::default();
            attention(q.clone(), k, v, None, None, options)
        };
        let products = |copy: usize| {
            let [k, v] = copies[copy].clone();
            let scores = q
                .clone()
                .div_scalar((dim as f32).sqrt())
                .matmul(k.swap_dims(2, 3));
            softmax(scores, 3).matmul(v)
        };
        let mut fastest: Option<(String, Spread)> = None;
        let calls: [(&str, Call<'_, B>); 2] = [("attention", &operation), ("products", &products)];
        for (name, call) in calls {
            let measured = || {
                let out = with_host(call(0).narrow(0, 0, 1), <[f32]>::to_vec)?;
                let error = worst_error(&out, &truth.dense);
                let time = timed::<B>(self.device, self.settings, |i| {
                    let _answer = call(i % copies.len());
                    Ok(())
                })?;
                Ok::<_, GpuBenchError>((error, time))
            };
            // a kernel of Burn's that fails must not cost the measurement of ours
            let measured = match catch_unwind(AssertUnwindSafe(measured)) {
                Ok(Ok(measured)) => measured,
                Ok(Err(error)) => {
                    eprintln!("Burn, {name}: {error}");
                    continue;
                }
                Err(_) => {
                    eprintln!("Burn, {name}: failed");
                    continue;
                }
            };
            let (error, time) = measured;
            if error > TOLERANCE || error.is_nan() {
                eprintln!("Burn, {name}: error {error:.2e}");
            } else if fastest
                .as_ref()
                .is_none_or(|(_, best)| time.median < best.median)
            {
                fastest = Some((name.to_owned(), time));
            }
        }
        Ok(fastest)
    }
}

/// One of Burn's attentions over a copy of the keys.
type Call<'a, B> = &'a dyn Fn(usize) -> Tensor<B, 4>;

/// Microseconds of a call: the device is waited for at the end of a round of many, never in between.
fn timed<B: HiraBackend>(
    device: &B::Device,
    settings: &Settings,
    mut call: impl FnMut(usize) -> Result<(), GpuBenchError>,
) -> Result<Spread, GpuBenchError> {
    let mut round = |steps: usize| {
        B::sync(device)?;
        let start = Instant::now();
        for i in 0..steps {
            call(i)?;
        }
        B::sync(device)?;
        Ok::<_, GpuBenchError>(start.elapsed().as_secs_f64() / steps as f64)
    };
    // the first compiles kernels and tries which are fastest
    round(1)?;
    let steps = (ROUND / round(3)?) as usize;
    let steps = steps.clamp(1, settings.steps);
    let rounds: Result<Vec<f64>, _> = (0..settings.rounds)
        .map(|_| Ok(1e6 * round(steps)?))
        .collect::<Result<_, GpuBenchError>>();
    Spread::of(rounds?).ok_or(GpuBenchError::NoRound)
}
