//! A domain: what its functions reach.

use alloc::vec::Vec;

use super::{
    Memory, PAGE,
    page::{New, Pages, READ, WRITE, bytes_at},
};
use crate::{Error, Function, Platform};

/// A device's permissions for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads alone.
    Read,
    /// Reads and writes.
    ReadWrite,
}

/// The table format that all units understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// Levels of tables, 3 to 5.
    pub levels: u32,
    /// The highest level at which an entry can be a leaf, 1 to 3.
    pub highest_leaf: u32,
    /// Width of device addresses in bits.
    pub bits: u32,
    /// Width of physical addresses in bits.
    pub physical_bits: u32,
    /// True if a new mapping must be flushed too: a unit caches absent entries, or buffers stores.
    pub flushes_new: bool,
}

/// The device addresses that units may still translate as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale {
    /// The first.
    pub start: u64,
    /// The first behind them.
    pub end: u64,
}

/// The memory that a set of functions reaches.
///
/// [`Self::map`] and [`Self::unmap`] change the tables. Units may go on with what was there before until
/// [`Iommu::flush`](crate::Iommu::flush) has succeeded: only then may a page that was unmapped get another owner, and
/// only then can devices rely on a page that was mapped.
///
/// A domain that is dropped instead of passed to [`Iommu::end`](crate::Iommu::end) leaks its tables.
#[derive(Debug)]
#[must_use]
pub struct Domain<P> {
    pub(crate) id: u16,
    pub(crate) format: Format,
    /// The functions, each with the index of its unit.
    pub(crate) functions: Vec<(Function, usize)>,
    pub(crate) stale: Option<Stale>,
    pages: Pages<P>,
    mapped: u64,
}

impl<P: Platform> Domain<P> {
    pub(crate) fn new(memory: Memory<P>, id: u16, format: Format) -> Result<Self, Error> {
        Ok(Self {
            id,
            format,
            functions: Vec::new(),
            stale: None,
            pages: Pages::new(memory, format.levels)?,
            mapped: 0,
        })
    }

    /// Maps `bytes` bytes from device address `iova` to physical address `pa`. All three are whole pages. Nothing in
    /// the range may be mapped.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Mapped`], [`Error::NoMemory`]. Nothing is mapped then.
    pub fn map(&mut self, iova: u64, pa: u64, bytes: u64, access: Access) -> Result<(), Error> {
        let end = self.check(iova, bytes)?;
        let physical_end = pa.checked_add(bytes);
        let fits = physical_end.is_some_and(|end| end <= 1 << self.format.physical_bits);
        if !fits || !pa.is_multiple_of(PAGE) {
            return Err(Error::Range(pa, bytes));
        }
        let mut at = iova;
        while at < end {
            match self.pages.walk(at) {
                Ok(_) => return Err(Error::Mapped(at)),
                Err(hole) => at = (at / hole + 1).saturating_mul(hole),
            }
        }
        let access = match access {
            Access::Read => READ,
            Access::ReadWrite => READ | WRITE,
        };
        let mut new = New { iova, pa, access };
        while new.iova < end {
            match self.set_largest(&new, end - new.iova) {
                Ok(done) => {
                    new.iova += done;
                    new.pa += done;
                }
                Err(error) => {
                    self.remove(iova, new.iova);
                    return Err(error);
                }
            }
        }
        self.mapped += bytes;
        if self.format.flushes_new {
            self.note(iova, end);
        }
        Ok(())
    }

    /// Unmaps `bytes` bytes from device address `iova` on. All of them must be mapped.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::NotMapped`], or [`Error::NoMemory`] to split a large page. Everything stays mapped
    /// then.
    pub fn unmap(&mut self, iova: u64, bytes: u64) -> Result<(), Error> {
        let end = self.check(iova, bytes)?;
        let mut at = iova;
        while at < end {
            let leaf = self.pages.walk(at).map_err(|_| Error::NotMapped(at))?;
            at = (at / bytes_at(leaf.level) + 1) * bytes_at(leaf.level);
        }
        self.cut(iova)?;
        self.cut(end)?;
        self.remove(iova, end);
        self.mapped -= bytes;
        Ok(())
    }

    /// Returns the physical address that device address `iova` leads to, and the access.
    #[must_use]
    pub fn translate(&self, iova: u64) -> Option<(u64, Access)> {
        let leaf = self.check(iova / PAGE * PAGE, PAGE).ok()?;
        debug_assert!(iova < leaf);
        let leaf = self.pages.walk(iova).ok()?;
        let access = match leaf.entry & WRITE {
            0 => Access::Read,
            _ => Access::ReadWrite,
        };
        Some((leaf.target(iova), access))
    }

    /// Returns the number of bytes that are mapped.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped
    }

    /// Returns the domain's id, which units tag their caches with.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Returns the functions that are attached.
    pub fn functions(&self) -> impl Iterator<Item = Function> {
        self.functions.iter().map(|(function, _)| *function)
    }

    pub(crate) fn root(&self) -> u64 {
        self.pages.root
    }

    /// Frees the tables. No unit reads them.
    pub(crate) fn free(self) {
        self.pages.free();
    }

    /// Checks a range. Returns its end.
    fn check(&self, iova: u64, bytes: u64) -> Result<u64, Error> {
        let whole = bytes != 0 && (iova | bytes).is_multiple_of(PAGE);
        let end = iova.checked_add(bytes).filter(|_| whole);
        end.filter(|end| *end <= 1 << self.format.bits)
            .ok_or(Error::Range(iova, bytes))
    }

    /// Makes the largest leaf that fits. Returns the bytes that it maps.
    fn set_largest(&mut self, new: &New, left: u64) -> Result<u64, Error> {
        for level in (1..=self.format.highest_leaf).rev() {
            let bytes = bytes_at(level);
            let fits = left >= bytes && (new.iova | new.pa).is_multiple_of(bytes);
            // Where a table is, which stays for the domain's life, smaller leaves are made.
            if fits && self.pages.set(new, level)? {
                return Ok(bytes);
            }
        }
        Err(Error::Mapped(new.iova))
    }

    /// Splits the leaves that map addresses on both sides of `at`.
    fn cut(&mut self, at: u64) -> Result<(), Error> {
        while let Ok(leaf) = self.pages.walk(at)
            && !at.is_multiple_of(bytes_at(leaf.level))
        {
            self.pages.split(&leaf)?;
            let start = at / bytes_at(leaf.level) * bytes_at(leaf.level);
            self.note(start, start + bytes_at(leaf.level));
        }
        Ok(())
    }

    /// Removes every leaf from `iova` to `end`, each of which lies in the range.
    fn remove(&mut self, iova: u64, end: u64) {
        let mut at = iova;
        while at < end {
            match self.pages.walk(at) {
                Ok(leaf) => {
                    self.pages.clear(&leaf);
                    at += bytes_at(leaf.level);
                }
                Err(hole) => at = (at / hole + 1).saturating_mul(hole),
            }
        }
        if iova < end {
            self.note(iova, end);
        }
    }

    /// Notes that units may still translate these addresses as before.
    fn note(&mut self, start: u64, end: u64) {
        let stale = self.stale.get_or_insert(Stale { start, end });
        stale.start = stale.start.min(start);
        stale.end = stale.end.max(end);
    }
}
