//! How a file of a saved cache begins: magic, byte order, version.

use std::path::Path;

use super::PersistError;

/// The version of the format. Another one is refused.
pub(super) const VERSION: u32 = 2;

/// Four different bytes: read on a machine of the other order they are reversed.
const MARKER: u32 = 0x0a0b_0c0d;

/// Bytes of a frame.
pub(super) const FRAME: usize = 16;

/// The frame of a file with this magic.
pub(super) fn frame(magic: &[u8; 8]) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..8].copy_from_slice(magic);
    frame[8..12].copy_from_slice(&MARKER.to_ne_bytes());
    frame[12..].copy_from_slice(&VERSION.to_ne_bytes());
    frame
}

/// Says whether `bytes` begin as a file with this magic does.
pub(super) fn check(path: &Path, magic: &[u8; 8], bytes: &[u8]) -> Result<(), PersistError> {
    let path = path.to_path_buf();
    let Some((found, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(PersistError::Foreign { path });
    };
    let (marker, rest) = match rest.split_first_chunk::<4>() {
        Some((marker, rest)) if found == magic => (u32::from_ne_bytes(*marker), rest),
        _ => return Err(PersistError::Foreign { path }),
    };
    if marker == MARKER.swap_bytes() {
        let (expected, found) = if cfg!(target_endian = "little") {
            ("little", "big")
        } else {
            ("big", "little")
        };
        return Err(PersistError::Endianness {
            path,
            expected,
            found,
        });
    }
    let version = rest
        .first_chunk::<4>()
        .map(|bytes| u32::from_ne_bytes(*bytes));
    match version {
        Some(VERSION) if marker == MARKER => Ok(()),
        Some(found) if marker == MARKER => Err(PersistError::Version {
            path,
            expected: VERSION,
            found,
        }),
        _ => Err(PersistError::Foreign { path }),
    }
}

/// The number in the eight bytes at `at`; 0 if there are no such bytes.
pub(super) fn number(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<8>());
    bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// The hash in the sixteen bytes at `at`; 0 if there are no such bytes.
pub(super) fn hash(bytes: &[u8], at: usize) -> u128 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<16>());
    bytes.map_or(0, |bytes| u128::from_ne_bytes(*bytes))
}
