//! Where a head's thresholds by mass lie, relative to the mass of its keys.

/// A threshold as the logarithm of a probability: `scale * tau - ln(sum of exp(scale * score))`, over keys that hold nearly all of the mass.
///
/// From one decode step to the next it moves less than anything else that one could guess a threshold from: on the captures (layers 3, 14 and
/// 26, masses of 0.92 to 0.99) the logarithm of what is dropped at a guessed level deviates by 0.3 to 0.8, and at a threshold guessed from
/// a sample of 512 keys by 0.2 to 1.1; distances from the best score or from the selected ones move more.
pub(crate) type Level = f64;

/// Weight of a new level in the moving average of the levels, and the least one in that of their deviations.
const RECENT_MEAN: f64 = 0.25;
const RECENT_DEVIATION: f64 = 0.1;
/// Deviations, and logits, that a guess stays below the mean. Where it is too high nevertheless the sketch is scanned twice; what is guessed lower
/// leaves more candidates, not more keys to score.
const DEVIATIONS: f64 = 2.5;
const SPARE: f64 = 0.2;
/// Deviation before any was measured.
const UNKNOWN: f64 = 0.75;
/// A level counts no further than so many logits from the mean.
const FARTHEST: f64 = 2.0;

/// Moving averages of the levels at which just what may be dropped was dropped, and of how far they lie from it.
///
/// Guessed as retransmission timeouts are: a mean and a multiple of the mean deviation (Jacobson 1988, "Congestion Avoidance and
/// Control", appendix A).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MassLevel {
    /// Of the dropped mass to the kept one.
    pub(crate) ratio: f64,
    pub(crate) mean: Level,
    pub(crate) deviation: f64,
    /// Levels that were noted.
    pub(crate) count: u32,
}

impl MassLevel {
    pub(crate) fn new(ratio: f64, level: Level) -> Self {
        Self {
            ratio,
            mean: level,
            deviation: UNKNOWN,
            count: 1,
        }
    }

    /// A level that is unlikely to drop too much.
    pub(crate) fn guess(&self) -> Level {
        self.mean - DEVIATIONS * self.deviation - SPARE
    }

    pub(crate) fn note(&mut self, level: Level) {
        let off = (level - self.mean).clamp(-FARTHEST, FARTHEST);
        // A plain average of the first ones.
        let recent = RECENT_DEVIATION.max(1.0 / f64::from(self.count.saturating_add(2)));
        self.deviation += (off.abs() - self.deviation) * recent;
        self.mean += off * RECENT_MEAN;
        self.count = self.count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_follow_the_levels_and_their_deviation() {
        // -6 and -7 in turn
        let mut level = MassLevel::new(0.01, -4.0);
        for step in 0..400 {
            let right = if step % 2 == 0 { -6.0 } else { -7.0 };
            assert!(step < 20 || level.guess() < right);
            level.note(right);
        }
        assert!((level.mean + 6.5).abs() < 0.2 && (level.deviation - 0.5).abs() < 0.1);
        // What stays the same is met closely.
        for _ in 0..400 {
            level.note(-6.0);
        }
        assert!((level.guess() + 6.0 + SPARE).abs() < 0.01);
    }

    #[test]
    fn one_level_far_off_moves_it_by_a_little() {
        let mut level = MassLevel::new(0.01, -4.0);
        level.note(-1e300);
        assert!((level.mean + 4.0).abs() <= RECENT_MEAN * FARTHEST);
        assert!(level.deviation <= 2.0 * UNKNOWN);
    }
}
