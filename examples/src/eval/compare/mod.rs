//! Three published sparse attentions, for comparison only: [`ComparisonRule`].
//!
//! They append to the same cache as Hira's attention and attend exactly (canonical scores, softmax in f32) to what they select, so that what
//! they are compared by is the selection alone. They prove nothing: their reports carry the number of keys, and the bounds that hold for
//! any selection at all.

mod h2o;
mod host;
mod processor;
mod quest;
mod rule;
mod streaming;

pub use host::{ComparisonHost, Selections};
pub use processor::Comparison;
pub use quest::PAGE;
pub use rule::{ComparisonRule, ComparisonRuleError};
pub use streaming::SINKS;
