//! Plots of an evaluation as SVG: lines over two axes, each straight or logarithmic, and heat maps.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::palette::COLOURS;

/// Why a plot cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {file}")]
pub struct PlotError {
    /// The file.
    file: String,
    /// What went wrong.
    source: Drawing,
}

type Drawing = Box<dyn Error + Send + Sync>;

/// A line of a plot: its name and its points.
pub type Line = (String, Vec<(f64, f64)>);

/// An axis.
#[derive(Debug, Clone, Copy)]
pub struct Axis<'a> {
    /// What it shows.
    pub name: &'a str,
    /// Whether it is logarithmic: values must then be positive, others are left out.
    pub logarithmic: bool,
}

impl Axis<'_> {
    /// Where a value stands: itself or its decimal logarithm; `None` if it has no place.
    fn place(self, value: f64) -> Option<f64> {
        let place = if self.logarithmic {
            value.log10()
        } else {
            value
        };
        place.is_finite().then_some(place)
    }

    fn label(self, place: f64) -> String {
        let value = if self.logarithmic {
            10f64.powf(place)
        } else {
            place
        };
        match value.abs() {
            0.0 => "0".to_owned(),
            size if size < 1e-3 => format!("{value:.0e}"),
            size if size < 0.1 => format!("{value:.3}"),
            size if size < 10.0 && size.fract() != 0.0 => format!("{value:.2}"),
            _ => format!("{value:.0}"),
        }
    }
}

const SIZE: (u32, u32) = (1160, 600);

/// Width of the column of names.
const NAMES: u32 = 220;

/// Draws lines with a point at each value, and their names beside them. Nothing is drawn without two values.
///
/// # Errors
///
/// [`PlotError`] that names the file.
pub fn lines(
    file: &Path,
    title: &str,
    x: Axis<'_>,
    y: Axis<'_>,
    series: &[Line],
) -> Result<(), PlotError> {
    let placed: Vec<Line> = series
        .iter()
        .map(|(name, points)| {
            let points = points.iter();
            let points = points.filter_map(|point| Some((x.place(point.0)?, y.place(point.1)?)));
            (name.clone(), points.collect())
        })
        .collect();
    let values = || placed.iter().flat_map(|(_, points)| points);
    if values().count() < 2 {
        return Ok(());
    }
    let horizontal = ends(values().map(|point| point.0));
    let vertical = ends(values().map(|point| point.1));
    told(file, || {
        let root = SVGBackend::new(file, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        // the names stand beside the lines, which they would cover
        let (root, names) = root.split_horizontally(SIZE.0 - NAMES);
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .margin_right(30)
            .x_label_area_size(50)
            .y_label_area_size(80)
            .build_cartesian_2d(horizontal.0..horizontal.1, vertical.0..vertical.1)?;
        let named = |axis: Axis<'_>| match axis.logarithmic {
            true => format!("{} (log scale)", axis.name),
            false => axis.name.to_owned(),
        };
        chart
            .configure_mesh()
            .x_desc(named(x))
            .y_desc(named(y))
            .x_label_formatter(&|place| x.label(*place))
            .y_label_formatter(&|place| y.label(*place))
            .axis_desc_style(("sans-serif", 16))
            .label_style(("sans-serif", 14))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (i, ((name, points), colour)) in placed.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let style = colour.stroke_width(2);
            let points = points.iter().copied();
            chart.draw_series(LineSeries::new(points.clone(), style))?;
            chart.draw_series(points.map(|point| Circle::new(point, 4, colour.filled())))?;
            let height = 60 + 24 * i as i32;
            names.draw(&PathElement::new([(0, height), (24, height)], style))?;
            names.draw(&Text::new(
                name.clone(),
                (32, height - 7),
                ("sans-serif", 14),
            ))?;
        }
        root.present()?;
        Ok(())
    })
}

/// Draws a value in `0..=1` for each layer (across) and head (down), darker where it is larger, with the value in percent where there is room.
///
/// # Errors
///
/// [`PlotError`] that names the file.
pub fn heat_map(file: &Path, title: &str, layers: &[Vec<f64>]) -> Result<(), PlotError> {
    let heads = layers.iter().map(Vec::len).max().unwrap_or(0);
    if heads == 0 {
        return Ok(());
    }
    // colours are relative to the largest: densities of a few percent would all be white
    let most = layers.iter().flatten().copied().fold(1e-9, f64::max);
    told(file, || {
        let size = (SIZE.0, 120 + 34 * heads as u32);
        let root = SVGBackend::new(file, size).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(0..layers.len() as i32, heads as i32..0)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc("layer")
            .y_desc("query head")
            .x_labels(layers.len().min(40))
            .y_labels(heads.min(40))
            .axis_desc_style(("sans-serif", 16))
            .label_style(("sans-serif", 13))
            .draw()?;
        let cells = || {
            layers.iter().enumerate().flat_map(|(layer, heads)| {
                let cell = move |(head, value): (usize, &f64)| (layer as i32, head as i32, *value);
                heads.iter().enumerate().map(cell)
            })
        };
        chart.draw_series(cells().map(|(layer, head, value)| {
            Rectangle::new(
                [(layer, head), (layer + 1, head + 1)],
                shade(value / most).filled(),
            )
        }))?;
        if layers.len() <= 40 {
            chart.draw_series(cells().map(|(layer, head, value)| {
                let colour = if value > 0.6 * most { &WHITE } else { &BLACK };
                let style = TextStyle::from(("sans-serif", 11).into_font()).color(colour);
                EmptyElement::at((layer, head)) + Text::new(percent(value), (6, 10), style)
            }))?;
        }
        root.present()?;
        Ok(())
    })
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent < 9.95 {
        format!("{percent:.1}")
    } else {
        format!("{percent:.0}")
    }
}

/// White to dark blue.
fn shade(share: f64) -> RGBColor {
    let share = share.clamp(0.0, 1.0);
    let part = |end: f64| (255.0 + share * (end - 255.0)) as u8;
    RGBColor(part(8.0), part(48.0), part(107.0))
}

/// The ends of an axis: the values' own, and a twentieth more on each side.
fn ends(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    let margin = match high - low {
        0.0 => 0.5,
        width => width / 20.0,
    };
    (low - margin, high + margin)
}

fn told(file: &Path, draw: impl FnOnce() -> Result<(), Drawing>) -> Result<(), PlotError> {
    draw().map_err(|source| PlotError {
        file: file.display().to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tag of an SVG that is opened is closed, in order: what a browser needs to show it.
    fn assert_svg(text: &str) {
        assert!(text.starts_with("<svg"), "{text}");
        let mut open = Vec::new();
        for tag in text.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("a tag has an end");
            let name = tag.split_whitespace().next().expect("a tag has a name");
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?} is left open");
        assert!(!text.contains("NaN"));
    }

    #[test]
    fn lines_become_an_svg_that_names_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("lines.svg");
        let axis = |name, logarithmic| Axis { name, logarithmic };
        let series = [
            ("a < b & c".to_owned(), vec![(0.01, 1e-4), (0.1, 1e-6)]),
            ("none".to_owned(), vec![(0.0, 1.0), (0.02, 0.0)]),
        ];
        lines(&file, "t", axis("density", true), axis("KL", true), &series).expect("a plot");
        let text = std::fs::read_to_string(&file).expect("a file");
        assert_svg(&text);
        for wanted in ["a &lt; b &amp; c", "density (log scale)", "KL (log scale)"] {
            assert!(text.contains(wanted), "{wanted}");
        }
        // two points, and none of those without a logarithm
        assert_eq!(text.matches("<circle").count(), 2);
        let nothing = folder.path().join("nothing.svg");
        lines(&nothing, "t", axis("", false), axis("", false), &[]).expect("nothing");
        assert!(!nothing.exists());
    }

    #[test]
    fn a_heat_map_has_a_cell_for_each_head() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("heat.svg");
        let layers = vec![vec![0.01, 0.02, 0.5], vec![0.123, 1.0, 0.0]];
        heat_map(&file, "densities", &layers).expect("a plot");
        let text = std::fs::read_to_string(&file).expect("a file");
        assert_svg(&text);
        for wanted in ["1.0", "50", "12", "100", "query head"] {
            assert!(text.contains(&format!("{wanted}\n")), "{wanted}");
        }
    }

    #[test]
    fn whole_numbers_are_written_whole() {
        let label = |value| {
            Axis {
                name: "",
                logarithmic: false,
            }
            .label(value)
        };
        let labels = [0.0, 5.0, -5.0, 2.5, 30.0, 0.05].map(label);
        assert_eq!(labels, ["0", "5", "-5", "2.50", "30", "0.050"]);
    }

    #[test]
    fn one_value_has_an_axis() {
        assert_eq!(ends([2.0].into_iter()), (1.5, 2.5));
        assert_eq!(ends([0.0, 20.0].into_iter()), (-1.0, 21.0));
    }
}
