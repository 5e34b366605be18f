//! Greedy decoding: dense attention and rules, from one prompt.

use hira_attention::{HiraAttentionConfig, HiraBackend};
use hira_index::burn::with_host;

use super::reading::{Hidden, judge};
use super::{DecodingRecord, EvalError, EvalRule, Reported, ScoreSums, densities};
use crate::demo::Agreement;
use crate::llama::{AttentionChoice, Llama, LlamaCache, LlamaError};
use crate::sampler::greedy;

/// A prompt that dense attention read, and what it decoded after it.
#[derive(Debug)]
pub struct DenseAnswer {
    /// The prompt.
    cache: LlamaCache,
    /// Tokens of it.
    prompt: usize,
    /// The first is the one that the prompt itself gives.
    tokens: Vec<u32>,
    /// Before each token but the first.
    states: Hidden,
}

impl DenseAnswer {
    /// Reads the prompt and decodes `steps` tokens after the one that the prompt gives, densely. The cache has `base`'s index, so that any of
    /// Hira's rules can go on from it.
    ///
    /// # Errors
    ///
    /// As [`Llama::forward`].
    pub fn new<B: HiraBackend>(
        model: &mut Llama<B>,
        prompt: &[u32],
        steps: usize,
        base: &HiraAttentionConfig,
        device: &B::Device,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, EvalError> {
        model.set_attention(AttentionChoice::Hira(Box::new(base.clone())))?;
        let mut cache = model.new_cache(prompt.len() + steps)?;
        model.set_processor(EvalRule::Dense.processor::<B>(base, device)?);
        let mut done = 0;
        let logits = model.forward(&mut cache, prompt, &mut |now, _| {
            progress(now - done);
            done = now;
        })?;
        let first = greedy(&logits);
        let (tokens, states) = run_on(model, &mut cache.clone(), first, steps, progress)?;
        Ok(Self {
            cache,
            prompt: prompt.len(),
            tokens: [vec![first], tokens].concat(),
            states,
        })
    }

    /// Lets a rule of Hira's go on from the prompt: freely, and with dense attention's tokens as the past.
    ///
    /// # Errors
    ///
    /// As [`Llama::forward`].
    pub fn compare<B: HiraBackend>(
        &self,
        model: &mut Llama<B>,
        rule: &EvalRule,
        base: &HiraAttentionConfig,
        device: &B::Device,
        progress: &mut dyn FnMut(usize),
    ) -> Result<DecodingRecord, EvalError> {
        let (first, dense) = (self.tokens[0], &self.tokens[1..]);
        let (attention, reported) = Reported::new(rule.processor::<B>(base, device)?, 0);
        model.set_processor(Box::new(attention));
        let (free, _) = run_on(model, &mut self.cache.clone(), first, dense.len(), progress)?;
        let reported = densities::total(&densities::take(&reported));
        let past = &self.tokens[..dense.len()];
        let states = Hidden::read(model, &mut self.cache.clone(), past, progress)?;
        let mut same_past = ScoreSums::default();
        for score in judge(model, &self.states, &states, dense, device)? {
            same_past.add(score);
        }
        let agreement = Agreement::of(dense, &free);
        Ok(DecodingRecord {
            positions: String::new(),
            rule: rule.to_string(),
            prompt: self.prompt,
            tokens: dense.len(),
            equal: agreement.equal,
            equal_prefix: agreement.first_difference.unwrap_or(dense.len()),
            same_past,
            density: reported.density(),
            dropped_mass_bound: reported.dropped_mass_mean(),
        })
    }
}

/// Feeds `first`, then each token that the step before chose.
fn run_on<B: HiraBackend>(
    model: &Llama<B>,
    cache: &mut LlamaCache,
    first: u32,
    steps: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<(Vec<u32>, Hidden), LlamaError> {
    let (mut tokens, mut states) = (Vec::with_capacity(steps), Hidden::default());
    let mut token = first;
    for _ in 0..steps {
        let mut logits = None;
        model.forward_hidden(cache, &[token], &mut |x| {
            logits = Some(with_host(model.logits(x.clone()), <[f32]>::to_vec)?);
            with_host(x, |x| states.push(x))?;
            Ok(())
        })?;
        token = greedy(&logits.ok_or(LlamaError::NoTokens)?);
        tokens.push(token);
        progress(1);
    }
    Ok((tokens, states))
}
