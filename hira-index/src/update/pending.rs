//! A build that is under way while its segments are being searched.

use std::sync::Arc;

use super::Task;
use super::worker::{self, Job};
use crate::Segment;

/// Segments that are being built into others, and the job that does it. Clones share the job: a fork gets its result, too.
#[derive(Clone)]
pub(crate) struct Pending {
    inputs: Vec<Arc<Segment>>,
    job: Arc<Job>,
}

impl Pending {
    /// Hands the task to the thread that builds.
    pub(crate) fn start(task: Task) -> Self {
        let inputs = task.inputs.clone();
        let job = Arc::new(Job::new(task));
        worker::submit(&job);
        Self { inputs, job }
    }

    /// Whether the job has ended.
    pub(crate) fn is_done(&self) -> bool {
        self.job.is_done()
    }

    /// Where the segments are in `sealed`; `None` if one of them is there no more.
    fn place(&self, sealed: &[Arc<Segment>]) -> Option<std::ops::Range<usize>> {
        let start = self.inputs.first()?.start();
        let first = sealed.partition_point(|segment| segment.start() < start);
        let there = sealed.get(first..first + self.inputs.len())?;
        let same = there
            .iter()
            .zip(&self.inputs)
            .all(|(a, b)| Arc::ptr_eq(a, b));
        same.then_some(first..first + self.inputs.len())
    }

    /// Whether all segments that are being built are still there.
    pub(crate) fn is_of_use(&self, sealed: &[Arc<Segment>]) -> bool {
        self.place(sealed).is_some()
    }

    /// Whether what is built is still of use, and contains the segment at `i` of `sealed`.
    pub(crate) fn covers(&self, sealed: &[Arc<Segment>], i: usize) -> bool {
        self.place(sealed).is_some_and(|place| place.contains(&i))
    }

    /// Whether what is built is still of use, and contains a segment of `sealed` from `first` on.
    pub(crate) fn reaches(&self, sealed: &[Arc<Segment>], first: usize) -> bool {
        self.place(sealed).is_some_and(|place| place.end > first)
    }

    /// Puts what was built in the place of what it was built from, if all of that is still there. Waits for the job if it has not ended.
    pub(crate) fn install(self, sealed: &mut Vec<Arc<Segment>>) {
        if let Some(place) = self.place(sealed) {
            sealed.splice(place, self.job.wait());
        }
    }
}
