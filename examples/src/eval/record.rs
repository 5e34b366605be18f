//! What an evaluation writes down: one record for each finished piece of work.

use serde::{Deserialize, Serialize};

use super::tasks::{Sample, TaskScore};
use super::{LayerSums, ScoreSums};

/// Tokens of a stretch of positions whose scores are kept together.
pub(super) const STRETCH: usize = 256;

/// A finished piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Record {
    /// A text, read with a rule, every next token judged.
    Text(TextRecord),
    /// Tokens that dense attention and a rule decoded from the same prompt.
    Decoding(DecodingRecord),
    /// A task, answered with a rule.
    Task(TaskScore),
}

/// One window of the text, read with one rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextRecord {
    /// How the model's positions were stretched: `own` if they were not.
    pub positions: String,
    /// The rule.
    pub rule: String,
    /// Which window of the text.
    pub window: usize,
    /// Its tokens.
    pub len: usize,
    /// Scores by position: entry `i` is of the tokens that see `start + 256 i` to `start + 256 (i + 1) - 1` tokens before them.
    pub stretches: Vec<ScoreSums>,
    /// The first position of a query that counts.
    pub start: usize,
    /// What the rule's attention reported, by layer and head, of the queries that count.
    pub layers: LayerSums,
    /// Some of its answers, held against dense attention, by layer.
    #[serde(default)]
    pub recalls: Vec<LayerRecall>,
    /// Seconds that the rule took, with everything that a model computes.
    pub seconds: f64,
}

/// Scores of tokens with `from..to` tokens before them. Stretches that are partly outside are left out.
pub(super) fn between(
    stretches: &[ScoreSums],
    start: usize,
    (from, to): (usize, usize),
) -> ScoreSums {
    let mut sums = ScoreSums::default();
    for (i, stretch) in stretches.iter().enumerate() {
        let begin = start + i * STRETCH;
        if begin >= from && begin + STRETCH <= to {
            sums.join(stretch);
        }
    }
    sums
}

/// Some answers of one layer, held against dense attention in f64: sums over query heads and measured queries.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LayerRecall {
    /// The layer.
    pub layer: usize,
    /// Measured queries, counted per head.
    pub queries: u64,
    /// Softmax mass of the keys that were attended to.
    pub kept_mass: f64,
    /// Distance of the output from the dense one over the norm of that.
    pub relative_error: f64,
    /// The most mass that one query dropped; not a sum.
    pub worst_dropped: f64,
    /// Queries that dropped more, or erred by more, than was certified.
    pub violations: u64,
}

impl LayerRecall {
    /// Adds another's sums.
    pub(super) fn join(&mut self, other: &Self) {
        self.queries += other.queries;
        self.kept_mass += other.kept_mass;
        self.relative_error += other.relative_error;
        self.worst_dropped = self.worst_dropped.max(other.worst_dropped);
        self.violations += other.violations;
    }

    /// Mean softmax mass of the keys that were attended to.
    pub fn kept_mass_mean(&self) -> f64 {
        self.kept_mass / self.queries.max(1) as f64
    }

    /// Mean relative error of the output.
    pub fn relative_error_mean(&self) -> f64 {
        self.relative_error / self.queries.max(1) as f64
    }
}

/// Greedy decoding after a prompt that dense attention read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecodingRecord {
    /// How the model's positions were stretched: `own` if they were not.
    pub positions: String,
    /// The rule.
    pub rule: String,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens decoded.
    pub tokens: usize,
    /// Of those, tokens equal to dense attention's at the same place, each going on from its own.
    pub equal: usize,
    /// Tokens before the first that differs.
    pub equal_prefix: usize,
    /// The same steps with dense attention's tokens as the past.
    pub same_past: ScoreSums,
    /// Keys attended to / visible keys, while decoding freely.
    pub density: f64,
    /// Mean proven bound on the dropped mass, while decoding freely.
    pub dropped_mass_bound: f64,
}

impl Record {
    /// Whether it is of the window `window` of `len` tokens read with `rule`.
    pub fn is_text(&self, positions: &str, rule: &str, window: usize, len: usize) -> bool {
        matches!(self, Self::Text(one) if one.positions == positions && one.rule == rule && one.window == window && one.len == len)
    }

    /// Whether it is of a sample of a task answered with `rule`.
    pub fn is_task(&self, rule: &str, sample: &Sample) -> bool {
        matches!(self, Self::Task(one) if one.rule == rule && one.sample == *sample)
    }

    /// Whether it is of `tokens` tokens decoded with `rule` after `prompt`.
    pub fn is_decoding(&self, positions: &str, rule: &str, prompt: usize, tokens: usize) -> bool {
        matches!(self, Self::Decoding(one) if one.positions == positions && one.rule == rule && one.prompt == prompt && one.tokens == tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_line_of_json() {
        let record = Record::Text(TextRecord {
            positions: "own".to_owned(),
            rule: "top-k=256".to_owned(),
            window: 1,
            len: 2048,
            stretches: vec![ScoreSums::default(); 4],
            start: 1024,
            layers: vec![vec![Default::default(); 2]],
            recalls: vec![Default::default()],
            seconds: 0.1,
        });
        let line = serde_json::to_string(&record).expect("JSON");
        assert!(line.contains("\"part\":\"text\""), "{line}");
        assert_eq!(
            serde_json::from_str::<Record>(&line).expect("a record"),
            record
        );
        assert!(record.is_text("own", "top-k=256", 1, 2048));
        assert!(!record.is_text("own", "top-k=256", 0, 2048));
        assert!(!record.is_text("yarn=2", "top-k=256", 1, 2048));
        assert!(!record.is_decoding("own", "top-k=256", 1, 2048));
    }

    #[test]
    fn positions_are_counted_in_whole_stretches() {
        let stretches = (0..4).map(|i| ScoreSums {
            tokens: 1 << i,
            ..ScoreSums::default()
        });
        let stretches: Vec<_> = stretches.collect();
        let tokens = |from, to| between(&stretches, 1024, (from, to)).tokens;
        assert_eq!(tokens(1024, 2048), 15);
        assert_eq!(tokens(1280, 1792), 6);
        assert_eq!(tokens(1281, 1792), 4);
        assert_eq!(tokens(0, 1280), 1);
    }
}
