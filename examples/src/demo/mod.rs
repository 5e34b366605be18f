//! Dense beside Hira on one document: one prefill, two answers from it, and the figures of each.
//!
//! [`compare`] decodes the same number of steps with both attentions from the same cache, cut back to the prompt in between, so
//! that they differ in nothing but the attention. It then feeds Hira the tokens of the dense answer: only so can each step be
//! compared with the dense step that had the same past.
//!
//! [`measure_speed`] times decode steps of the same model at several contexts, with Burn's own attention beside ours.

mod comparison;
mod decoding;
mod divergence;
mod error;
mod speed;
mod summary;
mod table;

pub use comparison::{Comparison, ComparisonConfig, Event, compare};
pub use decoding::{Decoding, decode};
pub use divergence::{Agreement, Divergence, kl_divergence};
pub use error::DemoError;
pub use speed::{Attention, Speed, SpeedConfig, SpeedRow, measure_speed};
pub use table::Table;

/// Newton's Opticks, third book, Observation 11 to Query 24: see examples/data/README.md.
pub const TEXT: &str = include_str!("../../data/opticks-excerpt.txt");
