//! Immutable bytes at a fixed address, in memory or in a file.

use std::any::Any;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(target_os = "linux")]
#[path = "region/linux.rs"]
mod mapping;
#[cfg(not(target_os = "linux"))]
#[path = "region/unsupported.rs"]
mod mapping;

use mapping::Mapping;

/// A run of immutable bytes at a fixed address whose residence can change while others read them.
///
/// The bytes begin in anonymous memory ([`from_bytes`](Self::from_bytes)) or in a file ([`map`](Self::map)). [`demote`](Self::demote) puts the
/// file behind the same addresses and frees the memory, [`promote`](Self::promote) copies them back into memory; a reader of
/// [`bytes`](Self::bytes) notices neither, except by the time that it takes. There are regions on Linux only, see
/// [`is_supported`](Self::is_supported): elsewhere every constructor says [`io::ErrorKind::Unsupported`].
///
/// # Files
///
/// Nobody may change or truncate the part of a file that a region lies in while the region lives: a reader would find other bytes, or be
/// killed by the system. Files that were unlinked when they were made, and files that are only ever replaced by renaming, keep to that. A read error of
/// the device ends a reader of `bytes` the same way, as with any mapped file; [`read_at`](Self::read_at) returns the error.
///
/// # Examples
///
/// ```no_run
/// use std::{io::Write, sync::Arc};
/// use hira_kernels::{Backing, Region};
///
/// let bytes = vec![7; 10_000];
/// let region = Region::from_bytes(&bytes)?;
/// let mut file = std::fs::File::options().read(true).write(true).create_new(true).open("rows")?;
/// file.write_all(&bytes)?;
/// region.set_backing(Backing::new(Arc::new(file), 0))?;
/// region.demote()?;
/// assert!(region.is_on_disk() && region.bytes() == bytes);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Region {
    mapping: Mapping,
    state: Mutex<State>,
    on_disk: AtomicBool,
    reads: AtomicU64,
    served: Served,
}

/// Rows that were read since the region was made.
#[derive(Debug, Default)]
struct Served {
    from_memory: AtomicU64,
    from_disk: AtomicU64,
    waited_for: AtomicU64,
}

/// How often rows of a region were read, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowReads {
    /// Rows that were read while the region was in memory.
    pub from_memory: u64,
    /// Rows that were read while it was on disk, once for all queries that wanted them together.
    pub from_disk: u64,
    /// Those of these that the system did not have in memory, so that somebody waited.
    pub waited_for: u64,
}

struct State {
    /// The bytes in a file.
    backing: Option<Backing>,
    /// Whether the file is what is mapped; it stays so after a promotion, which copies its pages in place.
    is_mapped: bool,
}

/// Where in a file the bytes of a region are.
#[derive(Clone)]
pub struct Backing {
    file: Arc<File>,
    offset: u64,
    owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl Backing {
    /// The bytes of `file` from `offset` on. See [`Region`] for what may not happen to them.
    pub fn new(file: Arc<File>, offset: u64) -> Self {
        Self {
            file,
            offset,
            owner: None,
        }
    }

    /// Keeps `owner` until no region lies there any more: what gives the room in the file back when it is dropped.
    #[must_use]
    pub fn with_owner(mut self, owner: Arc<dyn Any + Send + Sync>) -> Self {
        self.owner = Some(owner);
        self
    }

    /// The file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The byte of the file at which the region begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl Region {
    /// Whether this system has regions.
    pub const fn is_supported() -> bool {
        cfg!(target_os = "linux")
    }

    /// Bytes of a page: what a [`Backing`] that a region is demoted to has to begin at a multiple of.
    pub fn page_bytes() -> usize {
        mapping::page_bytes()
    }

    /// A copy of `bytes` in memory.
    ///
    /// # Errors
    ///
    /// What the system says: memory or the number of mappings that a process may have is exhausted.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let mut mapping = Mapping::anonymous(bytes.len())?;
        mapping.bytes_mut().copy_from_slice(bytes);
        Ok(Self::new(mapping, None))
    }

    /// `len` bytes of a file, none of which is read before it is needed.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before, or what the system says.
    pub fn map(backing: Backing, len: usize) -> io::Result<Self> {
        has_bytes(&backing, len)?;
        let mapping = Mapping::of_file(&backing.file, backing.offset, len)?;
        Ok(Self::new(mapping, Some(backing)))
    }

    fn new(mapping: Mapping, backing: Option<Backing>) -> Self {
        let is_mapped = backing.is_some();
        Self {
            mapping,
            state: Mutex::new(State { backing, is_mapped }),
            on_disk: AtomicBool::new(is_mapped),
            reads: AtomicU64::new(0),
            served: Served::default(),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.mapping.bytes()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the pages that the region takes in memory, unless it [is on disk](Self::is_on_disk).
    pub fn allocated_bytes(&self) -> usize {
        self.len().next_multiple_of(mapping::page_bytes())
    }

    /// Whether the bytes are in a file and not in memory of this process, pages that were read lately aside.
    #[inline]
    pub fn is_on_disk(&self) -> bool {
        self.on_disk.load(Ordering::Relaxed)
    }

    /// The file that holds the bytes, if there is one. A region that was promoted keeps it.
    pub fn backing(&self) -> Option<Backing> {
        self.state().backing.clone()
    }

    /// Notes a file that holds the bytes, so that the region can be demoted; one that is on disk keeps the file that it is in.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] unless it begins at a multiple of [`page_bytes`](Self::page_bytes),
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends too early, [`io::ErrorKind::InvalidData`] if it holds other bytes.
    pub fn set_backing(&self, backing: Backing) -> io::Result<()> {
        if !backing.offset.is_multiple_of(mapping::page_bytes() as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        has_bytes(&backing, self.len())?;
        let mut state = self.state();
        if state.is_mapped {
            return Ok(());
        }
        // Memory is given up for what the file says, so it has to say the same.
        let copy = Mapping::of_file(&backing.file, backing.offset, self.len())?;
        copy.will_need(0..self.len());
        if copy.bytes() != self.bytes() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        state.backing = Some(backing);
        Ok(())
    }

    /// Forgets the file of a region that is in memory and was never in the file: the room there is free for others. Says whether it did.
    pub fn drop_backing(&self) -> bool {
        let mut state = self.state();
        !state.is_mapped && state.backing.take().is_some()
    }

    /// Leaves the bytes to the file and frees their memory. Nothing happens if that is where they are.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if no file is [known](Self::set_backing), or what the system says; the bytes are then where they were.
    pub fn demote(&self) -> io::Result<()> {
        let mut state = self.state();
        if self.is_on_disk() {
            return Ok(());
        }
        if state.is_mapped {
            self.mapping.discard(0..self.len());
        } else {
            let backing = state.backing.as_ref();
            let backing = backing.ok_or(io::ErrorKind::InvalidInput)?;
            self.mapping.replace(&backing.file, backing.offset)?;
            state.is_mapped = true;
        }
        self.on_disk.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Copies the bytes into memory of this process. Nothing happens if they are there.
    ///
    /// # Errors
    ///
    /// What the system says; [`io::ErrorKind::InvalidInput`] from a Linux before 5.14. The bytes are then where they were.
    pub fn promote(&self) -> io::Result<()> {
        let _state = self.state();
        if self.is_on_disk() {
            self.mapping.will_need(0..self.len());
            if let Err(error) = self.mapping.copy_in_place() {
                self.mapping.discard(0..self.len());
                return Err(error);
            }
            self.on_disk.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Asks the system to read a range of a region on disk, without waiting for it. A hint: it changes no byte.
    ///
    /// # Panics
    ///
    /// If the range does not lie inside.
    pub fn will_need(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len());
        if self.is_on_disk() {
            self.mapping.will_need(range);
        }
    }

    /// Takes the pages that lie in a range of a region on disk out of this process's memory. The system keeps them as
    /// long as it has room; they are found again when they are read.
    ///
    /// # Panics
    ///
    /// If the range does not lie inside.
    pub fn forget(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len());
        if self.is_on_disk() {
            // With the lock: a copy in memory is not to be forgotten.
            let _state = self.state();
            if self.is_on_disk() {
                self.mapping.discard(range);
            }
        }
    }

    /// Copies the bytes from `start` on if that takes no waiting for a device, and says whether it did; from the file if that is where they
    /// are, so that none of its pages becomes this process's.
    ///
    /// # Panics
    ///
    /// If they do not lie inside.
    pub fn read_cached(&self, start: usize, out: &mut [u8]) -> bool {
        match self.file_at(start, out.len()) {
            Some((file, offset)) => mapping::read_cached(&file, out, offset),
            None => {
                out.copy_from_slice(&self.bytes()[start..start + out.len()]);
                true
            }
        }
    }

    /// Copies the bytes from `start` on as [`read_cached`](Self::read_cached) does, and waits for them.
    ///
    /// # Errors
    ///
    /// What the system says of reading.
    ///
    /// # Panics
    ///
    /// If they do not lie inside.
    pub fn read_at(&self, start: usize, out: &mut [u8]) -> io::Result<()> {
        match self.file_at(start, out.len()) {
            Some((file, offset)) => mapping::read_at(&file, out, offset)?,
            None => out.copy_from_slice(&self.bytes()[start..start + out.len()]),
        }
        Ok(())
    }

    /// Where in which file some bytes of a region on disk are.
    fn file_at(&self, start: usize, len: usize) -> Option<(Arc<File>, u64)> {
        assert!(start <= self.len() && len <= self.len() - start);
        if !self.is_on_disk() {
            return None;
        }
        let state = self.state();
        let backing = state.backing.as_ref()?;
        Some((Arc::clone(&backing.file), backing.offset + start as u64))
    }

    /// Bytes of the region that the system holds in memory: all of them, or those of a region on disk that it has read, for this process or
    /// another, and not dropped since.
    pub fn resident_bytes(&self) -> usize {
        if self.is_on_disk() {
            self.mapping.resident_bytes()
        } else {
            self.len()
        }
    }

    /// Counts rows that were read, for whoever decides about residence.
    #[inline]
    pub fn count_reads(&self, rows: usize) {
        self.reads.fetch_add(rows as u64, Ordering::Relaxed);
        if !self.is_on_disk() {
            let served = &self.served.from_memory;
            served.fetch_add(rows as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_disk_reads(&self, rows: usize, waited_for: usize) {
        let served = &self.served;
        served.from_disk.fetch_add(rows as u64, Ordering::Relaxed);
        served
            .waited_for
            .fetch_add(waited_for as u64, Ordering::Relaxed);
    }

    /// All rows that were counted since the region was made.
    pub fn row_reads(&self) -> RowReads {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RowReads {
            from_memory: load(&self.served.from_memory),
            from_disk: load(&self.served.from_disk),
            waited_for: load(&self.served.waited_for),
        }
    }

    /// Rows that were counted, older ones for less: see [`age_reads`](Self::age_reads).
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Halves what was counted so far, so that what comes counts for more.
    pub fn age_reads(&self) {
        self.reads.store(self.reads() / 2, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // every change is made whole before the next one begins
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_bytes(backing: &Backing, len: usize) -> io::Result<()> {
    let end = backing.offset.checked_add(len as u64);
    let held = backing.file.metadata()?.len();
    match end {
        Some(end) if end <= held => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

impl std::fmt::Debug for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backing")
            .field("file", &self.file)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("len", &self.len())
            .field("on_disk", &self.is_on_disk())
            .finish_non_exhaustive()
    }
}
