//! Exact scores of single keys, wherever they are stored.

use hira_kernels::DiskRows;

use crate::group::Group;
use crate::visible::Visible;

/// The keys on disk that the queries of a group are scored against: each read once, all in one batch.
///
/// Empty, and of no cost, where all keys are in memory.
#[derive(Debug, Default)]
pub(crate) struct DiskKeys {
    rows: DiskRows,
}

impl DiskKeys {
    pub(crate) fn memory_usage(&self) -> usize {
        self.rows.memory_usage()
    }

    /// Whether a key that the group sees is on disk.
    pub(crate) fn are_any(group: &Group<'_>) -> bool {
        Visible::segments(group.index, group.seen).any(|seen| seen.segment.rows().is_on_disk())
    }

    /// Forgets what was read before, and reads what is on disk of the keys at the positions `wanted`, one list a query.
    pub(crate) fn read<'a>(&mut self, group: &Group<'_>, wanted: impl Iterator<Item = &'a [u32]>) {
        let segments = Visible::segments(group.index, group.seen);
        let runs = segments.map(|seen| (seen.segment.start(), seen.segment.rows()));
        self.rows.read(group.dim(), runs, wanted);
    }

    /// Canonical scores of query `g` with the keys at `positions`, which ascend and are visible; `rebased` is a buffer.
    ///
    /// Keys that were not [`read`](Self::read) are scored where they are.
    pub(crate) fn score(
        &self,
        group: &Group<'_>,
        g: usize,
        positions: &[u32],
        rebased: &mut Vec<u32>,
        scores: &mut [f32],
    ) {
        let (kernel, query) = (group.kernel, group.query(g));
        let mut from = 0;
        for Visible { segment, to, .. } in Visible::segments(group.index, group.seen) {
            let start = segment.start() as u32;
            let end = start + to as u32;
            let to = from + positions[from..].partition_point(|&position| position < end);
            if from == to {
                continue;
            }
            let (here, scores) = (&positions[from..to], &mut scores[from..to]);
            from = to;
            if let Some(region) = segment.rows().region() {
                region.count_reads(here.len());
                if let Some(read) = self.rows.rows_of(segment.start(), here, rebased) {
                    kernel.scores_at_into(query, read, rebased, scores);
                    continue;
                }
            }
            let in_segment: &[u32] = if start == 0 {
                here
            } else {
                rebased.clear();
                rebased.extend(here.iter().map(|&position| position - start));
                rebased
            };
            kernel.scores_at_into(query, segment.keys(), in_segment, scores);
        }
    }
}
