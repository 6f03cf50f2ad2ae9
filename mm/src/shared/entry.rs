//! An entry of a shared EPT.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use seam::abi::{PAGE_MASK, PageSize};
use seam::address::Hpa;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// Memory type write-back, bits 5:3.
const WRITE_BACK: u64 = 6 << 3;
const MEMORY_TYPE: u64 = 7 << 3;
const LARGE: u64 = 1 << 7;

/// An entry of any level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(pub u64);

impl Entry {
    /// Maps nothing. Suppress-#VE (bit 63) is clear, so that an access raises #VE in the guest.
    pub const NOTHING: Self = Self(0);

    pub fn load(word: &AtomicU64) -> Self {
        Self(word.load(SeqCst))
    }

    /// Points to a table of the next level.
    pub const fn table(table: Hpa) -> Self {
        Self(table.0 | READ | WRITE | EXECUTE)
    }

    /// Maps a page. A TD cannot fetch instructions from shared memory, so it is not executable.
    pub const fn leaf(page: Hpa, size: PageSize) -> Self {
        let large = match size {
            PageSize::Size4K => 0,
            PageSize::Size2M | PageSize::Size1G => LARGE,
        };
        Self(page.0 | large | WRITE_BACK | READ | WRITE)
    }

    /// Maps a page of the host's own. It is recognised by being read-only: the guest can write to all other pages.
    pub const fn lent(page: Hpa) -> Self {
        Self(page.0 | WRITE_BACK | READ)
    }

    /// Maps memory of a device, uncached.
    pub const fn io(page: Hpa, size: PageSize) -> Self {
        Self(Self::leaf(page, size).0 & !MEMORY_TYPE)
    }

    /// Returns whether this leaf maps memory of a device. It is recognised by its memory type: all other pages are
    /// cached.
    pub const fn is_io(self) -> bool {
        self.0 & MEMORY_TYPE == 0
    }

    pub const fn is_lent(self) -> bool {
        self.0 & (READ | WRITE | EXECUTE) == READ
    }

    /// Returns whether this leaf maps memory of the guest's own: neither lent nor of a device.
    pub const fn is_guests(self) -> bool {
        self.0 & (WRITE | MEMORY_TYPE) == WRITE | WRITE_BACK
    }

    pub const fn is_present(self) -> bool {
        self.0 & (READ | WRITE | EXECUTE) != 0
    }

    pub const fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }

    pub const fn hpa(self) -> Hpa {
        Hpa(self.0 & PAGE_MASK)
    }
}
