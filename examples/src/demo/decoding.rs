use std::time::Instant;

use hira_attention::{HiraBackend, Metrics};

use super::DemoError;
use crate::bench::Spread;
use crate::llama::{Llama, LlamaCache};
use crate::sampler::greedy;

/// What greedy decoding chose, how long each step took, and what its attention reported.
#[derive(Debug, Clone)]
pub struct Decoding {
    /// The tokens chosen, one a step.
    pub tokens: Vec<u32>,
    /// Seconds of each step.
    pub seconds: Vec<f64>,
    /// The logits of each step.
    pub logits: Vec<Vec<f32>>,
    /// Density and bounds over all steps, layers and heads.
    pub metrics: Metrics,
}

impl Decoding {
    /// Median and quartiles of a step's seconds; all zero if there was no step.
    pub fn spread(&self) -> Spread {
        spread(self.seconds.clone())
    }
}

pub(super) fn spread(seconds: Vec<f64>) -> Spread {
    Spread::of(seconds).unwrap_or(Spread {
        lower: 0.0,
        median: 0.0,
        upper: 0.0,
    })
}

/// Feeds `first`, then each token that the step before chose, and calls `on_token` with every chosen token.
///
/// # Errors
///
/// What [`Llama::forward`] refuses.
pub fn decode<B: HiraBackend>(
    model: &Llama<B>,
    cache: &mut LlamaCache,
    first: u32,
    steps: usize,
    on_token: &mut dyn FnMut(u32),
) -> Result<Decoding, DemoError> {
    cache.reset_metrics();
    let (mut tokens, mut seconds) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
    let mut all_logits = Vec::with_capacity(steps);
    let mut token = first;
    for _ in 0..steps {
        let start = Instant::now();
        let logits = model.forward(cache, &[token], &mut |_, _| {})?;
        seconds.push(start.elapsed().as_secs_f64());
        token = greedy(&logits);
        tokens.push(token);
        all_logits.push(logits);
        on_token(token);
    }
    Ok(Decoding {
        tokens,
        seconds,
        logits: all_logits,
        metrics: cache.metrics().clone(),
    })
}
