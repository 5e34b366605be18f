//! Halfspace queries one stretch at a time: an iterator over hits, and their number.

use std::collections::VecDeque;
use std::ops::Range;

use hira_index::{HierarchicalIndex, Segment};
use hira_kernels::{Candidates, QueryGroup, ScanQuery, SegmentOffsets, TILE};
use hira_threshold::ThresholdRule;

use crate::disk_keys::DiskKeys;
use crate::error::SearchError;
use crate::group::{Group, check_queries};
use crate::partition::Partition;
use crate::searcher::HalfspaceSearcher;
use crate::selection::Hit;
use crate::tree::Descent;
use crate::visible::{Seen, Visible};

/// Tiles answered at a time in a segment whose slots are positions: 4,096 keys.
const STRETCH: usize = 4096 / TILE;

impl HalfspaceSearcher {
    /// The keys that score at least `tau`, in order of position, found as they are asked for.
    ///
    /// Holds no more than one stretch of hits at a time (4,096 keys, or a segment with coarse levels): for thresholds that many keys reach,
    /// and for callers that stop early. `max_candidates` does not apply.
    ///
    /// # Complexity
    /// For each stretch `D + 4` bytes of sketch a key, and the row of every survivor.
    ///
    /// # Errors
    /// A `tau` that is NaN; a query that is not one finite row with a norm below [`MAX_NORM`](hira_kernels::MAX_NORM).
    ///
    /// # Examples
    /// ```
    /// use hira_index::{HierarchicalIndex, IndexConfig};
    /// use hira_search::{HalfspaceSearcher, SearchConfig};
    ///
    /// let mut index = HierarchicalIndex::new(IndexConfig::new(2))?;
    /// index.append(&[1.0, 0.0, 0.0, 1.0, 2.0, 2.0])?;
    /// let searcher = HalfspaceSearcher::new(SearchConfig::default())?;
    /// let positions: Vec<u32> = searcher.hits(&index, &[1.0, 0.5], 1.0)?.map(|hit| hit.position).collect();
    /// assert_eq!(positions, [0, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn hits<'a>(
        &self,
        index: &'a HierarchicalIndex,
        query: &'a [f32],
        tau: f32,
    ) -> Result<Hits<'a>, SearchError> {
        let walk = Walk::new(index, query, tau)?;
        Ok(Hits {
            walk,
            ready: VecDeque::new(),
        })
    }

    /// How many keys score at least `tau`. `max_candidates` does not apply.
    ///
    /// A key whose lower bound reaches `tau` counts without being scored: only those that the sketch leaves undecided are read.
    ///
    /// # Errors
    /// As [`hits`](Self::hits).
    pub fn count_above(
        &self,
        index: &HierarchicalIndex,
        query: &[f32],
        tau: f32,
    ) -> Result<usize, SearchError> {
        let mut walk = Walk::new(index, query, tau)?;
        let mut count = 0;
        while walk.next_stretch() {
            count += walk.score(false);
            count += walk
                .scores
                .iter()
                .filter(|&&score| score >= walk.tau)
                .count();
        }
        Ok(count)
    }
}

/// The keys that reach a threshold, in order of position; see [`HalfspaceSearcher::hits`].
pub struct Hits<'a> {
    walk: Walk<'a>,
    ready: VecDeque<Hit>,
}

impl Iterator for Hits<'_> {
    type Item = Hit;

    fn next(&mut self) -> Option<Hit> {
        while self.ready.is_empty() && self.walk.next_stretch() {
            self.walk.score(true);
            let scored = self.walk.positions.iter().zip(&self.walk.scores);
            let reached = scored.filter(|&(_, &score)| score >= self.walk.tau);
            self.ready
                .extend(reached.map(|(&position, &score)| Hit { position, score }));
        }
        self.ready.pop_front()
    }
}

impl std::fmt::Debug for Hits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hits")
            .field("tau", &self.walk.tau)
            .field("segment", &self.walk.segment)
            .finish_non_exhaustive()
    }
}

/// One pass over an index for one query.
struct Walk<'a> {
    index: &'a HierarchicalIndex,
    /// All stored positions.
    seen: Seen,
    query: &'a [f32],
    tau: f32,
    prepared: QueryGroup,
    offsets: SegmentOffsets,
    norm: f32,
    /// The next segment, and the next tile of it if its slots are positions.
    segment: usize,
    tile: usize,
    /// The segment of the stretch, if its slots are not positions.
    ordered: Option<&'a Segment>,
    descent: Descent,
    partition: Partition,
    found: [Candidates; 1],
    disk: DiskKeys,
    rebased: Vec<u32>,
    /// Of the stretch: positions that may reach `tau`, ascending, and the scores of those that were read.
    positions: Vec<u32>,
    scores: Vec<f32>,
}

impl<'a> Walk<'a> {
    fn new(index: &'a HierarchicalIndex, query: &'a [f32], tau: f32) -> Result<Self, SearchError> {
        ThresholdRule::Fixed { tau }.validate()?;
        if check_queries(query, index.dim())? != 1 {
            return Err(SearchError::Dimension {
                expected: index.dim(),
                received: query.len(),
            });
        }
        let mut prepared = QueryGroup::default();
        prepared.prepare(index.kernel(), query, index.dim());
        Ok(Self {
            index,
            seen: Seen::of(index, index.positions().into()),
            query,
            // No score leaves the finite range: this changes no answer.
            tau: tau.clamp(f32::MIN, f32::MAX),
            norm: prepared.norm(0),
            prepared,
            offsets: SegmentOffsets::default(),
            segment: 0,
            tile: 0,
            ordered: None,
            descent: Descent::default(),
            partition: Partition::default(),
            found: [Candidates::default()],
            disk: DiskKeys::default(),
            rebased: Vec::new(),
            positions: Vec::new(),
            scores: Vec::new(),
        })
    }

    fn group(&self) -> Group<'a> {
        Group {
            index: self.index,
            kernel: self.index.kernel(),
            queries: self.query,
            seen: self.seen,
            targets: &[],
            scale: 0.0,
            tail_block: 0,
        }
    }

    /// Finds the candidates of the next stretch; false at the end.
    fn next_stretch(&mut self) -> bool {
        let Some(visible) = Visible::nth(self.index, self.seen, self.segment) else {
            return false;
        };
        self.found[0].clear();
        let whole = visible.segment.order().is_some();
        self.ordered = whole.then_some(visible.segment);
        let (from, tiles) = (self.tile, visible.tiles().end);
        let to = if whole {
            tiles
        } else {
            tiles.min(from + STRETCH)
        };
        if self.tile == 0 {
            let centre = visible.segment.centre();
            self.prepared
                .offsets_into(self.index.kernel(), centre, &mut self.offsets);
        }
        if to == tiles {
            (self.segment, self.tile) = (self.segment + 1, 0);
        } else {
            self.tile = to;
        }
        if whole {
            self.scan_left(&visible);
        } else {
            self.scan(&visible, from..to);
        }
        true
    }

    /// Scans the tiles of a segment that its coarsest level leaves.
    fn scan_left(&mut self, visible: &Visible<'_>) {
        let mut partition = std::mem::take(&mut self.partition);
        partition.clear();
        self.descent.begin(1);
        let bounds = (&[self.tau][..], &[self.norm][..]);
        self.descent
            .push_tiles(&self.group(), visible, 0, 1, bounds, &mut partition);
        for part in 0..partition.len() {
            for run in partition.part(part) {
                self.scan(visible, run.tiles.clone());
            }
        }
        self.partition = partition;
    }

    fn scan(&mut self, visible: &Visible<'_>, tiles: Range<usize>) {
        let start = visible.segment.start() as u32;
        let Some(sketch) = visible.sketch() else {
            // Without a sketch every key is a candidate about which nothing is known.
            let keys = tiles.start * TILE..visible.to.min(tiles.end * TILE);
            let found = &mut self.found[0];
            found.slots.extend(keys.map(|key| start + key as u32));
            found.lower.resize(found.slots.len(), f32::NEG_INFINITY);
            return;
        };
        let query = ScanQuery {
            tau: self.tau,
            tail_scale: 0.0,
            block_keys: 0,
        };
        self.index.kernel().scan_into(
            sketch,
            tiles,
            start,
            &self.prepared,
            &self.offsets,
            &[query],
            &mut self.found,
        );
    }

    /// Scores the candidates of the stretch: all of them, or those that their lower bound leaves undecided. Returns how many were certain
    /// and not scored.
    fn score(&mut self, all: bool) -> usize {
        let found = &self.found[0];
        let bounded = found.slots.iter().zip(&found.lower);
        let undecided = bounded.filter(|&(_, &lower)| all || lower < self.tau);
        self.positions.clear();
        self.positions.extend(undecided.map(|(&slot, _)| slot));
        if let Some(segment) = self.ordered {
            let start = segment.start() as u32;
            for slot in &mut self.positions {
                *slot = start + segment.position_of_slot(*slot - start);
            }
            self.positions.sort_unstable();
        }
        self.scores.clear();
        self.scores.resize(self.positions.len(), 0.0);
        let group = self.group();
        let (positions, scores) = (&self.positions[..], &mut self.scores);
        self.disk.read(&group, [positions].into_iter());
        self.disk
            .score(&group, 0, positions, &mut self.rebased, scores);
        self.found[0].slots.len() - self.positions.len()
    }
}
