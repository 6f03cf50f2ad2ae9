//! The order of the runs: on two threads, the longest first, and never two at a time that take much memory.
//!
//! The result of a run does not depend on when it is done, so neither threads nor order affect the results.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Error, Result};

/// A job, which also identifies its result.
pub trait Job: Copy + Ord + Send {
    /// The result.
    type Output: Send;

    /// Runs the job.
    fn run(&self) -> Result<Self::Output>;

    /// Returns about how long the job takes, in any unit.
    fn effort(&self) -> u64;

    /// Returns true if the job takes so much memory that no other such job may run.
    fn is_large(&self) -> bool;
}

/// Runs all jobs, and those that `then` derives from each result. Stops at the first error.
pub fn run<J: Job>(
    jobs: impl IntoIterator<Item = J>,
    then: impl Fn(&J, &J::Output) -> Vec<J> + Sync,
) -> Result<BTreeMap<J, J::Output>> {
    let queue = Queue {
        state: Mutex::new(State {
            waiting: BTreeSet::new(),
            running: 0,
            done: BTreeMap::new(),
            failed: None,
        }),
        changed: Condvar::new(),
    };
    queue.lock().add(jobs);
    thread::scope(|scope| {
        // The memory of a large job may stay with its thread, so one thread runs all of them.
        for takes_large in [true, false] {
            let (queue, then) = (&queue, &then);
            scope.spawn(move || {
                while let Some((job, _running)) = queue.next(takes_large) {
                    let result = job.run().map(|output| (then(&job, &output), output));
                    let mut state = queue.lock();
                    match result {
                        Ok((more, output)) => {
                            state.add(more);
                            state.done.insert(job, output);
                        }
                        Err(error) => state.failed = state.failed.take().or(Some(error)),
                    }
                }
            });
        }
    });
    let state = queue.state.into_inner().ok();
    let State { done, failed, .. } = state.context("a run has panicked")?;
    failed.map_or(Ok(done), Err)
}

struct State<J: Job> {
    /// Jobs by effort.
    waiting: BTreeSet<(u64, J)>,
    running: u32,
    done: BTreeMap<J, J::Output>,
    failed: Option<Error>,
}

impl<J: Job> State<J> {
    fn add(&mut self, jobs: impl IntoIterator<Item = J>) {
        let jobs = jobs.into_iter().map(|job| (job.effort(), job));
        self.waiting.extend(jobs);
    }
}

struct Queue<J: Job> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

impl<J: Job> Queue<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the longest job that a thread may run, or `None` if there will be none for it.
    fn next(&self, takes_large: bool) -> Option<(J, Running<'_, J>)> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return None;
            }
            let mut longest = state.waiting.iter().rev();
            let found = longest.find(|(_, job)| takes_large || !job.is_large());
            if let Some(found) = found.copied() {
                state.waiting.remove(&found);
                state.running += 1;
                return Some((found.1, Running(self)));
            }
            if state.running == 0 {
                return None;
            }
            // Running jobs may add more.
            let changed = self.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A job that a thread runs, until it is done or has panicked.
struct Running<'q, J: Job>(&'q Queue<J>);

impl<J: Job> Drop for Running<'_, J> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use anyhow::bail;

    use super::*;

    static LARGE: AtomicU32 = AtomicU32::new(0);

    /// Jobs are large from 100 on; 13 fails.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Square(u64);

    impl Job for Square {
        type Output = u64;

        fn run(&self) -> Result<u64> {
            if self.is_large() {
                assert_eq!(LARGE.fetch_add(1, SeqCst), 0, "two large ones at a time");
                thread::yield_now();
                LARGE.fetch_sub(1, SeqCst);
            }
            if self.0 == 13 {
                bail!("13");
            }
            Ok(self.0 * self.0)
        }

        fn effort(&self) -> u64 {
            self.0
        }

        fn is_large(&self) -> bool {
            self.0 >= 100
        }
    }

    #[test]
    fn each_job_is_run_and_what_comes_of_it_but_no_two_large_ones_at_a_time() {
        // Each leads to the job 200 above, once.
        let more = |job: &Square, _: &u64| match job.0 {
            ..200 => vec![Square(job.0 + 200)],
            _ => vec![],
        };
        let jobs = [150, 1, 2, 100, 199, 50].map(Square);
        let done = run(jobs, more).unwrap();
        let later = jobs.map(|job| Square(job.0 + 200));
        let mut all: Vec<_> = jobs.into_iter().chain(later).collect();
        all.sort_unstable();
        assert_eq!(done.keys().copied().collect::<Vec<_>>(), all);
        assert!(done.iter().all(|(job, square)| job.0 * job.0 == *square));
    }

    #[test]
    fn one_that_fails_ends_it() {
        let error = run((0..50).map(Square), |_, _| vec![]).unwrap_err();
        assert_eq!(error.to_string(), "13");
    }
}
