//! The sparse plan: search, then attention over the selected keys.

use hira_cache::{HeadCache, SparseHistory};
use hira_kernels::{Kernel, Team};
use hira_search::{HalfspaceSearcher, SearchError, Selection};
use hira_threshold::ThresholdRule;

use crate::{
    Certificate,
    certificate::{Attended, Premises},
    rows::{Always, add_weighted_values},
    scratch::{HeadScratch, QueryScratch},
};

/// What the sparse plan needs beside the head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SparseStep<'a> {
    pub(crate) searcher: &'a HalfspaceSearcher,
    pub(crate) kernel: Kernel,
    pub(crate) rule: &'a ThresholdRule,
    pub(crate) scale: f32,
    pub(crate) sink_tokens: usize,
    pub(crate) recent_window: usize,
    pub(crate) team: &'a Team,
}

/// What one query of the group came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SparseAnswer {
    pub(crate) survivors: usize,
    pub(crate) attended: usize,
    pub(crate) certificate: Certificate,
}

impl SparseStep<'_> {
    /// Answers the `G` queries of one KV head, which see positions `0..visible`.
    ///
    /// # Shapes
    ///
    /// `queries` `[G, D]`, `out` `[G, Dv]`; one answer a query is left in `scratch.answers`.
    pub(crate) fn attend(
        &self,
        head: &HeadCache,
        queries: &[f32],
        visible: usize,
        scratch: &mut HeadScratch,
        out: &mut [f32],
    ) -> Result<(), SearchError> {
        let dim = head.index().dim();
        let group = queries.len() / dim;
        scratch.selections.resize_with(group, Selection::default);
        scratch.per_query.resize_with(group, QueryScratch::default);
        self.searcher.search_group_on(
            self.team,
            head.index(),
            queries,
            visible,
            self.rule,
            self.scale,
            &mut scratch.search,
            &mut scratch.selections,
        )?;
        let always = Always::new(self.sink_tokens, self.recent_window, visible);
        scratch.answers.resize(group, SparseAnswer::default());
        let value_dim = head.values().dim();
        let found = queries.chunks_exact(dim).zip(&scratch.selections);
        let rows = out.chunks_exact_mut(value_dim).zip(&mut scratch.answers);
        let tasks = found.zip(&mut scratch.per_query).zip(rows);
        self.team
            .for_each(tasks, |(((query, selection), buffers), (out, answer))| {
                *answer = self.attend_one(head, query, selection, always, visible, buffers, out);
            });
        Ok(())
    }

    #[expect(clippy::too_many_arguments)]
    fn attend_one(
        &self,
        head: &HeadCache,
        query: &[f32],
        selection: &Selection,
        always: Always,
        visible: usize,
        buffers: &mut QueryScratch,
        out: &mut [f32],
    ) -> SparseAnswer {
        always.collect(self.kernel, head, query, selection, buffers);
        let rows = buffers.rows.len();
        let max_score = buffers
            .scores
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        buffers.weights.resize(rows, 0.0);
        let weight_sum = self.kernel.exp_weights_into(
            &buffers.scores,
            self.scale,
            max_score,
            &mut buffers.weights,
        );
        out.fill(0.0);
        add_weighted_values(self.kernel, head, buffers, out);
        if rows > 0 {
            // the largest weight is 1, so the sum is at least 1
            let inverse = 1.0 / weight_sum;
            out.iter_mut().for_each(|element| *element *= inverse);
        }
        let premises = Premises {
            dim: query.len(),
            scale: self.scale,
            key_norm: head.max_key_norm(),
            value_norm: head.max_value_norm(),
        };
        let attended = Attended {
            query_norm: norm(query),
            visible,
            rows,
            max_score,
            weight_sum,
            out_norm: norm(out),
        };
        SparseAnswer {
            survivors: selection.stats.survivors,
            attended: rows,
            certificate: premises.sparse(attended, selection.tail),
        }
    }
}

/// Means over the answers of one step, at least one.
pub(crate) fn history(answers: &[SparseAnswer], visible: usize) -> SparseHistory {
    let count = answers.len() as f64;
    let survivors: usize = answers.iter().map(|answer| answer.survivors).sum();
    let dropped = answers
        .iter()
        .map(|answer| f64::from(answer.certificate.dropped_mass_bound));
    SparseHistory {
        survivor_fraction: survivors as f64 / (count * visible as f64),
        dropped_mass: dropped.sum::<f64>() / count,
    }
}

/// The Euclidean norm, rounded upwards: in f64 it is good to far better than an f32 step. NaN or infinite if an element is.
///
/// In eight lanes: one chain of additions takes 80 ns for 64 elements, and a step asks for the norm of every query twice.
pub(crate) fn norm(row: &[f32]) -> f32 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let mut lanes = [0.0; 8];
    let (blocks, rest) = row.as_chunks::<8>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += square(x);
        }
    }
    let squares = lanes.iter().sum::<f64>() + rest.iter().map(|&x| square(x)).sum::<f64>();
    (squares.sqrt() as f32).next_up()
}
