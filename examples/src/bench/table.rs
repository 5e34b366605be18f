//! The table that people read.

use super::Spread;

/// One contender's measurements on one problem.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The data.
    pub data: String,
    /// Keys.
    pub len: usize,
    /// The rule, or `dense`.
    pub rule: String,
    /// The contender.
    pub name: &'static str,
    /// Microseconds a step.
    pub micros: Spread,
    /// Median of the dense baselines' best in the same loop over this contender's.
    pub speedup: f64,
    /// Keys attended to / visible keys.
    pub density: f64,
    /// Survivors / visible keys.
    pub scanned_fraction: f64,
    /// Largest proven bound on the dropped mass.
    pub dropped_mass_bound: f64,
    /// GB/s of the bytes that a dense step must read.
    pub dense_gb_per_s: Option<f64>,
}

impl Outcome {
    /// Header of [`Outcome::csv`].
    pub const CSV_HEADER: &str = "data,keys,rule,contender,us_lower,us_median,us_upper,speedup_over_burn,density,scanned_fraction,dropped_mass_bound,dense_gb_per_s";

    /// A line of comma-separated values.
    pub fn csv(&self) -> String {
        format!(
            "{},{},{},{},{:.1},{:.1},{:.1},{:.2},{:.4},{:.4},{:.4},{}",
            self.data,
            self.len,
            self.rule,
            self.name,
            self.micros.lower,
            self.micros.median,
            self.micros.upper,
            self.speedup,
            self.density,
            self.scanned_fraction,
            self.dropped_mass_bound,
            self.dense_gb_per_s
                .map(|x| format!("{x:.1}"))
                .unwrap_or_default()
        )
    }
}

/// All outcomes as a Markdown table.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| data | keys | rule | contender | us a step (quartiles) | vs Burn's best | density | survivors | dropped mass <= | dense GB/s |\n\
         |---|--:|---|---|--:|--:|--:|--:|--:|--:|\n",
    );
    for outcome in outcomes {
        let Spread {
            lower,
            median,
            upper,
        } = outcome.micros;
        text.push_str(&format!(
            "| {} | {} | {} | {} | {median:.0} ({lower:.0} to {upper:.0}) | {:.2}x | {:.3} | {:.3} | {:.3} | {} |\n",
            outcome.data,
            outcome.len,
            outcome.rule,
            outcome.name,
            outcome.speedup,
            outcome.density,
            outcome.scanned_fraction,
            outcome.dropped_mass_bound,
            outcome.dense_gb_per_s.map(|x| format!("{x:.1}")).unwrap_or_default()
        ));
    }
    text
}
