//! A conversation of several turns over one cache.

use crate::tokenizer::{ChatMessage, ChatTokenizer, TokenizerError};

/// The messages so far, and the tokens that stand for them.
///
/// Each turn's tokens continue those of the turn before wherever the chat template allows it, so that a cache of keys and
/// values is extended and not computed again.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    messages: Vec<ChatMessage>,
    /// The tokens of the last prompt and the reply to it.
    tokens: Vec<u32>,
    /// The last prompt and the reply, end token included: the text of `tokens`.
    text: String,
}

impl Conversation {
    /// A conversation without messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a message of the person and gives the tokens of the whole conversation, up to where the reply begins.
    ///
    /// # Errors
    /// [`TokenizerError`] if there is no chat template, or if it refuses the message; the conversation is then as it was.
    pub fn ask(
        &mut self,
        tokenizer: &ChatTokenizer,
        message: &str,
    ) -> Result<&[u32], TokenizerError> {
        let mut messages = self.messages.clone();
        messages.push(ChatMessage::user(message));
        let text = tokenizer.render_chat(&messages)?;
        let tokens = match text.strip_prefix(&self.text) {
            // The reply's own tokens are kept: its text may have other tokens than those that the model chose.
            Some(new) if !self.text.is_empty() => {
                let mut tokens = self.tokens.clone();
                tokens.extend(tokenizer.encode_rendered(new)?);
                tokens
            }
            _ => tokenizer.encode_rendered(&text)?,
        };
        *self = Self {
            messages,
            tokens,
            text,
        };
        Ok(&self.tokens)
    }

    /// Adds the model's reply to the last message.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn reply(
        &mut self,
        tokenizer: &ChatTokenizer,
        reply: &[u32],
    ) -> Result<(), TokenizerError> {
        let whole = [self.tokens.as_slice(), reply].concat();
        let shown = tokenizer.decode(reply, false)?;
        self.messages.push(ChatMessage::assistant(shown));
        self.text.push_str(&tokenizer.decode(reply, true)?);
        self.tokens = whole;
        Ok(())
    }
}

/// Number of leading tokens that two token lists share.
pub fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
