//! One entry of a shared EPT.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use seam::abi::{PAGE_MASK, PageSize};
use seam::address::Hpa;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// Memory type write-back, bits 5:3.
const WRITE_BACK: u64 = 6 << 3;
const LARGE: u64 = 1 << 7;

/// An entry of any level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(pub u64);

impl Entry {
    /// Maps nothing, and does not suppress #VE (bit 63): the guest is told itself.
    pub const NOTHING: Self = Self(0);

    pub fn load(word: &AtomicU64) -> Self {
        Self(word.load(SeqCst))
    }

    /// A table of the next level.
    pub const fn table(table: Hpa) -> Self {
        Self(table.0 | READ | WRITE | EXECUTE)
    }

    /// A page. A TD can't fetch instructions from shared memory anyway.
    pub const fn leaf(page: Hpa, size: PageSize) -> Self {
        let large = match size {
            PageSize::Size4K => 0,
            PageSize::Size2M | PageSize::Size1G => LARGE,
        };
        Self(page.0 | large | WRITE_BACK | READ | WRITE)
    }

    /// A page of the host's own. That the guest can't write it is how it is known: it can write all others.
    pub const fn lent(page: Hpa) -> Self {
        Self(page.0 | WRITE_BACK | READ)
    }

    pub const fn is_lent(self) -> bool {
        self.0 & (READ | WRITE | EXECUTE) == READ
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
