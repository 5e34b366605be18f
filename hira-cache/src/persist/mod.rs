//! Caches in files: saving, loading, and looking at what was saved.
//!
//! A saved cache is a folder:
//!
//! | file | what it is |
//! |---|---|
//! | `MANIFEST` | which parts make up the state that was saved last, where each lies, and its hash; replaced by renaming |
//! | `parts-N.hira` | parts that save number `N` wrote; never changed after that, removed once no state needs them |
//! | `LOCK` | held by whoever is saving |
//!
//! # What holds whenever the process or the machine stops
//!
//! A save writes its new parts to a new file and makes it durable, then does the same with a new manifest, renames that over the last one, and makes the
//! folder durable. Until the renaming the last state is what is there; from then on the new one is, and only now are files removed that it
//! has no use for. A save that was interrupted leaves at most a file that no manifest names; the next save removes it.
//!
//! # What is written
//!
//! Parts are known by their content (XXH3, 128 bits), so a save writes what is not in the folder yet, whichever cache, fork or process put the rest
//! there. Sealed segments and full runs of values keep their hash, and are not read again. Open ones are split into chunks, of which there are as
//! many as the logarithm of their length. Where less than half of a file is still of use, that half is written again and the file goes.
//!
//! # What is read
//!
//! Loading reads everything but, if [`LoadOptions::mapped`] or a disk tier says so, the exact rows of sealed segments and full runs: these begin at pages and
//! are mapped where they are. A file that is unlinked by a later save stays for whoever has it mapped.
//!
//! # What is checked
//!
//! The manifest, the header of every file and every part have a hash; lengths are checked before anything is allocated. A flipped bit, a
//! file that was cut short or is missing, another version, byte order, model or shape is a [`PersistError`]; never another key, never a panic.

mod error;
mod folder;
mod frame;
mod inspect;
mod load;
mod manifest;
mod part_file;
mod save;

use std::path::Path;

pub use error::PersistError;
pub use inspect::{HeadInspection, Inspection, SavedSegmentInfo};

use crate::{CacheConfig, HiraCache};

/// What a saved cache says of itself beside keys and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveOptions {
    /// The model whose keys and values these are: any text, by which [`LoadOptions::model`] recognises it. Default: empty.
    pub model: String,
    /// The tokens that the cache stands for, sequence by sequence; nothing is made of them here. Default: none.
    pub tokens: Vec<Vec<u32>>,
}

impl SaveOptions {
    /// Sets [`model`](Self::model).
    #[must_use]
    pub fn with_model(mut self, model: impl Into<String>) -> Self {
        self.model = model.into();
        self
    }

    /// Sets [`tokens`](Self::tokens).
    #[must_use]
    pub fn with_tokens(mut self, tokens: Vec<Vec<u32>>) -> Self {
        self.tokens = tokens;
        self
    }
}

/// What a cache has to be to be loaded, and how far it is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The model that the cache has to be of; `None` takes any. Default: `None`.
    pub model: Option<String>,
    /// What is checked. Default: [`Verify::All`].
    pub verify: Verify,
    /// Whether complete rows stay in the files, mapped, where searches read those that they need. Default: no, they are copied into memory, which
    /// makes the first steps faster.
    ///
    /// A cache with a disk tier ([`CacheConfig::disk_path`]) maps them in any case, and moves up what its limits have room for as it is used.
    /// Without [regions](hira_kernels::Region::is_supported) they are copied. Saving there again, or removing the folder, does not disturb who has
    /// them mapped; overwriting the files does.
    pub mapped: bool,
}

impl LoadOptions {
    /// Sets [`model`](Self::model).
    #[must_use]
    pub fn with_model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Sets [`verify`](Self::verify).
    #[must_use]
    pub fn with_verify(mut self, verify: Verify) -> Self {
        self.verify = verify;
        self
    }

    /// Sets [`mapped`](Self::mapped).
    #[must_use]
    pub fn with_mapped(mut self, mapped: bool) -> Self {
        self.mapped = mapped;
        self
    }
}

/// What is checked when a cache is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verify {
    /// Every byte that is loaded.
    #[default]
    All,
    /// Everything but exact keys and values: these are trusted to be what was saved. A bit that flipped in them on the disk is then another key
    /// or value, and neither searches nor certificates know.
    Manifest,
}

/// What a save did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveReport {
    /// Number of the save.
    pub generation: u64,
    /// Parts that were written.
    pub written_parts: usize,
    /// Bytes of these.
    pub written_bytes: u64,
    /// Parts that were in the folder already.
    pub kept_parts: usize,
    /// Bytes of these.
    pub kept_bytes: u64,
}

/// A cache that was loaded, and what it was saved with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadedCache {
    /// The cache.
    pub cache: HiraCache,
    /// See [`SaveOptions::model`].
    pub model: String,
    /// See [`SaveOptions::tokens`].
    pub tokens: Vec<Vec<u32>>,
}

impl HiraCache {
    /// Saves the cache in `folder`, which is made if it is not there; what was saved there before is replaced once all of this is durable.
    ///
    /// Only what the folder does not hold yet is written: see [the module](crate::persist). The cache is not changed, and can be used while it is
    /// being saved by whoever has a clone of it.
    ///
    /// # Complexity
    ///
    /// O(bytes that are new) to write, and O(bytes that are not sealed) to read. What is being built in the background is waited for.
    ///
    /// # Errors
    ///
    /// [`PersistError::Locked`] if somebody else is saving there; [`PersistError::Version`] or another error of the manifest that is there if
    /// it is not one that this version may replace; what the system says of files and folders. The last state is then still what the folder holds.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_cache::{CacheConfig, HiraCache};
    /// use hira_cache::persist::{LoadOptions, SaveOptions};
    ///
    /// let folder = tempfile::tempdir()?;
    /// let config = CacheConfig::new(1, 1, 1, 4, 100);
    /// let mut cache = HiraCache::new(config.clone())?;
    /// cache.append(0, &[0.5; 8], &[1.0; 8])?;
    /// let options = SaveOptions::default().with_model("a model").with_tokens(vec![vec![17, 4]]);
    /// cache.save(folder.path(), &options)?;
    ///
    /// let loaded = HiraCache::load(folder.path(), config, &LoadOptions::default().with_model("a model"))?;
    /// assert_eq!((loaded.cache.len(), &loaded.tokens[0][..]), (2, &[17, 4][..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save(
        &self,
        folder: impl AsRef<Path>,
        options: &SaveOptions,
    ) -> Result<SaveReport, PersistError> {
        save::save(self, folder.as_ref(), options)
    }

    /// The cache that was saved last in `folder`, if it is one of `config`: the same bits in every key, sketch, level, norm and mean, and in
    /// whatever is computed from them or appended later.
    ///
    /// Limits, tiers, `max_len`, the kernel and [`IndexConfig::background`](hira_index::IndexConfig::background) are those of `config`;
    /// everything else of it has to be what the cache was saved with.
    ///
    /// # Complexity
    ///
    /// O(bytes), read and hashed by all threads; nothing is sketched or clustered. Rows that are [mapped](LoadOptions::mapped) are hashed only, or,
    /// with [`Verify::Manifest`], not read at all: what is then read are sketches and what is not sealed, about an eighth of an `f32` cache.
    ///
    /// # Errors
    ///
    /// [`PersistError`], which names the file or both sides of what differs.
    pub fn load(
        folder: impl AsRef<Path>,
        config: CacheConfig,
        options: &LoadOptions,
    ) -> Result<LoadedCache, PersistError> {
        load::load(folder.as_ref(), config, options)
    }
}
