//! Looking pages up, many in a row.

use core::cell::Cell;

use seam::abi::{PAGE_2M, PAGE_4K};
use seam::address::{Gpa, Hpa};

use super::entry::Entry;
use super::{ENTRIES, Frames, SharedMap, State, Words};

/// Finds the pages of a shared map, which can't be unmapped meanwhile.
pub struct Reader<'m, F> {
    map: &'m SharedMap,
    state: sync::RwLockReadGuard<'m, State>,
    frames: &'m F,
    /// The 2 MiB that were looked at last, and their number.
    last: Cell<Option<(u64, Block<'m>)>>,
}

/// What maps 2 MiB.
#[derive(Clone, Copy)]
enum Block<'m> {
    /// A table with the entries of pages of 4 KiB.
    Table(&'m Words),
    /// A page of the guest's.
    Page(Hpa),
}

impl<'m, F: Frames> Reader<'m, F> {
    pub(super) const fn new(
        map: &'m SharedMap,
        state: sync::RwLockReadGuard<'m, State>,
        frames: &'m F,
    ) -> Self {
        Self {
            map,
            state,
            frames,
            last: Cell::new(None),
        }
    }

    /// Returns the host's frames.
    pub const fn frames(&self) -> &'m F {
        self.frames
    }

    /// Returns the words of the 4 KiB around `gpa` (without the SHARED bit), or `None` if nothing of the guest's is mapped
    /// there. The guest may change them at any time.
    #[inline]
    pub fn page(&self, gpa: Gpa) -> Option<&'m Words> {
        match self.last.get() {
            Some((number, block)) if number == gpa.0 / PAGE_2M => self.page_of(block, gpa),
            _ => self.walk(gpa),
        }
    }

    #[inline]
    fn page_of(&self, block: Block<'m>, gpa: Gpa) -> Option<&'m Words> {
        match block {
            Block::Table(table) => self.entry_of(table, gpa),
            Block::Page(hpa) => {
                let offset = gpa.0 % PAGE_2M / PAGE_4K * PAGE_4K;
                Some(self.frames.words(Hpa(hpa.0 + offset)))
            }
        }
    }

    #[inline]
    fn entry_of(&self, table: &Words, gpa: Gpa) -> Option<&'m Words> {
        let entry = Entry::load(&table[(gpa.0 / PAGE_4K) as usize % ENTRIES]);
        let is_guests = entry.is_present() && !entry.is_lent() && !entry.is_io();
        is_guests.then(|| self.frames.words(entry.hpa()))
    }

    #[inline(never)]
    fn walk(&self, gpa: Gpa) -> Option<&'m Words> {
        if self.state.holding.tables == 0 {
            return None;
        }
        let entry = self.map.block(self.frames, gpa)?;
        let block = match entry.is_large() {
            true if entry.is_lent() || entry.is_io() => return None,
            true => Block::Page(entry.hpa()),
            false => Block::Table(self.frames.words(entry.hpa())),
        };
        self.last.set(Some((gpa.0 / PAGE_2M, block)));
        self.page_of(block, gpa)
    }
}
