//! Taking shared memory back from the guest and from its devices.
//!
//! The order is: clear the entries, unmap from the devices' view, flush the CPUs, free the frames. A frame changes hands
//! once neither a CPU nor a device reaches it.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use arrayvec::ArrayVec;
use seam::abi::{PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;

use super::entry::Entry;
use super::{ENTRIES, Flush, Frames, MirrorError, Page, SharedError, SharedMap, State};

/// A page that is being unmapped.
struct Leaf<'f> {
    gpa: Gpa,
    entry: &'f AtomicU64,
    was: Entry,
}

/// The guest's pages in a range within 2 MiB, all of one size, ascending.
struct Leaves<'f> {
    all: ArrayVec<Leaf<'f>, ENTRIES>,
    size: PageSize,
}

impl SharedMap {
    /// Unmaps `range` (without the SHARED bit), which lies within one aligned 2 MiB, and frees the frames after
    /// `flush`. Lent pages and device memory stay mapped. Returns the number of bytes unmapped.
    ///
    /// # Errors
    /// [`SharedError::BadRange`]; [`SharedError::NoAnswer`], and everything is mapped as before; [`SharedError::NoFrames`] when a page of
    /// 2 MiB must be split and there is no frame for the table. [`SharedError::Mirror`]: the pages below an address are
    /// unmapped, the others are mapped as before.
    pub fn unmap(
        &self,
        frames: &impl Frames,
        range: Range<u64>,
        flush: &impl Flush,
    ) -> Result<u64, SharedError> {
        let aligned = range.start.is_multiple_of(PAGE_4K) && range.end.is_multiple_of(PAGE_4K);
        let within = range.start / PAGE_2M == range.end.saturating_sub(1) / PAGE_2M;
        if !aligned || !within || range.is_empty() || range.end > self.shared {
            return Err(SharedError::BadRange);
        }
        let mut state = self.write();
        if state.holding.tables == 0 {
            return Ok(0);
        }
        state.check()?;
        let mut leaves = self.leaves(frames, range, &mut state)?;
        leaves.clear();
        let refused = leaves.unmap_from_devices(&mut state).err();
        if !leaves.all.is_empty()
            && let Err(silent) = flush.flush()
        {
            leaves.restore(&mut state);
            return Err(SharedError::NoAnswer(silent));
        }
        for leaf in &leaves.all {
            frames.give(leaf.was.hpa(), leaves.size);
        }
        let count = leaves.all.len() as u64;
        state.holding.pages[leaves.size as usize] -= count;
        match refused {
            Some(error) => Err(error.into()),
            None => Ok(count * leaves.size.bytes()),
        }
    }

    /// Returns the guest's pages in `range`. Splits a page of 2 MiB that is not in it as a whole.
    fn leaves<'f>(
        &self,
        frames: &'f impl Frames,
        range: Range<u64>,
        state: &mut State,
    ) -> Result<Leaves<'f>, SharedError> {
        let mut all = ArrayVec::new();
        let mut push = |gpa, entry| {
            let was = Entry::load(entry);
            all.push(Leaf { gpa, entry, was });
        };
        let start = Gpa(range.start);
        if let Some((entry, 1)) = self.find(frames, start) {
            if range.end - range.start == PAGE_2M {
                push(start, entry);
                let size = PageSize::Size2M;
                return Ok(Leaves { all, size });
            }
            self.split(frames, entry, &mut state.holding)?;
        }
        for gpa in range.step_by(PAGE_4K as usize).map(Gpa) {
            if let Some((entry, 0)) = self.find(frames, gpa) {
                push(gpa, entry);
            }
        }
        let size = PageSize::Size4K;
        Ok(Leaves { all, size })
    }
}

impl Leaves<'_> {
    fn clear(&self) {
        for leaf in &self.all {
            leaf.entry.store(Entry::NOTHING.0, SeqCst);
        }
    }

    /// Unmaps the pages from the devices' view. Keeps those alone that no device reaches any more; the entries of the
    /// others are restored.
    fn unmap_from_devices(&mut self, state: &mut State) -> Result<(), MirrorError> {
        let Some(mirror) = &state.mirror else {
            return Ok(());
        };
        let mut done = 0;
        while done < self.all.len() {
            let run = self.run_from(done);
            let addresses = self.all[run.start].gpa.0..self.end_of(run.end - 1);
            if let Err(error) = mirror.unmap(addresses) {
                if error == MirrorError::NoAnswer {
                    state.is_astray = Some(error);
                }
                for leaf in self.all.drain(done..) {
                    leaf.entry.store(leaf.was.0, SeqCst);
                }
                return Err(error);
            }
            done = run.end;
        }
        Ok(())
    }

    /// Returns the indices of the pages that follow each other without a gap, from `first` on.
    fn run_from(&self, first: usize) -> Range<usize> {
        let mut end = first + 1;
        while end < self.all.len() && self.all[end].gpa.0 == self.end_of(end - 1) {
            end += 1;
        }
        first..end
    }

    /// Returns the address at which a page ends.
    fn end_of(&self, index: usize) -> u64 {
        self.all[index].gpa.0 + self.size.bytes()
    }

    /// Maps the pages again, for the guest and for its devices.
    fn restore(&self, state: &mut State) {
        for leaf in &self.all {
            let page = Page {
                hpa: leaf.was.hpa(),
                size: self.size,
                is_read_only: false,
            };
            if let Err(error) = state.reflect(leaf.gpa, page) {
                // The guest's devices lack memory that it shares with them.
                state.is_astray = state.is_astray.or(Some(error));
            }
            leaf.entry.store(leaf.was.0, SeqCst);
        }
    }
}
