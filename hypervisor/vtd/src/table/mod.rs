//! The tables that units read: root and context tables, and the page tables of a domain.

mod context;
mod domain;
mod page;

pub use domain::{Access, Domain};

pub(crate) use context::{Attached, Contexts};
pub(crate) use domain::{Format, Stale};

use crate::Platform;

/// Bytes in a page and in a table.
pub const PAGE: u64 = 4096;

/// Memory for tables.
#[derive(Clone, Debug)]
pub(crate) struct Memory<P> {
    /// The machine.
    pub platform: P,
    /// True if a unit reads memory without snooping caches, so that each store must be written back.
    pub writes_back: bool,
}

impl<P: Platform> Memory<P> {
    /// Takes a zeroed block of `4096 << order` bytes.
    pub fn take(&self, order: u32) -> Option<u64> {
        self.platform.take(order)
    }

    /// Loads 8 bytes.
    pub fn load(&self, pa: u64) -> u64 {
        self.platform.load(pa)
    }

    /// Stores 8 bytes where every unit sees them once its write buffer is flushed.
    pub fn store(&self, pa: u64, value: u64) {
        self.platform.store(pa, value);
        if self.writes_back {
            self.platform.write_back(pa, 8);
        }
    }
}
