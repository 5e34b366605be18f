//! The Burn module on tensors: one program, because each would compile Burn's operations for every backend anew.
#![cfg(feature = "burn")]

mod backends;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "wgpu")]
mod on_device;
