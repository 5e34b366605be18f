//! Threads that share the work of one call, with the calling thread first among them.
//!
//! A decode step takes 100 microseconds, and waking a thread takes as long on a shared machine. A [`Team`] therefore never waits for its
//! helpers: the calling thread starts at once on everything that there is to do, and a helper takes what is left from the moment at which
//! it comes. Work may be shared from within shared work, by whichever thread does it: the whole heads of a step first, then the queries of
//! the heads that are still under way. A thread whose own work is done takes part in what the others have shared since, until they are done too.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The calling thread, and those that [`Helper::help`] it during a call.
///
/// # Examples
///
/// ```
/// use hira_kernels::Team;
///
/// let mut squares = [0; 100];
/// let mut team = Team::new();
/// let spawn = |helper: hira_kernels::Helper| {
///     std::thread::spawn(|| helper.help());
/// };
/// team.call(1, spawn, |team| {
///     team.for_each(squares.iter_mut().enumerate(), |(i, square)| *square = i * i);
/// });
/// assert_eq!(squares[9], 81);
/// ```
#[derive(Debug, Default)]
pub struct Team {
    /// `None` while there is no helper.
    shared: Option<Arc<Shared>>,
    /// Whether a call is going on that has helpers.
    helped: bool,
}

/// A promise of help in one call of a [`Team`]. It may come late, or never: no one waits for it.
#[derive(Debug)]
pub struct Helper {
    shared: Arc<Shared>,
    call: usize,
}

#[derive(Debug, Default)]
struct Shared {
    /// Number of the call that is going on; a helper of another one has come too late.
    call: AtomicUsize,
    /// Length of `jobs`, for idle helpers to look at.
    open: AtomicUsize,
    /// Work that is being shared, in the order in which it was begun.
    jobs: Mutex<Vec<JobRef>>,
    /// Jobs listed so far.
    begun: AtomicUsize,
}

/// Work that lies on the stack of the thread that shares it.
struct Job<'a> {
    work: &'a (dyn Fn() + Sync),
    /// Helpers that are at it. Raised only under the lock of `jobs`, while the job is listed.
    inside: AtomicUsize,
    /// Whether nothing is left to be taken.
    exhausted: AtomicBool,
    /// Among those of the team, in the order in which they were begun.
    number: usize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A listed [`Job`], whose lifetimes were forgotten: it is alive while it is listed, or a helper is inside.
#[derive(Debug, Clone, Copy)]
struct JobRef(NonNull<Job<'static>>);

// SAFETY: a job consists of a reference to a function that is `Sync`, atomics and a mutex: all of them are shared between threads as they
// are. `Team::share` sees to it that it outlives its use.
unsafe impl Send for JobRef {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes here hold is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Team {
    /// A team without helpers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `call` with up to `helpers` others, each of which `spawn` should bring to some thread to [`Helper::help`].
    ///
    /// Returns when `call` does. Nothing is allocated here after the first call that had helpers.
    pub fn call<R>(
        &mut self,
        helpers: usize,
        spawn: impl Fn(Helper),
        call: impl FnOnce(&Self) -> R,
    ) -> R {
        if helpers == 0 {
            return call(self);
        }
        let shared = Arc::clone(self.shared.get_or_insert_default());
        let number = shared.call.load(Ordering::Relaxed);
        self.helped = true;
        let ending = Ending(self);
        for _ in 0..helpers {
            spawn(Helper {
                shared: Arc::clone(&shared),
                call: number,
            });
        }
        call(ending.0)
    }

    /// Whether others may help at present.
    pub fn is_helped(&self) -> bool {
        self.helped
    }

    /// Calls `each` with every item; the threads of the team take them one by one, in order.
    ///
    /// Items are best of some microseconds each: taking one is a lock. `each` may share work in turn.
    ///
    /// # Panics
    ///
    /// If `each` does, on whatever thread, once all items that were taken are done.
    pub fn for_each<I>(&self, items: I, each: impl Fn(I::Item) + Sync)
    where
        I: Iterator + Send,
    {
        if !self.helped {
            items.for_each(each);
            return;
        }
        let items = Mutex::new(items.fuse());
        self.share(&|| {
            loop {
                // The lock is not held while the item is worked on.
                let Some(item) = lock(&items).next() else {
                    return;
                };
                each(item);
            }
        });
    }

    /// Runs `work` on this thread, and at the same time on every helper that is free, until one of them has returned from it; returns
    /// when all have.
    fn share(&self, work: &(dyn Fn() + Sync)) {
        let Some(shared) = &self.shared else {
            work();
            return;
        };
        let job = Job {
            work,
            inside: AtomicUsize::new(0),
            exhausted: AtomicBool::new(false),
            number: shared.begun.fetch_add(1, Ordering::Relaxed),
            panic: Mutex::new(None),
        };
        let listed = Listed::new(shared, &job);
        work();
        drop(listed);
        if let Some(panic) = lock(&job.panic).take() {
            resume_unwind(panic);
        }
    }
}

/// Ends a call when it is dropped: helpers leave, and those that come later turn back.
struct Ending<'a>(&'a mut Team);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.helped = false;
        if let Some(shared) = &self.0.shared {
            shared.call.fetch_add(1, Ordering::Release);
        }
    }
}

/// A job in the list. Dropping it takes it out and waits until no helper is inside, taking part in what helpers have shared meanwhile.
struct Listed<'a> {
    shared: &'a Shared,
    job: &'a Job<'a>,
}

impl<'a> Listed<'a> {
    fn new(shared: &'a Shared, job: &'a Job<'a>) -> Self {
        let listed = Self { shared, job };
        let mut jobs = lock(&shared.jobs);
        jobs.push(listed.reference());
        shared.open.store(jobs.len(), Ordering::Release);
        drop(jobs);
        listed
    }

    fn reference(&self) -> JobRef {
        JobRef(NonNull::from(self.job).cast())
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut jobs = lock(&self.shared.jobs);
        let own = self.reference().0;
        jobs.retain(|job| job.0 != own);
        self.shared.open.store(jobs.len(), Ordering::Release);
        drop(jobs);
        // From here on no helper can enter. `Acquire` pairs with the `Release` of a helper that leaves: what it wrote is seen.
        let mut rounds = 0;
        while self.job.inside.load(Ordering::Acquire) > 0 {
            // Only what was begun later: what a helper inside shares is, and older work could take long while this is done. Not in an unwinding.
            let helps = !std::thread::panicking() && self.shared.help_once(self.job.number + 1);
            if !helps {
                pause(&mut rounds);
            }
        }
    }
}

/// Waits for a moment, and lets other threads run if it has been long.
fn pause(rounds: &mut u32) {
    *rounds = rounds.saturating_add(1);
    if rounds.is_multiple_of(256) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

impl Helper {
    /// Takes part in the call that this was made for, until that ends; returns at once if it has.
    ///
    /// It waits busily for work: a call is short, and the next piece is needed at once.
    pub fn help(self) {
        let mut rounds = 0;
        while self.shared.call.load(Ordering::Acquire) == self.call {
            if !self.shared.help_once(0) {
                pause(&mut rounds);
            }
        }
    }
}

impl Shared {
    /// Takes part in the first job that has something left, of those from number `first` on; whether there was one.
    fn help_once(&self, first: usize) -> bool {
        if self.open.load(Ordering::Acquire) == 0 {
            return false;
        }
        let jobs = lock(&self.jobs);
        let found = jobs.iter().find(|job| {
            // SAFETY: the job is listed, and the lock that is held keeps it so: it is alive.
            let job = unsafe { job.0.as_ref() };
            job.number >= first && !job.exhausted.load(Ordering::Relaxed)
        });
        let Some(&JobRef(job)) = found else {
            return false;
        };
        // SAFETY: the job is listed, and the lock that is held keeps it so. From the increment on it stays alive until the decrement below,
        // whose `Release` is the last use: the thread that owns it waits for that before its stack frame ends (`Listed::drop`, which
        // runs in an unwinding too).
        let job = unsafe { job.as_ref() };
        job.inside.fetch_add(1, Ordering::Relaxed);
        drop(jobs);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(job.work)) {
            lock(&job.panic).get_or_insert(panic);
        }
        job.exhausted.store(true, Ordering::Relaxed);
        job.inside.fetch_sub(1, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn(helper: Helper) {
        std::thread::spawn(|| helper.help());
    }

    #[test]
    fn every_item_is_worked_on_once_whoever_helps() {
        let mut team = Team::new();
        for helpers in [0, 1, 3] {
            for round in 0..200 {
                let mut seen = vec![0; round];
                team.call(helpers, spawn, |team| {
                    assert_eq!(team.is_helped(), helpers > 0);
                    team.for_each(seen.iter_mut(), |seen| *seen += 1);
                });
                assert!(seen.iter().all(|&seen| seen == 1));
                assert!(!team.is_helped());
            }
        }
    }

    #[test]
    fn work_is_shared_from_within_shared_work() {
        let mut team = Team::new();
        for _ in 0..300 {
            let mut rows = vec![vec![0_u64; 20]; 7];
            let total = AtomicUsize::new(0);
            team.call(3, spawn, |team| {
                team.for_each(rows.iter_mut().enumerate(), |(i, row)| {
                    team.for_each(row.iter_mut().enumerate(), |(j, cell)| {
                        *cell = (100 * i + j) as u64;
                        total.fetch_add(1, Ordering::Relaxed);
                    });
                    // What the helpers wrote is there when the sharing is over.
                    let sum: u64 = row.iter().sum();
                    assert_eq!(sum, (20 * 100 * i + 190) as u64);
                });
            });
            assert_eq!(total.into_inner(), 140);
        }
    }

    #[test]
    fn another_thread_takes_what_is_left() {
        let mut team = Team::new();
        let (main, met) = (std::thread::current().id(), AtomicBool::new(false));
        team.call(1, spawn, |team| {
            team.for_each(0..2, |_| {
                // Both items at once, or this would never end.
                if std::thread::current().id() == main {
                    while !met.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                } else {
                    met.store(true, Ordering::Release);
                }
            });
        });
        assert!(met.into_inner());
    }

    #[test]
    fn whoever_is_done_helps_those_who_are_not() {
        let mut team = Team::new();
        let main = std::thread::current().id();
        let (taken, met) = (AtomicBool::new(false), AtomicBool::new(false));
        let wait = |flag: &AtomicBool| {
            while !flag.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        };
        team.call(1, spawn, |team| {
            team.for_each(0..2, |_| {
                if std::thread::current().id() == main {
                    // Done as soon as the other thread has an item.
                    wait(&taken);
                    return;
                }
                taken.store(true, Ordering::Release);
                // Two items of the helper's own: the second is for the first thread, or this would never end.
                team.for_each(0..2, |_| {
                    if std::thread::current().id() == main {
                        met.store(true, Ordering::Release);
                    } else {
                        wait(&met);
                    }
                });
            });
        });
        assert!(met.into_inner());
    }

    #[test]
    fn a_late_helper_turns_back() {
        let late = Mutex::new(None);
        let mut team = Team::new();
        team.call(1, |helper| *lock(&late) = Some(helper), |_| ());
        let late = lock(&late).take().expect("it was spawned");
        late.help();
        // Nor does it take part in another call.
        let count = AtomicUsize::new(0);
        team.call(1, spawn, |team| {
            team.for_each(0..10, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 10);
    }

    #[test]
    fn a_panic_reaches_the_caller_after_the_others_are_done() {
        for culprit in 0..20 {
            let mut team = Team::new();
            let done = AtomicUsize::new(0);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.call(2, spawn, |team| {
                    team.for_each(0..20, |i| {
                        assert!(i != culprit, "item {i}");
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                });
            }));
            let panic = caught.expect_err("one item panics");
            let message = panic.downcast_ref::<String>().map(String::as_str);
            assert_eq!(message, Some(format!("item {culprit}").as_str()));
            assert!(!team.is_helped());
            // The team is as good as new.
            let sum = AtomicUsize::new(0);
            team.call(2, spawn, |team| {
                team.for_each(0..5, |i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
            });
            assert_eq!(sum.into_inner(), 10);
        }
    }
}
