//! Threshold rules: which keys a query selects, and the exact selection that every plan ends with.
//!
//! A [`ThresholdRule`] is a small value that travels in configuration files and on command lines; the trait
//! [`Threshold`] is for rules of one's own. A rule resolves to a [`Cut`] for each query: either a score that a key must
//! reach, or how many keys to keep. [`kth_largest`] turns the second into the first, and [`select_top_k`] and
//! [`select_at_least`] settle the last exact step, ties included.
//!
//! This crate sees numbers only: it knows neither keys nor indexes, so a bound and an exact score are the same to it.
//!
//! ```
//! use hira_threshold::{ThresholdRule, select_top_k};
//!
//! let rule: ThresholdRule = "top-k=2".parse()?;
//! let mut positions = vec![0, 1, 2, 3];
//! let mut scores = vec![0.5, 2.0, -1.0, 0.5];
//! let k = rule.count(scores.len()).expect("top-k keeps a number of keys");
//! select_top_k(&mut positions, &mut scores, k);
//! assert_eq!(positions, [0, 1]); // of the two keys that score 0.5, the lower position
//! # Ok::<(), hira_threshold::ThresholdError>(())
//! ```

mod cut;
mod error;
mod rule;
mod sampled;
mod select;
mod share;
mod tau;
mod text;

pub use cut::{Cut, RuleInput, Threshold};
pub use error::ThresholdError;
pub use rule::ThresholdRule;
pub use select::{kth_largest, select_at_least, select_top_k, select_top_k_with};
