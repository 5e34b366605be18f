//! What an answer has to keep: the share of a rule by mass, and `max_error`.
//!
//! # Derivation
//!
//! A certificate bounds the output error by `p (V + ||o||) + r`: the dropped mass, the largest norm of a value, that of the output, and rounding. So
//! `p <= (E - r) / (V + ||o|| + r)` holds it below `E`. The rule by mass finds the keys that prove such a `p`; `||o||` changes with them, which a
//! margin and a second try provide for. With tail compensation the certificate is smaller: then the share is the larger one that its own ratio of
//! error to dropped mass gives. What decides is the certificate of the answer in the end, never this estimate.

use hira_threshold::ThresholdRule;

use crate::{HiraAttentionConfig, certificate::Premises, sparse::SparseAnswer};

/// Part of the share that is left for `||o||` to grow, and for what the certificate adds to the search's own bound.
const MARGIN: f64 = 0.05;

/// A smaller share is left to the dense plan: single precision does not tell the mass that is kept from all of it.
const LEAST_SHARE: f64 = 1e-6;

/// A head whose rule missed `max_error` gets its configured rule again at every position that this divides.
const PROBE_EVERY: usize = 64;

/// The rule to begin with, after what was learned of the head: `None` where only dense attention held the error.
pub(crate) fn rule_now(
    configured: &ThresholdRule,
    widening: Option<f32>,
    visible: usize,
) -> Option<ThresholdRule> {
    match widening {
        Some(_) if visible.is_multiple_of(PROBE_EVERY) => Some(*configured),
        Some(share) if share > 0.0 => Some(ThresholdRule::Mass { mass: 1.0 - share }),
        Some(_) => None,
        None => Some(*configured),
    }
}

/// Whether the certificates keep what the configuration and its rule promise.
///
/// A search by mass leaves a thousandth of the share for rounding; keys and queries of huge norms can need more. A limit of candidates comes before
/// the share of a mass.
pub(crate) fn is_kept(
    config: &HiraAttentionConfig,
    configured: &ThresholdRule,
    answers: &[SparseAnswer],
) -> bool {
    let most_dropped = match *configured {
        ThresholdRule::Mass { mass } if config.max_candidates.is_none() => 1.0 - f64::from(mass),
        _ => 1.0,
    };
    let most_error = config.max_error.unwrap_or(f32::INFINITY);
    answers.iter().all(|answer| {
        let certificate = answer.certificate;
        f64::from(certificate.dropped_mass_bound) <= most_dropped
            && certificate.output_error_bound <= most_error
    })
}

/// The share of the mass that may be dropped for the errors of all `answers` to stay below `most`; `None` if that is for the dense plan.
pub(crate) fn share(
    config: &HiraAttentionConfig,
    configured: &ThresholdRule,
    premises: Premises,
    most: f32,
    attempt: u32,
    answers: &[SparseAnswer],
) -> Option<f32> {
    if config.max_candidates.is_some() || premises.scale == 0.0 {
        return None;
    }
    let shares = answers.iter().map(|answer| {
        let measured = &answer.measured;
        let rounding = premises.sparse_rounding(measured.query_norm, measured.visible);
        let norms = f64::from(premises.value_norm) + f64::from(measured.out_norm) + rounding;
        let allowed = f64::from(most) - rounding;
        let certificate = answer.certificate;
        let error = f64::from(certificate.output_error_bound) - rounding;
        let by_ratio = f64::from(certificate.dropped_mass_bound) * allowed / error;
        let by_norms = allowed / norms;
        if error > 0.0 && by_ratio > by_norms {
            by_ratio
        } else {
            by_norms
        }
    });
    // A rule by mass keeps its own share too.
    let most_dropped = match *configured {
        ThresholdRule::Mass { mass } => 1.0 - f64::from(mass),
        _ => 1.0,
    };
    let smallest = shares.fold(most_dropped, f64::min);
    let share = smallest * (1.0 - MARGIN) / f64::from(1_u32 << attempt);
    (share >= LEAST_SHARE).then_some(share.min(0.5) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_starts_from_what_worked_and_tries_its_rule_now_and_then() {
        let top = ThresholdRule::TopK { k: 4 };
        assert_eq!(rule_now(&top, None, 1001), Some(top));
        let mass = ThresholdRule::Mass { mass: 0.75 };
        assert_eq!(rule_now(&top, Some(0.25), 1001), Some(mass));
        assert_eq!(rule_now(&top, Some(0.25), 1024), Some(top));
        assert_eq!(rule_now(&top, Some(0.0), 1001), None);
        assert_eq!(rule_now(&top, Some(0.0), 1024), Some(top));
    }
}
