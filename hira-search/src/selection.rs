//! What a search returns.

use serde::Serialize;

use crate::blocks::TailBlocks;
use crate::plan::Plan;

/// The keys that one query selects, with their scores and what is known of the rest.
///
/// # Numerics
/// `positions` is ascending and identical to brute force over the canonical score; `scores[i]` is the canonical score of
/// `positions[i]`, bit for bit, whatever the plan, kernel, thread count or segment layout.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Selection {
    /// Selected positions, ascending.
    pub positions: Vec<u32>,
    /// Canonical score of each selected position.
    pub scores: Vec<f32>,
    /// How the answer was found.
    pub stats: SearchStats,
    /// A proven bound on what was not selected.
    pub tail: Tail,
    /// The same by blocks of positions, where [`SearchConfig::tail_block`](crate::SearchConfig::tail_block) asks for it.
    pub blocks: TailBlocks,
}

impl Selection {
    /// Number of selected keys.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether nothing was selected.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The selected keys, in order of position.
    ///
    /// # Examples
    /// ```
    /// use hira_search::{Hit, Selection};
    ///
    /// let selection = Selection { positions: vec![2, 5], scores: vec![1.0, 3.0], ..Selection::default() };
    /// let best = selection.hits().max_by(|a, b| a.score.total_cmp(&b.score));
    /// assert_eq!(best, Some(Hit { position: 5, score: 3.0 }));
    /// ```
    pub fn hits(&self) -> impl ExactSizeIterator<Item = Hit> + DoubleEndedIterator + '_ {
        let pairs = self.positions.iter().zip(&self.scores);
        pairs.map(|(&position, &score)| Hit { position, score })
    }

    pub(crate) fn clear(&mut self) {
        self.positions.clear();
        self.scores.clear();
        self.stats = SearchStats::default();
        self.tail = Tail::default();
        self.blocks.clear();
    }
}

/// A selected key.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hit {
    /// Its position.
    pub position: u32,
    /// Its canonical score.
    pub score: f32,
}

/// Where the threshold of the first pass over the sketch came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstThreshold {
    /// There was none: every key of the first tiles was a candidate (or the plan was dense).
    #[default]
    None,
    /// The rule says it.
    Given,
    /// Guessed from keys of the previous search; proven afterwards.
    Previous,
    /// Proven by the keys of the clusters with the highest bounds.
    BestFirst,
    /// Guessed from a sample of the sketch; proven afterwards.
    Sample,
}

/// Counts of one query's search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SearchStats {
    /// Keys in the index.
    pub stored: usize,
    /// Keys that the query may see.
    pub visible: usize,
    /// Keys whose sketch was read for the query's group (0 when dense; more than `visible` after a second scan).
    pub scanned: usize,
    /// Keys that the scan kept, before the k-th lower bound of all of them was known.
    pub candidates: usize,
    /// Keys scored exactly.
    pub survivors: usize,
    /// Keys selected.
    pub selected: usize,
    /// Plan that answered.
    pub plan: Plan,
    /// Where the threshold came from that the first pass started with.
    pub first_threshold: FirstThreshold,
    /// Whether the sampled first threshold was too high, so that the sketch was scanned again.
    pub rescanned: bool,
    /// Whether `max_candidates` cut the selection.
    pub truncated: bool,
}

impl SearchStats {
    /// Selected keys over the keys that the query may see (0 for none).
    pub fn density(&self) -> f64 {
        ratio(self.selected, self.visible)
    }

    /// Exactly scored keys over the keys that the query may see (0 for none).
    pub fn scanned_fraction(&self) -> f64 {
        ratio(self.survivors, self.visible)
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// A proven bound on the weight of every visible key that was not selected.
///
/// # Units
/// `sum >= sum over unselected visible keys of exp(scale * (score - reference))`, rounded outward. `reference` is a score: the
/// lowest selected score for a top-k or percentile rule and for a truncated selection, `tau` for a fixed one (moved into the
/// finite range). When nothing is left out, `sum` is 0 and `reference` is the lowest selected score (0 if nothing is visible).
/// A search with `scale = 0` does not ask for the tail: then `sum` is infinite unless nothing is left out.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tail {
    /// The score at which a key weighs 1.
    pub reference: f32,
    /// Upper bound on the unselected keys' weights; every one of them weighs at most 1.
    pub sum: f64,
}
