//! Nested page tables: what of physical memory the software above may reach.
//!
//! Everything is mapped at itself, the SEAM range and the local APIC's page excepted. All processors share these
//! tables, which never change after they were built.

use crate::memory::{self, PAGE, SEAMRR_SIZE};

const PRESENT_WRITABLE_USER: u64 = 7;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// The page-table entry that maps `pa` to the page `target` for everything.
pub const fn leaf(target: u64) -> u64 {
    target & ADDRESS | PRESENT_WRITABLE_USER
}

/// One set of nested page tables.
pub struct Npt {
    root: &'static mut [u64; 512],
}

impl Npt {
    /// Tables that share everything with the identity map whose PML4 is at `identity`, but its first 512 GiB.
    pub fn over(identity: u64) -> Self {
        let root = memory::page();
        for (i, entry) in root.iter_mut().enumerate().skip(1) {
            *entry = table(identity)[i];
        }
        let first = memory::page();
        for (i, entry) in first.iter_mut().enumerate() {
            *entry = (i as u64) << 30 | PRESENT_WRITABLE_USER | LARGE;
        }
        root[0] = core::ptr::from_mut(first) as u64 | PRESENT_WRITABLE_USER;
        Self { root }
    }

    /// The address for the VMCB.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref::<[u64; 512]>(self.root) as u64
    }

    /// Unmaps `size` bytes from `base`, both multiples of the page size, below 512 GiB.
    pub fn hide(&mut self, base: u64, size: u64) {
        const LARGE_2M: u64 = 2 << 20;
        let mut pa = base;
        while pa < base + size {
            let directory = descend(&mut self.root[0], pa, 30);
            let entry = descend(directory, pa, 21);
            if pa.is_multiple_of(LARGE_2M) && base + size - pa >= LARGE_2M {
                *entry = 0;
                pa += LARGE_2M;
            } else {
                *descend(entry, pa, 12) = 0;
                pa += PAGE as u64;
            }
        }
    }
}

/// A path of private tables beside the shared ones, in which single pages are mapped elsewhere for one processor.
pub struct Detour {
    root: &'static mut [u64; 512],
    spare: [&'static mut [u64; 512]; Self::TABLES],
    used: usize,
}

impl Detour {
    /// The tables of one path, and those of the SEAM range's further 2 MiB pages: more can't be asked for.
    const TABLES: usize = 2 + (SEAMRR_SIZE >> 21) as usize;

    pub fn new() -> Self {
        Self {
            root: memory::page(),
            spare: core::array::from_fn(|_| memory::page()),
            used: 0,
        }
    }

    /// Starts over from the shared tables at `shared`.
    pub fn reset(&mut self, shared: u64) {
        *self.root = *table(shared);
        self.used = 0;
    }

    /// The address for the VMCB.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref::<[u64; 512]>(self.root) as u64
    }

    /// Maps the page of `pa`, which is in the SEAM range, to the page `target`.
    pub fn map(&mut self, pa: u64, target: u64) {
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
    }
}

/// Fills `to` with what `entry`, which maps 2^`shift` bytes, stands for, one level further down.
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

/// The entry for `pa` in the table that `entry` points to, whose entries map 2^`shift` bytes each; a large page in
/// `entry` is split first.
fn descend(entry: &mut u64, pa: u64, shift: u32) -> &'static mut u64 {
    if *entry & LARGE != 0 {
        let parts = memory::page();
        split(*entry, shift + 9, parts);
        *entry = core::ptr::from_mut(parts) as u64 | PRESENT_WRITABLE_USER;
    }
    &mut table_mut(*entry & ADDRESS)[(pa >> shift & 0x1FF) as usize]
}

#[expect(unsafe_code, reason = "page tables are reached by their addresses")]
fn table(address: u64) -> &'static [u64; 512] {
    // SAFETY: only addresses of tables that this module or `memory` built come here; they are never freed.
    unsafe { &*(address as *const [u64; 512]) }
}

#[expect(unsafe_code, reason = "page tables are reached by their addresses")]
fn table_mut(address: u64) -> &'static mut [u64; 512] {
    // SAFETY: as for `table`; the callers own the tables, and keep no reference into them.
    unsafe { &mut *(address as *mut [u64; 512]) }
}
