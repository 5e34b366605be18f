//! Fidelity: how far attention by a rule is from dense attention.

pub mod captures;
pub mod compare;
mod measured;
mod rules;
pub mod tasks;
mod truth;

pub use measured::{Measured, Measuring, Recall, Recalls};
pub use rules::{EvalRule, RuleError};
pub use truth::DenseTruth;
