//! Terminating TDs, and building them again.

use alloc::sync::Arc;
use sync::atomic::Ordering::{Relaxed, SeqCst};

use super::Tds;
use crate::{
    platform::Platform,
    td::{
        Td,
        end::{self, Ended, Termination, Way},
        error::Error,
        life::State,
    },
};

impl<P: Platform> Tds<'_, P> {
    /// Terminates a TD: releases the HKID at once, and leaves the memory to CPUs that have time.
    ///
    /// # Errors
    /// As [`end::terminate`].
    pub fn terminate(&self, id: u32) -> Result<Ended, Error> {
        self.want_end(id);
        self.with_module(|| match self.living(id) {
            Some(td) => end::terminate(&self.host, &td, Way::Terminate),
            None => Ok(Ended::Already(self.state(id))),
        })
    }

    /// Requests the termination of a TD, which the next CPU in [`Self::end_asked`] carries out. None of its vCPUs is
    /// entered from now on. It does not wait, so the caller may be one of its vCPUs.
    ///
    /// # Errors
    /// The state of a TD that is not alive, or whose termination was requested before.
    pub fn ask_end(&self, id: u32) -> Result<(), State> {
        self.ask_end_for(id, 0)
    }

    /// As [`Self::ask_end`], for the TD of number `by`.
    ///
    /// # Errors
    /// As [`Self::ask_end`].
    pub fn ask_end_for(&self, id: u32, by: u32) -> Result<(), State> {
        self.want_end(id);
        let td = self.get(id).ok_or_else(|| self.state(id))?;
        end::ask(&td, by)?;
        self.is_end_asked.store(true, SeqCst);
        self.host.runner.work_waits();
        Ok(())
    }

    /// Carries out the terminations requested by [`Self::ask_end`]. Returns `false` if there were none. That check is
    /// cheap, because busy CPUs make it too, between two vCPUs and without holding one.
    pub fn end_asked(&self) -> bool {
        if !self.is_end_asked.load(Relaxed)
            || self.is_down()
            || !self.is_end_asked.swap(false, SeqCst)
        {
            return false;
        }
        let asked = self.ids().filter_map(|id| self.get(id));
        for td in asked {
            match end::carry_out(&self.host, &td) {
                None => {}
                Some(Ok(())) => {
                    log::info!("TD {}: terminated at the request of a TD", td.config.name);
                }
                Some(Err(error)) => {
                    log::error!(
                        "TD {}: termination at the request of a TD failed: {error}",
                        td.config.name
                    );
                }
            }
        }
        true
    }

    /// Terminates a TD and reclaims all of its memory.
    ///
    /// # Errors
    /// As [`end::terminate`] and [`end::reclaim`].
    pub fn destroy(&self, id: u32, way: Way) -> Result<Ended, Error> {
        self.want_end(id);
        self.take_down(id, way)
    }

    fn take_down(&self, id: u32, way: Way) -> Result<Ended, Error> {
        self.with_module(|| {
            let Some(td) = self.living(id) else {
                return Ok(Ended::Already(self.state(id)));
            };
            let ended = end::terminate(&self.host, &td, way)?;
            if td.state() == State::Terminating {
                return Ok(ended);
            }
            let reclaimed = end::reclaim(&self.host, &td);
            self.bury_id(id);
            let whole = reclaimed.map_err(|error| match error {
                // The termination was another request's, which has failed meanwhile: the TD lives on.
                Error::State(_) => Error::Busy,
                error => error,
            })?;
            Ok(match ended {
                Ended::Already(State::Reclaimed) => ended,
                // This request has waited for the end, even if another one began it.
                Ended::Now(_) | Ended::Already(_) => Ended::Now(whole),
            })
        })
    }

    /// Completes a termination that got stuck, up to the last page. Returns the record of the whole termination.
    ///
    /// # Errors
    /// As [`end::retry`] and [`end::reclaim`].
    pub fn retry(&self, id: u32) -> Result<Termination, Error> {
        self.with_module(|| {
            let td = self
                .living(id)
                .ok_or_else(|| Error::State(self.state(id)))?;
            end::retry(&self.host, &td)?;
            let reclaimed = end::reclaim(&self.host, &td);
            self.bury_id(id);
            reclaimed
        })
    }

    /// Terminates a TD and rebuilds it. It then runs if it did before, or if its guest has ended meanwhile.
    ///
    /// # Errors
    /// As [`Self::destroy`] and [`Self::start`].
    pub fn reset(&self, id: u32) -> Result<(), Error> {
        let guest_end = |td: Arc<Td>| self.host.runner.guest_end(&td);
        let ran = self.state(id) == State::Runnable || self.get(id).and_then(guest_end).is_some();
        self.take_down(id, Way::Terminate)?;
        if ran {
            self.start(id)
        } else {
            self.create(id).map(drop)
        }
    }

    /// Terminates a TD and rebuilds it at its guest's request, unless its end has been requested in this life or is
    /// meanwhile.
    ///
    /// # Errors
    /// As [`Self::reset`].
    pub fn begin_anew(&self, id: u32) -> Result<(), Error> {
        let wanted = self
            .entry(id)
            .map_or(0, |entry| entry.lives.lock().ends_before);
        self.take_down(id, Way::Terminate)?;
        if self.ends_wanted(id) != wanted {
            return Ok(());
        }
        self.start(id)?;
        if self.ends_wanted(id) != wanted {
            // The request may have come when there was nothing to terminate.
            self.take_down(id, Way::Terminate)?;
        }
        Ok(())
    }

    fn want_end(&self, id: u32) {
        if let Some(entry) = self.entry(id) {
            entry.ends_wanted.fetch_add(1, SeqCst);
        }
    }

    fn ends_wanted(&self, id: u32) -> u64 {
        self.entry(id)
            .map_or(0, |entry| entry.ends_wanted.load(SeqCst))
    }

    /// Executes a step of writing off the TDs of a module that has shut down. Returns `false` if nothing is left to do
    /// now.
    pub(super) fn write_off(&self) -> bool {
        self.any(|entry, td| {
            let did = end::write_off(&self.host, td);
            self.bury(entry);
            did
        })
    }
}
