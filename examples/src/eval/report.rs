//! Writes tables and plots of whatever a journal holds.

use std::fs;
use std::path::Path;

use super::table::{
    decoding_markdown, densities_csv, layers_csv, perplexity_csv, perplexity_markdown,
    position_markdown, positions_csv, short,
};
use super::tasks::{self, TaskScore};
use super::{Axis, EvalError, EvalRule, LayerRecall, Line, Record, Summary, heat_map, lines};

/// Readings that belong together: of one length and one way to stretch positions.
#[derive(Debug, Clone)]
pub struct Group {
    /// Heading of the section.
    pub title: String,
    /// What file names begin with.
    pub prefix: String,
    /// How positions are stretched.
    pub positions: String,
    /// Tokens of a window.
    pub len: usize,
    /// Contexts to report, ascending; the last is the window's length.
    pub contexts: Vec<usize>,
}

/// Positions in a row of the table of positions.
const WIDTH: usize = 2048;

/// Writes `results.md`, and for each group with a reading `PREFIXperplexity.csv`, `PREFIXpositions.csv`, `PREFIXdensities.csv`, `PREFIXlayers.csv` and
/// plots: the frontier (divergence against density), the excess of perplexity and the output's error against density, perplexity by position, mass kept
/// and error by layer, and a heat map of densities for each rule that
/// is not dense. Gives the Markdown.
///
/// # Errors
///
/// If a file cannot be written.
pub fn write_report(
    header: &str,
    records: &[Record],
    groups: &[Group],
    folder: &Path,
) -> Result<String, EvalError> {
    let mut text = header.to_owned();
    for group in groups {
        let summaries = Summary::of(records, &group.positions, group.len);
        if summaries.is_empty() {
            continue;
        }
        let file = |name: &str| folder.join(format!("{}{name}", group.prefix));
        text.push_str(&format!(
            "\n## {}\n\n{}\n### By position\n\n{}",
            group.title,
            perplexity_markdown(&summaries, &group.contexts),
            position_markdown(&summaries, WIDTH)
        ));
        let perplexity = perplexity_csv(&summaries, &group.contexts);
        fs::write(file("perplexity.csv"), perplexity)?;
        fs::write(file("positions.csv"), positions_csv(&summaries))?;
        fs::write(file("densities.csv"), densities_csv(&summaries))?;
        fs::write(file("layers.csv"), layers_csv(&summaries))?;
        plots(group, &summaries, &file)?;
    }
    // a short run leaves its tokens in the same journal: those of another length are other tokens
    let decoded = groups
        .first()
        .map(|group| decoding_markdown(records, &group.positions, group.len));
    if let Some(table) = decoded.filter(|table| !table.is_empty()) {
        text.push_str(&format!(
            "\n## Greedy decoding\n\nDense attention reads the text but for the last tokens of a window and decodes as many; each rule goes on from the same cache.\n\n{table}"
        ));
    }
    // written by the part that needs no model, by this run or one before
    match fs::read_to_string(folder.join("captures.md")) {
        Ok(tables) => {
            let tables = tables.replace("\n## ", "\n### ");
            text.push_str(&format!("\n## On recorded keys\n\n{tables}"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let tasks: Vec<TaskScore> = records
        .iter()
        .filter_map(|record| match record {
            Record::Task(score) => Some(score.clone()),
            _ => None,
        })
        .collect();
    if !tasks.is_empty() {
        text.push_str(&format!("\n## Tasks\n\n{}", tasks::markdown(&tasks)));
        fs::write(folder.join("tasks.csv"), tasks::task_csv(&tasks))?;
    }
    fs::write(folder.join("results.md"), &text)?;
    Ok(text)
}

fn plots(
    group: &Group,
    summaries: &[Summary],
    file: &dyn Fn(&str) -> std::path::PathBuf,
) -> Result<(), EvalError> {
    let density = Axis {
        name: "keys attended to / visible keys",
        logarithmic: true,
    };
    let context = group.contexts.last().copied().unwrap_or(group.len);
    let against_density = |y: &dyn Fn(&Summary) -> f64| {
        let mut series: Vec<Line> = Vec::new();
        for one in summaries.iter().filter(|one| one.rule != "dense") {
            let point = (one.density(), y(one));
            let family = family(&one.rule);
            match series.iter_mut().find(|(known, _)| *known == family) {
                Some((_, points)) => points.push(point),
                None => series.push((family, vec![point])),
            }
        }
        for (_, points) in &mut series {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        series
    };
    let axis = |name, logarithmic| Axis { name, logarithmic };
    lines(
        &file("frontier.svg"),
        &format!("Divergence from dense attention at {}", short(context)),
        density,
        axis("mean KL(dense || rule), nats", true),
        &against_density(&|one| one.at(context).kl_mean()),
    )?;
    lines(
        &file("excess.svg"),
        &format!("Perplexity over dense attention at {}", short(context)),
        density,
        axis("percent more than dense", false),
        &against_density(&|one| 100.0 * one.at(context).excess().0),
    )?;
    let by_position: Vec<Line> = summaries
        .iter()
        .map(|one| {
            let middle =
                |i: usize| one.start + i * super::record::STRETCH + super::record::STRETCH / 2;
            let points = one.stretches.iter().enumerate();
            let points = points.map(|(i, sums)| (middle(i) as f64, sums.perplexity()));
            (one.rule.clone(), points.collect())
        })
        .collect();
    lines(
        &file("positions.svg"),
        "Perplexity by position",
        axis("tokens before", false),
        axis("perplexity", false),
        &by_position,
    )?;
    let by_layer = |y: &dyn Fn(&LayerRecall) -> f64| -> Vec<Line> {
        let measured = summaries.iter().filter(|one| !one.recalls.is_empty());
        let line = |one: &Summary| {
            let points = one
                .recalls
                .iter()
                .map(|recall| (recall.layer as f64, y(recall)));
            (one.rule.clone(), points.collect())
        };
        measured.map(line).collect()
    };
    lines(
        &file("error.svg"),
        "Relative error of the output, mean over layers, heads and measured queries",
        density,
        axis("|o - o dense| / |o dense|", true),
        &against_density(&|one| one.recall().relative_error_mean()),
    )?;
    lines(
        &file("layers-mass.svg"),
        "Softmax mass of the keys attended to, by layer",
        axis("layer", false),
        axis("mass kept", false),
        &by_layer(&LayerRecall::kept_mass_mean),
    )?;
    lines(
        &file("layers-error.svg"),
        "Relative error of the output, by layer",
        axis("layer", false),
        axis("|o - o dense| / |o dense|", true),
        &by_layer(&LayerRecall::relative_error_mean),
    )?;
    for one in summaries.iter().filter(|one| one.rule != "dense") {
        let layers = one.layers.iter();
        let densities = layers.map(|heads| heads.iter().map(|head| head.density()).collect());
        heat_map(
            &file(&format!(
                "density-{}.svg",
                one.rule.replace(['=', '+'], "-")
            )),
            &format!(
                "{}: keys attended to, percent of the visible ones",
                one.rule
            ),
            &densities.collect::<Vec<_>>(),
        )?;
    }
    Ok(())
}

/// Rules that differ in their value only are one line.
fn family(rule: &str) -> String {
    rule.parse::<EvalRule>()
        .map_or_else(|_| rule.to_owned(), |rule| rule.family())
}
