//! New keys in the clusters of a segment: nearest centroid, exact growth, division of what became too large.

use hira_kernels::Kernel;

use crate::builder::Lloyd;
use crate::level::Level;
use crate::{IndexConfig, Segment};

/// A segment's levels and order while keys are added to it.
pub(crate) struct Insertion<'a> {
    old: &'a Segment,
    /// Old and new keys.
    keys: &'a [f32],
    config: &'a IndexConfig,
    lloyd: Lloyd<'a>,
    /// New positions by old leaf, ascending.
    added: Vec<Vec<u32>>,
    levels: Vec<Level>,
    order: Vec<u32>,
}

impl<'a> Insertion<'a> {
    /// The levels and the order of `old`, which has levels, with the keys that `keys` holds beyond those of `old`.
    pub(crate) fn run(
        kernel: Kernel,
        config: &'a IndexConfig,
        old: &'a Segment,
        keys: &'a [f32],
    ) -> (Vec<Level>, Vec<u32>) {
        let len = keys.len() / config.dim;
        let leaves = old.levels().last().map_or(0, Level::len);
        let levels = old.levels().iter();
        let mut insertion = Self {
            old,
            keys,
            config,
            lloyd: Lloyd::new(config.builder.splitter(), kernel, keys, config.dim),
            added: vec![Vec::new(); leaves],
            levels: levels
                .map(|level| Level::with_capacity(config.dim, level.len() + level.len() / 8 + 1))
                .collect(),
            order: Vec::with_capacity(len),
        };
        for position in old.len()..len {
            let leaf = insertion.nearest_leaf(kernel, insertion.key(position as u32));
            insertion.added[leaf].push(position as u32);
        }
        for cluster in 0..old.levels()[0].len() {
            insertion.visit(0, cluster);
        }
        insertion.levels.iter_mut().for_each(Level::shrink);
        (insertion.levels, insertion.order)
    }

    fn key(&self, position: u32) -> &'a [f32] {
        &self.keys[position as usize * self.config.dim..][..self.config.dim]
    }

    fn size(&self, level: usize) -> usize {
        let above_keys = self.levels.len() - level;
        self.config
            .branching_factor
            .saturating_pow(above_keys as u32)
    }

    /// The old leaf that a key belongs to: the nearest of the coarsest clusters, the nearest of its children, and so on.
    fn nearest_leaf(&self, kernel: Kernel, key: &[f32]) -> usize {
        let dim = self.config.dim;
        let mut choice = 0..self.old.levels()[0].len();
        let mut leaf = 0;
        let mut scores = Vec::new();
        for level in self.old.levels() {
            scores.resize(choice.len(), 0.0);
            let centroids = &level.centroids()[choice.start * dim..choice.end * dim];
            kernel.scores_into(key, centroids, &mut scores);
            leaf = choice.start;
            let mut best = f64::NEG_INFINITY;
            for (i, &score) in choice.zip(&scores) {
                // ||k - c||^2 = ||k||^2 - 2 (k.c - ||c||^2 / 2)
                let norm = f64::from(level.centroid_norm(i));
                let value = f64::from(score) - norm * norm / 2.0;
                if value > best {
                    (best, leaf) = (value, i);
                }
            }
            let children = level.children(leaf);
            choice = children.start as usize..children.end as usize;
        }
        leaf
    }

    /// Adds an old cluster with what it gained, or what it is divided into.
    fn visit(&mut self, level: usize, cluster: usize) {
        let old = self.old;
        let slots = old.slots(level, cluster);
        let leaves = old.leaves(level, cluster);
        let mut added: Vec<u32> = self.added[leaves.start as usize..leaves.end as usize].concat();
        if slots.len() + added.len() > 2 * self.size(level) {
            added.extend(slots.map(|slot| old.position_of_slot(slot)));
            added.sort_unstable();
            self.divide(level, &mut added);
            return;
        }
        let (keys, dim) = (self.keys, self.config.dim);
        let gained = added
            .iter()
            .map(|&position| &keys[position as usize * dim..][..dim]);
        self.levels[level].push_grown(&old.levels()[level], cluster, gained);
        if level + 1 < self.levels.len() {
            for child in old.levels()[level].children(cluster) {
                self.visit(level + 1, child as usize);
            }
        } else {
            // Old positions ascend, and new ones are above them.
            self.order
                .extend(slots.map(|slot| old.position_of_slot(slot)));
            self.order.extend(added);
        }
        self.end(level);
    }

    /// Adds clusters of `rows`, which ascend, of the size that those of `level` should have.
    fn divide(&mut self, level: usize, rows: &mut [u32]) {
        let clusters = rows.len().div_ceil(self.size(level));
        let mut start = 0;
        for end in self.lloyd.split(rows, clusters) {
            let run = &mut rows[start..end];
            let (keys, dim) = (self.keys, self.config.dim);
            let members = run
                .iter()
                .map(|&position| &keys[position as usize * dim..][..dim]);
            self.levels[level].push(members);
            if level + 1 < self.levels.len() {
                self.divide(level + 1, run);
            } else {
                self.order.extend_from_slice(run);
            }
            self.end(level);
            start = end;
        }
    }

    /// Ends the cluster that was pushed last on `level`, after its children.
    fn end(&mut self, level: usize) {
        let end = match self.levels.get(level + 1) {
            Some(below) => below.len(),
            None => self.order.len(),
        };
        self.levels[level].push_end(end as u32);
    }
}
