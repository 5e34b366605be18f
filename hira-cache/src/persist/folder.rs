//! The folder of a saved cache: who writes to it, and which files are in it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::PersistError;

const LOCK: &str = "LOCK";
const PREFIX: &str = "parts-";
const SUFFIX: &str = ".hira";

/// The right to write to a folder, until it is dropped or the process ends, however it does.
pub(super) struct Writing {
    _lock: File,
}

impl Writing {
    /// Makes the folder if it is not there, and takes the right to write to it.
    pub(super) fn begin(folder: &Path) -> Result<Self, PersistError> {
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(PersistError::io(folder))?;
            if let Some(parent) = folder.parent().filter(|parent| parent.is_dir()) {
                sync(parent)?;
            }
        }
        let path = folder.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(PersistError::io(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(PersistError::Locked {
                path: folder.to_path_buf(),
            }),
            Err(TryLockError::Error(source)) => Err(PersistError::io(&path)(source)),
        }
    }
}

/// The file that generation `generation` wrote.
pub(super) fn part_file(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{generation:08}{SUFFIX}"))
}

/// Makes what was created, renamed and removed in the folder durable.
pub(super) fn sync(folder: &Path) -> Result<(), PersistError> {
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(PersistError::io(folder))?;
    // elsewhere a folder cannot be opened, and the system sees to it
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// The generations that files of parts are named after.
pub(super) fn generations(folder: &Path) -> Result<Vec<u64>, PersistError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(PersistError::io(folder))? {
        let name = entry.map_err(PersistError::io(folder))?.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let number = name.and_then(|name| name.strip_suffix(SUFFIX));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(found)
}

/// Removes the files of parts that are not `kept`. One that cannot be removed is tried again the next time.
pub(super) fn remove_others(folder: &Path, kept: impl Fn(u64) -> bool) -> Result<(), PersistError> {
    for generation in generations(folder)? {
        if !kept(generation) {
            let _removed = fs::remove_file(part_file(folder, generation));
        }
    }
    Ok(())
}
