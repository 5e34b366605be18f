//! The device engine, checked and measured: what the program `hira-gpu` runs.
//!
//! A [`Check`] holds the engine on a device against attention in f64 and against the host engine. [`GpuRows`] are the keys, values and queries
//! of the bench, [`measure`] times a decode step over them beside Burn's attention and checks which keys it attended to, a [`Table`] is what it
//! prints.

mod bench;
mod case;
mod check;
mod finding;
mod reference;
mod rows;
mod table;
mod truth;

pub use bench::{GpuBenchError, Settings, bandwidth, measure};
pub use case::Case;
pub use check::{Check, RuleKind, Task};
pub use finding::{CheckError, Finding};
pub use reference::{LayerShape, Reference, Rows, Scores};
pub use rows::GpuRows;
pub use table::{Outcome, Sdpa, Table};
pub use truth::Truth;
