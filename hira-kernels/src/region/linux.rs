//! The system calls behind a region.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use libc::{c_int, c_void};

/// From as many bytes on anonymous memory is backed by large pages; see [`prefer_large_pages`](crate::prefer_large_pages).
const LARGE: usize = 4 << 20;

/// The system reads no more than this ahead for one piece of advice, if that is all that the device's settings allow.
const AHEAD: usize = 128 << 10;

/// Pages of this process that nobody writes once a region is made of them.
pub(super) struct Mapping {
    /// A multiple of the page size.
    start: NonNull<u8>,
    /// Bytes before the first of interest: a file can be mapped from a page on only.
    lead: usize,
    len: usize,
}

// SAFETY: the pages belong to the mapping alone, and after `bytes_mut`, which borrows it mutably, nothing writes them: what changes later is where
// their contents come from, which the system does in one step.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

pub(super) fn page_bytes() -> usize {
    // SAFETY: no pointers.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

pub(super) fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(out, offset)
}

/// Reads what the system has in memory, and says whether that was all of it. Where a file cannot say, all is read.
pub(super) fn read_cached(file: &File, out: &mut [u8], offset: u64) -> bool {
    let Ok(at) = i64::try_from(offset) else {
        return false;
    };
    let part = libc::iovec {
        iov_base: out.as_mut_ptr().cast(),
        iov_len: out.len(),
    };
    // SAFETY: one part, which is `out`, borrowed mutably.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, at, libc::RWF_NOWAIT) };
    if read < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
        return read_at(file, out, offset).is_ok();
    }
    usize::try_from(read).is_ok_and(|read| read == out.len())
}

/// Pages may be written, which nobody does: a private page that was copied for writing is how a promotion has it in memory.
const PROTECTION: c_int = libc::PROT_READ | libc::PROT_WRITE;
const FILE: c_int = libc::MAP_PRIVATE | libc::MAP_NORESERVE;

impl Mapping {
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapping = Self::new(flags, -1, 0, len)?;
        if len >= LARGE {
            mapping.advise(0..len, libc::MADV_HUGEPAGE);
        }
        Ok(mapping)
    }

    /// `len` bytes of a file that is known to have them.
    pub(super) fn of_file(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let mapping = Self::new(FILE, file.as_raw_fd(), offset, len)?;
        mapping.advise(0..len, libc::MADV_RANDOM);
        Ok(mapping)
    }

    fn new(flags: c_int, file: c_int, offset: u64, len: usize) -> io::Result<Self> {
        let lead = (offset % page_bytes() as u64) as usize;
        let mut start = NonNull::dangling();
        if len > 0 {
            let at =
                i64::try_from(offset - lead as u64).map_err(|_| io::ErrorKind::InvalidInput)?;
            let bytes = (lead + len).next_multiple_of(page_bytes());
            let null = std::ptr::null_mut();
            // SAFETY: the system chooses addresses that nothing lies at.
            let mapped = unsafe { libc::mmap(null, bytes, PROTECTION, flags, file, at) };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            start = NonNull::new(mapped.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        }
        Ok(Self { start, lead, len })
    }

    /// Bytes of the whole pages.
    fn pages(&self) -> usize {
        (self.lead + self.len).next_multiple_of(page_bytes())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: that many bytes are mapped there until the mapping is dropped, and nobody writes them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(self.lead), self.len) }
    }

    /// The bytes, while nobody else can know of them.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as in `bytes`, and the mapping is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(self.lead), self.len) }
    }

    /// Has the pages be those of a file that holds the same bytes; `offset` is a multiple of the page size. Readers find the one or the other.
    pub(super) fn replace(&self, file: &File, offset: u64) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        debug_assert_eq!(self.lead, 0, "only anonymous pages are replaced");
        let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (start, bytes) = (self.start.as_ptr().cast::<c_void>(), self.pages());
        let flags = FILE | libc::MAP_FIXED;
        // SAFETY: the addresses are this mapping's own whole pages. The system exchanges them under the lock of the address space, for which
        // a reader that faults meanwhile waits; the bytes it then finds are the same, as the caller has compared them.
        let mapped = unsafe { libc::mmap(start, bytes, PROTECTION, flags, file.as_raw_fd(), at) };
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            if !self.is_mapped() {
                // Some systems take the old pages away before they find out. No one could read these bytes again.
                std::process::abort();
            }
            return Err(error);
        }
        self.advise(0..self.len, libc::MADV_RANDOM);
        Ok(())
    }

    /// Has every page of a file copied into memory, where it is.
    pub(super) fn copy_in_place(&self) -> io::Result<()> {
        if self.advise(0..self.len, libc::MADV_POPULATE_WRITE) {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Drops the pages that lie in `range` from memory; those of a file are found there again.
    pub(super) fn discard(&self, range: Range<usize>) {
        self.advise(range, libc::MADV_DONTNEED);
    }

    pub(super) fn will_need(&self, range: Range<usize>) {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + AHEAD);
            self.advise(start..end, libc::MADV_WILLNEED);
            start = end;
        }
    }

    /// Advice for the pages that hold a part of `range`; none of the kinds used here changes what a reader finds, as pages of
    /// anonymous memory are never discarded. Says whether it was taken.
    fn advise(&self, range: Range<usize>, advice: c_int) -> bool {
        if range.is_empty() {
            return true;
        }
        let first = (self.lead + range.start) / page_bytes() * page_bytes();
        let bytes = self.lead + range.end - first;
        // SAFETY: the pages are this mapping's own.
        unsafe { libc::madvise(self.start.as_ptr().add(first).cast(), bytes, advice) == 0 }
    }

    fn is_mapped(&self) -> bool {
        self.page_states().is_some()
    }

    pub(super) fn resident_bytes(&self) -> usize {
        let states = self.page_states().unwrap_or_default();
        let resident = states.iter().filter(|&&state| state & 1 == 1).count();
        (resident * page_bytes()).min(self.len)
    }

    fn page_states(&self) -> Option<Vec<u8>> {
        if self.len == 0 {
            return Some(Vec::new());
        }
        let bytes = self.pages();
        let mut states = vec![0; bytes / page_bytes()];
        // SAFETY: asks about this mapping's own pages, one byte of answer for each.
        let found =
            unsafe { libc::mincore(self.start.as_ptr().cast(), bytes, states.as_mut_ptr()) };
        (found == 0).then_some(states)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the pages are this mapping's own, and whoever borrowed its bytes is gone.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.pages()) };
        }
    }
}
