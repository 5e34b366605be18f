//! Counts of positive numbers on a logarithmic scale: quantiles of a stream in fixed memory.

/// Buckets of an octave.
const FINE: i32 = 4;

/// Exponents of two: bounds below the first are counted as the first, those from the last on without an upper limit.
const OCTAVES: (i32, i32) = (-40, 24);

const BUCKETS: usize = ((OCTAVES.1 - OCTAVES.0) * FINE) as usize;

/// How many numbers lie in each quarter of an octave between `2^-40` and `2^24`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Histogram {
    counts: [u64; BUCKETS],
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            total: 0,
        }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, x: f32) {
        self.counts[bucket(x)] += 1;
        self.total += 1;
    }

    /// A number that at least the share `q` of the numbers added does not exceed; 0 if there is none.
    ///
    /// It is the upper end of a bucket, so between once and `2^(1/4) = 1.19` times the least such number that was added, where that is within the scale; below
    /// it is the least number of the scale, above infinity.
    pub(crate) fn quantile(&self, q: f64) -> f32 {
        if self.total == 0 {
            return 0.0;
        }
        let wanted = (q * self.total as f64).ceil() as u64;
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return upper(i);
            }
        }
        f32::INFINITY
    }
}

/// The bucket whose upper end is the least that `x` does not exceed.
fn bucket(x: f32) -> usize {
    if x.is_nan() {
        return BUCKETS - 1;
    }
    // within rounding of the right one; the ends decide
    let guess =
        (f64::from(x.max(f32::MIN_POSITIVE)).log2() - f64::from(OCTAVES.0)) * f64::from(FINE);
    let guess = guess.ceil().clamp(1.0, BUCKETS as f64) as usize - 1;
    let fits = |i: usize| x <= upper(i);
    if guess > 0 && fits(guess - 1) {
        guess - 1
    } else if fits(guess) || guess + 1 == BUCKETS {
        guess
    } else {
        guess + 1
    }
}

/// The upper end of bucket `i`, which belongs to it.
fn upper(i: usize) -> f32 {
    if i + 1 == BUCKETS {
        return f32::INFINITY;
    }
    let exponent = f64::from(OCTAVES.0) + (i + 1) as f64 / f64::from(FINE);
    exponent.exp2() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_a_quarter_of_an_octave_from_above() {
        for scale in [1e-9_f32, 1e-3, 1.0, 7.0] {
            let mut histogram = Histogram::default();
            let mut numbers: Vec<f32> = (1..=1000).map(|i| scale * (i * i) as f32).collect();
            numbers.iter().for_each(|&x| histogram.add(x));
            numbers.sort_by(f32::total_cmp);
            for q in [0.001, 0.5, 0.9, 0.95, 1.0] {
                let exact = numbers[(q * 1000.0_f64).ceil() as usize - 1];
                let found = histogram.quantile(q);
                assert!(
                    found >= exact && found <= exact * 1.19,
                    "{q}: {found} {exact}"
                );
            }
        }
    }

    #[test]
    fn the_ends_of_the_scale_hold_everything() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.95), 0.0);
        histogram.add(0.0);
        assert!(histogram.quantile(0.95) <= 1.2e-12);
        for x in [f32::INFINITY, f32::NAN, 3e38] {
            histogram.add(x);
            assert_eq!(histogram.quantile(1.0), f32::INFINITY);
        }
        for i in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper(i)), i);
            assert_eq!(bucket(upper(i).next_up()), i + 1);
        }
    }
}
