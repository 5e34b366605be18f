//! What a head's searches leave for the next one: counts for the cost model, and keys for the first threshold.

mod bytes;
mod level;

use std::ops::Range;

use crate::plan::MAX_COARSE;
pub(crate) use level::{Level, Levels, Sought};

/// Exactly scored keys for each one wanted, before any were measured: 1.3 on captured keys at top-256.
const SURVIVORS: f64 = 1.3;
/// Weight of a new measurement in a moving average.
const RECENT: f64 = 0.125;
/// A second scan counts as so many candidates for each key wanted: two of them shortly after each other, and a sample is taken for a while.
const RESCANNED: f64 = 8.0;
/// A first threshold from the keys of the previous step is used while it leaves at most this many candidates for each key wanted. A
/// sample of the sketch leaves about 2 and costs as much.
const MAX_CANDIDATES: f64 = 3.0;
/// Searches between two tries of what did not pay.
const RETRY: u32 = 32;

/// What is remembered from one search of a KV head to the next. It changes speed, never an answer.
///
/// Keep one for each head, as small as it is (a few numbers, and some positions for each query), and lend it to the
/// [`Scratch`](crate::Scratch) with [`Scratch::swap_history`](crate::Scratch::swap_history): scratch can then be shared by heads while
/// plans and first thresholds are those of the head. Any history is right for any index: positions that an index does not have are passed over.
#[derive(Debug, Clone)]
pub struct SearchHistory {
    /// Exactly scored keys over visible keys, for fixed thresholds; a moving average.
    survivors: f64,
    /// Exactly scored keys for each one wanted, for top-k rules; a moving average.
    scored: f64,
    /// Clusters that stayed over clusters opened, on each coarse level; moving averages, 1 before the first measurement.
    passed: [f64; MAX_COARSE],
    /// Searches since the last tree plan that descended all levels.
    since_tree: u32,
    /// Share of the keys with product codes whose tiles these left to be read; a moving average, 1 before the first measurement.
    marked: f64,
    /// Searches since the last product plan.
    since_product: u32,
    /// For each query of the group, ascending positions of keys of its last search: of the best `k` some near the threshold, of a mass the best.
    previous: Vec<Vec<u32>>,
    /// Candidates for each key wanted when the first threshold came from `previous`; a moving average.
    warm_candidates: f64,
    /// Searches since `previous` gave a first threshold.
    since_warm: u32,
    /// For each query of the group, where its thresholds lie.
    levels: Vec<Option<Levels>>,
}

impl Default for SearchHistory {
    fn default() -> Self {
        Self {
            survivors: 0.02,
            scored: SURVIVORS,
            passed: [1.0; MAX_COARSE],
            since_tree: u32::MAX,
            marked: 1.0,
            since_product: u32::MAX,
            previous: Vec::new(),
            warm_candidates: 0.0,
            since_warm: 0,
            levels: Vec::new(),
        }
    }
}

impl SearchHistory {
    /// Searches between two tries of a plan that does not pay.
    pub(crate) const PROBE_EVERY: u32 = 256;

    /// Bytes held.
    pub fn memory_usage(&self) -> usize {
        let positions: usize = self.previous.iter().map(Vec::capacity).sum();
        4 * positions
            + self.previous.capacity() * size_of::<Vec<u32>>()
            + self.levels.capacity() * size_of::<Option<Levels>>()
    }

    /// Forgets the keys of the last search: for queries that are not the next step of the same heads.
    pub fn forget_keys(&mut self) {
        self.previous.iter_mut().for_each(Vec::clear);
    }

    pub(crate) fn survivors(&self) -> f64 {
        self.survivors
    }

    /// Exactly scored keys for each one that a top-k rule wants.
    pub(crate) fn scored(&self) -> f64 {
        self.scored
    }

    /// Notes how many keys a top-k search scored for each one wanted.
    pub(crate) fn note_scored(&mut self, scored: f64) {
        self.scored += (scored - self.scored) * RECENT;
    }

    /// Share of the opened clusters that coarse level `level` leaves.
    pub(crate) fn passed(&self, level: usize) -> f64 {
        self.passed[level]
    }

    /// Counts a search, and says whether the coarse levels are to be measured by it.
    pub(crate) fn tree_is_due(&mut self) -> bool {
        self.since_tree = self.since_tree.saturating_add(1);
        self.since_tree > Self::PROBE_EVERY
    }

    /// Notes how many clusters were opened and how many stayed on each level that was descended; `full` if these are all.
    pub(crate) fn note_descent(&mut self, levels: &[(usize, usize)], full: bool) {
        let first = self.since_tree == u32::MAX;
        for (passed, &(opened, stayed)) in self.passed.iter_mut().zip(levels) {
            if opened > 0 {
                let share = stayed as f64 / opened as f64;
                *passed += (share - *passed) * if first { 1.0 } else { RECENT };
            }
        }
        if full {
            self.since_tree = 0;
        }
    }

    /// Share of the keys with product codes whose tiles they leave to be read.
    pub(crate) fn marked(&self) -> f64 {
        self.marked
    }

    /// Counts a search, and says whether the product codes are to be measured by it.
    pub(crate) fn product_is_due(&mut self) -> bool {
        self.since_product = self.since_product.saturating_add(1);
        self.since_product > Self::PROBE_EVERY
    }

    /// Notes how many of the keys with product codes were ruled out.
    pub(crate) fn note_product(&mut self, coded: usize, skipped: usize) {
        let first = self.since_product == u32::MAX;
        let share = 1.0 - skipped as f64 / coded.max(1) as f64;
        self.marked += (share - self.marked) * if first { 1.0 } else { RECENT };
        self.since_product = 0;
    }

    /// Notes the fraction of keys that a fixed threshold left to be scored.
    pub(crate) fn note_survivors(&mut self, fraction: f64) {
        self.survivors += (fraction - self.survivors) * RECENT;
    }

    /// Remembered positions of query `g` among those that are `visible`.
    fn remembered(&self, g: usize, visible: Range<usize>) -> &[u32] {
        let positions = self.previous.get(g).map_or(&[][..], Vec::as_slice);
        let before = |limit: usize| positions.partition_point(|&p| (p as usize) < limit);
        let (first, end) = (before(visible.start), before(visible.end));
        &positions[first..end.max(first)]
    }

    /// Positions to guess a first threshold from for query `g`, among those that are `visible`, and the level to guess: none before such a search was noted,
    /// and while guesses do not pay.
    pub(crate) fn previous(
        &self,
        g: usize,
        sought: Sought,
        visible: Range<usize>,
    ) -> Option<(Level, &[u32])> {
        let is_top = matches!(sought, Sought::Top(_));
        if is_top && self.warm_candidates > MAX_CANDIDATES && self.since_warm < RETRY {
            return None;
        }
        let levels = self.levels.get(g).copied().flatten()?;
        let level = levels.guess(visible.len());
        let seen = self.remembered(g, visible);
        (levels.sought == sought && !seen.is_empty()).then_some((level, seen))
    }

    /// Notes what a guessed first threshold of the best keys left, for each key wanted, and whether it was too high; `None` if another was used.
    pub(crate) fn note_warm(&mut self, guessed: Option<(f64, bool)>) {
        match guessed {
            Some((candidates, rescanned)) => {
                let candidates = if rescanned {
                    candidates.max(RESCANNED)
                } else {
                    candidates
                };
                self.warm_candidates += (candidates - self.warm_candidates) * RECENT;
                self.since_warm = 0;
            }
            None => self.since_warm = self.since_warm.saturating_add(1),
        }
    }

    /// Notes the level that would have been right for query `g`.
    pub(crate) fn note_level(&mut self, g: usize, sought: Sought, level: Level) {
        if !level.is_finite() {
            return;
        }
        if self.levels.len() <= g {
            self.levels.resize(g + 1, None);
        }
        match &mut self.levels[g] {
            Some(known) if known.sought == sought => known.note(level),
            known => *known = Some(Levels::new(sought, level)),
        }
    }

    /// Remembers ascending positions for query `g`.
    pub(crate) fn remember(&mut self, g: usize, positions: &[u32]) {
        if self.previous.len() <= g {
            self.previous.resize_with(g + 1, Vec::new);
        }
        self.previous[g].clear();
        self.previous[g].extend_from_slice(positions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: Sought = Sought::Top(2);

    #[test]
    fn remembered_keys_are_visible_and_of_the_same_rule() {
        let mut history = SearchHistory::default();
        let seen = |history: &SearchHistory, g, sought, range| {
            let previous = history.previous(g, sought, range);
            previous.map_or(vec![], |(_, positions)| positions.to_vec())
        };
        history.remember(1, &[1, 4, 8]);
        assert!(history.previous(1, TOP, 0..10).is_none());
        history.note_level(1, TOP, 0.5);
        assert_eq!(seen(&history, 1, TOP, 0..10), [1, 4, 8]);
        assert_eq!(seen(&history, 1, TOP, 0..8), [1, 4]);
        assert_eq!(seen(&history, 1, TOP, 2..10), [4, 8]);
        assert!(history.previous(1, TOP, 5..8).is_none());
        assert!(history.previous(0, TOP, 0..10).is_none());
        for other in [Sought::Top(3), Sought::Mass(0.1)] {
            assert!(history.previous(1, other, 0..10).is_none());
        }
        history.note_level(1, TOP, f64::NAN);
        let level = history.previous(1, TOP, 0..10).map(|(level, _)| level);
        assert!(level.is_some_and(|level| level < 0.5));
        history.forget_keys();
        assert!(history.previous(1, TOP, 0..10).is_none());
    }

    #[test]
    fn guesses_that_do_not_pay_are_retried_now_and_then() {
        for (bad, count) in [((20.0, false), 8), ((1.5, true), 8)] {
            let mut history = SearchHistory::default();
            history.remember(0, &[3]);
            history.note_level(0, TOP, 0.5);
            for _ in 0..count {
                history.note_warm(Some(bad));
            }
            let mut passed = 0;
            while history.previous(0, TOP, 0..10).is_none() {
                history.note_warm(None);
                passed += 1;
            }
            assert_eq!(passed, RETRY);
            for _ in 0..20 {
                history.note_warm(Some((1.5, false)));
            }
            assert!(history.previous(0, TOP, 0..10).is_some());
        }
    }
}
