//! Warm start: a proven threshold from the keys that survived the previous step.

use hira_kernels::Team;

use crate::disk_keys::DiskKeys;
use crate::group::Group;
use crate::history::SearchHistory;
use crate::settle::Target;

/// Buffers of a warm start, one set a query.
#[derive(Debug, Default)]
pub(crate) struct WarmStart {
    disk: DiskKeys,
    queries: Vec<Buffers>,
}

#[derive(Debug, Default)]
struct Buffers {
    rebased: Vec<u32>,
    scores: Vec<f32>,
}

impl Buffers {
    fn score(&mut self, disk: &DiskKeys, group: &Group<'_>, g: usize, positions: &[u32]) {
        self.scores.clear();
        self.scores.resize(positions.len(), 0.0);
        disk.score(group, g, positions, &mut self.rebased, &mut self.scores);
    }
}

impl WarmStart {
    pub(crate) fn memory_usage(&self) -> usize {
        let queries = self.queries.iter();
        let values = queries.map(|query| query.rebased.capacity() + query.scores.capacity());
        self.disk.memory_usage() + 4 * values.sum::<usize>()
    }

    /// Scores the keys remembered for each query that selects by mass; see [`scores`](Self::scores).
    pub(crate) fn score(&mut self, group: &Group<'_>, history: &SearchHistory, team: &Team) {
        let remembered = |g| history.remembered(g, group.seen.range());
        self.disk.read(group, (0..group.len()).map(remembered));
        let disk = &self.disk;
        self.queries.resize_with(group.len(), Buffers::default);
        team.for_each(self.queries.iter_mut().enumerate(), |(g, buffers)| {
            buffers.score(disk, group, g, remembered(g));
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
        let enough = |g: usize| match group.targets[g] {
            Target::Top { k, .. } => Some((k, history.previous(g, k, group.seen.range())?)),
            Target::AtLeast { .. } | Target::Mass { .. } => None,
        };
        let wanted = (0..group.len()).filter_map(enough);
        self.disk
            .read(group, wanted.map(|(_, positions)| positions));
        let disk = &self.disk;
        self.queries.resize_with(group.len(), Buffers::default);
        let queries = self.queries.iter_mut().zip(taus).enumerate();
        team.for_each(queries, |(g, (buffers, tau))| {
            if let Some((k, positions)) = enough(g) {
                buffers.score(disk, group, g, positions);
                *tau = group.kernel.kth_largest(&buffers.scores, k);
            }
        });
    }
}
