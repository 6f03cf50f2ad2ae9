//! Looking pages up, many in a row.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::abi::{PAGE_2M, PAGE_4K};
use seam::address::{Gpa, Hpa};

use super::entry::Entry;
use super::{ENTRIES, Frames, SharedMap, State, Words};

/// Finds the pages of a shared map, which can't be unmapped meanwhile.
pub struct Reader<'m, F> {
    map: &'m SharedMap,
    state: sync::RwLockReadGuard<'m, State>,
    frames: &'m F,
    /// The number of the 2 MiB that were looked at last, or [`NONE`]; their table, or their page if they have none.
    number: Cell<u64>,
    table: Cell<Option<&'m Words>>,
    whole: Cell<Hpa>,
}

/// No number of 2 MiB.
const NONE: u64 = u64::MAX;

/// The mapping of 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// A table with the entries of pages of 4 KiB.
    Table(Hpa),
    /// A page of the guest's.
    Page(Hpa),
}

impl<'m, F: Frames> Reader<'m, F> {
    pub(super) fn new(
        map: &'m SharedMap,
        state: sync::RwLockReadGuard<'m, State>,
        frames: &'m F,
    ) -> Self {
        let reader = Self {
            map,
            state,
            frames,
            number: Cell::new(NONE),
            table: Cell::new(None),
            whole: Cell::new(Hpa(0)),
        };
        if let Some((number, block)) = map.last.get() {
            reader.set(number, block);
        }
        reader
    }

    /// Returns the host's frames.
    pub const fn frames(&self) -> &'m F {
        self.frames
    }

    /// Returns the words of the 4 KiB around `gpa` (without the SHARED bit), or `None` if nothing of the guest's is mapped
    /// there. The guest may change them at any time.
    #[inline]
    pub fn page(&self, gpa: Gpa) -> Option<&'m Words> {
        match self.table.get() {
            _ if self.number.get() != gpa.0 / PAGE_2M => self.walk(gpa),
            Some(table) => self.entry_of(table, gpa),
            None => {
                let offset = gpa.0 % PAGE_2M / PAGE_4K * PAGE_4K;
                Some(self.frames.words(Hpa(self.whole.get().0 + offset)))
            }
        }
    }

    #[inline]
    fn set(&self, number: u64, block: Block) {
        self.number.set(number);
        match block {
            Block::Table(table) => self.table.set(Some(self.frames.words(table))),
            Block::Page(page) => {
                self.table.set(None);
                self.whole.set(page);
            }
        }
    }

    #[inline]
    fn entry_of(&self, table: &Words, gpa: Gpa) -> Option<&'m Words> {
        let entry = Entry::load(&table[(gpa.0 / PAGE_4K) as usize % ENTRIES]);
        entry.is_guests().then(|| self.frames.words(entry.hpa()))
    }

    #[inline(never)]
    fn walk(&self, gpa: Gpa) -> Option<&'m Words> {
        if self.state.holding.tables == 0 {
            return None;
        }
        let entry = self.map.block(self.frames, gpa)?;
        let block = match entry.is_large() {
            true if !entry.is_guests() => return None,
            true => Block::Page(entry.hpa()),
            false => Block::Table(entry.hpa()),
        };
        let number = gpa.0 / PAGE_2M;
        self.map.last.set(number, block);
        self.set(number, block);
        self.page(gpa)
    }
}

/// The mapping that a reader used last, for the next reader. Set with the lock held for reading, and forgotten by each who takes it
/// for writing, so that it is what the entries say.
#[derive(Debug, Default)]
pub(super) struct LastBlock(
    /// The address of a table or page and, in the bits that addresses do not have, the number of the 2 MiB and one bit for
    /// a page; 0 if there is none.
    AtomicU64,
);

impl LastBlock {
    /// The bits of an address: a multiple of 4 KiB of at most 52 bits.
    const ADDRESS: u64 = (1 << 52) - PAGE_4K;
    /// Number of bits above the address.
    const ABOVE: u32 = 12;

    /// Returns the number of the 2 MiB, and what maps them.
    #[inline]
    fn get(&self) -> Option<(u64, Block)> {
        let last = self.0.load(Relaxed);
        let (address, rest) = (last & Self::ADDRESS, last & !Self::ADDRESS);
        let rest = rest.rotate_left(Self::ABOVE);
        let block = match rest & 1 {
            0 => Block::Table(Hpa(address)),
            _ => Block::Page(Hpa(address)),
        };
        (last != 0).then_some((rest >> 1, block))
    }

    /// Sets it, unless the number has more than 23 bits.
    fn set(&self, number: u64, block: Block) {
        let (address, is_page) = match block {
            Block::Table(hpa) => (hpa.0, 0),
            Block::Page(hpa) => (hpa.0, 1),
        };
        let rest = (number << 1 | is_page).rotate_right(Self::ABOVE);
        if rest & Self::ADDRESS == 0 {
            self.0.store(address | rest, Relaxed);
        }
    }

    pub(super) fn forget(&self) {
        self.0.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_used_last_is_known_with_its_number(
            number in 0u64..1 << 24, at in 1u64..1 << 40, is_page: bool,
        ) {
            let last = LastBlock::default();
            let at = Hpa(at * PAGE_4K);
            let block = if is_page { Block::Page(at) } else { Block::Table(at) };
            last.set(number, block);
            let is_kept = number < 1 << 23;
            prop_assert_eq!(last.get(), is_kept.then_some((number, block)));
            last.forget();
            prop_assert_eq!(last.get(), None);
        }
    }
}
