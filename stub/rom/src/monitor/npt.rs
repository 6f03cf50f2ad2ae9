//! Nested page tables: the physical memory that the software above may access.
//!
//! All memory is identity-mapped except the SEAM range, the local APIC's page, and the pages that belong to the TDX
//! module or a TD. All processors share these tables.

use core::ops::Range;

use spin::Mutex;
use stub_module::{Machine, Module};
use stub_rom::nested::{self, Nested, View};

use super::exits::ShadowPaging;
use super::{panic, presence};
use crate::memory;

const PRESENT_WRITABLE_USER: u64 = 7;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

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

    /// Blocks the software on all processors from pages, or unblocks it. Processor `number` requests it.
    pub fn guard(&self, number: u32, pages: Range<u64>, private: bool) {
        let mut nested = self.nested.lock();
        if !private {
            nested.open(pages);
            return;
        }
        let stale = nested.close(pages);
        if !stale {
            drop(nested);
            presence::settle(number, false);
            return;
        }
        let tables = nested.take_retired();
        drop(nested);
        presence::settle(number, true);
        self.nested.lock().release(tables);
    }

    /// Handles an access of the software on processor `number` to `pa` that these tables have stopped.
    pub fn stopped<M: Machine>(
        &self,
        number: u32,
        pa: u64,
        module: Option<&Module>,
        machine: &M,
    ) -> Stopped {
        /// Bounds the retries: other processors may take the tables that this one has freed.
        const TRIES: u32 = 1000;
        let is_private = |pa| module.is_some_and(|module| module.is_private(machine, pa));
        for _ in 0..TRIES {
            let mut nested = self.nested.lock();
            match nested.fault(pa, is_private) {
                nested::Fault::Mapped => return Stopped::Mapped,
                nested::Fault::Private => return Stopped::Private,
                nested::Fault::Foreign => return Stopped::Foreign,
                nested::Fault::NoTable => {}
            }
            let tables = nested.retire_some();
            drop(nested);
            presence::settle(number, true);
            self.nested.lock().release(tables);
        }
        panic::stop(format_args!(
            "no nested page table becomes free for {pa:#x}"
        ))
    }
}

/// A path of private tables beside the shared ones. It maps single pages to other pages for one processor.
pub struct Detour {
    root: &'static mut [u64; 512],
    spare: [&'static mut [u64; 512]; Self::TABLES],
    used: usize,
    /// The remapped pages and their targets.
    mapped: [(u64, u64); Self::PAGES],
    count: usize,
}

impl Detour {
    /// The tables of one path, those of further 2 MiB pages in the SEAM range, as many as shadow paging has pages, and
    /// two for each of some pages elsewhere.
    const TABLES: usize = 2 + ShadowPaging::TABLES + 2 * 8;
    /// The pages of shadow paging and the page of ones, and as many again for an instruction's operands.
    const PAGES: usize = 32;

    pub fn new() -> Self {
        Self {
            root: memory::page(),
            spare: core::array::from_fn(|_| memory::page()),
            used: 0,
            mapped: [(0, 0); Self::PAGES],
            count: 0,
        }
    }

    /// Resets the path to the shared tables at `shared`.
    pub fn reset(&mut self, shared: u64) {
        *self.root = *table(shared);
        (self.used, self.count) = (0, 0);
    }

    /// Reflects changes of the shared tables at `shared`. Remapped pages stay remapped.
    pub fn refresh(&mut self, shared: u64) {
        if self.count == 0 {
            return;
        }
        *self.root = *table(shared);
        self.used = 0;
        for i in 0..self.count {
            let (pa, target) = self.mapped[i];
            self.place(pa, target);
        }
    }

    /// Removes all remapped pages.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// Returns the address for the VMCB.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref::<[u64; 512]>(self.root) as u64
    }

    /// Maps the page of `pa` to the page `target`. If the tables do not suffice for all remapped pages, it resets the
    /// path to the shared tables at `shared` and maps only this page.
    pub fn map(&mut self, pa: u64, target: u64, shared: u64) {
        if self.mapped[..self.count].contains(&(pa, target)) {
            return;
        }
        if self.count == Self::PAGES || !self.place(pa, target) {
            self.reset(shared);
            self.place(pa, target);
        }
        self.mapped[self.count] = (pa, target);
        self.count += 1;
    }

    /// Maps the page of `pa` to the page `target`. Returns whether there were enough tables.
    fn place(&mut self, pa: u64, target: u64) -> bool {
        let mut at = core::ptr::from_mut(self.root) as u64;
        for shift in [39, 30, 21] {
            let index = (pa >> shift & 0x1FF) as usize;
            let entry = table(at)[index];
            let own = self.spare[..self.used]
                .iter()
                .map(|t| core::ptr::from_ref::<[u64; 512]>(t) as u64)
                .find(|&t| entry & 1 != 0 && t == entry & ADDRESS);
            at = match own {
                Some(own) => own,
                None if self.used == Self::TABLES => return false,
                None => {
                    let spare = &mut self.spare[self.used];
                    self.used += 1;
                    copy_table(entry, shift, spare);
                    let address = core::ptr::from_mut(*spare) as u64;
                    table_mut(at)[index] = address | PRESENT_WRITABLE_USER;
                    address
                }
            };
        }
        table_mut(at)[(pa >> 12 & 0x1FF) as usize] = leaf(target);
        true
    }
}

/// Fills `to`, one level further down, with the mapping of `entry`, which maps 2^`shift` bytes.
fn copy_table(entry: u64, shift: u32, to: &mut [u64; 512]) {
    if entry & 1 == 0 {
        to.fill(0);
    } else if entry & LARGE == 0 {
        *to = *table(entry & ADDRESS);
    } else {
        split(entry, shift, to);
    }
}

/// Fills `to` with the parts of the large page `entry` of 2^`shift` bytes.
fn split(entry: u64, shift: u32, to: &mut [u64; 512]) {
    let part = shift - 9;
    let large = if part > 12 { LARGE } else { 0 };
    for (i, small) in to.iter_mut().enumerate() {
        *small = entry & ADDRESS & !LARGE | (i as u64) << part | PRESENT_WRITABLE_USER | large;
    }
}

#[expect(unsafe_code, reason = "page tables are reached by their addresses")]
fn table(address: u64) -> &'static [u64; 512] {
    // SAFETY: only addresses of tables that this module or `memory` built are passed here; they are never freed.
    unsafe { &*(address as *const [u64; 512]) }
}

#[expect(unsafe_code, reason = "page tables are reached by their addresses")]
fn table_mut(address: u64) -> &'static mut [u64; 512] {
    // SAFETY: as for `table`; the callers own the tables, and keep no reference into them.
    unsafe { &mut *(address as *mut [u64; 512]) }
}
