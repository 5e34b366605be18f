//! What a rule is asked, what it answers, and the trait that joins the two.

use crate::ThresholdError;

/// What a rule resolves to for one query: the one thing that a search has to know of it.
///
/// # Units
///
/// `tau` is a score: `q . k`, not scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cut {
    /// Every visible key whose score is at least `tau`: `f32::MIN` or less selects every key, and `+inf` none.
    AtLeast {
        /// The score to reach. A search refuses NaN with a typed error.
        tau: f32,
    },
    /// The `k` keys that score highest, ties to the lower position; all keys if fewer are visible.
    Top {
        /// How many keys to keep. 0 selects nothing.
        k: usize,
    },
    /// The keys that reach the highest score for which the search can prove that the others hold at most `dropped` of the softmax mass.
    ///
    /// Every key that ties with the last one is kept.
    Mass {
        /// The share of the mass that may be left out: 0 or less keeps every key, 1 or more the best one. A search refuses NaN with a
        /// typed error, and the rule itself where it is not told the scale of the softmax.
        dropped: f32,
    },
}

/// What a rule may look at when it resolves for one query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RuleInput<'a> {
    /// Number of keys that the query can see, at least 1 in a search.
    pub visible: usize,
    /// Canonical scores of the sampled keys for this query, finite, in the order of the sample. Empty unless the rule
    /// [needs a sample](Threshold::needs_sample), and where an index keeps none.
    pub sample: &'a [f32],
}

/// A rule that a search can follow: which keys to keep, given how many there are and the scores of a few of them.
///
/// [`ThresholdRule`](crate::ThresholdRule) implements it for the rules that travel in configuration files; a type of one's own may be handed
/// to a search just as well. Whatever the rule answers, the search returns exactly the keys that the [`Cut`] describes.
///
/// # Examples
///
/// Keys within a distance of the best sampled one:
///
/// ```
/// use hira_threshold::{Cut, RuleInput, Threshold, ThresholdError};
///
/// struct NearBest {
///     distance: f32,
/// }
///
/// impl Threshold for NearBest {
///     fn validate(&self) -> Result<(), ThresholdError> {
///         if self.distance.is_nan() { Err(ThresholdError::TauNan) } else { Ok(()) }
///     }
///
///     fn needs_sample(&self) -> bool {
///         true
///     }
///
///     fn cut(&self, input: &RuleInput<'_>) -> Cut {
///         let best = input.sample.iter().copied().reduce(f32::max);
///         Cut::AtLeast { tau: best.map_or(f32::MIN, |best| best - self.distance) }
///     }
/// }
///
/// let rule = NearBest { distance: 2.0 };
/// let input = RuleInput { visible: 100, sample: &[1.0, 7.5, 3.0] };
/// assert_eq!(rule.cut(&input), Cut::AtLeast { tau: 5.5 });
/// ```
pub trait Threshold: Sync {
    /// Says whether the rule can be answered at all, and if not, what is required. A search asks before anything else.
    ///
    /// # Errors
    ///
    /// The reason why the rule is refused.
    fn validate(&self) -> Result<(), ThresholdError>;

    /// Whether [`cut`](Self::cut) wants to see sampled scores. Scoring the sample costs one row of the index a key.
    fn needs_sample(&self) -> bool {
        false
    }

    /// Resolves the rule for one query. Called once a query, on any thread, for a rule that is valid.
    ///
    /// The same input should give the same answer: brute force resolves the rule anew to check a search.
    fn cut(&self, input: &RuleInput<'_>) -> Cut;
}
