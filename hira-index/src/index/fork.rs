//! Forks: two indexes that share every key, those of the open segment included.

use std::sync::Arc;

use super::HierarchicalIndex;
use crate::Segment;
use crate::segment::keys_of;

impl HierarchicalIndex {
    /// A second index of the same keys that shares the memory of all of them, those of the open segment included.
    ///
    /// A clone shares the open segment, too, but each side copies it when it appends. A fork freezes it first: it takes no more keys, and both
    /// sides go on with a new one, so that many forks of a long prompt cost what they append and little else. Frozen segments are
    /// searched by their sketch and built together with the keys that follow, when those fill a segment; several of them are merged as they
    /// come, so that the keys of a segment lie in O(log) of them however often an index is forked. No answer depends on it.
    ///
    /// # Complexity
    ///
    /// O(segments), and O(dim) amortised for each key that was appended since the last fork, times the logarithm of `segment_len`.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_index::{HierarchicalIndex, IndexConfig};
    ///
    /// let mut prompt = HierarchicalIndex::new(IndexConfig::new(2).with_segment_len(64))?;
    /// prompt.append(&[0.5; 2 * 50])?;
    /// let mut answer = prompt.fork();
    /// answer.append(&[1.0, 2.0])?;
    /// assert_eq!((prompt.len(), answer.len()), (50, 51));
    /// let shared = |index: &HierarchicalIndex| index.segment(0).map(std::ptr::from_ref);
    /// assert_eq!(shared(&prompt), shared(&answer));
    /// # Ok::<(), hira_index::IndexError>(())
    /// ```
    #[must_use]
    pub fn fork(&mut self) -> Self {
        self.freeze();
        self.clone()
    }

    /// Closes the open segment as it is, together with frozen ones that are not much longer, as far as they fit one segment: some updaters keep
    /// more open keys than these leave room for.
    fn freeze(&mut self) {
        if self.open.is_empty() {
            return;
        }
        self.reservoir.freeze();
        let mut first = self.sealed.len();
        let mut len = self.open.len();
        while let Some(before) = first.checked_sub(1).and_then(|i| self.sealed.get(i))
            && before.is_frozen()
            && before.len() < 2 * len
            && before.len() + len <= self.config.segment_len
        {
            len += before.len();
            first -= 1;
        }
        let end = self.len();
        let frozen = if first == self.sealed.len() {
            let next = self.new_open(end);
            let mut open = std::mem::replace(&mut self.open, next);
            let segment = Arc::make_mut(&mut open);
            segment.complete_sketch(self.kernel, &self.config, &mut self.widener);
            self.widener.shrink(self.config.dim);
            segment.freeze();
            open
        } else {
            let parts = self.sealed[first..].iter().chain([&self.open]);
            let keys = keys_of(parts.map(|segment| &**segment));
            let start = end - len;
            let merged = Segment::frozen_of(self.kernel, &self.config, start, keys);
            Arc::new(merged)
        };
        self.sealed.truncate(first);
        self.sealed.push(frozen);
        self.centre_open(end);
    }
}
