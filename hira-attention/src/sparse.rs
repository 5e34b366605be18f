//! The sparse plan: search, then attention over the selected keys, then what stands for the others.

use hira_cache::{HeadCache, SparseHistory};
use hira_kernels::{Kernel, Team};
use hira_search::{HalfspaceSearcher, SearchError, Selection};
use hira_threshold::ThresholdRule;

use crate::{
    Certificate,
    certificate::{Attended, Premises},
    compensation::CompensatedStep,
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
        let attended_rows = (&buffers.rows[..], &buffers.weights[..]);
        let rebased = &mut buffers.rebased;
        add_weighted_values(self.kernel, head, attended_rows, rebased, out);
        let premises = Premises {
            dim: query.len(),
            scale: self.scale,
            key_norm: head.max_key_norm(),
            value_norm: head.max_value_norm(),
        };
        let mut attended = Attended {
            query_norm: norm(query),
            visible,
            rows,
            max_score,
            weight_sum,
            counted: always.count_unselected(selection, buffers),
            out_norm: 0.0,
        };
        let means = head.means();
        let blocks = &selection.blocks;
        let compensated = rows > 0 && !blocks.is_empty() && blocks.block_keys == means.block_keys();
        let mut mass = None;
        if compensated {
            let factors = premises.factors(&attended, selection.tail.reference);
            let step = CompensatedStep {
                kernel: self.kernel,
                head,
                tail: blocks,
                scale: self.scale,
                visible,
            };
            let rows = (&buffers.rows[..], &buffers.weights[..]);
            mass = buffers.compensation.add_to(step, rows, factors, out);
        }
        if rows > 0 {
            // the largest weight is 1, so the sum is at least 1
            let added = mass.map_or(0.0, |mass| mass.added);
            let inverse = (1.0 / (f64::from(weight_sum) + added)) as f32;
            out.iter_mut().for_each(|element| *element *= inverse);
        }
        attended.out_norm = norm(out);
        if let Some(mass) = &mut mass {
            let norm = attended.out_norm;
            mass.spread = buffers.compensation.spread(head.means(), mass, norm);
        }
        SparseAnswer {
            survivors: selection.stats.survivors,
            attended: rows,
            certificate: premises.sparse(attended, selection.tail, mass),
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

/// The Euclidean norm, rounded upwards: in f64 it is good to far better than an f32 step.
pub(crate) fn norm(row: &[f32]) -> f32 {
    let squares = row.iter().map(|&x| f64::from(x) * f64::from(x));
    (squares.sum::<f64>().sqrt() as f32).next_up()
}
