//! Decoding: a prompt, then one token after the other.

use std::time::{Duration, Instant};

use hira_attention::HiraBackend;

use crate::llama::{Llama, LlamaCache, LlamaError};
use crate::sampler::Sampler;

/// What a receiver of tokens may fail with.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Why tokens could not be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// Prompt and new tokens together are more than the model's context.
    #[error("{prompt} prompt tokens and {new} new ones make {}, but the model's context is {limit}", prompt + new)]
    Context {
        /// Tokens of the prompt, with those already in the cache.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// The model's context.
        limit: usize,
    },
    /// The model failed.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The receiver of the tokens failed.
    #[error("the tokens could not be passed on")]
    Sink(#[source] SinkError),
}

/// What to generate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Most new tokens.
    pub max_new: usize,
    /// Tokens after which to stop; empty to go on to `max_new`.
    pub stop: Vec<u32>,
}

/// What was generated, and how long it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The new tokens, the one that stopped it included.
    pub tokens: Vec<u32>,
    /// The logits after the prompt.
    pub first_logits: Vec<f32>,
    /// Time for the prompt.
    pub prefill: Duration,
    /// Time for each later token.
    pub steps: Vec<Duration>,
}

impl Generation {
    /// The median time for a token after the first, or `None` if there was no such token.
    pub fn median_step(&self) -> Option<Duration> {
        let mut steps = self.steps.clone();
        let middle = steps.len() / 2;
        (!steps.is_empty()).then(|| *steps.select_nth_unstable(middle).1)
    }
}

/// Refuses a prompt that leaves no room for the new tokens. `prompt` counts what is in the cache too.
///
/// # Errors
/// [`GenerateError::Context`], which names the numbers.
pub fn check_context(prompt: usize, new: usize, limit: usize) -> Result<(), GenerateError> {
    if prompt.saturating_add(new) > limit {
        return Err(GenerateError::Context { prompt, new, limit });
    }
    Ok(())
}

/// Appends `prompt` to the cache and generates tokens after it.
///
/// The last new token is not in the cache: the model has not seen it yet. The cache's metrics are those of the decode steps,
/// without the prompt. `progress` is told tokens done and tokens in all of the prompt; `sink` gets each token as it comes.
///
/// # Errors
/// [`GenerateError::Context`] before anything is computed, [`GenerateError::Llama`] if the model refuses its input,
/// [`GenerateError::Sink`] if the sink fails.
pub fn generate<B: HiraBackend>(
    model: &Llama<B>,
    cache: &mut LlamaCache,
    prompt: &[u32],
    sampler: &mut Sampler,
    options: &GenerateOptions,
    progress: &mut dyn FnMut(usize, usize),
    sink: &mut dyn FnMut(u32) -> Result<(), SinkError>,
) -> Result<Generation, GenerateError> {
    let limit = cache.max_len().min(model.config().max_position_embeddings);
    check_context(cache.len() + prompt.len(), options.max_new, limit)?;
    let start = Instant::now();
    let first_logits = model.forward(cache, prompt, progress)?;
    let prefill = start.elapsed();
    cache.reset_metrics();
    let mut generation = Generation {
        tokens: Vec::new(),
        first_logits,
        prefill,
        steps: Vec::new(),
    };
    if options.max_new == 0 {
        return Ok(generation);
    }
    let mut token = sampler.choose(&generation.first_logits);
    loop {
        generation.tokens.push(token);
        sink(token).map_err(GenerateError::Sink)?;
        if options.stop.contains(&token) || generation.tokens.len() == options.max_new {
            return Ok(generation);
        }
        let start = Instant::now();
        let logits = model.forward(cache, &[token], &mut |_, _| {})?;
        generation.steps.push(start.elapsed());
        token = sampler.choose(&logits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_error_names_the_numbers() {
        assert!(check_context(8000, 192, 8192).is_ok());
        let error = check_context(8000, 193, 8192).unwrap_err();
        let message = error.to_string();
        for number in ["8000", "193", "8193", "8192"] {
            assert!(message.contains(number), "{number} is not in {message}");
        }
        assert!(check_context(usize::MAX - 1, 1, 10).is_err());
    }

    #[test]
    fn the_median_is_of_the_steps() {
        let steps = [5, 1, 9].map(Duration::from_millis).to_vec();
        let mut generation = Generation {
            tokens: vec![],
            first_logits: vec![],
            prefill: Duration::ZERO,
            steps,
        };
        assert_eq!(generation.median_step(), Some(Duration::from_millis(5)));
        generation.steps.clear();
        assert_eq!(generation.median_step(), None);
    }
}
