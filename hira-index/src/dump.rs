//! An index as text, and the way to one of its keys.

use std::fmt;

use crate::{HierarchicalIndex, Segment};

/// Where a key lies: what [`HierarchicalIndex::path`] finds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyPath {
    /// The segment, counted from the start of the index.
    pub segment: usize,
    /// The cluster that holds the key on each coarse level of the segment, the coarsest first; empty if there are no levels.
    pub clusters: Vec<u32>,
    /// The key's slot in the sketch of the segment.
    pub slot: u32,
}

impl HierarchicalIndex {
    /// The way from the root to the key at `position`; `None` if there is no such key.
    ///
    /// # Complexity
    ///
    /// O(segments + keys of a segment): nothing that a search does needs this direction.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_index::{BuilderConfig, HierarchicalIndex, IndexConfig};
    ///
    /// let config = IndexConfig::new(1).with_branching_factor(2).with_min_coarse_len(0).with_builder(BuilderConfig::Chunk);
    /// let mut index = HierarchicalIndex::new(config)?;
    /// index.append(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])?;
    /// index.seal();
    /// let path = index.path(5).expect("a stored key");
    /// assert_eq!((path.segment, path.clusters, path.slot), (0, vec![1, 2], 5));
    /// let segment = index.segments().next().expect("a segment");
    /// assert_eq!(segment.members(1, 2).collect::<Vec<_>>(), [4, 5]);
    /// # Ok::<(), hira_index::IndexError>(())
    /// ```
    pub fn path(&self, position: usize) -> Option<KeyPath> {
        let mut segments = self.segments().enumerate();
        let (i, segment) =
            segments.find(|(_, segment)| position < segment.start() + segment.len())?;
        let slot = segment.slot_of_position(position.checked_sub(segment.start())? as u32)?;
        Some(KeyPath {
            segment: i,
            clusters: segment.clusters_of_slot(slot),
            slot,
        })
    }

    /// Every segment, cluster and position as text, the same for the same history whatever the machine: for snapshots, and to look at.
    /// The same as `format!("{index:#}")`; with `{}` there is one line a segment, and memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_index::{BuilderConfig, HierarchicalIndex, IndexConfig};
    ///
    /// let config = IndexConfig::new(1).with_num_levels(2).with_branching_factor(2).with_min_coarse_len(0);
    /// let mut index = HierarchicalIndex::new(config.with_builder(BuilderConfig::Chunk))?;
    /// index.append(&[0.0, 3.0, 8.0])?;
    /// index.seal();
    /// assert_eq!(index.dump(), "\
    /// HierarchicalIndex: 3 keys of dimension 1, 2 levels, branching factor 2
    ///   segment 0: sealed, positions 0..3, 2 > 3 keys
    ///     0.0: 1 key, radius 0.000e0: 0
    ///     0.1: 2 keys, radius 2.500e0: 1 2
    /// ");
    /// # Ok::<(), hira_index::IndexError>(())
    /// ```
    pub fn dump(&self) -> String {
        format!("{self:#}")
    }

    /// `N keys of dimension D, ...`
    fn write_shape(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "HierarchicalIndex: {} of dimension {}, {} levels, branching factor {}",
            Keys(self.len()),
            self.dim(),
            self.num_levels(),
            self.config().branching_factor,
        )
    }
}

/// `1 key`, `2 keys`.
struct Keys(usize);

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} key{ending}", self.0)
    }
}

/// A line of sizes, one for each segment with the number of clusters on each level, and memory. With `{:#}` every cluster and position
/// instead of memory: see [`HierarchicalIndex::dump`].
impl fmt::Display for HierarchicalIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_shape(f)?;
        if f.alternate() {
            writeln!(f)?;
        } else {
            writeln!(f, ", kernel {}", self.kernel().name())?;
        }
        for (i, segment) in self.segments().enumerate() {
            let end = segment.start() + segment.len();
            write!(f, "  segment {i}: {}, ", state(segment))?;
            write!(f, "positions {}..{end}, ", segment.start())?;
            for level in segment.levels() {
                write!(f, "{} > ", level.len())?;
            }
            write!(f, "{}", Keys(segment.len()))?;
            if segment.updates() > 0 {
                write!(f, ", joined {} times", segment.updates())?;
            }
            if let Some(error) = segment.build_error() {
                write!(f, ", not divided: {error}")?;
            }
            writeln!(f)?;
            if f.alternate() && !segment.levels().is_empty() {
                for cluster in 0..segment.levels()[0].len() {
                    write_cluster(f, segment, 0, cluster)?;
                }
            }
        }
        if f.alternate() {
            return Ok(());
        }
        write!(f, "  {}", self.memory_usage())
    }
}

fn state(segment: &Segment) -> &'static str {
    match segment.is_sealed() {
        false => "open",
        true if segment.is_building() => "being built",
        true if segment.is_frozen() => "frozen",
        true => "sealed",
    }
}

/// A cluster and all below it; the finest with the positions of their members in the index.
fn write_cluster(
    f: &mut fmt::Formatter<'_>,
    segment: &Segment,
    depth: usize,
    cluster: usize,
) -> fmt::Result {
    let level = &segment.levels()[depth];
    let count = segment.slots(depth, cluster).len();
    let indent = 4 + 2 * depth;
    write!(f, "{:indent$}{depth}.{cluster}: {}", "", Keys(count))?;
    write!(f, ", radius {:.3e}", level.radius(cluster))?;
    if depth + 1 < segment.levels().len() {
        writeln!(f)?;
        for child in level.children(cluster) {
            write_cluster(f, segment, depth + 1, child as usize)?;
        }
        return Ok(());
    }
    write!(f, ":")?;
    for position in segment.members(depth, cluster) {
        write!(f, " {}", segment.start() + position as usize)?;
    }
    writeln!(f)
}

impl fmt::Debug for HierarchicalIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
