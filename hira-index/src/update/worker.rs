//! The thread that builds, and the jobs that it is handed.
//!
//! One thread serves the whole process: it is started with the first job and lives as long as the process. Whoever waits for a job
//! that has not been begun takes it and runs it: waiting can therefore not deadlock, in whatever pool of threads it happens, and
//! without a thread (if the system refuses one) everything is built by those who wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;

use super::Task;
use crate::Segment;

/// A task on its way.
pub(super) struct Job {
    state: Mutex<State>,
    ended: Condvar,
}

enum State {
    Queued(Task),
    Running,
    Done(Vec<Arc<Segment>>),
    /// The task panicked, which is a defect of this crate: it is passed on to whoever waits.
    Panicked,
}

impl Job {
    pub(super) fn new(task: Task) -> Self {
        Self {
            state: Mutex::new(State::Queued(task)),
            ended: Condvar::new(),
        }
    }

    /// Tasks run without the lock, so a panic leaves a state that is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(*self.lock(), State::Done(_) | State::Panicked)
    }

    /// Runs the task, unless somebody has taken it.
    fn run(&self) {
        let task = {
            let mut state = self.lock();
            match std::mem::replace(&mut *state, State::Running) {
                State::Queued(task) => task,
                other => {
                    *state = other;
                    return;
                }
            }
        };
        let built = catch_unwind(AssertUnwindSafe(|| task.run()));
        *self.lock() = built.map_or(State::Panicked, State::Done);
        self.ended.notify_all();
    }

    /// What was built. Runs the task if it has not been begun.
    ///
    /// # Panics
    ///
    /// If the task did. A builder's own panic does not get here: it becomes the segment's `build_error`.
    pub(super) fn wait(&self) -> Vec<Arc<Segment>> {
        self.run();
        let mut state = self.lock();
        loop {
            match &*state {
                State::Done(segments) => return segments.clone(),
                State::Panicked => panic!("building a segment panicked on another thread"),
                State::Queued(_) | State::Running => {
                    let woken = self.ended.wait(state);
                    state = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// Hands a job to the thread. If nobody holds the job any more when its turn comes, it is not run.
pub(super) fn submit(job: &Arc<Job>) {
    static QUEUE: OnceLock<Option<Sender<Weak<Job>>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (sender, receiver) = channel::<Weak<Job>>();
        let serve = move || {
            for job in receiver {
                if let Some(job) = job.upgrade() {
                    job.run();
                }
            }
        };
        let thread = thread::Builder::new()
            .name("hira-build".into())
            .spawn(serve);
        thread.is_ok().then_some(sender)
    });
    if let Some(queue) = queue {
        // The receiver lives as long as the process.
        let _sent = queue.send(Arc::downgrade(job));
    }
}
