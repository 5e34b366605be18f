//! The invariants of an index, checked from the outside in. For tests and for whoever suspects a bug: it takes far
//! longer than anything else here.

use hira_kernels::{
    Kernel, ProductTables, QueryGroup, SegmentOffsets, StoredSlice, TILE, tile_lines,
};

use crate::reservoir::Reservoir;
use crate::rows;
use crate::{HierarchicalIndex, IndexConfig, IndexError, Segment};

/// `Err` with the sentence, unless it is true.
fn claim(holds: bool, what: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(what) }
}

impl HierarchicalIndex {
    /// Proves the invariants that a search relies on, or names one that does not hold.
    ///
    /// Segments follow each other without a gap; keys may be stored; the sketch is what its keys give, and its
    /// intervals contain their scores for a sample of queries; so are the product codes, and the bounds of their tiles; the sampled
    /// positions are those of a sample that was made anew; slots are a permutation of positions; clusters nest and
    /// cover their segment; balls and boxes contain their members, and their bounds are not below the members' scores.
    ///
    /// # Complexity
    ///
    /// O(keys * dim) per level, with a large constant.
    ///
    /// # Errors
    ///
    /// [`IndexError::Invariant`] or [`IndexError::Sample`].
    pub fn validate(&self) -> Result<(), IndexError> {
        let segments = self
            .sealed()
            .iter()
            .map(|segment| &**segment)
            .chain([self.open()]);
        let mut start = self.evicted();
        for (i, segment) in segments.enumerate() {
            let last = i == self.sealed().len();
            let broken = |what| IndexError::Invariant { segment: i, what };
            if segment.start() != start {
                return Err(broken("it starts where the one before ends"));
            }
            if segment.is_sealed() == last {
                return Err(broken("every segment but the last is sealed"));
            }
            if segment.is_building() && !self.is_pending(i) {
                return Err(broken("what is not built is being built"));
            }
            if segment.keys().precision() != self.config().precision {
                return Err(broken("its keys are stored as the configuration says"));
            }
            self.check(&segment.wide_keys())
                .map_err(|_| broken("its keys may be stored"))?;
            segment
                .validate(self.kernel(), self.config())
                .map_err(broken)?;
            start += segment.len();
        }
        self.validate_sample()
    }
}

impl HierarchicalIndex {
    fn validate_sample(&self) -> Result<(), IndexError> {
        let mut anew = Reservoir::new(self.config().sample);
        anew.extend_to(self.len());
        if *self.reservoir() == anew {
            Ok(())
        } else {
            Err(IndexError::Sample { len: self.len() })
        }
    }
}

impl Segment {
    pub(crate) fn validate(
        &self,
        kernel: Kernel,
        config: &IndexConfig,
    ) -> Result<(), &'static str> {
        if self.is_sealed() {
            claim(!self.is_empty(), "a sealed segment has keys")?;
            claim(
                self.len() <= config.segment_len,
                "it is not longer than segment_len",
            )?;
            let unbuilt = self.is_building() || self.is_frozen();
            let levels = if unbuilt || self.build_error().is_some() {
                0
            } else {
                config.coarse_levels(self.len())
            };
            claim(
                self.levels().len() == levels,
                "it has the levels it should have",
            )?;
        } else {
            claim(self.len() < config.segment_len, "an open segment has room")?;
            claim(
                self.levels().is_empty(),
                "an open segment has no coarse levels",
            )?;
        }
        claim(
            self.order().is_some() != self.levels().is_empty(),
            "slots are reordered for coarse levels only",
        )?;
        if let Some(order) = self.order() {
            let mut sorted = order.to_vec();
            sorted.sort_unstable();
            claim(
                sorted.iter().copied().eq(0..self.len() as u32),
                "slots are a permutation of positions",
            )?;
        }
        claim(
            self.partial_sketch().is_some() == (config.num_levels > 0),
            "it has a sketch unless there are no levels",
        )?;
        if let Some(sketch) = self.partial_sketch() {
            let due = if self.is_sealed() {
                self.len()
            } else {
                config.sketched_of(self.start(), self.len())
            };
            claim(
                (due..=self.len()).contains(&sketch.len),
                "as many keys are sketched as should be",
            )?;
        }
        self.validate_sketch(kernel)?;
        let built = self.is_sealed() && !self.is_building() && !self.is_frozen();
        let product = config.product_of(self.len()).filter(|_| built);
        claim(
            self.product().is_some() == product.is_some(),
            "it has product codes if it is to have them",
        )?;
        self.validate_product(kernel)?;
        self.validate_levels(kernel)
    }

    fn slot_key(&self, slot: u32) -> StoredSlice<'_> {
        let dim = self.centre().len();
        let first = self.position_of_slot(slot) as usize * dim;
        self.keys().slice(first..first + dim)
    }

    fn validate_sketch(&self, kernel: Kernel) -> Result<(), &'static str> {
        let Some(sketch) = self.partial_sketch() else {
            return Ok(());
        };
        let dim = self.centre().len();
        let tiles = sketch.len.div_ceil(TILE);
        claim(sketch.dim == dim, "the sketch has the size of the keys")?;
        claim(
            sketch.lines.len() == tiles * tile_lines(dim),
            "the sketch has the lines of its tiles",
        )?;
        let again = self.sketch_again(kernel, sketch.len);
        claim(
            sketch.lines == again.view().lines,
            "the sketch is what its keys give",
        )?;
        claim(
            sketch.norms == again.view().norms,
            "the norms of the tiles are what their keys give",
        )?;

        let Some(last) = self.len().checked_sub(1) else {
            return Ok(());
        };
        let keys = self.wide_keys();
        let mut queries = keys[..dim].to_vec();
        queries.extend(keys[last * dim..].iter().map(|x| -x));
        let mut group = QueryGroup::new();
        group.prepare(kernel, &queries, dim);
        let mut offsets = SegmentOffsets::default();
        group.offsets_into(kernel, self.centre(), &mut offsets);
        let slots = tiles * TILE;
        let (mut lower, mut upper) = (vec![0.0; 2 * slots], vec![0.0; 2 * slots]);
        kernel.intervals_into(sketch, 0..tiles, &group, &offsets, &mut lower, &mut upper);
        for (g, query) in queries.chunks_exact(dim).enumerate() {
            for slot in 0..sketch.len {
                let score = kernel.score(query, self.slot_key(slot as u32));
                let i = g * slots + slot;
                claim(
                    lower[i] <= score && score <= upper[i],
                    "the interval of a key contains its score",
                )?;
            }
        }
        Ok(())
    }

    fn validate_product(&self, kernel: Kernel) -> Result<(), &'static str> {
        let (Some(product), Some(again)) = (self.product(), self.product_again(kernel)) else {
            return Ok(());
        };
        let again = again.view();
        claim(
            (product.shape, product.len) == (again.shape, again.len)
                && product.codes == again.codes
                && product.levels == again.levels,
            "the product codes are what the keys give",
        )?;
        let mut group = QueryGroup::new();
        group.prepare(kernel, &self.slot_key(0).widened(), self.centre().len());
        let mut tables = ProductTables::new();
        tables.prepare(kernel, &group, product, self.centre());
        let mut bounds = vec![0.0; product.tiles()];
        kernel.product_bounds_into(product, 0..product.tiles(), &tables, &mut bounds);
        for slot in 0..self.len() {
            let score = kernel.score(group.query(0), self.slot_key(slot as u32));
            claim(
                score <= bounds[slot / TILE],
                "the bound of a tile is not below the score of a key in it",
            )?;
        }
        Ok(())
    }

    fn validate_levels(&self, kernel: Kernel) -> Result<(), &'static str> {
        // Where each cluster of the level below ends, in slots; the level below the last are the slots themselves.
        let mut ends: Vec<u32> = (1..=self.len() as u32).collect();
        for level in self.levels().iter().rev() {
            let mut next = 0;
            let mut level_ends = Vec::with_capacity(level.len());
            for i in 0..level.len() {
                let children = level.children(i);
                claim(
                    children.start == next && children.start < children.end,
                    "children follow each other",
                )?;
                claim(children.end as usize <= ends.len(), "children exist")?;
                next = children.end;
                let first = level_ends.last().copied().unwrap_or(0);
                let end = ends[children.end as usize - 1];
                level_ends.push(end);

                let query = &*self.slot_key(first).widened();
                let norm = rows::round_up(rows::norm_up(query));
                let bound = level.upper_bound(kernel, i, query, norm);
                let (mut lo, mut hi) = (query.to_vec(), query.to_vec());
                for slot in first..end {
                    let key = &*self.slot_key(slot).widened();
                    rows::extend_box(&mut lo, &mut hi, key);
                    let distances = key
                        .iter()
                        .zip(level.centroid(i))
                        .map(|(&x, &c)| f64::from(x) - f64::from(c));
                    let distance = distances.map(|x| x * x).sum::<f64>().sqrt();
                    claim(
                        distance <= f64::from(level.radius(i)),
                        "a ball contains its members",
                    )?;
                    claim(
                        bound >= kernel.score(query, key),
                        "a bound is not below the score of a member",
                    )?;
                }
                // So the box of a cluster contains those of its children.
                claim(
                    level.lo(i) == lo && level.hi(i) == hi,
                    "a box is the smallest that contains its members",
                )?;
            }
            claim(
                next as usize == ends.len(),
                "the clusters of a level cover the one below",
            )?;
            ends = level_ends;
        }
        Ok(())
    }
}
