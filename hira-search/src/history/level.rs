//! Where a head's thresholds by mass lie, relative to the mass of its keys.

/// A threshold as the logarithm of a probability: `scale * tau - ln(sum of exp(scale * score))`, over keys that hold nearly all of the mass.
///
/// From one decode step to the next it moves less than anything else that one could guess a threshold from: on the captures (layers 3, 14 and
/// 26, masses of 0.92 to 0.99) the logarithm of what is dropped at a guessed level deviates by 0.3 to 0.8, and at a threshold guessed from
/// a sample of 512 keys by 0.2 to 1.1; distances from the best score or from the selected ones move more.
pub(crate) type Level = f64;

/// Weights of a new measurement in the moving averages.
const RECENT_MEAN: f64 = 0.25;
const RECENT_DEVIATION: f64 = 0.1;
/// Deviations, and logits, that a guess stays below the mean: under 1 % of the guesses on the captures are too high then, and cost a second
/// scan. What is guessed lower leaves more candidates, not more keys to score.
const DEVIATIONS: f64 = 2.0;
const SPARE: f64 = 0.2;
/// Deviation before any was measured.
const UNKNOWN: f64 = 0.5;
/// A measurement counts no further than so many logits from its guess.
const FARTHEST: f64 = 2.0;

/// A moving average of the levels that would have dropped just what may be dropped, and of how far they lie from it.
///
/// Guessed as retransmission timeouts are: a mean and a multiple of the mean deviation (Jacobson 1988, "Congestion Avoidance and
/// Control", appendix A).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MassLevel {
    /// Of the dropped mass to the kept one.
    pub(crate) ratio: f64,
    pub(crate) mean: Level,
    pub(crate) deviation: f64,
}

impl MassLevel {
    /// From one measurement, as in [`note`](Self::note).
    pub(crate) fn new(ratio: f64, at: Level, excess: f64) -> Self {
        Self {
            ratio,
            mean: wanted(at, excess),
            deviation: UNKNOWN,
        }
    }

    /// A level that is unlikely to drop too much.
    pub(crate) fn guess(&self) -> Level {
        self.mean - DEVIATIONS * self.deviation - SPARE
    }

    /// Notes that `excess` times what may be dropped was dropped at a level.
    pub(crate) fn note(&mut self, at: Level, excess: f64) {
        let off = wanted(at, excess) - self.mean;
        if off.is_finite() {
            self.deviation += (off.abs() - self.deviation) * RECENT_DEVIATION;
            self.mean += off * RECENT_MEAN;
        }
    }
}

/// The level that would have dropped what may be: as if the tail were as wide at every level.
fn wanted(at: Level, excess: f64) -> Level {
    at - excess.ln().clamp(-FARTHEST, FARTHEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_follow_the_levels_and_their_deviation() {
        // Levels that would have been right: -6 and -7 in turn.
        let mut level = MassLevel::new(0.01, -4.0, 1.0);
        let mut too_high = 0;
        for step in 0..400 {
            let right = if step % 2 == 0 { -6.0 } else { -7.0 };
            let guess = level.guess();
            too_high += usize::from(step >= 40 && guess > right);
            level.note(guess, f64::exp(guess - right));
        }
        assert_eq!(too_high, 0);
        assert!((level.mean + 6.5).abs() < 0.2 && (level.deviation - 0.5).abs() < 0.1);
        // What stays the same is met closely.
        for _ in 0..400 {
            let guess = level.guess();
            level.note(guess, f64::exp(guess + 6.0));
        }
        assert!((level.guess() + 6.2).abs() < 0.01);
    }

    #[test]
    fn nothing_dropped_and_everything_dropped_move_it_by_a_little() {
        for excess in [0.0, f64::INFINITY, f64::NAN] {
            let mut level = MassLevel::new(0.01, -4.0, 1.0);
            level.note(-4.0, excess);
            assert!(level.guess().is_finite() && (level.mean + 4.0).abs() <= 0.5);
        }
    }
}
