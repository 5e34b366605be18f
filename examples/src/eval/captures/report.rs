//! `captures.csv`, `captures.md` and `captures.svg`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::summary::MEASURABLE;
use super::{BUDGETS, CaptureRow, MEASURED, Quartiles, Summary, plot, summaries};

/// Writes the three files into `folder`.
///
/// # Errors
///
/// If one cannot be written.
pub fn write(folder: &Path, rows: &[CaptureRow]) -> anyhow::Result<()> {
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    };
    file("captures.csv", csv(rows))?;
    file("captures.md", markdown(rows))?;
    plot::draw(&folder.join("captures.svg"), &summaries(rows, |_| true))
}

fn csv(rows: &[CaptureRow]) -> String {
    let mut text = String::from(
        "layer,head,position,rule,visible,kept,dropped,relative_error,error,mass_bound,error_bound,fewest\n",
    );
    let some = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:e}"));
    for row in rows {
        let fewest = row
            .fewest
            .map_or_else(String::new, |fewest| fewest.to_string());
        // a rule with sinks and window has commas in its name
        let _ = writeln!(
            text,
            "{},{},{},\"{}\",{},{},{:e},{:e},{:e},{},{},{fewest}",
            row.layer,
            row.head,
            row.position,
            row.rule,
            row.visible,
            row.kept,
            row.dropped,
            row.relative_error,
            row.error,
            some(row.mass_bound),
            some(row.error_bound),
        );
    }
    text
}

fn markdown(rows: &[CaptureRow]) -> String {
    let all = summaries(rows, |_| true);
    let mut text = format!(
        "Medians (quartiles) over the last {MEASURED} queries of every head of every layer, {} queries a rule.\n\n## At equal density\n\n{}",
        all.first().map_or(0, |one| one.queries),
        equal(rows)
    );
    let _ = write!(text, "\n## Every rule\n\n{}", every(&all));
    let _ = write!(
        text,
        "\nTightness: certified bound / true value, where at least {MEASURABLE:e} was dropped.\n\n## By layer\n\n{}",
        layers(rows)
    );
    text
}

/// The relative error of rules with a budget, one column a budget, and the share of queries on which top-k is below a rule that is compared
/// with; with compensation after the slash, if that was measured.
fn equal(rows: &[CaptureRow]) -> String {
    let mut text = String::from("| rule |");
    let mut line = String::from("|---|");
    for budget in BUDGETS {
        let _ = write!(text, " {budget} keys | top-k below |");
        line.push_str("---|---|");
    }
    let _ = writeln!(text, "\n{line}");
    let all = summaries(rows, |_| true);
    for (name, suffix) in [
        ("top-k", ""),
        ("top-k", "+comp"),
        ("quest", ""),
        ("h2o", ""),
        ("streaming", ""),
    ] {
        let rule = |budget: usize| format!("{name}={budget}{suffix}");
        let found = |budget| all.iter().find(|one| one.rule == rule(budget));
        if BUDGETS.iter().all(|&budget| found(budget).is_none()) {
            continue;
        }
        let _ = write!(text, "| {name}{suffix} |");
        for budget in BUDGETS {
            let cell = found(budget).map_or_else(String::new, |one| quartiles(one.relative_error));
            let shares = ["", "+comp"].map(|suffix| {
                let ours = format!("top-k={budget}{suffix}");
                better(rows, &ours, &rule(budget)).map(|share| format!("{:.1} %", 100.0 * share))
            });
            let shares: Vec<String> = shares.into_iter().flatten().collect();
            let shares = match name {
                "top-k" => String::new(),
                _ => shares.join(" / "),
            };
            let _ = write!(text, " {cell} | {shares} |");
        }
        text.push('\n');
    }
    text
}

/// The share of queries on which the relative error of `ours` is below that of `theirs`.
fn better(rows: &[CaptureRow], ours: &str, theirs: &str) -> Option<f64> {
    let of = |rule| rows.iter().filter(move |row| row.rule == rule);
    let key = |row: &CaptureRow| (row.layer.clone(), row.head, row.position);
    let theirs: std::collections::BTreeMap<_, _> = of(theirs)
        .map(|row| (key(row), row.relative_error))
        .collect();
    let pairs = of(ours).filter_map(|row| Some((row.relative_error, *theirs.get(&key(row))?)));
    let (mut below, mut count) = (0, 0);
    for (ours, theirs) in pairs {
        below += usize::from(ours < theirs);
        count += 1;
    }
    (count > 0).then(|| below as f64 / count as f64)
}

fn every(all: &[Summary]) -> String {
    let mut text = String::from(
        "| rule | keys | density | dropped mass | relative error | mass bound | bound / dropped mass | error bound / error | keys / fewest | violations |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let some = |value: Option<Quartiles>| value.map_or_else(|| "-".to_owned(), quartiles);
    for one in all {
        let _ = writeln!(
            text,
            "| {} | {} | {:.4} | {} | {} | {} | {} | {} | {} | {} |",
            one.rule,
            quartiles(one.kept),
            one.density,
            quartiles(one.dropped),
            quartiles(one.relative_error),
            some(one.mass_bound),
            some(one.mass_tightness),
            some(one.error_tightness),
            some(one.over_fewest),
            match one.mass_bound {
                Some(_) => one.violations.to_string(),
                None => "-".to_owned(),
            },
        );
    }
    text
}

/// Median dropped mass and relative error of each rule, layer by layer.
fn layers(rows: &[CaptureRow]) -> String {
    let mut names: Vec<&str> = rows.iter().map(|row| row.layer.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let by_layer: Vec<Vec<Summary>> = names
        .iter()
        .map(|name| summaries(rows, |row| row.layer == *name))
        .collect();
    let mut text = String::from("| rule |");
    let mut line = String::from("|---|");
    for name in &names {
        let _ = write!(text, " {name}: keys, dropped mass, relative error |");
        line.push_str("---|");
    }
    let _ = writeln!(text, "\n{line}");
    for i in 0..by_layer.first().map_or(0, Vec::len) {
        let _ = write!(text, "| {} |", by_layer[0][i].rule);
        for layer in &by_layer {
            let one = &layer[i];
            let _ = write!(
                text,
                " {}, {}, {} |",
                number(one.kept.median),
                number(one.dropped.median),
                number(one.relative_error.median)
            );
        }
        text.push('\n');
    }
    text
}

fn quartiles(of: Quartiles) -> String {
    if of.low == of.high {
        return number(of.median);
    }
    format!(
        "{} ({} to {})",
        number(of.median),
        number(of.low),
        number(of.high)
    )
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        x if x < 0.001 => format!("{value:.1e}"),
        x if x < 1.0 => format!("{value:.4}"),
        x if x < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::captures::summary::tests::row;

    #[test]
    fn files_hold_every_query_and_every_rule() {
        let mut rows = Vec::new();
        for (budget, dropped) in [(64, 0.2), (256, 0.1)] {
            rows.push(row(&format!("top-k={budget}"), budget, dropped));
            let mut quest = row(&format!("quest={budget}"), budget, 2.0 * dropped);
            (quest.mass_bound, quest.error_bound, quest.fewest) = (None, None, None);
            rows.push(quest);
        }
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), &rows).expect("files");
        let text = |name: &str| fs::read_to_string(folder.path().join(name)).expect("a file");
        assert_eq!(text("captures.csv").lines().count(), 5);
        let markdown = text("captures.md");
        for wanted in [
            "| quest |",
            "| quest | 0.2000 | 100.0 % |",
            "| top-k=64 | 64.00 | 0.0640 | 0.2000 |",
            "| layer03: keys, dropped mass, relative error |",
        ] {
            assert!(markdown.contains(wanted), "{wanted}\n{markdown}");
        }
        let svg = text("captures.svg");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("quest") && svg.contains("top-k"));
    }
}
