//! Definitions at run time: new TDs, changes, and TDs that are forgotten.

use alloc::{
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::fmt;

use config::{MOST_CARDS, MOST_FUNCTIONS, Names};
use mm::private::Pool;
use sync::atomic::Ordering::SeqCst;

use super::{Entry, Tds};
use crate::{
    platform::{Platform, TdEvent},
    td::{
        files::{Files, store::FileError},
        life::State,
        plan::RESERVED_PAGES,
    },
};

/// Maximum number of TDs that the operator can define in addition to those of the configuration.
pub const MOST_DEFINED: usize = 256;

/// Maximum number of functions that a TD can have on its bus: beside those of the machine and its cards, disks and a console.
const MOST_ON_BUS: usize = MOST_FUNCTIONS + MOST_CARDS + config::MOST_DISKS + 1;
const _: () = assert!(MOST_ON_BUS <= devices::pci::MOST);

/// The definition of a TD.
pub(super) struct Definition<'h> {
    pub config: Arc<config::Td>,
    /// The files if they are given. Otherwise they are looked up by their names when the TD is built.
    files: Option<Files<'h>>,
}

impl<'h> Definition<'h> {
    pub fn with_files(config: config::Td, files: Files<'h>) -> Self {
        Self {
            config: Arc::new(config),
            files: Some(files),
        }
    }
}

/// The reason why a definition was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefineError {
    /// The text of the definition, or the value, has these mistakes.
    Mistakes(Vec<String>),
    /// Another TD has this name.
    Exists(String),
    /// There are as many TDs as possible.
    TooMany,
    /// There is no TD of this number.
    NoSuchTd,
    /// The TD has a life.
    State(State),
    /// A TD is being built.
    Busy,
    /// The definition names the PCI function already.
    Attached(config::Pci),
    /// The definition does not name the PCI function.
    NotAttached(config::Pci),
}

impl fmt::Display for DefineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mistakes(all) => f.write_str(&all.join("; ")),
            Self::Exists(name) => write!(
                f,
                "there is a TD {name:?} already; \"td set {name}\" changes it, \"td undefine {name}\" removes it"
            ),
            Self::TooMany => write!(
                f,
                "{MOST_DEFINED} TDs were defined since the boot and are still there; \"td undefine\" removes one"
            ),
            Self::NoSuchTd => f.write_str("there is no such TD; \"td list\" lists them"),
            Self::State(state) => write!(f, "it is {}", state.in_words()),
            Self::Busy => f.write_str("a TD is being built; try again"),
            Self::Attached(pci) => write!(f, "it has PCI function {} already", pci.device),
            Self::NotAttached(pci) => {
                write!(
                    f,
                    "it has no PCI function {}; \"td show\" lists its functions",
                    pci.device
                )
            }
        }
    }
}

/// When a change of a TD's definition takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// It does.
    Now,
    /// When the TD is built again.
    NextStart,
}

impl<'h, P: Platform> Tds<'h, P> {
    /// Defines a TD by the text of a `[[td]]`. Returns its number. Nothing is allocated for it before it is built.
    ///
    /// # Errors
    /// [`DefineError`].
    pub fn define(&self, text: &str) -> Result<u32, DefineError> {
        let names = Names {
            is_file: &|name| self.files.has(name),
            is_network: &|name| self.host.runner.has_network(name),
        };
        let read = config::read_td(text, &names);
        let config = read.map_err(|problems| {
            let lines = problems
                .iter()
                .map(|problem| alloc::format!("line {problem}"));
            DefineError::Mistakes(lines.collect())
        })?;
        self.add(config)
    }

    /// Defines a TD whose configuration is in order, except that its files may be missing.
    ///
    /// # Errors
    /// [`DefineError`].
    pub fn add(&self, config: config::Td) -> Result<u32, DefineError> {
        let _defining = self.defining.lock();
        if self
            .entries()
            .any(|entry| entry.config().name == config.name)
        {
            return Err(DefineError::Exists(config.name));
        }
        let free = self.slots.iter().position(|slot| slot.lock().is_none());
        let index = free.ok_or(DefineError::TooMany)?;
        let id = self.next_id.fetch_add(1, SeqCst);
        self.note(id, &config.name, "defined");
        let definition = Definition {
            config: Arc::new(config),
            files: None,
        };
        *self.slots[index].lock() = Some(Arc::new(Entry::new(id, definition)));
        self.used.fetch_max(index + 1, SeqCst);
        Ok(id)
    }

    /// Forgets a TD that has no life, with its console and its notes.
    ///
    /// # Errors
    /// [`DefineError`].
    pub fn undefine(&self, id: u32) -> Result<(), DefineError> {
        let _defining = self.defining.lock();
        // No TD begins a life meanwhile.
        let _admission = self.admission.try_lock().ok_or(DefineError::Busy)?;
        let entry = self.entry_without_life(id)?;
        let is_its = |slot: &&super::Slot<'h>| slot.lock().as_ref().is_some_and(|e| e.id == id);
        let slot = self.slots.iter().find(is_its);
        let gone = slot.and_then(|slot| slot.lock().take());
        drop(gone);
        self.host.runner.forget(id);
        self.note(id, &entry.config().name, "forgotten");
        Ok(())
    }

    /// Records that a TD's definition has changed.
    fn note(&self, td: u32, name: &str, what: &str) {
        self.host.platform.note(&TdEvent {
            td,
            name,
            what: format_args!("{what}"),
            asked_by: None,
        });
    }

    /// Sets a key of a TD's definition. Shares and cap apply at once, everything else when the TD is built again.
    ///
    /// # Errors
    /// [`DefineError`].
    pub fn set(&self, id: u32, key: &str, value: &str) -> Result<Applies, DefineError> {
        let mistake = |what: String| DefineError::Mistakes(Vec::from([what]));
        let _defining = self.defining.lock();
        let entry = self.entry(id).ok_or(DefineError::NoSuchTd)?;
        if key == "name" {
            return Err(mistake(
                "name can't be changed: define another TD, and undefine this one".into(),
            ));
        }
        let config = entry.config().with(key, value).map_err(mistake)?;
        let names = Names {
            is_file: &|name| self.has_file(&entry, name),
            is_network: &|name| self.host.runner.has_network(name),
        };
        let wrong = config.wrong_names(key, &names);
        if !wrong.is_empty() {
            return Err(DefineError::Mistakes(wrong));
        }
        let config = Arc::new(config);
        entry.definition.lock().config = Arc::clone(&config);
        if entry.lives.lock().now.is_none() {
            return Ok(Applies::Now);
        }
        if matches!(key, "shares" | "cap") {
            self.host.runner.set_portion(id, &config);
            return Ok(Applies::Now);
        }
        Ok(Applies::NextStart)
    }

    /// Adds a PCI function to those that a TD has from its next life on. It has no life now.
    ///
    /// # Errors
    /// [`DefineError`].
    pub fn attach(&self, id: u32, pci: config::Pci) -> Result<(), DefineError> {
        self.change_functions(id, |all| match all.contains(&pci) {
            true => Err(DefineError::Attached(pci)),
            false if all.len() >= MOST_FUNCTIONS => {
                let what = alloc::format!("a TD can have {MOST_FUNCTIONS} PCI functions");
                Err(DefineError::Mistakes(Vec::from([what])))
            }
            false => {
                all.push(pci);
                Ok(())
            }
        })
    }

    /// Removes a PCI function from those that a TD has. It has no life now.
    ///
    /// # Errors
    /// [`DefineError`].
    pub fn detach(&self, id: u32, pci: config::Pci) -> Result<(), DefineError> {
        self.change_functions(id, |all| {
            let at = all.iter().position(|own| *own == pci);
            all.remove(at.ok_or(DefineError::NotAttached(pci))?);
            Ok(())
        })
    }

    /// Returns a TD that has no life. The caller holds the admission.
    fn entry_without_life(&self, id: u32) -> Result<Arc<Entry<'h>>, DefineError> {
        let entry = self.entry(id).ok_or(DefineError::NoSuchTd)?;
        self.bury(&entry);
        let state = entry.lives.lock().now.as_ref().map(|td| td.state());
        match state {
            Some(state) => Err(DefineError::State(state)),
            None => Ok(entry),
        }
    }

    fn change_functions(
        &self,
        id: u32,
        change: impl FnOnce(&mut Vec<config::Pci>) -> Result<(), DefineError>,
    ) -> Result<(), DefineError> {
        let _defining = self.defining.lock();
        // No TD begins a life meanwhile.
        let _admission = self.admission.try_lock().ok_or(DefineError::Busy)?;
        let entry = self.entry_without_life(id)?;
        let mut config = (*entry.config()).clone();
        change(&mut config.pci)?;
        entry.definition.lock().config = Arc::new(config);
        Ok(())
    }

    /// Returns the keys whose values the TD's current life does not have, since they were set after it began.
    #[must_use]
    pub fn pending(&self, id: u32) -> Vec<&'static str> {
        let (Some(config), Some(td)) = (self.config(id), self.get(id)) else {
            return Vec::new();
        };
        let changed = config.differs_in(td.config());
        changed
            .filter(|key| !matches!(*key, "shares" | "cap"))
            .collect()
    }

    /// Returns the definition of a TD, and its files.
    pub(super) fn resolve(&self, entry: &Entry<'h>) -> (Arc<config::Td>, Files<'h>) {
        let definition = entry.definition.lock();
        let files = match &definition.files {
            Some(files) => files.clone(),
            None => self.files.files(&definition.config, self.firmware),
        };
        (Arc::clone(&definition.config), files)
    }

    fn has_file(&self, entry: &Entry<'h>, name: &str) -> bool {
        let definition = entry.definition.lock();
        let given = definition.files.as_ref();
        given.is_some_and(|files| files.length(&definition.config, name).is_some())
            || self.files.has(name)
    }

    /// Begins a file of `bytes` bytes, in memory that is not promised to TDs.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn begin_file(&self, name: &str, bytes: u64) -> Result<(), FileError> {
        // No memory is promised to a TD meanwhile.
        let _admission = self.admission.try_lock().ok_or(FileError::Busy)?;
        let free = self.host.platform.pool().free_bytes();
        let kept = self.promised() + RESERVED_PAGES * seam::abi::PAGE_4K;
        self.files.begin(name, bytes, free.saturating_sub(kept))
    }

    /// Drops a file that no TD's definition names and no TD was built from, or one that is being put. Returns its length.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn drop_file(&self, name: &str) -> Result<u64, FileError> {
        let _defining = self.defining.lock();
        let is_named = |config: &config::Td| config.named_files().any(|(_, own)| own == name);
        let naming = self
            .ids()
            .find_map(|id| self.config(id).filter(|config| is_named(config)));
        match naming {
            Some(td) if self.files.has(name) => Err(FileError::Named {
                file: name.to_string(),
                td: td.name.clone(),
            }),
            _ => self.files.drop(name),
        }
    }
}
