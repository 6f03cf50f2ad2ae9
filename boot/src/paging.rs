//! The host's own page tables: 4 levels, with the largest pages that fit. A CPU that the firmware left in 5-level mode
//! gets a fifth level that adds nothing.
//!
//! Pure code: it accesses the tables through [`Tables`], so that it runs under the firmware, in the hypervisor and in
//! tests. A caller that changes a mapping which a CPU may have cached must invalidate it there.
//!
//! Source: Intel SDM volume 3A, section 4.5.

/// The memory that holds page tables.
pub trait Tables {
    /// Allocates a zeroed page for a new table and returns its physical address, or `None` if memory is exhausted.
    fn alloc(&mut self) -> Option<u64>;
    /// Returns the table at physical address `pa`, which [`Self::alloc`] returned.
    fn table(&mut self, pa: u64) -> &mut [u64; 512];
}

/// The permissions and the cache type of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only, write-back.
    Read,
    /// Read and write, write-back.
    Write,
    /// Read and execute, write-back.
    Execute,
    /// Read and write, uncached: device registers.
    Device,
    /// Read, write and execute, write-back: the firmware's code and data, in an address space for them alone.
    Firmware,
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const ACCESSED: u64 = 1 << 5;
const ACCESSED_DIRTY: u64 = ACCESSED | 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

impl Access {
    fn bits(self) -> u64 {
        PRESENT
            | ACCESSED_DIRTY
            | GLOBAL
            | match self {
                Self::Read => NO_EXECUTE,
                Self::Write => WRITABLE | NO_EXECUTE,
                Self::Execute => 0,
                Self::Device => WRITABLE | UNCACHED | NO_EXECUTE,
                Self::Firmware => WRITABLE,
            }
    }
}

/// The reason why a mapping could not be made or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No memory for another table.
    NoMemory,
    /// An address or a length is not a multiple of 4 KiB, or the virtual range wraps.
    Alignment,
    /// Something is already mapped at this virtual address.
    Mapped(u64),
    /// A large page covers this virtual address, and the requested range covers only a part of that page.
    Large(u64),
}

/// A set of page tables.
pub struct PageTables<T> {
    root: u64,
    gib_pages: bool,
    tables: T,
}

impl<T: Tables> PageTables<T> {
    /// Creates empty tables. `gib_pages` tells whether the CPU has 1 GiB pages (CPUID 0x80000001 EDX bit 26).
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new(mut tables: T, gib_pages: bool) -> Result<Self, Error> {
        let root = tables.alloc().ok_or(Error::NoMemory)?;
        Ok(Self {
            root,
            gib_pages,
            tables,
        })
    }

    /// Creates a table above the PML4, for a CPU in 5-level paging mode, and returns its physical address. Under it every
    /// address of the 4-level mode is mapped as before.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn pml5(&mut self) -> Result<u64, Error> {
        let pml5 = self.tables.alloc().ok_or(Error::NoMemory)?;
        let entry = self.root | PRESENT | WRITABLE | ACCESSED;
        let table = self.tables.table(pml5);
        // An address of the 4-level mode repeats bit 47 above it, so bits 56:48 are all zeros or all ones.
        table[0] = entry;
        table[511] = entry;
        Ok(pml5)
    }

    /// Wraps the tables that a CPU uses, with `cr3` in its CR3. `la57` is its CR4.LA57.
    pub fn of_cpu(mut tables: T, cr3: u64, la57: bool) -> Self {
        let top = cr3 & ADDRESS;
        let root = if la57 {
            tables.table(top)[0] & ADDRESS
        } else {
            top
        };
        Self::existing(tables, root, false)
    }

    /// Wraps existing tables with their PML4 at `root`.
    pub fn existing(tables: T, root: u64, gib_pages: bool) -> Self {
        Self {
            root,
            gib_pages,
            tables,
        }
    }

    /// Returns the physical address of the PML4.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps `len` bytes at virtual address `va` to physical address `pa`.
    ///
    /// # Errors
    /// [`Error`]; what was mapped before the error stays mapped.
    pub fn map(&mut self, va: u64, pa: u64, len: u64, access: Access) -> Result<(), Error> {
        if !(va | pa | len).is_multiple_of(4096) || va.checked_add(len).is_none() {
            return Err(Error::Alignment);
        }
        let mut done = 0;
        while done < len {
            let (va, pa) = (va + done, pa + done);
            let level = self.largest(va | pa, len - done);
            let large = if level > 0 { LARGE } else { 0 };
            let entry = self.entry(va, level)?;
            if *entry & PRESENT != 0 {
                return Err(Error::Mapped(va));
            }
            *entry = pa | large | access.bits();
            done += page_size(level);
        }
        Ok(())
    }

    /// Removes the mappings of `len` bytes at `va`. Unmapped addresses are skipped.
    ///
    /// # Errors
    /// [`Error::Large`] if the range covers only a part of a large page, [`Error::Alignment`].
    pub fn unmap(&mut self, va: u64, len: u64) -> Result<(), Error> {
        if !(va | len).is_multiple_of(4096) || va.checked_add(len).is_none() {
            return Err(Error::Alignment);
        }
        let mut done = 0;
        while done < len {
            let at = va + done;
            let (table, index, level) = self.leaf(at);
            let entry = &mut self.tables.table(table)[index];
            let size = page_size(level);
            if *entry & PRESENT == 0 {
                done += size - at % size;
                continue;
            }
            if !at.is_multiple_of(size) || len - done < size {
                return Err(Error::Large(at));
            }
            *entry = 0;
            done += size;
        }
        Ok(())
    }

    /// Returns the physical address to which `va` is mapped, or `None`.
    pub fn translate(&mut self, va: u64) -> Option<u64> {
        let (table, index, level) = self.leaf(va);
        let entry = self.tables.table(table)[index];
        let inside = page_size(level) - 1;
        (entry & PRESENT != 0).then_some(entry & ADDRESS & !inside | va & inside)
    }

    /// Returns the largest level at which addresses with these bits, and with this much left, can be mapped.
    fn largest(&self, bits: u64, left: u64) -> u32 {
        let fits = |level| bits.is_multiple_of(page_size(level)) && left >= page_size(level);
        match () {
            () if self.gib_pages && fits(2) => 2,
            () if fits(1) => 1,
            () => 0,
        }
    }

    /// Returns the entry for `va` at `level`. Missing tables above it are created.
    fn entry(&mut self, va: u64, level: u32) -> Result<&mut u64, Error> {
        let mut table = self.root;
        for at in (level + 1..=3).rev() {
            let entry = self.tables.table(table)[index(va, at)];
            table = if entry & PRESENT == 0 {
                let new = self.tables.alloc().ok_or(Error::NoMemory)?;
                self.tables.table(table)[index(va, at)] = new | PRESENT | WRITABLE | ACCESSED;
                new
            } else if entry & LARGE != 0 {
                return Err(Error::Mapped(va));
            } else {
                entry & ADDRESS
            };
        }
        Ok(&mut self.tables.table(table)[index(va, level)])
    }

    /// Returns the end of the walk for `va`: the table, the index in it, and the level.
    fn leaf(&mut self, va: u64) -> (u64, usize, u32) {
        let mut table = self.root;
        for level in (1..=3).rev() {
            let entry = self.tables.table(table)[index(va, level)];
            if entry & PRESENT == 0 || entry & LARGE != 0 {
                return (table, index(va, level), level);
            }
            table = entry & ADDRESS;
        }
        (table, index(va, 0), 0)
    }
}

fn page_size(level: u32) -> u64 {
    4096 << (9 * level)
}

fn index(va: u64, level: u32) -> usize {
    (va >> (12 + 9 * level)) as usize & 511
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pool(Vec<Box<[u64; 512]>>, usize);

    impl Tables for Pool {
        fn alloc(&mut self) -> Option<u64> {
            (self.0.len() < self.1).then(|| {
                self.0.push(Box::new([0; 512]));
                (self.0.len() as u64) << 12
            })
        }
        fn table(&mut self, pa: u64) -> &mut [u64; 512] {
            &mut self.0[(pa >> 12) as usize - 1]
        }
    }

    fn tables() -> PageTables<Pool> {
        PageTables::new(Pool(vec![], 100), true).unwrap()
    }

    const GIB: u64 = 1 << 30;
    const MIB2: u64 = 2 << 20;

    #[test]
    fn a_gibibyte_takes_one_entry_where_it_is_aligned() {
        let mut t = tables();
        t.map(crate::layout::DIRECT_MAP, 0, 4 * GIB, Access::Write)
            .unwrap();
        assert_eq!(t.tables.0.len(), 2, "a PML4 and one PDPT");
        assert_eq!(
            t.translate(crate::layout::DIRECT_MAP + 3 * GIB + 12345),
            Some(3 * GIB + 12345)
        );
        assert_eq!(t.translate(crate::layout::DIRECT_MAP + 4 * GIB), None);
    }

    #[test]
    fn small_pages_fill_what_large_ones_cannot() {
        let mut t = tables();
        t.map(0x1000, 0x1000, GIB + MIB2, Access::Read).unwrap();
        for va in [0x1000, MIB2 - 1, MIB2, GIB - 1, GIB, GIB + MIB2] {
            assert_eq!(t.translate(va), Some(va), "{va:#x}");
        }
        assert_eq!(t.translate(0xFFF), None);
        assert_eq!(t.translate(GIB + MIB2 + 0x1000), None);
    }

    #[test]
    fn without_gib_pages_2_mib_pages_serve() {
        let mut t = PageTables::new(Pool(vec![], 100), false).unwrap();
        t.map(GIB, GIB, GIB, Access::Write).unwrap();
        assert_eq!(t.tables.0.len(), 3);
        assert_eq!(t.translate(GIB + MIB2 + 5), Some(GIB + MIB2 + 5));
    }

    #[test]
    fn nothing_is_mapped_twice() {
        let mut t = tables();
        t.map(0x1000, 0x5000, 0x1000, Access::Write).unwrap();
        assert_eq!(
            t.map(0x1000, 0x6000, 0x1000, Access::Write),
            Err(Error::Mapped(0x1000))
        );
        t.map(GIB, GIB, GIB, Access::Write).unwrap();
        assert_eq!(
            t.map(GIB + 0x1000, 0, 0x1000, Access::Write),
            Err(Error::Mapped(GIB + 0x1000))
        );
    }

    #[test]
    fn unmapping_frees_the_range_and_no_more() {
        let mut t = tables();
        t.map(0x1000, 0x1000, 0x3000, Access::Write).unwrap();
        t.unmap(0x2000, 0x1000).unwrap();
        assert_eq!(t.translate(0x1000), Some(0x1000));
        assert_eq!(t.translate(0x2000), None);
        assert_eq!(t.translate(0x3000), Some(0x3000));
        t.map(GIB, GIB, GIB, Access::Write).unwrap();
        assert_eq!(t.unmap(GIB, MIB2), Err(Error::Large(GIB)));
        t.unmap(0, 2 * GIB).unwrap();
        assert_eq!(t.translate(GIB), None);
    }

    /// Walks the tables as a CPU in 5-level mode does.
    fn walk_5(t: &mut PageTables<Pool>, pml5: u64, va: u64) -> Option<u64> {
        let mut table = pml5;
        for level in (0..5).rev() {
            let shift = 12 + 9 * level;
            let entry = t.tables.table(table)[(va >> shift) as usize & 511];
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || entry & LARGE != 0 && level < 3 {
                let inside = (1 << shift) - 1;
                return Some(entry & ADDRESS & !inside | va & inside);
            }
            table = entry & ADDRESS;
        }
        None
    }

    #[test]
    fn five_levels_map_what_four_levels_map() {
        use crate::layout::{DIRECT_MAP, STACKS, WINDOWS};
        let mut t = tables();
        t.map(0x7000, 0x7000, 0x1000, Access::Execute).unwrap();
        t.map(DIRECT_MAP, 0, 4 * GIB, Access::Write).unwrap();
        t.map(STACKS + 0x1000, 0x5000, 0x1000, Access::Write)
            .unwrap();
        let pml5 = t.pml5().unwrap();
        // Later mappings are under both roots too.
        t.map(WINDOWS, 0xFEC0_0000, 0x1000, Access::Device).unwrap();
        let last = !0xFFF;
        t.map(last, 0x8000, 0x1000, Access::Read).ok();
        for va in [
            0,
            0x7000,
            0x7FFF,
            0x8000,
            DIRECT_MAP,
            DIRECT_MAP + 3 * GIB + 5,
            DIRECT_MAP + 4 * GIB,
            STACKS,
            STACKS + 0x1008,
            WINDOWS + 0x10,
            last,
        ] {
            let four = t.translate(va);
            assert_eq!(walk_5(&mut t, pml5, va), four, "{va:#x}");
        }
        // Addresses that only 5-level mode has lead nowhere.
        for va in [1 << 48 | 0x7000, 1 << 55, 0xFF00_0000_0000_7000] {
            assert_eq!(walk_5(&mut t, pml5, va), None, "{va:#x}");
        }
    }

    #[test]
    fn the_tables_of_a_cpu_are_found_in_either_mode() {
        for la57 in [false, true] {
            let mut t = tables();
            t.map(0x7000, 0x9000, 0x1000, Access::Read).unwrap();
            let cr3 = if la57 { t.pml5().unwrap() } else { t.root() };
            // CR3 also has cache bits.
            let mut t = PageTables::of_cpu(t.tables, cr3 | 0x18, la57);
            assert_eq!(t.translate(0x7010), Some(0x9010));
            assert_eq!(t.translate(0x9000), None);
        }
    }

    #[test]
    fn no_mapping_is_both_writable_and_executable() {
        for access in [Access::Read, Access::Write, Access::Execute, Access::Device] {
            let bits = access.bits();
            assert!(bits & WRITABLE == 0 || bits & NO_EXECUTE != 0);
        }
    }

    #[test]
    fn bad_ranges_and_empty_pools_are_errors() {
        let mut t = PageTables::new(Pool(vec![], 2), true).unwrap();
        assert_eq!(t.map(1, 0, 4096, Access::Read), Err(Error::Alignment));
        assert_eq!(t.map(0, 0, 4096, Access::Read), Err(Error::NoMemory));
        assert_eq!(
            t.map(!0xFFF, 0, 0x2000, Access::Read),
            Err(Error::Alignment)
        );
    }
}
