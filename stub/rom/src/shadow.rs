//! Shadow nested page tables: a processor caches in them the translations of the TD vCPU that it runs.
//!
//! They act as a TLB in memory: a guest fault fills them by a walk of the real tables, and [`Shadow::flush`] empties
//! them as a whole where hardware would flush its TLB. Each processor owns one, with a fixed number of tables. When the
//! tables are used up, it is flushed.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// Address bits of a 2 MiB page inside a larger one. Those of a 4 KiB page follow.
const LARGE_SHIFT: u32 = 21;
const SMALL_SHIFT: u32 = 12;

/// A table. The processor sets accessed and dirty bits in it while it executes the guest.
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
struct Table([u64; 512]);

/// A page to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its physical address.
    pub page: u64,
    /// True to map 2 MiB, false to map 4 KiB.
    pub large: bool,
    /// True if it may be written.
    pub writable: bool,
    /// True if it may be executed.
    pub executable: bool,
}

/// Number of recent results of [`Shadow::find`], a power of two.
const RECENT: usize = 16;

/// The tables of one processor. The first one is the root.
#[derive(Debug)]
pub struct Shadow {
    tables: Vec<Table>,
    used: usize,
    /// Changes whenever an earlier result may be out of date.
    generation: u64,
    /// Recent results by page number: the guest-physical page with [`PRESENT`], and its physical address.
    recent: [Cell<(u64, u64)>; RECENT],
}

impl Shadow {
    /// Creates a shadow with room for `tables` tables. One page needs up to 4.
    ///
    /// # Panics
    /// If `tables` is less than 4.
    #[must_use]
    pub fn new(tables: usize) -> Self {
        assert!(tables >= 4, "one path must fit");
        Self {
            tables: vec![Table([0; 512]); tables],
            used: 1,
            generation: 0,
            recent: Default::default(),
        }
    }

    /// Returns the generation. Results stay valid for as long as it is the same.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn forget(&mut self) {
        self.generation += 1;
        self.recent = Default::default();
    }

    fn address(&self, table: usize) -> u64 {
        self.tables.as_ptr() as u64 + (table * size_of::<Table>()) as u64
    }

    /// Returns the root's address, which is its physical address where memory is identity-mapped.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.address(0)
    }

    /// Drops all mappings.
    pub fn flush(&mut self) {
        self.forget();
        if self.used > 1 {
            self.tables[0].0.fill(0);
            self.used = 1;
        }
    }

    /// Maps a page at the guest-physical address `gpa`, which lies below 2^48. It replaces any previous mapping.
    pub fn map(&mut self, gpa: u64, mapping: Mapping) {
        self.forget();
        let last = if mapping.large {
            LARGE_SHIFT
        } else {
            SMALL_SHIFT
        };
        let levels = [39, 30, 21].into_iter().filter(|&shift| shift > last);
        if self.used + levels.clone().count() > self.tables.len() {
            self.flush();
        }
        let mut at = 0;
        for shift in levels {
            let index = (gpa >> shift & 511) as usize;
            let entry = self.tables[at].0[index];
            at = match self.position(entry) {
                Some(next) => next,
                None => {
                    let next = self.used;
                    self.used += 1;
                    self.tables[next].0.fill(0);
                    self.tables[at].0[index] = self.address(next) | PRESENT | WRITABLE | USER;
                    next
                }
            };
        }
        let mut entry = mapping.page & ADDRESS & !((1 << last) - 1) | PRESENT | USER;
        if mapping.large {
            entry |= LARGE;
        }
        if mapping.writable {
            entry |= WRITABLE;
        }
        if !mapping.executable {
            entry |= NO_EXECUTE;
        }
        self.tables[at].0[(gpa >> last & 511) as usize] = entry;
    }

    /// Returns the number of the table that an entry links.
    fn position(&self, entry: u64) -> Option<usize> {
        if entry & PRESENT == 0 || entry & LARGE != 0 {
            return None;
        }
        Some(((entry & ADDRESS) - self.root()) as usize / size_of::<Table>())
    }

    /// Returns the physical address mapped at `gpa`.
    #[must_use]
    pub fn find(&self, gpa: u64) -> Option<u64> {
        const OFFSET: u64 = (1 << SMALL_SHIFT) - 1;
        let recent = &self.recent[(gpa >> SMALL_SHIFT) as usize % RECENT];
        let key = gpa & !OFFSET | PRESENT;
        let (known, page) = recent.get();
        if known == key {
            return Some(page | gpa & OFFSET);
        }
        let pa = self.look_up(gpa)?;
        recent.set((key, pa & !OFFSET));
        Some(pa)
    }

    fn look_up(&self, gpa: u64) -> Option<u64> {
        let mut at = 0;
        for shift in [39, 30, 21, 12] {
            let entry = self.tables[at].0[(gpa >> shift & 511) as usize];
            if entry & PRESENT == 0 {
                return None;
            }
            if shift == SMALL_SHIFT || entry & LARGE != 0 {
                let offset = (1 << shift) - 1;
                return Some(entry & ADDRESS & !offset | gpa & offset);
            }
            at = self.position(entry)?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(page: u64) -> Mapping {
        Mapping {
            page,
            large: false,
            writable: true,
            executable: true,
        }
    }

    #[test]
    fn small_and_large_pages_are_found_until_the_flush() {
        let mut shadow = Shadow::new(16);
        shadow.map(0x1000, page(0x7000));
        shadow.map(1 << 47, page(0x9000));
        let large = Mapping {
            large: true,
            ..page(0x20_0000)
        };
        shadow.map(0x40_0000, large);
        assert_eq!(shadow.find(0x1234), Some(0x7234));
        assert_eq!(shadow.find(1 << 47 | 8), Some(0x9008));
        assert_eq!(shadow.find(0x5F_FFFF), Some(0x3F_FFFF));
        assert_eq!(shadow.find(0x2000), None);
        shadow.flush();
        assert_eq!(shadow.find(0x1234), None);
        assert_eq!(shadow.find(0x40_0000), None);
    }

    #[test]
    fn a_large_page_and_a_table_replace_each_other() {
        let mut shadow = Shadow::new(16);
        let large = Mapping {
            large: true,
            ..page(0x20_0000)
        };
        shadow.map(0, large);
        assert_eq!(shadow.find(0x3000), Some(0x20_3000));
        shadow.map(0x3000, page(0x7000));
        assert_eq!(
            shadow.find(0x3000),
            Some(0x7000),
            "not what was found before"
        );
        assert_eq!(shadow.find(0x4000), None);
        shadow.map(0, large);
        assert_eq!(shadow.find(0x3000), Some(0x20_3000));
    }

    #[test]
    fn permissions_become_bits_of_the_entry() {
        let mut shadow = Shadow::new(4);
        let mapping = Mapping {
            writable: false,
            executable: false,
            ..page(0x5000)
        };
        shadow.map(0, mapping);
        let entry = shadow.tables[3].0[0];
        assert_eq!(entry & WRITABLE, 0);
        assert_ne!(entry & NO_EXECUTE, 0);
    }

    #[test]
    fn exhausted_tables_restart_the_shadow() {
        let mut shadow = Shadow::new(4);
        shadow.map(0, page(0x1000));
        shadow.map(1 << 39, page(0x2000));
        assert_eq!(shadow.find(0), None);
        assert_eq!(shadow.find(1 << 39), Some(0x2000));
    }
}
