//! The samples of a plan on a model, rule by rule.

use hira_attention::{ConfigError, HiraAttentionConfig, HiraBackend};
use serde::{Deserialize, Serialize};

use super::{FitError, Sample, Task, fit};
use crate::demo::kl_divergence;
use crate::eval::EvalRule;
use crate::llama::{AttentionChoice, Llama, LlamaCache, LlamaError};
use crate::sampler::greedy;
use crate::tokenizer::{ChatTokenizer, TokenizerError};

/// Which samples, under which rules.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPlan {
    /// The tasks.
    pub tasks: Vec<Task>,
    /// Tokens of a sample.
    pub lengths: Vec<usize>,
    /// Depths in percent, for tasks that have one; others are asked at the first only.
    pub depths: Vec<usize>,
    /// Samples of each task, length and depth.
    pub samples: usize,
    /// The rules. Dense attention is always measured too.
    pub rules: Vec<EvalRule>,
}

impl TaskPlan {
    /// The samples, in order.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for &task in &self.tasks {
            let depths = if task.has_depth() {
                self.depths.len()
            } else {
                1
            };
            for &length in &self.lengths {
                for &depth in self.depths.iter().take(depths) {
                    for seed in 0..self.samples as u64 {
                        samples.push(Sample {
                            task,
                            length,
                            depth,
                            seed,
                        });
                    }
                }
            }
        }
        samples
    }
}

/// One sample under one rule, beside dense attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// The sample.
    pub sample: Sample,
    /// The rule, as it is written.
    pub rule: String,
    /// Tokens of context and question.
    pub prompt: usize,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Mean negative log-likelihood of the answer's tokens, in nats.
    pub nll: f64,
    /// The same of dense attention.
    pub dense_nll: f64,
    /// Whether each token of the answer is the most probable one after those before it.
    pub exact: bool,
    /// The same of dense attention.
    pub dense_exact: bool,
    /// Tokens of the answer whose most probable token is the same as under dense attention.
    pub same_argmax: usize,
    /// Mean `KL(dense || rule)` over the answer's tokens, in nats.
    pub kl: f64,
    /// Keys attended to / visible keys, over question and answer.
    pub density: f64,
}

/// Why tasks could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A length is too short for a task.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// A prompt could not be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A configuration is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model refused something.
    #[error(transparent)]
    Model(#[from] LlamaError),
}

/// A sample as tokens.
struct Ids {
    context: Vec<u32>,
    question: Vec<u32>,
    answer: Vec<u32>,
}

/// What a rule says to a sample.
struct Answer {
    /// Before each token of the answer.
    logits: Vec<Vec<f32>>,
    density: f64,
}

/// Runs what `is_done` does not know, and hands each score over as it comes. `haystack` is the prose that needles lie in.
///
/// The context is read with dense attention, question and answer as decode steps with the rule, whatever `base` says about prefills and short contexts: what is
/// tested is what a rule finds among the keys of a long context. All rules of a sample share the reading, but for H2O, which needs what
/// it saw then. The model is left with another attention.
///
/// # Errors
///
/// [`TaskError`].
#[expect(
    clippy::too_many_arguments,
    reason = "a model with its tokenizer, a plan with its text, and two callbacks"
)]
pub fn run<B: HiraBackend>(
    model: &mut Llama<B>,
    tokenizer: &ChatTokenizer,
    plan: &TaskPlan,
    haystack: &str,
    base: &HiraAttentionConfig,
    device: &B::Device,
    is_done: &dyn Fn(&Sample, &EvalRule) -> bool,
    on_score: &mut dyn FnMut(TaskScore),
) -> Result<(), TaskError> {
    let base = HiraAttentionConfig {
        use_hira_during_prefill: false,
        min_sparse_len: 0,
        ..base.clone()
    };
    // as many tokens at once as are decode steps, each of which the rule answers by itself
    let step = base.max_decode_tokens.max(1);
    for sample in plan.samples() {
        let pending: Vec<&EvalRule> = plan
            .rules
            .iter()
            .filter(|rule| !is_done(&sample, rule))
            .collect();
        if pending.is_empty() {
            continue;
        }
        let ids = tokens(tokenizer, &sample, haystack)?;
        model.set_attention(AttentionChoice::Hira(Box::new(base.clone())))?;
        let len = ids.context.len() + ids.question.len() + ids.answer.len();
        let mut cache = model.new_cache(len)?;
        use_rule(model, &EvalRule::Dense, &base, device)?;
        model.forward(&mut cache, &ids.context, &mut |_, _| {})?;
        let dense = answer(model, &mut cache, &ids, step)?;
        for rule in pending {
            use_rule(model, rule, &base, device)?;
            if needs_context(rule) {
                cache.reset();
                model.forward(&mut cache, &ids.context, &mut |_, _| {})?;
            }
            let found = match rule {
                EvalRule::Dense => None,
                _ => Some(answer(model, &mut cache, &ids, step)?),
            };
            on_score(score(
                sample,
                rule,
                &ids,
                &dense,
                found.as_ref().unwrap_or(&dense),
            ));
        }
    }
    Ok(())
}

/// Whether a rule has to have seen the context to know what to keep.
fn needs_context(rule: &EvalRule) -> bool {
    use crate::eval::compare::ComparisonRule;
    matches!(rule, EvalRule::Comparison(ComparisonRule::H2o { .. }))
}

fn use_rule<B: HiraBackend>(
    model: &mut Llama<B>,
    rule: &EvalRule,
    base: &HiraAttentionConfig,
    device: &B::Device,
) -> Result<(), TaskError> {
    model.set_processor(rule.processor(base, device)?);
    Ok(())
}

/// The longest prompt that is no longer than the sample says.
fn tokens(tokenizer: &ChatTokenizer, sample: &Sample, haystack: &str) -> Result<Ids, TaskError> {
    let ids = |context: &str, question: &str, answer: &str| {
        Ok::<_, TaskError>(Ids {
            context: tokenizer.encode(context)?,
            question: tokenizer.encode_rendered(question)?,
            answer: tokenizer.encode_rendered(answer)?,
        })
    };
    // a text as a whole has a few tokens less than its parts, which leave room for that
    let parts = |text: &str| Ok::<_, TaskError>(tokenizer.encode(text)?.len() + 4);
    let prompt = fit(sample, haystack, parts)?;
    ids(&prompt.context, &prompt.question, &prompt.answer)
}

/// Reads the question in steps of `step` tokens and the answer token by token; the cache holds the context, and does again afterwards.
fn answer<B: HiraBackend>(
    model: &Llama<B>,
    cache: &mut LlamaCache,
    ids: &Ids,
    step: usize,
) -> Result<Answer, TaskError> {
    let context = cache.len();
    cache.reset_metrics();
    let mut last = Vec::new();
    for ids in ids.question.chunks(step) {
        last = model.forward(cache, ids, &mut |_, _| {})?;
    }
    let mut logits = vec![last];
    for id in &ids.answer[..ids.answer.len() - 1] {
        logits.push(model.forward(cache, &[*id], &mut |_, _| {})?);
    }
    let density = cache.metrics().density();
    cache.truncate(context)?;
    Ok(Answer { logits, density })
}

fn score(sample: Sample, rule: &EvalRule, ids: &Ids, dense: &Answer, found: &Answer) -> TaskScore {
    let count = ids.answer.len();
    let nll = |answer: &Answer| {
        let terms = answer.logits.iter().zip(&ids.answer);
        terms.map(|(logits, id)| nll(logits, *id)).sum::<f64>() / count as f64
    };
    let exact = |answer: &Answer| {
        let mut terms = answer.logits.iter().zip(&ids.answer);
        terms.all(|(logits, id)| greedy(logits) == *id)
    };
    let pairs = || dense.logits.iter().zip(&found.logits);
    TaskScore {
        sample,
        rule: rule.to_string(),
        prompt: ids.context.len() + ids.question.len(),
        tokens: count,
        nll: nll(found),
        dense_nll: nll(dense),
        exact: exact(found),
        dense_exact: exact(dense),
        same_argmax: pairs().filter(|(a, b)| greedy(a) == greedy(b)).count(),
        kl: pairs().map(|(a, b)| kl_divergence(a, b)).sum::<f64>() / count as f64,
        density: found.density,
    }
}

/// `-ln` of a token's softmax probability, in f64.
fn nll(logits: &[f32], id: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - max).exp())
        .sum();
    max + sum.ln() - f64::from(logits[id as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_asks_at_every_depth_where_there_is_one() {
        let plan = TaskPlan {
            tasks: vec![Task::Passkey, Task::CommonWords],
            lengths: vec![1024, 2048],
            depths: vec![0, 50, 100],
            samples: 2,
            rules: Vec::new(),
        };
        let samples = plan.samples();
        assert_eq!(samples.len(), 2 * 3 * 2 + 2 * 2);
        let mut unique = samples.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), samples.len());
    }

    #[test]
    fn likelihoods_are_those_of_the_softmax() {
        // probabilities 1/6, 2/6, 3/6
        let logits = [0.0, 2f32.ln(), 3f32.ln()];
        assert!((nll(&logits, 1) - 3f64.ln()).abs() < 1e-6);
        let ids = Ids {
            context: vec![0; 7],
            question: vec![0; 2],
            answer: vec![2, 1],
        };
        let answer = |logits: [[f32; 3]; 2]| Answer {
            logits: logits.map(|row| row.to_vec()).to_vec(),
            density: 0.25,
        };
        let dense = answer([logits, logits]);
        let found = answer([logits, [0.0, 9.0, 0.0]]);
        let sample = Sample {
            task: Task::Needle,
            length: 16,
            depth: 0,
            seed: 0,
        };
        let rule = "top-k=4".parse().expect("a rule");
        let score = score(sample, &rule, &ids, &dense, &found);
        assert!((score.dense_nll - (2f64.ln() + 3f64.ln()) / 2.0).abs() < 1e-6);
        assert!(score.exact && !score.dense_exact);
        assert_eq!((score.prompt, score.tokens, score.same_argmax), (9, 2, 1));
        assert!(score.kl > 0.1 && score.density == 0.25);
    }
}
