//! Looking pages up, many in a row.

use core::cell::Cell;

use seam::abi::{PAGE_2M, PAGE_4K, level_bytes};
use seam::address::{Gpa, Hpa};

use super::entry::Entry;
use super::{ENTRIES, Frames, SharedMap, State, Words};

/// Finds the pages of a shared map, which can't be unmapped meanwhile.
pub struct Reader<'m, F> {
    map: &'m SharedMap,
    state: sync::RwLockReadGuard<'m, State>,
    frames: &'m F,
    /// The table that was used last, and the number of the 2 MiB that it maps.
    last: Cell<Option<(u64, &'m Words)>>,
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
            Some((block, table)) if block == gpa.0 / PAGE_2M => self.entry_of(table, gpa),
            _ => self.walk(gpa),
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
        if let Some(table) = self.map.table(self.frames, gpa, 0) {
            let table = self.frames.words(table);
            self.last.set(Some((gpa.0 / PAGE_2M, table)));
            return self.entry_of(table, gpa);
        }
        // A page of 2 MiB, or nothing.
        let (entry, level) = self.map.find(self.frames, gpa)?;
        let offset = gpa.0 % level_bytes(level) / PAGE_4K * PAGE_4K;
        let page = Hpa(Entry::load(entry).hpa().0 + offset);
        Some(self.frames.words(page))
    }
}
