//! The host's page tables, built while the firmware runs; see [`layout`].

use core::slice;

use x86_64::registers::control::{Cr4, Cr4Flags};

use super::{Error, pages};
use crate::{
    layout,
    paging::{Access, PageTables, Tables},
    pe,
};

/// Page tables in memory from the firmware, identity-mapped while they are built.
struct Pool {
    next: u64,
    end: u64,
}

impl Tables for Pool {
    fn alloc(&mut self) -> Option<u64> {
        let pa = self.next;
        if pa == self.end {
            return None;
        }
        self.next += 4096;
        *self.table(pa) = [0; 512];
        Some(pa)
    }

    fn table(&mut self, pa: u64) -> &mut [u64; 512] {
        // SAFETY: `pa` is one of the pages that `alloc` gives out: ours, and identity-mapped by the firmware.
        unsafe { &mut *(pa as *mut [u64; 512]) }
    }
}

/// The host's page tables.
pub(super) struct HostTables {
    /// Physical address of the PML4.
    pub pml4: u64,
    /// Physical address of the top table in the CPU's paging mode: the PML4 or a PML5.
    pub cr3: u64,
    /// Start and end address of the image's code.
    pub text: (u64, u64),
}

/// Builds the host's page tables; see [`layout`].
pub(super) fn build(
    ram: &[(u64, u64)],
    image: (u64, u64),
    heap: (u64, u64),
    trampoline: Option<u64>,
    stack: u64,
) -> Result<HostTables, Error> {
    // Each end of an extent needs at most two tables, and each extent a page-directory-pointer table.
    let count = 64 + 8 * ram.len();
    let start = pages(count, 1 << 32).ok_or(Error::NoMemory("page tables"))?;
    let pool = Pool {
        next: start,
        end: start + count as u64 * 4096,
    };
    let gib_pages = core::arch::x86_64::__cpuid(0x8000_0001).edx & 1 << 26 != 0;
    let mut tables = PageTables::new(pool, gib_pages)?;

    // SAFETY: the firmware loaded the image there, headers included, and nobody else ever writes it.
    let headers = unsafe { slice::from_raw_parts(image.0 as *const u8, 4096) };
    let mut text = (u64::MAX, 0);
    for section in pe::sections(headers).ok_or(Error::Sections)? {
        let access = match (section.write, section.execute) {
            (true, true) => return Err(Error::Sections),
            (true, false) => Access::Write,
            (false, true) => Access::Execute,
            (false, false) => Access::Read,
        };
        let at = image.0 + section.start;
        tables.map(at, at, section.size, access)?;
        if access == Access::Execute {
            text = (at.min(text.0), (at + section.size).max(text.1));
        }
    }
    for &(start, end) in ram {
        for (start, end) in [(start, end.min(image.0)), (start.max(image.1), end)] {
            let end = end.min(layout::DIRECT_MAP_SIZE);
            // The first page stays unmapped: nothing there belongs to anyone.
            let start = start.max(4096);
            if start < end {
                tables.map(
                    layout::DIRECT_MAP + start,
                    start,
                    end - start,
                    Access::Write,
                )?;
            }
        }
    }
    tables.map(heap.0, heap.0, heap.1 - heap.0, Access::Write)?;
    if let Some(page) = trampoline {
        tables.map(page, page, 4096, Access::Execute)?;
    }
    tables.map(
        layout::BOOT_STACK.0,
        stack,
        layout::BOOT_STACK.1,
        Access::Write,
    )?;
    let pml4 = tables.root();
    // The number of levels can't change in 64-bit mode, so the firmware's choice stays.
    let cr3 = if Cr4::read().contains(Cr4Flags::L5_PAGING) {
        tables.pml5()?
    } else {
        pml4
    };
    Ok(HostTables { pml4, cr3, text })
}
