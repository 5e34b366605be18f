//! Saving: what is not in the folder yet is written to a new file, then a new manifest takes the place of the last one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use hira_index::{HierarchicalIndex, SavedSegment, Segment, SketchParts};
use hira_kernels::dense::RowHolder;
use hira_kernels::{Line, TILE, tile_lines};
use rayon::prelude::*;

use super::folder::{self, Writing};
use super::manifest::{Hash, HeadParts, Layout, Manifest, OpenParts, Part, SealedParts};
use super::part_file::{PAGE, PartReader, PartWriter};
use super::{PersistError, SaveOptions, SaveReport};
use crate::{HeadCache, HiraCache};

/// A part that is to be in the folder.
struct Wanted<'a> {
    hash: Hash,
    len: u64,
    /// Whether it has to begin at a page.
    is_mapped: bool,
    source: Source<'a>,
    /// Where it is already, if that is known.
    known: Option<Part>,
}

/// Where the bytes of a part are.
enum Source<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
    /// The parts of a segment, which are encoded again when they are written: nothing but the hash is kept of the first time.
    Segment(&'a Segment),
}

impl Wanted<'_> {
    fn owned(bytes: Vec<u8>) -> Self {
        Self {
            hash: Hash::of(&bytes),
            len: bytes.len() as u64,
            is_mapped: false,
            source: Source::Owned(bytes),
            known: None,
        }
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.source {
            Source::Borrowed(bytes) => Cow::Borrowed(bytes),
            Source::Owned(bytes) => Cow::Borrowed(bytes),
            Source::Segment(segment) => Cow::Owned(encoded(segment)),
        }
    }
}

fn encoded(segment: &Segment) -> Vec<u8> {
    let mut bytes = Vec::new();
    segment.parts().encode(&mut bytes);
    bytes
}

/// See [`HiraCache::save`].
pub(super) fn save(
    cache: &HiraCache,
    folder: &Path,
    options: &SaveOptions,
) -> Result<SaveReport, PersistError> {
    cache.check_on_host()?;
    let _writing = Writing::begin(folder)?;
    let base = Base::read(folder)?;
    let layout = Layout::of(cache.config());
    let heads: Vec<&HeadCache> = cache.all_heads().collect();
    let indexes: Vec<Cow<'_, HierarchicalIndex>> = heads.iter().map(|head| built(head)).collect();
    let priors = base.heads(&layout);
    let plan = |files: &HashSet<u64>| {
        let heads = heads.par_iter().zip(&indexes).enumerate();
        heads
            .map(|(i, (head, index))| plan_head(head, index, priors.get(i), files))
            .collect::<Vec<HeadParts<Wanted<'_>>>>()
    };
    let mut planned = plan(&base.files);
    let wasteful = base.wasteful(&planned);
    let mut files = base.files.clone();
    if !wasteful.is_empty() {
        // What is still of use in them is written again, so that they can go.
        files.retain(|file| !wasteful.contains(file));
        planned = plan(&files);
    }
    let generation = base.generation + 1;
    let mut store = Store {
        folder,
        generation,
        there: base.parts(&files),
        writer: None,
        report: SaveReport {
            generation,
            ..SaveReport::default()
        },
    };
    let saved = planned
        .into_iter()
        .map(|head| head.map(|wanted| store.put(&wanted)))
        .collect::<Result<Vec<HeadParts<Part>>, PersistError>>()?;
    let (written, report) = store.finish()?;
    let used: HashSet<u64> = saved
        .iter()
        .flat_map(|head| head.parts().map(|part| part.file))
        .collect();
    let mut files: Vec<_> = base.manifest.map_or_else(Vec::new, |base| base.files);
    files.extend(written);
    files.retain(|file| used.contains(&file.generation));
    let manifest = Manifest {
        generation,
        model: options.model.clone(),
        tokens: options.tokens.clone(),
        layout,
        max_len: cache.config().max_len,
        files,
        heads: saved,
    };
    if let Err(error) = manifest.write(folder) {
        if written.is_some() {
            let _removed = std::fs::remove_file(folder::part_file(folder, generation));
        }
        return Err(error);
    }
    folder::remove_others(folder, |file| used.contains(&file))?;
    for head in heads.into_iter().filter(|head| head.is_on_disk()) {
        // Rows on disk were read where they are mapped.
        head.forget(0..head.len());
    }
    Ok(report)
}

/// The index of a head without builds that are under way: these are waited for.
fn built(head: &HeadCache) -> Cow<'_, HierarchicalIndex> {
    if head.index().pending_builds() == 0 {
        return Cow::Borrowed(head.index());
    }
    let mut index = head.index().clone();
    index.finish_builds();
    Cow::Owned(index)
}

/// What is in the folder.
struct Base {
    manifest: Option<Manifest>,
    /// The generations of the files that can be used.
    files: HashSet<u64>,
    generation: u64,
}

impl Base {
    /// A state that cannot be read any more is no base. One of another version or byte order is not ours to replace.
    fn read(folder: &Path) -> Result<Self, PersistError> {
        let manifest = match Manifest::read(folder) {
            Ok(manifest) => Some(manifest),
            Err(
                PersistError::Missing { .. }
                | PersistError::Corrupt { .. }
                | PersistError::Length { .. },
            ) => None,
            Err(error) => return Err(error),
        };
        let listed = manifest.iter().flat_map(|manifest| &manifest.files);
        let files = listed
            .filter(|file| PartReader::open(folder, file).is_ok())
            .map(|file| file.generation)
            .collect();
        // Later than any file that is there: a reader of a lost manifest must not find another file under a name that it knows.
        let last = folder::generations(folder)?.into_iter().max();
        let generation = manifest.as_ref().map_or(0, |manifest| manifest.generation);
        Ok(Self {
            files,
            generation: generation.max(last.unwrap_or(0)),
            manifest,
        })
    }

    /// The heads of the last state, if it was that of such a cache.
    fn heads(&self, layout: &Layout) -> &[HeadParts<Part>] {
        match &self.manifest {
            Some(manifest) if manifest.layout == *layout => &manifest.heads,
            _ => &[],
        }
    }

    fn all(&self) -> impl Iterator<Item = &Part> {
        let heads = self.manifest.iter().flat_map(|manifest| &manifest.heads);
        heads.flat_map(HeadParts::parts)
    }

    /// The parts in `files`, by what they hold.
    fn parts(&self, files: &HashSet<u64>) -> HashMap<(Hash, u64, bool), Part> {
        let there = self.all().filter(|part| files.contains(&part.file));
        let mut parts = HashMap::new();
        for part in there {
            parts.insert((part.hash, part.len, false), *part);
            if part.offset.is_multiple_of(PAGE) {
                parts.insert((part.hash, part.len, true), *part);
            }
        }
        parts
    }

    /// The files less than half of which `planned` has a use for.
    fn wasteful(&self, planned: &[HeadParts<Wanted<'_>>]) -> HashSet<u64> {
        let there = self.parts(&self.files);
        let mut used = HashMap::new();
        let mut seen = HashSet::new();
        for wanted in planned.iter().flat_map(HeadParts::parts) {
            let key = (wanted.hash, wanted.len, wanted.is_mapped);
            if let Some(part) = wanted.known.or_else(|| there.get(&key).copied())
                && seen.insert((part.file, part.offset))
            {
                *used.entry(part.file).or_insert(0) += part.len;
            }
        }
        let files = self.manifest.iter().flat_map(|manifest| &manifest.files);
        files
            .filter(|file| {
                used.get(&file.generation)
                    .is_some_and(|used| used * 2 < file.part_bytes)
            })
            .map(|file| file.generation)
            .collect()
    }
}

/// Where parts go: to where they are, or to the new file.
struct Store<'a> {
    folder: &'a Path,
    generation: u64,
    /// By hash, length and whether it can be mapped.
    there: HashMap<(Hash, u64, bool), Part>,
    writer: Option<PartWriter>,
    report: SaveReport,
}

impl Store<'_> {
    fn put(&mut self, wanted: &Wanted<'_>) -> Result<Part, PersistError> {
        let key = (wanted.hash, wanted.len, wanted.is_mapped);
        if let Some(part) = wanted.known.or_else(|| self.there.get(&key).copied()) {
            self.report.kept_bytes += part.len;
            self.report.kept_parts += 1;
            return Ok(part);
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(PartWriter::create(self.folder, self.generation)?),
        };
        let part = writer.put(&wanted.bytes(), wanted.hash, wanted.is_mapped)?;
        self.report.written_bytes += part.len;
        self.report.written_parts += 1;
        self.there.insert(key, part);
        Ok(part)
    }

    fn finish(self) -> Result<(Option<super::manifest::PartFile>, SaveReport), PersistError> {
        let Some(writer) = self.writer else {
            return Ok((None, self.report));
        };
        let file = writer.finish()?;
        folder::sync(self.folder)?;
        Ok((Some(file), self.report))
    }
}

/// What has to be in the folder for a head; `prior` is what the last state has of it, of which `files` can be used.
fn plan_head<'a>(
    head: &'a HeadCache,
    index: &'a HierarchicalIndex,
    prior: Option<&HeadParts<Part>>,
    files: &HashSet<u64>,
) -> HeadParts<Wanted<'a>> {
    let usable = |part: &&Part| files.contains(&part.file);
    let open = index.open();
    let prior_open = prior.map(|prior| &prior.open);
    let prior_open = prior_open.filter(|prior| prior.start == open.start());
    let lines = open_lines(open);
    let dim = index.dim();
    // the last tile changes until it is full
    let tile_bytes = tile_lines(dim) * size_of::<Line>();
    let mut without_lines = open.parts();
    let mut stable = 0;
    if let Some(sketch) = &mut without_lines.sketch {
        stable = sketch.len / TILE * tile_bytes;
        sketch.lines = Cow::Borrowed(&[]);
    }
    let mut open_parts = Vec::new();
    without_lines.encode(&mut open_parts);

    let values = head.values();
    let full_runs = values.complete_runs().count();
    let last = values.last_rows();
    let last = last.map_or(&[][..], |rows| rows.as_bytes());
    // a run that was full is one part, not chunks of the next
    let prior_values = prior.filter(|prior| prior.values.len() == full_runs);
    let chunks = |prior: Option<&Vec<Part>>| -> Vec<Part> {
        let prior = prior.into_iter().flatten();
        prior.take_while(usable).copied().collect()
    };
    let mut searches = Vec::new();
    head.searches().encode(&mut searches);
    let norms = [head.max_key_norm(), head.max_value_norm()];
    HeadParts {
        sealed: index
            .sealed()
            .iter()
            .map(|segment| plan_sealed(segment))
            .collect(),
        open: OpenParts {
            start: open.start(),
            len: open.len(),
            rows: stream(
                open.keys().as_bytes(),
                usize::MAX,
                &chunks(prior_open.map(|open| &open.rows)),
            ),
            lines: stream(lines, stable, &chunks(prior_open.map(|open| &open.lines))),
            parts: Wanted::owned(open_parts),
        },
        first_value: values.first(),
        values: values
            .complete_runs()
            .map(|(rows, saved)| (rows.as_bytes(), saved))
            .map(|(bytes, saved)| Wanted {
                hash: Hash(*saved.get_or_init(|| Hash::of(bytes).0)),
                len: bytes.len() as u64,
                is_mapped: true,
                source: Source::Borrowed(bytes),
                known: None,
            })
            .collect(),
        last_values: stream(
            last,
            usize::MAX,
            &chunks(prior_values.map(|prior| &prior.last_values)),
        ),
        means: head.means().encoded_runs().map(Wanted::owned).collect(),
        searches: Wanted::owned(searches),
        norms: norms.map(f32::to_bits),
        history: head
            .history()
            .map(|history| [history.survivor_fraction, history.dropped_mass].map(f64::to_bits)),
        widening: head.widening().map(f32::to_bits),
    }
}

/// The bytes of the sketch of an open segment.
fn open_lines(open: &Segment) -> &[u8] {
    match open.parts().sketch {
        Some(SketchParts {
            lines: Cow::Borrowed(lines),
            ..
        }) => Line::bytes(lines),
        _ => &[],
    }
}

fn plan_sealed(segment: &Segment) -> SealedParts<Wanted<'_>> {
    let rows = segment.keys().as_bytes();
    let hashes = || {
        let parts = encoded(segment);
        SavedSegment {
            rows: Hash::of(rows).0,
            parts: Hash::of(&parts).0,
            parts_len: parts.len() as u64,
        }
    };
    let saved = match segment.saved() {
        Some(saved) => *saved.get_or_init(hashes),
        None => hashes(),
    };
    SealedParts {
        start: segment.start(),
        len: segment.len(),
        levels: segment.levels().iter().map(|level| level.len()).collect(),
        rows: Wanted {
            hash: Hash(saved.rows),
            len: rows.len() as u64,
            is_mapped: true,
            source: Source::Borrowed(rows),
            known: None,
        },
        parts: Wanted {
            hash: Hash(saved.parts),
            len: saved.parts_len,
            is_mapped: false,
            source: Source::Segment(segment),
            known: None,
        },
    }
}

/// Chunks of bytes that grow at their end, where those before `stable` do not change: the chunks of `prior` that they begin with, and what
/// is new.
///
/// A chunk that is not longer than all that follows is written again with it: so there are as many as the logarithm of the length, and a byte is
/// written as often at most.
fn stream<'a>(bytes: &'a [u8], stable: usize, prior: &[Part]) -> Vec<Wanted<'a>> {
    let chunk = |start: usize, end: usize| Wanted {
        hash: Hash::of(&bytes[start..end]),
        len: (end - start) as u64,
        is_mapped: false,
        source: Source::Borrowed(&bytes[start..end]),
        known: None,
    };
    let stable = stable.min(bytes.len());
    let mut kept = Vec::new();
    let mut at = 0;
    for part in prior {
        let end = usize::try_from(part.len).map_or(usize::MAX, |len| at + len);
        if end > stable {
            break;
        }
        let same = chunk(at, end);
        if same.hash != part.hash {
            break;
        }
        kept.push(Wanted {
            known: Some(*part),
            ..same
        });
        at = end;
    }
    if at < stable {
        // Every chunk stays longer than all that follows it.
        let mut start = 0;
        let too_short = kept.iter().position(|chunk| {
            let end = start + chunk.len as usize;
            let is_too_short = chunk.len <= (stable - end) as u64;
            start = if is_too_short { start } else { end };
            is_too_short
        });
        if let Some(first) = too_short {
            kept.truncate(first);
            at = start;
        }
    }
    if at < stable {
        kept.push(chunk(at, stable));
    }
    if stable < bytes.len() {
        kept.push(chunk(stable, bytes.len()));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a save of `wanted` leaves behind.
    fn saved(wanted: &[Wanted<'_>]) -> Vec<Part> {
        let part = |wanted: &Wanted<'_>| Part {
            file: 1,
            offset: 0,
            len: wanted.len,
            hash: wanted.hash,
        };
        wanted.iter().map(part).collect()
    }

    #[test]
    fn a_stream_is_written_a_few_times_and_has_few_chunks() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut prior = Vec::new();
        let mut written = 0;
        for end in (0..=bytes.len()).step_by(10) {
            let wanted = stream(&bytes[..end], end / 64 * 64, &prior);
            let whole: Vec<u8> = wanted.iter().flat_map(|w| w.bytes().into_owned()).collect();
            assert_eq!(whole, bytes[..end]);
            let new = wanted.iter().filter(|wanted| wanted.known.is_none());
            written += new.map(|wanted| wanted.len).sum::<u64>();
            assert!(wanted.len() < 16);
            prior = saved(&wanted);
        }
        // the tail of 32 bytes on average a thousand times, and the logarithm
        assert!(written < 32_000 + 14 * 10_000, "{written}");
    }

    #[test]
    fn what_was_changed_is_written_again() {
        let mut bytes = vec![3; 1000];
        let first = stream(&bytes[..900], usize::MAX, &[]);
        let prior = saved(&first);
        assert_eq!(stream(&bytes, usize::MAX, &prior)[0].known, Some(prior[0]));
        bytes[899] = 4;
        let wanted = stream(&bytes, usize::MAX, &prior);
        assert!(wanted.len() == 1 && wanted[0].known.is_none());
        let shorter = stream(&bytes[..899], usize::MAX, &prior);
        assert!(shorter.len() == 1 && shorter[0].known.is_none());
        assert!(stream(&[], usize::MAX, &prior).is_empty());
    }
}
