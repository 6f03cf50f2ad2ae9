//! The mirror of a TD's S-EPT: the level, state and token of every page that the TD owns.
//!
//! Each GiB of guest-physical addresses has a lock, held for a few instructions and never over a SEAMCALL. A CPU claims
//! an entry before it works on it; other CPUs find a claimed entry busy. The cost is
//! [`PAGE_TABLE_FRAMES`] for each 2 MiB that are mapped as pages of 4 KiB, [`DIRECTORY_FRAMES`] for each GiB of which
//! anything is mapped, and 32 bytes for each GiB that the TD could have.

mod leaf;
mod parts;
mod table;
mod upper;

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::error::Error;
use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;
use seam::page::{Donated, Page};
use sync::Mutex;

pub use leaf::{Epoch, Leaf, Was};
pub(super) use parts::Parts;
pub(super) use table::{Boxed, Directory, ENTRIES, Entry, PageTable};
pub(super) use upper::{Place, Upper, Uppers};

/// Number of 4 KiB frames that the mirror of a page table takes, in a block of a power of two.
pub const PAGE_TABLE_FRAMES: u64 = frames_of::<PageTable>();
/// Number of 4 KiB frames that the mirror of a directory takes, in a block of a power of two.
pub const DIRECTORY_FRAMES: u64 = frames_of::<Directory>();

const fn frames_of<T>() -> u64 {
    (size_of::<T>() as u64)
        .div_ceil(PAGE_4K)
        .next_power_of_two()
}

/// Content of one GiB of guest-physical addresses.
pub(super) type Gib = Entry<Directory>;
/// Content of 2 MiB of guest-physical addresses.
pub(super) type Block = Entry<PageTable>;

/// The mirror of every page below a TD's root.
#[derive(Debug)]
pub(super) struct Mirror {
    gibs: Box<[Mutex<Gib>]>,
    pub uppers: Uppers,
}

impl Mirror {
    /// Creates an empty mirror for guest-physical addresses below `limit`.
    pub fn new(limit: u64, levels: Levels) -> Result<Self, Error> {
        Ok(Self {
            gibs: filled(limit.div_ceil(PAGE_1G), || Mutex::new(Entry::Free))?,
            uppers: Uppers::new(limit, levels)?,
        })
    }

    /// Returns the numbers of the GiBs that hold something, those mapped as one page first.
    pub fn occupied(&self) -> Result<Box<[u32]>, Error> {
        let mut all = Vec::new();
        for whole in [true, false] {
            for (number, gib) in (0..).zip(&self.gibs) {
                let found = match &*gib.lock() {
                    Entry::Free => false,
                    Entry::Leaf(_) => whole,
                    _ => !whole,
                };
                if found {
                    all.try_reserve(1).map_err(|_| Error::NoHeap)?;
                    all.push(number);
                }
            }
        }
        Ok(all.into_boxed_slice())
    }

    /// Takes out every page of a TD on which no CPU works any more.
    pub fn drain(&self, mut put: impl FnMut(Page<Donated>)) {
        for gib in &self.gibs {
            let mut directory = match core::mem::replace(&mut *gib.lock(), Entry::Free) {
                Entry::Leaf(leaf) => {
                    put(leaf.into_page());
                    continue;
                }
                Entry::Table(directory)
                | Entry::BlockedTable {
                    table: directory, ..
                } => directory,
                Entry::Free => continue,
                Entry::Claimed => {
                    debug_assert!(false, "who claims has the root page");
                    continue;
                }
            };
            directory.sept.take().into_iter().for_each(&mut put);
            for entry in directory.drain() {
                match entry {
                    Entry::Leaf(leaf) => put(leaf.into_page()),
                    Entry::Table(mut table) | Entry::BlockedTable { mut table, .. } => {
                        table.sept.take().into_iter().for_each(&mut put);
                        table.drain().for_each(|leaf| put(leaf.into_page()));
                    }
                    Entry::Free | Entry::Claimed => {}
                }
            }
        }
        let uppers = 0..self.uppers.count();
        uppers
            .filter_map(|number| self.uppers.take(number))
            .for_each(put);
    }

    /// Calls `look` with a GiB, by number.
    pub fn with<R>(&self, gib: u64, look: impl FnOnce(&mut Gib) -> R) -> Result<R, Error> {
        let gib = usize::try_from(gib)
            .ok()
            .and_then(|gib| self.gibs.get(gib))
            .ok_or(Error::BadRange)?;
        Ok(look(&mut gib.lock()))
    }

    /// Claims a whole GiB.
    pub fn claim_gib(&self, gib: u64) -> Result<Gib, Error> {
        self.with(gib, |entry| match entry {
            Entry::Table(directory) if directory.is_claimed() => Err(Error::Busy),
            _ => entry.claim(),
        })?
    }

    /// Ends the claim on a GiB.
    pub fn put_gib(&self, gib: u64, entry: Gib) {
        let put = self.with(gib, |claimed| claimed.put(entry));
        debug_assert!(put.is_ok());
    }

    /// Claims the 2 MiB at `gpa`, under an existing directory.
    pub fn claim_block(&self, gpa: Gpa) -> Result<Block, Error> {
        self.in_directory(gpa, |directory| directory.claim(index(gpa, PAGE_2M)))?
    }

    /// Ends the claim on the 2 MiB at `gpa`.
    pub fn put_block(&self, gpa: Gpa, entry: Block) {
        // A directory stays where it is while one of its entries is claimed.
        let put = self.in_directory(gpa, |directory| directory.put(index(gpa, PAGE_2M), entry));
        debug_assert!(put.is_ok());
    }

    /// Ends the claim on the 4 KiB at `gpa`. Returns whether its table maps one frame of 2 MiB now.
    pub fn put_page(&self, gpa: Gpa, leaf: Option<Leaf>) -> bool {
        let put = self.in_directory(gpa, |directory| {
            let table = directory.table(index(gpa, PAGE_2M))?;
            table.put_claimed(index(gpa, PAGE_4K), leaf);
            Some(table.is_whole())
        });
        debug_assert!(put.is_ok());
        put.ok().flatten().unwrap_or(false)
    }

    /// Notes that the page table of the 2 MiB of `gpa`, if any, may be made one page, and sets the number of tries for
    /// it.
    pub fn note_joinable(&self, gpa: Gpa, tries: u8) {
        // If the entry is claimed by now, its claimant handles this.
        _ = self.in_directory(gpa, |directory| {
            let at = index(gpa, PAGE_2M);
            if let Some(table) = directory.table(at) {
                table.tries = tries;
                directory.note_joinable(at, true);
            }
        });
    }

    /// Ends the claim on the 2 MiB at `gpa`, and drops the note unless they are to be tried `again`.
    pub fn put_tried(&self, gpa: Gpa, entry: Block, again: bool) {
        let put = self.in_directory(gpa, |directory| {
            let at = index(gpa, PAGE_2M);
            directory.put(at, entry);
            directory.note_joinable(at, again);
        });
        debug_assert!(put.is_ok());
    }

    /// Returns the first noted 2 MiB at or after `from`. If a claimed GiB comes before them, returns that with
    /// [`Error::Busy`].
    pub fn next_joinable(&self, from: u64) -> Option<(Gpa, Result<(), Error>)> {
        let first = usize::try_from(from / PAGE_1G).ok()?;
        let gibs = (0u64..).zip(&self.gibs).skip(first);
        for (number, gib) in gibs {
            let begin = Gpa(number * PAGE_1G);
            let at = index(Gpa(from.max(begin.0)), PAGE_2M);
            match &*gib.lock() {
                Entry::Table(directory) => {
                    if let Some(found) = directory.next_joinable(at) {
                        return Some((Gpa(begin.0 + found as u64 * PAGE_2M), Ok(())));
                    }
                }
                Entry::Claimed => return Some((begin, Err(Error::Busy))),
                _ => {}
            }
        }
        None
    }

    /// Calls `look` with the directory of the GiB of `gpa`.
    pub fn in_directory<R>(
        &self,
        gpa: Gpa,
        look: impl FnOnce(&mut Directory) -> R,
    ) -> Result<R, Error> {
        self.with(gpa.0 / PAGE_1G, |gib| match gib {
            Entry::Table(directory) => Ok(look(directory)),
            Entry::Claimed => Err(Error::Busy),
            Entry::BlockedTable { .. } => Err(Error::Blocked),
            Entry::Free => Err(Error::NotMapped),
            Entry::Leaf(_) => Err(Error::Occupied),
        })?
    }

    /// Like [`Self::in_directory`], for a directory that existed a moment ago. If it is gone, another CPU took it.
    pub fn in_linked<R>(
        &self,
        gpa: Gpa,
        look: impl FnOnce(&mut Directory) -> R,
    ) -> Result<R, Error> {
        self.in_directory(gpa, look).map_err(|error| match error {
            Error::NotMapped => Error::Busy,
            error => error,
        })
    }
}

/// Number of levels of a TD's S-EPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// A PML4 at the root.
    Four,
    /// A PML5 at the root.
    Five,
}

/// Returns the index of the entry for `gpa` in the table whose entries map `bytes` each.
pub(super) const fn index(gpa: Gpa, bytes: u64) -> usize {
    (gpa.0 / bytes % ENTRIES as u64) as usize
}

/// Returns the first address that the entry for `gpa` maps.
pub(super) const fn start(gpa: Gpa, bytes: u64) -> Gpa {
    Gpa(gpa.0 / bytes * bytes)
}

/// Returns whether `gpa` is aligned to `size`.
pub(super) const fn is_aligned(gpa: Gpa, size: PageSize) -> bool {
    gpa.0.is_multiple_of(size.bytes())
}

/// Allocates `count` values, unless the heap is used up.
pub(super) fn filled<T>(count: u64, make: impl FnMut() -> T) -> Result<Box<[T]>, Error> {
    let count = usize::try_from(count).map_err(|_| Error::BadRange)?;
    let mut all = Vec::new();
    all.try_reserve_exact(count).map_err(|_| Error::NoHeap)?;
    all.resize_with(count, make);
    Ok(all.into_boxed_slice())
}
