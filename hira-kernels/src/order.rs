//! The k-th largest of some values, and the places of those within limits.

use std::ops::Range;

use crate::kernel::dispatch;
use crate::{Kernel, TILE};

impl Kernel {
    /// The `k`-th largest of `values` (1 is the largest): `+inf` for `k = 0`, and `-inf` if there are fewer, which keeps everything.
    ///
    /// Of equal zeros either may be returned.
    ///
    /// # Complexity
    ///
    /// At most 32 counts of the values that reach a middle, about ten for values that differ: 500 values take 0.2 us where a selection that
    /// moves them takes 0.6.
    ///
    /// # Panics
    ///
    /// If a value is NaN, in debug builds; otherwise the result is meaningless.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::Kernel;
    ///
    /// let kernel = Kernel::best();
    /// assert_eq!(kernel.kth_largest(&[3.0, 1.0, 2.0, 3.0], 2), 3.0);
    /// assert_eq!(kernel.kth_largest(&[3.0, 1.0, 2.0, 3.0], 3), 2.0);
    /// assert_eq!(kernel.kth_largest(&[3.0], 2), f32::NEG_INFINITY);
    /// ```
    pub fn kth_largest(self, values: &[f32], k: usize) -> f32 {
        debug_assert!(values.iter().all(|value| !value.is_nan()), "numbers");
        if k == 0 {
            return f32::INFINITY;
        }
        if k > values.len() {
            return f32::NEG_INFINITY;
        }
        dispatch!(self, kth_largest(values, k))
    }

    /// The least and the largest of `values`: `[inf, -inf]` if there are none. Of equal zeros either may be returned.
    ///
    /// # Panics
    ///
    /// If a value is NaN, in debug builds; otherwise the result is meaningless.
    pub fn extremes(self, values: &[f32]) -> [f32; 2] {
        debug_assert!(values.iter().all(|value| !value.is_nan()), "numbers");
        dispatch!(self, extremes(values))
    }

    /// The least of `values` that is at least `limit`; `inf` if there is none. Of equal zeros either may be returned.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::Kernel;
    ///
    /// assert_eq!(Kernel::best().least_at(&[3.0, 1.0, 2.0], 1.5), 2.0);
    /// ```
    pub fn least_at(self, values: &[f32], limit: f32) -> f32 {
        dispatch!(self, least_at(values, limit))
    }

    /// Writes the places of the values `within` limits, ascending, to the front of `places`, and returns how many there are. What else `places`
    /// holds is lost.
    ///
    /// # Shapes
    ///
    /// `values`, `places`: `[N]`.
    ///
    /// # Panics
    ///
    /// If `places` has another length than `values`, or is longer than `u32` can count.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::Kernel;
    ///
    /// let (values, mut places) = ([3.0, 1.0, 2.0, 3.0], [0; 4]);
    /// let count = Kernel::best().places_within(&values, 2.0..f32::INFINITY, &mut places);
    /// assert_eq!(places[..count], [0, 2, 3]);
    /// ```
    pub fn places_within(self, values: &[f32], within: Range<f32>, places: &mut [u32]) -> usize {
        assert_eq!(values.len(), places.len(), "a place for every value");
        assert!(values.len() <= u32::MAX as usize, "places are u32");
        dispatch!(self, places_within(values, within, places))
    }

    /// As [`places_within`](Self::places_within), and writes the values that lie there, in the same order, at the front of `picked`.
    ///
    /// # Shapes
    ///
    /// `values`, `places`, `picked`: `[N]`.
    ///
    /// # Panics
    ///
    /// If `places` or `picked` has another length than `values`, or is longer than `u32` can count.
    pub fn pick_within(
        self,
        values: &[f32],
        within: Range<f32>,
        places: &mut [u32],
        picked: &mut [f32],
    ) -> usize {
        assert_eq!(values.len(), places.len(), "a place for every value");
        assert_eq!(values.len(), picked.len(), "room for every value");
        assert!(values.len() <= u32::MAX as usize, "places are u32");
        dispatch!(self, pick_within(values, within, places, picked))
    }
}

/// The body of the portable kernels' `places_within`.
#[inline(always)]
pub(crate) fn places_within(values: &[f32], within: Range<f32>, places: &mut [u32]) -> usize {
    let mut count = 0;
    for (place, value) in values.iter().enumerate() {
        // Written always, counted only if kept: no branch to mispredict. At most `place` were kept before.
        places[count] = place as u32;
        count += usize::from(within.contains(value));
    }
    count
}

/// The body of the portable kernels' `pick_within`.
#[inline(always)]
pub(crate) fn pick_within(
    values: &[f32],
    within: Range<f32>,
    places: &mut [u32],
    picked: &mut [f32],
) -> usize {
    let mut count = 0;
    for (place, &value) in values.iter().enumerate() {
        (places[count], picked[count]) = (place as u32, value);
        count += usize::from(within.contains(&value));
    }
    count
}

/// An integer that orders floats as their values do, but for `-0.0`, which it puts before `0.0`.
#[inline(always)]
fn rank(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// The float of a [`rank`].
#[inline(always)]
fn of_rank(rank: i32) -> f32 {
    f32::from_bits((rank ^ ((rank >> 31) as u32 >> 1) as i32) as u32)
}

/// What the search for the k-th largest asks of the values, in the registers of a kernel.
pub(crate) trait Values {
    /// The least and the largest.
    fn ends(&self) -> [f32; 2];
    /// How many reach `limit`.
    fn count(&self, limit: f32) -> usize;
    /// The least that reaches `limit`.
    fn least(&self, limit: f32) -> f32;
}

/// [`Values`] for a type whose own methods of the same names need target features.
#[cfg(target_arch = "x86_64")]
macro_rules! values_of {
    ($registers:ident) => {
        impl crate::order::Values for $registers<'_> {
            #[inline(always)]
            fn ends(&self) -> [f32; 2] {
                // SAFETY: only the `kth_largest` of this module makes this type, and has the target features of all its methods.
                unsafe { $registers::ends(self) }
            }

            #[inline(always)]
            fn count(&self, limit: f32) -> usize {
                // SAFETY: as above.
                unsafe { $registers::count(self, limit) }
            }

            #[inline(always)]
            fn least(&self, limit: f32) -> f32 {
                // SAFETY: as above.
                unsafe { $registers::least(self, limit) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use values_of;

/// Halves the interval of ranks that holds the answer until a middle is reached by exactly `k` values: the least of them is it. `1 <= k <= N`.
#[inline(always)]
pub(crate) fn select(values: &impl Values, k: usize) -> f32 {
    // At least `k` values reach `low`, and fewer the rank above `high`.
    let [mut low, mut high] = values.ends().map(rank);
    while low < high {
        let middle = low + (high.wrapping_sub(low) as u32).div_ceil(2) as i32;
        let limit = of_rank(middle);
        let reached = values.count(limit);
        if reached == k {
            return values.least(limit);
        }
        if reached > k {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    of_rank(low)
}

/// Sixteen lanes that a compiler can put into registers.
struct Portable<'a> {
    blocks: &'a [[f32; TILE]],
    rest: &'a [f32],
}

impl Values for Portable<'_> {
    #[inline(always)]
    fn ends(&self) -> [f32; 2] {
        let (mut least, mut most) = ([f32::INFINITY; TILE], [f32::NEG_INFINITY; TILE]);
        for block in self.blocks {
            for l in 0..TILE {
                least[l] = if block[l] < least[l] {
                    block[l]
                } else {
                    least[l]
                };
                most[l] = if block[l] > most[l] {
                    block[l]
                } else {
                    most[l]
                };
            }
        }
        let least = least.iter().chain(self.rest).copied();
        let most = most.iter().chain(self.rest).copied();
        [
            least.fold(f32::INFINITY, f32::min),
            most.fold(f32::NEG_INFINITY, f32::max),
        ]
    }

    #[inline(always)]
    fn count(&self, limit: f32) -> usize {
        let mut lanes = [0u32; TILE];
        for block in self.blocks {
            for l in 0..TILE {
                lanes[l] += u32::from(block[l] >= limit);
            }
        }
        let rest = self.rest.iter().map(|&value| u32::from(value >= limit));
        lanes.into_iter().chain(rest).sum::<u32>() as usize
    }

    #[inline(always)]
    fn least(&self, limit: f32) -> f32 {
        let mut least = [f32::INFINITY; TILE];
        for block in self.blocks {
            for l in 0..TILE {
                let value = if block[l] >= limit {
                    block[l]
                } else {
                    f32::INFINITY
                };
                least[l] = if value < least[l] { value } else { least[l] };
            }
        }
        let rest = self.rest.iter().copied().filter(|&value| value >= limit);
        least.into_iter().chain(rest).fold(f32::INFINITY, f32::min)
    }
}

impl<'a> Portable<'a> {
    #[inline(always)]
    fn new(values: &'a [f32]) -> Self {
        let (blocks, rest) = values.as_chunks();
        Self { blocks, rest }
    }
}

#[inline(always)]
pub(crate) fn kth_largest(values: &[f32], k: usize) -> f32 {
    select(&Portable::new(values), k)
}

pub(crate) fn extremes(values: &[f32]) -> [f32; 2] {
    Portable::new(values).ends()
}

pub(crate) fn least_at(values: &[f32], limit: f32) -> f32 {
    Portable::new(values).least(limit)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn places_are_those_of_a_filter(
            values in vec(prop_oneof![-2.0f32..2.0, Just(1.0), Just(-0.0), Just(f32::NEG_INFINITY), Just(f32::INFINITY)], 0..100),
            start in prop_oneof![-2.0f32..2.0, Just(f32::NEG_INFINITY), Just(0.0), Just(1.0)],
            end in prop_oneof![-2.0f32..2.0, Just(f32::INFINITY), Just(1.0)],
        ) {
            let within = |place: &u32| (start..end).contains(&values[*place as usize]);
            let expected: Vec<u32> = (0..values.len() as u32).filter(within).collect();
            for kernel in Kernel::available() {
                let mut places = vec![7; values.len()];
                let count = kernel.places_within(&values, start..end, &mut places);
                prop_assert_eq!(&places[..count], &expected[..], "{}", kernel.name());
                let (mut places, mut picked) = (vec![7; values.len()], vec![7.0; values.len()]);
                let count = kernel.pick_within(&values, start..end, &mut places, &mut picked);
                prop_assert_eq!(&places[..count], &expected[..], "{}", kernel.name());
                let there = expected.iter().map(|&place| values[place as usize].to_bits());
                prop_assert!(picked[..count].iter().map(|value| value.to_bits()).eq(there));
                let values = &values[..];
                let least = |least: f32| values.iter().copied().filter(|&value| value >= least).fold(f32::INFINITY, f32::min);
                let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                prop_assert_eq!(kernel.extremes(values), [least(f32::NEG_INFINITY), largest]);
                prop_assert_eq!(kernel.least_at(values, start), least(start));
            }
        }
    }

    #[test]
    fn ranks_order_as_values_do() {
        let values = [
            f32::NEG_INFINITY,
            f32::MIN,
            -1.0,
            -f32::MIN_POSITIVE,
            -1e-45,
            -0.0,
            0.0,
            1e-45,
            1.0,
            f32::MAX,
            f32::INFINITY,
        ];
        assert!(values.is_sorted_by_key(|&value| rank(value)));
        for value in values {
            assert_eq!(of_rank(rank(value)).to_bits(), value.to_bits());
        }
    }
}
