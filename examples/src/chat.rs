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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::tiny;

    const PLAIN: &str = "{% for m in messages %}<|start|>{{ m.role }}:{{ m.content }}<|end|>{% endfor %}<|start|>assistant:";
    const TRIMMING: &str = "{% for m in messages %}<|start|>{{ m.role }}:{{ m.content | trim }}<|end|>{% endfor %}<|start|>assistant:";

    /// A reply of single letters, which the tokenizer would have joined, and the end token.
    fn reply(tokenizer: &ChatTokenizer, letters: &[&str]) -> Vec<u32> {
        let pieces = letters.iter().chain(&["<|end|>"]);
        pieces
            .flat_map(|piece| tokenizer.encode_rendered(piece).unwrap())
            .collect()
    }

    #[test]
    fn a_reply_keeps_its_own_tokens() {
        let tokenizer = tiny(PLAIN);
        let mut conversation = Conversation::new();
        let first = conversation.ask(&tokenizer, "begin").unwrap().to_vec();
        let chosen = reply(&tokenizer, &["i", "n"]);
        conversation.reply(&tokenizer, &chosen).unwrap();
        let second = conversation.ask(&tokenizer, "again").unwrap().to_vec();
        let before = [first, chosen].concat();
        assert_eq!(common_prefix(&before, &second), before.len());
        let shown = tokenizer.decode(&second, true).unwrap();
        let expected = "<|start|>user:begin<|end|><|start|>assistant:in<|end|><|start|>user:again<|end|><|start|>assistant:";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_reply_that_was_cut_short_gets_its_end() {
        let tokenizer = tiny(PLAIN);
        let mut conversation = Conversation::new();
        conversation.ask(&tokenizer, "begin").unwrap();
        let chosen = tokenizer.encode_rendered("on").unwrap();
        conversation.reply(&tokenizer, &chosen).unwrap();
        let second = conversation.ask(&tokenizer, "x").unwrap().to_vec();
        let shown = tokenizer.decode(&second, true).unwrap();
        assert!(
            shown.contains("assistant:on<|end|><|start|>user:x"),
            "{shown}"
        );
    }

    #[test]
    fn a_template_that_alters_the_reply_starts_over_from_there() {
        let tokenizer = tiny(TRIMMING);
        let mut conversation = Conversation::new();
        let first = conversation.ask(&tokenizer, "begin").unwrap().to_vec();
        let chosen = reply(&tokenizer, &[" ", "o", "k"]);
        conversation.reply(&tokenizer, &chosen).unwrap();
        let second = conversation.ask(&tokenizer, "x").unwrap().to_vec();
        let before = [first.clone(), chosen].concat();
        assert_eq!(common_prefix(&before, &second), first.len());
        assert!(
            tokenizer
                .decode(&second, true)
                .unwrap()
                .contains("assistant:ok<|end|>")
        );
    }

    #[test]
    fn a_refused_message_changes_nothing() {
        let tokenizer = tiny(
            "{% if messages[-1].content == 'bad' %}{{ raise_exception('no') }}{% endif %}<|start|>",
        );
        let mut conversation = Conversation::new();
        conversation.ask(&tokenizer, "good").unwrap();
        let before = conversation.clone();
        assert!(conversation.ask(&tokenizer, "bad").is_err());
        assert_eq!(
            (conversation.tokens, conversation.messages),
            (before.tokens, before.messages)
        );
    }
}
