//! A TD's split pages made whole again, in the time that CPUs have left.

use mm::private::{Error, Found, Search};
use mm::sync::Mutex;

use super::{Td, host::Host, life::State};
use crate::platform::Platform;

/// Between the end of a search and the next: a guest needs time to accept what it was given, and one that splits its pages
/// all the time costs the host little.
pub const PAUSE_US: u64 = 100_000;

/// The search of one TD. Whoever is at it has the lock; nobody waits for it.
#[derive(Debug, Default)]
pub(super) struct Joining(Mutex<Course>);

#[derive(Debug, Default)]
struct Course {
    search: Search,
    /// When the next search may begin, in microseconds since the host's start.
    due_us: u64,
}

/// A step for a TD that lives, on the calling CPU: at most 64 SEAMCALLs that ask, and those that make one page of 512, with
/// a tracking round, for which its vCPUs leave the guest once. `false` when there is nothing to do now.
pub fn join_step<P: Platform>(host: &Host<'_, P>, td: &Td) -> bool {
    if !matches!(td.state(), State::Runnable | State::Paused) {
        return false;
    }
    let (Some(map), Some(mut course)) = (td.map(), td.joining.0.try_lock()) else {
        return false;
    };
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
        Err(error) => {
            note(td, error);
            true
        }
    }
}

#[cold]
fn note(td: &Td, error: Error) {
    log::warn!("TD {}: a page is still split: {error}", td.config.name);
}
