//! Where a head's thresholds lie, relative to the scores of the last step's keys.

/// A threshold in logits, `scale * tau`, less what the remembered keys say of the query.
///
/// * By mass that is `ln(sum of exp(scale * score))` over the keys selected last, which hold nearly all of the mass: the level is the logarithm of a
///   probability. From one decode step to the next it moves less than anything else that one could guess a threshold from: on the captures
///   (layers 3, 14 and 26, masses of 0.92 to 0.99) the logarithm of what is dropped at a guessed level deviates by 0.3 to 0.8, and
///   at a threshold guessed from a sample of 512 keys by 0.2 to 1.1; distances from the best score or from the selected ones move more.
/// * For the best `k` keys it is the mean logit of some keys that were near the threshold of the last step. Guessed from 48 of them, 1.4 to 2.2 keys a key
///   wanted reach the first threshold on the captures, as many as where all of the last step's keys are scored to prove one.
pub(crate) type Level = f64;

/// What a level belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Sought {
    /// The best so many keys.
    Top(usize),
    /// All but so much mass, relative to that of the keys that are kept.
    Mass(f64),
}

/// Weight of a new level in the moving average of the levels, and the least one in that of their deviations.
const RECENT_MEAN: f64 = 0.25;
const RECENT_DEVIATION: f64 = 0.1;
/// Deviations that a guess stays below the mean. Where it is too high nevertheless the sketch is scanned twice; what is guessed lower
/// leaves more candidates, not more keys to score. On captures half a deviation more divides the number of second scans by five.
const DEVIATIONS: f64 = 2.5;
/// More of them for each doubling of the visible keys beyond so many: a second scan is as dear as the first.
const MORE_DEVIATIONS: f64 = 0.5;
const SHORT: f64 = 8192.0;
/// A level counts no further than so many logits, or deviations, from the mean.
const FARTHEST: f64 = 2.0;
const FARTHEST_DEVIATIONS: f64 = 4.0;

impl Sought {
    /// Logits that a guess stays below the mean in any case.
    fn spare(self) -> f64 {
        match self {
            Self::Top(_) => 0.05,
            Self::Mass(_) => 0.2,
        }
    }

    /// Deviation before any was measured.
    fn unknown(self) -> f64 {
        match self {
            Self::Top(_) => 0.2,
            Self::Mass(_) => 0.75,
        }
    }
}

/// Moving averages of the levels that would have been right, and of how far they lie from it.
///
/// Guessed as retransmission timeouts are: a mean and a multiple of the mean deviation (Jacobson 1988, "Congestion Avoidance and
/// Control", appendix A).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Levels {
    pub(crate) sought: Sought,
    pub(crate) mean: Level,
    pub(crate) deviation: f64,
    /// Levels that were noted.
    pub(crate) count: u32,
}

impl Levels {
    pub(crate) fn new(sought: Sought, level: Level) -> Self {
        Self {
            sought,
            mean: level,
            deviation: sought.unknown(),
            count: 1,
        }
    }

    /// A level that is unlikely to be too high, in a search of so many visible keys.
    pub(crate) fn guess(&self, visible: usize) -> Level {
        let doublings = (visible as f64 / SHORT).log2().max(0.0);
        let deviations = DEVIATIONS + MORE_DEVIATIONS * doublings;
        self.mean - deviations * self.deviation - self.sought.spare()
    }

    pub(crate) fn note(&mut self, level: Level) {
        let farthest = FARTHEST.max(FARTHEST_DEVIATIONS * self.deviation);
        let off = (level - self.mean).clamp(-farthest, farthest);
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
        for sought in [Sought::Top(3), Sought::Mass(0.01)] {
            // -6 and -7 in turn
            let mut levels = Levels::new(sought, -4.0);
            for step in 0..400 {
                let right = if step % 2 == 0 { -6.0 } else { -7.0 };
                assert!(step < 20 || levels.guess(100) < right);
                levels.note(right);
            }
            assert!((levels.mean + 6.5).abs() < 0.2 && (levels.deviation - 0.5).abs() < 0.1);
            assert!(levels.guess(32_768) < levels.guess(8_192) - 0.4);
            // What stays the same is met closely.
            for _ in 0..400 {
                levels.note(-6.0);
            }
            assert!((levels.guess(100) + 6.0 + sought.spare()).abs() < 0.01);
        }
    }

    #[test]
    fn one_level_far_off_moves_it_by_a_little() {
        let mut levels = Levels::new(Sought::Mass(0.01), -4.0);
        levels.note(-1e300);
        assert!((levels.mean + 4.0).abs() <= 1.0 && levels.deviation <= 2.0);
    }
}
