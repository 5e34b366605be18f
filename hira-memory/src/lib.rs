//! Where a long-context cache lives and how large it may grow: tiers, policies and budgets.
//!
//! A cache has [`Part`]s of different worth: coarse levels and the sketch are read at every step, exact keys and values
//! only for survivors. A [`MemoryPolicy`] says on which [`Tier`] each part should lie, given the tiers that the machine
//! has; a [`Budget`] is a hard limit in bytes that is checked *before* anything is stored; a [`MemoryReport`] lists what
//! is used, part by part and tier by tier.
//!
//! On a machine without an accelerator the tensors' own memory is host memory: the fastest tier is [`Tier::Host`]. Where a folder for it is named
//! there is [`Tier::Disk`] below: exact rows that a budget has no room for are written to a [`Spill`], and [`arrange`] says which, by a
//! [`Placement`].
//!
//! ```
//! use hira_memory::{MemoryPolicy, Part, Tier};
//!
//! let policy = MemoryPolicy::Hybrid { num_fast_levels: 2 };
//! assert_eq!(policy.place(Part::Sketch, &[Tier::Device, Tier::Host]), Tier::Device);
//! assert_eq!(policy.place(Part::Keys, &[Tier::Device, Tier::Host]), Tier::Host);
//! assert_eq!(policy.place(Part::Keys, &[Tier::Host]), Tier::Host);
//! ```

mod budget;
mod error;
mod placement;
mod policy;
mod pressure;
mod report;
mod spill;
mod statistics;
mod tier;

pub use budget::Budget;
pub use error::MemoryError;
pub use placement::{Placement, RowRun, Usage, arrange};
pub use policy::MemoryPolicy;
pub use pressure::available_bytes;
pub use report::{MemoryEntry, MemoryReport};
pub use spill::{Extent, Spill};
pub use statistics::TierStatistics;
pub use tier::{Part, Tier};
