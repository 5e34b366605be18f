//! The registers that the dense kernels are written over.
//!
//! A [`Simd`] is a capability token: to hold one proves that the processor has its instructions, so arithmetic is
//! safe and only loads and stores, which take raw pointers, are not. The kernels are generic over it and inlined
//! whole into one `#[target_feature]` entry for each token. Every operation is one IEEE operation a lane, identical
//! in all three, so a kernel whose lanes never meet gives the same bits on all of them.

use crate::element::Element;
use crate::exp::{EXP, LN2_HI, LN2_LO, LOG2_E, UNDERFLOW};

/// `1.5 * 2^23`: adding it rounds to an integer and leaves that in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;

/// Sixteen lanes: the first `16 / LANES` of these registers.
pub(crate) type Block<S> = [<S as Simd>::V; 4];

/// One register of `LANES` f32 values and the operations on it.
pub(crate) trait Simd: Copy {
    /// A register.
    type V: Copy;
    /// Lanes in a register; divides 16.
    const LANES: usize;
    /// Registers of a panel row in a tile of prefill: 2 or 3.
    const PREFILL_REGISTERS: usize;
    /// Streams in a tile of prefill: 4 or 8.
    const PREFILL_STREAMS: usize;
    /// Registers that a tile of decode may use for sums.
    const DECODE_SUMS: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger of `a` and `b`, neither a NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `yes` where `a < b`, else `no`.
    fn select_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// Whether any lane of `a` is less than that of `b`.
    fn any_less(self, a: Self::V, b: Self::V) -> bool;
    /// The pairwise tree of the canonical score over four times sixteen lanes, of which each takes the first
    /// `16 / LANES` registers.
    fn trees(self, sums: [Block<Self>; 4]) -> [f32; 4];
    /// `x * 2^n` where `power` is `1.5 * 2^23 + n`: its low bits, shifted, are added to the exponent of `x`.
    fn shift_exponent(self, x: Self::V, power: Self::V) -> Self::V;

    /// Reads a register, widened.
    ///
    /// # Safety
    /// `LANES` values at `from` are readable.
    unsafe fn load<E: Element>(self, from: *const E) -> Self::V;
    /// Writes a register.
    ///
    /// # Safety
    /// `LANES` values at `to` are writable.
    unsafe fn store(self, to: *mut f32, x: Self::V);
    /// Reads `len < LANES` values, widened; the other lanes are +0.
    ///
    /// # Safety
    /// `len` values at `from` are readable.
    unsafe fn load_head<E: Element>(self, from: *const E, len: usize) -> Self::V;
}

/// Sixteen zeros.
#[inline(always)]
pub(crate) fn zeros<S: Simd>(simd: S) -> Block<S> {
    [simd.splat(0.0); 4]
}

/// `exp(x)` for `x <= 0`: in every lane the operations of [`crate::exp::exp`], so the same bits.
///
/// Lanes below the underflow limit, `-inf` among them, go through the polynomial as well and are then replaced by 0.
/// Positive arguments give a meaningless value, possibly NaN, and nothing worse.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    let round = simd.splat(ROUND);
    let power = simd.add(simd.mul(x, simd.splat(LOG2_E)), round);
    let whole = simd.sub(power, round);
    let r = simd.fma(whole, simd.splat(-LN2_HI), x);
    let r = simd.fma(whole, simd.splat(-LN2_LO), r);
    let mut p = simd.splat(EXP[6]);
    for i in (0..6).rev() {
        p = simd.fma(p, r, simd.splat(EXP[i]));
    }
    let zero = simd.splat(0.0);
    simd.select_less(
        x,
        simd.splat(UNDERFLOW),
        zero,
        simd.shift_exponent(p, power),
    )
}
