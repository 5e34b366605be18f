//! Files of parts: written once, one after another, and never changed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hira_kernels::{Backing, Region};
use xxhash_rust::xxh3::Xxh3;

use super::frame::{self, FRAME};
use super::manifest::{Hash, Part, PartFile};
use super::{PersistError, folder};

const MAGIC: &[u8; 8] = b"HIRAKVCP";

/// Bytes before the first part, and what parts that can be mapped begin at a multiple of.
pub(super) const PAGE: u64 = 4096;
/// What other parts begin at a multiple of.
const ALIGNMENT: u64 = 64;
/// Bytes of a part that are read at once to be checked.
const BLOCK: u64 = 1 << 20;
/// Bytes of the header that say something: frame, generation, length, digest, and the hash of these.
const HEADER: usize = FRAME + 8 + 8 + 16 + 16;

/// A file that is being written. It is removed again unless it is [finished](Self::finish).
pub(super) struct PartWriter {
    path: PathBuf,
    generation: u64,
    file: BufWriter<File>,
    at: u64,
    part_bytes: u64,
    digest: Xxh3,
    is_finished: bool,
}

impl PartWriter {
    /// A new file; what a save that was interrupted left under its name is unlinked, not overwritten.
    pub(super) fn create(folder: &Path, generation: u64) -> Result<Self, PersistError> {
        let path = folder::part_file(folder, generation);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(PersistError::io(&path)(error));
            }
            _ => {}
        }
        let file = File::create_new(&path).map_err(PersistError::io(&path))?;
        let mut writer = Self {
            path,
            generation,
            file: BufWriter::with_capacity(1 << 18, file),
            at: 0,
            part_bytes: 0,
            digest: Xxh3::new(),
            is_finished: false,
        };
        writer.pad(PAGE)?;
        Ok(writer)
    }

    /// Appends `bytes`, whose hash is `hash`, where they can be mapped if `is_mapped`.
    pub(super) fn put(
        &mut self,
        bytes: &[u8],
        hash: Hash,
        is_mapped: bool,
    ) -> Result<Part, PersistError> {
        let alignment = if is_mapped { PAGE } else { ALIGNMENT };
        let gap = self.at.next_multiple_of(alignment) - self.at;
        self.pad(gap)?;
        let part = Part {
            file: self.generation,
            offset: self.at,
            len: bytes.len() as u64,
            hash,
        };
        self.write(bytes)?;
        self.part_bytes += part.len;
        for number in [part.offset, part.len] {
            self.digest.update(&number.to_ne_bytes());
        }
        self.digest.update(&hash.0.to_ne_bytes());
        Ok(part)
    }

    /// Makes the file durable.
    pub(super) fn finish(mut self) -> Result<PartFile, PersistError> {
        let file = PartFile {
            generation: self.generation,
            len: self.at,
            part_bytes: self.part_bytes,
            digest: Hash(self.digest.digest128()),
        };
        let header = header(&file);
        let write = |writer: &mut BufWriter<File>| {
            writer.seek(SeekFrom::Start(0))?;
            writer.write_all(&header)?;
            writer.flush()?;
            writer.get_ref().sync_all()
        };
        write(&mut self.file).map_err(PersistError::io(&self.path))?;
        self.is_finished = true;
        Ok(file)
    }

    fn pad(&mut self, bytes: u64) -> Result<(), PersistError> {
        self.write(&[0; PAGE as usize][..bytes as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PersistError> {
        self.file
            .write_all(bytes)
            .map_err(PersistError::io(&self.path))?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        if !self.is_finished {
            let _removed = fs::remove_file(&self.path);
        }
    }
}

fn header(file: &PartFile) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..FRAME].copy_from_slice(&frame::frame(MAGIC));
    header[16..24].copy_from_slice(&file.generation.to_ne_bytes());
    header[24..32].copy_from_slice(&file.len.to_ne_bytes());
    header[32..48].copy_from_slice(&file.digest.0.to_ne_bytes());
    let hash = Hash::of(&header[..48]).0;
    header[48..].copy_from_slice(&hash.to_ne_bytes());
    header
}

/// A file of parts that is read.
#[derive(Debug)]
pub(super) struct PartReader {
    path: PathBuf,
    file: Arc<File>,
    len: u64,
}

impl PartReader {
    /// The file, if it is the one that the manifest means.
    pub(super) fn open(folder: &Path, expected: &PartFile) -> Result<Self, PersistError> {
        let path = folder::part_file(folder, expected.generation);
        let file = File::open(&path).map_err(PersistError::io(&path))?;
        let len = file.metadata().map_err(PersistError::io(&path))?.len();
        let mut found = [0; HEADER];
        let known = &mut found[..HEADER.min(usize::try_from(len).unwrap_or(HEADER))];
        read_at(&file, &path, 0, known)?;
        frame::check(&path, MAGIC, known)?;
        if len != expected.len {
            return Err(PersistError::Length {
                path,
                expected: expected.len,
                found: len,
            });
        }
        if found != header(expected) {
            return Err(PersistError::Corrupt {
                path,
                what: "the header",
                offset: 0,
                len: HEADER as u64,
            });
        }
        Ok(Self {
            path,
            file: Arc::new(file),
            len,
        })
    }

    fn corrupt(&self, part: &Part, what: &'static str) -> PersistError {
        PersistError::Corrupt {
            path: self.path.clone(),
            what,
            offset: part.offset,
            len: part.len,
        }
    }
}

/// The files of a manifest, open.
#[derive(Debug)]
pub(super) struct PartReaders {
    files: HashMap<u64, PartReader>,
    manifest: PathBuf,
}

impl PartReaders {
    pub(super) fn open(folder: &Path, files: &[PartFile]) -> Result<Self, PersistError> {
        let open = |file: &PartFile| Ok((file.generation, PartReader::open(folder, file)?));
        Ok(Self {
            files: files
                .iter()
                .map(open)
                .collect::<Result<_, PersistError>>()?,
            manifest: folder.join(super::manifest::MANIFEST),
        })
    }

    /// The file of a part, which lies inside of it.
    pub(super) fn of(&self, part: &Part, what: &'static str) -> Result<&PartReader, PersistError> {
        let Some(reader) = self.files.get(&part.file) else {
            return Err(PersistError::Corrupt {
                path: self.manifest.clone(),
                what: "the list of files",
                offset: part.offset,
                len: part.len,
            });
        };
        match part.offset.checked_add(part.len) {
            Some(end) if end <= reader.len => Ok(reader),
            _ => Err(reader.corrupt(part, what)),
        }
    }

    /// Overwrites `out`, which is as long as the part, with its bytes; checks them if `verify`.
    pub(super) fn read_into(
        &self,
        part: &Part,
        what: &'static str,
        out: &mut [u8],
        verify: bool,
    ) -> Result<(), PersistError> {
        let reader = self.of(part, what)?;
        read_at(&reader.file, &reader.path, part.offset, out)?;
        self.verify(part, what, out, verify)
    }

    /// The bytes of the part where they are, none of them in memory; checked if `verify`, a block at a time.
    ///
    /// Part files are never changed, and one that is unlinked stays while somebody has it open: what a [`Region`] asks of its file.
    pub(super) fn map(
        &self,
        part: &Part,
        what: &'static str,
        verify: bool,
    ) -> Result<Region, PersistError> {
        let reader = self.of(part, what)?;
        if verify {
            let mut digest = Xxh3::new();
            let mut block = vec![0; BLOCK.min(part.len) as usize];
            let mut at = 0;
            while at < part.len {
                let block = &mut block[..BLOCK.min(part.len - at) as usize];
                read_at(&reader.file, &reader.path, part.offset + at, block)?;
                digest.update(block);
                at += block.len() as u64;
            }
            if Hash(digest.digest128()) != part.hash {
                return Err(reader.corrupt(part, what));
            }
        }
        // no longer than the file is
        let len = usize::try_from(part.len).map_err(|_| reader.corrupt(part, what))?;
        let backing = Backing::new(Arc::clone(&reader.file), part.offset);
        Region::map(backing, len).map_err(PersistError::io(&reader.path))
    }

    /// The bytes of the part, checked.
    pub(super) fn read(&self, part: &Part, what: &'static str) -> Result<Vec<u8>, PersistError> {
        let reader = self.of(part, what)?;
        // no longer than the file is
        let len = usize::try_from(part.len).map_err(|_| reader.corrupt(part, what))?;
        let mut bytes = vec![0; len];
        self.read_into(part, what, &mut bytes, true)?;
        Ok(bytes)
    }

    /// Says whether `bytes` are those of the part, if that is to be known.
    pub(super) fn verify(
        &self,
        part: &Part,
        what: &'static str,
        bytes: &[u8],
        verify: bool,
    ) -> Result<(), PersistError> {
        let holds = bytes.len() as u64 == part.len && (!verify || Hash::of(bytes) == part.hash);
        if holds {
            Ok(())
        } else {
            Err(self.of(part, what)?.corrupt(part, what))
        }
    }
}

/// Reads from several threads at once: the position of the file is left as it is.
#[cfg(unix)]
fn read_at(file: &File, path: &Path, offset: u64, out: &mut [u8]) -> Result<(), PersistError> {
    use std::os::unix::fs::FileExt;
    file.read_exact_at(out, offset)
        .map_err(PersistError::io(path))
}

/// Reads from several threads at once: each opens the file for itself.
#[cfg(not(unix))]
fn read_at(_file: &File, path: &Path, offset: u64, out: &mut [u8]) -> Result<(), PersistError> {
    use std::io::Read;
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(out)
    };
    read().map_err(PersistError::io(path))
}
