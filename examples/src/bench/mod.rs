//! One decode step's attention, measured: Hira beside dense attention, on the same keys, every answer checked.
//!
//! [`scenario`](chosen) lists what is measured, as data. A decode step of a real model finds every layer's keys and values out of the caches, so
//! a *cold* contender rotates over more copies of the data than the caches hold; a *warm* one uses the same copy again. All contenders
//! take [`Turns`] within one loop, so that noise on a shared machine meets them alike, each after the products that come before the attention in
//! a model, which leave the threads awake. Beyond the captures, keys and values come from a
//! [`Generator`] that was fitted to them.

mod ceiling;
mod contender;
mod density;
mod export;
mod generator;
mod oracle;
mod outcome;
mod plot;
mod problem;
mod projection;
mod report;
mod scenario;
mod search;
mod step;
mod target;
mod timing;
mod turns;

pub use ceiling::{Ceilings, RowCost, ScanRate, last_level_cache};
pub use contender::{Contender, ContenderError, Scope};
pub use export::export;
pub use generator::{Generator, TooFewRows};
pub use oracle::Answers;
pub use outcome::Outcome;
pub use plot::{PlotError, plots};
pub use problem::{Library, Problem};
pub use report::{Conditions, report};
pub use scenario::{BURN_LONGEST, Data, Scenario, Shape, Work, all, chosen};
pub use search::{SearchBenchError, measure_search};
pub use step::measure_step;
pub use target::{Over, Target, targets};
pub use timing::Spread;
pub use turns::{Turn, Turns};
