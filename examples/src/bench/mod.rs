//! One decode step's attention, measured: Hira beside dense attention, on the same keys, cold.
//!
//! A decode step of a real model finds every layer's keys and values out of the caches. So each contender works on as many copies of
//! the data as a model has layers, and every timed call takes the next copy. All contenders take turns within one loop, so that noise on
//! a shared machine meets them alike.

mod contender;
mod problem;
mod table;
mod timing;

pub use contender::{Contender, ContenderError, burn_attention, burn_operations, dense, hira};
pub use problem::{Problem, Source};
pub use table::{Outcome, markdown};
pub use timing::{Spread, stream_read_gb_per_s};
