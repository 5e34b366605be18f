//! Fidelity: how far attention by a rule is from dense attention, on a model.
//!
//! [`Evaluation`] reads windows of a text with every [`EvalRule`] and judges each next token against dense attention over the same past
//! (perplexity, divergence, agreement), then decodes freely from one prompt. What is finished is a line of a [`Journal`], so that a run can be
//! stopped and gone on with; [`write_report`] makes tables and plots of whatever is there.

pub mod captures;
pub mod compare;
mod decoding;
mod densities;
mod error;
mod fingerprint;
mod journal;
mod measured;
mod plot;
mod reading;
mod record;
mod report;
mod rules;
mod run;
mod score;
mod table;
pub mod tasks;
mod truth;

pub use decoding::DenseAnswer;
pub use densities::{HeadSums, LayerSums, Reported};
pub use error::EvalError;
pub use fingerprint::fingerprint;
pub use journal::Journal;
pub use measured::{Measured, Measuring, Recall, Recalls};
pub use plot::{Axis, Line, PlotError, heat_map, lines};
pub use reading::{Hidden, Reading, Window, judge};
pub use record::{DecodingRecord, LayerRecall, Record, TextRecord};
pub use report::{Group, write_report};
pub use rules::{EvalRule, RuleError};
pub use run::{Evaluation, Event};
pub use score::{ScoreSums, TokenScore};
pub use table::Summary;
pub use truth::DenseTruth;

/// Newton's Opticks, first book, Proposition 1 of the first part to Proposition 2 of the second: see examples/data/README.md.
pub const TEXT: &str = include_str!("../../data/opticks-book1.txt");
