//! Fidelity: how far attention by a rule is from dense attention.

pub mod compare;
mod rules;

pub use rules::{EvalRule, RuleError};
