//! The clusters of one segment, top down: which keys belong together on every coarse level.

use std::ops::Range;

use hira_kernels::Kernel;

use crate::kmeans::KMeans;
use crate::level::Level;
use crate::{IndexConfig, UpdateStrategy};

/// An order of the keys in which every cluster, on every level, is a run; and where the runs end.
pub(crate) struct Tree {
    /// Slot to position.
    order: Vec<u32>,
    /// Per level, coarsest first: the end slots of its clusters, ascending. Clusters nest and are not empty.
    ends: Vec<Vec<u32>>,
}

/// A cluster that is still to be divided.
struct Node {
    slots: Range<usize>,
    /// The clusters of the previous segment, one level down, that its keys choose from.
    guide: Option<Range<usize>>,
}

impl Tree {
    /// Clusters the rows of `keys`. With the incremental update, `previous` are the levels to start from.
    ///
    /// Of `c` coarse levels and a branching factor `b`, level `i` gets clusters of about `b^(c - i)` keys.
    pub(crate) fn build(
        kernel: Kernel,
        keys: &[f32],
        config: &IndexConfig,
        previous: &[Level],
    ) -> Self {
        let len = keys.len() / config.dim;
        let depth = config.coarse_levels(len);
        if config.update == UpdateStrategy::Incremental && previous.len() == depth {
            let tree = Self::descend(kernel, keys, config, Some(previous));
            let wanted = len.div_ceil(config.branching_factor);
            if tree.ends.last().is_none_or(|ends| ends.len() <= 2 * wanted) {
                return tree;
            }
        }
        Self::descend(kernel, keys, config, None)
    }

    fn descend(
        kernel: Kernel,
        keys: &[f32],
        config: &IndexConfig,
        previous: Option<&[Level]>,
    ) -> Self {
        let len = keys.len() / config.dim;
        let depth = config.coarse_levels(len);
        let clustering = KMeans::new(kernel, keys, config);
        let mut order: Vec<u32> = (0..len as u32).collect();
        let mut ends = Vec::with_capacity(depth);
        let guide = previous
            .and_then(|levels| levels.first())
            .map(|level| 0..level.len());
        let mut nodes = vec![Node {
            slots: 0..len,
            guide,
        }];
        for level in 0..depth {
            let size = config
                .branching_factor
                .saturating_pow((depth - level) as u32);
            let mut below = Vec::new();
            for node in nodes {
                let rows = &mut order[node.slots.clone()];
                match (node.guide, previous) {
                    (Some(guide), Some(previous)) => {
                        let parts = clustering.assign(rows, &previous[level], guide);
                        for (cluster, part) in parts {
                            let slots = node.slots.start + part.start..node.slots.start + part.end;
                            if slots.len() > 2 * size {
                                divide(&clustering, &mut order, slots, size, &mut below);
                            } else {
                                let children = previous[level].children(cluster);
                                let guide = (level + 1 < depth)
                                    .then_some(children.start as usize..children.end as usize);
                                below.push(Node { slots, guide });
                            }
                        }
                    }
                    _ => divide(&clustering, &mut order, node.slots, size, &mut below),
                }
            }
            ends.push(below.iter().map(|node| node.slots.end as u32).collect());
            nodes = below;
        }
        Self { order, ends }
    }

    /// The levels, with balls and boxes of the keys that are in them.
    pub(crate) fn levels(&self, keys: &[f32], dim: usize) -> Vec<Level> {
        let clusters = self.ends.iter().enumerate();
        clusters
            .map(|(i, ends)| Level::new(keys, dim, &self.order, ends, self.ends.get(i + 1)))
            .collect()
    }

    pub(crate) fn into_order(self) -> Vec<u32> {
        self.order
    }
}

/// Divides a run of slots by k-means into clusters of about `size` keys.
fn divide(
    clustering: &KMeans<'_>,
    order: &mut [u32],
    slots: Range<usize>,
    size: usize,
    nodes: &mut Vec<Node>,
) {
    let clusters = slots.len().div_ceil(size);
    let mut start = slots.start;
    for end in clustering.split(&mut order[slots.clone()], clusters) {
        let end = slots.start + end;
        nodes.push(Node {
            slots: start..end,
            guide: None,
        });
        start = end;
    }
}
