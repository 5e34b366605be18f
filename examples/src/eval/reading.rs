//! Reads a window of a text with a rule and judges every next token against dense attention.

use burn::tensor::Tensor;
use hira_attention::{HiraAttentionConfig, HiraBackend};
use hira_index::burn::{from_host, with_host};
use rayon::prelude::*;

use super::record::STRETCH;
use super::{
    EvalError, EvalRule, LayerRecall, LayerSums, Measured, Measuring, Reported, ScoreSums,
    TokenScore, densities,
};
use crate::llama::{AttentionChoice, Llama, LlamaCache, LlamaError};

/// Tokens whose logits are in memory together.
const BATCH: usize = 64;

/// The last hidden states of a run of tokens, `[L, hidden_size]`: what logits are made of, at a hundredth of their size.
#[derive(Debug, Clone, Default)]
pub struct Hidden {
    rows: Vec<f32>,
    width: usize,
}

impl Hidden {
    /// Appends `ids` to the cache and keeps their hidden states. `progress` is told how many tokens were read.
    ///
    /// # Errors
    ///
    /// As [`Llama::forward`].
    pub fn read<B: HiraBackend>(
        model: &Llama<B>,
        cache: &mut LlamaCache,
        ids: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, LlamaError> {
        let width = model.config().hidden_size;
        let mut rows = Vec::with_capacity(ids.len() * width);
        model.forward_hidden(cache, ids, &mut |x| {
            progress(x.dims()[0]);
            with_host(x, |x| rows.extend_from_slice(x))?;
            Ok(())
        })?;
        Ok(Self { rows, width })
    }

    /// Appends the state of one token.
    pub(super) fn push(&mut self, row: &[f32]) {
        self.width = row.len();
        self.rows.extend_from_slice(row);
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.rows.len() / self.width.max(1)
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The states of tokens `from..to`.
    fn tensor<B: HiraBackend>(&self, from: usize, to: usize, device: &B::Device) -> Tensor<B, 2> {
        let rows = self.rows[from * self.width..to * self.width].to_vec();
        from_host(rows, [to - from, self.width], device)
    }
}

/// Judges the tokens `targets` that came after those of `dense` and `rule`, which have the same past: one score a token, in order.
///
/// # Complexity
///
/// Two products with the output layer, and two exponentials a token of the vocabulary.
///
/// # Errors
///
/// If logits cannot be read on the host, or are not numbers.
pub fn judge<B: HiraBackend>(
    model: &Llama<B>,
    dense: &Hidden,
    rule: &Hidden,
    targets: &[u32],
    device: &B::Device,
) -> Result<Vec<TokenScore>, LlamaError> {
    let vocabulary = model.config().vocab_size;
    let mut scores = Vec::with_capacity(targets.len());
    for from in (0..targets.len()).step_by(BATCH) {
        let to = (from + BATCH).min(targets.len());
        let logits = |states: &Hidden| model.logits(states.tensor::<B>(from, to, device));
        let judged = with_host(logits(dense), |dense| {
            with_host(logits(rule), |rule| {
                let pairs = dense
                    .par_chunks_exact(vocabulary)
                    .zip(rule.par_chunks_exact(vocabulary));
                pairs
                    .zip(&targets[from..to])
                    .map(|((dense, rule), target)| TokenScore::of(dense, rule, *target))
                    .collect::<Vec<_>>()
            })
        })??;
        if judged.iter().any(|score| score.nll.is_nan()) {
            return Err(LlamaError::NotFinite);
        }
        scores.extend(judged);
    }
    Ok(scores)
}

/// What a window read with a rule gives, of the queries that count.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The last hidden states.
    pub states: Hidden,
    /// What attention reported.
    pub layers: LayerSums,
    /// The answers that were held against dense attention.
    pub recalls: Vec<LayerRecall>,
}

/// A window of a text: `len` tokens that are read, and the one after them.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    /// One token more than are read.
    pub ids: &'a [u32],
    /// The first position of a query that counts: tokens before it are read densely.
    pub start: usize,
}

impl Window<'_> {
    /// Tokens that are read.
    pub fn len(&self) -> usize {
        self.ids.len().saturating_sub(1)
    }

    /// Whether nothing is read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the window with a rule; of the queries that count, every `measured`th is also held against dense attention in f64 (0: none).
    ///
    /// # Errors
    ///
    /// As [`Llama::forward`], and for an impossible configuration.
    pub fn read<B: HiraBackend>(
        &self,
        model: &mut Llama<B>,
        rule: &EvalRule,
        base: &HiraAttentionConfig,
        measured: usize,
        device: &B::Device,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Reading, EvalError> {
        model.set_attention(AttentionChoice::Hira(Box::new(rule.config(base))))?;
        let mut cache = model.new_cache(self.len())?;
        let measuring = Measuring {
            layers: None,
            every: match rule {
                EvalRule::Dense => 0,
                _ => measured,
            },
            from: self.start,
        };
        let attention = Measured::<B>::new(rule, base, measuring, device)?;
        let recalls = attention.recalls();
        let (attention, reported) = Reported::new(Box::new(attention), self.start);
        let (begin, rest) = self.ids[..self.len()].split_at(self.start.min(self.len()));
        if begin.is_empty() {
            model.set_processor(Box::new(attention));
        } else if !matches!(rule, EvalRule::Comparison(_)) {
            model.set_processor(EvalRule::Dense.processor::<B>(base, device)?);
            Hidden::read(model, &mut cache, begin, progress)?;
            model.set_processor(Box::new(attention));
        } else {
            // a rule to compare with may remember what it saw
            model.set_processor(Box::new(attention));
            Hidden::read(model, &mut cache, begin, progress)?;
        }
        let states = Hidden::read(model, &mut cache, rest, progress)?;
        let recalls = recalls.by_layer().into_iter();
        Ok(Reading {
            states,
            layers: densities::take(&reported),
            recalls: recalls
                .map(|(layer, recall)| LayerRecall {
                    layer,
                    queries: recall.queries,
                    kept_mass: recall.kept_mass,
                    relative_error: recall.relative_error,
                    worst_dropped: recall.worst_dropped,
                    violations: recall.violations,
                })
                .collect(),
        })
    }

    /// Judges every token after a query that counts: sums by stretches of 256 positions.
    ///
    /// # Errors
    ///
    /// As [`judge`].
    pub fn judge<B: HiraBackend>(
        &self,
        model: &Llama<B>,
        dense: &Hidden,
        rule: &Hidden,
        device: &B::Device,
    ) -> Result<Vec<ScoreSums>, LlamaError> {
        let scores = judge(model, dense, rule, &self.ids[self.start + 1..], device)?;
        let stretches = scores.chunks(STRETCH).map(|scores| {
            let mut sums = ScoreSums::default();
            scores.iter().for_each(|score| sums.add(*score));
            sums
        });
        Ok(stretches.collect())
    }
}
