//! The registry of all TDs that the configuration names, and the operations on them.

use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::fmt;
use sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use mm::private::Outcome;
use sync::Mutex;

use super::{
    Frames, Notes, Td, build,
    end::{self, Ended, Termination, Way},
    error::Error,
    files::Files,
    host::{GuestEnd, Host},
    join::join_step,
    life::State,
    memory::Layout,
    plan::plan,
};
use crate::platform::Platform;

/// All TDs of a host.
pub struct Tds<'h, P> {
    host: Host<'h, P>,
    entries: Box<[Entry<'h>]>,
    /// Serialises admission.
    admission: Mutex<()>,
    /// Index among the CPUs at which the next vCPU begins.
    next_cpu: AtomicUsize,
    /// Set when a guest has requested a termination that no CPU has looked for yet.
    is_end_asked: AtomicBool,
}

/// A TD that the configuration names.
struct Entry<'h> {
    config: Arc<config::Td>,
    files: Files<'h>,
    lives: Mutex<Lives>,
    /// Number of requests to end the TD. A guest's request for a reset does not override them.
    ends_wanted: AtomicU64,
}

/// The lives of a TD.
#[derive(Default)]
struct Lives {
    /// The current life.
    now: Option<Arc<Td>>,
    /// The notes of the last life, if there was one.
    last: Option<Notes>,
    /// Why the last attempt to build the TD failed.
    not_built: Option<String>,
    /// [`Entry::ends_wanted`] when the current life began. Any further requests are meant for this life.
    ends_before: u64,
}

impl<'h, P: Platform> Tds<'h, P> {
    /// Creates the TDs that the configuration names, each with those of its files that were loaded. Numbers start at 1.
    #[must_use]
    pub fn new(host: Host<'h, P>, named: Vec<(config::Td, impl Into<Files<'h>>)>) -> Self {
        let entries = named.into_iter().map(|(config, files)| Entry {
            config: Arc::new(config),
            files: files.into(),
            lives: Mutex::new(Lives::default()),
            ends_wanted: AtomicU64::new(0),
        });
        Self {
            host,
            entries: entries.collect(),
            admission: Mutex::new(()),
            next_cpu: AtomicUsize::new(0),
            is_end_asked: AtomicBool::new(false),
        }
    }

    /// Returns the environment of the TDs.
    pub const fn host(&self) -> &Host<'h, P> {
        &self.host
    }

    /// Returns the TDs' numbers.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        1..=self.entries.len() as u32
    }

    /// Returns the number of the TD with this name or number.
    #[must_use]
    pub fn find(&self, word: &str) -> Option<u32> {
        self.ids().find(|id| match word.parse::<u32>() {
            Ok(number) => number == *id,
            Err(_) => self.config(*id).is_some_and(|config| config.name == word),
        })
    }

    /// Returns a TD's configuration.
    #[must_use]
    pub fn config(&self, id: u32) -> Option<&config::Td> {
        Some(&self.entry(id)?.config)
    }

    /// Returns the image that a TD is built from, if it was loaded.
    #[must_use]
    pub fn image(&self, id: u32) -> Option<&'h [u8]> {
        self.entry(id)?.files.image
    }

    /// Returns the TD's current life, if it has one.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<Arc<Td>> {
        let entry = self.entry(id)?;
        entry.lives.lock().now.clone()
    }

    /// Returns the state of a TD.
    #[must_use]
    pub fn state(&self, id: u32) -> State {
        let Some(entry) = self.entry(id) else {
            return State::Created;
        };
        let lives = entry.lives.lock();
        match (&lives.now, &lives.last) {
            (Some(td), _) => td.state(),
            (None, Some(_)) => State::Reclaimed,
            (None, None) => State::Created,
        }
    }

    /// Returns the notes of a TD's current life, or of the last one.
    #[must_use]
    pub fn notes(&self, id: u32) -> Option<Notes> {
        let lives = self.entry(id)?.lives.lock();
        let now = lives.now.as_ref().map(|td| td.notes());
        let notes = now.or_else(|| lives.last.clone());
        let Some(not_built) = &lives.not_built else {
            return notes;
        };
        let mut notes = notes.unwrap_or_default();
        notes.problem = Some(match notes.problem {
            Some(problem) => format!("{not_built}; {problem}"),
            None => not_built.clone(),
        });
        Some(notes)
    }

    /// Returns whether the TDX module has shut down.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.host.is_down()
    }

    /// Runs `work`, which requires a working TDX module. If the module has shut down, the TDs are written off.
    fn with_module<R>(&self, work: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        let result = if self.is_down() {
            Err(Error::ShutDown)
        } else {
            work()
        };
        if !self.is_down() {
            return result;
        }
        while self.write_off() {}
        Err(Error::ShutDown)
    }

    /// Executes a step of writing off the TDs of a module that has shut down. Returns `false` if nothing is left to do
    /// now.
    fn write_off(&self) -> bool {
        self.any(|entry, td| {
            let did = end::write_off(&self.host, td);
            self.bury(entry);
            did
        })
    }

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
        let entry = self.entry(id).ok_or(Error::State(State::Created))?;
        let host = &self.host;
        let admission = self.admission.try_lock().ok_or(Error::Busy)?;
        self.bury(entry);
        if let Some(td) = &entry.lives.lock().now {
            self.check_guest(td)?;
            return Err(Error::State(td.state()));
        }
        let first = self.next_cpu.load(Relaxed);
        let (td, plan) = plan(
            host,
            id,
            &entry.config,
            &entry.files,
            self.promised(),
            first,
        )?;
        self.next_cpu
            .store(first.wrapping_add(td.vcpus().count().into()), Relaxed);
        td.life
            .advance(State::Created, State::Building)
            .map_err(Error::State)?;
        let td = Arc::new(td);
        let _turn = td.turn.try_lock().ok_or(Error::Busy)?;
        {
            let mut lives = entry.lives.lock();
            lives.now = Some(Arc::clone(&td));
            lives.ends_before = entry.ends_wanted.load(SeqCst);
        }
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
            td.life
                .advance(State::Paused, State::Runnable)
                .map_err(Error::State)?;
            self.host.runner.start(td);
            Ok(())
        })
    }

    /// Checks that the guest of a live TD can continue.
    fn check_guest(&self, td: &Td) -> Result<(), Error> {
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
    pub fn keep_ended(&self, id: u32, why: String) -> Result<(), Error> {
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
        td.life
            .advance(State::Runnable, State::Paused)
            .map_err(Error::State)?;
        let stopped = end::stop_vcpus(&self.host, td).map(drop);
        if stopped.is_err() && td.life.advance(State::Paused, State::Runnable).is_ok() {
            self.host.runner.start(td);
        }
        stopped
    }

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
        self.want_end(id);
        let td = self.get(id).ok_or_else(|| self.state(id))?;
        end::ask(&td)?;
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
            let whole = reclaimed?;
            Ok(match ended {
                Ended::Now(_) => Ended::Now(whole),
                Ended::Already(state) => Ended::Already(state),
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

    /// Removes memory from a TD so that `bytes` are left. The TD may run meanwhile. If it is being terminated, that
    /// takes the rest ([`Outcome::Queued`], [`Outcome::LeftToReclaim`]).
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::State`]; [`Error::Busy`], [`Error::Map`], after which the same call continues the
    /// removal.
    pub fn shrink(&self, id: u32, bytes: u64) -> Result<Outcome, Error> {
        self.with_module(|| self.remove_above(id, bytes))
    }

    fn remove_above(&self, id: u32, bytes: u64) -> Result<Outcome, Error> {
        let td = self
            .living(id)
            .ok_or_else(|| Error::State(self.state(id)))?;
        let map = td.map().ok_or_else(|| Error::State(td.state()))?;
        if td.state() == State::Building {
            return Err(Error::State(State::Building));
        }
        let whole = Layout::new(td.config.memory).ok_or(Error::TooMuchMemory)?;
        let layout = {
            let mut now = td.layout.lock();
            let (least, most) = (td.image_end, now.bytes());
            // Set the layout first, so that removed memory is not populated again on demand.
            *now = Layout::new(bytes)
                .filter(|_| (least.max(config::MEMORY_STEP)..=most).contains(&bytes))
                .filter(|_| bytes.is_multiple_of(config::MEMORY_STEP))
                .ok_or(Error::Size { least, most })?;
            *now
        };
        let start = self.host.platform.now_us();
        while !self.host.runner.shrunk(&td) {
            if self.host.platform.now_us() - start >= self.host.stop_us {
                return Err(Error::Busy);
            }
            self.host.platform.relax();
        }
        let _quiet = td.joining.quiet(&self.host)?;
        let kept: Vec<_> = layout.parts().collect();
        // A termination changes the state before it waits for quiet, and must not encounter pages claimed here.
        let goes_on = || !td.state().is_ending();
        let kick = td.kick(self.host.platform);
        let mut sum = mm::private::Taken::default();
        let mut left = None;
        for range in whole.without(&kept) {
            let outcome = self
                .host
                .with_cpu(|cpu| map.remove_while(cpu, range, &kick, &goes_on))?;
            match outcome {
                Outcome::Removed(taken) => {
                    for (sum, pages) in sum.pages.iter_mut().zip(taken.pages) {
                        *sum += pages;
                    }
                    sum.sept += taken.sept;
                    sum.batches += taken.batches;
                }
                other => left = Some(other),
            }
        }
        match left {
            // The TD lives on, and its revival may have processed the queue before this removal was queued.
            Some(Outcome::Queued) if goes_on() => Err(Error::Busy),
            left => Ok(left.unwrap_or(Outcome::Removed(sum))),
        }
    }

    /// Executes a piece of work for a CPU that has time: a requested termination; a step of a reclaim, which is at most
    /// 8 SEAMCALLs and 2 MiB cleared; or else a step of promoting split pages ([`join_step`]). Returns `false` if there
    /// is none.
    pub fn work(&self) -> bool {
        if self.is_down() {
            return self.write_off();
        }
        if self.end_asked() {
            return true;
        }
        let reclaims = |entry: &Entry<'h>, td: &Td| {
            let did = end::reclaim_step(&self.host, td);
            self.bury(entry);
            did
        };
        self.any(reclaims) || self.any(|_, td| join_step(&self.host, td))
    }

    /// Tries `step` on each TD that has a life, until one did something.
    fn any(&self, step: impl Fn(&Entry<'h>, &Td) -> bool) -> bool {
        self.entries.iter().any(|entry| {
            let now = entry.lives.try_lock().and_then(|lives| lives.now.clone());
            now.is_some_and(|td| step(entry, &td))
        })
    }

    /// Starts the TDs that are to start with the host. Returns the outcome for each.
    pub fn autostart(&self) -> Vec<(u32, Result<(), Error>)> {
        self.ids()
            .filter(|id| self.config(*id).is_some_and(|config| config.autostart))
            .map(|id| (id, self.start(id)))
            .collect()
    }

    /// Returns the TD's current life, if it has one that is not over.
    fn living(&self, id: u32) -> Option<Arc<Td>> {
        self.bury(self.entry(id)?);
        self.get(id)
    }

    fn entry(&self, id: u32) -> Option<&Entry<'h>> {
        self.entries.get(usize::try_from(id).ok()?.checked_sub(1)?)
    }

    fn bury_id(&self, id: u32) {
        if let Some(entry) = self.entry(id) {
            self.bury(entry);
        }
    }

    /// Replaces a life that is over by its notes.
    fn bury(&self, entry: &Entry<'h>) {
        let mut lives = entry.lives.lock();
        if let Some(td) = lives.now.take_if(|td| td.state() == State::Reclaimed) {
            lives.last = Some(td.notes());
        }
    }

    /// Returns the frames of TDs whose termination is stuck. They are in quarantine until it continues.
    #[must_use]
    pub fn stuck(&self) -> Frames {
        let all = self.ids().filter_map(|id| self.get(id));
        let stuck = all.filter(|td| end::stuck(td).is_some());
        stuck.fold(Frames::default(), |sum, td| sum.and(td.held()))
    }

    /// Returns the bytes that are promised to TDs and that they have not taken yet.
    #[must_use]
    pub fn promised(&self) -> u64 {
        let all = self.ids().filter_map(|id| self.get(id));
        all.map(|td| td.promised_bytes()).sum()
    }
}

impl<P> fmt::Debug for Tds<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tds")
            .field("count", &self.entries.len())
            .finish_non_exhaustive()
    }
}
