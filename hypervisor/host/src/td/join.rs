//! A TD's split pages made whole again, in the time that CPUs have left.

use mm::private::{self, Found, Search};
use sync::{Mutex, MutexGuard};

use super::{Td, error::Error, host::Host, life::State};
use crate::platform::Platform;

/// Between the end of a search and the next: a guest needs time to accept what it was given, and one that splits its pages
/// all the time costs the host little.
pub const PAUSE_US: u64 = 100_000;

/// The search of one TD. Whoever is at a step has the lock.
#[derive(Debug, Default)]
pub(super) struct Joining(Mutex<Course>);

/// While there is one, no step is made. Who takes memory from a TD that lives has it, too.
pub(super) struct Quiet<'a>(#[expect(dead_code, reason = "it is had")] MutexGuard<'a, Course>);

impl Joining {
    /// Waits for the step that is being made, for as long as a CPU has to let go of a vCPU.
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
    /// When the next search may begin, in microseconds since the host's start.
    due_us: u64,
}

/// A step for a TD that lives, on the calling CPU: at most 64 SEAMCALLs that ask, and those that make one page of 512, with
/// a tracking round, for which its vCPUs leave the guest once. `false` when there is nothing to do now.
pub fn join_step<P: Platform>(host: &Host<'_, P>, td: &Td) -> bool {
    let (Some(map), Some(mut course)) = (td.map(), td.joining.0.try_lock()) else {
        return false;
    };
    // Whoever ends it has changed the state before it asks for quiet.
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
