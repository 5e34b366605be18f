//! Brute force over scores: what a rule must select, worked out without the library.

use std::cmp::Ordering;

use hira_index::HierarchicalIndex;
use hira_search::Tail;
use hira_threshold::ThresholdRule;

/// What one query sees: the canonical score of every visible key, in order of position.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    /// The index that is searched, for rules that ask it for a sample of its positions.
    pub(crate) index: &'a HierarchicalIndex,
    /// The first position that is seen.
    pub(crate) first: usize,
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
    kind("adaptive", adaptive),
    kind("sample max", sample_max),
    kind("sample top-k", sample_top_k),
    kind("sample mean-max", sample_mean_max),
    kind("sample gap", sample_gap),
    kind("budget", budget),
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

impl Seen<'_> {
    /// Scores of the sampled keys, in the order of the sample.
    fn sample(&self) -> Vec<f32> {
        let mut positions = Vec::new();
        let range = self.first..self.first + self.scores.len();
        self.index.sample_range(range, &mut positions);
        let scores = positions
            .iter()
            .map(|&at| self.scores[at as usize - self.first]);
        scores.collect()
    }

    /// The same, best first.
    fn sorted_sample(&self) -> Vec<f32> {
        let mut sample = self.sample();
        sample.sort_by(|a, b| b.total_cmp(a));
        sample
    }

    fn sample_mean(&self) -> f64 {
        let sample = self.sample();
        sample.iter().map(|&s| f64::from(s)).sum::<f64>() / sample.len() as f64
    }
}

/// A rule that comes to `tau` of the sample, rounded once, and to every key where there is no sample.
fn sampled(rule: ThresholdRule, tau: impl Fn(&Seen<'_>) -> f64 + 'static) -> Made {
    let cut = move |seen: &Seen<'_>| {
        let tau = if seen.sample().is_empty() {
            f32::NEG_INFINITY
        } else {
            tau(seen) as f32
        };
        Cut::AtLeast(tau)
    };
    (rule, Box::new(cut))
}

fn adaptive(amount: usize, _: &Seen<'_>) -> Made {
    let c = amount as f32 / 200.0 - 1.0;
    sampled(ThresholdRule::Adaptive { c }, move |seen| {
        let (sample, mean) = (seen.sample(), seen.sample_mean());
        let squares = sample.iter().map(|&s| (f64::from(s) - mean).powi(2));
        mean + f64::from(c) * (squares.sum::<f64>() / sample.len() as f64).sqrt()
    })
}

fn sample_max(_: usize, _: &Seen<'_>) -> Made {
    sampled(ThresholdRule::SampleMax, |seen| {
        f64::from(seen.sorted_sample()[0])
    })
}

fn sample_top_k(amount: usize, seen: &Seen<'_>) -> Made {
    let k = 1 + seen.scores.len() * amount * amount / 900_000;
    sampled(ThresholdRule::SampleTopK { k }, move |seen| {
        let (sample, visible) = (seen.sorted_sample(), seen.scores.len());
        if k >= visible {
            return f64::NEG_INFINITY;
        }
        f64::from(sample[(k * sample.len()).div_ceil(visible) - 1])
    })
}

fn sample_mean_max(amount: usize, _: &Seen<'_>) -> Made {
    let weight = amount as f32 / 1000.0;
    sampled(ThresholdRule::SampleMeanMax { weight }, move |seen| {
        let largest = f64::from(seen.sorted_sample()[0]);
        let mean = seen.sample_mean().min(largest);
        let between = mean + f64::from(weight) * (largest - mean);
        if weight == 1.0 {
            largest
        } else {
            between.min(largest)
        }
    })
}

fn sample_gap(_: usize, _: &Seen<'_>) -> Made {
    sampled(ThresholdRule::SampleGap, |seen| {
        let sample: Vec<f64> = seen.sorted_sample().into_iter().map(f64::from).collect();
        let gaps = (0..sample.len() / 2).map(|i| (sample[i] - sample[i + 1], i));
        let widest = gaps.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        sample[widest.map_or(0, |(_, i)| i)]
    })
}

fn budget(amount: usize, _: &Seen<'_>) -> Made {
    let thousandths = 1 + amount.pow(3) / 10_001;
    let percent = thousandths as f32 / 1000.0;
    sampled(ThresholdRule::Budget { percent }, move |seen| {
        let sample = seen.sorted_sample();
        if thousandths == 100_000 {
            return f64::NEG_INFINITY;
        }
        f64::from(sample[(sample.len() * thousandths).div_ceil(100_000) - 1])
    })
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
    (first, scores): (usize, &[f32]),
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
        if selected
            .next_if(|&&at| at as usize == first + position)
            .is_some()
        {
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
