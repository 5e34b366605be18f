//! Warm start: a first threshold guessed from keys of the previous step.

use hira_kernels::{Kernel, Team};

use crate::disk_keys::DiskKeys;
use crate::group::Group;
use crate::history::{SearchHistory, Sought};

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
    /// See [`WarmStart::base`].
    base: Option<f64>,
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

    /// What the threshold of query `g` was guessed from in the last [`raise`](Self::raise), if it was: see [`base`].
    pub(crate) fn base(&self, g: usize) -> Option<f64> {
        self.queries.get(g)?.base
    }

    /// Gives each query a threshold as far above or below what its remembered keys score as those of the last steps were
    /// ([`Levels`](crate::history::Levels)): a guess, which the search proves or takes back afterwards.
    ///
    /// A proven threshold would be the `k`-th best score among the last step's keys, and is no better on captured keys. It needs the rows of all those
    /// keys, a third of which do not survive again, where a guess reads 48 for a top-k query.
    pub(crate) fn raise(
        &mut self,
        group: &Group<'_>,
        history: &SearchHistory,
        taus: &mut [f32],
        team: &Team,
    ) {
        let wanted = |g: usize| {
            let sought = group.targets[g].sought()?;
            let (level, positions) = history.previous(g, sought, group.seen.range())?;
            Some((sought, level, positions))
        };
        let positions = (0..group.len()).filter_map(wanted);
        self.disk
            .read(group, positions.map(|(_, _, positions)| positions));
        let disk = &self.disk;
        self.queries.resize_with(group.len(), Buffers::default);
        let queries = self.queries.iter_mut().zip(taus).enumerate();
        team.for_each(queries, |(g, (buffers, tau))| {
            buffers.base = None;
            if let Some((sought, level, positions)) = wanted(g) {
                buffers.score(disk, group, g, positions);
                let base = base(group, sought, &buffers.scores);
                let guess = ((base + level) / group.logits()) as f32;
                // A scale so small that every threshold is far away: no guess.
                if guess.is_finite() {
                    (*tau, buffers.base) = (guess, Some(base));
                }
            }
        });
    }
}

/// What scores of remembered keys say of a query, in logits: their mean, or the logarithm of their mass.
pub(crate) fn base(group: &Group<'_>, sought: Sought, scores: &[f32]) -> f64 {
    match sought {
        Sought::Top(_) => {
            let sum: f64 = scores.iter().copied().map(f64::from).sum();
            group.logits() * sum / scores.len() as f64
        }
        Sought::Mass(_) => log_sum_exp(group.kernel, group.scale, scores),
    }
}

/// `ln(sum of exp(scale * score))`, to a relative `4e-4` of the sum; `-inf` without scores.
fn log_sum_exp(kernel: Kernel, scale: f32, scores: &[f32]) -> f64 {
    let [_, best] = kernel.extremes(scores);
    let best = best.next_up();
    f64::from(scale) * f64::from(best) + kernel.tail_weight(scores, best, scale).ln()
}
