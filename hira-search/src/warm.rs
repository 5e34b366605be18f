//! Warm start: a first threshold from the keys of the previous step, proven for a top-k query, and a guess for one by mass.

use hira_kernels::{Kernel, Team};

use crate::disk_keys::DiskKeys;
use crate::group::Group;
use crate::history::{Level, SearchHistory};
use crate::settle::Target;

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
    /// See [`WarmStart::log_sum_exp`].
    log_sum_exp: Option<f64>,
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

    /// The logarithm of the mass of the keys remembered for query `g`, if the last [`raise`](Self::raise) guessed its threshold from that.
    pub(crate) fn log_sum_exp(&self, g: usize) -> Option<f64> {
        self.queries.get(g)?.log_sum_exp
    }

    /// Gives each top-k query the `k`-th best canonical score among the keys remembered for it, where they are enough, and each query by mass a
    /// threshold as far below their log-sum-exp as those of the last steps were below theirs.
    ///
    /// *Top-k.* They are distinct visible keys, whatever index and query they were remembered from, so `k` keys reach that score: it is
    /// proven, and can only be loose. On captured keys two steps share 60 to 75 % of their best 256 keys, and 1.4 to 1.9 keys
    /// reach this threshold for each one wanted (median). The rows read here are mostly those that survive again, so they are
    /// near when they are scored in the end.
    ///
    /// *By mass.* A guess ([`MassLevel`](crate::history::MassLevel)): the search proves afterwards what it drops.
    pub(crate) fn raise(
        &mut self,
        group: &Group<'_>,
        history: &SearchHistory,
        taus: &mut [f32],
        team: &Team,
    ) {
        let wanted = |g: usize| -> Option<(Wanted, &[u32])> {
            let range = group.seen.range();
            match group.targets[g] {
                Target::Top { k, .. } => Some((Wanted::Rank(k), history.previous(g, k, range)?)),
                Target::Mass { ratio, .. } => {
                    let level = history.mass_level(g, ratio)?;
                    let positions = history.remembered(g, range);
                    (!positions.is_empty()).then_some((Wanted::Level(level), positions))
                }
                Target::AtLeast { .. } => None,
            }
        };
        let positions = (0..group.len()).filter_map(wanted);
        self.disk
            .read(group, positions.map(|(_, positions)| positions));
        let disk = &self.disk;
        self.queries.resize_with(group.len(), Buffers::default);
        let queries = self.queries.iter_mut().zip(taus).enumerate();
        team.for_each(queries, |(g, (buffers, tau))| {
            buffers.log_sum_exp = None;
            let Some((wanted, positions)) = wanted(g) else {
                return;
            };
            buffers.score(disk, group, g, positions);
            match wanted {
                Wanted::Rank(k) => *tau = group.kernel.kth_largest(&buffers.scores, k),
                Wanted::Level(level) => {
                    let mass = log_sum_exp(group.kernel, group.scale, &buffers.scores);
                    let guess = ((level + mass) / f64::from(group.scale)) as f32;
                    // A scale so small that every threshold is far away: no guess.
                    if guess.is_finite() {
                        (*tau, buffers.log_sum_exp) = (guess, Some(mass));
                    }
                }
            }
        });
    }
}

/// What the first threshold of a query is to be.
#[derive(Clone, Copy)]
enum Wanted {
    /// The best score but so many.
    Rank(usize),
    /// Relative to the mass of the remembered keys.
    Level(Level),
}

/// `ln(sum of exp(scale * score))`, to a relative `4e-4` of the sum; `-inf` without scores.
pub(crate) fn log_sum_exp(kernel: Kernel, scale: f32, scores: &[f32]) -> f64 {
    let [_, best] = kernel.extremes(scores);
    let best = best.next_up();
    f64::from(scale) * f64::from(best) + kernel.tail_weight(scores, best, scale).ln()
}
