//! From a rule to one target a query: what the rule says of the sampled scores.

use hira_index::HierarchicalIndex;
use hira_threshold::{RuleInput, Threshold};

use crate::error::SearchError;
use crate::settle::Target;
use crate::visible::Seen;

/// Buffers of [`resolve`](Resolving::resolve).
#[derive(Debug, Default)]
pub(crate) struct Resolving {
    /// Sampled positions, in the order of the sample.
    positions: Vec<u32>,
    /// Canonical scores of the sample: one run a query.
    scores: Vec<f32>,
    /// One target a query.
    pub(crate) targets: Vec<Target>,
}

impl Resolving {
    pub(crate) fn memory_usage(&self) -> usize {
        4 * (self.positions.capacity() + self.scores.capacity())
            + size_of::<Target>() * self.targets.capacity()
    }

    /// Resolves a valid `rule` for every row of `queries` into `targets`. At least one of the stored keys is seen.
    ///
    /// Each sampled row is read once and scored for the whole group.
    pub(crate) fn resolve(
        &mut self,
        index: &HierarchicalIndex,
        queries: &[f32],
        seen: Seen,
        rule: &dyn Threshold,
        max_candidates: Option<usize>,
    ) -> Result<(), SearchError> {
        let visible = seen.len();
        self.positions.clear();
        if rule.needs_sample() {
            index.sample_range(seen.range(), &mut self.positions);
        }
        self.score(index, queries);
        self.targets.clear();
        let sampled = self.positions.len();
        for query in 0..queries.len() / index.dim() {
            let cut = rule.cut(&RuleInput {
                visible,
                sample: &self.scores[query * sampled..(query + 1) * sampled],
            });
            let target = Target::new(cut, visible, max_candidates);
            self.targets
                .push(target.ok_or(SearchError::RuleNan { query })?);
        }
        Ok(())
    }

    fn score(&mut self, index: &HierarchicalIndex, queries: &[f32]) {
        let (dim, sampled) = (index.dim(), self.positions.len());
        self.scores.clear();
        self.scores.resize(queries.len() / dim * sampled, 0.0);
        for (i, &position) in self.positions.iter().enumerate() {
            let Some(key) = index.key(position as usize) else {
                continue;
            };
            for (query, scores) in queries
                .chunks_exact(dim)
                .zip(self.scores.chunks_exact_mut(sampled))
            {
                scores[i] = index.kernel().score(query, key);
            }
        }
        if sampled > 0 {
            let segments = index.segments().map(|segment| segment.rows());
            segments.for_each(|rows| rows.forget(0..rows.len()));
        }
    }
}
