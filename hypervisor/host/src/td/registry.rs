//! All TDs that the configuration names, and what can be done with each.

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
    end::{self, Ended, Way},
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
    /// Had while it is checked whether another TD finds room.
    admission: Mutex<()>,
    /// Where the next vCPU begins, among the CPUs.
    next_cpu: AtomicUsize,
    /// Whether a guest has asked for an end since somebody looked.
    is_end_asked: AtomicBool,
}

/// What the configuration names.
struct Entry<'h> {
    config: Arc<config::Td>,
    files: Files<'h>,
    lives: Mutex<Lives>,
    /// How often somebody wanted it to end, which a guest that wants to begin anew does not undo.
    ends_wanted: AtomicU64,
}

/// The lives of one TD.
#[derive(Default)]
struct Lives {
    /// The one that is not over.
    now: Option<Arc<Td>>,
    /// What is to be told of the last one, once there was one.
    last: Option<Notes>,
    /// Why it could not be built, when it was wanted last.
    not_built: Option<String>,
    /// [`Entry::ends_wanted`] when the newest one began: more than that are meant for it.
    ends_before: u64,
}

impl<'h, P: Platform> Tds<'h, P> {
    /// TDs as the configuration names them, each with its files as far as they were loaded. They are numbered from 1 on.
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

    /// What they stand on.
    pub const fn host(&self) -> &Host<'h, P> {
        &self.host
    }

    /// Their numbers.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        1..=self.entries.len() as u32
    }

    /// The number of the TD of that name, or that number.
    #[must_use]
    pub fn find(&self, word: &str) -> Option<u32> {
        self.ids().find(|id| match word.parse::<u32>() {
            Ok(number) => number == *id,
            Err(_) => self.config(*id).is_some_and(|config| config.name == word),
        })
    }

    /// What the operator wants it to be.
    #[must_use]
    pub fn config(&self, id: u32) -> Option<&config::Td> {
        Some(&self.entry(id)?.config)
    }

    /// The image that it is built from, if that was loaded.
    #[must_use]
    pub fn image(&self, id: u32) -> Option<&'h [u8]> {
        self.entry(id)?.files.image
    }

    /// The TD, if it has a life now.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<Arc<Td>> {
        let entry = self.entry(id)?;
        entry.lives.lock().now.clone()
    }

    /// Where it is in its life.
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

    /// What is to be told of its life, or of the last one.
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

    /// Whether the TDX module has shut down.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.host.is_down()
    }

    /// Does something for which the TDX module must work. When it has shut down, what TDs had is put away.
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

    /// A step on the way to put away what TDs had of a module that has shut down. `false` when nothing is left to do now.
    fn write_off(&self) -> bool {
        self.any(|entry, td| {
            let did = end::write_off(&self.host, td);
            self.bury(entry);
            did
        })
    }

    /// Builds it. It is paused afterwards.
    ///
    /// # Errors
    /// [`Error::State`] when it has a life; [`Error`], and nothing that was taken for it is missing.
    pub fn create(&self, id: u32) -> Result<Arc<Td>, Error> {
        self.with_module(|| {
            let built = self.build(id);
            if let Some(entry) = self.entry(id) {
                let mut lives = entry.lives.lock();
                match &built {
                    Ok(_) => lives.not_built = None,
                    // Nobody tried.
                    Err(Error::State(_) | Error::GuestEnded(_) | Error::Busy) => {}
                    // There is more to tell than that.
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

    /// Lets it run; builds it first, if it has no life.
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

    /// Lets one run that is paused.
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

    /// That the guest of a TD which lives can go on.
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

    /// Keeps it from running. No vCPU is in the guest afterwards.
    ///
    /// # Errors
    /// [`Error::State`], [`Error::Busy`], [`Error::GuestEnded`]; [`Error::Stuck`], and it runs on.
    pub fn pause(&self, id: u32) -> Result<(), Error> {
        self.with_module(|| {
            let td = self
                .living(id)
                .ok_or_else(|| Error::State(self.state(id)))?;
            self.check_guest(&td)?;
            self.stop(&td)
        })
    }

    /// Keeps one from running whose guest has come to its end, for this reason: it stays for whoever wants to look at it.
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

    /// Ends it: the key at once, the memory as CPUs have time for it.
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

    /// Has it ended by whichever CPU comes to [`Self::end_asked`]; none of its vCPUs is entered from now on. It waits for
    /// nothing, so the caller may be one of its vCPUs.
    ///
    /// # Errors
    /// The state that it is in, when it had been asked before, or does not live.
    pub fn ask_end(&self, id: u32) -> Result<(), State> {
        self.want_end(id);
        let td = self.get(id).ok_or_else(|| self.state(id))?;
        end::ask(&td)?;
        self.is_end_asked.store(true, SeqCst);
        self.host.runner.work_waits();
        Ok(())
    }

    /// Carries out the ends that [`Self::ask_end`] was asked for. `false` when there were none, which costs next to
    /// nothing to find out: also CPUs that are busy come here, between two vCPUs, with none in hand.
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
                Some(Ok(())) => log::info!("TD {}: ended, as a TD asked", td.config.name),
                Some(Err(error)) => {
                    log::error!("TD {}: a TD asked for its end: {error}", td.config.name);
                }
            }
        }
        true
    }

    /// Ends it, and takes all of its memory back.
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
            reclaimed.map(|()| ended)
        })
    }

    /// Goes on with an end that got stuck, up to the last page.
    ///
    /// # Errors
    /// As [`end::retry`] and [`end::reclaim`].
    pub fn retry(&self, id: u32) -> Result<(), Error> {
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

    /// Ends it and builds it again; it runs if it did, also if its guest has come to an end meanwhile.
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

    /// Ends it and builds it again, as its guest asked, unless somebody wants it to end, or has wanted it in this life.
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
            // Who wanted it may have found nothing to end.
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

    /// Takes memory from it, so that `bytes` are left. It may run meanwhile. When it is being ended, that takes what is
    /// left ([`Outcome::Queued`], [`Outcome::LeftToReclaim`]).
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::State`]; [`Error::Busy`], [`Error::Map`], and the same call goes on from there.
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
            // First the borders: what is taken then does not come again on demand.
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
        // Whoever ends it has changed the state before it asks for quiet, and must not meet what is claimed here.
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
            // It lives on, and who revived it may have looked for what is noted before it was.
            Some(Outcome::Queued) if goes_on() => Err(Error::Busy),
            left => Ok(left.unwrap_or(Outcome::Removed(sum))),
        }
    }

    /// A piece of work for a CPU that has time: an end that a guest asked for; a step of a reclaim, which is at most 8
    /// SEAMCALLs and 2 MiB cleared; or, when there is nothing of the kind, a step on the way to make a split page whole
    /// ([`join_step`]). `false` when there is none.
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

    /// Does `step` with one TD that has a life after the other, until it did something.
    fn any(&self, step: impl Fn(&Entry<'h>, &Td) -> bool) -> bool {
        self.entries.iter().any(|entry| {
            let now = entry.lives.try_lock().and_then(|lives| lives.now.clone());
            now.is_some_and(|td| step(entry, &td))
        })
    }

    /// Starts those that are to start with the host; how each went.
    pub fn autostart(&self) -> Vec<(u32, Result<(), Error>)> {
        self.ids()
            .filter(|id| self.config(*id).is_some_and(|config| config.autostart))
            .map(|id| (id, self.start(id)))
            .collect()
    }

    /// The TD, if it has a life now that is not over.
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

    /// Of a life that is over only the notes stay.
    fn bury(&self, entry: &Entry<'h>) {
        let mut lives = entry.lives.lock();
        if let Some(td) = lives.now.take_if(|td| td.state() == State::Reclaimed) {
            lives.last = Some(td.notes());
        }
    }

    /// What TDs hold whose end got stuck: it is in quarantine until that goes on.
    #[must_use]
    pub fn stuck(&self) -> Frames {
        let all = self.ids().filter_map(|id| self.get(id));
        let stuck = all.filter(|td| end::stuck(td).is_some());
        stuck.fold(Frames::default(), |sum, td| sum.and(td.held()))
    }

    /// Bytes that were promised to TDs and that they have not taken yet.
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
