//! Page walks of the software above, from a linear to a physical address.

use core::cell::Cell;

use crate::personality::KEYID_MASK;
use seam::abi::x86::{cr0, cr4, efer};

/// The control registers that govern paging.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// A page fault: the bits P and RSVD of its error code. The access adds the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault(pub u32);

/// Error code bit: a page was present.
pub const PRESENT: u32 = 1;
/// Error code bit: the access was a write.
pub const WRITE: u32 = 2;
const RESERVED: u32 = 8;

const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const ENTRY_PRESENT: u64 = 1;
const ENTRY_WRITABLE: u64 = 2;
const ENTRY_LARGE: u64 = 1 << 7;

impl Paging {
    /// Translates `va` to a physical address, for supervisor code. `read` reads a page-table word.
    ///
    /// # Errors
    /// [`PageFault`] if a page is not present, is not writable for a `write`, or carries a KeyID.
    pub fn translate(
        &self,
        va: u64,
        write: bool,
        read: impl Fn(u64) -> u64,
    ) -> Result<u64, PageFault> {
        if self.cr0 & cr0::PG == 0 {
            return Ok(va & 0xFFFF_FFFF);
        }
        let (mut levels, mut table) = if self.efer & efer::LMA != 0 {
            (4, self.cr3 & ADDRESS)
        } else if self.cr4 & cr4::PAE != 0 {
            (3, self.cr3 & 0xFFFF_FFE0)
        } else {
            return self.translate_32_bit(va, write, read);
        };
        loop {
            levels -= 1;
            let shift = 12 + 9 * levels;
            let index_bits = if levels == 2 && self.efer & efer::LMA == 0 {
                3
            } else {
                0x1FF
            };
            let entry = read(table + (va >> shift & index_bits) * 8);
            self.check(entry, write)?;
            if levels == 0 || levels <= 2 && entry & ENTRY_LARGE != 0 {
                let offset = (1u64 << shift) - 1;
                return Ok(entry & ADDRESS & !offset | va & offset);
            }
            table = entry & ADDRESS;
        }
    }

    fn translate_32_bit(
        &self,
        va: u64,
        write: bool,
        read: impl Fn(u64) -> u64,
    ) -> Result<u64, PageFault> {
        let word = |pa: u64| read(pa & !7) >> (pa % 8 * 8) & 0xFFFF_FFFF;
        let directory = word((self.cr3 & 0xFFFF_F000) + (va >> 22 & 0x3FF) * 4);
        self.check(directory, write)?;
        if directory & ENTRY_LARGE != 0 && self.cr4 & cr4::PSE != 0 {
            return Ok(directory & 0xFFC0_0000 | va & 0x3F_FFFF);
        }
        let entry = word((directory & 0xFFFF_F000) + (va >> 12 & 0x3FF) * 4);
        self.check(entry, write)?;
        Ok(entry & 0xFFFF_F000 | va & 0xFFF)
    }

    fn check(&self, entry: u64, write: bool) -> Result<(), PageFault> {
        let access = if write { WRITE } else { 0 };
        if entry & ENTRY_PRESENT == 0 {
            return Err(PageFault(access));
        }
        if entry & KEYID_MASK != 0 {
            return Err(PageFault(PRESENT | RESERVED | access));
        }
        if write && self.cr0 & cr0::WP != 0 && entry & ENTRY_WRITABLE == 0 {
            return Err(PageFault(PRESENT | access));
        }
        Ok(())
    }
}

/// A recorded walk in 64-bit mode. Like a processor with the upper entries in its paging-structure caches, it only
/// reads the last entry again. It leads to the same page for as long as that entry is unchanged and at the same place.
/// If software changes an upper entry and leaves the last one as it is, an INVLPG must follow before the change takes
/// effect. Nothing here observes the INVLPG, so the code at that address would be read from the previous page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trail {
    cr3: u64,
    /// The linear page with [`ENTRY_PRESENT`]. Its physical address follows.
    page: u64,
    pa: u64,
    /// The address of the last entry, and its value.
    last: (u64, u64),
}

impl Trail {
    const OFFSET: u64 = 0xFFF;

    /// Walks to `va`, for a read, and records the walk. `read` returns the location of the word at an address, and its
    /// value.
    ///
    /// # Errors
    /// As [`Paging::translate`].
    pub fn walk(
        paging: &Paging,
        va: u64,
        read: impl Fn(u64) -> (u64, u64),
    ) -> Result<Self, PageFault> {
        let last = Cell::default();
        let pa = paging.translate(va, false, |pa| {
            let (at, word) = read(pa);
            last.set((at, word));
            word
        })?;
        Ok(Self {
            cr3: paging.cr3,
            page: va & !Self::OFFSET | ENTRY_PRESENT,
            pa: pa & !Self::OFFSET,
            last: last.get(),
        })
    }

    /// Returns the address of the first byte of the page that the walk reached.
    pub fn destination(&self) -> u64 {
        self.pa
    }

    /// Returns the same walk with another page as its destination: the real location of the page that it reached.
    #[must_use]
    pub fn with_destination(self, page: u64) -> Self {
        Self { pa: page, ..self }
    }

    /// Returns the physical address of `va` if this is its walk and the last entry has not changed. The mode is 64-bit.
    #[inline(always)]
    pub fn follow(&self, paging: &Paging, va: u64, read: impl Fn(u64) -> u64) -> Option<u64> {
        let (at, word) = self.last_entry(paging, va)?;
        (read(at) == word).then_some(self.at(va))
    }

    /// Returns the address of the last entry on the walk to `va` and its recorded value, if this is its walk.
    #[inline(always)]
    pub fn last_entry(&self, paging: &Paging, va: u64) -> Option<(u64, u64)> {
        let is_here = self.page == va & !Self::OFFSET | ENTRY_PRESENT && self.cr3 == paging.cr3;
        is_here.then_some(self.last)
    }

    /// Returns the physical address of `va`, whose page this walk reached.
    #[inline(always)]
    pub fn at(&self, va: u64) -> u64 {
        self.pa | va & Self::OFFSET
    }
}

/// Checks if the walk of `va` in 64-bit mode passes through or ends at an address with a KeyID. Returns that physical
/// address with its KeyID.
pub fn keyid_alias(paging: &Paging, va: u64, read: impl Fn(u64) -> u64) -> Option<u64> {
    if paging.efer & efer::LMA == 0 {
        return None;
    }
    let mut table = paging.cr3 & ADDRESS;
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        if table & KEYID_MASK != 0 {
            return Some(table | va & 0xFFF);
        }
        let entry = read(table + (va >> shift & 0x1FF) * 8);
        if entry & ENTRY_PRESENT == 0 {
            return None;
        }
        if level == 0 || level <= 2 && entry & ENTRY_LARGE != 0 {
            let offset = (1u64 << shift) - 1;
            let pa = entry & ADDRESS & !offset | va & offset;
            return (pa & KEYID_MASK != 0).then_some(pa);
        }
        table = entry & ADDRESS;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    const LONG: Paging = Paging {
        cr0: 0x8001_0001,
        cr3: 0x1000,
        cr4: 0x20,
        efer: 0x500,
    };

    fn tables(entries: &[(u64, u64)]) -> impl Fn(u64) -> u64 {
        let map: BTreeMap<u64, u64> = entries.iter().copied().collect();
        move |pa| map.get(&pa).copied().unwrap_or(0)
    }

    #[test]
    fn four_levels_and_large_pages() {
        let read = tables(&[
            (0x1000, 0x2003),
            (0x2000, 0x3003),
            (0x3000, 0x4003),
            (0x4008, 0x0012_3001),
            (0x3008, 0x0060_0083),
            (0x2008, 0x1_4000_0083),
        ]);
        assert_eq!(LONG.translate(0x1ABC, false, &read), Ok(0x12_3ABC));
        assert_eq!(
            LONG.translate(0x1ABC, true, &read),
            Err(PageFault(PRESENT | WRITE))
        );
        assert_eq!(LONG.translate(0x20_1234, true, &read), Ok(0x60_1234));
        assert_eq!(LONG.translate(0x4000_0042, true, &read), Ok(0x1_4000_0042));
        assert_eq!(LONG.translate(0x2000, false, &read), Err(PageFault(0)));
    }

    #[test]
    fn a_trail_leads_to_its_page_until_its_last_entry_changes() {
        let entries = [
            (0x1000, 0x2003),
            (0x2000, 0x3003),
            (0x3008, 0x0060_0083),
            (0x2008, 0x1_4000_0083),
        ];
        let read = tables(&entries);
        let trail = Trail::walk(&LONG, 0x20_1234, |pa| (pa, read(pa))).unwrap();
        assert_eq!(trail.follow(&LONG, 0x20_1FFF, &read), Some(0x60_1FFF));
        assert_eq!(trail.follow(&LONG, 0x20_2000, &read), None, "another page");
        let elsewhere = Paging {
            cr3: 0x9000,
            ..LONG
        };
        assert_eq!(trail.follow(&elsewhere, 0x20_1234, &read), None);
        let mut changed = entries;
        changed[2].1 ^= 0x20_0000;
        assert_eq!(trail.follow(&LONG, 0x20_1234, tables(&changed)), None);
        let gone = &entries[..2];
        assert_eq!(trail.follow(&LONG, 0x20_1234, tables(gone)), None);
        assert_eq!(Trail::default().follow(&LONG, 0, tables(&[])), None);
    }

    #[test]
    fn a_keyid_in_a_leaf_is_found() {
        let read = tables(&[(0x1000, 0x2003), (0x2000, 3 << 48 | 0x4000_0083)]);
        assert_eq!(
            LONG.translate(0x10, false, &read),
            Err(PageFault(PRESENT | 8))
        );
        assert_eq!(keyid_alias(&LONG, 0x10, &read), Some(3 << 48 | 0x4000_0010));
        assert_eq!(keyid_alias(&LONG, 1 << 39, &read), None);
    }

    #[test]
    fn legacy_paging_modes_are_walked() {
        let flat = Paging { cr0: 1, ..LONG };
        assert_eq!(flat.translate(0x8_1234, true, |_| 0), Ok(0x8_1234));
        let two = Paging {
            cr4: 0x10,
            efer: 0,
            ..LONG
        };
        let read = tables(&[(0x1000, 0x83 << 32 | 0x2003), (0x2008, 0x5003)]);
        assert_eq!(two.translate(0x2010, true, &read), Ok(0x5010));
        assert_eq!(two.translate(0x40_0010, true, &read), Ok(0x10));
        let pae = Paging { efer: 0, ..LONG };
        let read = tables(&[(0x1008, 0x2001), (0x2000, 0x60_0083)]);
        assert_eq!(pae.translate(0x4000_0010, false, &read), Ok(0x60_0010));
    }
}
