//! Stored rows as `f32`, without an allocation for a few of them.

use hira_kernels::{StoredSlice, TILE};

/// Room for widened rows. That of a few rows is kept for the next time, so that an append of one key allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Widener {
    values: Vec<f32>,
}

impl Widener {
    /// The values of `rows` in `f32`; where they are, if they are stored so.
    pub(crate) fn widen<'a>(&'a mut self, rows: StoredSlice<'a>) -> &'a [f32] {
        match rows.as_f32() {
            Some(values) => values,
            None => {
                self.values.resize(rows.len(), 0.0);
                rows.widen_into(&mut self.values);
                &self.values
            }
        }
    }

    /// Gives back room for more than a tile of rows of `dim` values.
    pub(crate) fn shrink(&mut self, dim: usize) {
        if self.values.capacity() > TILE * dim {
            self.values = Vec::new();
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        crate::memory::bytes(&self.values)
    }
}

/// A fork begins without room: it has no rows to widen yet.
impl Clone for Widener {
    fn clone(&self) -> Self {
        Self::default()
    }
}
