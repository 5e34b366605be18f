//! What an update does: neighbouring segments in, sealed segments of the same keys out.

use std::sync::Arc;

use hira_kernels::Kernel;

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
        let keys = self.take_keys(len * dim);
        let build = |start: usize, keys: Vec<f32>| {
            let mut segment = Segment::of_keys(start, &self.config, keys);
            segment.seal(self.kernel, &self.config, &*self.builder);
            Arc::new(segment)
        };
        if keys.len() <= limit {
            return vec![build(start, keys)];
        }
        let pieces = keys.chunks(limit).enumerate();
        pieces
            .map(|(i, piece)| build(start + i * self.config.segment_len, piece.to_vec()))
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
        wanted.then(|| {
            let added: Vec<&[f32]> = others.iter().map(|segment| segment.keys()).collect();
            first.joined(self.kernel, &self.config, &added.concat())
        })
    }

    /// The keys of all inputs. Those of a single segment that nobody else holds are moved, not copied.
    fn take_keys(&mut self, len: usize) -> Vec<f32> {
        if let [_] = self.inputs[..]
            && let Some(only) = self.inputs.pop()
        {
            return Arc::unwrap_or_clone(only).into_keys();
        }
        let mut keys = Vec::with_capacity(len);
        for segment in &self.inputs {
            keys.extend_from_slice(segment.keys());
        }
        keys
    }
}
