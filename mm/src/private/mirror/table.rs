//! Tables of the mirror: page tables of 4 KiB pages, and directories of 2 MiB pages and page tables.
//!
//! Every entry is free, a leaf, a table, or claimed. A CPU claims an entry, works on it with no lock held, and puts it
//! back; other CPUs find a claimed entry busy.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

use seam::abi::{PAGE_2M, PAGE_4K};
use seam::address::Hpa;
use seam::page::{Donated, Page};

use super::leaf::{Epoch, Leaf, Was};
use crate::private::error::Error;

/// Number of entries in a table.
pub const ENTRIES: usize = 512;

/// A box whose allocation can fail, unlike that of [`Box::new`].
#[derive(Debug)]
pub struct Boxed<T>(Box<[T; 1]>);

impl<T> Boxed<T> {
    /// Puts `value` on the heap.
    ///
    /// # Errors
    /// [`Error::NoHeap`]; the value is dropped.
    pub fn new(value: T) -> Result<Self, Error> {
        let mut one = Vec::new();
        one.try_reserve_exact(1).map_err(|_| Error::NoHeap)?;
        one.push(value);
        let one = one.into_boxed_slice().try_into();
        one.map(Self).map_err(|_| Error::NoHeap)
    }
}

impl<T> Deref for Boxed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        let [value] = &*self.0;
        value
    }
}

impl<T> DerefMut for Boxed<T> {
    fn deref_mut(&mut self) -> &mut T {
        let [value] = &mut *self.0;
        value
    }
}

/// An entry above the 4 KiB pages. 24 bytes.
#[derive(Debug)]
pub enum Entry<T> {
    /// Maps nothing.
    Free,
    /// A CPU works on it and holds the content.
    Claimed,
    /// A page.
    Leaf(Leaf),
    /// A table, with its S-EPT page.
    Table(Boxed<T>),
    /// A table whose range is blocked: no walk gets below it.
    BlockedTable {
        /// The table.
        table: Boxed<T>,
        /// Epoch of the block.
        since: Epoch,
    },
}

const _: () = assert!(size_of::<Entry<PageTable>>() == 24);

impl<T> Entry<T> {
    /// Takes the content, for the caller to work on.
    ///
    /// # Errors
    /// [`Error::Busy`] when another CPU has claimed it.
    pub fn claim(&mut self) -> Result<Self, Error> {
        match core::mem::replace(self, Self::Claimed) {
            Self::Claimed => Err(Error::Busy),
            entry => Ok(entry),
        }
    }

    /// Ends a claim with the new content.
    pub fn put(&mut self, entry: Self) {
        debug_assert!(matches!(self, Self::Claimed));
        *self = entry;
    }
}

/// State of a 4 KiB page in a [`PageTable`], which stores the page itself separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Free,
    Claimed,
    Mapped,
    Pending,
    Blocked,
    PendingBlocked,
}

/// A page table: 512 pages of 4 KiB at 9 bytes each.
///
/// One epoch is kept for all blocked pages of the table, the latest: this errs on the side of one tracking round more.
#[derive(Debug)]
pub struct PageTable {
    /// The page of the S-EPT. `None` until it is linked and after it is unlinked.
    pub sept: Option<Page<Donated>>,
    pages: [Option<Page<Donated>>; ENTRIES],
    tags: [Tag; ENTRIES],
    since: Epoch,
    used: u16,
    claimed: u16,
    /// Base of the home frame: the 2 MiB frame in which the first such page lies at the offset that it has in the
    /// table.
    home: u64,
    /// Number of pages that lie in the home frame at the offset that they have in the table.
    at_home: u16,
    /// Index of the page added last.
    last: u16,
    /// Remaining tries to make the table one page.
    pub tries: u8,
}

const _: () = assert!(size_of::<PageTable>() <= ENTRIES * 9 + 40);

impl PageTable {
    /// Creates a table that maps nothing.
    pub const fn new() -> Self {
        Self {
            sept: None,
            pages: [const { None }; ENTRIES],
            tags: [Tag::Free; ENTRIES],
            since: Epoch(0),
            used: 0,
            claimed: 0,
            home: 0,
            at_home: 0,
            last: 0,
            tries: 0,
        }
    }

    /// Returns the address of the page at `index` in the home frame, if there is a home frame.
    pub fn place_of(&self, index: usize) -> Option<Hpa> {
        (self.at_home > 0).then(|| Hpa(self.home + index as u64 * PAGE_4K))
    }

    /// Returns whether the table maps one frame of 2 MiB, from its beginning to its end.
    pub const fn is_whole(&self) -> bool {
        self.at_home as usize == ENTRIES
    }

    /// Returns the index of the page added last, and then all indices: the order in which acceptance is best checked.
    pub fn by_doubt(&self) -> impl Iterator<Item = usize> + use<> {
        core::iter::once(usize::from(self.last)).chain(0..ENTRIES)
    }

    /// Returns whether the guest is known to have accepted the page at `index`.
    pub fn is_accepted(&self, index: usize) -> bool {
        self.tags[index] == Tag::Mapped
    }

    /// Notes that the guest has accepted the page at `index`.
    pub fn note_accepted(&mut self, index: usize) {
        if self.tags[index] == Tag::Pending {
            self.tags[index] = Tag::Mapped;
        }
    }

    /// Returns the base of the frame in which `page` is the one at `index`, if a 2 MiB frame can begin there.
    fn frame_of(index: usize, page: &Page<Donated>) -> Option<u64> {
        let begin = page.hpa().0.checked_sub(index as u64 * PAGE_4K)?;
        begin.is_multiple_of(PAGE_2M).then_some(begin)
    }

    /// Returns the number of pages mapped or claimed.
    pub const fn used(&self) -> usize {
        (self.used + self.claimed) as usize
    }

    /// Returns whether a CPU works on one of its pages.
    pub const fn is_claimed(&self) -> bool {
        self.claimed > 0
    }

    /// Returns whether nothing is mapped at `index` or about to be.
    pub fn is_free(&self, index: usize) -> bool {
        self.tags[index] == Tag::Free
    }

    /// Claims the free entry at `index`, for a page to be mapped.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Occupied`].
    pub fn claim_free(&mut self, index: usize) -> Result<(), Error> {
        match self.tags[index] {
            Tag::Free => {
                self.tags[index] = Tag::Claimed;
                self.claimed += 1;
                Ok(())
            }
            Tag::Claimed => Err(Error::Busy),
            _ => Err(Error::Occupied),
        }
    }

    /// Ends a claim: the entry holds `leaf`, or nothing.
    pub fn put_claimed(&mut self, index: usize, leaf: Option<Leaf>) {
        debug_assert_eq!(self.tags[index], Tag::Claimed);
        self.claimed -= 1;
        self.tags[index] = Tag::Free;
        if let Some(leaf) = leaf {
            self.put(index, leaf);
        }
    }

    /// Takes out the page at `index`. Returns `None` when there is none, or a CPU works on it.
    pub fn take(&mut self, index: usize) -> Option<Leaf> {
        let page = self.pages[index].take()?;
        let tag = core::mem::replace(&mut self.tags[index], Tag::Free);
        self.used -= 1;
        if self.at_home > 0 && Self::frame_of(index, &page) == Some(self.home) {
            self.at_home -= 1;
        }
        let since = self.since;
        Some(match tag {
            Tag::Blocked => Leaf::usable(page, Was::Mapped).blocked(since),
            Tag::PendingBlocked => Leaf::usable(page, Was::Pending).blocked(since),
            Tag::Pending => Leaf::Pending(page),
            _ => Leaf::Mapped(page),
        })
    }

    /// Puts a 4 KiB page at the free entry `index`.
    pub fn put(&mut self, index: usize, leaf: Leaf) {
        debug_assert_eq!(self.tags[index], Tag::Free);
        self.tags[index] = match &leaf {
            Leaf::Mapped(_) => Tag::Mapped,
            Leaf::Pending(_) => Tag::Pending,
            Leaf::Blocked { since, was, .. } => {
                self.note(*since);
                match was {
                    Was::Mapped => Tag::Blocked,
                    Was::Pending => Tag::PendingBlocked,
                }
            }
        };
        let page = leaf.into_page();
        if let Some(frame) = Self::frame_of(index, &page) {
            if self.at_home == 0 {
                self.home = frame;
            }
            self.at_home += u16::from(self.home == frame);
        }
        self.last = index as u16;
        self.pages[index] = Some(page);
        self.used += 1;
    }

    /// Returns the latest epoch at which the page at `index` was blocked, if it is blocked.
    pub fn blocked_since(&self, index: usize) -> Option<Epoch> {
        matches!(self.tags[index], Tag::Blocked | Tag::PendingBlocked).then_some(self.since)
    }

    /// Notes that the page at `index` has been blocked.
    pub fn block(&mut self, index: usize, since: Epoch) {
        self.note(since);
        self.tags[index] = match self.tags[index] {
            Tag::Mapped => Tag::Blocked,
            Tag::Pending => Tag::PendingBlocked,
            other => other,
        };
    }

    fn note(&mut self, since: Epoch) {
        if self.since.is_covered_by(since) {
            self.since = since;
        }
    }

    /// Returns the page at `index`, if there is one.
    pub const fn page(&self, index: usize) -> Option<&Page<Donated>> {
        self.pages[index].as_ref()
    }

    /// Takes every page out, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Leaf> + '_ {
        (0..ENTRIES).filter_map(|index| self.take(index))
    }
}

/// A directory: 512 entries of 2 MiB, each a page or a page table.
#[derive(Debug)]
pub struct Directory {
    /// The page of the S-EPT. `None` until it is linked and after it is unlinked.
    pub sept: Option<Page<Donated>>,
    entries: [Entry<PageTable>; ENTRIES],
    /// One bit for each entry: set if it is a table that may be made one page.
    joinable: [u64; ENTRIES / 64],
    used: u16,
    claimed: u16,
}

const _: () = assert!(size_of::<Directory>() <= ENTRIES * 24 + ENTRIES / 8 + 16);

impl Directory {
    /// Creates a directory that maps nothing.
    pub const fn new() -> Self {
        Self {
            sept: None,
            entries: [const { Entry::Free }; ENTRIES],
            joinable: [0; ENTRIES / 64],
            used: 0,
            claimed: 0,
        }
    }

    /// Returns the number of entries that are not free.
    pub const fn used(&self) -> usize {
        (self.used + self.claimed) as usize
    }

    /// Returns whether a CPU works on one of its entries, or on a page of one of its page tables.
    pub fn is_claimed(&self) -> bool {
        self.claimed > 0
            || self
                .entries
                .iter()
                .any(|entry| matches!(entry, Entry::Table(table) if table.is_claimed()))
    }

    /// Returns the entry at `index`.
    pub const fn entry(&self, index: usize) -> &Entry<PageTable> {
        &self.entries[index]
    }

    /// Returns the page table at `index`, if there is one and it is neither blocked nor claimed.
    pub const fn table(&mut self, index: usize) -> Option<&mut Boxed<PageTable>> {
        match &mut self.entries[index] {
            Entry::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Notes whether the entry at `index` is a table that may be made one page.
    pub fn note_joinable(&mut self, index: usize, is: bool) {
        let word = &mut self.joinable[index / 64];
        let bit = 1 << (index % 64);
        *word = if is { *word | bit } else { *word & !bit };
    }

    /// Returns the first entry noted as joinable, at or after `index`.
    pub fn next_joinable(&self, index: usize) -> Option<usize> {
        (index / 64..ENTRIES / 64).find_map(|at| {
            let from = if at == index / 64 { index % 64 } else { 0 };
            let word = self.joinable[at] & (u64::MAX << from);
            (word != 0).then(|| at * 64 + word.trailing_zeros() as usize)
        })
    }

    /// Claims the entry at `index`, with everything below it.
    ///
    /// # Errors
    /// [`Error::Busy`] when another CPU works on it or below it.
    pub fn claim(&mut self, index: usize) -> Result<Entry<PageTable>, Error> {
        if let Entry::Table(table) = &self.entries[index]
            && table.is_claimed()
        {
            return Err(Error::Busy);
        }
        let entry = self.entries[index].claim()?;
        self.claimed += 1;
        if !matches!(entry, Entry::Free) {
            self.used -= 1;
        }
        Ok(entry)
    }

    /// Ends a claim with the new content of the entry.
    pub fn put(&mut self, index: usize, entry: Entry<PageTable>) {
        self.claimed -= 1;
        if !matches!(entry, Entry::Free) {
            self.used += 1;
        }
        self.entries[index].put(entry);
    }

    /// Takes out the page at `index`, of a TD for which nothing is mapped any more. Returns `None` if there is none.
    pub fn take_leaf(&mut self, index: usize) -> Option<Leaf> {
        match core::mem::replace(&mut self.entries[index], Entry::Free) {
            Entry::Leaf(leaf) => {
                self.used -= 1;
                Some(leaf)
            }
            other => {
                self.entries[index] = other;
                None
            }
        }
    }

    /// Takes out the page table at `index`, blocked or not, with everything below it. Returns `None` if there is none.
    pub fn take_table(&mut self, index: usize) -> Option<Boxed<PageTable>> {
        match core::mem::replace(&mut self.entries[index], Entry::Free) {
            Entry::Table(table) | Entry::BlockedTable { table, .. } => {
                self.used -= 1;
                Some(table)
            }
            other => {
                self.entries[index] = other;
                None
            }
        }
    }

    /// Puts back what [`Self::take_table`] took.
    pub fn put_table(&mut self, index: usize, table: Boxed<PageTable>) {
        debug_assert!(matches!(self.entries[index], Entry::Free));
        self.entries[index] = Entry::Table(table);
        self.used += 1;
    }

    /// Fills the free entry at `index` of a directory that no other CPU sees, or of a TD for which nothing is mapped
    /// any more.
    pub fn fill(&mut self, index: usize, leaf: Leaf) {
        debug_assert!(matches!(self.entries[index], Entry::Free));
        self.entries[index] = Entry::Leaf(leaf);
        self.used += 1;
    }

    /// Takes everything out, in order. No CPU works on any of it.
    pub fn drain(&mut self) -> impl Iterator<Item = Entry<PageTable>> + '_ {
        self.used = 0;
        self.entries
            .iter_mut()
            .map(|entry| core::mem::replace(entry, Entry::Free))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_claimed_by_one_at_a_time() {
        let mut directory = Directory::new();
        let entry = directory.claim(3).unwrap();
        assert!(matches!(entry, Entry::Free));
        assert_eq!(directory.claim(3).err(), Some(Error::Busy));
        assert_eq!((directory.used(), directory.is_claimed()), (1, true));
        directory.put(3, entry);
        assert_eq!((directory.used(), directory.is_claimed()), (0, false));
    }

    #[test]
    fn a_search_from_any_lower_address_finds_a_joinable_block() {
        let mut directory = Directory::new();
        assert_eq!(directory.next_joinable(0), None);
        for at in [3, 64, 511] {
            directory.note_joinable(at, true);
        }
        let found = [0, 3, 4, 64, 65, 511].map(|from| directory.next_joinable(from));
        assert_eq!(found, [3, 3, 64, 64, 511, 511].map(Some));
        assert_eq!(directory.next_joinable(ENTRIES), None);
        directory.note_joinable(64, false);
        assert_eq!(directory.next_joinable(4), Some(511));
    }

    #[test]
    fn a_table_is_not_claimed_under_a_page_that_is() {
        let mut directory = Directory::new();
        _ = directory.claim(0).unwrap();
        let table = Boxed::new(PageTable::new()).unwrap();
        directory.put(0, Entry::Table(table));
        let table = directory.table(0).unwrap();
        table.claim_free(7).unwrap();
        assert_eq!(table.claim_free(7).err(), Some(Error::Busy));
        assert!(directory.is_claimed());
        assert_eq!(directory.claim(0).err(), Some(Error::Busy));
        directory.table(0).unwrap().put_claimed(7, None);
        assert!(directory.claim(0).is_ok());
    }
}
