//! Thresholds by softmax mass: the highest score below which the keys are proven to hold at most a given share.
//!
//! # Derivation
//!
//! Let `S` be the weight of the keys that are kept and `T` that of the others, both relative to any one score. The share `T / (T + S)` is
//! at most `eps` exactly where `T <= r S` with `r = eps / (1 - eps)`. So it is enough to compare an upper bound on `T` with a lower one on `S`.
//!
//! *First, a guess* `tau_0`: from the mass of the keys of the previous step ([`Levels`](crate::history::Levels)), or else the same comparison
//! over a sample of the sketch ([`guess`]). It only decides which keys become candidates, those with `upper >= tau_0`; of the others the scan sums an
//! upper bound `T_0`.
//!
//! *Then, from bounds* ([`MassRescoring::certify_bounds`]): for a threshold `tau >= tau_0` the keys below it weigh at most `T_0`, and
//! `exp(min(upper, tau))` for each candidate with `lower < tau`; those that reach it weigh at least `exp(lower)` for each with `lower >= tau`.
//! The highest `tau_1` that satisfies `T <= r S` so is certified. Candidates with `upper >= tau_1` survive and are scored exactly. If
//! not even `tau_0` does, the guess was too high and the sketch is scanned again from a lower one.
//!
//! *Last, from scores* ([`certify_scores`]): of the survivors the weights are known, of the others as before. The highest
//! threshold that satisfies `T <= r S` now is at least `tau_1`: each survivor below `tau_1` had been counted with a larger weight, each above
//! with a smaller one. The least score that reaches it is the `tau` of the selection: all keys that reach `tau` survived, so the selected
//! set is that of a halfspace query.
//!
//! Sums and exponentials are rounded outward (`hira-kernels/src/mass.rs`, `tail.rs`).

use hira_kernels::{Kernel, MassBounds, MassSplit};

use crate::group::Group;
use crate::scan::Part;
use crate::tail;

/// How finely thresholds are looked for, in logits. A guess is off by more, and one of scores decides how many keys are kept.
const GUESS_STEP: f32 = 1.0 / 8.0;
const BOUNDS_STEP: f32 = 1.0 / 32.0;
const SCORES_STEP: f32 = 1.0 / 1024.0;

/// Part of the allowed mass that is left to the caller: its own exponentials, and the difference between two upper bounds of one sum.
const ALLOWANCE: f64 = 1.0 / 512.0;

/// Times that a sampled tail is taken where there is nothing else to guess from.
const MARGIN: f64 = 2.0;

/// Guesses before every key becomes a candidate.
const MAX_ATTEMPTS: u32 = 3;

/// `r` for a share `0 < dropped < 1`, a little reduced.
pub(crate) fn ratio(dropped: f32) -> f64 {
    let dropped = f64::from(dropped);
    dropped / (1.0 - dropped) * (1.0 - ALLOWANCE)
}

/// What is known of one query's threshold by mass from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct MassRescoring {
    /// Thresholds that were tried for this search.
    attempts: u32,
    /// What the bounds certified.
    certified: Option<f32>,
}

impl MassRescoring {
    /// Starts a new search.
    pub(crate) fn begin(&mut self) {
        (self.attempts, self.certified) = (0, None);
    }

    /// The threshold that the bounds certified, if they were asked.
    pub(crate) fn certified(&self) -> Option<f32> {
        self.certified
    }

    /// The highest threshold that the candidates' bounds certify, or else a lower one to scan from.
    ///
    /// `skipped` is the weight of keys that no part read, relative to `tau`, the threshold of the scan; `keys` is a buffer.
    pub(crate) fn certify_bounds(
        &mut self,
        keys: &mut MassBounds,
        group: &Group<'_>,
        g: usize,
        parts: &[Part],
        (tau, skipped): (f32, f64),
        ratio: f64,
    ) -> Result<f32, f32> {
        let Group { kernel, scale, .. } = *group;
        keys.clear();
        let mut tail = skipped;
        for part in parts {
            let found = &part.found[g];
            keys.push_bounds(&found.lower, &found.upper);
            // No part of a search by mass raises its threshold.
            tail = tail::add(tail, tail::add(found.tail, part.apart[g]));
        }
        self.attempts += 1;
        if keys.is_empty() {
            return Err(f32::NEG_INFINITY);
        }
        let reference = keys.weigh(kernel, scale);
        // Without a threshold there is no tail, and the least lower bound is enough: such a scan is the last one.
        let tail = tail::rescale(tail, scale, tau, reference);
        let cut = keys.highest(kernel, tau, BOUNDS_STEP, |split| excess(split, tail, ratio));
        self.certified = cut.tau;
        if let Some(tau) = cut.tau {
            return Ok(tau);
        }
        if self.attempts >= MAX_ATTEMPTS {
            return Err(f32::NEG_INFINITY);
        }
        // A tail falls more slowly than its largest weight: twice the distance that would be needed if it fell as fast.
        let lower = f64::from(tau) - (2.0 * cut.first.ln() + 0.5) / f64::from(scale);
        let finite = lower.is_finite() && lower > f64::from(f32::MIN);
        Err(if finite {
            lower as f32
        } else {
            f32::NEG_INFINITY
        })
    }
}

/// The least score to select, of `scores` that are not empty; the keys without a score are below `floor`, and weigh at most
/// `unscored(reference)`. `keys` is a buffer.
pub(crate) fn certify_scores(
    keys: &mut MassBounds,
    kernel: Kernel,
    scale: f32,
    scores: &[f32],
    ratio: f64,
    (floor, unscored): (f32, impl Fn(f32) -> f64),
) -> f32 {
    keys.clear();
    keys.push_scores(scores);
    let reference = keys.weigh(kernel, scale);
    let tail = unscored(reference);
    let excess = |split| excess(split, tail, ratio);
    let tau = keys.highest(kernel, floor, SCORES_STEP, excess).tau;
    // Where `floor` itself is refused, by the last bits of sums that were enough with bounds: everything that reaches it.
    let tau = tau.unwrap_or(floor);
    kernel.least_at(scores, tau)
}

/// What is dropped over what may be, rounded outward; 0 where nothing is dropped, whatever is kept, and infinite where nothing is kept.
fn excess(split: MassSplit, tail: f64, ratio: f64) -> f64 {
    let dropped = split.dropped + tail;
    if dropped == 0.0 {
        return 0.0;
    }
    let allowed = (ratio * split.kept).next_down();
    if allowed > 0.0 {
        (dropped.next_up() / allowed).next_up()
    } else {
        f64::INFINITY
    }
}

/// A threshold to scan from, for a query with these bounds of every `stride`-th tile or so, whatever share of all keys they are: it cancels out. The sampled tail is taken
/// [`MARGIN`] times. `-inf` where the sample does not say.
pub(crate) fn guess(keys: &mut MassBounds, kernel: Kernel, scale: f32, ratio: f64) -> f32 {
    if keys.weigh(kernel, scale) == f32::NEG_INFINITY {
        return f32::NEG_INFINITY;
    }
    let excess = |split: MassSplit| MARGIN * split.dropped / (ratio * split.kept);
    let cut = keys.highest(kernel, f32::NEG_INFINITY, GUESS_STEP, excess);
    cut.tau.unwrap_or(f32::NEG_INFINITY)
}
