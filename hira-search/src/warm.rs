//! Warm start: a proven threshold from the keys that survived the previous step.

use hira_threshold::kth_largest;

use crate::group::Group;
use crate::history::SearchHistory;
use crate::settle::Target;
use crate::survivors::score_rows;

/// Buffers of a warm start.
#[derive(Debug, Default)]
pub(crate) struct WarmStart {
    rows: Vec<u32>,
    scores: Vec<f32>,
}

impl WarmStart {
    pub(crate) fn memory_usage(&self) -> usize {
        4 * (self.rows.capacity() + self.scores.capacity())
    }

    /// Gives each top-k query the `k`-th best canonical score among the keys remembered for it, where they are enough.
    ///
    /// Those are distinct visible keys, whatever index and query they were remembered from, so `k` keys reach that score: it is
    /// proven, and can only be loose. On captured keys two steps share 60 to 75 % of their best 256 keys, and 1.4 to 1.9 keys
    /// reach this threshold for each one wanted (median). The rows read here are mostly those that survive again, so they are
    /// near when they are scored in the end.
    pub(crate) fn raise(&mut self, group: &Group<'_>, history: &SearchHistory, taus: &mut [f32]) {
        for (g, (tau, target)) in taus.iter_mut().zip(group.targets).enumerate() {
            let Target::Top { k, .. } = *target else {
                continue;
            };
            let Some(positions) = history.previous(g, k, group.visible) else {
                continue;
            };
            self.scores.clear();
            self.scores.resize(positions.len(), 0.0);
            score_rows(group, g, positions, &mut self.rows, &mut self.scores);
            *tau = kth_largest(&mut self.scores, k);
        }
    }
}
