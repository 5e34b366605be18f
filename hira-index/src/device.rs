//! What a device engine keeps of one layer: the seam between a cache, which knows no backend, and the backend that computes.
//!
//! A backend with a device engine ([`HiraBackend`](crate::burn::HiraBackend)) makes a [`DeviceStore`] for a layer when that layer's first
//! tensors come; the cache owns it beside the host's heads, forks and truncates it, and counts its bytes. What is in it only the
//! backend that made it knows.

use std::{any::Any, fmt::Debug};

/// Where the exact keys and values of a layer lie whose sketch is on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowPlace {
    /// On the device, too.
    #[default]
    Device,
    /// In main memory: a step brings the rows that it reads.
    Host,
}

/// Exact rows could not be moved: the device could not be read. They lie where they lay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device could not be read: its exact keys and values lie where they lay")]
pub struct RowsNotMoved;

/// Keys, values and sketch of one layer in the memory of a device; exact keys and values may lie in main memory.
///
/// The backend that made it finds itself again through [`Any`].
pub trait DeviceStore: Any + Debug + Send + Sync {
    /// Tokens stored for every sequence.
    fn len(&self) -> usize;

    /// Forgets the tokens from `len` on.
    fn truncate(&mut self, len: usize);

    /// A copy: what either side stores from now on is its own. Rows in main memory are shared until one side writes beside them.
    fn fork(&self) -> Box<dyn DeviceStore>;

    /// Bytes that are allocated for the layer. What a call needs for its time only is not counted: workspaces, copies of rows for a step, and
    /// new rows on their way to main memory, at most 1024 tokens of them.
    fn memory(&self) -> DeviceMemory;

    /// Bytes that would be allocated with so many tokens more, and with the exact rows there. What is allocated stays allocated.
    fn memory_with(&self, tokens: usize, rows: RowPlace) -> DeviceMemory;

    /// Where the exact rows lie.
    fn rows(&self) -> RowPlace;

    /// Moves the exact rows, those that will be stored included. Waits for the device.
    ///
    /// # Errors
    ///
    /// [`RowsNotMoved`].
    fn move_rows(&mut self, to: RowPlace) -> Result<(), RowsNotMoved>;

    /// Whether no token is stored.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes of a [`DeviceStore`], by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceMemory {
    /// Exact keys on the device.
    pub keys: usize,
    /// Values on the device and the means of their blocks.
    pub values: usize,
    /// The sketch.
    pub sketch: usize,
    /// Exact keys in main memory.
    pub host_keys: usize,
    /// Values in main memory.
    pub host_values: usize,
}

impl DeviceMemory {
    /// Those on the device.
    pub fn on_device(&self) -> usize {
        self.keys + self.values + self.sketch
    }

    /// Those in main memory.
    pub fn on_host(&self) -> usize {
        self.host_keys + self.host_values
    }
}

/// How full a device's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceUsage {
    /// Bytes that somebody uses. What the runtime holds in reserve for the next allocation does not count.
    pub used: usize,
    /// All bytes of the device.
    pub total: usize,
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
