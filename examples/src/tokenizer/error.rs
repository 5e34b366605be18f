use std::io;
use std::path::PathBuf;

use crate::weights::gguf::GgufError;

/// Why a tokenizer could not be built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The operating system refused to read a file.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A JSON file does not parse.
    #[error("cannot parse {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A metadata key of a GGUF file has the wrong type.
    #[error("cannot use the tokenizer in {}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// The GGUF file has no such key.
    #[error("{}: metadata key {key} is missing, so the file has no usable tokenizer", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// The GGUF file's tokenizer is of a kind that is not supported.
    #[error("{}: {key} is {found:?}; supported are {supported}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// The kind in the file.
        found: String,
        /// The supported kinds.
        supported: &'static str,
    },
    /// A list in the GGUF file has another length than the list of tokens.
    #[error("{}: {key} has {received} entries, expected one for each of {expected} tokens", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// Number of tokens.
        expected: usize,
        /// Number of entries.
        received: usize,
    },
    /// A merge is not two tokens with a space between.
    #[error("{}: merge {index} is {merge:?}, expected two tokens with a space between", path.display())]
    Merge {
        /// The file.
        path: PathBuf,
        /// Its index.
        index: usize,
        /// The text in the file.
        merge: String,
    },
    /// A token id is not in the vocabulary.
    #[error("{}: {key} is {id}, but there are {tokens} tokens", path.display())]
    TokenId {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// The id.
        id: u64,
        /// Number of tokens.
        tokens: usize,
    },
    /// The tokenizer library refused the file's tokenizer.
    #[error("cannot use the tokenizer in {}", path.display())]
    Build {
        /// The file.
        path: PathBuf,
        /// What the library said.
        source: tokenizers::Error,
    },
    /// A text could not be split into tokens.
    #[error("cannot split the text into tokens")]
    Encode(#[source] tokenizers::Error),
    /// Tokens could not be turned into text.
    #[error("cannot turn tokens into text")]
    Decode(#[source] tokenizers::Error),
    /// The model has no chat template.
    #[error("{}: the model has no chat template: give the prompt without --chat", path.display())]
    NoTemplate {
        /// The file or folder.
        path: PathBuf,
    },
    /// The chat template failed.
    #[error("{}: the chat template failed", path.display())]
    Template {
        /// The file or folder.
        path: PathBuf,
        /// What the template engine said.
        source: Box<minijinja::Error>,
    },
}
