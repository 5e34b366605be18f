use thiserror::Error;

use crate::llama::LlamaError;

/// Why a comparison cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DemoError {
    /// Text, question and answer together are longer than the model's context.
    #[error(
        "prompt and answer need {requested} tokens, and the model has room for {limit}: shorten the text by about {} tokens",
        requested - limit
    )]
    Length {
        /// Tokens of the prompt and the answer.
        requested: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// Nothing to decode.
    #[error("at least one token must be decoded")]
    NoSteps,
    /// The contexts do not ascend, or go beyond the prompt.
    #[error(
        "a context of {context} tokens cannot follow one of {done}, or is longer than the prompt"
    )]
    Context {
        /// The context.
        context: usize,
        /// Tokens that were read before.
        done: usize,
    },
    /// The model refused its input.
    #[error(transparent)]
    Llama(#[from] LlamaError),
}
