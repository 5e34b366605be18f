//! The last step of every plan: from exactly scored keys to the selection and its tail.

use hira_kernels::{Kernel, MassBounds};
use hira_threshold::Cut;

use crate::blocks::CHUNK;
use crate::history::Sought;
use crate::mass;
use crate::selection::{Selection, Tail};
use crate::tail;

/// A rule's cut for one query, within the number of visible keys and of candidates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// Every key that reaches `tau`, the best `limit` of them.
    AtLeast { tau: f32, limit: usize },
    /// The best `k` keys, `1 <= k <= visible`.
    Top { k: usize, truncated: bool },
    /// The keys that reach the highest score for which the others are proven to weigh at most `ratio` times as much; the best `limit` of them.
    Mass { ratio: f64, limit: usize },
}

impl Target {
    /// The target of a cut among `visible >= 1` keys; none if its value is NaN.
    ///
    /// `tau` moves into the finite range, which changes no answer: a score is the sum of products of two norms below 2^63, so its
    /// magnitude stays below 2^127. For the same reason no key reaches `f32::MAX`, which is what the best 0 keys come to.
    pub(crate) fn new(cut: Cut, visible: usize, max_candidates: Option<usize>) -> Option<Self> {
        let limit = max_candidates.unwrap_or(usize::MAX);
        match cut {
            Cut::AtLeast { tau } if tau.is_nan() => None,
            Cut::AtLeast { tau } => Some(Self::AtLeast {
                tau: tau.clamp(f32::MIN, f32::MAX),
                limit,
            }),
            Cut::Mass { dropped } if dropped.is_nan() => None,
            Cut::Mass { dropped } if dropped <= 0.0 => Some(Self::AtLeast {
                tau: f32::MIN,
                limit,
            }),
            Cut::Mass { dropped } if dropped >= 1.0 => Some(Self::Top {
                k: 1,
                truncated: false,
            }),
            Cut::Mass { dropped } => Some(Self::Mass {
                ratio: mass::ratio(dropped),
                limit,
            }),
            Cut::Top { k: 0 } => Some(Self::AtLeast {
                tau: f32::MAX,
                limit,
            }),
            Cut::Top { k } => {
                let k = k.min(visible);
                Some(Self::Top {
                    k: k.min(limit),
                    truncated: k > limit,
                })
            }
        }
    }

    pub(crate) fn is_top(&self) -> bool {
        matches!(self, Self::Top { .. })
    }

    /// What its thresholds' levels belong to; none if the threshold is given.
    pub(crate) fn sought(&self) -> Option<Sought> {
        match *self {
            Self::AtLeast { .. } => None,
            Self::Top { k, .. } => Some(Sought::Top(k)),
            Self::Mass { ratio, .. } => Some(Sought::Mass(ratio)),
        }
    }

    pub(crate) fn is_mass(&self) -> bool {
        matches!(self, Self::Mass { .. })
    }

    /// Whether every visible key is selected, so that no bound can help.
    pub(crate) fn is_everything(&self, visible: usize) -> bool {
        match *self {
            Self::AtLeast { tau, limit } => tau == f32::MIN && limit >= visible,
            Self::Top { k, .. } => k == visible,
            Self::Mass { .. } => false,
        }
    }
}

/// Buffers of [`settle`].
#[derive(Debug, Default)]
pub(crate) struct Settling {
    scores: Vec<f32>,
    pub(crate) mass: MassBounds,
}

impl Settling {
    /// Canonical scores of the survivors, if a tail was asked for or the best `k` were.
    pub(crate) fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// Weight of the scored keys that were not selected, which are all below the tail's reference but for its ties beyond the selected ones;
    /// what [`settle`] left there if no tail was asked for or nothing is left out.
    pub(crate) fn left_out(
        &self,
        kernel: Kernel,
        visible: usize,
        scale: f32,
        out: &Selection,
    ) -> f64 {
        let Tail { reference, sum } = out.tail;
        if scale <= 0.0 || out.stats.selected == visible {
            return sum;
        }
        let reached = |&&score: &&f32| score >= reference;
        let ties = self.scores.iter().filter(reached).count() - out.stats.selected;
        let below = tail::sum_below(kernel, scale, &self.scores, reference, reference);
        tail::add(below, ties as f64)
    }

    pub(crate) fn memory_usage(&self) -> usize {
        4 * self.scores.capacity() + self.mass.memory_usage()
    }
}

/// Reduces the survivors in `out` (positions ascending, with their canonical scores) to the selection, and sets the reference of its tail,
/// whose sum is the caller's to find: that of the survivors that were left out ([`Settling::left_out`]) and of the keys that were never scored. Until
/// then it is infinite, unless nothing is left out.
///
/// A target by mass needs to know of those: they are below the score `floor`, and weigh at most `unscored(reference)`.
pub(crate) fn settle(
    kernel: Kernel,
    target: Target,
    visible: usize,
    scale: f32,
    buffers: &mut Settling,
    (floor, unscored): (f32, impl Fn(f32) -> f64),
    out: &mut Selection,
) {
    buffers.scores.clear();
    if scale > 0.0 || target.is_top() {
        buffers.scores.extend_from_slice(&out.scores);
    }
    out.stats.survivors = out.positions.len();
    let (tau, keep, mut truncated) = match target {
        Target::AtLeast { tau, limit } => (Some(tau), limit, false),
        Target::Mass { ratio, limit } => {
            let known = (floor, unscored);
            let mass = &mut buffers.mass;
            let tau = mass::certify_scores(mass, kernel, scale, &out.scores, ratio, known);
            (Some(tau), limit, false)
        }
        Target::Top { k, truncated } => (None, k, truncated),
    };
    if let Some(tau) = tau {
        keep_at_least(kernel, tau, &mut out.positions, &mut out.scores);
        truncated = out.positions.len() > keep;
    }
    if out.positions.len() > keep {
        keep_best(kernel, keep, &mut out.positions, &mut out.scores);
    }
    let selected = out.positions.len();
    truncated &= selected < visible;
    out.stats.selected = selected;
    out.stats.truncated = truncated;
    let lowest = out.scores.iter().copied().reduce(f32::min);
    let reference = match tau {
        Some(tau) if !truncated && selected < visible => tau,
        _ => lowest.unwrap_or(0.0),
    };
    out.tail = Tail {
        reference,
        sum: if selected == visible {
            0.0
        } else {
            f64::INFINITY
        },
    };
}

/// Keeps the `k` best of more keys than that, whose positions ascend: ties go to the lower position.
fn keep_best(kernel: Kernel, k: usize, positions: &mut Vec<u32>, scores: &mut Vec<f32>) {
    let limit = kernel.kth_largest(scores, k);
    keep_at_least(kernel, limit, positions, scores);
    if positions.len() > k {
        drop_last_ties(limit, positions.len() - k, positions, scores);
    }
}

/// Keeps the keys that score at least `limit`, in their order.
fn keep_at_least(kernel: Kernel, limit: f32, positions: &mut Vec<u32>, scores: &mut Vec<f32>) {
    let (mut places, mut kept) = ([0; CHUNK], 0);
    for first in (0..scores.len()).step_by(CHUNK) {
        let values = &scores[first..scores.len().min(first + CHUNK)];
        let places = &mut places[..values.len()];
        let count = kernel.places_within(values, limit..f32::INFINITY, places);
        for &place in &places[..count] {
            let place = first + place as usize;
            positions[kept] = positions[place];
            scores[kept] = scores[place];
            kept += 1;
        }
    }
    positions.truncate(kept);
    scores.truncate(kept);
}

/// Drops the `count` last of the keys that score `limit`.
fn drop_last_ties(limit: f32, count: usize, positions: &mut Vec<u32>, scores: &mut Vec<f32>) {
    let mut kept = scores.iter().filter(|&&score| score == limit).count() - count;
    let mut end = 0;
    for i in 0..positions.len() {
        let (position, score) = (positions[i], scores[i]);
        if score == limit {
            if kept == 0 {
                continue;
            }
            kept -= 1;
        }
        (positions[end], scores[end]) = (position, score);
        end += 1;
    }
    positions.truncate(end);
    scores.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(target: Target, scores: &[f32], visible: usize, scale: f32) -> Selection {
        let mut out = Selection {
            positions: (0..scores.len() as u32).collect(),
            scores: scores.to_vec(),
            ..Selection::default()
        };
        let buffers = &mut Settling::default();
        let nothing = (f32::MIN, |_| 0.0);
        settle(
            Kernel::best(),
            target,
            visible,
            scale,
            buffers,
            nothing,
            &mut out,
        );
        out.tail.sum = buffers.left_out(Kernel::best(), visible, scale, &out);
        out
    }

    #[test]
    fn ties_go_to_the_lower_positions_whatever_the_length() {
        for len in [3, CHUNK, CHUNK + 1, 5 * CHUNK - 3] {
            // 0, 1 and 2 in turn
            let scores: Vec<f32> = (0..len).map(|i| (i % 3) as f32).collect();
            for k in [1, 2, len / 2, len - 1] {
                let target = Target::Top {
                    k,
                    truncated: false,
                };
                let mut expected: Vec<u32> = (0..len as u32).collect();
                expected.sort_by_key(|&position| -(position as i32 % 3));
                expected.truncate(k);
                expected.sort_unstable();
                assert_eq!(settled(target, &scores, len, 1.0).positions, expected);
            }
        }
    }

    #[test]
    fn ties_beyond_the_selected_weigh_one_each() {
        let target = Target::Top {
            k: 2,
            truncated: false,
        };
        let out = settled(target, &[1.0, 2.0, 1.0, 1.0], 4, 0.5);
        assert_eq!(out.positions, [0, 1]);
        assert_eq!(out.tail.reference, 1.0);
        assert!(out.tail.sum >= 2.0 && out.tail.sum < 2.0 + 1e-9);
    }

    #[test]
    fn a_truncated_selection_refers_to_its_lowest_score() {
        let cut = Cut::AtLeast {
            tau: f32::NEG_INFINITY,
        };
        let target = Target::new(cut, 4, Some(1)).expect("no NaN");
        let out = settled(target, &[1.0, 2.0, 1.0, 1.0], 4, 1.0);
        assert_eq!(
            (out.positions.as_slice(), out.stats.truncated),
            (&[1][..], true)
        );
        assert_eq!(out.tail.reference, 2.0);
        assert!(out.tail.sum >= 3.0 * (-1.0f64).exp());
    }

    #[test]
    fn an_unasked_tail_is_infinite_unless_nothing_is_left_out() {
        let target = Target::new(Cut::AtLeast { tau: 0.5 }, 2, None).expect("no NaN");
        assert_eq!(settled(target, &[1.0, 2.0], 2, 0.0).tail.sum, 0.0);
        let out = settled(target, &[1.0, 0.0], 2, 0.0);
        assert_eq!((out.tail.reference, out.tail.sum), (0.5, f64::INFINITY));
    }

    #[test]
    fn cuts_are_limited_to_what_is_there() {
        let top = |k, limit| Target::new(Cut::Top { k }, 5, limit);
        let target = |k, truncated| Some(Target::Top { k, truncated });
        assert_eq!(top(9, None), target(5, false));
        assert_eq!(top(9, Some(4)), target(4, true));
        assert_eq!(top(3, Some(4)), target(3, false));
        let nothing = Target::AtLeast {
            tau: f32::MAX,
            limit: usize::MAX,
        };
        assert_eq!(top(0, None), Some(nothing));
        let at_least = |tau| Target::new(Cut::AtLeast { tau }, 5, None);
        assert_eq!(at_least(f32::INFINITY), Some(nothing));
        assert_eq!(at_least(f32::NAN), None);
        assert!(at_least(f32::NEG_INFINITY).is_some_and(|target| target.is_everything(5)));
        assert!(!at_least(0.0).is_some_and(|target| target.is_everything(5)));
    }
}
