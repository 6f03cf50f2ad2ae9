//! The address space in which the firmware's code runs.

use boot::paging::{Access, PageTables};
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::{Direct, Error, MEMORY, direct};

/// Page tables for the firmware's code: some ranges at their physical addresses, and the host's upper half.
#[derive(Clone, Copy, Debug)]
pub struct FirmwareTables {
    /// The value for CR3.
    pub cr3: u64,
    pml4: u64,
    host_pml4: u64,
}

/// Builds page tables that map these ranges of physical memory where they are. They must not overlap.
///
/// # Errors
/// [`Error`].
pub fn firmware_tables(ranges: &[(u64, u64, Access)]) -> Result<FirmwareTables, Error> {
    /// End of the lower half.
    const LOWER_HALF: u64 = 1 << 47;
    if let Some(range) = ranges.iter().find(|range| range.1 > LOWER_HALF) {
        return Err(Error::Address(range.0));
    }
    let mut memory = MEMORY.lock();
    let memory = memory.as_mut().ok_or(Error::NotReady)?;
    let host_pml4 = memory.page_tables;
    let mut tables = PageTables::new(Direct(&mut memory.frames), memory.gib_pages)?;
    for &(start, end, access) in ranges {
        tables.map(start, start, end - start, access)?;
    }
    let pml4 = tables.root();
    let cr3 = if Cr4::read().contains(Cr4Flags::L5_PAGING) {
        tables.pml5()?
    } else {
        pml4
    };
    Ok(FirmwareTables {
        cr3,
        pml4,
        host_pml4,
    })
}

impl FirmwareTables {
    /// Copies the host's upper half as it is now. One CPU at a time may call this, and no CPU uses the tables meanwhile.
    /// It takes no lock: crash reports call it.
    pub fn update(&self) {
        const HALF: usize = 256;
        let entry = |pml4: u64, index: usize| (direct(pml4) as *mut u64).wrapping_add(index);
        for index in HALF..2 * HALF {
            // SAFETY: both tables are in RAM that the direct map has. The host's entries are only ever added, each by
            // one write; the other table is not in use, as the caller promises.
            unsafe {
                let host = entry(self.host_pml4, index).read_volatile();
                entry(self.pml4, index).write_volatile(host);
            }
        }
    }
}
