//! The registry of all TDs that the host knows by name, and the operations on them.
//!
//! The TDs of the configuration come first. The operator defines others, and forgets them, while the host runs. Each has
//! a number that no other TD gets in this boot.

mod define;
mod ends;
mod run;
mod shrink;
mod shutdown;

pub use define::{Applies, DefineError, MOST_DEFINED};
pub use shutdown::Asked;

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::fmt;
use sync::Mutex;
use sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use self::{define::Definition, shutdown::Shutdown};
use super::{
    Frames, Notes, Td, end,
    error::Error,
    files::{
        Files, Image,
        store::{FileStore, NoMemory},
    },
    host::Host,
    join::join_step,
    life::State,
};
use crate::platform::Platform;

/// All TDs of a host.
pub struct Tds<'h, P> {
    host: Host<'h, P>,
    /// A fixed number of slots. Each has a lock of its own, so that CPUs that look for work do not wait for each other.
    slots: Box<[Slot<'h>]>,
    /// Number of the slots that were ever used: the first ones.
    used: AtomicUsize,
    /// The number of the next TD.
    next_id: AtomicU32,
    /// Serialises definitions.
    defining: Mutex<()>,
    files: FileStore<'h>,
    /// The image of a TD that names none.
    firmware: Option<&'h [u8]>,
    /// Serialises admission.
    admission: Mutex<()>,
    /// Index among the CPUs at which the next vCPU begins.
    next_cpu: AtomicUsize,
    /// Set when a guest has requested a termination that no CPU has looked for yet.
    is_end_asked: AtomicBool,
    /// The time in microseconds at which a guest must have shut down, the earliest one; `u64::MAX` without one.
    next_deadline: AtomicU64,
}

type Slot<'h> = Mutex<Option<Arc<Entry<'h>>>>;

/// A TD that the host knows by name.
struct Entry<'h> {
    id: u32,
    definition: Mutex<Definition<'h>>,
    shutdown: Mutex<Option<Shutdown>>,
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
    /// The reason why the last attempt to build the TD failed.
    not_built: Option<String>,
    /// [`Entry::ends_wanted`] when the current life began. Any further requests are meant for this life.
    ends_before: u64,
}

impl<'h> Entry<'h> {
    fn new(id: u32, definition: Definition<'h>) -> Self {
        Self {
            id,
            definition: Mutex::new(definition),
            shutdown: Mutex::new(None),
            lives: Mutex::new(Lives::default()),
            ends_wanted: AtomicU64::new(0),
        }
    }

    fn config(&self) -> Arc<config::Td> {
        Arc::clone(&self.definition.lock().config)
    }
}

impl<'h, P: Platform> Tds<'h, P> {
    /// Creates the TDs that the configuration names, each with those of its files that were loaded. Numbers start at 1.
    #[must_use]
    pub fn new(host: Host<'h, P>, named: Vec<(config::Td, impl Into<Files<'h>>)>) -> Self {
        let count = named.len();
        let named = (1..).zip(named).map(|(id, (config, files))| {
            let definition = Definition::with_files(config, files.into());
            Some(Arc::new(Entry::new(id, definition)))
        });
        let free = (0..MOST_DEFINED).map(|_| None);
        Self {
            host,
            slots: named.chain(free).map(Mutex::new).collect(),
            used: AtomicUsize::new(count),
            next_id: AtomicU32::new(count as u32 + 1),
            defining: Mutex::new(()),
            files: FileStore::new(&NoMemory, []),
            firmware: None,
            next_deadline: AtomicU64::new(u64::MAX),
            admission: Mutex::new(()),
            next_cpu: AtomicUsize::new(0),
            is_end_asked: AtomicBool::new(false),
        }
    }

    /// Lets TDs be defined with these files. `firmware` is the image of a TD that names none.
    #[must_use]
    pub fn with_files(self, files: FileStore<'h>, firmware: &'h [u8]) -> Self {
        Self {
            files,
            firmware: Some(firmware),
            ..self
        }
    }

    /// Returns the files that TDs can be defined with.
    pub const fn files(&self) -> &FileStore<'h> {
        &self.files
    }

    /// Returns the environment of the TDs.
    pub const fn host(&self) -> &Host<'h, P> {
        &self.host
    }

    /// Returns the TDs' numbers, ascending. It allocates nothing.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        let mut last = 0;
        core::iter::from_fn(move || {
            last = self
                .entries()
                .map(|entry| entry.id)
                .filter(|id| *id > last)
                .min()?;
            Some(last)
        })
    }

    /// Returns the TDs in the order of their slots.
    fn entries(&self) -> impl Iterator<Item = Arc<Entry<'h>>> {
        let used = self.slots.iter().take(self.used.load(SeqCst));
        used.filter_map(|slot| slot.lock().clone())
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
    pub fn config(&self, id: u32) -> Option<Arc<config::Td>> {
        Some(self.entry(id)?.config())
    }

    /// Returns the image that a TD is built from, if it was loaded.
    #[must_use]
    pub fn image(&self, id: u32) -> Option<Image<'h>> {
        let entry = self.entry(id)?;
        let (_, files) = self.resolve(&entry);
        files.image
    }

    /// Returns the TD's current life, if it has one.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<Arc<Td>> {
        let entry = self.entry(id)?;
        let lives = entry.lives.lock();
        lives.now.clone()
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
        let entry = self.entry(id)?;
        let lives = entry.lives.lock();
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

    /// Executes a piece of work for a CPU that has time: a requested termination; a step of a reclaim, which is at most
    /// 8 SEAMCALLs and 2 MiB cleared; or else a step of promoting split pages ([`join_step`]). Returns `false` if there
    /// is none.
    pub fn work(&self) -> bool {
        if self.is_down() {
            return self.write_off();
        }
        if self.end_asked() || self.end_overdue() {
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
        let mut used = self.slots.iter().take(self.used.load(Relaxed));
        used.any(|slot| {
            let entry = slot.try_lock().and_then(|slot| slot.clone());
            let now =
                |entry: &Entry<'h>| entry.lives.try_lock().and_then(|lives| lives.now.clone());
            entry.is_some_and(|entry| now(&entry).is_some_and(|td| step(&entry, &td)))
        })
    }

    /// Returns the TD's current life, if it has one that is not over.
    fn living(&self, id: u32) -> Option<Arc<Td>> {
        let entry = self.entry(id)?;
        self.bury(&entry);
        self.get(id)
    }

    fn entry(&self, id: u32) -> Option<Arc<Entry<'h>>> {
        self.entries().find(|entry| entry.id == id)
    }

    fn bury_id(&self, id: u32) {
        if let Some(entry) = self.entry(id) {
            self.bury(&entry);
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
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}
