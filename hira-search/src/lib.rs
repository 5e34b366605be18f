//! Exact halfspace search over a hierarchical key index.
//!
//! A [`HalfspaceSearcher`] answers a rule (a [`ThresholdRule`](hira_threshold::ThresholdRule) or any other
//! [`Threshold`](hira_threshold::Threshold)) over the keys of a
//! [`HierarchicalIndex`](hira_index::HierarchicalIndex) for a group of queries, with a [`Selection`] each: positions, canonical scores,
//! counts, and a proven bound on the weight of what was left out.
//!
//! `examples/own_rule.rs` shows a rule of one's own.
//!
//! # How a group is answered
//! 1. **Plan** ([`Plan`]): dense for short indexes and wide selections, else a scan of the int8 sketch, after a descent of the coarse
//!    levels or a pass over the product codes where that is measured to pay.
//! 2. **Threshold**: given for a fixed rule, computed from the scores of the index's sample for a sampled one. For top-k the keys that
//!    survived the previous step prove one for the new query; without them the clusters with the highest bounds do (tree plan), or the
//!    lower bounds of a few sampled tiles give a guess.
//! 3. **Scan**: one pass over the sketch gives every key an interval for every query of the group; keys whose upper bound reaches the
//!    threshold become candidates, the others add the weight of their upper bound to the tail.
//! 4. **Proof**: the k-th largest lower bound among candidates is a proven threshold. If the guess lies above it, the sketch is scanned again
//!    from the proven one, so a guess costs time at worst, never a key.
//! 5. **Survivors**: candidates whose upper bound reaches the proven threshold are scored exactly, and the rule is settled on exact scores.

mod best_first;
mod blocks;
#[cfg(feature = "burn")]
pub mod burn;
mod config;
mod dense;
mod disk_keys;
mod error;
mod estimate;
mod explain;
mod group;
mod history;
mod hits;
mod mass;
mod naive;
mod partition;
mod plan;
mod positions;
mod product;
mod resolve;
mod scan;
mod scratch;
mod searcher;
mod selection;
mod settle;
mod survivors;
mod tail;
mod tree;
mod visible;
mod warm;
mod workers;

pub use blocks::TailBlocks;
pub use config::SearchConfig;
pub use error::SearchError;
pub use explain::{Chosen, Explanation};
pub use history::SearchHistory;
pub use hits::Hits;
pub use naive::search_naive;
pub use plan::{Plan, PlanChoice, PlanEstimate, Reason, Work};
pub use positions::Positions;
pub use scratch::Scratch;
pub use searcher::HalfspaceSearcher;
pub use selection::{FirstThreshold, Hit, SearchStats, Selection, Tail};
pub use workers::call_with_rayon;
