//! What the tiers of a cache did.

use serde::Serialize;

/// Counts since a cache was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct TierStatistics {
    /// Bytes of rows that went down to disk.
    pub demoted_bytes: u64,
    /// Bytes of rows that came back into main memory.
    pub promoted_bytes: u64,
    /// Moves of rows that failed and left them where they were.
    pub failed_moves: u64,
    /// Bytes that the spill file holds, copies of rows in main memory included; forks share it.
    pub spilled_bytes: u64,
    /// Rows out of order (survivors, values) that were found in main memory, among those of sealed segments that are stored now.
    pub hits: u64,
    /// Such rows that were read from disk.
    pub disk_rows: u64,
    /// Those of them that the system did not have in memory, so that a step waited.
    pub stalls: u64,
}
