//! What is in a saved cache, without loading it.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use hira_kernels::Precision;
use rayon::prelude::*;

use super::frame::VERSION;
use super::load;
use super::manifest::{HeadParts, Part};
use super::{PersistError, Verify};

/// What a folder says of the cache that was saved there last.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Inspection {
    /// Version of the format.
    pub version: u32,
    /// Saves so far.
    pub generation: u64,
    /// The model that the cache was saved for.
    pub model: String,
    /// Tokens that were named, sequence by sequence.
    pub tokens: Vec<usize>,
    /// Decoder layers.
    pub layers: usize,
    /// Sequences.
    pub sequences: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Dimension of a key.
    pub head_dim: usize,
    /// Dimension of a value.
    pub value_dim: usize,
    /// What exact rows are stored in.
    pub precision: Precision,
    /// Positions of a sequence.
    pub max_len: usize,
    /// Positions that every layer holds.
    pub len: usize,
    /// Head by head, layer by layer.
    pub heads: Vec<HeadInspection>,
    /// Files of parts.
    pub files: usize,
    /// Bytes of these files.
    pub file_bytes: u64,
    /// Whether every part was read and has the hash that it should have; else only the manifest and the headers of the files do.
    pub is_verified: bool,
}

/// What a head consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeadInspection {
    /// The sealed segments, then the open one.
    pub segments: Vec<SavedSegmentInfo>,
    /// Bytes of exact keys.
    pub key_bytes: u64,
    /// Bytes of sketches, levels, orders and product codes.
    pub index_bytes: u64,
    /// Bytes of exact values.
    pub value_bytes: u64,
    /// Bytes of block means and of what searches remember.
    pub other_bytes: u64,
}

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SavedSegmentInfo {
    /// Position of the first key.
    pub start: usize,
    /// Number of keys.
    pub len: usize,
    /// Clusters of every coarse level; `None` if the segment is open.
    pub levels: Option<Vec<usize>>,
}

impl Inspection {
    /// Looks at what was saved last in `folder`. The manifest and the header of every file are checked, and with [`Verify::All`] every part is read.
    ///
    /// # Errors
    ///
    /// [`PersistError`], as for [`HiraCache::load`](crate::HiraCache::load).
    pub fn read(folder: impl AsRef<Path>, verify: Verify) -> Result<Self, PersistError> {
        let (manifest, files) = load::open(folder.as_ref())?;
        let parts = || manifest.heads.iter().flat_map(HeadParts::parts);
        let is_verified = verify == Verify::All;
        if is_verified {
            let mut seen = HashSet::new();
            let once = parts().filter(|part| seen.insert((part.file, part.offset, part.len)));
            let once: Vec<&Part> = once.collect();
            once.into_par_iter()
                .try_for_each(|part| files.read(part, "a part").map(drop))?;
        } else {
            for part in parts() {
                files.of(part, "a part")?;
            }
        }
        let layout = &manifest.layout;
        Ok(Self {
            version: VERSION,
            generation: manifest.generation,
            tokens: manifest.tokens.iter().map(Vec::len).collect(),
            layers: layout.layers,
            sequences: layout.sequences,
            kv_heads: layout.kv_heads,
            head_dim: layout.head_dim,
            value_dim: layout.value_dim,
            precision: layout.index.precision,
            max_len: manifest.max_len,
            len: manifest.heads.iter().map(HeadParts::len).min().unwrap_or(0),
            heads: manifest.heads.iter().map(HeadInspection::of).collect(),
            files: manifest.files.len(),
            file_bytes: manifest.files.iter().map(|file| file.len).sum(),
            is_verified,
            model: manifest.model,
        })
    }
}

impl HeadInspection {
    fn of(head: &HeadParts<Part>) -> Self {
        let sealed = head.sealed.iter().map(|segment| SavedSegmentInfo {
            start: segment.start,
            len: segment.len,
            levels: Some(segment.levels.clone()),
        });
        let open = (head.open.len > 0).then_some(SavedSegmentInfo {
            start: head.open.start,
            len: head.open.len,
            levels: None,
        });
        let bytes = |parts: &[Part]| parts.iter().map(|part| part.len).sum::<u64>();
        let sealed_rows = head.sealed.iter().map(|segment| segment.rows.len);
        let sealed_parts = head.sealed.iter().map(|segment| segment.parts.len);
        Self {
            segments: sealed.chain(open).collect(),
            key_bytes: sealed_rows.sum::<u64>() + bytes(&head.open.rows),
            index_bytes: sealed_parts.sum::<u64>() + bytes(&head.open.lines) + head.open.parts.len,
            value_bytes: bytes(&head.values) + bytes(&head.last_values),
            other_bytes: bytes(&head.means) + head.searches.len,
        }
    }
}

/// A few lines of shape, tokens and bytes; with `{:#}` also one for each segment of each head.
impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "format:    version {}, save {}",
            self.version, self.generation
        )?;
        writeln!(
            f,
            "model:     {}",
            if self.model.is_empty() {
                "(none named)"
            } else {
                &self.model
            }
        )?;
        writeln!(
            f,
            "shape:     {} layers x {} sequences x {} KV heads, keys {} and values {} wide, {}",
            self.layers,
            self.sequences,
            self.kv_heads,
            self.head_dim,
            self.value_dim,
            self.precision
        )?;
        writeln!(f, "positions: {} of {}", self.len, self.max_len)?;
        writeln!(f, "tokens:    {:?} named", self.tokens)?;
        let sum = |bytes: fn(&HeadInspection) -> u64| self.heads.iter().map(bytes).sum::<u64>();
        writeln!(
            f,
            "bytes:     keys {}, values {}, index {}, other {}",
            sum(|head| head.key_bytes),
            sum(|head| head.value_bytes),
            sum(|head| head.index_bytes),
            sum(|head| head.other_bytes)
        )?;
        writeln!(f, "files:     {}, {} bytes", self.files, self.file_bytes)?;
        if let Some(head) = self.heads.first() {
            writeln!(f, "segments of the first head:")?;
            write_segments(f, head, "  ")?;
        }
        if f.alternate() {
            let per_layer = (self.sequences * self.kv_heads).max(1);
            for (i, head) in self.heads.iter().enumerate() {
                writeln!(f, "layer {}, head {}:", i / per_layer, i % per_layer)?;
                write_segments(f, head, "  ")?;
            }
        }
        write!(
            f,
            "checksums: {}",
            if self.is_verified {
                "every part has its own"
            } else {
                "only those of the manifest and the headers were checked"
            }
        )
    }
}

fn write_segments(f: &mut fmt::Formatter<'_>, head: &HeadInspection, indent: &str) -> fmt::Result {
    for segment in &head.segments {
        let end = segment.start + segment.len;
        write!(f, "{indent}positions {}..{end}, ", segment.start)?;
        match &segment.levels {
            None => writeln!(f, "open")?,
            Some(levels) if levels.is_empty() => writeln!(f, "sealed, no coarse levels")?,
            Some(levels) => writeln!(f, "sealed, clusters by level {levels:?}")?,
        }
    }
    Ok(())
}
