//! Brute force over scores: what a rule must select, worked out without the library.

use std::cmp::Ordering;

use hira_index::HierarchicalIndex;
use hira_search::Tail;
use hira_threshold::ThresholdRule;

/// What one query sees: the canonical score of every visible key, in order of position.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    /// The index that is searched, for rules that ask it for a sample of its positions.
    #[allow(dead_code, reason = "rules over a sample of the keys read it")]
    pub(crate) index: &'a HierarchicalIndex,
    pub(crate) scores: &'a [f32],
}

/// What a rule comes to for one query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cut {
    AtLeast(f32),
    Top(usize),
}

/// A rule, and what it must come to for each query of the group.
pub(crate) type Made = (ThresholdRule, Box<dyn Fn(&Seen<'_>) -> Cut>);

/// A kind of rule, made from an amount of 0 to 1000 so that it means something for every kind of rows.
pub(crate) struct RuleKind {
    pub(crate) name: &'static str,
    /// The amount, and what the first query of the group sees.
    pub(crate) make: fn(usize, &Seen<'_>) -> Made,
}

/// Every kind of rule.
pub(crate) const RULES: &[RuleKind] = &[
    kind("top-k", top_k),
    kind("percentile", percentile),
    kind("fixed at a score", at_score),
    kind("fixed above a score", above_score),
    kind("everything or nothing", everything_or_nothing),
];

const fn kind(name: &'static str, make: fn(usize, &Seen<'_>) -> Made) -> RuleKind {
    RuleKind { name, make }
}

fn top_k(amount: usize, seen: &Seen<'_>) -> Made {
    let visible = seen.scores.len();
    let k = match amount % 16 {
        0 => 1,
        1 => visible.max(1),
        2 => 10 * visible + 1,
        // Half of the keys at most, mostly few of them.
        _ => 1 + visible * amount * amount / 2_000_000,
    };
    (ThresholdRule::TopK { k }, Box::new(move |_| Cut::Top(k)))
}

/// Percentages of whole thousandths: six digits, which every `f32` keeps, so that the share is exact in integers.
fn percentile(amount: usize, _: &Seen<'_>) -> Made {
    let thousandths = 1 + amount.pow(3) / 10_001;
    let percent = thousandths as f32 / 1000.0;
    let count =
        move |seen: &Seen<'_>| Cut::Top((seen.scores.len() * thousandths).div_ceil(100_000));
    (ThresholdRule::Percentile { percent }, Box::new(count))
}

/// Exactly the score of a key, mostly a high one: its ties are selected.
fn at_score(amount: usize, seen: &Seen<'_>) -> Made {
    fixed(ranked(amount, seen))
}

/// The next number above the score of a key: its ties are not selected.
fn above_score(amount: usize, seen: &Seen<'_>) -> Made {
    fixed(ranked(amount, seen).next_up())
}

fn everything_or_nothing(amount: usize, _: &Seen<'_>) -> Made {
    fixed(match amount % 2 {
        0 => f32::NEG_INFINITY,
        _ => f32::INFINITY,
    })
}

fn fixed(tau: f32) -> Made {
    (
        ThresholdRule::Fixed { tau },
        Box::new(move |_| Cut::AtLeast(tau)),
    )
}

fn ranked(amount: usize, seen: &Seen<'_>) -> f32 {
    let mut scores = seen.scores.to_vec();
    if scores.is_empty() {
        return 0.0;
    }
    let rank = (scores.len() - 1) * amount * amount / 1_000_000;
    *scores.select_nth_unstable_by(rank, |a, b| b.total_cmp(a)).1
}

/// The positions that must be selected, ascending, and whether `limit` cut them.
pub(crate) fn select(cut: Cut, scores: &[f32], limit: Option<usize>) -> (Vec<u32>, bool) {
    let mut positions: Vec<u32> = (0..scores.len() as u32).collect();
    match cut {
        Cut::AtLeast(tau) => positions.retain(|&position| scores[position as usize] >= tau),
        Cut::Top(k) => keep_best(&mut positions, scores, k),
    }
    let truncated = limit.is_some_and(|limit| positions.len() > limit);
    if let Some(limit) = limit {
        keep_best(&mut positions, scores, limit);
    }
    (positions, truncated)
}

/// Keeps the `k` positions of the highest scores, equal ones by the lower position, in ascending order.
fn keep_best(positions: &mut Vec<u32>, scores: &[f32], k: usize) {
    if k == 0 {
        positions.clear();
    }
    if k >= positions.len() {
        return;
    }
    let better = |a: &u32, b: &u32| -> Ordering {
        // No score is NaN; the two zeros compare as equal.
        let by_score = scores[*b as usize].partial_cmp(&scores[*a as usize]);
        by_score.unwrap_or(Ordering::Equal).then(a.cmp(b))
    };
    positions.select_nth_unstable_by(k - 1, better);
    positions.truncate(k);
    positions.sort_unstable();
}

/// Says what is wrong with a tail: it must bound the weight of what was left out, by no more than one a key.
pub(crate) fn check_tail(
    scores: &[f32],
    selected: &[u32],
    scale: f32,
    tail: &Tail,
) -> Result<(), String> {
    let left_out = scores.len() - selected.len();
    let wrong = |why: String| Err(format!("{tail:?} of {left_out} keys: {why}"));
    if !tail.reference.is_finite() {
        return wrong("the reference is not finite".into());
    }
    if left_out == 0 || scale == 0.0 {
        let expected = if left_out == 0 { 0.0 } else { f64::INFINITY };
        return match tail.sum == expected {
            true => Ok(()),
            false => wrong(format!("the sum must be {expected}")),
        };
    }
    let mut selected = selected.iter().peekable();
    let mut sum = 0.0;
    for (position, &score) in scores.iter().enumerate() {
        if selected.next_if(|&&at| at as usize == position).is_some() {
            continue;
        }
        if score > tail.reference {
            return wrong(format!("key {position} scores {score}, which is higher"));
        }
        sum += (f64::from(scale) * (f64::from(score) - f64::from(tail.reference))).exp();
    }
    // The oracle's own rounding: half a unit a term and addition, about 1e-16 each.
    if tail.sum < sum * (1.0 - 1e-16 * (16.0 + scores.len() as f64)) {
        return wrong(format!("they weigh {sum}"));
    }
    if tail.sum > left_out as f64 * 1.001 {
        return wrong("more than one a key".into());
    }
    Ok(())
}
