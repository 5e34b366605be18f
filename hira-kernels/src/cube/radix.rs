//! The k-th largest of many values, by the counts of their leading bits.

use cubecl::prelude::*;

/// Buckets of one round: eight bits.
pub(super) const BUCKETS: usize = 256;

/// An unsigned integer that orders floats as their values do, but for `-0.0`, which it puts right before `0.0`.
#[cube]
pub(super) fn rank(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    select(bits >> 31u32 == 1u32, !bits, bits | 0x8000_0000u32)
}

/// The float of a [`rank`].
#[cube]
pub(super) fn of_rank(rank: u32) -> f32 {
    f32::reinterpret(select(rank >> 31u32 == 1u32, rank & 0x7fff_ffffu32, !rank))
}

/// Clears the counts of a round. [`BUCKETS`] units; ends with a barrier.
#[cube]
pub(super) fn clear(counts: &mut SharedMemory<Atomic<u32>>) {
    counts[UNIT_POS as usize].store(0u32);
    sync_cube();
}

/// Ends a round: the bucket that holds the `wanted`-th largest, and which of its values that is (1 is the largest).
///
/// `sums` has `BUCKETS` entries. The counts hold at least `wanted >= 1` values. Begins and ends with a barrier; every unit gets the same answer.
#[cube]
pub(super) fn pick(
    counts: &SharedMemory<Atomic<u32>>,
    sums: &mut SharedMemory<u32>,
    found: &mut SharedMemory<u32>,
    wanted: u32,
) -> (u32, u32) {
    sync_cube();
    let unit = UNIT_POS as usize;
    let own = counts[unit].load();
    sums[unit] = own;
    sync_cube();
    // Values in this bucket and all above it.
    let mut reach = 1usize;
    #[unroll]
    for _ in 0..8usize {
        let above = unit + reach;
        let mut add = 0u32;
        if above < BUCKETS {
            add = sums[above];
        }
        sync_cube();
        sums[unit] += add;
        sync_cube();
        reach *= 2;
    }
    let upto = sums[unit];
    if upto >= wanted && upto - own < wanted {
        found[0] = UNIT_POS;
        found[1] = wanted - (upto - own);
    }
    sync_cube();
    (found[0], found[1])
}
