//! Medians and quartiles over heads and queries.

use std::collections::BTreeMap;

use super::CaptureRow;

/// The quarters of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quartiles {
    /// A quarter is at most this.
    pub low: f64,
    /// The middle one, or the mean of the middle two.
    pub median: f64,
    /// A quarter is at least this.
    pub high: f64,
}

impl Quartiles {
    /// Linear interpolation between ranks; `None` for no value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |share: f64| {
            let rank = share * last as f64;
            let (below, part) = (rank.floor() as usize, rank.fract());
            let above = values[(below + 1).min(last)];
            // neighbours that are equal, infinite ones too, are the answer
            match values[below] == above {
                true => above,
                false => values[below] + part * (above - values[below]),
            }
        };
        Some(Self {
            low: at(0.25),
            median: at(0.5),
            high: at(0.75),
        })
    }
}

/// A contender over all its queries.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The contender.
    pub rule: String,
    /// Queries of all heads.
    pub queries: usize,
    /// Keys attended to.
    pub kept: Quartiles,
    /// Keys attended to / visible keys, the mean.
    pub density: f64,
    /// Softmax mass that was dropped.
    pub dropped: Quartiles,
    /// Relative output error.
    pub relative_error: Quartiles,
    /// Certified mass bound / dropped mass, where at least 1e-6 was dropped.
    pub mass_tightness: Option<Quartiles>,
    /// Certified error bound / error.
    pub error_tightness: Option<Quartiles>,
    /// Certified mass bound.
    pub mass_bound: Option<Quartiles>,
    /// Keys attended to / the fewest that keep the mass asked for.
    pub over_fewest: Option<Quartiles>,
    /// Queries whose dropped mass or error is above its certified bound: must be 0.
    pub violations: usize,
}

/// Below this dropped mass a ratio of bounds says nothing: the bound includes the rounding of f32 sums.
pub(super) const MEASURABLE: f64 = 1e-6;

/// One summary a contender, in the order in which they first come; `keep` says which rows count.
pub fn summaries(rows: &[CaptureRow], keep: impl Fn(&CaptureRow) -> bool) -> Vec<Summary> {
    let mut order: Vec<&str> = Vec::new();
    let mut groups: BTreeMap<&str, Vec<&CaptureRow>> = BTreeMap::new();
    for row in rows.iter().filter(|row| keep(row)) {
        let group = groups.entry(&row.rule).or_default();
        if group.is_empty() {
            order.push(&row.rule);
        }
        group.push(row);
    }
    let summary = |rule: &str| summary(rule, &groups[rule]);
    order.into_iter().filter_map(summary).collect()
}

fn summary(rule: &str, rows: &[&CaptureRow]) -> Option<Summary> {
    let quartiles =
        |value: &dyn Fn(&CaptureRow) -> f64| Quartiles::of(rows.iter().map(|row| value(row)));
    let some = |value: &dyn Fn(&CaptureRow) -> Option<f64>| {
        Quartiles::of(rows.iter().filter_map(|row| value(row)))
    };
    let share = |row: &CaptureRow| row.kept as f64 / row.visible as f64;
    let violated = |row: &&&CaptureRow| {
        row.mass_bound.is_some_and(|bound| row.dropped > bound)
            || row.error_bound.is_some_and(|bound| row.error > bound)
    };
    Some(Summary {
        rule: rule.to_owned(),
        queries: rows.len(),
        kept: quartiles(&|row| row.kept as f64)?,
        density: rows.iter().map(|row| share(row)).sum::<f64>() / rows.len() as f64,
        dropped: quartiles(&|row| row.dropped)?,
        relative_error: quartiles(&|row| row.relative_error)?,
        mass_tightness: some(&|row| {
            let bound = row.mass_bound.filter(|_| row.dropped >= MEASURABLE);
            Some(bound? / row.dropped)
        }),
        error_tightness: some(&|row| {
            let bound = row.error_bound.filter(|_| row.dropped >= MEASURABLE);
            Some(bound? / row.error)
        }),
        mass_bound: some(&|row| row.mass_bound),
        over_fewest: some(&|row| Some(row.kept as f64 / row.fewest? as f64)),
        violations: rows.iter().filter(violated).count(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::eval::captures) fn row(rule: &str, kept: usize, dropped: f64) -> CaptureRow {
        CaptureRow {
            layer: "layer03".into(),
            head: 0,
            position: 999,
            rule: rule.into(),
            visible: 1000,
            kept,
            dropped,
            relative_error: dropped / 2.0,
            error: dropped,
            mass_bound: Some(1.5 * dropped),
            error_bound: Some(3.0 * dropped),
            fewest: Some(kept / 2),
        }
    }

    #[test]
    fn quartiles_interpolate() {
        let quartiles = Quartiles::of([4.0, 1.0, 2.0, 3.0]).expect("values");
        assert_eq!(
            (quartiles.low, quartiles.median, quartiles.high),
            (1.75, 2.5, 3.25)
        );
        assert_eq!(Quartiles::of([7.0]).expect("a value").high, 7.0);
        assert_eq!(Quartiles::of([]), None);
    }

    #[test]
    fn a_contender_is_summed_up_and_violations_are_counted() {
        let mut rows = vec![row("b", 100, 0.1), row("a", 10, 0.2), row("b", 300, 0.3)];
        rows[0].error_bound = Some(0.05);
        rows[2].mass_bound = Some(0.2);
        let summaries = summaries(&rows, |_| true);
        let names: Vec<&str> = summaries.iter().map(|one| one.rule.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        let b = &summaries[0];
        assert_eq!((b.queries, b.violations, b.kept.median), (2, 2, 200.0));
        assert!((b.density - 0.2).abs() < 1e-12);
        assert!((b.over_fewest.expect("known").median - 2.0).abs() < 1e-12);
        assert_eq!(summaries[1].violations, 0);
    }
}
