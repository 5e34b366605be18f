use std::path::Path;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    Tokenizer,
};

use super::{ChatTokenizer, TokenizerError};
use crate::weights::gguf::{GgufError, Metadata};

/// Token types in `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const NORMAL: i64 = 1;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
}

/// How GPT-2 splits a text into words. Runs of white space at the end of a match leave their last character to the next word.
const GPT2_WORDS: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The successive splits of each supported `tokenizer.ggml.pre`.
fn splits(pre: &str) -> Option<&'static [&'static str]> {
    match pre {
        "gpt-2" => Some(&[GPT2_WORDS]),
        "smollm" => Some(&[r"\p{N}", GPT2_WORDS]),
        "llama-bpe" | "llama-v3" | "llama3" => Some(&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]),
        "qwen2" => Some(&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]),
        "default" => Some(&[
            r"[\p{P}\$\+<=>\^~\|]+",
            GPT2_WORDS,
            r"\p{N}+",
            "[0-9][0-9][0-9]",
        ]),
        _ => None,
    }
}

/// The vocabulary of a GGUF file.
struct Vocabulary<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    tokens: &'a [String],
    types: Vec<i64>,
}

impl ChatTokenizer {
    /// The tokenizer inside a GGUF file; `path` names the file in messages.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the file and the metadata key.
    pub fn from_gguf(path: &Path, metadata: &Metadata) -> Result<Self, TokenizerError> {
        let vocabulary = Vocabulary::read(path, metadata)?;
        let model = vocabulary.text("tokenizer.ggml.model")?;
        let model = model.ok_or_else(|| vocabulary.missing("tokenizer.ggml.model"))?;
        let pre = vocabulary.text("tokenizer.ggml.pre")?.unwrap_or("default");
        let mut tokenizer = match model {
            "gpt2" => vocabulary.byte_level(pre)?,
            "llama" => vocabulary.sentence_piece()?,
            found => {
                return Err(vocabulary.unsupported(
                    "tokenizer.ggml.model",
                    found,
                    "gpt2 and llama",
                ));
            }
        };
        vocabulary.add_special_tokens(&mut tokenizer);
        let bos = vocabulary.token_id("tokenizer.ggml.bos_token_id")?;
        let mut eos: Vec<u32> = vocabulary
            .token_id("tokenizer.ggml.eos_token_id")?
            .into_iter()
            .collect();
        let turn = vocabulary.token_id("tokenizer.ggml.eot_token_id")?;
        eos.extend(turn.filter(|id| !eos.contains(id)));
        // Files from before the flag was written rely on these defaults.
        let adds_bos = model == "llama" || matches!(pre, "llama-bpe" | "llama-v3" | "llama3");
        let adds_bos = vocabulary
            .bool("tokenizer.ggml.add_bos_token")?
            .unwrap_or(adds_bos);
        let template = vocabulary
            .text("tokenizer.chat_template")?
            .map(str::to_owned);
        Ok(Self {
            tokenizer,
            path: path.to_path_buf(),
            template,
            bos,
            eos,
            prefix: bos.filter(|_| adds_bos),
        })
    }
}

impl<'a> Vocabulary<'a> {
    fn read(path: &'a Path, metadata: &'a Metadata) -> Result<Self, TokenizerError> {
        let gguf = |source| TokenizerError::Gguf {
            path: path.to_path_buf(),
            source,
        };
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata.texts(key).map_err(gguf)?;
        let tokens = tokens.ok_or_else(|| TokenizerError::MissingKey {
            path: path.to_path_buf(),
            key,
        })?;
        let key = "tokenizer.ggml.token_type";
        let types = metadata.integers(key).map_err(gguf)?;
        let types = types.unwrap_or_else(|| vec![token_type::NORMAL; tokens.len()]);
        let vocabulary = Self {
            path,
            metadata,
            tokens,
            types,
        };
        vocabulary.check_length(key, vocabulary.types.len())?;
        Ok(vocabulary)
    }

    /// A byte-level BPE tokenizer, as GPT-2, Llama 3, Qwen2 and SmolLM2 use.
    fn byte_level(&self, pre: &str) -> Result<Tokenizer, TokenizerError> {
        let build = |source| TokenizerError::Build {
            path: self.path.to_path_buf(),
            source,
        };
        let supported = "gpt-2, smollm, llama-bpe, qwen2 and default";
        let patterns =
            splits(pre).ok_or_else(|| self.unsupported("tokenizer.ggml.pre", pre, supported))?;
        let merges = self
            .metadata
            .texts("tokenizer.ggml.merges")
            .map_err(|source| self.wrong_type(source))?;
        let merges = merges.ok_or_else(|| self.missing("tokenizer.ggml.merges"))?;
        let merges = merges
            .iter()
            .enumerate()
            .map(|(index, merge)| self.merge(index, merge))
            .collect::<Result<_, _>>()?;
        let model = BPE::builder()
            .vocab_and_merges(self.ids(), merges)
            // Llama 3 has whole words in its vocabulary that its merges do not reach.
            .ignore_merges(pre.starts_with("llama"))
            .build()
            .map_err(build)?;
        let mut tokenizer = Tokenizer::new(model);
        if pre == "qwen2" {
            tokenizer.with_normalizer(Some(NFC));
        }
        let mut stages: Vec<PreTokenizerWrapper> = Vec::with_capacity(patterns.len() + 1);
        for pattern in patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            stages.push(
                Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                    .map_err(build)?
                    .into(),
            );
        }
        stages.push(ByteLevel::new(false, false, false).into());
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(stages)));
        tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
        Ok(tokenizer)
    }

    /// A SentencePiece tokenizer, as Llama 2, Mistral and TinyLlama use: BPE over characters whose merges follow the tokens'
    /// scores, with bytes for characters that are not in the vocabulary.
    fn sentence_piece(&self) -> Result<Tokenizer, TokenizerError> {
        let build = |source| TokenizerError::Build {
            path: self.path.to_path_buf(),
            source,
        };
        let key = "tokenizer.ggml.scores";
        let scores = self
            .metadata
            .floats(key)
            .map_err(|source| self.wrong_type(source))?;
        let scores = scores.ok_or_else(|| self.missing(key))?;
        self.check_length(key, scores.len())?;
        let mut builder = BPE::builder()
            .vocab_and_merges(self.ids(), self.merges_by_score(scores))
            .byte_fallback(true)
            .fuse_unk(true);
        if let Some(id) = self.token_id("tokenizer.ggml.unknown_token_id")? {
            builder = builder.unk_token(self.tokens[id as usize].clone());
        }
        let mut tokenizer = Tokenizer::new(builder.build().map_err(build)?);
        let adds_space = self
            .bool("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true);
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        let mut decoders: Vec<DecoderWrapper> = vec![
            Replace::new("▁", " ").map_err(build)?.into(),
            ByteFallback::new().into(),
            Fuse::new().into(),
        ];
        if adds_space {
            normalizers.push(Prepend::new("▁".to_owned()).into());
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        normalizers.push(Replace::new(" ", "▁").map_err(build)?.into());
        tokenizer.with_normalizer(Some(Normalizers::new(normalizers)));
        tokenizer.with_decoder(Some(Decoders::new(decoders)));
        Ok(tokenizer)
    }

    /// Every way to make a token of two others, best score first; ways to make the same token stay together, shorter first
    /// parts first.
    fn merges_by_score(&self, scores: &[f64]) -> Merges {
        let ids = self.ids();
        let mut merges = Vec::new();
        for ((token, kind), score) in self.tokens.iter().zip(&self.types).zip(scores) {
            if *kind != token_type::NORMAL {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if ids.contains_key(left) && ids.contains_key(right) {
                    merges.push((*score, ids[token], left, right));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        merges
            .into_iter()
            .map(|(_, _, left, right)| (left.to_owned(), right.to_owned()))
            .collect()
    }

    /// Control tokens are never part of a word; user-defined ones neither, but they are shown.
    fn add_special_tokens(&self, tokenizer: &mut Tokenizer) {
        let of_type = |wanted: i64, special: bool| -> Vec<AddedToken> {
            let tokens = self
                .tokens
                .iter()
                .zip(&self.types)
                .filter(|(_, kind)| **kind == wanted);
            tokens
                .map(|(text, _)| AddedToken::from(text.clone(), special).normalized(false))
                .collect()
        };
        tokenizer.add_special_tokens(&of_type(token_type::CONTROL, true));
        tokenizer.add_tokens(&of_type(token_type::USER_DEFINED, false));
    }

    fn ids(&self) -> Vocab {
        self.tokens.iter().cloned().zip(0..).collect()
    }

    fn merge(&self, index: usize, merge: &str) -> Result<(String, String), TokenizerError> {
        match merge.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => {
                Ok((left.to_owned(), right.to_owned()))
            }
            _ => Err(TokenizerError::Merge {
                path: self.path.to_path_buf(),
                index,
                merge: merge.to_owned(),
            }),
        }
    }

    fn token_id(&self, key: &'static str) -> Result<Option<u32>, TokenizerError> {
        let Some(id) = self
            .metadata
            .unsigned(key)
            .map_err(|source| self.wrong_type(source))?
        else {
            return Ok(None);
        };
        match u32::try_from(id) {
            Ok(short) if (short as usize) < self.tokens.len() => Ok(Some(short)),
            _ => Err(TokenizerError::TokenId {
                path: self.path.to_path_buf(),
                key,
                id,
                tokens: self.tokens.len(),
            }),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, TokenizerError> {
        self.metadata
            .text(key)
            .map_err(|source| self.wrong_type(source))
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, TokenizerError> {
        self.metadata
            .bool(key)
            .map_err(|source| self.wrong_type(source))
    }

    fn check_length(&self, key: &'static str, received: usize) -> Result<(), TokenizerError> {
        let expected = self.tokens.len();
        if received == expected {
            return Ok(());
        }
        Err(TokenizerError::Length {
            path: self.path.to_path_buf(),
            key,
            expected,
            received,
        })
    }

    fn missing(&self, key: &'static str) -> TokenizerError {
        TokenizerError::MissingKey {
            path: self.path.to_path_buf(),
            key,
        }
    }

    fn wrong_type(&self, source: GgufError) -> TokenizerError {
        TokenizerError::Gguf {
            path: self.path.to_path_buf(),
            source,
        }
    }

    fn unsupported(
        &self,
        key: &'static str,
        found: &str,
        supported: &'static str,
    ) -> TokenizerError {
        TokenizerError::Kind {
            path: self.path.to_path_buf(),
            key,
            found: found.to_owned(),
            supported,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn words(pre: &str, line: &str) -> Vec<String> {
        let mut text = PreTokenizedString::from(line);
        for pattern in splits(pre).unwrap() {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
            split.pre_tokenize(&mut text).unwrap();
        }
        let pieces = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces
            .into_iter()
            .map(|(piece, ..)| piece.to_owned())
            .collect()
    }

    /// Worked out by hand from the published patterns.
    #[test]
    fn each_family_splits_its_own_way() {
        let line = "I'LL pay 12345 €!\n\n  now-ish";
        assert_eq!(
            words("gpt-2", line),
            [
                "I", "'", "LL", " pay", " 12345", " €!", "\n\n ", " now", "-", "ish"
            ]
        );
        assert_eq!(
            words("smollm", line),
            [
                "I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", " €!", "\n\n ", " now", "-",
                "ish"
            ]
        );
        assert_eq!(
            words("llama-bpe", line),
            [
                "I",
                "'LL",
                " pay",
                " ",
                "123",
                "45",
                " €!\n\n",
                " ",
                " now",
                "-ish"
            ]
        );
        assert_eq!(
            words("qwen2", line),
            [
                "I",
                "'LL",
                " pay",
                " ",
                "1",
                "2",
                "3",
                "4",
                "5",
                " €!\n\n",
                " ",
                " now",
                "-ish"
            ]
        );
        assert_eq!(
            words("default", "it's 12345 ok."),
            ["it", "'", "s", " ", "123", "45", " ok", "."]
        );
        assert!(splits("tekken").is_none());
    }
}
