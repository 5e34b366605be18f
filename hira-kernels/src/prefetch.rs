//! A hint that memory will be needed soon.

/// Has the processor fetch the lines of `values` that lie in no cache, without waiting for them. Does nothing where there is no such hint.
///
/// For what is about to be read or written in many places: misses then overlap that would follow one another.
///
/// # Examples
///
/// ```
/// let values = [1.0f32; 100];
/// hira_kernels::prefetch(&values);
/// ```
#[inline]
pub fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    fetch::<{ core::arch::x86_64::_MM_HINT_T0 }, T>(values);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Fetches every cache line of `values` as `HINT` says.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn fetch<const HINT: i32, T>(values: &[T]) {
    let start: *const i8 = values.as_ptr().cast();
    let bytes = match size_of_val(values) {
        0 => 0,
        size => size + start.addr() % 64,
    };
    for offset in (0..bytes).step_by(64) {
        // SAFETY: prefetching has no effect that a program can observe, whatever the address.
        unsafe { core::arch::x86_64::_mm_prefetch::<HINT>(start.wrapping_add(offset)) };
    }
}
