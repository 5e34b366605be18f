//! A rule's attention that holds some of its answers against dense attention.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;
use hira_attention::{
    AttentionError, AttentionProcessor, AttentionReport, ConfigError, HeadReport, HiraAttention,
    HiraAttentionConfig,
};
use hira_cache::{HiraCache, LayerCache};
use hira_index::burn::{HiraBackend, with_host};
use rayon::prelude::*;

use super::compare::Comparison;
use super::{DenseTruth, EvalRule};

/// Which answers are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measuring {
    /// Layers; none for all.
    pub layers: Option<Vec<usize>>,
    /// Positions that are multiples of this are measured; 0 measures none.
    pub every: usize,
    /// But none before this one.
    pub from: usize,
}

/// What one query head of one layer came to, summed over measured queries.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Recall {
    /// Measured queries.
    pub queries: u64,
    /// Softmax mass of the keys that were attended to (attention-mass recall), in f64.
    pub kept_mass: f64,
    /// Euclidean distance from dense attention over the norm of that.
    pub relative_error: f64,
    /// Keys attended to / visible keys.
    pub density: f64,
    /// The most mass that one query dropped; not a sum.
    pub worst_dropped: f64,
    /// Queries that dropped more mass, or erred by more, than was certified; must be 0. Comparison rules certify what is true of anything.
    pub violations: u64,
}

impl Recall {
    /// The mean over queries of one of the sums: `recall.mean(recall.kept_mass)`.
    pub fn mean(&self, sum: f64) -> f64 {
        sum / self.queries.max(1) as f64
    }

    fn add(&mut self, other: &Self) {
        self.queries += other.queries;
        self.kept_mass += other.kept_mass;
        self.relative_error += other.relative_error;
        self.density += other.density;
        self.worst_dropped = self.worst_dropped.max(other.worst_dropped);
        self.violations += other.violations;
    }
}

/// The measurements of a [`Measured`], which a model owns: this stays with whoever reads them.
#[derive(Debug, Clone, Default)]
pub struct Recalls(Arc<Mutex<BTreeMap<(usize, usize), Recall>>>);

impl Recalls {
    /// By layer and query head (`sequence * Hq + head`), in order.
    pub fn by_head(&self) -> Vec<((usize, usize), Recall)> {
        let heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heads.iter().map(|(&key, &recall)| (key, recall)).collect()
    }

    /// By layer, over its heads.
    pub fn by_layer(&self) -> BTreeMap<usize, Recall> {
        let mut layers = BTreeMap::<usize, Recall>::new();
        for ((layer, _), recall) in self.by_head() {
            layers.entry(layer).or_default().add(&recall);
        }
        layers
    }

    /// Over all layers and heads.
    pub fn total(&self) -> Recall {
        let mut total = Recall::default();
        for (_, recall) in self.by_head() {
            total.add(&recall);
        }
        total
    }

    /// Forgets what was measured.
    pub fn reset(&self) {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heads.clear();
    }

    fn add(&self, layer: usize, recalls: &[Recall]) {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (head, recall) in recalls.iter().enumerate() {
            heads.entry((layer, head)).or_default().add(recall);
        }
    }
}

/// The attention of a rule. Of chosen layers and every n-th query it also computes dense attention in f64, from the cache.
///
/// A call of many tokens is cut at the measured ones: each is a decode step, whose report is its own, and the others are what they are in the
/// calls between (tiles of a sparse prefill share a search, and attend to some keys beyond it). Where a prefill is dense (`use_hira_during_prefill` is off), such a call stays whole and is not measured.
///
/// # Complexity
///
/// `O(N D)` in f64 a measured query head, and for Hira's rules an ordering of its scores.
#[derive(Debug)]
pub struct Measured<B: HiraBackend> {
    inner: Inner<B>,
    config: HiraAttentionConfig,
    measuring: Measuring,
    recalls: Recalls,
}

#[derive(Debug)]
enum Inner<B: HiraBackend> {
    Hira(Box<HiraAttention<B>>),
    Comparison(Box<Comparison<B>>),
}

/// One call's tensors: queries, keys, values.
type Rows<B> = [Tensor<B, 4>; 3];

impl<B: HiraBackend> Measured<B> {
    /// The attention that [`EvalRule::processor`] makes, measured.
    ///
    /// # Errors
    ///
    /// As [`EvalRule::processor`].
    pub fn new(
        rule: &EvalRule,
        base: &HiraAttentionConfig,
        measuring: Measuring,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        let inner = match *rule {
            EvalRule::Comparison(rule) => Inner::Comparison(Box::new(Comparison::new(rule, base)?)),
            _ => Inner::Hira(Box::new(rule.config(base).init(device)?)),
        };
        Ok(Self {
            inner,
            config: base.clone(),
            measuring,
            recalls: Recalls::default(),
        })
    }

    /// Where the measurements go.
    pub fn recalls(&self) -> Recalls {
        self.recalls.clone()
    }

    fn answer(
        &self,
        [q, k, v]: Rows<B>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        match &self.inner {
            Inner::Hira(attention) => attention.process(q, k, v, cache, layer),
            Inner::Comparison(attention) => attention.process(q, k, v, cache, layer),
        }
    }

    fn is_measured(&self, layer: usize, position: usize) -> bool {
        let Measuring {
            layers,
            every,
            from,
        } = &self.measuring;
        let chosen = layers.as_ref().is_none_or(|layers| layers.contains(&layer));
        chosen && *every > 0 && position >= *from && position.is_multiple_of(*every)
    }

    /// One token, answered and measured.
    fn measure(
        &self,
        rows: Rows<B>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        let q = rows[0].clone();
        let (out, report) = self.answer(rows, cache, layer)?;
        let recalls = with_host(q, |q| {
            with_host(out.clone(), |out| {
                Ok::<_, AttentionError>(self.recall(q, out, &report, cache.layer(layer)?))
            })
        })???;
        self.recalls.add(layer, &recalls);
        Ok((out, report))
    }

    /// What each query head of one token kept. `q` `[B, Hq, 1, D]`, `out` `[B, Hq, 1, Dv]`.
    fn recall(
        &self,
        q: &[f32],
        out: &[f32],
        report: &AttentionReport,
        cache: &LayerCache,
    ) -> Vec<Recall> {
        let (dim, value_dim) = (cache.head_dim(), cache.value_dim());
        let group = report.heads.len() / cache.heads().len();
        let scale = self
            .config
            .scale
            .map_or_else(|| 1.0 / (dim as f64).sqrt(), f64::from);
        let (sinks, window) = (self.config.sink_tokens, self.config.recent_window);
        let selections = match &self.inner {
            Inner::Hira(_) => None,
            Inner::Comparison(comparison) => Some(comparison.host().selections()),
        };
        let heads = cache.heads().par_iter().enumerate();
        let recalls = heads.flat_map_iter(|(kv_head, head)| {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for run in head.runs(0..head.len()) {
                keys.extend_from_slice(&run.keys.widened());
                values.extend_from_slice(&run.values.widened());
            }
            let recalls: Vec<Recall> = (kv_head * group..(kv_head + 1) * group)
                .map(|i| {
                    let query = &q[i * dim..(i + 1) * dim];
                    let out = &out[i * value_dim..(i + 1) * value_dim];
                    let truth = DenseTruth::of(query, &keys, &values, scale);
                    let head = &report.heads[i];
                    let kept = match &selections {
                        Some(selections) => selections[i].clone(),
                        None => truth.reaching(head.attended as usize, sinks, window),
                    };
                    one(&truth, &kept, out, head)
                })
                .collect();
            recalls.into_iter()
        });
        recalls.collect()
    }
}

fn one(truth: &DenseTruth, kept: &[u32], out: &[f32], head: &HeadReport) -> Recall {
    let dropped = truth.dropped(kept);
    let violated = dropped > f64::from(head.worst.dropped_mass_bound)
        || truth.error(out) > f64::from(head.worst.output_error_bound);
    Recall {
        queries: 1,
        kept_mass: 1.0 - dropped,
        relative_error: truth.relative_error(out),
        density: head.density(),
        worst_dropped: dropped,
        violations: u64::from(violated),
    }
}

/// Adds what later queries of the same head came to.
fn extend(head: &mut HeadReport, later: &HeadReport) {
    head.plan = later.plan;
    head.queries += later.queries;
    head.dense_queries += later.dense_queries;
    head.visible += later.visible;
    head.survivors += later.survivors;
    head.attended += later.attended;
    head.dropped_mass_sum += later.dropped_mass_sum;
    head.worst = head.worst.worst_of(later.worst);
}

impl<B: HiraBackend> AttentionProcessor<B> for Measured<B> {
    fn process(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        cache: &mut HiraCache,
        layer: usize,
    ) -> Result<(Tensor<B, 4>, AttentionReport), AttentionError> {
        let tokens = q.dims()[2];
        let before = cache.seq_len(layer);
        let config = &self.config;
        let whole = tokens > config.max_decode_tokens && !config.use_hira_during_prefill;
        let is_measured = |token: usize| self.is_measured(layer, before + token);
        if whole || !(0..tokens).any(is_measured) {
            return self.answer([q, k, v], cache, layer);
        }
        let mut answers = Vec::new();
        let mut start = 0;
        while start < tokens {
            let measured = is_measured(start);
            let end = match measured {
                true => start + 1,
                false => (start..tokens)
                    .find(|&token| is_measured(token))
                    .unwrap_or(tokens),
            };
            let rows = [&q, &k, &v].map(|rows| rows.clone().narrow(2, start, end - start));
            let answer = match measured {
                true => self.measure(rows, cache, layer),
                false => self.answer(rows, cache, layer),
            };
            match answer {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    // a call is stored whole or not at all
                    cache.layer_mut(layer)?.truncate(before)?;
                    return Err(error);
                }
            }
            start = end;
        }
        let (outs, reports): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        let mut report = AttentionReport::new(layer, before + tokens);
        for part in reports {
            report.heads.resize(part.heads.len(), HeadReport::new());
            for (head, part) in report.heads.iter_mut().zip(&part.heads) {
                extend(head, part);
            }
        }
        Ok((Tensor::cat(outs, 2), report))
    }
}
