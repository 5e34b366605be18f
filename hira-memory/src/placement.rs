//! Which exact rows stay in main memory, and which go down a tier.

use std::fmt::Debug;

use crate::{Part, Tier};

/// Rows that are moved as a whole: the keys, or the values, of a run of positions of one head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowRun {
    /// [`Part::Keys`] or [`Part::Values`].
    pub part: Part,
    /// The position of the first row.
    pub start: usize,
    /// Bytes in main memory, if that is where they are.
    pub bytes: usize,
    /// Rows that steps have read, older ones for less.
    pub reads: u64,
    /// Where they are.
    pub tier: Tier,
    /// Whether they hold rows that every step attends to: sinks or the recent window. These are the last to go.
    pub pinned: bool,
}

/// How full a tier is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of exact rows in main memory.
    pub used: usize,
    /// Bytes that there may be.
    pub limit: usize,
}

/// Says where the parts of a cache lie. [`MemoryPolicy`](crate::MemoryPolicy) is one; `examples/own_policy.rs` shows one of one's own.
///
/// A placement changes speed and memory, never an answer. Whatever it says, budgets hold.
pub trait Placement: Debug + Send + Sync {
    /// The tier on which `part` should lie, of those that the machine has (in any order).
    fn place(&self, part: Part, tiers: &[Tier]) -> Tier;

    /// What it is worth to have `rows` in main memory, where those worth most are kept; rows of the same worth are kept from the latest on.
    ///
    /// Rows that are to move up have to be worth half as much again as those that would go down for them, so that they do not change places at
    /// every step.
    fn worth(&self, rows: &RowRun) -> f64;

    /// Bytes of exact rows to be had in main memory, at most `usage.limit`; all that is allowed unless this says otherwise.
    fn room(&self, usage: Usage) -> usize {
        usage.limit
    }
}

/// How much more rows have to be worth to take the place of others.
const ADVANTAGE: f64 = 1.5;

/// The tier of each of `rows`, pinned ones first and then those worth most, as long as there is `room` in main memory.
///
/// `tiers` are those that the machine has; without a disk everything stays where it is.
///
/// # Complexity
///
/// O(n log n).
pub fn arrange(policy: &dyn Placement, rows: &[RowRun], room: usize, tiers: &[Tier]) -> Vec<Tier> {
    let mut placed: Vec<Tier> = rows.iter().map(|rows| rows.tier).collect();
    if !tiers.contains(&Tier::Disk) {
        return placed;
    }
    let worth = |rows: &RowRun| {
        let stays = if rows.tier == Tier::Host {
            ADVANTAGE
        } else {
            1.0
        };
        let worth = policy.worth(rows).max(0.0) * stays;
        if worth.is_nan() { 0.0 } else { worth }
    };
    let mut order: Vec<(bool, f64, usize, usize)> = rows
        .iter()
        .enumerate()
        .map(|(i, rows)| (rows.pinned, worth(rows), rows.start, i))
        .collect();
    order.sort_by(|a, b| {
        let by_worth = b.1.total_cmp(&a.1);
        b.0.cmp(&a.0).then(by_worth).then(b.2.cmp(&a.2))
    });
    let mut left = room;
    for (pinned, _, _, i) in order {
        let rows = &rows[i];
        let wanted = pinned || policy.place(rows.part, tiers) != Tier::Disk;
        placed[i] = if wanted && rows.bytes <= left {
            left -= rows.bytes;
            Tier::Host
        } else {
            Tier::Disk
        };
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryPolicy;

    const TIERS: [Tier; 2] = [Tier::Host, Tier::Disk];

    fn run(start: usize, reads: u64, tier: Tier) -> RowRun {
        RowRun {
            part: Part::Keys,
            start,
            bytes: 100,
            reads,
            tier,
            pinned: start == 0,
        }
    }

    fn hosts(policy: MemoryPolicy, rows: &[RowRun], room: usize, tiers: &[Tier]) -> Vec<usize> {
        let placed = arrange(&policy, rows, room, tiers);
        let rows = rows.iter().zip(placed);
        let hosts = rows.filter(|(_, tier)| *tier == Tier::Host);
        hosts.map(|(rows, _)| rows.start).collect()
    }

    #[test]
    fn pinned_rows_stay_longest_and_room_is_never_passed() {
        let rows = [0, 1, 2, 3].map(|start| run(start, 0, Tier::Host));
        for (room, expected) in [
            (0, vec![]),
            (99, vec![]),
            (100, vec![0]),
            (299, vec![0, 3]),
            (400, vec![0, 1, 2, 3]),
        ] {
            assert_eq!(hosts(MemoryPolicy::AllHost, &rows, room, &TIERS), expected);
        }
        let hybrid = MemoryPolicy::Hybrid { num_fast_levels: 2 };
        assert_eq!(hosts(hybrid, &rows, 400, &TIERS), [0]);
        let all = hosts(hybrid, &rows, 0, &[Tier::Host]);
        assert_eq!(all.len(), 4, "there is nowhere else");
    }

    #[test]
    fn adaptive_keeps_what_is_read_and_does_not_change_its_mind_for_little() {
        let adaptive = MemoryPolicy::Adaptive { target_usage: 0.8 };
        let reads = |cold: u64, hot: u64| {
            let rows = [
                run(0, 0, Tier::Host),
                run(1, cold, Tier::Host),
                run(2, hot, Tier::Disk),
            ];
            hosts(adaptive, &rows, 200, &TIERS)
        };
        assert_eq!(reads(10, 14), [0, 1]);
        assert_eq!(reads(10, 16), [0, 2]);
        assert_eq!(reads(0, 1), [0, 2]);
    }
}
