//! Loading: the manifest, then every part that it names, checked and put together.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use hira_index::{HierarchicalIndex, IndexConfig, IndexError, Segment, SegmentParts};
use hira_kernels::{Line, Region, StoredRows, StoredVec, TILE, tile_lines};
use hira_search::SearchHistory;
use rayon::prelude::*;

use super::manifest::{Hash, HeadParts, Layout, Manifest, OpenParts, Part, SealedParts};
use super::part_file::PartReaders;
use super::{LoadOptions, LoadedCache, PersistError, Verify};
use crate::cache::RestoreFault;
use crate::head::HeadState;
use crate::{BlockMeans, CacheConfig, HeadCache, HiraCache, SparseHistory, ValueStore};

/// Times that a state is read again because another has taken its place in the meantime.
const TRIES: usize = 16;

const ROWS: &str = "the keys of a segment";
const PARTS: &str = "the description of a segment";
const LINES: &str = "the sketch of the open segment";
const VALUES: &str = "a run of values";
const MEANS: &str = "a run of block means";
const SEARCHES: &str = "what searches remember";

/// The state that was saved last, with its files open: they stay readable when later states are saved.
pub(super) fn open(folder: &Path) -> Result<(Manifest, PartReaders), PersistError> {
    let mut manifest = Manifest::read(folder)?;
    for _ in 0..TRIES {
        let missing = match PartReaders::open(folder, &manifest.files) {
            Err(error @ PersistError::Missing { .. }) => error,
            opened => return Ok((manifest, opened?)),
        };
        let later = Manifest::read(folder)?;
        if later.generation == manifest.generation {
            return Err(missing);
        }
        manifest = later;
    }
    Err(PersistError::Locked {
        path: folder.to_path_buf(),
    })
}

/// See [`HiraCache::load`].
pub(super) fn load(
    folder: &Path,
    config: CacheConfig,
    options: &LoadOptions,
) -> Result<LoadedCache, PersistError> {
    config.validate()?;
    let (manifest, files) = open(folder)?;
    if let Some(expected) = &options.model
        && *expected != manifest.model
    {
        return Err(PersistError::Model {
            expected: expected.clone(),
            found: manifest.model,
        });
    }
    Layout::of(&config).check(&manifest.layout)?;
    let cache = restore(config, &manifest, &files, options)?;
    Ok(LoadedCache {
        cache,
        model: manifest.model,
        tokens: manifest.tokens,
    })
}

/// The cache of a manifest whose layout is that of `config`.
fn restore(
    config: CacheConfig,
    manifest: &Manifest,
    files: &PartReaders,
    options: &LoadOptions,
) -> Result<HiraCache, PersistError> {
    let longest = manifest.heads.iter().map(HeadParts::len).max();
    let longest = longest.unwrap_or(0);
    if longest > config.max_len {
        return Err(PersistError::Layout {
            key: "len".into(),
            expected: format!("at most max_len, {}", config.max_len),
            found: longest.to_string(),
        });
    }
    let heads = config.layers * config.sequences * config.kv_heads;
    if manifest.heads.len() != heads {
        return Err(PersistError::Layout {
            key: "heads".into(),
            expected: heads.to_string(),
            found: manifest.heads.len().to_string(),
        });
    }
    let mapped = Region::is_supported() && (options.mapped || config.disk_path.is_some());
    let bytes = manifest.heads.iter().flat_map(HeadParts::parts);
    let bytes = bytes.fold(0u64, |sum, part| sum.saturating_add(part.len));
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    config
        .budget
        .check(0, bytes)
        .map_err(crate::CacheError::from)?;
    let loader = Loader {
        config: &config,
        files,
        verify: options.verify == Verify::All,
        mapped,
    };
    let segments = loader.segments(&manifest.heads)?;
    let heads = manifest.heads.par_iter().enumerate();
    let heads = heads.map(|(i, head)| {
        let per_layer = config.sequences * config.kv_heads;
        let window = config.window(i / per_layer).map(|window| window.len);
        loader
            .head(head, window, &segments)
            .map_err(|error| match error {
                HeadError::Read(error) => error,
                HeadError::Parts(source) => PersistError::Inconsistent {
                    layer: i / per_layer,
                    head: i % per_layer,
                    source,
                },
            })
    });
    let heads = heads.collect::<Result<Vec<HeadCache>, PersistError>>()?;
    HiraCache::restore(config, heads).map_err(|fault| match fault {
        RestoreFault::Cache(error) => error.into(),
        RestoreFault::Lengths { layer } => PersistError::Inconsistent {
            layer,
            head: 0,
            source: broken("all heads of a sequence have the same length"),
        },
    })
}

/// What is wrong with a head.
enum HeadError {
    Read(PersistError),
    Parts(IndexError),
}

impl From<PersistError> for HeadError {
    fn from(error: PersistError) -> Self {
        Self::Read(error)
    }
}

impl From<IndexError> for HeadError {
    fn from(error: IndexError) -> Self {
        Self::Parts(error)
    }
}

fn broken(what: &'static str) -> IndexError {
    IndexError::Snapshot { what }
}

/// Sealed segments by the hashes of their rows and parts: those that several sequences share are shared again.
type Segments = HashMap<(Hash, Hash), Arc<Segment>>;

struct Loader<'a> {
    config: &'a CacheConfig,
    files: &'a PartReaders,
    /// Whether exact rows are checked; everything else always is.
    verify: bool,
    /// Whether rows that nobody will append to stay in the files.
    mapped: bool,
}

impl Loader<'_> {
    fn segments(&self, heads: &[HeadParts<Part>]) -> Result<Segments, PersistError> {
        let per_layer = self.config.sequences * self.config.kv_heads;
        let all = heads.iter().enumerate();
        let all = all.flat_map(|(i, head)| head.sealed.iter().map(move |segment| (i, segment)));
        let unique: HashMap<(Hash, Hash), (usize, &SealedParts<Part>)> = all
            .map(|(i, segment)| ((segment.rows.hash, segment.parts.hash), (i, segment)))
            .collect();
        let unique: Vec<_> = unique.into_iter().collect();
        let loaded = unique.into_par_iter().map(|(hashes, (i, parts))| {
            let window = self.config.window(i / per_layer).map(|window| window.len);
            let segment = self.segment(parts, window).map_err(|error| match error {
                HeadError::Read(error) => error,
                HeadError::Parts(source) => PersistError::Inconsistent {
                    layer: i / per_layer,
                    head: i % per_layer,
                    source,
                },
            })?;
            Ok((hashes, Arc::new(segment)))
        });
        loaded.collect()
    }

    fn segment(
        &self,
        parts: &SealedParts<Part>,
        window: Option<usize>,
    ) -> Result<Segment, HeadError> {
        let bytes = self.files.read(&parts.parts, PARTS)?;
        let decoded = SegmentParts::decode(&bytes)?;
        let rows = self.rows(&parts.rows, ROWS, self.config.head_dim)?;
        let segment = Segment::restore(&self.config.index_of(window), rows, decoded)?;
        if let Some(saved) = segment.saved()
            && self.verify
        {
            saved.get_or_init(|| hira_index::SavedSegment {
                rows: parts.rows.hash.0,
                parts: parts.parts.hash.0,
                parts_len: parts.parts.len,
            });
        }
        Ok(segment)
    }

    /// Exact rows of `dim` values that nobody will append to.
    fn rows(&self, part: &Part, what: &'static str, dim: usize) -> Result<StoredRows, HeadError> {
        let precision = self.config.index.precision;
        let size = precision.bytes();
        if !self.mapped || part.len == 0 || !part.offset.is_multiple_of(size as u64) {
            return Ok(self
                .chunks(std::slice::from_ref(part), what, dim, 0)?
                .into());
        }
        let region = self.files.map(part, what, self.verify)?;
        if !region.len().is_multiple_of(size * dim) {
            return Err(broken("its rows are whole").into());
        }
        let values = region.len() / size;
        let rows = StoredRows::in_region(Arc::new(region), 0, values, precision);
        Ok(rows.ok_or(broken("its rows lie where rows can lie"))?)
    }

    /// Exact rows of `dim` values in chunks, with room for `room` rows in all.
    fn chunks(
        &self,
        chunks: &[Part],
        what: &'static str,
        dim: usize,
        room: usize,
    ) -> Result<StoredVec, HeadError> {
        let precision = self.config.index.precision;
        let size = precision.bytes();
        let bytes = self.len_of(chunks, what)?;
        if !bytes.is_multiple_of(size * dim) {
            return Err(broken("its rows are whole").into());
        }
        let room = (room * dim).min(2 * bytes / size);
        let mut rows = StoredVec::zeroed(precision, bytes / size, room);
        self.read_chunks(chunks, what, rows.as_bytes_mut(), self.verify)?;
        Ok(rows)
    }

    /// Bytes of chunks, all of which lie in their files: no more is allocated than there is.
    fn len_of(&self, chunks: &[Part], what: &'static str) -> Result<usize, HeadError> {
        let mut bytes = 0usize;
        for part in chunks {
            self.files.of(part, what)?;
            let len = usize::try_from(part.len).ok();
            let sum = len.and_then(|len| bytes.checked_add(len));
            bytes = sum.ok_or(broken("its lengths fit this machine"))?;
        }
        Ok(bytes)
    }

    fn read_chunks(
        &self,
        chunks: &[Part],
        what: &'static str,
        mut out: &mut [u8],
        verify: bool,
    ) -> Result<(), HeadError> {
        for part in chunks {
            let len = usize::try_from(part.len).unwrap_or(usize::MAX);
            let (now, later) = out
                .split_at_mut_checked(len)
                .ok_or(broken("its chunks are complete"))?;
            self.files.read_into(part, what, now, verify)?;
            out = later;
        }
        Ok(())
    }

    fn head(
        &self,
        head: &HeadParts<Part>,
        window: Option<usize>,
        segments: &Segments,
    ) -> Result<HeadCache, HeadError> {
        let config = self.config.index_of(window);
        let sealed = head.sealed.iter();
        let sealed: Vec<Arc<Segment>> = sealed
            .filter_map(|parts| segments.get(&(parts.rows.hash, parts.parts.hash)))
            .cloned()
            .collect();
        let open = self.open(&head.open, &config)?;
        let values = self.values(head, &config)?;
        let index = HierarchicalIndex::restore(config, self.config.kernel, sealed, Some(open))?;
        let means = self.means(head, values.len())?;
        let searches = self.files.read(&head.searches, SEARCHES)?;
        let searches =
            SearchHistory::decode(&searches).ok_or(broken("what searches remember can be read"))?;
        let [max_key_norm, max_value_norm] = head.norms.map(f32::from_bits);
        let restored = HeadCache::restore(HeadState {
            index,
            values,
            means,
            max_key_norm,
            max_value_norm,
            history: head.history.map(|[survivors, dropped]| SparseHistory {
                survivor_fraction: f64::from_bits(survivors),
                dropped_mass: f64::from_bits(dropped),
            }),
            widening: head.widening.map(f32::from_bits),
            searches,
        });
        restored.ok_or(broken("there is a value for every key").into())
    }

    fn open(&self, parts: &OpenParts<Part>, config: &IndexConfig) -> Result<Segment, HeadError> {
        let bytes = self.files.read(&parts.parts, PARTS)?;
        let mut decoded = SegmentParts::decode(&bytes)?;
        if (decoded.start, decoded.len) != (parts.start, parts.len) || decoded.is_sealed {
            return Err(broken("the open segment is the one that is listed").into());
        }
        let dim = self.config.head_dim;
        if let Some(sketch) = &mut decoded.sketch {
            let tiles = sketch.len.div_ceil(TILE);
            let bytes = self.len_of(&parts.lines, LINES)?;
            if tiles.checked_mul(tile_lines(dim) * size_of::<Line>()) != Some(bytes) {
                return Err(broken("the sketch has the lines of its tiles").into());
            }
            let mut lines = vec![Line::EMPTY; bytes / size_of::<Line>()];
            self.read_chunks(&parts.lines, LINES, Line::bytes_mut(&mut lines), true)?;
            sketch.lines = lines.into();
        }
        let rows = self.chunks(&parts.rows, ROWS, dim, room(parts.len))?;
        Ok(Segment::restore(config, rows, decoded)?)
    }

    fn values(
        &self,
        head: &HeadParts<Part>,
        config: &IndexConfig,
    ) -> Result<ValueStore, HeadError> {
        let dim = self.config.value_dim;
        let full = head.values.iter().map(|part| self.rows(part, VALUES, dim));
        let full = full.collect::<Result<Vec<StoredRows>, HeadError>>()?;
        let hashes = head.values.iter();
        let hashes = hashes.map(|part| self.verify.then_some(part.hash.0));
        let full: Vec<_> = full.into_iter().zip(hashes).collect();
        let run_len = ValueStore::run_len_of(config);
        let len = self.len_of(&head.last_values, VALUES)?;
        let last_len = len / (dim * self.config.index.precision.bytes());
        let last = self.chunks(&head.last_values, VALUES, dim, room(last_len).min(run_len))?;
        let place = (run_len, head.first_value);
        ValueStore::restore(dim, place, config.precision, full, last)
            .ok_or(broken("runs of values are as long as they should be").into())
    }

    fn means(&self, head: &HeadParts<Part>, len: usize) -> Result<BlockMeans, HeadError> {
        let runs = head.means.iter().map(|part| self.files.read(part, MEANS));
        let runs = runs.collect::<Result<Vec<Vec<u8>>, PersistError>>()?;
        BlockMeans::restore(self.config.tail_block, self.config.value_dim, len, &runs)
            .ok_or(broken("there is a mean for every block of values").into())
    }
}

/// Room for `len` rows and some more: the first append is not to copy all of them.
fn room(len: usize) -> usize {
    len + len / 16 + TILE
}
