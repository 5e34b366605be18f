//! Where a long-context cache lives and how large it may grow: tiers, policies and budgets.
//!
//! A cache has [`Part`]s of different worth: coarse levels and the sketch are read at every step, exact keys and values
//! only for survivors. A [`MemoryPolicy`] says on which [`Tier`] each part should lie, given the tiers that the machine
//! has; a [`Budget`] is a hard limit in bytes that is checked *before* anything is stored; a [`MemoryReport`] lists what
//! is used, part by part and tier by tier.
//!
//! On a machine without an accelerator the tensors' own memory is host memory: the only tier is [`Tier::Host`], and every
//! policy resolves to it.
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
mod policy;
mod report;
mod tier;

pub use budget::Budget;
pub use error::MemoryError;
pub use policy::MemoryPolicy;
pub use report::{MemoryEntry, MemoryReport};
pub use tier::{Part, Tier};
