use std::time::Instant;

use hira_attention::{HiraAttentionConfig, HiraBackend};
use hira_cache::CacheInfo;

use super::decoding::spread;
use super::{Agreement, Decoding, DemoError, Divergence, decode};
use crate::bench::Spread;
use crate::llama::{AttentionChoice, Llama, LlamaCache};
use crate::sampler::greedy;

/// Steps that are timed on an empty cache, before, between and after the two answers.
const EMPTY_STEPS: usize = 12;

/// What to decode and how.
#[derive(Debug, Clone)]
pub struct ComparisonConfig {
    /// The tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Decode steps of each attention.
    pub steps: usize,
    /// Of those, steps whose distributions are compared.
    pub compared: usize,
    /// The sparse attention.
    pub hira: HiraAttentionConfig,
}

/// Dense beside Hira.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Seconds of the prefill that both share.
    pub prefill_s: f64,
    /// The token that the prefill itself gives: both answers begin with it.
    pub first: u32,
    /// The dense answer.
    pub dense: Decoding,
    /// Hira's answer.
    pub hira: Decoding,
    /// A step with nothing to attend to: what is left of a step are the weights.
    pub empty_step: Spread,
    /// How far the two answers are the same, each going on from its own tokens.
    pub agreement: Agreement,
    /// How far each of Hira's steps is from the dense step with the same past.
    pub divergence: Divergence,
    /// The cache after the answer.
    pub cache: CacheInfo,
}

/// What is happening, for a display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Tokens of the prompt done, and in all.
    Prefill(usize, usize),
    /// Dense decoding begins.
    Dense,
    /// Hira decoding begins.
    Hira,
    /// A token of the answer that is being decoded.
    Token(u32),
    /// An answer is complete; comparing goes on.
    Done,
}

/// Prefills once, decodes with dense attention and with Hira, then feeds Hira the dense answer.
///
/// # Errors
///
/// [`DemoError`] if the prompt and the answer do not fit, nothing is to be decoded, or the model refuses something.
pub fn compare<B: HiraBackend>(
    model: &mut Llama<B>,
    config: &ComparisonConfig,
    on_event: &mut dyn FnMut(Event),
) -> Result<Comparison, DemoError> {
    let (requested, limit) = (
        config.prompt.len() + config.steps,
        model.config().max_position_embeddings,
    );
    if requested > limit {
        return Err(DemoError::Length { requested, limit });
    }
    if config.steps == 0 {
        return Err(DemoError::NoSteps);
    }
    let mut cache = model.new_cache(requested)?;
    model.set_attention(AttentionChoice::Dense)?;
    let start = Instant::now();
    let logits = model.forward(&mut cache, &config.prompt, &mut |done, all| {
        on_event(Event::Prefill(done, all))
    })?;
    let prefill_s = start.elapsed().as_secs_f64();
    let first = greedy(&logits);

    let mut answer = |model: &Llama<B>, cache: &mut LlamaCache, begins: Event| {
        on_event(begins);
        on_event(Event::Token(first));
        let decoding = decode(model, cache, first, config.steps, &mut |token| {
            on_event(Event::Token(token))
        });
        on_event(Event::Done);
        decoding
    };
    let mut empty_seconds = empty_steps(model, first)?;
    let dense = answer(model, &mut cache, Event::Dense)?;
    empty_seconds.extend(empty_steps(model, first)?);
    cache.truncate(config.prompt.len())?;
    model.set_attention(AttentionChoice::Hira(Box::new(config.hira.clone())))?;
    let hira = answer(model, &mut cache, Event::Hira)?;
    empty_seconds.extend(empty_steps(model, first)?);
    let info = cache.info();

    cache.truncate(config.prompt.len())?;
    let divergence = diverge(
        model,
        &mut cache,
        first,
        &dense,
        config.compared.min(config.steps),
    )?;
    Ok(Comparison {
        prefill_s,
        first,
        empty_step: spread(empty_seconds),
        agreement: Agreement::of(&dense.tokens, &hira.tokens),
        divergence,
        dense,
        hira,
        cache: info,
    })
}

/// Seconds of steps on an empty cache.
fn empty_steps<B: HiraBackend>(model: &Llama<B>, first: u32) -> Result<Vec<f64>, DemoError> {
    let mut cache = model.new_cache(EMPTY_STEPS)?;
    Ok(decode(model, &mut cache, first, EMPTY_STEPS, &mut |_| {})?.seconds)
}

/// Feeds the dense answer and compares each step's logits with the dense ones.
fn diverge<B: HiraBackend>(
    model: &Llama<B>,
    cache: &mut LlamaCache,
    first: u32,
    dense: &Decoding,
    steps: usize,
) -> Result<Divergence, DemoError> {
    let mut divergence = Divergence::default();
    let inputs = std::iter::once(first).chain(dense.tokens.iter().copied());
    for (input, expected) in inputs.zip(&dense.logits).take(steps) {
        let logits = model.forward(cache, &[input], &mut |_, _| {})?;
        divergence.add(expected, &logits);
    }
    Ok(divergence)
}
