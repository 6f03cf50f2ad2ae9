//! A TD's shared memory: the shared EPT, which the host owns, and the frames that it maps.
//!
//! The CPU walks it for guest-physical addresses with the SHARED bit, which is part of the address used in the walk. An
//! access to an unmapped address raises #VE in the guest (suppress-#VE is clear) and costs the host nothing; the guest
//! makes a TDVMCALL of it. Only memory that the guest asked to share is mapped. The tables for it stay until the TD's
//! end; the TD's memory size bounds their number.
//!
//! Host and guest share the frames. The host reads and writes them a word at a time with atomic operations, and never
//! assumes that a value read once stays the same.
//!
//! Source: Intel SDM volume 3C, section 29.3 (EPT entries); TDX Module 1.5 Base Architecture, "Shared EPT".

mod entry;
mod mirror;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use arrayvec::ArrayVec;
use seam::abi::{PAGE_2M, PAGE_4K, PageSize, level_bytes};
use seam::address::{Gpa, Hpa};

use crate::private::{Levels, NoAnswer};
use entry::Entry;
pub use mirror::{Mirror, MirrorError, Page};

/// Number of entries in a table.
const ENTRIES: usize = 512;

/// The words of a 4 KiB frame.
pub type Words = [AtomicU64; ENTRIES];

/// Allocation of the host's frames for shared memory, and access to them.
pub trait Frames {
    /// Allocates a zeroed frame of 4 KiB or 2 MiB. Returns `None` when there is none.
    fn take(&self, size: PageSize) -> Option<Hpa>;

    /// Frees a frame.
    fn give(&self, hpa: Hpa, size: PageSize);

    /// Notes that an allocated frame of 2 MiB will be freed in parts of 4 KiB.
    fn split(&self, hpa: Hpa);

    /// Returns the 4 KiB at `hpa`, in an allocated frame.
    fn words(&self, hpa: Hpa) -> &Words;
}

/// Invalidates a TD's shared EPT translations on every CPU. The hypervisor implements it.
pub trait Flush {
    /// Returns once each vCPU that was in the guest has left it at least once, and no CPU uses a translation that was
    /// removed before the call.
    ///
    /// # Errors
    /// [`NoAnswer`] when a CPU did not answer in time.
    fn flush(&self) -> Result<(), NoAnswer>;
}

/// Reason why an operation on shared memory failed. Nothing has changed then, unless the operation says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedError {
    /// The address is not aligned, or is outside the TD's shared half.
    BadRange,
    /// Something is mapped there.
    Occupied,
    /// Nothing is mapped there.
    NotMapped,
    /// The host has no free frame of this size.
    NoFrames(PageSize),
    /// A CPU may still use the memory to be unmapped.
    NoAnswer(NoAnswer),
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRange => f.write_str("the address is not aligned or can't be shared"),
            Self::Occupied => f.write_str("it is shared already"),
            Self::NotMapped => f.write_str("it is not shared"),
            Self::NoFrames(size) => write!(f, "no frame of {} KiB is free", size.bytes() >> 10),
            Self::NoAnswer(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SharedError {}

/// Memory used by a shared map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Frames of 4 KiB and 2 MiB.
    pub pages: [u64; 2],
    /// Pages of the EPT, including the root.
    pub tables: u64,
}

/// The shared memory of one TD.
#[derive(Debug)]
pub struct SharedMap {
    root: Hpa,
    top: u8,
    shared: u64,
    // Held by each CPU that changes an entry or uses a frame, which therefore cannot be unmapped meanwhile.
    holding: spin::Mutex<Holding>,
}

impl SharedMap {
    /// Creates an empty map with `levels` levels for a TD whose addresses have `shared` as SHARED bit.
    ///
    /// # Errors
    /// [`SharedError::NoFrames`]; [`SharedError::BadRange`] when `shared` is not a single bit within the reach of the levels.
    pub fn new(frames: &impl Frames, levels: Levels, shared: u64) -> Result<Self, SharedError> {
        let top = match levels {
            Levels::Four => 3,
            Levels::Five => 4,
        };
        if !shared.is_power_of_two() || shared >= level_bytes(top) * ENTRIES as u64 {
            return Err(SharedError::BadRange);
        }
        let size = PageSize::Size4K;
        let root = frames.take(size).ok_or(SharedError::NoFrames(size))?;
        Ok(Self {
            root,
            top,
            shared,
            holding: spin::Mutex::new(Holding {
                pages: [0; 2],
                tables: 1,
            }),
        })
    }

    /// Returns the root page, for the TD VMCS field SHARED_EPTP.
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// Returns the SHARED bit of the TD's addresses.
    pub const fn shared_bit(&self) -> u64 {
        self.shared
    }

    /// Returns the memory that the map uses.
    pub fn holding(&self) -> Holding {
        *self.holding.lock()
    }

    /// Maps a zeroed frame of 4 KiB or 2 MiB at `gpa` (without the SHARED bit).
    ///
    /// # Errors
    /// [`SharedError`]; tables allocated for it stay.
    pub fn map(&self, frames: &impl Frames, gpa: Gpa, size: PageSize) -> Result<(), SharedError> {
        if size > PageSize::Size2M || gpa.0 >= self.shared || !gpa.0.is_multiple_of(size.bytes()) {
            return Err(SharedError::BadRange);
        }
        let mut holding = self.holding.lock();
        if holding.tables == 0 {
            return Err(SharedError::BadRange);
        }
        let entry = self.link(frames, gpa, size as u8, &mut holding)?;
        if Entry::load(entry).is_present() {
            return Err(SharedError::Occupied);
        }
        let frame = frames.take(size).ok_or(SharedError::NoFrames(size))?;
        entry.store(Entry::leaf(frame, size).0, SeqCst);
        holding.pages[size as usize] += 1;
        Ok(())
    }

    /// Allocates the tables for a page of 4 KiB at `gpa` (without the SHARED bit), and maps nothing.
    ///
    /// # Errors
    /// As [`Self::map`]; [`SharedError::Occupied`] when `gpa` is part of a page of 2 MiB.
    pub fn prepare(&self, frames: &impl Frames, gpa: Gpa) -> Result<(), SharedError> {
        if gpa.0 >= self.shared {
            return Err(SharedError::BadRange);
        }
        let mut holding = self.holding.lock();
        if holding.tables == 0 {
            return Err(SharedError::BadRange);
        }
        self.link(frames, gpa, 0, &mut holding).map(drop)
    }

    /// Maps `bytes` of the host's own memory at `hpa`, read-only, at `gpa` (without the SHARED bit), until the TD's
    /// end. The memory consists of whole pages, and no CPU writes to it meanwhile. The guest can neither change nor
    /// unmap the pages.
    ///
    /// # Errors
    /// [`SharedError`]; pages mapped before the error stay mapped.
    pub fn lend(
        &self,
        frames: &impl Frames,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
    ) -> Result<(), SharedError> {
        let aligned = gpa.0.is_multiple_of(PAGE_4K) && hpa.0.is_multiple_of(PAGE_4K);
        if !aligned || gpa.0.checked_add(bytes).is_none_or(|end| end > self.shared) {
            return Err(SharedError::BadRange);
        }
        let mut holding = self.holding.lock();
        for offset in (0..bytes).step_by(PAGE_4K as usize) {
            let entry = self.link(frames, Gpa(gpa.0 + offset), 0, &mut holding)?;
            if Entry::load(entry).is_present() {
                return Err(SharedError::Occupied);
            }
            entry.store(Entry::lent(Hpa(hpa.0 + offset)).0, SeqCst);
        }
        Ok(())
    }

    /// Unmaps `range` (without the SHARED bit), which lies within one aligned 2 MiB, and frees the frames after
    /// `flush`. Lent pages stay mapped. Returns the number of bytes unmapped.
    ///
    /// # Errors
    /// [`SharedError::BadRange`]; [`SharedError::NoAnswer`], and everything is mapped as before; [`SharedError::NoFrames`] when a page of
    /// 2 MiB must be split and there is no frame for the table.
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
        let mut holding = self.holding.lock();
        if holding.tables == 0 {
            return Ok(0);
        }
        let mut taken = ArrayVec::<(&AtomicU64, Entry), ENTRIES>::new();
        if let Some((entry, 1)) = self.find(frames, Gpa(range.start)) {
            if range.end - range.start == PAGE_2M {
                taken.push((entry, Entry::load(entry)));
            } else {
                self.split(frames, entry, &mut holding)?;
            }
        }
        if taken.is_empty() {
            for gpa in range.step_by(PAGE_4K as usize) {
                if let Some((entry, 0)) = self.find(frames, Gpa(gpa)) {
                    taken.push((entry, Entry::load(entry)));
                }
            }
        }
        if taken.is_empty() {
            return Ok(0);
        }
        for (entry, _) in &taken {
            entry.store(Entry::NOTHING.0, SeqCst);
        }
        if let Err(silent) = flush.flush() {
            for (entry, was) in &taken {
                entry.store(was.0, SeqCst);
            }
            return Err(SharedError::NoAnswer(silent));
        }
        let size = match taken[0].1.is_large() {
            true => PageSize::Size2M,
            false => PageSize::Size4K,
        };
        for (_, was) in &taken {
            frames.give(was.hpa(), size);
        }
        holding.pages[size as usize] -= taken.len() as u64;
        Ok(taken.len() as u64 * size.bytes())
    }

    /// Returns whether anything but lent pages is mapped in the aligned 2 MiB around `gpa` (without the SHARED bit).
    pub fn has_block(&self, frames: &impl Frames, gpa: Gpa) -> bool {
        let holding = self.holding.lock();
        if holding.tables == 0 {
            return false;
        }
        let block = gpa.0 / PAGE_2M * PAGE_2M;
        let pages = (block..block + PAGE_2M).step_by(PAGE_4K as usize);
        match self.table(frames, Gpa(block), 0) {
            Some(_) => pages
                .into_iter()
                .any(|gpa| self.find(frames, Gpa(gpa)).is_some()),
            None => self.find(frames, Gpa(block)).is_some(),
        }
    }

    /// Returns whether anything but a lent page is mapped at `gpa` (without the SHARED bit).
    pub fn has(&self, frames: &impl Frames, gpa: Gpa) -> bool {
        let holding = self.holding.lock();
        holding.tables > 0 && self.find(frames, gpa).is_some()
    }

    /// Calls `work` with the words of the 4 KiB around `gpa` (without the SHARED bit), which stay mapped meanwhile. The
    /// guest may change them at any time.
    ///
    /// # Errors
    /// [`SharedError::NotMapped`].
    pub fn with_page<R>(
        &self,
        frames: &impl Frames,
        gpa: Gpa,
        work: impl FnOnce(&Words) -> R,
    ) -> Result<R, SharedError> {
        let holding = self.holding.lock();
        if holding.tables == 0 {
            return Err(SharedError::NotMapped);
        }
        let (entry, level) = self.find(frames, gpa).ok_or(SharedError::NotMapped)?;
        let offset = gpa.0 % level_bytes(level) / PAGE_4K * PAGE_4K;
        let page = Hpa(Entry::load(entry).hpa().0 + offset);
        Ok(work(frames.words(page)))
    }

    /// Frees everything, including the root, at the TD's end. No vCPU of the TD can be entered any more, and no CPU
    /// uses a translation. Nothing can be mapped from now on.
    pub fn dissolve(&self, frames: &impl Frames) {
        let mut holding = self.holding.lock();
        if holding.tables > 0 {
            self.dissolve_table(frames, self.root, self.top);
            *holding = Holding::default();
        }
    }

    fn dissolve_table(&self, frames: &impl Frames, table: Hpa, level: u8) {
        for word in frames.words(table) {
            let entry = Entry(word.load(SeqCst));
            if !entry.is_present() || entry.is_lent() {
                continue;
            }
            match (level, entry.is_large()) {
                (0, _) => frames.give(entry.hpa(), PageSize::Size4K),
                (1, true) => frames.give(entry.hpa(), PageSize::Size2M),
                _ => self.dissolve_table(frames, entry.hpa(), level - 1),
            }
        }
        frames.give(table, PageSize::Size4K);
    }

    /// Returns the entry of `level` for `gpa`. Allocates the tables above it that are missing.
    fn link<'f>(
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

    /// Returns the entry that maps `gpa`, and its level. Lent pages are not the guest's and are not found.
    fn find<'f>(&self, frames: &'f impl Frames, gpa: Gpa) -> Option<(&'f AtomicU64, u8)> {
        let address = gpa.0 | self.shared;
        let mut table = self.root;
        for level in (0..=self.top).rev() {
            let word = &frames.words(table)[index(address, level)];
            let entry = Entry::load(word);
            if !entry.is_present() {
                return None;
            }
            if level == 0 || entry.is_large() {
                return (!entry.is_lent()).then_some((word, level));
            }
            table = entry.hpa();
        }
        None
    }

    /// Returns the table whose entries of `level` map the addresses around `gpa`.
    fn table(&self, frames: &impl Frames, gpa: Gpa, level: u8) -> Option<Hpa> {
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
    /// a part is unmapped.
    fn split(
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
