//! Buffers that tasks borrow and give back.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers that no task uses at the moment: as many as tasks ran at one time.
///
/// The one given back last is lent first, so that the tasks which one thread does one after the other work in the same memory: it is still in
/// that thread's caches, which a buffer of each task's own would have left since the last decode step.
///
/// # Examples
///
/// ```
/// use hira_kernels::Spares;
///
/// let spares = Spares::<Vec<u32>>::default();
/// let sum: u32 = spares.lend(|buffer| {
///     buffer.clear();
///     buffer.extend(0..10);
///     buffer.iter().sum()
/// });
/// assert_eq!((sum, spares.sum_of(Vec::len)), (45, 10));
/// ```
pub struct Spares<T>(Mutex<Vec<Box<T>>>);

impl<T: Default> Spares<T> {
    /// Runs `task` with one that no other task uses, as its last user left it, or with a new one.
    ///
    /// If `task` panics its buffer is dropped.
    pub fn lend<R>(&self, task: impl FnOnce(&mut T) -> R) -> R {
        let spare = self.spares().pop();
        let mut taken = spare.unwrap_or_default();
        let result = task(&mut taken);
        self.spares().push(taken);
        result
    }
}

impl<T> Spares<T> {
    /// The sum of what `count` says of each that is not lent.
    pub fn sum_of(&self, count: impl Fn(&T) -> usize) -> usize {
        self.spares().iter().map(|spare| count(spare)).sum()
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Box<T>>> {
        // The list is whole at any time, and its buffers hold no state between uses.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> fmt::Debug for Spares<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spares").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_given_back_is_lent_first_and_never_twice_at_a_time() {
        let spares = Spares::<Vec<u32>>::default();
        spares.lend(|outer| {
            outer.push(1);
            spares.lend(|inner| {
                assert!(inner.is_empty());
                inner.push(2);
            });
            spares.lend(|inner| assert_eq!(inner[..], [2]));
        });
        spares.lend(|buffer| assert_eq!(buffer[..], [1]));
        assert_eq!(spares.sum_of(Vec::len), 2);
    }

    #[test]
    fn a_panic_takes_its_buffer_with_it() {
        let spares = Spares::<Vec<u32>>::default();
        spares.lend(|buffer| buffer.push(1));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            spares.lend(|_| panic!("as asked"));
        }));
        assert!(panic.is_err());
        assert_eq!(spares.sum_of(Vec::len), 0);
        spares.lend(|buffer| assert!(buffer.is_empty()));
    }
}
