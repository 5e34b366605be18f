//! Pages of large buffers: large ones, and free ones.

/// Below as many bytes a buffer holds no whole large page.
const LEAST: usize = 4 << 20;

/// Asks the system to back the memory of `values`, spare capacity included, by large pages; nothing happens where it has none, or if the buffer
/// is smaller than 4 MiB.
///
/// A hint: it changes no value and no address. Call it after reserving and before filling, since pages are chosen when they are first written.
/// With pages of 4 KiB a core fetches ahead within a page only, and a row out of order needs a page's address from memory first.
///
/// # Examples
///
/// ```
/// let mut values: Vec<f32> = Vec::with_capacity(2 << 20);
/// hira_kernels::prefer_large_pages(&mut values);
/// values.resize(2 << 20, 1.0);
/// assert_eq!(values.iter().sum::<f32>(), (2 << 20) as f32);
/// ```
pub fn prefer_large_pages<T>(values: &mut Vec<T>) {
    let bytes = values.capacity() * size_of::<T>();
    if bytes >= LEAST {
        advise(values.as_mut_ptr().cast(), bytes);
    }
}

#[cfg(target_os = "linux")]
fn advise(start: *mut u8, bytes: usize) {
    // A multiple of every page size, as the call asks for.
    const LARGE: usize = 2 << 20;
    let skipped = start.align_offset(LARGE);
    let whole = bytes.saturating_sub(skipped) / LARGE * LARGE;
    if whole > 0 {
        // SAFETY: the range lies within one allocation, which its owner lent mutably, and the advice leaves its contents as they are. That it
        // may be refused does no harm.
        unsafe { libc::madvise(start.add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_start: *mut u8, _bytes: usize) {}

/// Has the allocator give free pages between others back to the system; nothing happens with an allocator other than glibc's.
///
/// For whoever has just freed much that lay beside what stays: a cache of a million keys that moved three quarters of its rows to disk was 1.27 times its budget and
/// sketch before it called this.
pub fn give_back_free_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: no pointers; it touches free memory only, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_any_size_keep_their_values() {
        for len in [0, 1, LEAST - 1, LEAST, LEAST + 4097, 3 * LEAST] {
            let mut values: Vec<u8> = Vec::with_capacity(len);
            prefer_large_pages(&mut values);
            values.extend((0..len).map(|i| i as u8));
            prefer_large_pages(&mut values);
            assert!(values.iter().enumerate().all(|(i, &v)| v == i as u8));
        }
    }
}
