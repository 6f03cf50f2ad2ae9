//! Asking a guest to shut down: its power button is pressed, and it has some time to follow.

use sync::atomic::Ordering::{Relaxed, SeqCst};

use super::{Entry, Tds};
use crate::{
    platform::Platform,
    td::{error::Error, host::Listens, life::State},
};

/// A request to a guest to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shutdown {
    limit_s: u32,
    /// The end of the time that the guest has, in microseconds; `None` once it has passed.
    until_us: Option<u64>,
    force: bool,
}

/// A guest that was asked to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It has some time left.
    Waiting {
        /// Seconds that are left.
        left_s: u64,
        /// True if the TD is terminated when the time is over.
        force: bool,
    },
    /// It has not followed in time.
    Overdue {
        /// Seconds that it had.
        limit_s: u32,
    },
}

impl<P: Platform> Tds<'_, P> {
    /// Presses the power button of a TD's guest. If the guest has not powered off after `limit_s` seconds, nothing more
    /// happens, or with `force` the TD is terminated.
    ///
    /// # Errors
    /// [`Error::State`] if the TD does not run; [`Error::GuestEnded`], [`Error::Busy`].
    pub fn shut_down(&self, id: u32, limit_s: u32, force: bool) -> Result<Listens, Error> {
        self.with_module(|| {
            let td = self.living(id);
            let td = td.filter(|td| td.state() == State::Runnable);
            let td = td.ok_or_else(|| Error::State(self.state(id)))?;
            self.check_guest(&td)?;
            let entry = self.entry(id).ok_or(Error::State(State::Created))?;
            let until_us = self.host.platform.now_us() + u64::from(limit_s) * 1_000_000;
            *entry.shutdown.lock() = Some(Shutdown {
                limit_s,
                until_us: Some(until_us),
                force,
            });
            self.next_deadline.fetch_min(until_us, SeqCst);
            Ok(self.host.runner.press_power_button(&td))
        })
    }

    /// Returns the request to the TD's guest to shut down, if there is one.
    #[must_use]
    pub fn asked_to_shut_down(&self, id: u32) -> Option<Asked> {
        let entry = self.entry(id)?;
        if self.state(id) != State::Runnable {
            return None;
        }
        let Shutdown {
            limit_s,
            until_us,
            force,
        } = (*entry.shutdown.lock())?;
        let now = self.host.platform.now_us();
        Some(match until_us {
            Some(until) => Asked::Waiting {
                left_s: until.saturating_sub(now).div_ceil(1_000_000),
                force,
            },
            None => Asked::Overdue { limit_s },
        })
    }

    /// Returns whether the time of a guest that was asked to shut down is over, so that [`Self::end_overdue`] has to be
    /// called.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        let next = self.next_deadline.load(Relaxed);
        next != u64::MAX && self.host.platform.now_us() >= next
    }

    /// Deals with guests that did not shut down in time. Returns `false` if there are none. That check is cheap, because
    /// busy CPUs make it too.
    pub fn end_overdue(&self) -> bool {
        if !self.is_overdue() {
            return false;
        }
        self.next_deadline.store(u64::MAX, SeqCst);
        let now = self.host.platform.now_us();
        for entry in self.entries() {
            let request = *entry.shutdown.lock();
            match request.and_then(|request| request.until_us) {
                None => {}
                Some(until) if until > now => {
                    self.next_deadline.fetch_min(until, SeqCst);
                }
                Some(_) => self.follow_up(&entry),
            }
        }
        true
    }

    fn follow_up(&self, entry: &Entry<'_>) {
        let Some(request) = entry.shutdown.lock().as_mut().map(|request| {
            request.until_us = None;
            *request
        }) else {
            return;
        };
        if self.state(entry.id) != State::Runnable {
            return;
        }
        let name = &entry.config().name;
        let limit = request.limit_s;
        if !request.force {
            log::warn!("TD {name}: its guest did not shut down within {limit} s, and runs on");
            return;
        }
        log::warn!("TD {name}: its guest did not shut down within {limit} s; it is terminated");
        // A TD that ends already needs no request.
        let _ = self.ask_end(entry.id);
    }
}
