//! Why a cache could not be saved or loaded.

use std::io;
use std::path::{Path, PathBuf};

use hira_index::IndexError;

use crate::CacheError;

/// Errors of saving, loading and inspecting.
///
/// After an error of saving, the folder holds the state that was saved before; after one of loading there is no cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PersistError {
    /// A file or folder is not there.
    #[error("{} is missing", path.display())]
    Missing {
        /// What is missing.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system denies access to a file or folder.
    #[error("{}: access is denied", path.display())]
    Denied {
        /// What may not be accessed.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no room left on the device, or within a quota or a limit on the size of files.
    #[error("{}: there is no room to write", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Any other failure of the system.
    #[error("{}: reading or writing failed", path.display())]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else is saving to the folder.
    #[error("{} is locked: another cache is being saved there", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A file that does not begin as those of a saved cache do.
    #[error("{} is not a file of a saved cache", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A file from a machine of another byte order.
    #[error("{} is {found}-endian, expected {expected}-endian", path.display())]
    Endianness {
        /// The file.
        path: PathBuf,
        /// The order of this machine.
        expected: &'static str,
        /// That of the file.
        found: &'static str,
    },
    /// A file of another version of the format.
    #[error("{} has version {found} of the format, expected {expected}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version that this program reads and writes.
        expected: u32,
        /// That of the file.
        found: u32,
    },
    /// Bytes that are not those that were saved.
    #[error("{} is damaged: {what} of {len} bytes at byte {offset} is not what was saved", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was read.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// How long it is.
        len: u64,
    },
    /// A file that is not as long as it was saved.
    #[error("{} is {found} bytes long, expected {expected}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// How long it was when it was saved.
        expected: u64,
        /// How long it is.
        found: u64,
    },
    /// A cache of another model.
    #[error("the cache was saved for the model {found:?}, expected {expected:?}")]
    Model {
        /// The model that was asked for.
        expected: String,
        /// The model that it was saved for.
        found: String,
    },
    /// A cache of another shape, precision, block length or index.
    #[error("the cache was saved with {key} = {found}, expected {expected}")]
    Layout {
        /// The key of the configuration that differs.
        key: String,
        /// Its value in the configuration that was asked for.
        expected: String,
        /// Its value in the file.
        found: String,
    },
    /// Parts with the right checksums that do not make a cache.
    #[error("layer {layer}, head {head}: what was saved does not make a cache")]
    Inconsistent {
        /// The layer.
        layer: usize,
        /// The head of it: `sequence * kv_heads + kv_head`.
        head: usize,
        /// What should be true.
        #[source]
        source: IndexError,
    },
    /// The configuration was refused, or the budget is too small.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl PersistError {
    /// Turns what the system said of `path` into an error.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_path_buf();
            match source.kind() {
                io::ErrorKind::NotFound => Self::Missing { path, source },
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Self::Denied { path, source }
                }
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge => Self::Full { path, source },
                _ => Self::Io { path, source },
            }
        }
    }
}
