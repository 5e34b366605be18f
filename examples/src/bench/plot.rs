//! Three plots as SVG: latency and ratio against context, bytes against the ceiling.

use std::path::Path;

use plotters::{coord::combinators::LogCoord, prelude::*};

use crate::palette::COLOURS;

use super::{Ceilings, Outcome, outcome::thousands};

/// Why a plot cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {file}")]
pub struct PlotError {
    /// The file.
    file: String,
    /// What went wrong.
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// A line of a plot: its name and its points.
type Series = (String, Vec<(f64, f64)>);

const SIZE: (u32, u32) = (1160, 600);

/// Width of the column of names.
const NAMES: u32 = 230;

/// What a plot says around its lines.
struct Frame<'a> {
    title: &'a str,
    y: &'a str,
    /// Horizontal lines: a name and a height.
    marks: Vec<(String, f64)>,
}

/// Draws the plots of the shapes that were measured at two contexts at least: `latency-SHAPE.svg`, `ratio-SHAPE.svg` and `bytes-SHAPE.svg` in
/// `folder`.
///
/// # Errors
///
/// [`PlotError`] that names the file.
pub fn plots(
    outcomes: &[Outcome],
    ceilings: Option<&Ceilings>,
    folder: &Path,
) -> Result<(), PlotError> {
    for (shape, title) in [
        ("smollm2", "SmolLM2: 9 query heads, 3 KV heads, D 64"),
        ("llama3", "Llama 3: 32 query heads, 8 KV heads, D 128"),
    ] {
        let about: Vec<&Outcome> = outcomes.iter().filter(|one| is_swept(one, shape)).collect();
        let series = |y: &dyn Fn(&Outcome) -> Option<f64>| lines(&about, y);
        let latency = series(&|one| Some(one.micros.median));
        if latency.iter().all(|(_, points)| points.len() < 2) {
            continue;
        }
        let threads = about.first().map_or(1, |one| one.threads);
        draw(
            &folder.join(format!("latency-{shape}.svg")),
            Frame {
                title: &format!("One decode step, cold, {threads} threads. {title}"),
                y: "microseconds a step (median)",
                marks: Vec::new(),
            },
            &latency,
        )?;
        draw(
            &folder.join(format!("ratio-{shape}.svg")),
            Frame {
                title: &format!("Hira over the best dense attention. {title}"),
                y: "times faster than the best dense of the same precision",
                marks: vec![("as fast as dense".to_owned(), 1.0)],
            },
            &series(&|one| one.over_dense.filter(|_| !one.is_dense())),
        )?;
        let marks = ceilings.map_or_else(Vec::new, |ceilings| {
            let named = ceilings.stream.iter().map(|&(threads, rate)| {
                let plural = if threads == 1 { "" } else { "s" };
                (format!("plain read, {threads} thread{plural}"), rate)
            });
            named.collect()
        });
        draw(
            &folder.join(format!("bytes-{shape}.svg")),
            Frame {
                title: &format!("Bytes that a step's plan reads, over its time. {title}"),
                y: "GB/s",
                marks,
            },
            &series(&|one| Some(one.gb_per_s())),
        )?;
    }
    Ok(())
}

/// Whether an outcome is a point of the sweep over contexts: cold, captured as long as there are captures, then generated.
fn is_swept(one: &Outcome, shape: &str) -> bool {
    let twice = shape == "smollm2" && one.len <= 8192 && one.scenario.contains("generated");
    let other_layer = one.scenario.contains("layer") && !one.scenario.contains("layer14");
    one.scenario.starts_with(shape) && !one.warm && !twice && !other_layer
}

/// A line for each contender and rule, its points by ascending context.
fn lines(outcomes: &[&Outcome], y: &dyn Fn(&Outcome) -> Option<f64>) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for one in outcomes {
        let Some(y) = y(one) else { continue };
        let name = match one.is_dense() {
            true => one.label(),
            false => format!("{}, {}", one.label(), one.rule),
        };
        let point = (one.len as f64, y);
        match series.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(point),
            None => series.push((name, vec![point])),
        }
    }
    for (_, points) in &mut series {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    series
}

/// The powers of `base` around some values, with one more where a value is a power itself: the ends of a logarithmic axis.
fn ends(values: impl Iterator<Item = f64> + Clone, base: f64) -> (f64, f64) {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(0.0, f64::max);
    let exponent = |x: f64| x.log(base);
    (
        base.powf((exponent(low) - 0.05).floor()),
        base.powf((exponent(high) + 0.05).ceil()),
    )
}

fn draw(file: &Path, frame: Frame<'_>, series: &[Series]) -> Result<(), PlotError> {
    chart(file, frame, series).map_err(|source| PlotError {
        file: file.display().to_string(),
        source,
    })
}

/// Both axes logarithmic, to the base 2.
fn chart(
    file: &Path,
    frame: Frame<'_>,
    series: &[Series],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let points = series.iter().flat_map(|(_, points)| points);
    let (left, right) = ends(points.clone().map(|point| point.0), 2.0);
    let heights = points.map(|point| point.1);
    let (bottom, top) = ends(heights.chain(frame.marks.iter().map(|mark| mark.1)), 2.0);
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    // the names stand beside the lines, which they would cover
    let (root, names) = root.split_horizontally(SIZE.0 - NAMES);
    let mut names = Names {
        area: names,
        next: 60,
    };
    let mut chart = ChartBuilder::on(&root)
        .caption(frame.title, ("sans-serif", 18))
        .margin(12)
        .margin_right(30)
        .x_label_area_size(50)
        .y_label_area_size(70)
        .build_cartesian_2d(log2(left, right), log2(bottom, top))?;
    chart
        .configure_mesh()
        .x_desc("keys of a KV head (log scale)")
        .y_desc(format!("{} (log scale)", frame.y))
        .x_labels(24)
        .y_labels(16)
        .x_label_formatter(&|x| thousands(x.round() as usize))
        .y_label_formatter(&|y| match *y {
            y if y < 1.0 => format!("{y:.2}"),
            y => thousands(y.round() as usize),
        })
        .axis_desc_style(("sans-serif", 16))
        .label_style(("sans-serif", 14))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for ((name, points), colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let line = points.iter().copied();
        let style = colour.stroke_width(2);
        chart.draw_series(LineSeries::new(line.clone(), style))?;
        chart.draw_series(line.map(|point| Circle::new(point, 4, colour.filled())))?;
        names.add(name, style)?;
    }
    for ((name, height), shade) in frame.marks.iter().zip([0, 130, 190]) {
        let ends = [(left, *height), (right, *height)];
        let style = RGBColor(shade, shade, shade).stroke_width(2);
        chart.draw_series(DashedLineSeries::new(ends, 8, 5, style))?;
        names.add(&format!("{name} ({height:.1})"), style)?;
    }
    root.present()?;
    Ok(())
}

/// The column of names beside a plot.
struct Names<'a> {
    area: DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    /// Height of the next name.
    next: i32,
}

impl Names<'_> {
    fn add(
        &mut self,
        name: &str,
        style: ShapeStyle,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let y = self.next;
        self.area
            .draw(&PathElement::new([(0, y), (24, y)], style))?;
        let text = Text::new(name.to_owned(), (32, y - 7), ("sans-serif", 14));
        self.area.draw(&text)?;
        self.next += 24;
        Ok(())
    }
}

/// A logarithmic axis with a label at each power of two.
fn log2(low: f64, high: f64) -> LogCoord<f64> {
    (low..high).log_scale().base(2.0).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::outcome::tests::outcome;

    #[test]
    fn a_sweep_becomes_three_plots_with_every_line_named() {
        let mut outcomes = Vec::new();
        for len in [512, 8192] {
            for (rule, name) in [("dense", "dense (ours)"), ("top-k=256", "hira")] {
                let mut one = outcome(&format!("smollm2/layer14/{len}"), rule, name, len as f64);
                one.len = len;
                outcomes.push(one);
            }
        }
        let ceilings = Ceilings {
            stream: vec![(1, 20.0), (2, 35.0)],
            ..Ceilings::default()
        };
        let folder = tempfile::tempdir().expect("a folder");
        plots(&outcomes, Some(&ceilings), folder.path()).expect("plots");
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a plot");
        let latency = text("latency-smollm2.svg");
        for wanted in ["dense (ours)", "hira, top-k=256", "8,192", "microseconds"] {
            assert!(latency.contains(wanted), "{wanted}");
        }
        assert!(!text("ratio-smollm2.svg").contains("dense (ours)"));
        assert!(text("bytes-smollm2.svg").contains("plain read, 2 threads (35.0)"));
        assert!(!folder.path().join("latency-llama3.svg").exists());
    }

    #[test]
    fn axes_end_at_powers_around_the_values() {
        assert_eq!(ends([3.0, 9.0].into_iter(), 2.0), (2.0, 16.0));
        assert_eq!(ends([1.0, 8.0].into_iter(), 2.0), (0.5, 16.0));
    }
}
