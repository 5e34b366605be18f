//! Why the interval of a key holds its score: the constants of the device sketch, and where they come from.
//!
//! # What a device's arithmetic is trusted with
//!
//! Sums, differences, products and fused operations are *faithful*: the result is one of the two neighbours of the exact one, an error of
//! `u = 2^-23` relative (Vulkan promises no more; CUDA rounds to nearest). A compiler may or may not fuse a product with a sum. Operands and
//! results below `2^-126` may be taken as 0. A division is good to 2.5 units in the last place, a square root to less than 8, an exponential
//! of `x` to `3 + 2 |x|`. Conversions of small integers, comparisons, and bits moved between integers and floats are exact.
//!
//! # What is stored for a key
//!
//! `k = mu + s c + e` with integers `|c| <= 127` and `s` a bf16 value, so `s c_i` has 15 bits and is exact. Whatever division and rounding made
//! of `c`, `e_i` is then *measured*: `fl(fl(k_i - mu_i) - s c_i)`, two roundings, so that in norm
//! `||e|| <= ||e^|| (1 + u) + u ||k - mu||`, and `||k - mu|| <= ||s c|| + ||e||`. A sum of `D` squares loses `D + 1` roundings, its root is 8
//! units off: for `D <= 256`, `(D + 1) u / 2 + 8 u + u < 2^-15.7`, so that [`UP`] `= 1 + 2^-14` raises a measured norm above the true one, and
//! the spare covers every product of two such factors. Squares of components below `2^-63` may be lost: `2^-63 D^(1/2) <= 2^-59` in norm, for
//! which [`TINY`] is added.
//!
//! # The interval
//!
//! With `dot = sum q_i c_i` over the exact query, `estimate = fl(fl(q . mu) + fl(s fl(dot)))`. The exact score is
//! `q.mu + s q.c + q.e`. What separates the two, and the exact score from one that was computed with one rounding a term and addition in any
//! order (the host's canonical score, and the device's):
//!
//! 1. `||q|| ||e||`, the cross term;
//! 2. `(D + 1) u ||q|| ||s c||` from `dot`, whose terms pass through at most `D + 1` roundings; `2 u ||q|| ||s c||` from the product with `s` and
//!    the sum;
//! 3. `(D + 1) u ||q|| ||k||`, a computed score;
//! 4. `((D + 1) u + u) ||q|| ||mu||`, the offset and its share of the sum;
//! 5. the ends themselves, `fl(estimate +- band)`: `u (||q|| ||s c|| + ||q|| ||mu||)`, and of the band's own size as much as its three
//!    operations lose;
//! 6. what is lost below `2^-126`: in `dot`, at most `D 2^-126` and then times `127 s`. With `||k|| < 2^60` that is below `2^-50`.
//!
//! So a key stores `residual = (||e|| + rho (||s c|| + ||k||)) UP + TINY`, rounded up to bf16, with [`rho`] `= (D + 24) u` (items 1, 2, 3, 5:
//! `D + 5` at most are needed, the rest covers terms of second order), and a query has
//! `norm = ||q|| UP + TINY`, `slack = (D + 24) u norm ||mu|| + 2^-50` (items 4, 5, 6). `UP` in both factors, `2^-14` each, covers the band's own
//! operations. At D 128 `rho` widens a band by about 1 %.

use super::shape::MAX_GROUP;

/// Unit roundoff of a faithful operation.
const U: f32 = 1.0 / (1u32 << 23) as f32;

/// What raises a measured norm above the true one.
pub(super) const UP: f32 = 1.0 + 1.0 / (1u32 << 14) as f32;

/// `2^-58`: above the norm of components whose squares underflow.
pub(super) const TINY: f32 = 1.0 / (1u64 << 58) as f32;

/// `2^-50`: above everything that is lost to underflow in an interval.
pub(super) const SLACK: f32 = 1.0 / (1u64 << 50) as f32;

/// Components of keys and values, and with `D <= 256` a sixteenth of their norms, stay below this, `2^56`.
pub(super) const LARGEST: f32 = (1u64 << 56) as f32;

/// `2^-100`: keys nearer to the centre than this get code 0 and a residual norm of [`NEAR_RESIDUAL`].
pub(super) const NEAR: f32 = 1.0 / (1u128 << 100) as f32;

/// `2^-96`, the norm of 256 components of [`NEAR`].
pub(super) const NEAR_RESIDUAL: f32 = 1.0 / (1u128 << 96) as f32;

/// A little above `1 / 127`: a largest component times this, rounded up to bf16, is a scale that leaves every code in range.
pub(super) const SCALE_OF_LARGEST: f32 = (1.0 + 1.0 / (1u32 << 20) as f32) / 127.0;

/// Relative error of everything that is summed over `dim` dimensions; see the top of the file.
pub(super) const fn rho(dim: usize) -> f32 {
    (dim + 24) as f32 * U
}

/// Lower than every score, and what a lane without a key counts as. Finite: not every runtime keeps infinities.
pub(super) const LOWEST: f32 = f32::MIN;

/// Outward factor of sums of weights.
///
/// A weight is `exp(x)` of an argument in `[-87, 0]` that went through three roundings: `87 * 3 u` from those, `(3 + 2 * 87) u` from the
/// exponential: below `5.3e-5`. A sum passes through at most 4096 additions: keys of a unit (a chunk has 4 a unit, a split of a layer of
/// `2^22` keys at most 64), a tree, and the splits: `4096 u < 4.9e-4`. Both sums and the two factors between them in all below `2^-9`.
pub(super) const WEIGHT_UP: f32 = 1.0 + 1.0 / 256.0;

/// Relative error of a computed weighted mean beside that of its scores: weights `5.3e-5`, and the two sums `4.9e-4` each.
pub(super) const WEIGHT_ERROR: f32 = 1.0 / 512.0;

/// Weights of unseen keys are not taken to be smaller than `exp` of this: their bound does not underflow.
pub(super) const LEAST_LOGIT: f32 = -87.0;

const _: () = assert!(MAX_GROUP * 16 == super::shape::UNITS as usize);
