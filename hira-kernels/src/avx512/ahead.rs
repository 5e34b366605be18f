//! How far ahead of a scan, or of rows that are scored in order, the processor is told to fetch.

use core::arch::x86_64::{__cpuid, CpuidResult};
use std::sync::LazyLock;

use crate::Line;

/// Bytes between a line of a sketch and the one that is fetched when it is read.
const DISTANCE: usize = 16 << 10;

/// The same for rows that are scored one after the other.
const ROW_DISTANCE: usize = 8 << 10;

/// AMD's family of Zen 5 processors.
const ZEN_5: u32 = 26;

static PAYS: LazyLock<bool> = LazyLock::new(|| {
    let [vendor, version] = [0, 1].map(__cpuid);
    is_amd(vendor) && family(version) >= ZEN_5
});

/// Tiles of `stride` lines between the one that is read for a group of queries and the one that is to be fetched; `None` where the
/// processor's own fetching is the better.
///
/// Processors fetch ahead of ascending addresses, but only within a page of 4 KiB, and arithmetic waits at every new one. On Zen 5 a scan from
/// memory (D 64, G 3, tail) goes from 27 to 39 GB/s on one thread, and on each of two from 20 to 24, which is all that the memory gives. 8 KiB
/// or 32 KiB ahead, or into the second cache, gain half as much. From the second cache it takes 5 to 25 % longer. A single query, whose
/// arithmetic is short, gains nothing. On Zen 4, whose first cache is two thirds as large, every distance from 1 to 20 KiB lost 2 to 46 %.
pub(super) fn ahead_tiles(queries: usize, stride: usize) -> Option<usize> {
    let pays = queries > 1 && *PAYS;
    pays.then(|| DISTANCE.div_ceil(stride * size_of::<Line>()))
}

/// Rows of `bytes` each between the one of a run that is scored and the one that is to be fetched, likewise.
///
/// Four rows are read side by side, an order that no processor follows. On Zen 5, one thread, rows of 64 f32 from memory: from 15 to 34 GB/s (as much at half or
/// twice the distance, or if one value of each line is loaded in order before four rows are worked on), rows of 128 as before.
pub(super) fn ahead_rows(bytes: usize) -> Option<usize> {
    PAYS.then(|| ROW_DISTANCE / bytes.max(1))
}

fn is_amd(vendor: CpuidResult) -> bool {
    [vendor.ebx, vendor.edx, vendor.ecx] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes)
}

/// As the vendors define it: the base family, and where that is 15 the extended one added.
fn family(version: CpuidResult) -> u32 {
    let base = version.eax >> 8 & 0xf;
    match base {
        0xf => base + (version.eax >> 20 & 0xff),
        _ => base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(eax: u32) -> CpuidResult {
        let (ebx, ecx, edx) = (0, 0, 0);
        CpuidResult { eax, ebx, ecx, edx }
    }

    #[test]
    fn families_are_read_as_vendors_write_them() {
        // Turin, Genoa, Milan, Sapphire Rapids
        let versions = [0x00b0_0f21, 0x00a1_0f11, 0x00a0_0f11, 0x0008_06f8];
        assert_eq!(versions.map(|eax| family(version(eax))), [26, 25, 25, 6]);
    }

    #[test]
    fn a_group_is_fetched_for_where_that_pays() {
        assert_eq!(ahead_tiles(1, 17), None);
        let tiles = ahead_tiles(3, 17);
        assert!(tiles.is_none() && !*PAYS || tiles == Some(16) && *PAYS);
    }
}
