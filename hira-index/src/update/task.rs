//! What an update does: neighbouring segments in, sealed segments of the same keys out.

use std::sync::Arc;

use hira_kernels::{Kernel, StoredVec};

use crate::segment::keys_of;
use crate::{Builder, IndexConfig, Segment};

/// Segments that follow each other, to be built into as few as hold their keys.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) inputs: Vec<Arc<Segment>>,
    pub(crate) config: IndexConfig,
    pub(crate) kernel: Kernel,
    pub(crate) builder: Arc<dyn Builder>,
}

impl Task {
    /// The sealed segments: one, or several if the keys exceed `segment_len`.
    ///
    /// # Complexity
    ///
    /// That of the builder. If the keys join the clusters that are there: O(dim * branching_factor * levels) for each that is new, and
    /// copying and sketching all keys of the segment.
    pub(crate) fn run(mut self) -> Vec<Arc<Segment>> {
        let start = self.inputs.first().map_or(0, |segment| segment.start());
        let len: usize = self.inputs.iter().map(|segment| segment.len()).sum();
        if let Some(joined) = self.join(len) {
            return vec![Arc::new(joined)];
        }
        let dim = self.config.dim;
        let limit = self.config.segment_len * dim;
        let keys = self.take_keys();
        let build = |start: usize, keys: StoredVec| {
            let mut segment = Segment::of_keys(start, &self.config, keys);
            segment.seal(self.kernel, &self.config, &*self.builder);
            Arc::new(segment)
        };
        if keys.len() <= limit {
            return vec![build(start, keys)];
        }
        let pieces = 0..keys.len().div_ceil(limit);
        pieces
            .map(|i| {
                let values = i * limit..keys.len().min((i + 1) * limit);
                let mut piece = StoredVec::with_capacity(keys.precision(), values.len());
                piece.extend(keys.as_slice().slice(values));
                build(start + i * self.config.segment_len, piece)
            })
            .collect()
    }

    /// The first segment with the keys of the others in its clusters, if the updater wants it so and there are such.
    fn join(&self, len: usize) -> Option<Segment> {
        let (first, others) = self.inputs.split_first()?;
        let wanted = self.config.update.updater().joins(first.updates())
            && !others.is_empty()
            && len <= self.config.segment_len
            && first.levels().len() == self.config.coarse_levels(len)
            && !first.levels().is_empty();
        wanted.then(|| first.joined(self.kernel, &self.config, others))
    }

    /// The keys of all inputs. Those of a single segment that nobody else holds are moved, not copied.
    fn take_keys(&mut self) -> StoredVec {
        if let [_] = self.inputs[..]
            && let Some(only) = self.inputs.pop()
        {
            return Arc::unwrap_or_clone(only).into_keys();
        }
        keys_of(self.inputs.iter().map(|segment| &**segment))
    }
}
