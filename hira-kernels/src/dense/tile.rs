//! The micro-kernel that every product of this module runs on: a few broadcast streams against a panel of registers.

use super::simd::Simd;
use crate::element::Element;

/// `R` streams of scalars: element `t` of stream `i` is `from[i][t * step]`.
#[derive(Clone, Copy)]
pub(crate) struct Streams<const R: usize> {
    pub(crate) from: [*const f32; R],
    pub(crate) step: usize,
}

/// Rows of registers: register `v` of row `t` starts at `from[t * step + v * LANES]`.
#[derive(Clone, Copy)]
pub(crate) struct Panel<E> {
    pub(crate) from: *const E,
    pub(crate) step: usize,
}

/// `out[i][v] = sum over t < count of stream i, element t, times register v of panel row t`.
///
/// # Numerics
/// Each lane of each result is its own chain of `count` fused steps that starts at +0 and runs in the order of `t`, so
/// neither `R` nor `V` nor the width of a register can change a bit.
///
/// # Safety
/// For every `t < count`, element `t` of every stream and `V` registers of panel row `t` are readable.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, E: Element, const R: usize, const V: usize>(
    simd: S,
    streams: Streams<R>,
    panel: Panel<E>,
    count: usize,
) -> [[S::V; V]; R] {
    let mut sums = [[simd.splat(0.0); V]; R];
    let mut row = panel.from;
    let mut element = 0;
    for _ in 0..count {
        let mut registers = [simd.splat(0.0); V];
        for (v, register) in registers.iter_mut().enumerate() {
            // SAFETY: `row` is panel row t < count, of which the caller promises V registers.
            *register = unsafe { simd.load(row.add(v * S::LANES)) };
        }
        for (sums, from) in sums.iter_mut().zip(streams.from) {
            // SAFETY: `element` is t * step with t < count, which the caller promises for every stream.
            let x = simd.splat(unsafe { *from.add(element) });
            for (sum, &register) in sums.iter_mut().zip(&registers) {
                *sum = simd.fma(x, register, *sum);
            }
        }
        element += streams.step;
        row = row.wrapping_add(panel.step);
    }
    sums
}
