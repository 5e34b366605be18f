//! The manifest: what a saved state consists of, and where each part of it lies.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use hira_index::IndexConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use super::frame::{self, FRAME};
use super::{PersistError, folder};
use crate::CacheConfig;

/// Name of the manifest in its folder.
pub(super) const MANIFEST: &str = "MANIFEST";
/// Name under which it is written before it takes the place of the last one.
const NEXT: &str = "MANIFEST.next";

const MAGIC: &[u8; 8] = b"HIRAKVCM";
/// Bytes before the body: frame and length.
const HEAD: usize = FRAME + 8;
/// Bytes behind it: the hash of all that comes before.
const HASH: usize = 16;

/// A saved state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// How many states were saved in this folder, this one included.
    pub(super) generation: u64,
    pub(super) model: String,
    pub(super) tokens: Vec<Vec<u32>>,
    pub(super) layout: Layout,
    pub(super) max_len: usize,
    pub(super) files: Vec<PartFile>,
    /// Head by head, layer by layer.
    pub(super) heads: Vec<HeadParts<Part>>,
}

/// What has to be the same for a cache to be loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layout {
    pub(super) layers: usize,
    pub(super) sequences: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) value_dim: usize,
    pub(super) tail_block: usize,
    pub(super) windows: Vec<Option<usize>>,
    pub(super) evict_slack: usize,
    pub(super) index: IndexConfig,
}

/// A file that parts lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartFile {
    /// The generation that wrote it, which is its name.
    pub(super) generation: u64,
    pub(super) len: u64,
    /// Bytes of the parts that were written to it, without what lies between them.
    pub(super) part_bytes: u64,
    pub(super) digest: Hash,
}

/// Bytes in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PartTuple", into = "PartTuple")]
pub(super) struct Part {
    /// The generation of the file.
    pub(super) file: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) hash: Hash,
}

/// Short, because a cache has many.
type PartTuple = (u64, u64, u64, Hash);

impl From<PartTuple> for Part {
    fn from((file, offset, len, hash): PartTuple) -> Self {
        Self {
            file,
            offset,
            len,
            hash,
        }
    }
}

impl From<Part> for PartTuple {
    fn from(part: Part) -> Self {
        (part.file, part.offset, part.len, part.hash)
    }
}

/// XXH3, 128 bits, in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Hash(pub(super) u128);

impl Hash {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(xxh3_128(bytes))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        format!("{hash:?}")
    }
}

impl TryFrom<String> for Hash {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(&text, 16).map(Self)
    }
}

/// The parts of one head; `P` says what is known of each: where it lies, or what is to be written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeadParts<P> {
    pub(super) sealed: Vec<SealedParts<P>>,
    pub(super) open: OpenParts<P>,
    /// Position of the first value: those before it were evicted.
    pub(super) first_value: usize,
    /// The runs of values that take no more.
    pub(super) values: Vec<P>,
    /// The values behind them.
    pub(super) last_values: Vec<P>,
    /// The runs of block means.
    pub(super) means: Vec<P>,
    /// What searches remember.
    pub(super) searches: P,
    /// Bits of the largest norms of keys and values.
    pub(super) norms: [u32; 2],
    /// Bits of what the planner remembers.
    pub(super) history: Option<[u64; 2]>,
    pub(super) widening: Option<u32>,
}

/// A sealed segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SealedParts<P> {
    pub(super) start: usize,
    pub(super) len: usize,
    /// Coarse levels; the file of the parts has them, this is for whoever looks.
    pub(super) levels: Vec<usize>,
    pub(super) rows: P,
    pub(super) parts: P,
}

/// The open segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenParts<P> {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) rows: Vec<P>,
    /// The lines of its sketch.
    pub(super) lines: Vec<P>,
    pub(super) parts: P,
}

impl<P> HeadParts<P> {
    /// The same with every part replaced.
    pub(super) fn map<Q, E>(self, mut f: impl FnMut(P) -> Result<Q, E>) -> Result<HeadParts<Q>, E> {
        let mut all = |parts: Vec<P>| parts.into_iter().map(&mut f).collect::<Result<Vec<Q>, E>>();
        let (values, last_values) = (all(self.values)?, all(self.last_values)?);
        let (means, open_rows) = (all(self.means)?, all(self.open.rows)?);
        let lines = all(self.open.lines)?;
        Ok(HeadParts {
            sealed: self
                .sealed
                .into_iter()
                .map(|segment| {
                    Ok(SealedParts {
                        start: segment.start,
                        len: segment.len,
                        levels: segment.levels,
                        rows: f(segment.rows)?,
                        parts: f(segment.parts)?,
                    })
                })
                .collect::<Result<_, E>>()?,
            open: OpenParts {
                start: self.open.start,
                len: self.open.len,
                rows: open_rows,
                lines,
                parts: f(self.open.parts)?,
            },
            first_value: self.first_value,
            values,
            last_values,
            means,
            searches: f(self.searches)?,
            norms: self.norms,
            history: self.history,
            widening: self.widening,
        })
    }

    /// Every part.
    pub(super) fn parts(&self) -> impl Iterator<Item = &P> {
        let sealed = self.sealed.iter();
        sealed
            .flat_map(|segment| [&segment.rows, &segment.parts])
            .chain(self.rows())
            .chain(&self.open.lines)
            .chain(&self.means)
            .chain([&self.open.parts, &self.searches])
    }

    /// The exact keys of the open segment, and all exact values.
    fn rows(&self) -> impl Iterator<Item = &P> {
        let values = self.values.iter().chain(&self.last_values);
        self.open.rows.iter().chain(values)
    }

    /// Number of positions.
    pub(super) fn len(&self) -> usize {
        self.open.start.saturating_add(self.open.len)
    }
}

impl Layout {
    pub(super) fn of(config: &CacheConfig) -> Self {
        let mut index = config.index.clone();
        index.dim = config.head_dim;
        // where segments are built is no part of what they are
        index.background = false;
        Self {
            layers: config.layers,
            sequences: config.sequences,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            value_dim: config.value_dim,
            tail_block: config.tail_block,
            windows: config.windows.clone(),
            evict_slack: config.evict_slack,
            index,
        }
    }

    /// Says whether a cache of layout `found` is one of this layout, and if not, the first key that differs.
    pub(super) fn check(&self, found: &Self) -> Result<(), PersistError> {
        if self == found {
            return Ok(());
        }
        let value = |layout: &Self| serde_json::to_value(layout).unwrap_or_default();
        let (expected, found) = (value(self), value(found));
        let (key, expected, found) = difference(&expected, &found);
        Err(PersistError::Layout {
            key,
            expected,
            found,
        })
    }
}

/// The first key under which two values differ, and what is there.
fn difference(expected: &Value, found: &Value) -> (String, String, String) {
    if let (Value::Object(a), Value::Object(b)) = (expected, found) {
        let keys = a.keys().chain(b.keys());
        for key in keys {
            let (a, b) = (a.get(key), b.get(key));
            if a != b {
                let null = Value::Null;
                let (below, expected, found) = difference(a.unwrap_or(&null), b.unwrap_or(&null));
                let dot = if below.is_empty() { "" } else { "." };
                return (format!("{key}{dot}{below}"), expected, found);
            }
        }
    }
    (String::new(), expected.to_string(), found.to_string())
}

impl Manifest {
    /// The state that was saved last in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, PersistError> {
        let path = folder.join(MANIFEST);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(PersistError::io(&path))?;
        frame::check(&path, MAGIC, &bytes)?;
        let found = bytes.len() as u64;
        let body = frame::number(&bytes, FRAME);
        let expected = body.saturating_add((HEAD + HASH) as u64);
        if found != expected {
            return Err(PersistError::Length {
                path,
                expected,
                found,
            });
        }
        let corrupt = |what| PersistError::Corrupt {
            path: path.clone(),
            what,
            offset: 0,
            len: found,
        };
        let end = bytes.len() - HASH;
        if Hash::of(&bytes[..end]).0 != frame::hash(&bytes, end) {
            return Err(corrupt("the manifest"));
        }
        serde_json::from_slice(&bytes[HEAD..end]).map_err(|_| corrupt("the body of the manifest"))
    }

    /// Takes the place of the state that was saved last, at once and for good.
    pub(super) fn write(&self, folder: &Path) -> Result<(), PersistError> {
        let next = folder.join(NEXT);
        let write = || {
            let mut bytes = frame::frame(MAGIC).to_vec();
            bytes.extend_from_slice(&[0; 8]);
            serde_json::to_writer(&mut bytes, self)?;
            let body = (bytes.len() - HEAD) as u64;
            bytes[FRAME..HEAD].copy_from_slice(&body.to_ne_bytes());
            let hash = Hash::of(&bytes).0;
            bytes.extend_from_slice(&hash.to_ne_bytes());
            let mut file = File::create(&next)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        if let Err(error) = write() {
            // The last state stands all the same.
            let _removed = fs::remove_file(&next);
            return Err(PersistError::io(&next)(error));
        }
        let path = folder.join(MANIFEST);
        fs::rename(&next, &path).map_err(PersistError::io(&path))?;
        folder::sync(folder)
    }
}
