//! Building, starting and pausing TDs.

use alloc::{string::ToString, sync::Arc, vec::Vec};
use core::fmt::Display;

use sync::atomic::Ordering::{Relaxed, SeqCst};

use super::Tds;
use crate::{
    platform::Platform,
    td::{
        Td, build, end,
        error::Error,
        host::GuestEnd,
        life::State,
        plan::{Candidate, plan},
    },
};

impl<P: Platform> Tds<'_, P> {
    /// Builds a TD. It is paused afterwards.
    ///
    /// # Errors
    /// [`Error::State`] if the TD has a life; any other [`Error`], and everything taken for it is given back.
    pub fn create(&self, id: u32) -> Result<Arc<Td>, Error> {
        self.with_module(|| {
            let built = self.build(id);
            if let Some(entry) = self.entry(id) {
                let mut lives = entry.lives.lock();
                match &built {
                    Ok(_) => lives.not_built = None,
                    // The build was not attempted.
                    Err(Error::State(_) | Error::GuestEnded(_) | Error::Busy) => {}
                    // The shutdown matters more than this error.
                    Err(_) if self.is_down() => {}
                    Err(error) => lives.not_built = Some(error.to_string()),
                }
            }
            built
        })
    }

    fn build(&self, id: u32) -> Result<Arc<Td>, Error> {
        let host = &self.host;
        let admission = self.admission.try_lock().ok_or(Error::Busy)?;
        // Looked up here, so that it is not forgotten meanwhile.
        let entry = self.entry(id).ok_or(Error::State(State::Created))?;
        let entry = &*entry;
        self.bury(entry);
        if let Some(td) = &entry.lives.lock().now {
            self.check_guest(td)?;
            return Err(Error::State(td.state()));
        }
        let (config, files) = self.resolve(entry);
        let first = self.next_cpu.load(Relaxed);
        let candidate = Candidate {
            id,
            config: &config,
            files: &files,
            promised: self.promised(),
            first_cpu: first,
        };
        let (td, plan) = plan(host, &candidate)?;
        self.next_cpu
            .store(first.wrapping_add(td.vcpus().count().into()), Relaxed);
        td.advance(host.platform, State::Created, State::Building)
            .map_err(Error::State)?;
        let td = Arc::new(td);
        let _turn = td.turn.try_lock().ok_or(Error::Busy)?;
        {
            let mut lives = entry.lives.lock();
            lives.now = Some(Arc::clone(&td));
            lives.ends_before = entry.ends_wanted.load(SeqCst);
        }
        *entry.shutdown.lock() = None;
        drop(admission);
        match build::build(host, &td, plan) {
            Ok(summary) => {
                td.notes.lock().built = Some(summary);
                Ok(Arc::clone(&td))
            }
            Err(error) => {
                end::unwind(host, &td);
                self.bury(entry);
                Err(error)
            }
        }
    }

    /// Lets a TD run. Builds it first if it has no life.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn start(&self, id: u32) -> Result<(), Error> {
        let td = match self.living(id) {
            Some(td) => td,
            None => self.create(id)?,
        };
        self.run(&td)
    }

    /// Lets a paused TD run.
    ///
    /// # Errors
    /// [`Error::State`], [`Error::Busy`].
    pub fn resume(&self, id: u32) -> Result<(), Error> {
        self.with_module(|| {
            let td = self
                .living(id)
                .ok_or_else(|| Error::State(self.state(id)))?;
            self.run(&td)
        })
    }

    fn run(&self, td: &Arc<Td>) -> Result<(), Error> {
        self.with_module(|| {
            let _turn = td.turn.try_lock().ok_or(Error::Busy)?;
            self.check_guest(td)?;
            td.advance(self.host.platform, State::Paused, State::Runnable)
                .map_err(Error::State)?;
            self.host.runner.start(td);
            Ok(())
        })
    }

    /// Checks that the guest of a live TD can continue.
    pub(super) fn check_guest(&self, td: &Td) -> Result<(), Error> {
        if td.state().is_ending() {
            return Ok(());
        }
        match self.host.runner.guest_end(td) {
            None => Ok(()),
            Some(GuestEnd::Orderly) => Err(Error::Busy),
            Some(GuestEnd::Failed(why)) => Err(Error::GuestEnded(why)),
        }
    }

    /// Pauses a TD. No vCPU is in the guest afterwards.
    ///
    /// # Errors
    /// [`Error::State`], [`Error::Busy`], [`Error::GuestEnded`]; [`Error::Stuck`] if the TD continues to run.
    pub fn pause(&self, id: u32) -> Result<(), Error> {
        self.with_module(|| {
            let td = self
                .living(id)
                .ok_or_else(|| Error::State(self.state(id)))?;
            self.check_guest(&td)?;
            self.stop(&td)
        })
    }

    /// Pauses a TD whose guest has ended for reason `why`, and keeps it for inspection.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn keep_ended(&self, id: u32, why: impl Display) -> Result<(), Error> {
        self.with_module(|| {
            let td = self
                .living(id)
                .ok_or_else(|| Error::State(self.state(id)))?;
            td.note_problem(why);
            self.stop(&td)
        })
    }

    fn stop(&self, td: &Arc<Td>) -> Result<(), Error> {
        let _turn = td.turn.try_lock().ok_or(Error::Busy)?;
        td.advance(self.host.platform, State::Runnable, State::Paused)
            .map_err(Error::State)?;
        let stopped = end::stop_vcpus(&self.host, td).map(drop);
        if stopped.is_err()
            && td
                .advance(self.host.platform, State::Paused, State::Runnable)
                .is_ok()
        {
            self.host.runner.start(td);
        }
        stopped
    }

    /// Starts the TDs that are to start with the host. Returns the outcome for each.
    pub fn autostart(&self) -> Vec<(u32, Result<(), Error>)> {
        self.ids()
            .filter(|id| self.config(*id).is_some_and(|config| config.autostart))
            .map(|id| (id, self.start(id)))
            .collect()
    }
}
