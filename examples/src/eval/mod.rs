//! Fidelity: how far attention by a rule is from dense attention.

pub mod captures;
pub mod compare;
mod rules;
mod truth;

pub use rules::{EvalRule, RuleError};
pub use truth::DenseTruth;
