//! A placement of one's own: keys before values, and early positions before late ones.
//!
//! ```text
//! cargo run -p hira-memory --example own_policy
//! ```

use hira_memory::{Part, Placement, RowRun, Tier, arrange};

/// Scores are computed from keys for every survivor, and values are read for the selected ones only: with little room, keys are worth more.
/// A document at the start of a conversation is asked about all along.
#[derive(Debug)]
struct DocumentFirst;

impl Placement for DocumentFirst {
    fn place(&self, _part: Part, _tiers: &[Tier]) -> Tier {
        Tier::Host
    }

    fn worth(&self, rows: &RowRun) -> f64 {
        let of_part = if rows.part == Part::Keys { 2.0 } else { 1.0 };
        of_part / (1.0 + rows.start as f64)
    }
}

fn main() {
    let run = |part, start| RowRun {
        part,
        start,
        bytes: 1 << 20,
        reads: 0,
        tier: Tier::Disk,
        pinned: false,
    };
    let starts = [0, 8192, 16384];
    let keys = starts.map(|start| run(Part::Keys, start));
    let values = starts.map(|start| run(Part::Values, start));
    let rows: Vec<RowRun> = keys.into_iter().chain(values).collect();
    let placed = arrange(&DocumentFirst, &rows, 3 << 20, &[Tier::Host, Tier::Disk]);
    for (rows, tier) in rows.iter().zip(&placed) {
        println!(
            "{:<7} from position {:>6}: {tier}",
            rows.part.to_string(),
            rows.start
        );
    }
    assert_eq!(placed.iter().filter(|tier| **tier == Tier::Host).count(), 3);
}
