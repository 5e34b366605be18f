use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use super::{ChatTokenizer, TokenizerError};

/// `tokenizer_config.json`, as far as it matters.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    chat_template: Option<ChatTemplate>,
}

/// A token as a text or as an object.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Object { content: String },
}

impl SpecialToken {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

/// One template, or several with names.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ChatTemplate {
    One(String),
    Many(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl ChatTemplate {
    fn into_source(self) -> Option<String> {
        match self {
            Self::One(source) => Some(source),
            Self::Many(mut named) => {
                let position = named
                    .iter()
                    .position(|entry| entry.name == "default")
                    .unwrap_or(0);
                (position < named.len()).then(|| named.swap_remove(position).template)
            }
        }
    }
}

impl ChatTokenizer {
    /// The tokenizer of a Hugging Face folder: `tokenizer.json`, with `tokenizer_config.json` and `chat_template.jinja` where
    /// they exist. `eos` are the end tokens of the model's own configuration.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the file.
    pub fn from_folder(folder: &Path, eos: &[u32]) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let bytes = read(&path)?;
        let build = |source| TokenizerError::Build {
            path: path.clone(),
            source,
        };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(build)?;
        tokenizer.with_truncation(None).map_err(build)?;
        tokenizer.with_padding(None);
        let config_path = folder.join("tokenizer_config.json");
        let config: TokenizerConfig = if config_path.is_file() {
            read_json(&config_path)?
        } else {
            TokenizerConfig::default()
        };
        let template_path = folder.join("chat_template.jinja");
        let template = if template_path.is_file() {
            Some(String::from_utf8_lossy(&read(&template_path)?).into_owned())
        } else {
            config.chat_template.and_then(ChatTemplate::into_source)
        };
        let id_of = |token: &Option<SpecialToken>| {
            token
                .as_ref()
                .and_then(|token| tokenizer.token_to_id(token.text()))
        };
        // The tokenizer's own end token comes first: it is the one that templates write.
        let mut ends: Vec<u32> = id_of(&config.eos_token).into_iter().collect();
        ends.extend(
            eos.iter()
                .filter(|&&id| Some(id) != id_of(&config.eos_token)),
        );
        let bos = id_of(&config.bos_token);
        Ok(Self {
            path: folder.to_path_buf(),
            template,
            bos,
            eos: ends,
            prefix: None,
            tokenizer,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| TokenizerError::Io {
        path: path.to_path_buf(),
        source,
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TokenizerError> {
    serde_json::from_slice(&read(path)?).map_err(|source| TokenizerError::Json {
        path: path.to_path_buf(),
        source,
    })
}
