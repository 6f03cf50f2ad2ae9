//! Private copies of the software's page tables, with single pages mapped elsewhere.

use stub_rom::vmx::Memory;

use super::machine::Physical;
use super::npt::{ADDRESS, LARGE, leaf};
use crate::memory;

const PRESENT: u64 = 1;

/// Private copies of the software's page tables, with single pages mapped elsewhere.
pub struct ShadowPaging {
    /// The tables. The first is the root.
    tables: [&'static mut [u64; 512]; Self::TABLES],
    used: usize,
}

impl ShadowPaging {
    /// A root, and the tables of four pages on four different paths: two operands, each across a page boundary.
    pub const TABLES: usize = 1 + 4 * 3;

    pub fn new() -> Self {
        Self {
            tables: core::array::from_fn(|_| memory::page()),
            used: 0,
        }
    }

    fn address(&self, table: usize) -> u64 {
        core::ptr::from_ref::<[u64; 512]>(self.tables[table]) as u64
    }

    /// Returns the address of the root.
    pub fn root(&self) -> u64 {
        self.address(0)
    }

    /// Returns the addresses of all tables.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let pages: [u64; Self::TABLES] = core::array::from_fn(|i| self.address(i));
        pages.into_iter()
    }

    /// Restarts from the tables at `cr3`.
    pub fn start(&mut self, cr3: u64, physical: Physical) {
        const ROOT_SHIFT: u32 = 39;
        Source::Table(cr3 & ADDRESS).copy_to(self.tables[0], ROOT_SHIFT, physical);
        self.used = 1;
    }

    /// Maps the page of `va` to the page `target`, and splits large pages on the way. Returns false if there are not
    /// enough tables.
    pub fn map(&mut self, va: u64, target: u64, physical: Physical) -> bool {
        let mut at = 0;
        for shift in [39, 30, 21] {
            let index = (va >> shift & 0x1FF) as usize;
            let entry = self.tables[at][index];
            let own = (1..self.used)
                .find(|&i| entry & PRESENT != 0 && self.address(i) == entry & ADDRESS);
            at = match own {
                Some(own) => own,
                None if self.used == Self::TABLES => return false,
                None => {
                    let next = self.used;
                    self.used += 1;
                    Source::behind(entry, shift).copy_to(self.tables[next], shift - 9, physical);
                    self.tables[at][index] = leaf(self.address(next));
                    next
                }
            };
        }
        self.tables[at][(va >> 12 & 0x1FF) as usize] = leaf(target);
        true
    }
}

/// The source from which a level of page tables is copied.
enum Source {
    Table(u64),
    Large(u64),
    Nothing,
}

impl Source {
    fn behind(entry: u64, shift: u32) -> Self {
        if entry & PRESENT == 0 {
            Self::Nothing
        } else if shift < 39 && entry & LARGE != 0 {
            Self::Large(entry)
        } else {
            Self::Table(entry & ADDRESS)
        }
    }

    /// Fills the table `to`, whose entries map 2^`shift` bytes.
    fn copy_to(&self, to: &mut [u64; 512], shift: u32, physical: Physical) {
        for (i, entry) in (0..).zip(to) {
            *entry = match *self {
                Self::Table(at) if physical.is_accessible(at) => physical.read(at + i * 8),
                Self::Large(large) if shift == 12 => large & !LARGE | i << shift,
                Self::Large(large) => large | i << shift,
                _ => 0,
            };
        }
    }
}
