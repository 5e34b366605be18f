//! The colours of every plot.

use plotters::style::RGBColor;

/// Colours that differ in print and for those who do not see red and green apart.
pub(crate) const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(140, 86, 0),
    RGBColor(90, 90, 90),
    RGBColor(230, 159, 0),
];
