//! One coarse level of a segment: clusters, and how high a key in one of them can score.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use crate::rows::{self, round_up};
use crate::snapshot::{LevelParts, broken};
use crate::{Hierarchy, IndexError, memory};

/// Clusters of one level of a sealed segment, each with a ball and a box around its keys.
///
/// # Examples
///
/// ```
/// use hira_index::{HierarchicalIndex, IndexConfig};
///
/// let config = IndexConfig::new(2).with_num_levels(2).with_branching_factor(2).with_min_coarse_len(0);
/// let mut index = HierarchicalIndex::new(config)?;
/// index.append(&[1.0, 0.0, -5.0, 0.0, 1.5, 0.5, -4.0, 0.0])?;
/// index.seal();
/// let level = index.level(0, 0).expect("a sealed segment of two levels has one coarse level");
/// assert_eq!(level.len(), 2);
/// let query = [1.0, 1.0];
/// let norm = 1.4143; // not below the norm of the query
/// let mut bounds: Vec<f32> = (0..2).map(|i| level.upper_bound(index.kernel(), i, &query, norm)).collect();
/// bounds.sort_by(f32::total_cmp);
/// assert!(bounds[0] >= -4.0 && bounds[0] < 0.0, "no key of that cluster scores above 0");
/// assert!(bounds[1] >= 2.0);
/// # Ok::<(), hira_index::IndexError>(())
/// ```
#[derive(Clone)]
pub struct Level {
    pub(crate) dim: usize,
    pub(crate) centroids: Vec<f32>,
    pub(crate) lo: Vec<f32>,
    pub(crate) hi: Vec<f32>,
    pub(crate) scalars: Vec<Scalars>,
    /// Where the children of each cluster end; those of the first start at 0.
    ends: Vec<u32>,
}

/// What a bound needs of one cluster besides its vectors; every value is rounded up.
#[derive(Clone, Copy)]
pub(crate) struct Scalars {
    /// Largest distance of a member from the centroid.
    pub(crate) radius: f32,
    /// Norm of the centroid.
    pub(crate) centroid_norm: f32,
    /// Norm of `max(|lo|, |hi|)`, the farthest corner of the box that is symmetric about the origin: no member, and
    /// no vector of products with a query of norm 1, is longer.
    pub(crate) box_norm: f32,
}

impl Scalars {
    fn as_array(&self) -> [f32; 3] {
        [self.radius, self.centroid_norm, self.box_norm]
    }

    fn from_array(&[radius, centroid_norm, box_norm]: &[f32; 3]) -> Self {
        Self {
            radius,
            centroid_norm,
            box_norm,
        }
    }
}

impl Level {
    /// What a file has of the level.
    pub(crate) fn parts(&self) -> LevelParts<'_> {
        LevelParts {
            centroids: Cow::Borrowed(&self.centroids),
            lo: Cow::Borrowed(&self.lo),
            hi: Cow::Borrowed(&self.hi),
            scalars: Cow::Owned(self.scalars.iter().map(Scalars::as_array).collect()),
            ends: Cow::Borrowed(&self.ends),
        }
    }

    /// The level that was saved, of keys of `dim` values. Whether the clusters nest is for the caller to check.
    pub(crate) fn restore(dim: usize, parts: LevelParts<'_>) -> Result<Self, IndexError> {
        let clusters = parts.ends.len();
        let rows = [&parts.centroids, &parts.lo, &parts.hi];
        let fits = parts.scalars.len() == clusters
            && clusters > 0
            && rows.iter().all(|rows| rows.len() == clusters * dim);
        if !fits {
            return Err(broken("a level has the balls and boxes of its clusters"));
        }
        Ok(Self {
            dim,
            centroids: parts.centroids.into_owned(),
            lo: parts.lo.into_owned(),
            hi: parts.hi.into_owned(),
            scalars: parts.scalars.iter().map(Scalars::from_array).collect(),
            ends: parts.ends.into_owned(),
        })
    }

    /// Number of clusters.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no clusters. A level of a segment has at least one.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Mean of the members of cluster `i`, rounded.
    ///
    /// # Panics
    ///
    /// If `i` is not below [`len`](Self::len); so does every other method that takes a cluster.
    pub fn centroid(&self, i: usize) -> &[f32] {
        &self.centroids[i * self.dim..][..self.dim]
    }

    /// A distance from the centroid that no member of cluster `i` exceeds.
    pub fn radius(&self, i: usize) -> f32 {
        self.scalars[i].radius
    }

    /// Smallest value of the members of cluster `i` in each column. Exact.
    pub fn lo(&self, i: usize) -> &[f32] {
        &self.lo[i * self.dim..][..self.dim]
    }

    /// Largest value of the members of cluster `i` in each column. Exact.
    pub fn hi(&self, i: usize) -> &[f32] {
        &self.hi[i * self.dim..][..self.dim]
    }

    /// The clusters of the next level that cluster `i` consists of; for the last coarse level, its slots.
    pub fn children(&self, i: usize) -> Range<u32> {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        start..self.ends[i]
    }

    /// The cluster whose children [`children`](Self::children) include `child`.
    ///
    /// # Complexity
    ///
    /// O(log(clusters)).
    pub fn parent(&self, child: u32) -> u32 {
        self.ends.partition_point(|&end| end <= child) as u32
    }

    /// All levels of a hierarchy of the rows of `keys`, with balls and boxes of the keys that are in them.
    pub(crate) fn all(keys: &[f32], dim: usize, hierarchy: &Hierarchy) -> Vec<Self> {
        let levels = 0..hierarchy.levels();
        let below = |i| (i + 1 < hierarchy.levels()).then(|| hierarchy.ends(i + 1));
        levels
            .map(|i| Self::new(keys, dim, hierarchy.order(), hierarchy.ends(i), below(i)))
            .collect()
    }

    /// The clusters that end at the slots `ends`, of keys in `order`; `below` are the ends of the next level.
    fn new(keys: &[f32], dim: usize, order: &[u32], ends: &[u32], below: Option<&[u32]>) -> Self {
        let mut level = Self::with_capacity(dim, ends.len());
        // A cluster of the next level ends where this one does, because clusters nest.
        level.ends.extend(ends.iter().map(|&end| match below {
            None => end,
            Some(below) => below.partition_point(|&e| e <= end) as u32,
        }));
        let mut start = 0;
        for &end in ends {
            let members = &order[start..end as usize];
            level.push(
                members
                    .iter()
                    .map(|&position| &keys[position as usize * dim..][..dim]),
            );
            start = end as usize;
        }
        level
    }

    /// Adds a cluster of `members`, around their mean.
    pub(crate) fn push<'a>(&mut self, members: impl Iterator<Item = &'a [f32]> + Clone) {
        let centroid = rows::mean(members.clone(), self.dim);
        let bounds = self.lo.len();
        self.lo.resize(bounds + self.dim, f32::INFINITY);
        self.hi.resize(bounds + self.dim, f32::NEG_INFINITY);
        let (lo, hi) = (&mut self.lo[bounds..], &mut self.hi[bounds..]);
        let mut square = 0.0f64;
        for key in members {
            rows::extend_box(lo, hi, key);
            square = square.max(rows::square_distance(key, &centroid));
        }
        self.scalars.push(Scalars {
            radius: round_up(rows::root_up(square)),
            centroid_norm: round_up(rows::norm_up(&centroid)),
            box_norm: box_norm(lo, hi),
        });
        self.centroids.extend(centroid);
    }

    /// Adds cluster `i` of `other` with further members: its centroid stays, its radius and box grow as far as they must.
    pub(crate) fn push_grown<'a>(
        &mut self,
        other: &Level,
        i: usize,
        added: impl Iterator<Item = &'a [f32]>,
    ) {
        let centroid = other.centroid(i);
        let bounds = self.lo.len();
        self.lo.extend_from_slice(other.lo(i));
        self.hi.extend_from_slice(other.hi(i));
        let (lo, hi) = (&mut self.lo[bounds..], &mut self.hi[bounds..]);
        let mut scalars = other.scalars[i];
        for key in added {
            rows::extend_box(lo, hi, key);
            let distance = rows::root_up(rows::square_distance(key, centroid));
            scalars.radius = scalars.radius.max(round_up(distance));
        }
        scalars.box_norm = box_norm(lo, hi);
        self.scalars.push(scalars);
        self.centroids.extend_from_slice(centroid);
    }

    /// Ends the children of the cluster that was pushed last.
    pub(crate) fn push_end(&mut self, end: u32) {
        self.ends.push(end);
    }

    /// A level of no clusters yet, with room for `clusters`.
    pub(crate) fn with_capacity(dim: usize, clusters: usize) -> Self {
        Self {
            dim,
            centroids: Vec::with_capacity(clusters * dim),
            lo: Vec::with_capacity(clusters * dim),
            hi: Vec::with_capacity(clusters * dim),
            scalars: Vec::with_capacity(clusters),
            ends: Vec::with_capacity(clusters),
        }
    }

    /// Gives back what was reserved and not used.
    pub(crate) fn shrink(&mut self) {
        self.centroids.shrink_to_fit();
        self.lo.shrink_to_fit();
        self.hi.shrink_to_fit();
        self.scalars.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// Norm of the centroid of cluster `i`, rounded up.
    pub(crate) fn centroid_norm(&self, i: usize) -> f32 {
        self.scalars[i].centroid_norm
    }

    /// All centroids, row by row.
    pub(crate) fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Bytes that the level has allocated.
    pub fn memory_usage(&self) -> usize {
        memory::bytes(&self.centroids)
            + memory::bytes(&self.lo)
            + memory::bytes(&self.hi)
            + memory::bytes(&self.scalars)
            + memory::bytes(&self.ends)
    }
}

/// Norm, rounded up, of `max(|lo|, |hi|)`.
fn box_norm(lo: &[f32], hi: &[f32]) -> f32 {
    let corner: Vec<f32> = lo
        .iter()
        .zip(hi)
        .map(|(lo, hi)| lo.abs().max(hi.abs()))
        .collect();
    round_up(rows::norm_up(&corner))
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Level")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use hira_kernels::Kernel;

    use super::*;

    fn one_cluster(keys: &[f32], dim: usize) -> Level {
        let len = (keys.len() / dim) as u32;
        Level::new(keys, dim, &(0..len).collect::<Vec<_>>(), &[len], None)
    }

    #[test]
    fn balls_and_boxes_are_tight() {
        let level = one_cluster(&[0.0, 0.0, 4.0, 0.0, 2.0, 3.0], 2);
        assert_eq!(level.centroid(0), [2.0, 1.0]);
        assert_eq!(level.lo(0), [0.0, 0.0]);
        assert_eq!(level.hi(0), [4.0, 3.0]);
        assert!(level.radius(0) >= 5.0f32.sqrt() && level.radius(0) < 2.236_069);
        assert_eq!(level.children(0), 0..3);
    }

    #[test]
    fn a_single_key_is_bounded_by_little_more_than_its_score() {
        let key: Vec<f32> = (0..70).map(|i| (i as f32).sin()).collect();
        let query: Vec<f32> = (0..70).map(|i| (i as f32).cos()).collect();
        let level = one_cluster(&key, 70);
        assert_eq!(level.radius(0), 0.0);
        let score = Kernel::best().score(&query, &key);
        let bound = level.upper_bound(Kernel::best(), 0, &query, 6.0);
        assert!(bound >= score && bound - score < 1e-4, "{score} {bound}");
    }

    #[test]
    fn extremes_stay_above_the_score() {
        let limit = 9.2e18f32;
        let rows: [[f32; 2]; 6] = [
            [limit, 1.0],
            [-limit, 0.0],
            [0.0, -limit],
            [1e-45, -1e-45],
            [-0.0, 0.0],
            [1e-30, 1e15],
        ];
        for a in rows {
            for b in rows {
                let level = one_cluster(&[a, b].concat(), 2);
                for q in rows {
                    let norm = round_up(rows::norm_up(&q));
                    for kernel in Kernel::available() {
                        let bound = level.upper_bound(kernel, 0, &q, norm);
                        for key in [a, b] {
                            assert!(bound >= kernel.score(&q, &key), "{a:?} {b:?} {q:?} {bound}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_box_that_could_overflow_is_not_used() {
        // In 64 dimensions the corner of this box is 8 * 2^62: sums along it reach 2^128.
        let dim = 64;
        let limit = 2.0f32.powi(62);
        let keys: Vec<f32> = (0..dim * dim)
            .map(|i| if i % (dim + 1) == 0 { limit } else { 0.0 })
            .collect();
        let level = one_cluster(&keys, dim);
        let query = vec![2.0f32.powi(59); dim];
        let bound = level.upper_bound(Kernel::best(), 0, &query, 2.0f32.powi(62));
        assert!(bound.is_finite() && bound >= Kernel::best().score(&query, &keys[..dim]));
    }
}
