//! A path of nested page tables of one processor's own, which maps single pages elsewhere.

use super::npt::{ADDRESS, LARGE, PRESENT_WRITABLE_USER, leaf, table, table_mut};
use super::shadow_paging::ShadowPaging;
use crate::memory;

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
