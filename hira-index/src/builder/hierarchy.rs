//! The clusters of one segment: an order of its keys in which every cluster, on every level, is a run.

use super::BuildInput;
use crate::IndexError;

/// A checked division of `n` keys into nested clusters.
///
/// # Examples
///
/// ```
/// use hira_index::Hierarchy;
///
/// // Five keys: two clusters of three and two keys, of which the first consists of two smaller ones.
/// let hierarchy = Hierarchy::new(vec![4, 0, 2, 3, 1], vec![vec![3, 5], vec![1, 3, 5]])?;
/// assert_eq!(hierarchy.order(), [4, 0, 2, 1, 3]); // ascending within the finest clusters
/// assert!(Hierarchy::new(vec![0, 0, 1], vec![vec![3]]).is_err()); // a key is missing
/// # Ok::<(), hira_index::IndexError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    order: Vec<u32>,
    ends: Vec<Vec<u32>>,
}

impl Hierarchy {
    /// A hierarchy of the keys in `order` (slot to position), whose clusters end at the slots `ends`, level by level, the coarsest
    /// first.
    ///
    /// Positions are sorted within each cluster of the finest level: that costs little and lets a search go forwards.
    ///
    /// # Complexity
    ///
    /// O(keys * log(cluster size) + clusters).
    ///
    /// # Errors
    ///
    /// [`IndexError::Builder`] if `order` is not a permutation, a level does not cover all keys, a cluster is empty, or one does not
    /// nest in those of the level above.
    pub fn new(mut order: Vec<u32>, ends: Vec<Vec<u32>>) -> Result<Self, IndexError> {
        let claim = |holds: bool, what| match holds {
            true => Ok(()),
            false => Err(IndexError::Builder { what }),
        };
        let len = order.len();
        let mut seen = vec![false; len];
        for &position in &order {
            let new = seen
                .get_mut(position as usize)
                .is_some_and(|seen| !std::mem::replace(seen, true));
            claim(new, "its order is not a permutation of the positions")?;
        }
        let mut above: &[u32] = &[];
        for level in &ends {
            claim(
                level.last().copied().unwrap_or(0) as usize == len,
                "a level does not cover all keys",
            )?;
            claim(
                level.first() != Some(&0) && level.is_sorted_by(|a, b| a < b),
                "a cluster is empty",
            )?;
            let nests = |end| level.binary_search(end).is_ok();
            claim(above.iter().all(nests), "clusters do not nest")?;
            above = level;
        }
        let mut start = 0;
        for &end in ends.last().into_iter().flatten() {
            order[start..end as usize].sort_unstable();
            start = end as usize;
        }
        Ok(Self { order, ends })
    }

    /// Divides the keys from the top: `split(rows, n)` reorders the positions `rows` into about `n` runs and returns where each ends.
    ///
    /// On every level the keys of a cluster are split into as many clusters as are needed for the size that
    /// [`BuildInput::cluster_size`] names. `split` is asked for at least one run and at most as many as there are rows.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), for instance if `split` returns an empty run.
    pub fn divide(
        input: &BuildInput<'_>,
        mut split: impl FnMut(&mut [u32], usize) -> Vec<usize>,
    ) -> Result<Self, IndexError> {
        let len = input.len();
        let mut order: Vec<u32> = (0..len as u32).collect();
        let mut ends = Vec::with_capacity(input.levels);
        let mut parents = vec![len as u32];
        for level in 0..input.levels {
            let size = input.cluster_size(level);
            let mut below = Vec::new();
            let mut start = 0;
            for &end in &parents {
                let rows = order.get_mut(start..end as usize);
                let rows = rows.ok_or(IndexError::Builder {
                    what: "a run ends outside of its rows",
                })?;
                let clusters = rows.len().div_ceil(size).min(rows.len());
                let runs = split(rows, clusters);
                if runs.last() != Some(&rows.len()) {
                    return Err(IndexError::Builder {
                        what: "a level does not cover all keys",
                    });
                }
                below.extend(runs.into_iter().map(|run| start.saturating_add(run) as u32));
                start = end as usize;
            }
            ends.push(below.clone());
            parents = below;
        }
        Self::new(order, ends)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.ends.len()
    }

    /// Position of the key in each slot.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// The slots at which the clusters of `level` end, ascending.
    ///
    /// # Panics
    ///
    /// If `level` is not below [`levels`](Self::levels).
    pub fn ends(&self, level: usize) -> &[u32] {
        &self.ends[level]
    }

    pub(crate) fn into_order(self) -> Vec<u32> {
        self.order
    }
}

#[cfg(test)]
mod tests {
    use hira_kernels::Kernel;

    use super::*;

    fn refused(order: &[u32], ends: &[&[u32]]) -> &'static str {
        let ends = ends.iter().map(|ends| ends.to_vec()).collect();
        match Hierarchy::new(order.to_vec(), ends) {
            Err(IndexError::Builder { what }) => what,
            other => panic!("expected a refusal, received {other:?}"),
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let order = "its order is not a permutation of the positions";
        assert_eq!(refused(&[0, 0], &[&[2]]), order);
        assert_eq!(refused(&[0, 2], &[&[2]]), order);
        let cover = "a level does not cover all keys";
        assert_eq!(refused(&[0, 1], &[&[1]]), cover);
        assert_eq!(refused(&[0, 1], &[&[3]]), cover);
        assert_eq!(refused(&[0, 1], &[&[]]), cover);
        assert_eq!(refused(&[0, 1], &[&[2], &[1, 3]]), cover);
        let empty = "a cluster is empty";
        assert_eq!(refused(&[0, 1], &[&[0, 2]]), empty);
        assert_eq!(refused(&[0, 1], &[&[1, 1, 2]]), empty);
        assert_eq!(refused(&[1, 0, 2], &[&[2, 1, 3]]), empty);
        assert_eq!(
            refused(&[0, 1, 2], &[&[1, 3], &[2, 3]]),
            "clusters do not nest"
        );
        assert!(Hierarchy::new(vec![1, 0], vec![]).is_ok());
        assert!(Hierarchy::new(vec![], vec![]).is_ok());
    }

    #[test]
    fn levels_have_the_sizes_they_should_have() {
        let keys = vec![0.0; 3 * 100];
        let input = BuildInput::new(&keys, 3, Kernel::best(), 3, 4);
        let halves = |rows: &mut [u32], clusters| {
            (1..=clusters).map(|i| i * rows.len() / clusters).collect()
        };
        let hierarchy = Hierarchy::divide(&input, halves).unwrap();
        let sizes: Vec<usize> = (0..3).map(|level| hierarchy.ends(level).len()).collect();
        assert_eq!(
            (hierarchy.len(), hierarchy.levels(), sizes),
            (100, 3, vec![2, 8, 28])
        );
        for nonsense in [vec![], vec![0, 1], vec![1000], vec![7, 3, 100]] {
            assert!(Hierarchy::divide(&input, |_, _| nonsense.clone()).is_err());
        }
    }
}
