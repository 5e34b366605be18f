//! Warm start: a proven threshold from the keys that survived the previous step.

use hira_kernels::Team;

use crate::group::Group;
use crate::history::SearchHistory;
use crate::row_buffers::RowBuffers;
use crate::settle::Target;

/// Buffers of a warm start, one set a query.
#[derive(Debug, Default)]
pub(crate) struct WarmStart {
    queries: Vec<Buffers>,
}

#[derive(Debug, Default)]
struct Buffers {
    rows: RowBuffers,
    scores: Vec<f32>,
}

impl WarmStart {
    pub(crate) fn memory_usage(&self) -> usize {
        let queries = self.queries.iter();
        let bytes = queries.map(|query| query.rows.memory_usage() + 4 * query.scores.capacity());
        bytes.sum()
    }

    /// Scores the keys remembered for each query that selects by mass; see [`scores`](Self::scores).
    pub(crate) fn score(&mut self, group: &Group<'_>, history: &SearchHistory, team: &Team) {
        self.queries.resize_with(group.len(), Buffers::default);
        team.for_each(self.queries.iter_mut().enumerate(), |(g, buffers)| {
            let Buffers { rows, scores } = buffers;
            let positions = history.remembered(g, group.seen.range());
            scores.clear();
            scores.resize(positions.len(), 0.0);
            rows.score(group, g, positions, scores);
        });
    }

    /// The canonical scores of the last [`score`](Self::score) for query `g`.
    pub(crate) fn scores(&self, g: usize) -> &[f32] {
        self.queries.get(g).map_or(&[], |query| &query.scores)
    }

    /// Gives each top-k query the `k`-th best canonical score among the keys remembered for it, where they are enough.
    ///
    /// Those are distinct visible keys, whatever index and query they were remembered from, so `k` keys reach that score: it is
    /// proven, and can only be loose. On captured keys two steps share 60 to 75 % of their best 256 keys, and 1.4 to 1.9 keys
    /// reach this threshold for each one wanted (median). The rows read here are mostly those that survive again, so they are
    /// near when they are scored in the end.
    pub(crate) fn raise(
        &mut self,
        group: &Group<'_>,
        history: &SearchHistory,
        taus: &mut [f32],
        team: &Team,
    ) {
        self.queries.resize_with(group.len(), Buffers::default);
        let queries = self.queries.iter_mut().zip(taus).enumerate();
        team.for_each(queries, |(g, (buffers, tau))| {
            let Target::Top { k, .. } = group.targets[g] else {
                return;
            };
            let Some(positions) = history.previous(g, k, group.seen.range()) else {
                return;
            };
            let Buffers { rows, scores } = buffers;
            scores.clear();
            scores.resize(positions.len(), 0.0);
            rows.score(group, g, positions, scores);
            *tau = group.kernel.kth_largest(scores, k);
        });
    }
}
