use super::{ChatTokenizer, TokenizerError};

/// Most tokens of a context that are decoded again for each new token.
const CONTEXT: usize = 16;

/// Turns tokens into text as they come, without ever splitting a character.
///
/// A character may need several tokens; until its last one has come, [`TextStream::push`] gives nothing for it.
///
/// # Complexity
/// Each token decodes only itself and a short window before it, not the whole text.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a ChatTokenizer,
    /// The tokens of the window; the text of the first `given` has been given out.
    window: Vec<u32>,
    given: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(
        tokenizer: &'a ChatTokenizer,
        context: &[u32],
    ) -> Result<Self, TokenizerError> {
        let window = context[context.len().saturating_sub(CONTEXT)..].to_vec();
        let given = window.len();
        Ok(Self {
            tokenizer,
            window,
            given,
        })
    }

    /// Takes the next token and gives the text that has become certain, if any.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        self.window.push(id);
        let text = self.pending()?;
        // The replacement character at the end stands for the start of a character whose rest is still to come.
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        let keep = self.window.len().saturating_sub(CONTEXT);
        self.window.drain(..keep);
        self.given = self.window.len();
        Ok(Some(text))
    }

    /// Gives the rest: replacement characters for a character that was never finished.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn finish(mut self) -> Result<Option<String>, TokenizerError> {
        let text = self.pending()?;
        self.given = self.window.len();
        Ok((!text.is_empty()).then_some(text))
    }

    /// The text of the tokens after the first `given`.
    fn pending(&self) -> Result<String, TokenizerError> {
        let known = self.tokenizer.decode(&self.window[..self.given], false)?;
        let all = self.tokenizer.decode(&self.window, false)?;
        // A context that ends inside a character decodes differently once the rest has come: then repeat from there.
        let common = known
            .bytes()
            .zip(all.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        Ok(all[all.floor_char_boundary(common)..].to_owned())
    }
}
