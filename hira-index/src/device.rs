//! What a device engine keeps of one layer: the seam between a cache, which knows no backend, and the backend that computes.
//!
//! A backend with a device engine ([`HiraBackend`](crate::burn::HiraBackend)) makes a [`DeviceStore`] for a layer when that layer's first
//! tensors come; the cache owns it beside the host's heads, forks and truncates it, and counts its bytes. What is in it only the
//! backend that made it knows.

use std::{any::Any, fmt::Debug};

/// Keys, values and sketch of one layer in the memory of a device.
///
/// The backend that made it finds itself again through [`Any`].
pub trait DeviceStore: Any + Debug + Send + Sync {
    /// Tokens stored for every sequence.
    fn len(&self) -> usize;

    /// Forgets the tokens from `len` on.
    fn truncate(&mut self, len: usize);

    /// A copy that shares nothing with this one.
    fn fork(&self) -> Box<dyn DeviceStore>;

    /// Bytes that are allocated on the device.
    fn memory(&self) -> DeviceMemory;

    /// Bytes that storing so many more tokens would allocate on top of that; 0 where there is room.
    fn growth(&self, tokens: usize) -> usize;

    /// Whether no token is stored.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes of a [`DeviceStore`], by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceMemory {
    /// Exact keys.
    pub keys: usize,
    /// Values and the means of their blocks.
    pub values: usize,
    /// The sketch.
    pub sketch: usize,
}

impl DeviceMemory {
    /// All of them.
    pub fn total(&self) -> usize {
        self.keys + self.values + self.sketch
    }
}

/// A slot for a [`DeviceStore`]: clones are forks.
#[derive(Debug, Default)]
pub struct DeviceSlot(Option<Box<dyn DeviceStore>>);

impl DeviceSlot {
    /// Whether a device holds the layer.
    pub fn is_taken(&self) -> bool {
        self.0.is_some()
    }

    /// What the device holds, if it does.
    pub fn get(&self) -> Option<&dyn DeviceStore> {
        self.0.as_deref()
    }

    /// What the device holds, if it does.
    pub fn get_mut(&mut self) -> Option<&mut (dyn DeviceStore + 'static)> {
        self.0.as_deref_mut()
    }

    /// Puts a store into the slot; one that was there is freed.
    pub fn set(&mut self, store: Box<dyn DeviceStore>) {
        self.0 = Some(store);
    }

    /// Empties the slot, which frees the device's memory.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

impl Clone for DeviceSlot {
    fn clone(&self) -> Self {
        Self(self.0.as_ref().map(|store| store.fork()))
    }
}
