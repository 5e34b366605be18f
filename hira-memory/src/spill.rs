//! The file behind the tier below main memory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Budget, MemoryError, Tier};

/// Extents begin at multiples of this: of every page size there is.
const ALIGN: u64 = 64 << 10;

/// A file without a name that rows are written to when they leave main memory.
///
/// It is made in a folder with the first extent and is gone with the last, however the process ends: nothing is ever left behind. Clones share it.
///
/// # Examples
///
/// ```
/// use hira_memory::{Budget, Spill};
///
/// let spill = Spill::new(std::env::temp_dir(), Budget::limited(10_000));
/// let extent = spill.write(&[7; 6_000])?;
/// assert!(spill.write(&[7; 6_000]).is_err(), "the budget is a hard limit");
/// assert_eq!(spill.used(), 6_000);
/// drop(extent);
/// assert_eq!(spill.used(), 0);
/// # Ok::<(), hira_memory::MemoryError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Spill {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    budget: Budget,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    /// Where the next extent begins if no free one fits.
    end: u64,
    /// Free extents: where, and how long.
    free: Vec<(u64, u64)>,
    used: usize,
}

/// Bytes in a [`Spill`]; their room is free again when this is dropped.
#[derive(Debug)]
pub struct Extent {
    shared: Arc<Shared>,
    file: Arc<File>,
    offset: u64,
    len: usize,
}

impl Spill {
    /// A file to be made in `folder`, for as many bytes as `budget` allows.
    pub fn new(folder: impl Into<PathBuf>, budget: Budget) -> Self {
        Self {
            shared: Arc::new(Shared {
                folder: folder.into(),
                budget,
                state: Mutex::default(),
            }),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// The limit.
    pub fn budget(&self) -> Budget {
        self.shared.budget
    }

    /// Bytes of all extents.
    pub fn used(&self) -> usize {
        self.shared.state().used
    }

    /// Whether this is the file.
    pub fn is_in(&self, file: &Arc<File>) -> bool {
        let state = self.shared.state();
        state
            .file
            .as_ref()
            .is_some_and(|own| Arc::ptr_eq(own, file))
    }

    /// Makes sure that the file can be made.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Spill`] if the folder is missing or must not be written.
    pub fn open(&self) -> Result<(), MemoryError> {
        self.shared.open(&mut self.shared.state())?;
        Ok(())
    }

    /// Writes `bytes`.
    ///
    /// # Errors
    ///
    /// [`MemoryError::TierFull`] if the budget does not allow it; [`MemoryError::Spill`] if the folder is missing or must not be written, or the disk
    /// is full. Nothing is taken up then.
    pub fn write(&self, bytes: &[u8]) -> Result<Extent, MemoryError> {
        let extent = self.reserve(bytes.len())?;
        write_at(&extent.file, bytes, extent.offset).map_err(|error| self.shared.failed(&error))?;
        Ok(extent)
    }

    fn reserve(&self, len: usize) -> Result<Extent, MemoryError> {
        let mut state = self.shared.state();
        if let Err(MemoryError::BudgetExceeded {
            limit,
            used,
            requested,
        }) = self.shared.budget.check(state.used, len)
        {
            return Err(MemoryError::TierFull {
                tier: Tier::Disk,
                limit,
                used,
                requested,
            });
        }
        let file = self.shared.open(&mut state)?;
        let room = (len as u64).next_multiple_of(ALIGN);
        let fitting = state.free.iter().position(|&(_, free)| free == room);
        let offset = match fitting {
            Some(i) => state.free.swap_remove(i).0,
            None => {
                let offset = state.end;
                state.end += room;
                offset
            }
        };
        state.used += len;
        Ok(Extent {
            shared: Arc::clone(&self.shared),
            file,
            offset,
            len,
        })
    }
}

impl Shared {
    fn open(&self, state: &mut State) -> Result<Arc<File>, MemoryError> {
        if let Some(file) = &state.file {
            return Ok(Arc::clone(file));
        }
        let file = tempfile::tempfile_in(&self.folder).map_err(|error| self.failed(&error))?;
        Ok(Arc::clone(state.file.insert(Arc::new(file))))
    }

    fn failed(&self, error: &io::Error) -> MemoryError {
        MemoryError::Spill {
            folder: self.folder.clone(),
            kind: error.kind(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // every change is made whole before the next one begins
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Extent {
    /// The file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The first byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.used -= self.len;
        if state.used == 0 {
            // Nobody is in the file any more: the system takes it with its last reader.
            *state = State::default();
            return;
        }
        let room = (self.len as u64).next_multiple_of(ALIGN);
        state.free.push((self.offset, room));
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_at(_file: &File, _bytes: &[u8], _offset: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn room_is_used_again_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::new(folder.path(), Budget::limited(250_000));
        let extents: Vec<Extent> = (0..3u8)
            .map(|i| spill.write(&[i; 70_000]).unwrap())
            .collect();
        let offsets: Vec<u64> = extents.iter().map(Extent::offset).collect();
        assert!(offsets.iter().all(|offset| offset.is_multiple_of(ALIGN)));
        assert!(matches!(
            spill.write(&[9; 70_000]),
            Err(MemoryError::TierFull {
                tier: Tier::Disk,
                limit: 250_000,
                used: 210_000,
                requested: 70_000
            })
        ));
        for (i, extent) in extents.iter().enumerate() {
            let mut bytes = [9; 70_000];
            extent
                .file()
                .read_exact_at(&mut bytes, extent.offset())
                .unwrap();
            assert_eq!(bytes, [i as u8; 70_000]);
        }
        let mut extents = extents;
        drop(extents.remove(1));
        let again = spill.write(&[5; 66_000]).unwrap();
        assert_eq!((again.offset(), spill.used()), (offsets[1], 206_000));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        drop((again, extents));
        assert_eq!(spill.used(), 0);
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none");
        let spill = Spill::new(&missing, Budget::unlimited());
        let error = spill.write(&[1]).unwrap_err();
        assert_eq!(
            error,
            MemoryError::Spill {
                folder: missing,
                kind: io::ErrorKind::NotFound
            }
        );
        assert_eq!(spill.used(), 0);
        assert_eq!(spill.open().unwrap_err(), error);
    }
}
