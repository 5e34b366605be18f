//! A first threshold for top-k queries and for those by mass, guessed from a sample of tiles.

use hira_kernels::{MassBounds, TILE, prefetch, tile_lines};

use crate::group::Group;
use crate::mass;
use crate::scan::Scan;
use crate::settle::Target;
use crate::visible::Visible;

/// Below this many visible keys the whole scan costs little more than a sample.
const MIN_KEYS: usize = 2048;
/// Sampled keys: one in [`SHARE`], within these limits.
const MIN_SAMPLE: usize = 512;
const MAX_SAMPLE: usize = 4096;
const SHARE: usize = 64;
/// Sampled tiles that are fetched ahead.
const AHEAD: usize = 3;

/// Buffers of [`estimate`].
#[derive(Debug, Default)]
pub(crate) struct Sample {
    lower: Vec<f32>,
    upper: Vec<f32>,
    /// Sampled lower bounds, one run a query.
    values: Vec<Vec<f32>>,
    /// Both bounds, for queries by mass.
    bounds: Vec<MassBounds>,
}

impl Sample {
    pub(crate) fn memory_usage(&self) -> usize {
        let values: usize = self.values.iter().map(Vec::capacity).sum();
        let bounds: usize = self.bounds.iter().map(MassBounds::memory_usage).sum();
        bounds + 4 * (values + self.lower.capacity() + self.upper.capacity())
    }

    /// Writes for each top-k query without a threshold a score that about `k` of the visible keys reach; nothing where a guess would not pay.
    ///
    /// A guess, never a bound: the search proves afterwards that `k` keys reach it. It takes the lower bounds of every
    /// `stride`-th tile, in which `m` keys were seen, at rank `x + 4 sqrt(x) + 1` for `x = k * m / visible`. Random keys would need
    /// two standard deviations, `2 sqrt(x)`, but neighbours in a tile are alike: on captured keys at top-256 that guess was too
    /// high for 1 to 13 % of the queries, and this one for less than 1 %, with 100 candidates more.
    ///
    /// A query by mass gets what [`mass::guess`] makes of both bounds.
    pub(crate) fn estimate(&mut self, scan: &Scan<'_>, taus: &mut [f32]) {
        let Group {
            index,
            kernel,
            seen,
            targets,
            scale,
            ..
        } = *scan.group;
        let visible = seen.len();
        let lacking = |target: &Target, tau: f32| {
            (target.is_top() || target.is_mass()) && tau == f32::NEG_INFINITY
        };
        let mut pairs = targets.iter().zip(&*taus);
        if visible < MIN_KEYS || !pairs.any(|(target, &tau)| lacking(target, tau)) {
            return;
        }
        let wanted = (visible / SHARE).clamp(MIN_SAMPLE, MAX_SAMPLE) / TILE;
        let stride = (visible / TILE / wanted).max(1);
        self.values.resize_with(taus.len(), Vec::new);
        self.values.iter_mut().for_each(Vec::clear);
        let by_mass = scan.group.is_by_mass();
        self.bounds
            .resize_with(if by_mass { taus.len() } else { 0 }, MassBounds::default);
        self.bounds.iter_mut().for_each(MassBounds::clear);
        let mut skip = stride / 2;
        for (i, segment) in Visible::segments(index, seen).enumerate() {
            // The empty lanes of a last tile must not be counted.
            let whole = segment.whole_tiles();
            let (mut tile, tiles) = (whole.start + skip, whole.end);
            // No hardware sees the next one coming.
            prefetch_tiles(&segment, (tile..tiles).step_by(stride).take(AHEAD));
            while tile < tiles {
                prefetch_tiles(
                    &segment,
                    Some(tile + AHEAD * stride)
                        .into_iter()
                        .filter(|&t| t < tiles),
                );
                self.add_tile(scan, &segment, i, tile);
                tile += stride;
            }
            skip = tile - tiles.min(tile);
        }
        for (g, bounds) in self.bounds.iter_mut().enumerate() {
            if let Target::Mass { ratio, .. } = targets[g]
                && taus[g] == f32::NEG_INFINITY
                && !bounds.is_empty()
            {
                taus[g] = mass::guess(bounds, kernel, scale, ratio);
            }
        }
        for ((values, tau), target) in self.values.iter_mut().zip(taus).zip(targets) {
            let Target::Top { k, .. } = *target else {
                continue;
            };
            if *tau > f32::NEG_INFINITY {
                continue;
            }
            let expected = k as f64 * values.len() as f64 / visible as f64;
            let rank = (expected + 4.0 * expected.sqrt() + 1.0).ceil() as usize;
            *tau = kernel.kth_largest(values, rank);
        }
    }

    fn add_tile(&mut self, scan: &Scan<'_>, visible: &Visible<'_>, segment: usize, tile: usize) {
        let Some(sketch) = visible.sketch() else {
            return;
        };
        let size = TILE * self.values.len();
        self.lower.resize(size, 0.0);
        self.upper.resize(size, 0.0);
        scan.group.kernel.intervals_into(
            sketch,
            tile..tile + 1,
            scan.prepared,
            &scan.offsets[segment],
            &mut self.lower,
            &mut self.upper,
        );
        let mixed = visible.is_mixed();
        let both = self
            .lower
            .chunks_exact(TILE)
            .zip(self.upper.chunks_exact(TILE));
        for (bounds, (lower, upper)) in self.bounds.iter_mut().zip(both) {
            if !mixed {
                bounds.push_bounds(lower, upper);
                continue;
            }
            for lane in (0..TILE).filter(|lane| visible.sees(tile * TILE + lane)) {
                bounds.push_bounds(&lower[lane..=lane], &upper[lane..=lane]);
            }
        }
        for (values, lower) in self.values.iter_mut().zip(self.lower.chunks_exact(TILE)) {
            if mixed {
                let seen = (0..TILE).filter(|lane| visible.sees(tile * TILE + lane));
                values.extend(seen.map(|lane| lower[lane]));
            } else {
                values.extend_from_slice(lower);
            }
        }
    }
}

/// Has the tiles' lines fetched.
fn prefetch_tiles(visible: &Visible<'_>, tiles: impl Iterator<Item = usize>) {
    if let Some(sketch) = visible.sketch() {
        let lines = tile_lines(sketch.dim);
        for tile in tiles {
            prefetch(&sketch.lines[tile * lines..][..lines]);
        }
    }
}
