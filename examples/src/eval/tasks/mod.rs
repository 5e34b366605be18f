//! Tasks that need a certain place of a long context, re-created from their published descriptions: a passkey by depth and length (Mohtashami
//! and Jaggi, Landmark Attention, 2023, section 4.2), and the needle, tracing and aggregation tasks of RULER (Hsieh et al., RULER: What's
//! the Real Context Size of Your Long-Context Language Models?, 2024, section 3).
//!
//! A sample is a function of task, length, depth and seed. [`run`] reads its context densely, once; each rule then reads the question and the
//! answer. What is measured is graded (negative log-likelihood of the answer) and stands beside dense attention on the same sample: a small
//! model fails at many of these whatever the attention.

mod aggregation;
mod fit;
mod needle;
mod prompt;
mod score;
mod table;
mod variables;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use fit::{FitError, fit};
pub use prompt::Prompt;
pub use score::{TaskError, TaskPlan, TaskScore, run};
pub use table::{markdown, task_csv};

use rand::{SeedableRng, rngs::StdRng};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Task {
    /// A number of five digits in repeated filler.
    Passkey,
    /// One needle in prose.
    Needle,
    /// One of four needles with different keys.
    MultiKey,
    /// All four values of one key.
    MultiValue,
    /// Five variables that are assigned one value, each through the one before.
    VariableTracking,
    /// The ten words that come most often in a list.
    CommonWords,
    /// The three coded words that come most often, where frequencies follow a zeta distribution.
    FrequentWords,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Passkey,
        Self::Needle,
        Self::MultiKey,
        Self::MultiValue,
        Self::VariableTracking,
        Self::CommonWords,
        Self::FrequentWords,
    ];

    /// Whether what is asked for lies at one place, so that its depth matters.
    pub fn has_depth(self) -> bool {
        matches!(self, Self::Passkey | Self::Needle | Self::MultiKey)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Passkey => "passkey",
            Self::Needle => "needle",
            Self::MultiKey => "multi-key",
            Self::MultiValue => "multi-value",
            Self::VariableTracking => "variable-tracking",
            Self::CommonWords => "common-words",
            Self::FrequentWords => "frequent-words",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One sample: what it asks, how long it is, and what its random choices are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sample {
    /// The task.
    pub task: Task,
    /// Tokens of context, question and answer, at most.
    pub length: usize,
    /// Where the needle lies, in percent of the filler; of no effect where [`Task::has_depth`] says so.
    pub depth: usize,
    /// Seed.
    pub seed: u64,
}

impl Sample {
    /// The prompt with `units` of filler, which takes prose from `haystack`. More units only add filler: the answer stays.
    fn prompt(&self, units: usize, haystack: &str) -> Prompt {
        // tasks and lengths draw different numbers from the same seed
        let salt = ((self.task as u64) << 48) ^ ((self.length as u64) << 16);
        let mut rng = StdRng::seed_from_u64(self.seed ^ salt);
        match self.task {
            Task::Passkey => needle::passkey(units, self.depth, &mut rng),
            Task::Needle => needle::needles(1, units, self.depth, haystack, &mut rng),
            Task::MultiKey => needle::needles(4, units, self.depth, haystack, &mut rng),
            Task::MultiValue => needle::multi_value(units, haystack, &mut rng),
            Task::VariableTracking => variables::tracking(units, &mut rng),
            Task::CommonWords => aggregation::common_words(units, haystack, &mut rng),
            Task::FrequentWords => aggregation::frequent_words(units, &mut rng),
        }
    }
}
