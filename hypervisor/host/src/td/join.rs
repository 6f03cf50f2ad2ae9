//! Promotes a TD's split pages again while CPUs are idle.

use mm::private::{self, Found, Search};
use sync::{Mutex, MutexGuard};

use super::{Td, error::Error, host::Host, life::State};
use crate::platform::Platform;

/// Pause between two searches. It gives a guest time to accept its memory, and bounds the cost of a guest that splits
/// its pages all the time.
pub const PAUSE_US: u64 = 100_000;

/// The search for split pages of a TD. A CPU holds the lock while it executes a step.
#[derive(Debug, Default)]
pub(super) struct Joining(Mutex<Course>);

/// Excludes search steps while it exists. Removal of memory from a live TD holds it as well.
pub(super) struct Quiet<'a>(
    #[expect(dead_code, reason = "holding the guard is its purpose")] MutexGuard<'a, Course>,
);

impl Joining {
    /// Waits for the current step, for at most the time that a CPU has to release a vCPU.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn quiet<P: Platform>(&self, host: &Host<'_, P>) -> Result<Quiet<'_>, Error> {
        let start = host.platform.now_us();
        loop {
            match self.0.try_lock() {
                Some(course) => return Ok(Quiet(course)),
                None if host.platform.now_us() - start < host.stop_us => host.platform.relax(),
                None => return Err(Error::Busy),
            }
        }
    }
}

#[derive(Debug, Default)]
struct Course {
    search: Search,
    /// Earliest start of the next search, in microseconds since the host's start.
    due_us: u64,
}

/// Executes a step for a live TD on the calling CPU: at most 64 SEAMCALLs that search, and those that merge 512 pages
/// into one, with a tracking round for which its vCPUs leave the guest once. Returns `false` if there is nothing to do
/// now.
pub fn join_step<P: Platform>(host: &Host<'_, P>, td: &Td) -> bool {
    let (Some(map), Some(mut course)) = (td.map(), td.joining.0.try_lock()) else {
        return false;
    };
    // A termination changes the state before it waits for quiet.
    if !matches!(td.state(), State::Runnable | State::Paused) {
        return false;
    }
    if !course.search.has_begun() && (!map.is_joinable() || host.platform.now_us() < course.due_us)
    {
        return false;
    }
    let kick = td.kick(host.platform);
    match host.with_cpu(|cpu| map.search(cpu, &mut course.search, &kick)) {
        Ok(Found::More | Found::Whole) => true,
        Ok(Found::Nothing) => {
            course.due_us = host.platform.now_us() + PAUSE_US;
            false
        }
        Err(_) if host.is_down() => false,
        Err(error) => {
            note(td, error);
            true
        }
    }
}

#[cold]
fn note(td: &Td, error: private::Error) {
    log::warn!("TD {}: a page is still split: {error}", td.config.name);
}
