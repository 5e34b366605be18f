//! [`Simd`] in plain Rust: four lanes, the width of the vector registers that every 64-bit target has.

use super::simd::{Block, Simd};
use crate::element::Element;
use crate::lanes::tree;

/// The token of the portable kernel.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// `[f(0), f(1), f(2), f(3)]`.
#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const PREFILL_REGISTERS: usize = 2;
    const PREFILL_STREAMS: usize = 4;
    const DECODE_SUMS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn select_less(self, a: [f32; 4], b: [f32; 4], yes: [f32; 4], no: [f32; 4]) -> [f32; 4] {
        lanes(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn any_less(self, a: [f32; 4], b: [f32; 4]) -> bool {
        (0..4).any(|i| a[i] < b[i])
    }
    #[inline(always)]
    fn trees(self, sums: [Block<Self>; 4]) -> [f32; 4] {
        sums.map(|block| tree(std::array::from_fn(|l| block[l / 4][l % 4])))
    }
    #[inline(always)]
    fn shift_exponent(self, x: [f32; 4], power: [f32; 4]) -> [f32; 4] {
        lanes(|i| f32::from_bits(x[i].to_bits().wrapping_add(power[i].to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn load<E: Element>(self, from: *const E) -> [f32; 4] {
        // SAFETY: the caller promises that four values are readable.
        unsafe { from.cast::<[E; 4]>().read_unaligned() }.map(E::widen)
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: [f32; 4]) {
        // SAFETY: the caller promises that four values are writable.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_head<E: Element>(self, from: *const E, len: usize) -> [f32; 4] {
        let mut x = [0.0; 4];
        for (i, lane) in x.iter_mut().enumerate().take(len) {
            // SAFETY: `i < len`, and the caller promises that `len` values are readable.
            *lane = unsafe { from.add(i).read() }.widen();
        }
        x
    }
}
