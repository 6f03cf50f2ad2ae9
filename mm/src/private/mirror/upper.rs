//! S-EPT pages above the directories: PDPTs, and PML4s where the root is a PML5.
//!
//! Each is pinned by the tables below it. An unpinned one can be claimed and removed.

use alloc::boxed::Box;

use super::{Epoch, Levels, filled, index, start};
use crate::private::error::Error;
use seam::abi::level_bytes;
use seam::address::{Gpa, Level};
use seam::page::{Donated, Page};
use sync::Mutex;

/// A table above the directories.
#[derive(Debug, Default)]
pub enum Upper {
    /// Not linked.
    #[default]
    Free,
    /// A CPU works on it and holds the content.
    Claimed,
    /// Linked, with this many tables below it.
    Linked {
        /// The page of the S-EPT.
        page: Page<Donated>,
        /// Tables below it, including those about to be linked.
        pins: u32,
    },
    /// Linked, with its range blocked and no table below it.
    Blocked {
        /// The page of the S-EPT.
        page: Page<Donated>,
        /// Epoch of the block.
        since: Epoch,
    },
}

/// Position of a table above the directories: the level of the entry that points to it, and the first address that the
/// entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// [`Level::Pml4`] for a PDPT, [`Level::Pml5`] for a PML4.
    pub level: Level,
    /// The first address that the entry maps.
    pub gpa: Gpa,
}

impl Place {
    /// Returns the place of the PDPT above `gpa`.
    pub const fn pdpt(gpa: Gpa) -> Self {
        Self::at(gpa, Level::Pml4)
    }

    const fn at(gpa: Gpa, level: Level) -> Self {
        Self {
            level,
            gpa: start(gpa, level_bytes(level as u8)),
        }
    }
}

/// All tables above the directories.
#[derive(Debug)]
pub struct Uppers {
    pdpts: Box<[Mutex<Upper>]>,
    pml4s: Box<[Mutex<Upper>]>,
}

impl Uppers {
    /// Allocates places for all tables that a TD with addresses below `limit` can have.
    pub fn new(limit: u64, levels: Levels) -> Result<Self, Error> {
        let count = |level: Level| limit.div_ceil(level_bytes(level as u8));
        let pml4s = match levels {
            Levels::Four if count(Level::Pml4) > 512 => return Err(Error::BadRange),
            Levels::Four => 0,
            Levels::Five => count(Level::Pml5),
        };
        Ok(Self {
            pdpts: filled(count(Level::Pml4), Mutex::default)?,
            pml4s: filled(pml4s, Mutex::default)?,
        })
    }

    /// Returns the number of places.
    pub fn count(&self) -> usize {
        self.pdpts.len() + self.pml4s.len()
    }

    /// Takes out the page at the place with this number, whatever is linked below it. Returns `None` if there is none.
    pub fn take(&self, number: usize) -> Option<Page<Donated>> {
        let mut upper = self.numbered(number)?.lock();
        match core::mem::take(&mut *upper) {
            Upper::Linked { page, .. } | Upper::Blocked { page, .. } => Some(page),
            other => {
                *upper = other;
                None
            }
        }
    }

    /// Puts back what [`Self::take`] took.
    pub fn put_back(&self, number: usize, page: Page<Donated>) {
        if let Some(upper) = self.numbered(number) {
            *upper.lock() = Upper::Linked { page, pins: 0 };
        }
    }

    fn numbered(&self, number: usize) -> Option<&Mutex<Upper>> {
        let pml4 = || self.pml4s.get(number - self.pdpts.len());
        self.pdpts.get(number).or_else(pml4)
    }

    /// Returns the place of the table above the one at `place`; `None` if that is the root.
    pub fn above(&self, place: Place) -> Option<Place> {
        (place.level == Level::Pml4 && !self.pml4s.is_empty())
            .then(|| Place::at(place.gpa, Level::Pml5))
    }

    /// Calls `look` with the table at `place`.
    pub fn with<R>(&self, place: Place, look: impl FnOnce(&mut Upper) -> R) -> Result<R, Error> {
        let bytes = level_bytes(place.level as u8);
        let all = match place.level {
            Level::Pml5 => &self.pml4s,
            _ => &self.pdpts,
        };
        // A PML4 has 512 PDPTs, and all PDPTs are in one list.
        let number = match place.level {
            Level::Pml5 => index(place.gpa, bytes),
            _ => (place.gpa.0 / bytes) as usize,
        };
        let upper = all.get(number).ok_or(Error::BadRange)?;
        Ok(look(&mut upper.lock()))
    }

    /// Replaces the table at `place`.
    pub fn put(&self, place: Place, upper: Upper) {
        let put = self.with(place, |old| *old = upper);
        debug_assert!(put.is_ok());
    }

    /// Removes a pin.
    pub fn unpin(&self, place: Place) {
        let unpinned = self.with(place, |upper| match upper {
            Upper::Linked { pins, .. } => *pins -= 1,
            _ => debug_assert!(false, "only what is linked is pinned"),
        });
        debug_assert!(unpinned.is_ok());
    }
}
