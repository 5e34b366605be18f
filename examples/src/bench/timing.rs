//! Medians with spread, and the speed of memory.

use std::{hint::black_box, time::Instant};

use rayon::prelude::*;

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

/// GB/s that all threads together read from memory that is in no cache: the ceiling of every dense step.
pub fn stream_read_gb_per_s() -> f64 {
    /// Far larger than the last-level cache.
    const ELEMENTS: usize = 96 << 20;
    let data = vec![1.0_f32; ELEMENTS];
    let read = || {
        let start = Instant::now();
        let sum: f32 = data
            .par_chunks(1 << 16)
            .map(|chunk| {
                let mut lanes = [0.0_f32; 64];
                for block in chunk.chunks_exact(64) {
                    lanes.iter_mut().zip(block).for_each(|(lane, x)| *lane += x);
                }
                lanes.iter().sum::<f32>()
            })
            .sum();
        black_box(sum);
        (ELEMENTS * size_of::<f32>()) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(|_| read()).fold(0.0, f64::max)
}
