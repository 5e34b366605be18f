//! The sparse plan: search, then attention over the selected keys, then what stands for the others.

use std::{ops::Range, time::Instant};

use hira_cache::{HeadCache, SparseHistory};
use hira_kernels::{DiskRows, Kernel, Team};
use hira_search::{HalfspaceSearcher, Plan, SearchError, Selection, Tail};
use hira_threshold::ThresholdRule;

use crate::{
    Certificate,
    certificate::{Attended, Premises},
    compensation::CompensatedStep,
    rows::Always,
    scratch::{HeadScratch, QueryScratch},
    values::add_weighted_values,
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
    /// Whether the time of each phase is added to the scratch.
    pub(crate) timed: bool,
    pub(crate) team: &'a Team,
}

/// What one query of the group came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SparseAnswer {
    pub(crate) survivors: usize,
    /// Keys whose sketch was read, for the whole group.
    pub(crate) scanned: usize,
    /// Keys whose rows were read for the whole group, by a search that scores all of them.
    pub(crate) shared: usize,
    /// Keys whose rows were read for this query: survivors, sinks and the window.
    pub(crate) scored: usize,
    pub(crate) attended: usize,
    pub(crate) certificate: Certificate,
    /// What the certificate was made of.
    pub(crate) measured: Attended,
    /// The weight that stands for keys that were left out, beside the measured one.
    pub(crate) added: f64,
    pub(crate) tail: Tail,
}

impl SparseStep<'_> {
    /// Answers the `G` queries of one KV head, which see the positions `seen`.
    ///
    /// # Shapes
    ///
    /// `queries` `[G, D]`, `out` `[G, Dv]`; one answer a query is left in `scratch.answers`.
    pub(crate) fn attend(
        &self,
        head: &HeadCache,
        queries: &[f32],
        seen: Range<usize>,
        scratch: &mut HeadScratch,
        out: &mut [f32],
    ) -> Result<(), SearchError> {
        let always = Always::new(self.sink_tokens, self.recent_window, seen.clone());
        self.attend_rows(head, queries, seen, |_| always.clone(), scratch, out)
    }

    /// As [`attend`](Self::attend), for any queries that search the positions `searched`; `always` says for each of them what it attends to whatever
    /// its search finds, and how many keys it sees.
    pub(crate) fn attend_rows(
        &self,
        head: &HeadCache,
        queries: &[f32],
        searched: Range<usize>,
        always: impl Fn(usize) -> Always + Sync,
        scratch: &mut HeadScratch,
        out: &mut [f32],
    ) -> Result<(), SearchError> {
        let dim = head.index().dim();
        let group = queries.len() / dim;
        scratch.selections.resize_with(group, Selection::default);
        let start = self.timed.then(Instant::now);
        self.searcher.search_group_on(
            self.team,
            head.index(),
            queries,
            searched,
            self.rule,
            self.scale,
            &mut scratch.search,
            &mut scratch.selections,
        )?;
        let found_at = start.map(|start| {
            scratch.times.search += start.elapsed();
            Instant::now()
        });
        let selected = scratch.selections.iter();
        let wanted = selected.map(|selection| &selection.positions[..]);
        let values = head.values();
        scratch.disk.read(values.dim(), values.runs(), wanted);
        let disk = &scratch.disk;
        scratch.answers.resize(group, SparseAnswer::default());
        let value_dim = head.values().dim();
        let found = queries.chunks_exact(dim).zip(&scratch.selections);
        let rows = out.chunks_exact_mut(value_dim).zip(&mut scratch.answers);
        let spares = &scratch.per_query;
        let tasks = found.zip(rows).enumerate();
        (self.team).for_each(tasks, |(row, ((query, selection), (out, answer)))| {
            *answer = spares.lend(|buffers| {
                self.attend_one((head, disk), query, selection, always(row), buffers, out)
            });
        });
        if let Some(found_at) = found_at {
            scratch.times.values += found_at.elapsed();
        }
        Ok(())
    }

    /// What a certificate of this head needs beside what was measured.
    pub(crate) fn premises(&self, head: &HeadCache, dim: usize) -> Premises {
        Premises {
            dim,
            scale: self.scale,
            key_norm: head.max_key_norm(),
            value_norm: head.max_value_norm(),
        }
    }

    fn attend_one(
        &self,
        (head, disk): (&HeadCache, &DiskRows),
        query: &[f32],
        selection: &Selection,
        always: Always,
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
        let premises = self.premises(head, query.len());
        let mut attended = Attended {
            query_norm: norm(query),
            visible: always.visible().len(),
            rows,
            max_score,
            weight_sum,
            counted: always.count_unselected(selection, buffers),
            out_norm: 0.0,
        };
        let factors = premises.factors(&attended, selection.tail.reference);
        let means = head.means();
        let blocks = &selection.blocks;
        let compensated = rows > 0 && !blocks.is_empty() && blocks.block_keys == means.block_keys();
        let mut mass = None;
        out.fill(0.0);
        let (attended_rows, weights) = (&buffers.rows[..], &buffers.weights[..]);
        if compensated {
            let step = CompensatedStep {
                kernel: self.kernel,
                head,
                disk,
                tail: blocks,
                scale: self.scale,
                searched: always.searched(),
            };
            mass = (buffers.compensation).attend(step, (attended_rows, weights), factors, out);
        } else {
            let (attended_rows, rebased) = ((attended_rows, [weights]), &mut buffers.rebased);
            add_weighted_values(self.kernel, (head, disk), attended_rows, rebased, [out]);
        }
        if rows > 0 {
            // the largest weight is 1, so the sum is at least 1
            let added = mass.map_or(0.0, |mass| mass.added);
            let inverse = (1.0 / (f64::from(weight_sum) + added)) as f32;
            out.iter_mut().for_each(|element| *element *= inverse);
        }
        attended.out_norm = norm(out);
        let shared = if selection.stats.plan == Plan::Dense {
            selection.stats.survivors
        } else {
            0
        };
        SparseAnswer {
            survivors: selection.stats.survivors,
            scanned: selection.stats.scanned,
            shared,
            scored: selection.stats.survivors - shared + always.len(),
            attended: rows,
            certificate: premises.sparse(attended, (selection.tail, factors), mass),
            measured: attended,
            added: mass.map_or(0.0, |mass| mass.added),
            tail: selection.tail,
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
