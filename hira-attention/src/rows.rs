//! The rows a query attends to: sinks, the rule's selection, and the window, each once and in order.

use std::ops::Range;

use hira_cache::HeadCache;
use hira_kernels::Kernel;
use hira_search::Selection;

use crate::scratch::QueryScratch;

/// The always-attended ranges at a number of visible keys: `0..sinks_end` and `window_start..visible`, disjoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Always {
    searched: usize,
    sinks_end: usize,
    window_start: usize,
    visible: usize,
}

impl Always {
    pub(crate) fn new(sink_tokens: usize, recent_window: usize, visible: usize) -> Self {
        Self::beyond(visible, sink_tokens, recent_window, visible)
    }

    /// For a query that sees `0..visible`, of which only `0..searched` were searched: the window then begins no later than `searched`.
    /// Keys from `searched` on are in no tail, so nothing may be taken from one for them.
    pub(crate) fn beyond(
        searched: usize,
        sink_tokens: usize,
        recent_window: usize,
        visible: usize,
    ) -> Self {
        let sinks_end = sink_tokens.min(visible);
        let window_start = visible.saturating_sub(recent_window).min(searched);
        Self {
            searched,
            sinks_end,
            window_start: window_start.max(sinks_end),
            visible,
        }
    }

    /// Keys that are attended to whatever a search finds.
    pub(crate) fn len(&self) -> usize {
        self.sinks_end + (self.visible - self.window_start)
    }

    /// Keys that were searched: no tail knows of the others.
    pub(crate) fn searched(&self) -> usize {
        self.searched
    }

    /// Keys that the query sees.
    pub(crate) fn visible(&self) -> usize {
        self.visible
    }

    /// Fills `scratch.rows` (ascending) and `scratch.scores` (canonical).
    pub(crate) fn collect(
        &self,
        kernel: Kernel,
        head: &HeadCache,
        query: &[f32],
        selection: &Selection,
        scratch: &mut QueryScratch,
    ) {
        scratch.rows.clear();
        scratch.scores.clear();
        score_range(kernel, head, query, 0..self.sinks_end, scratch);
        let middle = selection
            .positions
            .partition_point(|&p| (p as usize) < self.sinks_end)
            ..selection
                .positions
                .partition_point(|&p| (p as usize) < self.window_start);
        scratch
            .rows
            .extend_from_slice(&selection.positions[middle.clone()]);
        scratch.scores.extend_from_slice(&selection.scores[middle]);
        score_range(
            kernel,
            head,
            query,
            self.window_start..self.visible,
            scratch,
        );
    }

    /// The weight of the searched rows that are attended to and were not selected: the search counts them in the tail. Notes it by blocks, too.
    ///
    /// `scratch.rows` and `scratch.weights` are those of [`collect`](Self::collect).
    pub(crate) fn count_unselected(
        &self,
        selection: &Selection,
        scratch: &mut QueryScratch,
    ) -> f64 {
        let blocks = &selection.blocks;
        scratch.compensation.begin(blocks.len());
        let window = scratch.rows.len() - (self.visible - self.window_start);
        let selected = &selection.positions;
        let before = selected.partition_point(|&p| (p as usize) < self.sinks_end);
        let after = selected.partition_point(|&p| (p as usize) < self.window_start);
        let mut sum = 0.0;
        for (rows, selected) in [
            (0..self.sinks_end, &selected[..before]),
            (window..scratch.rows.len(), &selected[after..]),
        ] {
            let mut selected = selected.iter().peekable();
            for row in rows {
                let position = scratch.rows[row];
                if position as usize >= self.searched {
                    break;
                }
                if selected.next_if_eq(&&position).is_none() {
                    let weight = scratch.weights[row];
                    sum += f64::from(weight);
                    let compensation = &mut scratch.compensation;
                    compensation.count(position as usize, blocks.block_keys, weight);
                }
            }
        }
        sum
    }
}

fn score_range(
    kernel: Kernel,
    head: &HeadCache,
    query: &[f32],
    range: Range<usize>,
    scratch: &mut QueryScratch,
) {
    for run in head.runs(range) {
        let first = scratch.scores.len();
        scratch.scores.resize(first + run.len, 0.0);
        kernel.scores_into(query, run.keys, &mut scratch.scores[first..]);
        scratch
            .rows
            .extend(run.start as u32..(run.start + run.len) as u32);
    }
}

/// `out += sum of weights[i] * value of rows[i]`, rows in order; `rebased` is a buffer.
pub(crate) fn add_weighted_values(
    kernel: Kernel,
    head: &HeadCache,
    (rows, weights): (&[u32], &[f32]),
    rebased: &mut Vec<u32>,
    out: &mut [f32],
) {
    let values = head.values();
    let mut done = 0;
    while let Some(&row) = rows.get(done)
        && let Some(run) = values.run_at(row as usize)
    {
        let start = run.start;
        let end = start + run.rows.len() / values.dim();
        let count = rows[done..].partition_point(|&row| (row as usize) < end);
        let in_run = &rows[done..done + count];
        let rows_of_run: &[u32] = if start == 0 {
            in_run
        } else {
            rebased.clear();
            rebased.extend(in_run.iter().map(|&row| row - start as u32));
            rebased
        };
        kernel.weighted_sum_into(&weights[done..done + count], run.rows, rows_of_run, out);
        done += count;
    }
}
