//! Exact scores of single rows, wherever they are stored.

use hira_kernels::RowBatch;

use crate::group::Group;
use crate::visible::Visible;

/// Buffers for scoring rows out of order.
#[derive(Debug, Default)]
pub(crate) struct RowBuffers {
    /// Rows within one segment.
    rows: Vec<u32>,
    /// Those of segments on disk, and which of the scores are theirs.
    batch: RowBatch,
    later: Vec<(usize, usize)>,
}

impl RowBuffers {
    pub(crate) fn memory_usage(&self) -> usize {
        4 * self.rows.capacity()
            + self.batch.memory_usage()
            + self.later.capacity() * size_of::<(usize, usize)>()
    }

    /// Canonical scores of query `g` with the keys at `positions`, which ascend and are visible.
    ///
    /// Rows in memory are scored where they are; those on disk are read in one batch, which is waited for last.
    pub(crate) fn score(
        &mut self,
        group: &Group<'_>,
        g: usize,
        positions: &[u32],
        scores: &mut [f32],
    ) {
        self.later.clear();
        let mut from = 0;
        for Visible {
            segment, to: seen, ..
        } in Visible::segments(group.index, group.seen)
        {
            let start = segment.start() as u32;
            let end = start + seen as u32;
            let to = from + positions[from..].partition_point(|&position| position < end);
            if from == to {
                continue;
            }
            let here = if start == 0 {
                &positions[from..to]
            } else {
                self.rows.clear();
                self.rows
                    .extend(positions[from..to].iter().map(|&p| p - start));
                &self.rows[..]
            };
            let rows = segment.rows();
            if let Some(region) = rows.region() {
                region.count_reads(here.len());
                if self.later.is_empty() {
                    self.batch.begin(rows.precision());
                }
                if self.batch.ask(rows, here, group.dim()) {
                    self.later.push((from, to));
                    from = to;
                    continue;
                }
            }
            let scores = &mut scores[from..to];
            group
                .kernel
                .scores_at_into(group.query(g), segment.keys(), here, scores);
            from = to;
        }
        if self.later.is_empty() {
            return;
        }
        self.batch.read();
        for (part, &(from, to)) in self.later.iter().enumerate() {
            let (query, rows) = (group.query(g), self.batch.part(part));
            group.kernel.scores_into(query, rows, &mut scores[from..to]);
        }
    }
}
