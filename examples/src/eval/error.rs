use hira_attention::ConfigError;

use super::{PlotError, RuleError};
use crate::llama::LlamaError;

/// Why an evaluation cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model refused its input.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// A configuration is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A rule is none.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A plot cannot be drawn.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// The text is too short.
    #[error("a window of {len} tokens needs one more of them; the text has {tokens}")]
    Text {
        /// Tokens of a window.
        len: usize,
        /// Tokens of the text.
        tokens: usize,
    },
    /// Contexts, start or decoded tokens do not fit together.
    #[error("{requirement}, received {received}")]
    Plan {
        /// What is required.
        requirement: &'static str,
        /// What came.
        received: usize,
    },
    /// A result cannot be read or written.
    #[error("cannot read or write the results")]
    Io(#[from] std::io::Error),
}
