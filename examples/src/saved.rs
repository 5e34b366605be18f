//! Caches that outlive the program, and limits on what they take of main memory.

use std::fmt::Write;
use std::path::Path;

use hira_attention::HiraAttentionConfig;
use hira_cache::persist::{LoadOptions, LoadedCache, PersistError, SaveOptions, SaveReport};
use hira_cache::{CacheConfig, CacheError, HiraCache};
use hira_memory::Budget;
use sha2::{Digest, Sha256};

use crate::chat::common_prefix;
use crate::llama::{LlamaCache, LlamaError};
use crate::weights::{ModelConfig, WeightError, WeightSource};

/// The tensor that tells fine-tunes of one shape apart: short, and different in each.
const TELLING: &str = "model.norm.weight";

/// Segments are no shorter than this, whatever the budget: a step looks at each of them.
const LEAST_SEGMENT: usize = 512;

/// What a saved cache calls the length of its segments.
const SEGMENT_LEN: &str = "index.segment_len";

/// Why a cache could not be brought back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SavedError {
    /// The folder does not hold a cache of this model.
    #[error(transparent)]
    Load(#[from] PersistError),
    /// Its keys and values have no room in the cache that they are for.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The cache could not be cut to what its tokens share with the prompt.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// There are not as many tokens as the cache stands for.
    #[error("the cache holds {stored} tokens, and names {named}")]
    Tokens {
        /// Tokens of the cache.
        stored: usize,
        /// Tokens that it was saved with.
        named: usize,
    },
}

/// A name for whatever changes keys and values: the configuration and the weights, by those of the last norm.
///
/// # Errors
/// [`WeightError`] if these cannot be read.
pub fn fingerprint(source: &impl WeightSource) -> Result<String, WeightError> {
    let mut hash = Sha256::new();
    hash.update(format!("{:?}", source.config()));
    for value in source.tensor(TELLING)?.data {
        hash.update(value.to_le_bytes());
    }
    let mut name = String::new();
    for byte in &hash.finalize()[..16] {
        // writing to a string does not fail
        let _ = write!(name, "{byte:02x}");
    }
    Ok(name)
}

/// Puts the cache of a sequence into a folder: see [`HiraCache::save`].
///
/// # Errors
/// As [`HiraCache::save`].
pub fn save(
    cache: &LlamaCache,
    tokens: &[u32],
    model: &str,
    folder: &Path,
) -> Result<SaveReport, PersistError> {
    let options = SaveOptions::default()
        .with_model(model)
        .with_tokens(vec![tokens.to_vec()]);
    cache.store().save(folder, &options)
}

/// What `empty` would hold after the tokens that the cache in the folder shares with `prompt`, and how many these are: all but the last at
/// most, whose logits are needed.
///
/// # Errors
/// [`SavedError`], which names the file or both sides of what differs.
pub fn load(
    empty: &LlamaCache,
    prompt: &[u32],
    model: &str,
    folder: &Path,
) -> Result<(LlamaCache, usize), SavedError> {
    let options = LoadOptions::default().with_model(model);
    let config = empty.store().config();
    let loaded = match HiraCache::load(folder, config.clone(), &options) {
        Err(PersistError::Layout { key, found, .. }) if key == SEGMENT_LEN => {
            with_other_segments(&found, config, options, folder)?
        }
        loaded => loaded?,
    };
    let tokens = loaded.tokens.first().map_or(&[][..], Vec::as_slice);
    let stored = loaded.cache.len();
    if tokens.len() != stored {
        return Err(SavedError::Tokens {
            stored,
            named: tokens.len(),
        });
    }
    let kept = common_prefix(tokens, prompt).min(prompt.len().saturating_sub(1));
    let mut cache = LlamaCache::of(loaded.cache);
    cache.truncate(kept)?;
    Ok((cache, kept))
}

/// What was saved with segments of another length, under segments as `config` has them: a budget makes them short.
fn with_other_segments(
    found: &str,
    config: &CacheConfig,
    options: LoadOptions,
    folder: &Path,
) -> Result<LoadedCache, SavedError> {
    // Nothing of it is in memory but what was not sealed.
    let mut as_saved = CacheConfig {
        host_budget: Budget::unlimited(),
        disk_path: None,
        ..config.clone()
    };
    if let Ok(segment_len) = found.parse() {
        as_saved.index.segment_len = segment_len;
    }
    let mut loaded = HiraCache::load(folder, as_saved, &options.with_mapped(true))?;
    loaded.cache = loaded.cache.reindexed(config.clone())?;
    Ok(loaded)
}

/// The configuration with exact keys and values of at most `bytes` in main memory, and the others in a file without a name in `folder`.
///
/// The keys that are still to be sealed have to be in memory: segments are made so short that those of all layers take a quarter of the budget.
pub fn spill(
    config: HiraAttentionConfig,
    bytes: usize,
    folder: &Path,
    model: &ModelConfig,
) -> HiraAttentionConfig {
    let row = 2 * model.head_dim * config.precision.bytes();
    let token = model.num_hidden_layers * model.num_key_value_heads * row;
    let segment = bytes / 4 / token.max(1) / LEAST_SEGMENT * LEAST_SEGMENT;
    let segment_len = segment.max(LEAST_SEGMENT).min(config.segment_len);
    HiraAttentionConfig {
        segment_len,
        ..config.with_host_budget(bytes).with_disk_path(folder)
    }
}
