//! Who is called when: contenders take turns, cold over many copies or warm on one.

use std::ops::Range;

use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// How the calls of a scenario follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    /// Copies that each contender rotates over.
    pub copies: usize,
    /// Rows of queries; the first round warms buffers and branch predictors up and is not counted.
    pub rows: usize,
    /// Contenders.
    pub contenders: usize,
    /// Whether each contender takes `WARM_RUN` rows in a run on one copy.
    pub warm: bool,
}

/// Rows that a warm contender takes in a run; the first finds the caches full of the others' data and is not counted.
pub(super) const WARM_RUN: usize = 8;

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Who.
    pub contender: usize,
    /// On which copy.
    pub copy: usize,
    /// With which row of queries.
    pub row: usize,
    /// Whether its time counts.
    pub counted: bool,
}

impl Turns {
    /// Rows and copies for about `samples` counted calls of each contender; `most` rows are there.
    pub fn new(samples: usize, copies: usize, contenders: usize, warm: bool, most: usize) -> Self {
        let rows = if warm {
            let run = WARM_RUN.min(most);
            run * (1 + samples.div_ceil(run.saturating_sub(1).max(1)))
        } else {
            1 + samples.div_ceil(copies)
        };
        Self {
            copies,
            rows: rows.clamp(2, most.max(2)),
            contenders,
            warm,
        }
    }

    /// Rows whose answers are needed together.
    pub fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, length) = (self.rows, if self.warm { WARM_RUN } else { 1 });
        (0..rows)
            .step_by(length)
            .map(move |start| start..rows.min(start + length))
    }

    /// The calls of one block, each turn in a new order: what a contender leaves behind (its code in the caches, a thread that is still awake) is
    /// no one's gain more than another's. In a fixed order a dense step of 512 keys took 55 us after Burn's and 39 us after our own.
    ///
    /// Contenders whose copies share memory never follow each other on the same copy: the numbers of their copies are far apart.
    pub fn of(&self, block: Range<usize>) -> Vec<Turn> {
        let order = |turn: usize| {
            let mut order: Vec<usize> = (0..self.contenders).collect();
            order.shuffle(&mut StdRng::seed_from_u64(turn as u64));
            order
        };
        let mut turns = Vec::new();
        if self.warm {
            for contender in order(block.start / WARM_RUN) {
                turns.extend(block.clone().map(|row| Turn {
                    contender,
                    copy: 0,
                    row,
                    counted: block.start > 0 && row > block.start,
                }));
            }
            return turns;
        }
        for row in block {
            for step in 0..self.copies {
                let order = order(row * self.copies + step).into_iter();
                turns.extend(order.map(|contender| Turn {
                    contender,
                    copy: (step + contender * self.copies / self.contenders) % self.copies,
                    row,
                    counted: row > 0,
                }));
            }
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(turns: Turns) -> Vec<Turn> {
        turns.blocks().flat_map(|block| turns.of(block)).collect()
    }

    #[test]
    fn every_contender_takes_every_row_on_every_copy_in_order() {
        for warm in [false, true] {
            let copies = if warm { 1 } else { 5 };
            let turns = Turns::new(40, copies, 3, warm, 96);
            let calls = all(turns);
            assert_eq!(calls.len(), 3 * copies * turns.rows);
            for contender in 0..3 {
                for copy in 0..copies {
                    let rows = calls
                        .iter()
                        .filter(|turn| (turn.contender, turn.copy) == (contender, copy))
                        .map(|turn| turn.row);
                    // a row appends its token, so each copy must meet them in order
                    assert!(rows.eq(0..turns.rows));
                }
                let counted = calls
                    .iter()
                    .filter(|turn| turn.contender == contender && turn.counted);
                assert!(counted.count() >= 40);
            }
        }
    }

    #[test]
    fn rows_are_at_least_two_and_at_most_those_there_are() {
        assert_eq!(Turns::new(100, 500, 2, false, 96).rows, 2);
        assert_eq!(Turns::new(100, 1, 2, false, 16).rows, 16);
    }

    #[test]
    fn cold_contenders_are_on_different_copies() {
        let turns = Turns::new(60, 30, 5, false, 96);
        for step in turns.of(1..2).chunks(5) {
            let mut copies: Vec<_> = step.iter().map(|turn| turn.copy).collect();
            copies.sort_unstable();
            copies.dedup();
            assert_eq!(copies.len(), 5);
        }
    }
}
