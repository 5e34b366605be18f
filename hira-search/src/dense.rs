//! The dense plan: the canonical score of every visible key.

use hira_kernels::Team;

use crate::group::Group;
use crate::selection::Selection;
use crate::settle::{Settling, settle};
use crate::visible::{Seen, Visible};

/// Keys scored for every query of the group before the next ones: their rows stay in the first-level caches.
const BLOCK_KEYS: usize = 64;
/// Keys of one parallel part.
const PART_KEYS: usize = 4096;

/// Scores of a group: parts of [`PART_KEYS`] keys, each with one run of scores a query.
#[derive(Debug, Default)]
pub(crate) struct DenseScores {
    scores: Vec<f32>,
}

impl DenseScores {
    pub(crate) fn memory_usage(&self) -> usize {
        4 * self.scores.capacity()
    }

    /// Scores every visible key for every query.
    pub(crate) fn fill(&mut self, group: &Group<'_>, team: &Team) {
        let queries = group.len();
        self.scores.clear();
        self.scores.resize(queries * group.visible(), 0.0);
        let score = |(part, scores): (usize, &mut [f32])| {
            score_part(group, group.seen.first + part * PART_KEYS, scores);
        };
        let size = queries * PART_KEYS;
        team.for_each(self.scores.chunks_mut(size).enumerate(), score);
    }

    /// Selects for query `g` from the scores.
    pub(crate) fn select(
        &self,
        group: &Group<'_>,
        g: usize,
        buffers: &mut Settling,
        out: &mut Selection,
    ) {
        let queries = group.len();
        let Seen { first, end, .. } = group.seen;
        out.positions.extend(first as u32..end as u32);
        for part in self.scores.chunks(queries * PART_KEYS) {
            let keys = part.len() / queries;
            out.scores
                .extend_from_slice(&part[g * keys..(g + 1) * keys]);
        }
        let target = group.targets[g];
        settle(
            group.kernel,
            target,
            group.visible(),
            group.scale,
            buffers,
            (f32::MIN, |_| 0.0),
            out,
        );
        out.tail.sum = buffers.left_out(group.kernel, group.visible(), group.scale, out);
    }
}

/// Scores the keys from position `start` on; `scores` holds one run a query.
fn score_part(group: &Group<'_>, start: usize, scores: &mut [f32]) {
    let queries = group.len();
    let keys = scores.len() / queries;
    let end = start + keys;
    for Visible {
        segment, to: limit, ..
    } in Visible::segments(group.index, group.seen)
    {
        let first = segment.start();
        let (from, to) = (start.max(first), end.min(first + limit));
        if from >= to {
            continue;
        }
        let part = (from - first) * group.dim()..(to - first) * group.dim();
        segment.rows().will_need(part.clone());
        let mut block = from;
        while block < to {
            let next = to.min(block + BLOCK_KEYS);
            let rows = (block - first) * group.dim()..(next - first) * group.dim();
            let rows = segment.keys().slice(rows);
            for g in 0..queries {
                let at = g * keys + block - start;
                group
                    .kernel
                    .scores_into(group.query(g), rows, &mut scores[at..at + next - block]);
            }
            block = next;
        }
        segment.rows().forget(part);
    }
}
