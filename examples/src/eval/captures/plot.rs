//! Error against density, a line a rule.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use super::Summary;
use crate::{eval::EvalRule, palette::COLOURS};

/// Errors below this are those of f32, and would stretch the axis.
const FLOOR: f64 = 1e-5;

/// Median relative error against mean density, both logarithmic: rules that differ only in their value are one line.
///
/// # Errors
///
/// If the file cannot be written.
pub(super) fn draw(file: &Path, summaries: &[Summary]) -> anyhow::Result<()> {
    chart(file, summaries).map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))
}

fn chart(file: &Path, summaries: &[Summary]) -> Result<(), Box<dyn std::error::Error>> {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for one in summaries {
        // `top-k=64, 4 sinks, window 64` is a point of `top-k, 4 sinks, window 64`
        let (rule, rest) = one.rule.split_once(',').unwrap_or((&one.rule, ""));
        let parsed = rule.parse::<EvalRule>();
        let family = parsed.map_or_else(|_| rule.to_owned(), |rule| rule.family());
        let name = match rest {
            "" => family,
            rest => format!("{family},{rest}"),
        };
        let point = (one.density, one.relative_error.median.max(FLOOR));
        match lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(point),
            None => lines.push((name, vec![point])),
        }
    }
    let points = lines.iter().flat_map(|(_, points)| points);
    let ends = |values: &dyn Fn(&(f64, f64)) -> f64| {
        let low = points.clone().map(values).fold(f64::INFINITY, f64::min);
        let high = points.clone().map(values).fold(0.0, f64::max);
        (low / 1.3, high * 1.3)
    };
    let (left, right) = ends(&|point| point.0);
    let (bottom, top) = ends(&|point| point.1);
    let root = SVGBackend::new(file, (1160, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    let (root, names) = root.split_horizontally(900);
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "Output error against density, recorded keys",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(50)
        .y_label_area_size(80)
        .build_cartesian_2d((left..right).log_scale(), (bottom..top).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("keys attended to / visible keys, mean (log scale)")
        .y_desc("relative output error, median (log scale)")
        .x_label_formatter(&|x| format!("{x:.4}"))
        .y_label_formatter(&|y| format!("{y:.0e}"))
        .light_line_style(TRANSPARENT)
        .axis_desc_style(("sans-serif", 16))
        .label_style(("sans-serif", 14))
        .draw()?;
    for (i, (name, points)) in lines.iter_mut().enumerate() {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let colour = COLOURS[i % COLOURS.len()];
        let style = colour.stroke_width(2);
        chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        let size = if i < COLOURS.len() { 4 } else { 6 };
        let dots = points
            .iter()
            .map(|&point| Circle::new(point, size, colour.filled()));
        chart.draw_series(dots)?;
        let y = 40 + 24 * i as i32;
        names.draw(&Circle::new((10, y), size, colour.filled()))?;
        names.draw(&PathElement::new([(0, y), (20, y)], style))?;
        names.draw(&Text::new(name.clone(), (28, y - 7), ("sans-serif", 14)))?;
    }
    root.present()?;
    Ok(())
}
