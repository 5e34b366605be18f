//! What a run found, as lines of comma-separated values and of Markdown tables.

use super::Spread;

/// One contender's measurements in one scenario.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Name of the scenario.
    pub scenario: String,
    /// Where the rows come from.
    pub source: &'static str,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of a KV head.
    pub group: usize,
    /// Dimension of keys and values.
    pub dim: usize,
    /// Keys of a KV head.
    pub len: usize,
    /// Copies rotated over; 1 and warm: the same again.
    pub copies: usize,
    /// Whether the data was in the caches.
    pub warm: bool,
    /// Threads.
    pub threads: usize,
    /// The rule, or `dense`.
    pub rule: String,
    /// The contender.
    pub name: String,
    /// How keys and values are stored.
    pub precision: &'static str,
    /// Calls that were counted.
    pub samples: usize,
    /// Microseconds a call.
    pub micros: Spread,
    /// Median of the best dense contender of the same precision and threads over this one's.
    pub over_dense: Option<f64>,
    /// Median of Burn's best contender over this one's.
    pub over_burn: Option<f64>,
    /// Keys attended to / visible keys.
    pub density: f64,
    /// Survivors / visible keys.
    pub scanned_fraction: f64,
    /// Largest proven bound on the dropped mass.
    pub dropped_mass_bound: Option<f64>,
    /// Bytes that the plan reads in a call, each query's rows counted by themselves.
    pub bytes: f64,
}

impl Outcome {
    /// Header of [`Outcome::csv`].
    pub const CSV_HEADER: &str = "scenario,source,kv_heads,group,dim,keys,state,copies,threads,rule,contender,precision,us_lower,us_median,us_upper,samples,over_dense,over_burn,density,survivors,dropped_mass_bound,bytes,gb_per_s";

    /// A line of comma-separated values.
    pub fn csv(&self) -> String {
        let optional = |x: Option<f64>| x.map(|x| format!("{x:.4}")).unwrap_or_default();
        [
            self.scenario.clone(),
            self.source.replace(',', ""),
            self.kv_heads.to_string(),
            self.group.to_string(),
            self.dim.to_string(),
            self.len.to_string(),
            self.state().to_owned(),
            self.copies.to_string(),
            self.threads.to_string(),
            self.rule.clone(),
            self.name.clone(),
            self.precision.to_owned(),
            format!("{:.2}", self.micros.lower),
            format!("{:.2}", self.micros.median),
            format!("{:.2}", self.micros.upper),
            self.samples.to_string(),
            optional(self.over_dense),
            optional(self.over_burn),
            format!("{:.5}", self.density),
            format!("{:.5}", self.scanned_fraction),
            optional(self.dropped_mass_bound),
            format!("{:.0}", self.bytes),
            format!("{:.2}", self.gb_per_s()),
        ]
        .join(",")
    }

    /// `cold` or `warm`.
    pub fn state(&self) -> &'static str {
        if self.warm { "warm" } else { "cold" }
    }

    /// GB/s of the bytes that the plan reads.
    pub fn gb_per_s(&self) -> f64 {
        self.bytes / self.micros.median / 1e3
    }

    /// Whether it attends to every key.
    pub fn is_dense(&self) -> bool {
        self.rule == "dense"
    }
}

/// A number of keys with a separator of thousands.
pub(super) fn thousands(mut number: usize) -> String {
    let mut groups = Vec::new();
    while number >= 1000 {
        groups.push(format!("{:03}", number % 1000));
        number /= 1000;
    }
    groups.push(number.to_string());
    groups.reverse();
    groups.join(",")
}

/// Microseconds with three significant digits.
pub(super) fn micros(x: f64) -> String {
    match x {
        x if x < 10.0 => format!("{x:.2}"),
        x if x < 100.0 => format!("{x:.1}"),
        x => format!("{x:.0}"),
    }
}

/// Outcomes as a Markdown table.
pub(super) fn markdown(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| scenario | rule | contender | us (quartiles) | over best dense | over Burn | density | survivors | dropped mass <= | MB read | GB/s |\n\
         |---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for outcome in outcomes {
        let Spread {
            lower,
            median,
            upper,
        } = outcome.micros;
        let ratio = |x: Option<f64>| x.map_or("".to_owned(), |x| format!("{x:.2}x"));
        text.push_str(&format!(
            "| {} | {} | {} | {} ({} to {}) | {} | {} | {:.4} | {:.4} | {} | {:.2} | {:.1} |\n",
            outcome.scenario,
            outcome.rule,
            outcome.label(),
            micros(median),
            micros(lower),
            micros(upper),
            ratio(outcome.over_dense),
            ratio(outcome.over_burn),
            outcome.density,
            outcome.scanned_fraction,
            outcome
                .dropped_mass_bound
                .map(|x| format!("{x:.3}"))
                .unwrap_or_default(),
            outcome.bytes / 1e6,
            outcome.gb_per_s(),
        ));
    }
    text
}

/// A line a scenario: its best dense contender, and what Hira takes with each rule, with the ratio.
pub(super) fn summary(outcomes: &[Outcome]) -> String {
    const RULES: [&str; 3] = ["top-k=256", "top-k=64", "percentile=2"];
    let mut text = format!(
        "| scenario | best dense, us | {} | top-k=256 over Burn |\n|---|--:|--:|--:|--:|--:|\n",
        RULES
            .map(|rule| format!("{rule}, us (over dense)"))
            .join(" | ")
    );
    for group in outcomes.chunk_by(|a, b| a.scenario == b.scenario) {
        let dense = group.iter().filter(|one| one.is_dense());
        let Some(best) = dense.min_by(|a, b| a.micros.median.total_cmp(&b.micros.median)) else {
            continue;
        };
        let of = |rule: &str| group.iter().find(|one| one.rule == rule);
        let cell = |rule| {
            let ratio = |one: &Outcome| one.over_dense.unwrap_or_default();
            let cell =
                |one: &Outcome| format!("{} ({:.2}x)", micros(one.micros.median), ratio(one));
            of(rule).map(cell).unwrap_or_default()
        };
        let burn = of(RULES[0]).and_then(|one| one.over_burn);
        text.push_str(&format!(
            "| {} | {} ({}) | {} | {} |\n",
            best.scenario,
            micros(best.micros.median),
            best.name,
            RULES.map(cell).join(" | "),
            burn.map(|x| format!("{x:.1}x")).unwrap_or_default(),
        ));
    }
    text
}

impl Outcome {
    /// The contender with its precision where that is not f32.
    pub fn label(&self) -> String {
        match self.precision {
            "f32" => self.name.clone(),
            precision => format!("{} {precision}", self.name),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An outcome with a median and what tells it from others.
    pub(in crate::bench) fn outcome(
        scenario: &str,
        rule: &str,
        name: &str,
        median: f64,
    ) -> Outcome {
        Outcome {
            scenario: scenario.to_owned(),
            source: "generated, fitted to layer 14",
            kv_heads: 3,
            group: 3,
            dim: 64,
            len: 8192,
            copies: 30,
            warm: false,
            threads: 2,
            rule: rule.to_owned(),
            name: name.to_owned(),
            precision: "f32",
            samples: 9,
            micros: Spread {
                lower: median - 1.0,
                median,
                upper: median + 1.0,
            },
            over_dense: Some(2.0),
            over_burn: None,
            density: 0.03,
            scanned_fraction: 0.04,
            dropped_mass_bound: None,
            bytes: 1e6,
        }
    }

    #[test]
    fn a_csv_line_has_the_columns_of_the_header() {
        let line = outcome("smollm2/layer14/8192", "top-k=256", "hira", 100.0).csv();
        let columns = Outcome::CSV_HEADER.split(',').count();
        assert_eq!(line.split(',').count(), columns, "{line}");
        let column = |name| {
            let at = Outcome::CSV_HEADER.split(',').position(|x| x == name);
            line.split(',').nth(at.expect("a column")).expect("a value")
        };
        assert_eq!(column("us_median"), "100.00");
        assert_eq!(column("over_dense"), "2.0000");
        assert_eq!(column("over_burn"), "");
        assert_eq!(column("gb_per_s"), "10.00");
    }

    #[test]
    fn tables_have_as_many_cells_in_every_line() {
        let text = markdown(&[outcome("a", "dense", "dense (ours)", 5.0)]);
        let cells: Vec<_> = text.lines().map(|line| line.matches('|').count()).collect();
        assert_eq!(cells, [12, 12, 12]);
        assert!(text.contains("| 5.00 (4.00 to 6.00) |"), "{text}");
    }

    #[test]
    fn a_summary_has_a_line_a_scenario_and_the_best_dense() {
        let text = summary(&[
            outcome("a", "dense", "slow", 9.0),
            outcome("a", "dense", "dense (ours)", 5.0),
            outcome("a", "top-k=64", "hira", 2.5),
            outcome("b", "dense", "dense (ours)", 7.0),
        ]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(
            lines[2],
            "| a | 5.00 (dense (ours)) |  | 2.50 (2.00x) |  |  |"
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(thousands(512), "512");
        assert_eq!(thousands(1_048_576), "1,048,576");
        assert_eq!(
            (micros(9.876), micros(98.76), micros(987.6)),
            ("9.88".into(), "98.8".into(), "988".into())
        );
    }
}
