//! The nearest of a few centroids for each of many points: what k-means spends its time on.
//!
//! Centroids are transposed once into a panel, dimension by dimension, so that the lanes of a register are centroids; a few
//! points at a time are broadcast against it by the same micro-kernel that prefill runs on. Nothing is reduced across a register but
//! the final maximum.

use crate::dense::simd::Simd;
use crate::dense::tile::{Panel, Streams, tile};
use crate::dense::with_simd;
use crate::{Kernel, MAX_DIM, TILE};

/// Centroids in the layout that [`Kernel::nearest_into`] reads. Reuse one: packing again allocates only for a larger set.
///
/// # Examples
///
/// ```
/// use hira_kernels::{Centroids, Kernel};
///
/// let mut centroids = Centroids::new(2);
/// centroids.pack(&[0.0, 0.0, 10.0, 0.0, 0.0, 10.0]);
/// let (mut labels, mut values) = ([0; 2], [0.0; 2]);
/// Kernel::best().nearest_into(&[1.0, 8.0, 9.0, 1.0], &centroids, &mut labels, &mut values);
/// assert_eq!(labels, [2, 1]);
/// // The squared distance of the first point, (1, 8), to its centroid (0, 10).
/// assert_eq!(1.0 + 64.0 - 2.0 * values[0], 5.0);
/// ```
#[derive(Clone, Debug)]
pub struct Centroids {
    dim: usize,
    len: usize,
    /// `[dim][lanes]`: the centroids as columns; `lanes` is `len` in whole blocks of sixteen.
    panel: Vec<f32>,
    /// `-||c||^2 / 2` of each lane, and `-inf` of the lanes that are none.
    offsets: Vec<f32>,
}

impl Centroids {
    /// No centroids of dimension `dim` yet.
    ///
    /// # Panics
    ///
    /// If `dim` is 0 or above [`MAX_DIM`].
    pub fn new(dim: usize) -> Self {
        assert!(
            dim > 0 && dim <= MAX_DIM,
            "a row has 1 to {MAX_DIM} dimensions, not {dim}"
        );
        Self {
            dim,
            len: 0,
            panel: Vec::new(),
            offsets: Vec::new(),
        }
    }

    /// Number of centroids.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Replaces the centroids by the rows of `centroids`.
    ///
    /// # Shapes
    ///
    /// `centroids`: `[n][D]`, finite, with norms below `2^63`.
    ///
    /// # Panics
    ///
    /// If `centroids` is not a whole number of rows, or there are `2^24` or more.
    pub fn pack(&mut self, centroids: &[f32]) {
        assert_eq!(centroids.len() % self.dim, 0, "rows of {}", self.dim);
        self.len = centroids.len() / self.dim;
        assert!(self.len < 1 << 24, "labels are exact as f32");
        let lanes = self.lanes();
        self.panel.clear();
        self.panel.resize(lanes * self.dim, 0.0);
        self.offsets.clear();
        self.offsets.resize(lanes, f32::NEG_INFINITY);
        for (lane, row) in centroids.chunks_exact(self.dim).enumerate() {
            let mut square = 0.0f64;
            for (to, &x) in self.panel[lane..].iter_mut().step_by(lanes).zip(row) {
                *to = x;
                square += f64::from(x) * f64::from(x);
            }
            self.offsets[lane] = (-square / 2.0) as f32;
        }
    }

    fn lanes(&self) -> usize {
        self.len.next_multiple_of(TILE)
    }
}

impl Kernel {
    /// For each point the nearest centroid (the first of equals), and `max (x . c - ||c||^2 / 2)`.
    ///
    /// The squared distance is `||x||^2` less twice that value.
    ///
    /// # Shapes
    ///
    /// `points`: `[labels.len()][D]`; `labels` and `values` have the same length.
    ///
    /// # Numerics
    ///
    /// A product `x . c` is one chain of `D` fused steps in the order of the dimensions, from `+0`; `||c||^2 / 2` is computed in `f64`,
    /// rounded once and subtracted. The same bits on every kernel. What is nearest is so up to those roundings: this
    /// serves clustering, where a label decides how fast a search is, not what it finds. Points that are not finite get some label.
    ///
    /// # Complexity
    ///
    /// O(points * centroids * D). Measured with AVX-512 on one core of a Zen 4 at `D` 64 and 32 centroids: 44 ns a point, 90 Gflop/s.
    ///
    /// # Panics
    ///
    /// If there is no centroid, or a slice has another length.
    pub fn nearest_into(
        self,
        points: &[f32],
        centroids: &Centroids,
        labels: &mut [u32],
        values: &mut [f32],
    ) {
        assert!(!centroids.is_empty(), "there is a centroid");
        assert_eq!(
            points.len(),
            labels.len() * centroids.dim,
            "a row of {} for each label",
            centroids.dim
        );
        assert_eq!(labels.len(), values.len(), "a value for each label");
        with_simd!(self, nearest(points: &[f32], centroids: &Centroids, labels: &mut [u32], values: &mut [f32]))
    }
}

#[inline(always)]
fn nearest<S: Simd>(
    simd: S,
    points: &[f32],
    centroids: &Centroids,
    labels: &mut [u32],
    values: &mut [f32],
) {
    match S::PREFILL_STREAMS {
        8 => nearest_of::<S, 8>(simd, points, centroids, labels, values),
        _ => nearest_of::<S, 4>(simd, points, centroids, labels, values),
    }
}

/// `R` points at a time; streams past the last point repeat it and are not stored.
#[inline(always)]
fn nearest_of<S: Simd, const R: usize>(
    simd: S,
    points: &[f32],
    centroids: &Centroids,
    labels: &mut [u32],
    values: &mut [f32],
) {
    let dim = centroids.dim;
    let last = labels.len().saturating_sub(1);
    let chunks = labels.chunks_mut(R).zip(values.chunks_mut(R));
    for (i, (labels, values)) in chunks.enumerate() {
        let row = |r: usize| &points[(i * R + r).min(last) * dim..][..dim];
        let streams = Streams {
            from: std::array::from_fn(|r| row(r).as_ptr()),
            step: 1,
        };
        let mut best = Best::<S, R>::none(simd);
        let mut lane = 0;
        while lane < centroids.lanes() {
            lane += match (centroids.lanes() - lane) / S::LANES {
                1 => best.against::<1>(simd, streams, centroids, lane),
                _ => best.against::<2>(simd, streams, centroids, lane),
            };
        }
        for (r, (label, value)) in labels.iter_mut().zip(values).enumerate() {
            let (found, largest) = best.of(simd, r);
            // A point that is not finite may have found a lane that is no centroid.
            *label = (found as u32).min(centroids.len as u32 - 1);
            *value = largest;
        }
    }
}

/// For `R` points and each lane, the largest value so far and the number of the register it came from.
struct Best<S: Simd, const R: usize> {
    values: [S::V; R],
    registers: [S::V; R],
}

impl<S: Simd, const R: usize> Best<S, R> {
    #[inline(always)]
    fn none(simd: S) -> Self {
        Self {
            values: [simd.splat(f32::NEG_INFINITY); R],
            registers: [simd.splat(0.0); R],
        }
    }

    /// Takes the `V` registers of centroids from `lane` on into account; returns how many lanes those are.
    #[inline(always)]
    fn against<const V: usize>(
        &mut self,
        simd: S,
        streams: Streams<R>,
        centroids: &Centroids,
        lane: usize,
    ) -> usize {
        let panel = Panel {
            from: centroids.panel[lane..].as_ptr(),
            step: centroids.lanes(),
        };
        let offsets = &centroids.offsets[lane..][..V * S::LANES];
        // SAFETY: every stream is a point of `dim` values; the panel has `dim` rows of `lanes()`, a multiple of 16 and so of
        // `LANES`, and the slice above shows that V registers from `lane` lie inside one.
        let sums = unsafe { tile::<S, f32, R, V>(simd, streams, panel, centroids.dim) };
        for v in 0..V {
            // SAFETY: register v < V of a slice of V registers.
            let offset = unsafe { simd.load(offsets[v * S::LANES..].as_ptr()) };
            let register = simd.splat((lane / S::LANES + v) as f32);
            for (r, sums) in sums.iter().enumerate() {
                let (value, best) = (simd.add(sums[v], offset), self.values[r]);
                self.registers[r] = simd.select_less(best, value, register, self.registers[r]);
                self.values[r] = simd.select_less(best, value, value, best);
            }
        }
        V * S::LANES
    }

    /// Number (exact as `f32`) and value of the best centroid for point `r`: of equal values the first centroid.
    #[inline(always)]
    fn of(&self, simd: S, r: usize) -> (f32, f32) {
        let mut values = [f32::NEG_INFINITY; TILE];
        let mut numbers = [f32::INFINITY; TILE];
        // SAFETY: both arrays have sixteen lanes, at least `LANES`.
        unsafe {
            simd.store(values.as_mut_ptr(), self.values[r]);
            simd.store(numbers.as_mut_ptr(), self.registers[r]);
        }
        let largest = halve(values, |a, b| if b > a { b } else { a });
        for (lane, (number, value)) in numbers.iter_mut().zip(values).enumerate() {
            let here = *number * S::LANES as f32 + lane as f32;
            *number = if value == largest {
                here
            } else {
                f32::INFINITY
            };
        }
        // Equal values may be zeros of either sign: the sum is the positive one.
        let first = halve(numbers, |a, b| if b < a { b } else { a });
        (first, largest + 0.0)
    }
}

/// Sixteen lanes to one, in a tree: the compiler vectorises its steps.
#[inline(always)]
fn halve(mut lanes: [f32; TILE], choose: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = TILE / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = choose(lanes[l], lanes[l + half]);
        }
        half /= 2;
    }
    lanes[0]
}
