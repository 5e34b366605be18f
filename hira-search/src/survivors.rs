//! What is done for one query after the scan: from candidates to survivors, exact scores and the selection.

use hira_kernels::{Candidates, Kernel};

use crate::blocks::{self, Apart, BlockSums, Weighing};
use crate::disk_keys::DiskKeys;
use crate::group::Group;
use crate::history::Sought;
use crate::mass::MassRescoring;
use crate::scan::Part;
use crate::selection::Selection;
use crate::settle::{Settling, Target, settle};
use crate::tail;
use crate::visible::Visible;
use crate::warm::base;

/// Keys that the next first threshold of a top-k query is guessed from, at most.
const NEAR: usize = 48;
/// How far above the threshold they may score, in logits.
const ABOVE: f64 = 0.125;
/// Best keys that the next threshold by mass is guessed from: with all of the selected ones a guess leaves 2 to 6 % fewer candidates.
const BEST: usize = 64;

/// What is kept of one query from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Rescoring {
    /// Positions that were scored exactly.
    survivors: Vec<u32>,
    /// Those to guess the next first threshold from, and what their scores say of this query: see [`base`].
    remembered: Vec<u32>,
    base: f64,
    pub(crate) mass: MassRescoring,
}

/// Buffers of what is done for one query after the other.
#[derive(Debug, Default)]
pub(crate) struct Working {
    /// Lower bounds of all candidates; later some scores.
    lower: Vec<f32>,
    rebased: Vec<u32>,
    bitmap: Vec<u64>,
    sums: BlockSums,
    pub(crate) settling: Settling,
}

/// One pass over the sketch: what it found, and what it left out.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) group: &'a Group<'a>,
    pub(crate) parts: &'a [Part],
    /// For each query, the weight of the keys that no part read, relative to the threshold that the pass began with.
    pub(crate) skipped: &'a [f64],
    pub(crate) apart: &'a Apart,
}

/// Thresholds of a query whose survivors are known and not scored yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Narrowed {
    /// Every key that is not a candidate of its part scores below this.
    excluded: f32,
    /// The upper bounds of all survivors reach it.
    floor: f32,
}

/// The guessed threshold was too high; this lower one is proven (`-inf` if there were fewer than `k` candidates), or guessed again for a query by
/// mass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rescan(pub(crate) f32);

impl Rescoring {
    pub(crate) fn memory_usage(&self) -> usize {
        4 * (self.survivors.capacity() + self.remembered.capacity())
    }

    /// Ascending positions to guess the next first threshold from, after the best keys or a mass were selected.
    pub(crate) fn remembered(&self) -> &[u32] {
        &self.remembered
    }

    /// What their scores say of the query.
    pub(crate) fn base(&self) -> f64 {
        self.base
    }

    /// Chooses what to remember of a selection: of the best `k` survivors that score at most [`ABOVE`] more than the last selected key (what survived without being
    /// selected is as near below), of a mass the best of the selected keys.
    fn remember(
        &mut self,
        working: &mut Working,
        group: &Group<'_>,
        sought: Sought,
        out: &Selection,
    ) {
        let (positions, scores, from, end, most) = match sought {
            Sought::Top(_) => {
                let tau = out.tail.reference;
                let end = tau + (ABOVE / group.logits()) as f32;
                let scores = working.settling.scores();
                let end = end.max(tau.next_up());
                (&self.survivors, scores, f32::NEG_INFINITY, end, NEAR)
            }
            Sought::Mass(_) => {
                let least = group.kernel.kth_largest(&out.scores, BEST);
                (&out.positions, &out.scores[..], least, f32::INFINITY, BEST)
            }
        };
        let (places, picked) = (&mut working.rebased, &mut working.lower);
        places.resize(scores.len(), 0);
        picked.resize(scores.len(), 0.0);
        let count = group.kernel.pick_within(scores, from..end, places, picked);
        // Evenly where there are more that are near; more that are best are ties.
        let step = match sought {
            Sought::Top(_) => count.div_ceil(most).max(1),
            Sought::Mass(_) => 1,
        };
        self.remembered.clear();
        for (i, at) in (0..count).step_by(step).take(most).enumerate() {
            self.remembered.push(positions[places[at] as usize]);
            picked[i] = picked[at];
        }
        self.base = base(group, sought, &picked[..self.remembered.len()]);
    }

    /// Finds the survivors of query `g`, of a pass that began with the threshold `tau`: the positions in `out`, not scored yet.
    pub(crate) fn narrow(
        &mut self,
        working: &mut Working,
        pass: Pass<'_>,
        (g, tau): (usize, f32),
        out: &mut Selection,
    ) -> Result<Narrowed, Rescan> {
        let Pass { group, parts, .. } = pass;
        let excluded = parts
            .iter()
            .fold(tau, |tau, part| tau.max(part.queries[g].tau));
        out.stats.candidates = parts.iter().map(|part| part.found[g].slots.len()).sum();
        let target = group.targets[g];
        let proven = match target {
            Target::AtLeast { tau, .. } => tau,
            Target::Top { k, .. } => working.kth_lower(group, parts, g, k),
            Target::Mass { ratio, .. } => {
                let keys = &mut working.settling.mass;
                let began = (tau, pass.skipped[g]);
                let certified = (self.mass).certify_bounds(keys, group, g, parts, began, ratio);
                certified.map_err(Rescan)?
            }
        };
        // Above the proven threshold if the guess was too high for the lower bounds; the exact scores may still reach it.
        let floor = proven.max(excluded);
        out.positions.clear();
        for part in parts {
            let found = &part.found[g];
            keep_at_least(group.kernel, found, floor, &mut out.positions);
        }
        if let Target::Top { k, .. } = target
            && out.positions.len() < k
        {
            return Err(Rescan(proven));
        }
        working.map_slots(group, &mut out.positions);
        Ok(Narrowed { excluded, floor })
    }

    /// Scores the survivors that [`narrow`](Self::narrow) found, those that `disk` has read there, and selects.
    pub(crate) fn settle(
        &mut self,
        working: &mut Working,
        pass: Pass<'_>,
        (g, tau, narrowed): (usize, f32, Narrowed),
        disk: &DiskKeys,
        out: &mut Selection,
    ) -> Result<(), Rescan> {
        let Narrowed { excluded, floor } = narrowed;
        let group = pass.group;
        let target = group.targets[g];
        out.scores.clear();
        out.scores.resize(out.positions.len(), 0.0);
        let (positions, rebased) = (&out.positions, &mut working.rebased);
        disk.score(group, g, positions, rebased, &mut out.scores);
        self.survivors.clear();
        self.survivors.extend_from_slice(&out.positions);
        let buffers = &mut working.settling;
        settle(
            group.kernel,
            target,
            group.visible(),
            group.scale,
            buffers,
            (floor, |reference| unscored(pass, g, tau, floor, reference)),
            out,
        );
        // `k` keys reach the lowest of the selected scores: it is proven, and final unless a key that was excluded can reach it.
        if target.is_top() && out.tail.reference < excluded {
            return Err(Rescan(out.tail.reference));
        }
        if let Some(sought) = target.sought() {
            self.remember(working, group, sought, out);
        }
        if group.scale > 0.0 && out.stats.selected < group.visible() {
            out.tail.sum = if group.tail_block > 0 {
                working.add_unscored_blocks(pass, g, (tau, floor), &self.survivors, out)
            } else {
                let settling = &working.settling;
                let scored = settling.left_out(group.kernel, group.visible(), group.scale, out);
                let reference = out.tail.reference;
                let unscored = unscored(pass, g, tau, floor, reference);
                tail::add(scored, unscored)
            };
        }
        Ok(())
    }
}

impl Working {
    pub(crate) fn memory_usage(&self) -> usize {
        4 * (self.lower.capacity() + self.rebased.capacity())
            + self.sums.memory_usage()
            + 8 * self.bitmap.capacity()
            + self.settling.memory_usage()
    }

    /// What [`unscored`] and [`Settling::left_out`] bound, by blocks. Returns all of it.
    fn add_unscored_blocks(
        &mut self,
        pass: Pass<'_>,
        g: usize,
        (tau, floor): (f32, f32),
        survivors: &[u32],
        out: &mut Selection,
    ) -> f64 {
        let group = pass.group;
        let (block_keys, weighing) = (group.tail_block, weighing(group, out));
        let (scale, reference) = (weighing.scale, weighing.reference);
        let sums = &mut self.sums;
        sums.begin(group.seen.blocks(block_keys));
        let mut unblocked = tail::rescale(pass.skipped[g], scale, tau, reference);
        for part in pass.parts {
            let (found, from) = (&part.found[g], part.queries[g].tau);
            sums.add_scanned(&found.blocks, blocks::factor(scale, from, reference));
            let below = tail::rescale(part.apart[g], scale, from, reference);
            unblocked = tail::add(unblocked, below);
            let bounded = sums.add_bounded(found, floor, (block_keys, pass.apart), weighing);
            unblocked = tail::add(unblocked, bounded);
        }
        let scores = self.settling.scores();
        let position = |place: usize| survivors[place];
        sums.add_scored(position, scores, &out.positions, block_keys, weighing);
        sums.weigh(weighing);
        sums.finish(block_keys, unblocked, &mut out.blocks)
    }

    /// The tail of a dense search by blocks, if that is asked for and something is left out: every key is scored.
    pub(crate) fn add_blocks(&mut self, group: &Group<'_>, out: &mut Selection) {
        let block_keys = group.tail_block;
        if block_keys == 0 || out.stats.selected == group.visible() {
            return;
        }
        let sums = &mut self.sums;
        sums.begin(group.seen.blocks(block_keys));
        let first = group.seen.first;
        let position = |place: usize| (first + place) as u32;
        let scores = self.settling.scores();
        let weighing = weighing(group, out);
        sums.add_scored(position, scores, &out.positions, block_keys, weighing);
        sums.weigh(weighing);
        sums.finish(block_keys, 0.0, &mut out.blocks);
    }

    /// The `k`-th largest lower bound of all candidates: at least `k` keys reach it. `-inf` if there are fewer candidates.
    fn kth_lower(&mut self, group: &Group<'_>, parts: &[Part], g: usize, k: usize) -> f32 {
        self.lower.clear();
        for part in parts {
            self.lower.extend_from_slice(&part.found[g].lower);
        }
        group.kernel.kth_largest(&self.lower, k)
    }

    /// Turns slots, ascending by segment, into positions, ascending.
    fn map_slots(&mut self, group: &Group<'_>, slots: &mut [u32]) {
        let mut rest = slots;
        for Visible { segment, .. } in Visible::segments(group.index, group.seen) {
            let start = segment.start() as u32;
            let end = start + segment.len() as u32;
            let (here, after) = rest.split_at_mut(rest.partition_point(|&slot| slot < end));
            rest = after;
            if segment.order().is_some() {
                for slot in here.iter_mut() {
                    *slot = segment.position_of_slot(*slot - start);
                }
                self.sort(here, segment.len());
                here.iter_mut().for_each(|position| *position += start);
            }
        }
    }

    /// Sorts distinct positions below `len`: by a bitmap where that is short, 4 times as fast as comparing.
    fn sort(&mut self, positions: &mut [u32], len: usize) {
        let words = len.div_ceil(64);
        if words > 4 * positions.len() {
            positions.sort_unstable();
            return;
        }
        self.bitmap.clear();
        self.bitmap.resize(words, 0);
        for &position in positions.iter() {
            self.bitmap[position as usize / 64] |= 1 << (position % 64);
        }
        let mut sorted = positions.iter_mut();
        for (word, &bits) in self.bitmap.iter().enumerate() {
            let mut bits: u64 = bits;
            while bits != 0 {
                if let Some(position) = sorted.next() {
                    *position = 64 * word as u32 + bits.trailing_zeros();
                }
                bits &= bits - 1;
            }
        }
    }
}

fn weighing(group: &Group<'_>, out: &Selection) -> Weighing {
    Weighing {
        kernel: group.kernel,
        scale: group.scale,
        reference: out.tail.reference,
    }
}

/// Appends the slots whose upper bound reaches `floor`.
fn keep_at_least(kernel: Kernel, found: &Candidates, floor: f32, kept: &mut Vec<u32>) {
    let first = kept.len();
    kept.resize(first + found.len(), 0);
    let places = &mut kept[first..];
    let count = kernel.places_within(&found.upper, floor..f32::INFINITY, places);
    for place in &mut places[..count] {
        *place = found.slots[*place as usize];
    }
    kept.truncate(first + count);
}

/// Weight of the keys that were never scored: those that no part read, those below their part's threshold, and the candidates below
/// `floor`.
fn unscored(pass: Pass<'_>, g: usize, tau: f32, floor: f32, reference: f32) -> f64 {
    let group = pass.group;
    let mut sum = tail::rescale(pass.skipped[g], group.scale, tau, reference);
    for part in pass.parts {
        let found = &part.found[g];
        for tail in [found.tail, part.apart[g]] {
            let below = tail::rescale(tail, group.scale, part.queries[g].tau, reference);
            sum = tail::add(sum, below);
        }
        let unscored = tail::sum_below(group.kernel, group.scale, &found.upper, floor, reference);
        sum = tail::add(sum, unscored);
    }
    sum
}
