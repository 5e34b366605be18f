//! Text to tokens and back, and chat templates.
//!
//! A [`ChatTokenizer`] comes from a Hugging Face `tokenizer.json` or from the vocabulary inside a GGUF file; both run on the
//! `tokenizers` crate.

mod error;
mod from_folder;
mod from_gguf;
mod stream;
mod template;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

use tokenizers::Tokenizer;

pub use error::TokenizerError;
pub use stream::TextStream;
pub use template::{ChatMessage, Role};

/// A model's tokenizer, its special tokens and its chat template.
#[derive(Debug, Clone)]
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    /// The file or folder, for messages.
    path: PathBuf,
    template: Option<String>,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// Put before every prompt by this type; a `tokenizer.json` does it in its own post-processor.
    prefix: Option<u32>,
}

impl ChatTokenizer {
    /// The tokens of a raw prompt. Special tokens written out in the text are recognised, and the start token is added if the
    /// model was trained with one.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .tokenizer
            .encode(text, true)
            .map_err(TokenizerError::Encode)?;
        Ok(self
            .prefix
            .into_iter()
            .chain(encoding.get_ids().iter().copied())
            .collect())
    }

    /// The tokens of a rendered chat. No start token is added: the template writes its own.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, with or without special tokens written out.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn decode(&self, ids: &[u32], with_special: bool) -> Result<String, TokenizerError> {
        self.tokenizer
            .decode(ids, !with_special)
            .map_err(TokenizerError::Decode)
    }

    /// A decoder for tokens that arrive one by one after `context`, whose text it does not repeat.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn stream_after(&self, context: &[u32]) -> Result<TextStream<'_>, TokenizerError> {
        TextStream::new(self, context)
    }

    /// Renders a conversation with the model's template, up to where the assistant's next reply begins.
    ///
    /// # Errors
    /// [`TokenizerError::NoTemplate`] and [`TokenizerError::Template`].
    pub fn render_chat(&self, messages: &[ChatMessage]) -> Result<String, TokenizerError> {
        let source = self.template.as_deref();
        let source = source.ok_or_else(|| TokenizerError::NoTemplate {
            path: self.path.clone(),
        })?;
        let text_of = |id: Option<u32>| id.and_then(|id| self.tokenizer.id_to_token(id));
        template::render(
            source,
            messages,
            text_of(self.bos),
            text_of(self.eos.first().copied()),
        )
        .map_err(|source| TokenizerError::Template {
            path: self.path.clone(),
            source: Box::new(source),
        })
    }

    /// The tokens that end a text or a turn.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The token that starts a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// True if there is a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }
}
