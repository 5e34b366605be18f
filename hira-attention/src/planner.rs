//! Dense or sparse, by a cost model over measured survivors.

use crate::{HeadPlan, HiraAttentionConfig, PlanPolicy};
use hira_cache::SparseHistory;
use hira_kernels::Precision;
use hira_threshold::{Threshold, ThresholdRule};

/// What a gathered row costs beyond its own bytes, in bytes of streaming: a cold 256-byte row takes 19 to 24 ns where
/// memory streams at about 25 GB/s, so 512 bytes, 256 of them its own.
const GATHER_OVERHEAD: usize = 256;

/// A byte of the sparse plan in bytes of the dense one. Fitted, with the start below, to three heads on two cores of a Zen 4, cold, where dense
/// over sparse was measured as 0.8 (2,048 keys, top-256), 1.35 (2,048, top-64), 1.2 (4,096, top-256) and 2.0 (8,192, top-256); the model
/// says 0.7, 1.4, 1.2 and 2.0.
const SPARSE_WEIGHT: f64 = 1.2;

/// What the sparse plan of a group costs before it reads a key, in bytes of streaming: about 12 us (queries, first threshold, selection).
const SPARSE_START: f64 = 300e3;

/// Survivors per key that the rule selects, before any were measured (1.3 to 1.5 on real attention keys at the top 3 %).
const EXPECTED_SURVIVORS: f64 = 1.5;

/// Where recent steps spoke against a sparse plan, it is measured again at every position that this divides.
const PROBE_EVERY: usize = 64;

/// One KV head at one decode step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Visible keys.
    pub(crate) visible: usize,
    /// The position after the last of them, which says when what did not pay is tried again.
    pub(crate) position: usize,
    /// Query heads of the group.
    pub(crate) group: usize,
    /// Key dimension.
    pub(crate) dim: usize,
    /// Value dimension.
    pub(crate) value_dim: usize,
    /// What keys and values are stored in.
    pub(crate) precision: Precision,
    /// What recent sparse steps of the head came to.
    pub(crate) history: Option<SparseHistory>,
}

/// Chooses the plan of one KV head's group at one step.
///
/// Costs are in bytes of streaming, weighed by what was measured. Dense reads every exact key and value once for the group. Sparse reads the sketch once
/// (`D` code bytes and 4 of scale and residual a key), then gathers a key row for each survivor and a value row for each
/// attended key, query by query. A sampled rule has its sample scored first, a key row each for the whole group.
///
/// A rule that does not say how many keys it selects is judged by the survivors of recent steps.
pub(crate) fn choose(config: &HiraAttentionConfig, rule: &ThresholdRule, step: Step) -> HeadPlan {
    match config.plan {
        PlanPolicy::Dense => return HeadPlan::Dense,
        PlanPolicy::Sparse if config.num_levels > 0 => return HeadPlan::Sparse,
        PlanPolicy::Sparse => return HeadPlan::Dense,
        PlanPolicy::Auto => {}
    }
    let always = config.sink_tokens + config.recent_window;
    let count = rule.count(step.visible);
    let selects_all = count.is_some_and(|count| count >= step.visible)
        || rule.tau() == Some(f32::NEG_INFINITY)
        || matches!(*rule, ThresholdRule::Mass { mass } if mass >= 1.0);
    if config.num_levels == 0
        || step.visible < config.min_sparse_len
        || always >= step.visible
        || selects_all && config.max_candidates.is_none()
    {
        return HeadPlan::Dense;
    }
    if step.history.is_some() && step.position.is_multiple_of(PROBE_EVERY) {
        return HeadPlan::Sparse;
    }
    if let Some(history) = step.history
        && history.dropped_mass > f64::from(config.max_dropped_mass)
    {
        return HeadPlan::Dense;
    }
    let visible = step.visible as f64;
    let survivors = match (step.history, count) {
        (Some(history), _) => history.survivor_fraction * visible,
        (None, Some(count)) => EXPECTED_SURVIVORS * count as f64,
        // a threshold, given or sampled, that was never tried: try it
        (None, None) => return HeadPlan::Sparse,
    };
    let selected = count.map_or(survivors, |count| (count as f64).min(survivors));
    let attended = selected + always as f64;
    let element = step.precision.bytes();
    let key_row = (step.dim * element) as f64;
    let value_row = (step.value_dim * element) as f64;
    let overhead = GATHER_OVERHEAD as f64;
    let dense = visible * (key_row + value_row);
    let gathered = survivors * (key_row + overhead) + attended * (value_row + overhead);
    let scanned = visible * (step.dim + 4) as f64;
    let sampled = if rule.needs_sample() {
        config.sample_size.min(step.visible) as f64 * (key_row + overhead)
    } else {
        0.0
    };
    let sparse = SPARSE_START + SPARSE_WEIGHT * (scanned + sampled + step.group as f64 * gathered);
    if sparse < dense {
        HeadPlan::Sparse
    } else {
        HeadPlan::Dense
    }
}

/// A query of a prefill beside a key that it sees, in nanoseconds of one thread, dense. Fitted, with the costs below, to the layers 3 and 14 of the
/// captures on two cores of a Zen 4: at the top 256 of a group of three, a query takes 25 us dense and 18 us in a tile at 8,192 keys, and 12 us
/// and 16 us at 4,096.
const TILE_DENSE: f64 = 3.0;

/// Of a query in a tile, in the same unit: itself; a key whose sketch is scanned; a key that is scored; a row of values. The rows come from the second
/// and third cache here, where those of a decode step come from memory.
const TILE_SPARSE: [f64; 4] = [7_000.0, 0.6, 9.0, 8.0];

/// A key that is scored for a rule by mass, in the same unit: its threshold is certified from bounds and then from scores, query by query. Measured on layer 3: 89 us a
/// query at 1,230 survivors.
const TILE_MASS: f64 = 45.0;

/// A sparse tile must win by this much: what a head's tiles cost varies as much.
const TILE_MARGIN: f64 = 1.1;

/// A flat head's tiles are searched again at every position that this divides.
const TILE_PROBE_EVERY: usize = 4096;

/// Whether a tile that begins at this position is sparse although its head was flat.
pub(crate) fn is_probed(position: usize) -> bool {
    position.is_multiple_of(TILE_PROBE_EVERY)
}

/// Chooses the plan of one tile of a prefill, whose queries search `step.visible` keys: as [`choose`], with the costs of a prefill, in which
/// keys come from the caches and arithmetic is what counts.
pub(crate) fn choose_tile(
    config: &HiraAttentionConfig,
    rule: &ThresholdRule,
    step: Step,
) -> HeadPlan {
    match config.plan {
        PlanPolicy::Dense => return HeadPlan::Dense,
        PlanPolicy::Sparse if config.num_levels > 0 => return HeadPlan::Sparse,
        PlanPolicy::Sparse => return HeadPlan::Dense,
        PlanPolicy::Auto => {}
    }
    let count = rule.count(step.visible);
    if config.num_levels == 0
        || step.visible < config.min_sparse_len
        || config.sink_tokens + config.recent_window >= step.visible
        || count.is_some_and(|count| count >= step.visible)
        || rule.tau() == Some(f32::NEG_INFINITY)
        || matches!(*rule, ThresholdRule::Mass { mass } if mass >= 1.0)
    {
        return HeadPlan::Dense;
    }
    let probe = is_probed(step.position);
    // a threshold that was never tried, or not for long
    if count.is_none() && (probe || step.history.is_none()) {
        return HeadPlan::Sparse;
    }
    let visible = step.visible as f64;
    let survivors = match (step.history, count) {
        (Some(history), _) => history.survivor_fraction * visible,
        (None, count) => EXPECTED_SURVIVORS * count.unwrap_or(0) as f64,
    };
    let flat = step
        .history
        .is_some_and(|history| history.dropped_mass > f64::from(config.max_dropped_mass));
    if flat && !probe {
        return HeadPlan::Dense;
    }
    let selected = count.map_or(survivors, |count| (count as f64).min(survivors));
    let attended = selected + (config.sink_tokens + config.recent_window) as f64;
    let [query, scanned, mut scored, value] = TILE_SPARSE;
    if let ThresholdRule::Mass { .. } = rule {
        scored = TILE_MASS;
    }
    let sparse = query + scanned * visible + scored * survivors + value * attended;
    if TILE_MARGIN * sparse < TILE_DENSE * visible {
        HeadPlan::Sparse
    } else {
        HeadPlan::Dense
    }
}

/// A head's history after one more sparse step.
pub(crate) fn updated(before: Option<SparseHistory>, now: SparseHistory) -> SparseHistory {
    /// Weight of the newest step: about 8 steps of memory.
    const NEWEST: f64 = 0.125;
    let Some(before) = before else { return now };
    let mean = |before: f64, now: f64| before + NEWEST * (now - before);
    SparseHistory {
        survivor_fraction: mean(before.survivor_fraction, now.survivor_fraction),
        dropped_mass: mean(before.dropped_mass, now.dropped_mass),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(visible: usize, survivor_fraction: Option<f64>) -> Step {
        Step {
            visible,
            position: visible,
            group: 3,
            dim: 64,
            value_dim: 64,
            precision: Precision::F32,
            history: survivor_fraction.map(|survivor_fraction| SparseHistory {
                survivor_fraction,
                dropped_mass: 0.2,
            }),
        }
    }

    fn plan(rule: ThresholdRule, step: Step) -> HeadPlan {
        choose(&HiraAttentionConfig::new(), &rule, step)
    }

    #[test]
    fn long_contexts_are_sparse_and_short_ones_dense() {
        let rule = ThresholdRule::TopK { k: 256 };
        assert_eq!(plan(rule, step(8192, None)), HeadPlan::Sparse);
        assert_eq!(plan(rule, step(512, None)), HeadPlan::Dense);
        // Measured, a layer of three heads on two cores: 102 us sparse, 114 us dense.
        let few = ThresholdRule::TopK { k: 64 };
        assert_eq!(plan(few, step(2047, Some(0.04))), HeadPlan::Sparse);
        assert_eq!(plan(few, step(1279, Some(0.065))), HeadPlan::Dense);
        assert_eq!(plan(rule, step(8192, Some(0.05))), HeadPlan::Sparse);
    }

    #[test]
    fn tiles_are_sparse_where_a_scan_is_cheaper_than_the_arithmetic() {
        let config = HiraAttentionConfig::new();
        let plan = |rule: ThresholdRule, step| choose_tile(&config, &rule, step);
        let top = ThresholdRule::TopK { k: 256 };
        assert_eq!(plan(top, step(4096, None)), HeadPlan::Dense);
        assert_eq!(plan(top, step(8192, None)), HeadPlan::Sparse);
        assert_eq!(plan(top, step(8192, Some(0.05))), HeadPlan::Sparse);
        assert_eq!(plan(top, step(8192, Some(0.3))), HeadPlan::Dense);
        // the same survivors cost more if they must prove a mass
        let mass = ThresholdRule::Mass { mass: 0.95 };
        assert_eq!(plan(mass, step(8176, Some(0.05))), HeadPlan::Dense);
        assert_eq!(plan(mass, step(8176, Some(0.01))), HeadPlan::Sparse);
        let fixed = ThresholdRule::Fixed { tau: 1.0 };
        assert_eq!(plan(fixed, step(2000, None)), HeadPlan::Sparse);
        assert_eq!(plan(fixed, step(2000, Some(0.01))), HeadPlan::Dense);
        assert_eq!(plan(fixed, step(4096, Some(0.6))), HeadPlan::Sparse);
        let mut flat = step(8176, Some(0.05));
        flat.history = flat.history.map(|history| SparseHistory {
            dropped_mass: 0.8,
            ..history
        });
        assert_eq!(plan(top, flat), HeadPlan::Dense);
        (flat.visible, flat.position) = (8192, 8192);
        assert_eq!(plan(top, flat), HeadPlan::Sparse);
        assert_eq!(plan(fixed, step(512, None)), HeadPlan::Dense);
    }

    #[test]
    fn flat_heads_go_dense_and_are_probed_again() {
        let rule = ThresholdRule::Fixed { tau: 0.0 };
        assert_eq!(plan(rule, step(8191, Some(0.6))), HeadPlan::Dense);
        assert_eq!(plan(rule, step(8192, Some(0.6))), HeadPlan::Sparse);
        assert_eq!(plan(rule, step(8191, None)), HeadPlan::Sparse);
    }

    #[test]
    fn sampled_rules_are_tried_and_then_judged_by_their_survivors() {
        for rule in [
            ThresholdRule::SampleMax,
            ThresholdRule::Adaptive { c: 2.0 },
            ThresholdRule::SampleTopK { k: 256 },
        ] {
            assert_eq!(plan(rule, step(8191, None)), HeadPlan::Sparse);
            assert_eq!(plan(rule, step(8191, Some(0.03))), HeadPlan::Sparse);
            assert_eq!(plan(rule, step(8191, Some(0.6))), HeadPlan::Dense);
            assert_eq!(plan(rule, step(8192, Some(0.6))), HeadPlan::Sparse);
            assert_eq!(plan(rule, step(512, None)), HeadPlan::Dense);
        }
        // 4,096 rows cost as much to sample as what the scan saves
        let mut large = HiraAttentionConfig::new();
        large.sample_size = 4096;
        let step = step(8191, Some(0.03));
        let rule = ThresholdRule::SampleMax;
        assert_eq!(choose(&large, &rule, step), HeadPlan::Dense);
        let top = ThresholdRule::TopK { k: 256 };
        assert_eq!(choose(&large, &top, step), HeadPlan::Sparse);
    }

    #[test]
    fn heads_that_drop_most_of_their_mass_go_dense_and_are_probed_again() {
        let rule = ThresholdRule::TopK { k: 256 };
        let mut flat = step(8191, Some(0.04));
        assert_eq!(plan(rule, flat), HeadPlan::Sparse);
        flat.history = Some(SparseHistory {
            survivor_fraction: 0.04,
            dropped_mass: 0.8,
        });
        assert_eq!(plan(rule, flat), HeadPlan::Dense);
        (flat.visible, flat.position) = (8192, 8192);
        assert_eq!(plan(rule, flat), HeadPlan::Sparse);
        let anything = HiraAttentionConfig {
            max_dropped_mass: 1.0,
            ..HiraAttentionConfig::new()
        };
        (flat.visible, flat.position) = (8191, 8191);
        assert_eq!(choose(&anything, &rule, flat), HeadPlan::Sparse);
    }

    #[test]
    fn a_rule_that_selects_everything_is_dense() {
        let all = ThresholdRule::Fixed {
            tau: f32::NEG_INFINITY,
        };
        assert_eq!(plan(all, step(100_000, None)), HeadPlan::Dense);
        let percent = ThresholdRule::Percentile { percent: 100.0 };
        assert_eq!(plan(percent, step(100_000, None)), HeadPlan::Dense);
        let mass = |mass| plan(ThresholdRule::Mass { mass }, step(100_000, None));
        assert_eq!(mass(1.0), HeadPlan::Dense);
        assert_eq!(mass(0.99), HeadPlan::Sparse);
    }

    #[test]
    fn forced_plans_are_kept() {
        let rule = ThresholdRule::TopK { k: 4 };
        let sparse = HiraAttentionConfig::new().with_plan(PlanPolicy::Sparse);
        assert_eq!(choose(&sparse, &rule, step(10, None)), HeadPlan::Sparse);
        let dense = HiraAttentionConfig::new().with_plan(PlanPolicy::Dense);
        assert_eq!(choose(&dense, &rule, step(100_000, None)), HeadPlan::Dense);
    }
}
