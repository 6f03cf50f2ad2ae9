//! Nested page tables: the physical memory that the software above may access.
//!
//! All memory is identity-mapped except the SEAM range, the local APIC's page, and the pages that belong to the TDX
//! module or a TD. All processors share these tables.

use core::ops::Range;

use spin::Mutex;
use stub_rom::nested::{self, Nested, View};

use super::panic;
use super::presence::{Processors, settle};
use crate::memory;

pub const PRESENT_WRITABLE_USER: u64 = 7;
pub const LARGE: u64 = 1 << 7;
pub const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Number of tables for regions of 2 MiB that are partly private: 4 MiB of tables. If more regions need one, tables are
/// reused in rotation, and a region is looked up again when the software returns to it.
const SPARES: u16 = 1024;

/// Returns the page-table entry that maps `pa` to the page `target` with all permissions.
pub const fn leaf(target: u64) -> u64 {
    target & ADDRESS | PRESENT_WRITABLE_USER
}

/// The outcome of an access that the tables stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The page is mapped, and the access can be repeated.
    Mapped,
    /// The page belongs to the module or to a TD.
    Private,
    /// The address is not in memory that can become private.
    Foreign,
}

/// The nested page tables of the software.
pub struct Npt {
    address: u64,
    view: View,
    nested: Mutex<Nested>,
}

impl Npt {
    /// Creates tables that share the identity map whose PML4 is at `identity`, except for its first 512 GiB. There they
    /// identity-map everything except `hidden`, a list of bases and sizes. Pages below `end_of_ram` can become private
    /// if the machine has TDX.
    pub fn over(identity: u64, end_of_ram: u64, hidden: &[(u64, u64)], tdx: bool) -> Self {
        let mut nested = Nested::new(end_of_ram, if tdx { SPARES } else { 0 });
        for &(base, size) in hidden {
            nested.hide(base, size);
        }
        let root = memory::page();
        *root = *table(identity);
        root[0] = nested.root().address() | PRESENT_WRITABLE_USER;
        Self {
            address: core::ptr::from_mut(root) as u64,
            view: nested.view(),
            nested: Mutex::new(nested),
        }
    }

    /// Returns the address for the VMCB.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns whether the software can access `pa` without a lookup of its owner.
    pub fn maps(&self, pa: u64) -> bool {
        self.view.maps(pa)
    }

    /// Returns whether the software can access the whole region of 2 MiB at `pa` without a lookup of its owner.
    pub fn maps_region(&self, pa: u64) -> bool {
        self.view.maps_region(pa)
    }

    /// Blocks the software on all processors from pages, or unblocks it.
    pub fn guard(&self, processors: Processors<'_>, pages: Range<u64>, private: bool) {
        let mut nested = self.nested.lock();
        if !private {
            nested.open(pages);
            return;
        }
        let stale = nested.close(pages);
        if !stale {
            drop(nested);
            settle(processors, false);
            return;
        }
        let tables = nested.take_retired();
        drop(nested);
        settle(processors, true);
        self.nested.lock().release(tables);
    }

    /// Handles an access of the software to `pa` that these tables have stopped. `is_private` looks the owner of a page
    /// up.
    pub fn stopped(
        &self,
        processors: Processors<'_>,
        pa: u64,
        is_private: impl Fn(u64) -> bool,
    ) -> Stopped {
        /// Bounds the retries: other processors may take the tables that this one has freed.
        const TRIES: u32 = 1000;
        for _ in 0..TRIES {
            let mut nested = self.nested.lock();
            match nested.fault(pa, &is_private) {
                nested::Fault::Mapped => return Stopped::Mapped,
                nested::Fault::Private => return Stopped::Private,
                nested::Fault::Foreign => return Stopped::Foreign,
                nested::Fault::NoTable => {}
            }
            let tables = nested.retire_some();
            drop(nested);
            settle(processors, true);
            self.nested.lock().release(tables);
        }
        panic::stop(format_args!("no nested page table became free for {pa:#x}"))
    }
}

#[expect(unsafe_code, reason = "reaches page tables by their addresses")]
pub fn table(address: u64) -> &'static [u64; 512] {
    // SAFETY: only addresses of tables that the monitor built are passed here; they are never freed.
    unsafe { &*(address as *const [u64; 512]) }
}

#[expect(unsafe_code, reason = "reaches page tables by their addresses")]
pub fn table_mut(address: u64) -> &'static mut [u64; 512] {
    // SAFETY: as for `table`; the callers own the tables, and keep no reference into them.
    unsafe { &mut *(address as *mut [u64; 512]) }
}
