//! Medians with spread.

/// Median and quartiles of some measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// A quarter of the measurements are below.
    pub lower: f64,
    /// The median.
    pub median: f64,
    /// A quarter of the measurements are above.
    pub upper: f64,
}

impl Spread {
    /// Of at least one measurement; `None` for none.
    pub fn of(mut measurements: Vec<f64>) -> Option<Self> {
        measurements.sort_by(f64::total_cmp);
        let last = measurements.len().checked_sub(1)?;
        Some(Self {
            lower: measurements[last / 4],
            median: measurements[last / 2],
            upper: measurements[last - last / 4],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_nine() {
        let spread = Spread::of((1..=9).rev().map(f64::from).collect()).expect("nine");
        assert_eq!((spread.lower, spread.median, spread.upper), (3.0, 5.0, 7.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
