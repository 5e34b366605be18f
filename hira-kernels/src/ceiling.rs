//! What a scan's arithmetic costs by itself.

use crate::{Kernel, Line};

impl Kernel {
    /// Multiplies the bytes of `lines` with two constant words, `rounds` times over, and adds up: the 8-bit dot products of a scan
    /// of one query, without what surrounds them. For benches: a scan divided by this is its share of the arithmetic's ceiling.
    ///
    /// `None` for kernels without 8-bit dot products. Lines beyond a multiple of eight are left out.
    ///
    /// # Numerics
    ///
    /// Sums wrap around; the value says only that the work was done.
    ///
    /// # Complexity
    ///
    /// `128 * lines.len() * rounds` multiply-adds.
    ///
    /// # Examples
    ///
    /// ```
    /// use hira_kernels::{Kernel, Line};
    ///
    /// assert_eq!(Kernel::Scalar.int8_products(&[Line([1; 64]); 8], 1), None);
    /// if let Some(sum) = Kernel::best().int8_products(&[Line([1; 64]); 8], 3) {
    ///     assert_eq!(sum, 3 * 8 * 64 * (1 - 2));
    /// }
    /// ```
    pub fn int8_products(self, lines: &[Line], rounds: usize) -> Option<i32> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512(token) => token.int8_products(lines, rounds),
            _ => {
                let _ = (lines, rounds);
                None
            }
        }
    }
}
