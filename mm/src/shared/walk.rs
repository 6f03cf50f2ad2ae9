//! Walks of the shared EPT.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use seam::abi::{PAGE_4K, PageSize, level_bytes};
use seam::address::{Gpa, Hpa};

use super::entry::Entry;
use super::{ENTRIES, Frames, Holding, SharedError, SharedMap};

impl SharedMap {
    /// Returns the entry of `level` for `gpa`. Allocates the tables above it that are missing.
    pub(super) fn link<'f>(
        &self,
        frames: &'f impl Frames,
        gpa: Gpa,
        level: u8,
        holding: &mut Holding,
    ) -> Result<&'f AtomicU64, SharedError> {
        let address = gpa.0 | self.shared;
        let mut table = self.root;
        for above in (level + 1..=self.top).rev() {
            let word = &frames.words(table)[index(address, above)];
            let entry = Entry::load(word);
            table = if !entry.is_present() {
                let size = PageSize::Size4K;
                let table = frames.take(size).ok_or(SharedError::NoFrames(size))?;
                holding.tables += 1;
                word.store(Entry::table(table).0, SeqCst);
                table
            } else if entry.is_large() {
                return Err(SharedError::Occupied);
            } else {
                entry.hpa()
            };
        }
        Ok(&frames.words(table)[index(address, level)])
    }

    /// Returns the entry that maps memory of the guest at `gpa`, and its level. Lent memory and device memory are not
    /// the guest's.
    pub(super) fn find<'f>(
        &self,
        frames: &'f impl Frames,
        gpa: Gpa,
    ) -> Option<(&'f AtomicU64, u8)> {
        let leaf = self.leaf(frames, gpa)?;
        let entry = Entry::load(leaf.0);
        (!entry.is_lent() && !entry.is_io()).then_some(leaf)
    }

    /// Returns the entry that maps `gpa`, and its level.
    pub(super) fn leaf<'f>(
        &self,
        frames: &'f impl Frames,
        gpa: Gpa,
    ) -> Option<(&'f AtomicU64, u8)> {
        let address = gpa.0 | self.shared;
        let mut table = self.root;
        for level in (0..=self.top).rev() {
            let word = &frames.words(table)[index(address, level)];
            let entry = Entry::load(word);
            if !entry.is_present() {
                return None;
            }
            if level == 0 || entry.is_large() {
                return Some((word, level));
            }
            table = entry.hpa();
        }
        None
    }

    /// Returns the entry for the 2 MiB around `gpa`, if it is present: of a table, or of a page of 2 MiB.
    pub(super) fn block(&self, frames: &impl Frames, gpa: Gpa) -> Option<Entry> {
        let address = gpa.0 | self.shared;
        let mut table = self.root;
        for level in (1..=self.top).rev() {
            let entry = Entry::load(&frames.words(table)[index(address, level)]);
            if !entry.is_present() || level == 1 {
                return entry.is_present().then_some(entry);
            }
            table = entry.hpa();
        }
        None
    }

    /// Returns the table whose entries of `level` map the addresses around `gpa`.
    pub(super) fn table(&self, frames: &impl Frames, gpa: Gpa, level: u8) -> Option<Hpa> {
        let address = gpa.0 | self.shared;
        let mut table = self.root;
        for above in (level + 1..=self.top).rev() {
            let entry = Entry::load(&frames.words(table)[index(address, above)]);
            if !entry.is_present() || entry.is_large() {
                return None;
            }
            table = entry.hpa();
        }
        Some(table)
    }

    /// Splits a page of 2 MiB into mappings of its parts. The guest's view does not change, so no flush is needed until
    /// a part is unmapped. The devices' view does not change either.
    pub(super) fn split(
        &self,
        frames: &impl Frames,
        entry: &AtomicU64,
        holding: &mut Holding,
    ) -> Result<(), SharedError> {
        let size = PageSize::Size4K;
        let table = frames.take(size).ok_or(SharedError::NoFrames(size))?;
        let large = Entry::load(entry).hpa();
        for (part, word) in (0..).zip(frames.words(table)) {
            let page = Hpa(large.0 + part * PAGE_4K);
            word.store(Entry::leaf(page, size).0, SeqCst);
        }
        entry.store(Entry::table(table).0, SeqCst);
        frames.split(large);
        holding.tables += 1;
        holding.pages[1] -= 1;
        holding.pages[0] += ENTRIES as u64;
        Ok(())
    }
}

fn index(address: u64, level: u8) -> usize {
    (address / level_bytes(level)) as usize % ENTRIES
}
