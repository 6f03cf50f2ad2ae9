//! The root table of one unit and its context tables.
//!
//! Source: VT-d specification, sections 9.1 (Root Entry) and 9.3 (Context Entry).

use super::Memory;
use crate::{Error, Platform, Source};

/// P, in root and context entries.
const PRESENT: u64 = 1;
/// FPD: faults of the function are not reported. It is read even if the entry is not present.
const FAULTS_MUTED: u64 = 2;
const ADDRESS: u64 = !0xFFF;
const ENTRY_BYTES: u64 = 16;

/// The root table of one unit. Context tables are made as they are needed, and stay.
#[derive(Debug)]
pub(crate) struct Contexts<P> {
    memory: Memory<P>,
    root: u64,
}

/// The attachment of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    /// The domain's id.
    pub id: u16,
    /// Physical address of the domain's first table.
    pub root: u64,
    /// Number of levels of its tables.
    pub levels: u32,
}

impl<P: Platform> Contexts<P> {
    /// Makes an empty root table.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new(memory: Memory<P>) -> Result<Self, Error> {
        let root = memory.take(0).ok_or(Error::NoMemory)?;
        Ok(Self { memory, root })
    }

    /// Returns the physical address of the root table.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Returns the domain id of a function that is attached.
    pub fn get(&self, function: Source) -> Option<u16> {
        let at = self.find(function)?;
        let present = self.memory.load(at) & PRESENT != 0;
        present.then(|| (self.memory.load(at + 8) >> 8) as u16)
    }

    /// Attaches a function that is not attached.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn set(&self, function: Source, to: &Attached) -> Result<(), Error> {
        let at = self.entry(function)?;
        let width = u64::from(to.levels - 2);
        self.memory.store(at + 8, u64::from(to.id) << 8 | width);
        self.memory.store(at, to.root & ADDRESS | PRESENT);
        Ok(())
    }

    /// Detaches a function.
    pub fn clear(&self, function: Source) {
        if let Some(at) = self.find(function) {
            self.memory.store(at, 0);
            self.memory.store(at + 8, 0);
        }
    }

    /// Mutes or unmutes the faults of a function.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn mute(&self, function: Source, is_muted: bool) -> Result<(), Error> {
        let at = self.entry(function)?;
        let entry = self.memory.load(at) & !FAULTS_MUTED;
        let muted = if is_muted { FAULTS_MUTED } else { 0 };
        self.memory.store(at, entry | muted);
        Ok(())
    }

    /// Returns the address of a function's entry, and makes the table for it.
    fn entry(&self, function: Source) -> Result<u64, Error> {
        if let Some(at) = self.find(function) {
            return Ok(at);
        }
        let table = self.memory.take(0).ok_or(Error::NoMemory)?;
        self.memory
            .store(self.root_entry(function), table | PRESENT);
        Ok(table + u64::from(function.devfn()) * ENTRY_BYTES)
    }

    fn find(&self, function: Source) -> Option<u64> {
        let entry = self.memory.load(self.root_entry(function));
        (entry & PRESENT != 0)
            .then(|| (entry & ADDRESS) + u64::from(function.devfn()) * ENTRY_BYTES)
    }

    fn root_entry(&self, function: Source) -> u64 {
        self.root + u64::from(function.bus()) * ENTRY_BYTES
    }
}
