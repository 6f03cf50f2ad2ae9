//! The second-level page tables of a domain: the walk, and single entries.
//!
//! Source: VT-d specification, section 9.8 (Second-Level Paging Entries).

use alloc::vec::Vec;

use super::{Memory, PAGE};
use crate::{Error, Platform};

/// R and W.
pub(super) const READ: u64 = 1;
pub(super) const WRITE: u64 = 2;
/// PS: the entry is a leaf above the lowest level.
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = (1 << 52) - PAGE;

/// Returns the bytes that an entry at `level` maps; the lowest level is 1.
pub(super) const fn bytes_at(level: u32) -> u64 {
    PAGE << (9 * (level - 1))
}

/// A leaf, as a walk finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    /// Address of the entry.
    pub at: u64,
    /// Its level.
    pub level: u32,
    /// Its content.
    pub entry: u64,
}

impl Leaf {
    /// Returns the physical address that `iova`, which the leaf maps, leads to.
    pub fn target(&self, iova: u64) -> u64 {
        (self.entry & ADDRESS & !(bytes_at(self.level) - 1)) | iova & (bytes_at(self.level) - 1)
    }
}

/// The tables.
#[derive(Debug)]
pub(super) struct Pages<P> {
    memory: Memory<P>,
    /// The first table.
    pub root: u64,
    levels: u32,
    /// All tables but the first.
    tables: Vec<u64>,
}

/// A leaf to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct New {
    /// Device address.
    pub iova: u64,
    /// Physical address.
    pub pa: u64,
    /// [`READ`], [`WRITE`].
    pub access: u64,
}

impl<P: Platform> Pages<P> {
    pub fn new(memory: Memory<P>, levels: u32) -> Result<Self, Error> {
        let root = memory.take(0).ok_or(Error::NoMemory)?;
        Ok(Self {
            memory,
            root,
            levels,
            tables: Vec::new(),
        })
    }

    /// Returns the leaf that maps `iova`, or the size in bytes of the unmapped piece around it.
    pub fn walk(&self, iova: u64) -> Result<Leaf, u64> {
        let mut table = self.root;
        for level in (1..=self.levels).rev() {
            let at = place(table, iova, level);
            let entry = self.memory.load(at);
            if entry & (READ | WRITE) == 0 {
                return Err(bytes_at(level));
            }
            if level == 1 || entry & LARGE != 0 {
                return Ok(Leaf { at, level, entry });
            }
            table = entry & ADDRESS;
        }
        Err(PAGE)
    }

    /// Makes a leaf at `level`, or returns `false` if a table is in its place. Nothing maps its addresses.
    pub fn set(&mut self, new: &New, level: u32) -> Result<bool, Error> {
        let mut table = self.root;
        for above in (level + 1..=self.levels).rev() {
            let at = place(table, new.iova, above);
            let entry = self.memory.load(at);
            table = if entry & (READ | WRITE) == 0 {
                let below = self.take()?;
                self.memory.store(at, below | READ | WRITE);
                below
            } else {
                entry & ADDRESS
            };
        }
        let at = place(table, new.iova, level);
        if self.memory.load(at) & (READ | WRITE) != 0 {
            return Ok(false);
        }
        let large = if level > 1 { LARGE } else { 0 };
        self.memory.store(at, new.pa & ADDRESS | new.access | large);
        Ok(true)
    }

    /// Replaces a leaf above the lowest level by a table of leaves that map the same.
    pub fn split(&mut self, leaf: &Leaf) -> Result<(), Error> {
        let table = self.take()?;
        let below = leaf.level - 1;
        let large = if below > 1 { LARGE } else { 0 };
        let start = leaf.entry & ADDRESS & !(bytes_at(leaf.level) - 1);
        let access = leaf.entry & (READ | WRITE);
        for index in 0..PAGE / 8 {
            let pa = start + index * bytes_at(below);
            self.memory.store(table + index * 8, pa | access | large);
        }
        self.memory.store(leaf.at, table | READ | WRITE);
        Ok(())
    }

    /// Removes a leaf.
    pub fn clear(&self, leaf: &Leaf) {
        self.memory.store(leaf.at, 0);
    }

    /// Frees all tables. No unit reads them.
    pub fn free(self) {
        let platform = &self.memory.platform;
        for table in self.tables {
            platform.give(table, 0);
        }
        platform.give(self.root, 0);
    }

    fn take(&mut self) -> Result<u64, Error> {
        self.tables.try_reserve(1).map_err(|_| Error::NoMemory)?;
        let table = self.memory.take(0).ok_or(Error::NoMemory)?;
        self.tables.push(table);
        Ok(table)
    }
}

/// Returns the address of the entry for `iova` in a table at `level`.
const fn place(table: u64, iova: u64, level: u32) -> u64 {
    table + iova / bytes_at(level) % 512 * 8
}
