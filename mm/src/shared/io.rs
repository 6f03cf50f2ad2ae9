//! Memory of physical devices that a guest accesses without the host.
//!
//! It is mapped uncached, in pages as large as the addresses allow. It is nobody's memory: it is neither converted nor
//! freed, and the TD's devices do not reach it.
//!
//! Source: Intel SDM volume 3C, section 29.3.7 (EPT memory types). Uncached memory in the EPT is write-combining where
//! the guest's PAT says so.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use seam::abi::{PAGE_2M, PAGE_4K, PageSize, level_bytes};
use seam::address::{Gpa, Hpa};

use super::entry::Entry;
use super::{Frames, SharedError, SharedMap, State};

/// Most tables that device memory gets in a TD's life. A guest that moves its devices needs new tables, which stay.
pub const MOST_IO_TABLES: u64 = 1024;

/// Memory of a physical device. All three values are whole pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Its address for the guest, without the SHARED bit.
    pub gpa: Gpa,
    /// Its physical address.
    pub hpa: Hpa,
    /// Its size in bytes.
    pub bytes: u64,
}

impl SharedMap {
    /// Maps device memory.
    ///
    /// # Errors
    /// [`SharedError::BadRange`]; [`SharedError::Occupied`]; [`SharedError::NoFrames`], also after
    /// [`MOST_IO_TABLES`]. Nothing is mapped then; tables allocated for it stay.
    pub fn map_io(&self, frames: &impl Frames, memory: DeviceMemory) -> Result<(), SharedError> {
        let DeviceMemory { gpa, hpa, bytes } = memory;
        let is_aligned = [gpa.0, hpa.0, bytes]
            .iter()
            .all(|value| value.is_multiple_of(PAGE_4K));
        let end = gpa.0.checked_add(bytes);
        if !is_aligned || bytes == 0 || end.is_none_or(|end| end > self.shared) {
            return Err(SharedError::BadRange);
        }
        let mut state = self.write();
        state.check()?;
        // The second round finds the tables of the first one, and the same entries.
        for is_checked in [false, true] {
            let mut at = 0;
            while at < bytes {
                let rest = DeviceMemory {
                    gpa: Gpa(gpa.0 + at),
                    hpa: Hpa(hpa.0 + at),
                    bytes: bytes - at,
                };
                let (entry, size) = self.link_io(frames, rest, &mut state)?;
                if is_checked {
                    entry.store(Entry::io(rest.hpa, size).0, SeqCst);
                } else if Entry::load(entry).is_present() {
                    return Err(SharedError::Occupied);
                }
                at += size.bytes();
            }
        }
        Ok(())
    }

    /// Removes the device memory that is mapped in `range` (without the SHARED bit). CPUs may use it until the next
    /// flush.
    pub fn unmap_io(&self, frames: &impl Frames, range: Range<u64>) {
        let state = self.write();
        if state.holding.tables == 0 {
            return;
        }
        let mut at = range.start;
        while at < range.end.min(self.shared) {
            let bytes = match self.leaf(frames, Gpa(at)) {
                Some((entry, level)) => {
                    if Entry::load(entry).is_io() {
                        entry.store(Entry::NOTHING.0, SeqCst);
                    }
                    level_bytes(level)
                }
                None => PAGE_4K,
            };
            at = (at / bytes + 1) * bytes;
        }
    }

    /// Returns the entry for the first page of `memory`, and the size of the page. Allocates the tables that are
    /// missing.
    fn link_io<'f>(
        &self,
        frames: &'f impl Frames,
        memory: DeviceMemory,
        state: &mut State,
    ) -> Result<(&'f AtomicU64, PageSize), SharedError> {
        let DeviceMemory { gpa, hpa, bytes } = memory;
        let is_large = gpa.0.is_multiple_of(PAGE_2M)
            && hpa.0.is_multiple_of(PAGE_2M)
            && bytes >= PAGE_2M
            // Tables stay.
            && self.table(frames, gpa, 0).is_none();
        let size = match is_large {
            true => PageSize::Size2M,
            false => PageSize::Size4K,
        };
        if state.io_tables + u64::from(self.top) > MOST_IO_TABLES
            && self.table(frames, gpa, size as u8).is_none()
        {
            return Err(SharedError::NoFrames(PageSize::Size4K));
        }
        let before = state.holding.tables;
        let entry = self.link(frames, gpa, size as u8, &mut state.holding);
        state.io_tables += state.holding.tables - before;
        Ok((entry?, size))
    }
}
