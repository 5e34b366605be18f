use std::fmt;
use std::time::Instant;

use hira_attention::{HiraAttentionConfig, HiraBackend};

use super::DemoError;
use super::decoding::spread;
use crate::bench::Spread;
use crate::llama::{AttentionChoice, BurnAttention, Llama, LlamaCache};
use crate::sampler::greedy;

/// Steps that each attention takes before the next one has its turn.
const TURN: usize = 4;

/// An attention whose decode steps are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Burn's own tensor operations: [`BurnAttention`].
    Burn,
    /// Our dense plan.
    Dense,
    /// Hira, with the keys of highest score.
    TopK(usize),
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Burn => f.pad("Burn's own"),
            Self::Dense => f.pad("dense (ours)"),
            Self::TopK(k) => f.pad(&format!("Hira top-{k}")),
        }
    }
}

/// What to time.
#[derive(Debug, Clone)]
pub struct SpeedConfig {
    /// A prompt of at least the longest context.
    pub prompt: Vec<u32>,
    /// Tokens of the prompt before the decode steps, ascending.
    pub contexts: Vec<usize>,
    /// The attentions; each is compared with the first.
    pub attentions: Vec<Attention>,
    /// Turns of four steps that each attention is timed for at each context, after one that is not.
    pub turns: usize,
}

/// The steps of one attention at one context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpeedRow {
    /// Tokens before the steps.
    pub context: usize,
    /// The attention.
    pub attention: Attention,
    /// Seconds a token: the model and the choice of the next token.
    pub step: Spread,
}

/// Decode steps of one model: a row for each context and attention, those of a context together.
#[derive(Debug, Clone, PartialEq)]
pub struct Speed {
    /// The rows.
    pub rows: Vec<SpeedRow>,
}

/// Prefills to each context, once for all attentions, and times greedy decode steps of each, turn by turn.
///
/// # Errors
///
/// [`DemoError`] if prompt, steps and positions do not fit together, or the model refuses something.
pub fn measure_speed<B: HiraBackend>(
    model: &mut Llama<B>,
    config: &SpeedConfig,
    device: &B::Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Speed, DemoError> {
    let longest = config.contexts.iter().copied().max().unwrap_or(0);
    let requested = longest + (config.turns + 1) * TURN;
    let limit = model.config().max_position_embeddings;
    if requested > limit {
        return Err(DemoError::Length { requested, limit });
    }
    if config.turns == 0 || longest == 0 {
        return Err(DemoError::NoSteps);
    }
    let burn = BurnAttention::new(model.config().num_hidden_layers, device)
        .map_err(crate::llama::LlamaError::from)?;
    let mut cache = model.new_cache(requested)?;
    let mut rows = Vec::new();
    for &context in &config.contexts {
        let done = cache.len();
        if context <= done || context > config.prompt.len() {
            return Err(DemoError::Context { context, done });
        }
        burn.truncate(done);
        model.set_processor(Box::new(burn.clone()));
        let tokens = &config.prompt[done..context];
        let logits = model.forward(&mut cache, tokens, &mut |part, _| {
            progress(done + part, longest)
        })?;
        let steps = time_turns(model, config, &burn, &cache, greedy(&logits))?;
        let spreads = steps.into_iter().map(spread);
        rows.extend(
            config
                .attentions
                .iter()
                .zip(spreads)
                .map(|(&attention, step)| SpeedRow {
                    context,
                    attention,
                    step,
                }),
        );
    }
    Ok(Speed { rows })
}

/// Seconds of each step of each attention, all from the same cache.
fn time_turns<B: HiraBackend>(
    model: &mut Llama<B>,
    config: &SpeedConfig,
    burn: &BurnAttention<B>,
    cache: &LlamaCache,
    first: u32,
) -> Result<Vec<Vec<f64>>, DemoError> {
    let start = (cache.clone(), first, Vec::new());
    let mut runs = vec![start; config.attentions.len()];
    for turn in 0..=config.turns {
        for (attention, (cache, token, seconds)) in config.attentions.iter().zip(&mut runs) {
            match attention {
                Attention::Burn => model.set_processor(Box::new(burn.clone())),
                Attention::Dense => model.set_attention(AttentionChoice::Dense)?,
                Attention::TopK(k) => {
                    let config = HiraAttentionConfig::new().with_top_k(*k);
                    model.set_attention(AttentionChoice::Hira(Box::new(config)))?;
                }
            }
            for _ in 0..TURN {
                let start = Instant::now();
                *token = greedy(&model.forward(cache, &[*token], &mut |_, _| {})?);
                // The first turn has copied what the forks share, and filled what searches remember.
                if turn > 0 {
                    seconds.push(start.elapsed().as_secs_f64());
                }
            }
        }
    }
    Ok(runs.into_iter().map(|(_, _, seconds)| seconds).collect())
}

impl Speed {
    fn median(&self, context: usize, attention: Attention) -> Option<f64> {
        let mut rows = self.rows.iter();
        let row = rows.find(|row| row.context == context && row.attention == attention)?;
        Some(row.step.median)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.rows.first() else {
            return Ok(());
        };
        let against = format!("vs {}", first.attention);
        let kept = format!("of {}'s", first.context);
        writeln!(
            f,
            "{:>7}  {:14} {:>8}  {:>14} {:>9}  {against:>13}  {kept:>9}",
            "context", "attention", "ms/token", "quartiles", "tokens/s"
        )?;
        let mut context = 0;
        for row in &self.rows {
            if row.context != context {
                context = row.context;
                writeln!(f, "{}", "-".repeat(83))?;
            }
            let ms = |seconds: f64| 1e3 * seconds;
            let quartiles = format!("{:.1} to {:.1}", ms(row.step.lower), ms(row.step.upper));
            let ratio = |of: Option<f64>| of.map_or(f64::NAN, |of| of / row.step.median);
            writeln!(
                f,
                "{context:>7}  {:14} {:>8.1}  {quartiles:>14} {:>9.1}  {:>12.2}x  {:>9.2}",
                row.attention,
                ms(row.step.median),
                1.0 / row.step.median,
                ratio(self.median(context, first.attention)),
                ratio(self.median(first.context, row.attention)),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_first_attention_and_the_first_context() {
        let row = |context, attention, median| SpeedRow {
            context,
            attention,
            step: Spread {
                lower: median,
                median,
                upper: median,
            },
        };
        let speed = Speed {
            rows: vec![
                row(512, Attention::Burn, 0.02),
                row(512, Attention::TopK(64), 0.016),
                row(8000, Attention::Burn, 0.08),
                row(8000, Attention::TopK(64), 0.02),
            ],
        };
        let table = speed.to_string();
        let last: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last[..3], ["8000", "Hira", "top-64"]);
        assert_eq!(last[last.len() - 3..], ["50.0", "4.00x", "0.80"]);
    }
}
