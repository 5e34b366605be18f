//! How high a key in a cluster can score: balls and boxes, rounded outward.

use std::ops::Range;

use hira_kernels::{Kernel, TILE};

use crate::level::{Level, Scalars};
use crate::rows::round_up;

/// Clusters whose boxes are summed before their bounds are put together.
const BLOCK: usize = 64;

impl Level {
    /// A score that no member of cluster `i` exceeds for the query `q`: the smaller of a ball's and a box's bound.
    ///
    /// `qnorm` must not be below the norm of `q`, and `q` must be a query that may be searched for: finite, with a norm
    /// below `2^63`.
    ///
    /// # Units
    ///
    /// Score, as [`Kernel::score`] computes it: the bound is not below the canonical score of any member, bit for bit.
    ///
    /// # Numerics
    ///
    /// The ball bounds with `q . c + ||q|| r`, the box with `sum max(q_i lo_i, q_i hi_i)`, and both are raised by what
    /// rounding can do to them and to a member's score: about `(D/16 + 5) 2^-24 ||q|| (2 ||c|| + r)` for the ball.
    /// Where a partial sum of the box could overflow, the ball alone is used.
    ///
    /// # Complexity
    ///
    /// O(dim), three rows read.
    ///
    /// # Panics
    ///
    /// If `q` has another dimension than the keys.
    pub fn upper_bound(&self, kernel: Kernel, i: usize, q: &[f32], qnorm: f32) -> f32 {
        let mut bound = [0.0];
        self.upper_bounds_into(kernel, i..i + 1, q, qnorm, &mut bound);
        bound[0]
    }

    /// [`upper_bound`](Self::upper_bound) of each of the neighbouring clusters `clusters`, the same bits.
    ///
    /// # Complexity
    ///
    /// O(clusters * dim), three rows read a cluster, in order: at dimension 64 about 20 ns a cluster where the rows lie in a
    /// near cache.
    ///
    /// # Panics
    ///
    /// If `out` has not one value a cluster, a cluster is not below [`len`](Self::len), or `q` has another dimension than the
    /// keys.
    pub fn upper_bounds_into(
        &self,
        kernel: Kernel,
        clusters: Range<usize>,
        q: &[f32],
        qnorm: f32,
        out: &mut [f32],
    ) {
        assert_eq!(out.len(), clusters.len(), "one bound a cluster");
        assert_eq!(q.len(), self.dim, "the query has the dimension of the keys");
        let rounding = Rounding::new(self.dim);
        let mut sums = [0.0f32; BLOCK];
        let mut first = clusters.start;
        for out in out.chunks_mut(BLOCK) {
            let scalars = &self.scalars[first..first + out.len()];
            let values = first * self.dim..(first + out.len()) * self.dim;
            first += out.len();
            let sums = &mut sums[..out.len()];
            kernel.scores_into(q, &self.centroids[values.clone()], out);
            kernel.box_sums_into(q, &self.lo[values.clone()], &self.hi[values], sums);
            for ((out, &sum), scalars) in out.iter_mut().zip(&*sums).zip(scalars) {
                *out = rounding.upper(*out, sum, qnorm, scalars);
            }
        }
    }
}

/// What rounding can do to a bound of keys of one dimension.
struct Rounding {
    growth: f64,
    underflow: f64,
}

impl Rounding {
    fn new(dim: usize) -> Self {
        // The proof. u = 2^-24, n = ceil(D/16) + 5, gamma = n u / (1 - n u), A = 16 ceil(D/16) 2^-149.
        //
        // Canonical score of a member k. A product passes through at most ceil(D/16) fused operations of its lane and 4
        // additions of the tree, each with a relative rounding error of at most u. A fused operation whose result is
        // subnormal has an absolute error of at most 2^-150 instead (additions have none there), there are
        // 16 ceil(D/16) of them, and later roundings less than double what they leave. With Cauchy-Schwarz:
        //   (1)  |canonical(q, k) - q.k| <= gamma sum |q_i k_i| + A <= gamma ||q|| ||k|| + A.
        //
        // Ball. q.k = q.c + q.(k - c) <= q.c + ||q|| r and ||k|| <= ||c|| + r. With (1) for k, and for c, whose
        // canonical score is what is computed:
        //   canonical(q, k) <= canonical(q, c) + ||q|| r + gamma ||q|| (2 ||c|| + r) + 2 A.
        //
        // Box. t_i = max(q_i lo_i, q_i hi_i) >= q_i k_i. Rounding is monotonic, so the larger rounded product is t_i
        // rounded: one rounding, then at most ceil(D/16) additions in its lane and 4 in the tree, at most n in all;
        // only products can underflow. |t_i| <= |q_i| m_i and |k_i| <= m_i with m = max(|lo|, |hi|), so
        // sum |t_i| <= ||q|| ||m||:
        //   canonical(q, k) <= sum t_i + gamma ||q|| ||m|| + A <= computed sum + 2 gamma ||q|| ||m|| + 2 A.
        //
        // Both right sides are evaluated in f64, where a product of two f32 is exact, with `growth` = 1.01 n u in place
        // of gamma. For D <= 2^16, n u < 2^-11 and growth exceeds gamma by more than 0.9 % of n u, that is 2^-29: far
        // more than the five roundings of 2^-53 that the sum has in f64, relative to ||q|| (||c|| + r) or ||q|| ||m||
        // and to A (which counts double what underflow can do). The last rounding, to f32, is upwards.
        let blocks = dim.div_ceil(TILE);
        Self {
            growth: 1.01 * (blocks + 5) as f64 / (1u64 << 24) as f64,
            underflow: 2.0 * (TILE * blocks) as f64 * f64::from(f32::from_bits(1)),
        }
    }

    /// The smaller of a ball's and a box's bound, from the canonical score `centre` of the centroid and the box's `sum`.
    #[inline]
    fn upper(&self, centre: f32, sum: f32, qnorm: f32, scalars: &Scalars) -> f32 {
        let (qnorm, radius) = (f64::from(qnorm), f64::from(scalars.radius));
        let reach = 2.0 * f64::from(scalars.centroid_norm) + radius;
        let ball =
            f64::from(centre) + qnorm * radius + self.growth * qnorm * reach + self.underflow;

        // Below this no partial sum of the box exceeds 2^127: each is at most sum |t_i| (1 + gamma) + A. Above it `sum` may
        // be infinite or no number, and the ball alone is used.
        let corner = qnorm * f64::from(scalars.box_norm);
        if corner >= (1u128 << 126) as f64 {
            return round_up(ball);
        }
        round_up(ball.min(f64::from(sum) + 2.0 * self.growth * corner + self.underflow))
    }
}
