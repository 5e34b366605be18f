//! The rows a query attends to: sinks, the rule's selection, and the window, each once and in order.

use std::ops::Range;

use hira_cache::HeadCache;
use hira_kernels::Kernel;
use hira_search::Selection;

use crate::scratch::QueryScratch;

/// The always-attended ranges of a query, disjoint: from the first key that it sees up to `front_end`, which holds the sinks among them, and from
/// `window_start` on.
#[derive(Debug, Clone)]
pub(crate) struct Always {
    searched: Range<usize>,
    front_end: usize,
    window_start: usize,
    visible: Range<usize>,
}

impl Always {
    pub(crate) fn new(sink_tokens: usize, recent_window: usize, visible: Range<usize>) -> Self {
        Self::beyond(visible.clone(), sink_tokens, recent_window, visible)
    }

    /// For a query that sees `visible`, of which only `searched` were searched: everything before and after those is attended to. Keys that were not
    /// searched are in no tail, so nothing may be taken from one for them.
    ///
    /// Sinks are the first keys of the sequence: where a window hides them, there are none.
    pub(crate) fn beyond(
        searched: Range<usize>,
        sink_tokens: usize,
        recent_window: usize,
        visible: Range<usize>,
    ) -> Self {
        let front_end = sink_tokens.min(visible.end).max(searched.start);
        let front_end = front_end.max(visible.start);
        let window_start = visible.end.saturating_sub(recent_window).min(searched.end);
        Self {
            searched,
            front_end,
            window_start: window_start.max(front_end),
            visible,
        }
    }

    /// Keys that are attended to whatever a search finds.
    pub(crate) fn len(&self) -> usize {
        (self.front_end - self.visible.start) + (self.visible.end - self.window_start)
    }

    /// Positions that were searched: no tail knows of the others.
    pub(crate) fn searched(&self) -> Range<usize> {
        self.searched.clone()
    }

    /// Positions that the query sees.
    pub(crate) fn visible(&self) -> Range<usize> {
        self.visible.clone()
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
        let front = self.visible.start..self.front_end;
        score_range(kernel, head, query, front, scratch);
        let middle = selection
            .positions
            .partition_point(|&p| (p as usize) < self.front_end)
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
            self.window_start..self.visible.end,
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
        scratch.compensation.begin(blocks.block_keys);
        let window = scratch.rows.len() - (self.visible.end - self.window_start);
        let front = self.front_end - self.visible.start;
        let selected = &selection.positions;
        let before = selected.partition_point(|&p| (p as usize) < self.front_end);
        let after = selected.partition_point(|&p| (p as usize) < self.window_start);
        let mut sum = 0.0;
        for (rows, selected) in [
            (0..front, &selected[..before]),
            (window..scratch.rows.len(), &selected[after..]),
        ] {
            let mut selected = selected.iter().peekable();
            for row in rows {
                let position = scratch.rows[row];
                if !self.searched.contains(&(position as usize)) {
                    continue;
                }
                if selected.next_if_eq(&&position).is_none() {
                    let weight = scratch.weights[row];
                    sum += f64::from(weight);
                    scratch.compensation.count(position as usize, weight);
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
