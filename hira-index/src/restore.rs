//! Segments and indexes from the parts that were saved, checked.

use std::borrow::Cow;
use std::sync::Arc;

use hira_kernels::{Kernel, Precision, StoredRows, TILE, tile_lines};

use crate::index::MAX_LEN;
use crate::level::Level;
use crate::segment::State;
use crate::sketch::Sketch;
use crate::snapshot::{ProductParts, SegmentParts, SketchParts, broken};
use crate::{HierarchicalIndex, IndexConfig, IndexError, ProductCodes, Segment, rows};

/// `Err` with the sentence, unless it is true.
fn claim(holds: bool, what: &'static str) -> Result<(), IndexError> {
    if holds { Ok(()) } else { Err(broken(what)) }
}

impl HierarchicalIndex {
    /// The index of `sealed` segments, which follow each other, and an open one: what [`Segment::restore`] made of the segments of an index
    /// with this configuration. `None` as `open` is for an index that ends with a sealed one.
    ///
    /// # Complexity
    ///
    /// O(keys) for the sample, a few nanoseconds each; nothing is sketched or clustered.
    ///
    /// # Errors
    ///
    /// [`IndexError::Snapshot`] if the segments do not make an index; whatever [`IndexConfig::validate`] refuses.
    pub fn restore(
        config: IndexConfig,
        kernel: Kernel,
        sealed: Vec<Arc<Segment>>,
        open: Option<Segment>,
    ) -> Result<Self, IndexError> {
        let mut index = Self::with_kernel(config, kernel)?;
        let mut next = None;
        for segment in sealed.iter().map(|segment| &**segment).chain(&open) {
            claim(
                segment.dim() == index.dim()
                    && segment.keys().precision() == index.config().precision,
                "its keys are stored as the configuration says",
            )?;
            claim(
                next.is_none_or(|next| next == segment.start()),
                "it starts where the one before ends",
            )?;
            let end = segment.start().checked_add(segment.len());
            next = end.filter(|&end| end <= MAX_LEN);
            claim(next.is_some(), "its positions are 32 bits")?;
        }
        claim(
            sealed.iter().all(|segment| segment.is_sealed()),
            "every segment but the last is sealed",
        )?;
        claim(
            open.as_ref().is_none_or(|open| !open.is_sealed()),
            "the last segment is open",
        )?;
        let open = match (open, sealed.last()) {
            (Some(open), _) => open,
            (None, Some(last)) => {
                let end = last.start() + last.len();
                Segment::open(end, index.config(), last.centre().to_vec())
            }
            (None, None) => return Ok(index),
        };
        index.put(sealed, open);
        Ok(index)
    }
}

impl Segment {
    /// The segment of an index with this configuration that `keys` are the exact rows of, and `parts` the rest.
    ///
    /// # Complexity
    ///
    /// O(len) and, for what is checked, the memory of the parts once. The keys are not read.
    ///
    /// # Errors
    ///
    /// [`IndexError::Snapshot`] if a part does not fit the configuration or the others.
    pub fn restore(
        config: &IndexConfig,
        keys: impl Into<StoredRows>,
        parts: SegmentParts<'_>,
    ) -> Result<Self, IndexError> {
        let keys = keys.into();
        check(config, keys.len(), keys.precision(), &parts)?;
        let dim = config.dim;
        let product = parts.product.map(|product| {
            let config = config.product_of(parts.len);
            ProductCodes::restore(config, dim, parts.len, product)
        });
        let levels: Vec<Level> = parts
            .levels
            .into_iter()
            .map(|level| Level::restore(dim, level))
            .collect::<Result<_, _>>()?;
        check_nesting(&levels, parts.len)?;
        let mut segment = Self::open(parts.start, config, parts.centre.into_owned());
        segment.keys = keys;
        segment.sketch = parts.sketch.map(|sketch| Sketch::restore(dim, sketch));
        segment.product = product.transpose()?;
        segment.order = parts.order.map(|order| order.into_owned());
        segment.levels = levels;
        segment.updates = parts.updates;
        segment.state = match (parts.is_sealed, parts.is_frozen) {
            (true, false) => State::Sealed,
            (true, true) => State::Frozen,
            _ => State::Open,
        };
        segment.build_error = parts.is_undivided.then_some(IndexError::Builder {
            what: "it failed before the segment was saved",
        });
        Ok(segment)
    }

    /// Everything of the segment but its exact rows, borrowed.
    ///
    /// Of a segment that [is building](Self::is_building) these are the parts that it has now, as if it were complete: see
    /// [`HierarchicalIndex::finish_builds`].
    pub fn parts(&self) -> SegmentParts<'_> {
        let sketch = self.partial_sketch().map(|sketch| SketchParts {
            len: sketch.len,
            lines: Cow::Borrowed(sketch.lines),
            norms: Cow::Borrowed(sketch.norms),
        });
        let product = self.product().map(|product| ProductParts {
            entries: Cow::Borrowed(product.entries),
            levels: Cow::Borrowed(product.levels),
            codes: Cow::Borrowed(product.codes),
        });
        SegmentParts {
            start: self.start(),
            len: self.len(),
            is_sealed: self.is_sealed(),
            is_frozen: self.is_frozen(),
            updates: self.updates(),
            is_undivided: self.build_error().is_some(),
            centre: Cow::Borrowed(self.centre()),
            sketch,
            product,
            order: self.order().map(Cow::Borrowed),
            levels: self.levels().iter().map(Level::parts).collect(),
        }
    }
}

/// What has to be true of the parts themselves.
fn check(
    config: &IndexConfig,
    values: usize,
    precision: Precision,
    parts: &SegmentParts<'_>,
) -> Result<(), IndexError> {
    claim(
        precision == config.precision && Some(values) == parts.len.checked_mul(config.dim),
        "it has the keys that it should have",
    )?;
    claim(
        rows::check(Kernel::best(), &parts.centre, config.dim, Precision::F32) == Ok(1),
        "its centre is a point",
    )?;
    claim(
        parts.is_sealed || !parts.is_frozen,
        "a frozen segment takes no keys",
    )?;
    let is_built = parts.is_sealed && !parts.is_frozen;
    let coarse = if !is_built || parts.is_undivided {
        0
    } else {
        config.coarse_levels(parts.len)
    };
    claim(
        parts.levels.len() == coarse,
        "it has the levels that it should have",
    )?;
    claim(
        parts.len <= config.segment_len,
        "it is not longer than segment_len",
    )?;
    claim(
        if parts.is_sealed {
            parts.len > 0
        } else {
            parts.len < config.segment_len && !parts.is_undivided && parts.updates == 0
        },
        "a sealed segment has keys, an open one room",
    )?;
    let coded = is_built && config.product_of(parts.len).is_some();
    claim(
        parts.product.is_some() == coded,
        "it has product codes if it is to have them",
    )?;
    claim(
        parts.sketch.is_some() == (config.num_levels > 0),
        "it has a sketch unless there are no levels",
    )?;
    if let Some(sketch) = &parts.sketch {
        check_sketch(config, parts, sketch)?;
    }
    claim(
        parts.order.is_some() == (coarse > 0),
        "slots are reordered for coarse levels only",
    )?;
    if let Some(order) = &parts.order {
        let mut seen = vec![false; parts.len];
        let is_new = |&position: &u32| {
            let seen = seen.get_mut(position as usize);
            seen.is_some_and(|seen| !std::mem::replace(seen, true))
        };
        claim(
            order.len() == parts.len && order.iter().all(is_new),
            "slots are a permutation of positions",
        )?;
    }
    Ok(())
}

fn check_sketch(
    config: &IndexConfig,
    parts: &SegmentParts<'_>,
    sketch: &SketchParts<'_>,
) -> Result<(), IndexError> {
    let due = if parts.is_sealed {
        parts.len
    } else {
        config.sketched_of(parts.start, parts.len)
    };
    claim(
        (due..=parts.len).contains(&sketch.len),
        "as many keys are sketched as should be",
    )?;
    let tiles = sketch.len.div_ceil(TILE);
    claim(
        sketch.lines.len() == tiles * tile_lines(config.dim) && sketch.norms.len() == tiles,
        "the sketch has the lines of its tiles",
    )
}

/// Children follow each other on every level and cover the one below; the finest covers `len` slots.
fn check_nesting(levels: &[Level], len: usize) -> Result<(), IndexError> {
    let below = levels.iter().skip(1).map(Level::len).chain([len]);
    for (level, below) in levels.iter().zip(below) {
        let mut next = 0;
        for i in 0..level.len() {
            let children = level.children(i);
            claim(
                children.start == next && children.start < children.end,
                "children follow each other",
            )?;
            next = children.end;
        }
        claim(
            next as usize == below,
            "the clusters of a level cover the one below",
        )?;
    }
    Ok(())
}
