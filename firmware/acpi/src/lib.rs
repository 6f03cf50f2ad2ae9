//! The ACPI tables of a TD: processors and their wakeup, power, devices, the PCI bus, and the event log.
//!
//! The firmware that boots a kernel writes them to the TD's memory. For other firmware the host renders them, and that
//! firmware moves them: [`Written`] says which places have to follow.
//!
//! Source: ACPI Specification 6.6, section 5.2; CCEL: Guest-Host-Communication Interface for Intel TDX 1.5, section
//! 4.3.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod aml;
mod dsdt;
mod fixed;

use core::ops::Range;

use arrayvec::ArrayVec;
use td_base::board;

pub use fixed::{FACS_BYTES, RSDP_BYTES, facs, root};
use fixed::{FADT_DSDT, FADT_FACS, FADT_X_DSDT, ccel, fadt, mcfg};

/// The facts about the TD that the tables contain.
#[derive(Clone, Debug)]
pub struct Td {
    /// Number of processors; their x2APIC ids count from 0.
    pub processors: u32,
    /// The way in which the processors but the first are woken; `None` if the TD's firmware adds this itself.
    pub wakeup: Option<Wakeup>,
    /// The address of the FACS, a multiple of 64.
    pub facs: u64,
    /// The event log, unless the TD's firmware describes it itself.
    pub log: Option<Log>,
    /// The PCI bus.
    pub pci: Pci,
}

/// The multiprocessor wakeup mailbox.
#[derive(Clone, Copy, Debug)]
pub struct Wakeup {
    /// The address of the mailbox.
    pub mailbox: u64,
    /// The address at which a processor returns to the mailbox.
    pub reset: u64,
}

/// The event log.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// Its address.
    pub at: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Largest number of windows of the PCI bus.
pub const WINDOWS: usize = 3;

/// The addresses of the PCI bus.
#[derive(Clone, Debug)]
pub struct Pci {
    /// The memory-mapped configuration space of bus 0, of [`board::PCI_CONFIG_BYTES`], if there is one.
    pub config: Option<u64>,
    /// The addresses for the memory of its functions. None is empty.
    pub windows: ArrayVec<Range<u64>, WINDOWS>,
}

impl Default for Pci {
    /// Returns the addresses in a directly booted TD.
    fn default() -> Self {
        let windows = [board::PCI_LOW, board::PCI_HIGH];
        Self {
            config: Some(board::PCI_CONFIG),
            windows: windows.into_iter().collect(),
        }
    }
}

/// The address of each processor's local APIC.
const LOCAL_APIC: u32 = 0xFEE0_0000;

const HEADER_BYTES: usize = 36;
/// The byte of a table's header that makes the sum of the table zero.
pub const CHECKSUM: usize = 9;

/// Largest number of tables, and of pointers in them: three of the FADT, and one of the XSDT to each of four tables.
const TABLES: usize = 6;
const POINTERS: usize = 7;

/// The error for tables that do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// Memory for tables.
#[derive(Debug)]
pub struct Place<'a> {
    /// The memory.
    pub memory: &'a mut [u8],
    /// The address that the TD has it at, a multiple of 64.
    pub at: u64,
    /// Offset from which on the memory is free.
    pub from: usize,
}

/// A pointer to a table, as an offset in the memory and a size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Offset of the pointer.
    pub at: usize,
    /// Its size: 4 or 8.
    pub bytes: u8,
}

/// The tables that were written. All offsets count from the start of the memory.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// The XSDT's address, which the RSDP needs ([`root`]).
    pub xsdt: u64,
    /// The tables' places.
    pub tables: ArrayVec<Range<usize>, TABLES>,
    /// The pointers in them, which are addresses of tables or of the FACS.
    pub pointers: ArrayVec<Pointer, POINTERS>,
}

/// Writes the tables, each at a multiple of 16.
///
/// # Errors
/// [`TooLarge`].
pub fn write(place: Place<'_>, td: &Td) -> Result<Written, TooLarge> {
    let mut writer = Writer {
        place,
        written: Written::default(),
    };
    let dsdt = writer.table(*b"DSDT", 2, &[&dsdt::devices(&td.pci)])?;
    let fadt = writer.table(*b"FACP", 6, &[&fadt(dsdt, td.facs)[HEADER_BYTES..]])?;
    writer.note_pointer(FADT_FACS, 4);
    writer.note_pointer(FADT_DSDT, 4);
    writer.note_pointer(FADT_X_DSDT, 8);
    let mut listed = ArrayVec::<u64, TABLES>::new();
    listed.extend([fadt, writer.madt(td)?]);
    if let Some(log) = td.log {
        listed.push(writer.table(*b"CCEL", 1, &[&ccel(log)])?);
    }
    if let Some(config) = td.pci.config {
        listed.push(writer.table(*b"MCFG", 1, &[&mcfg(config)])?);
    }
    let pointers: ArrayVec<_, TABLES> = listed.iter().map(|at| at.to_le_bytes()).collect();
    writer.written.xsdt = writer.table(*b"XSDT", 1, &[pointers.as_flattened()])?;
    for number in 0..listed.len() {
        writer.note_pointer(HEADER_BYTES + 8 * number, 8);
    }
    Ok(writer.written)
}

struct Writer<'a> {
    place: Place<'a>,
    written: Written,
}

impl Writer<'_> {
    /// Adds a table whose content is in parts. Returns its address.
    fn table(&mut self, name: [u8; 4], revision: u8, parts: &[&[u8]]) -> Result<u64, TooLarge> {
        let bytes = parts.iter().map(|part| part.len()).sum::<usize>();
        let mut rest = self.begin(name, revision, bytes)?;
        for part in parts {
            let (to, next) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = next;
        }
        Ok(self.end())
    }

    /// Begins a table with a content of `bytes` bytes, which it returns.
    fn begin(&mut self, name: [u8; 4], revision: u8, bytes: usize) -> Result<&mut [u8], TooLarge> {
        let start = self.place.from.next_multiple_of(16);
        let range = start..start + HEADER_BYTES + bytes;
        let table = self.place.memory.get_mut(range.clone()).ok_or(TooLarge)?;
        let (head, content) = table.split_at_mut(HEADER_BYTES);
        head.copy_from_slice(&header(name, revision, range.len()));
        self.place.from = range.end;
        self.written.tables.push(range);
        Ok(content)
    }

    /// Ends the table begun last. Returns its address.
    fn end(&mut self) -> u64 {
        let Some(range) = self.written.tables.last() else {
            return self.place.at;
        };
        let table = &mut self.place.memory[range.clone()];
        table[CHECKSUM] = checksum(table);
        self.place.at + range.start as u64
    }

    /// Notes a pointer of the table written last.
    fn note_pointer(&mut self, offset: usize, bytes: u8) {
        let start = self.written.tables.last().map_or(0, |table| table.start);
        let at = start + offset;
        self.written.pointers.push(Pointer { at, bytes });
    }

    fn madt(&mut self, td: &Td) -> Result<u64, TooLarge> {
        const X2APIC: u8 = 9;
        const IO_APIC: u8 = 1;
        const IO_APIC_BYTES: usize = 12;
        const OVERRIDE: u8 = 2;
        const OVERRIDE_BYTES: usize = 10;
        const EDGE_ACTIVE_HIGH: u8 = 1 << 2 | 1;
        const WAKEUP: u8 = 0x10;
        const WAKEUP_BYTES: usize = 24;
        /// The version of the mailbox that has the Test command and a reset vector.
        const WAKEUP_VERSION: u16 = 1;
        const ENABLED: u32 = 1;
        let count = td.processors as usize;
        let wakeup_bytes = td.wakeup.map_or(0, |_| WAKEUP_BYTES);
        let bytes = 8 + 16 * count + IO_APIC_BYTES + OVERRIDE_BYTES + wakeup_bytes;
        let content = self.begin(*b"APIC", 7, bytes)?;
        content.fill(0);
        // The flags are 0: there are no 8259s.
        content[..4].copy_from_slice(&LOCAL_APIC.to_le_bytes());
        let (processors, rest) = content[8..].split_at_mut(16 * count);
        for (id, entry) in (0u32..).zip(processors.as_chunks_mut::<16>().0) {
            entry[0] = X2APIC;
            entry[1] = 16;
            entry[4..8].copy_from_slice(&id.to_le_bytes());
            entry[8..12].copy_from_slice(&ENABLED.to_le_bytes());
            entry[12..].copy_from_slice(&id.to_le_bytes());
        }
        let (io_apic, rest) = rest.split_at_mut(IO_APIC_BYTES);
        let (sci, wakeup) = rest.split_at_mut(OVERRIDE_BYTES);
        io_apic[0] = IO_APIC;
        io_apic[1] = IO_APIC_BYTES as u8;
        io_apic[4..8].copy_from_slice(&board::IO_APIC.to_le_bytes());
        // Without this, ACPI's interrupt would be level-triggered, which the host can't offer.
        sci[0] = OVERRIDE;
        sci[1] = OVERRIDE_BYTES as u8;
        sci[3] = board::POWER_INTERRUPT;
        sci[4] = board::POWER_INTERRUPT;
        sci[8] = EDGE_ACTIVE_HIGH;
        if let Some(is) = td.wakeup {
            wakeup[0] = WAKEUP;
            wakeup[1] = WAKEUP_BYTES as u8;
            wakeup[2..4].copy_from_slice(&WAKEUP_VERSION.to_le_bytes());
            wakeup[8..16].copy_from_slice(&is.mailbox.to_le_bytes());
            wakeup[16..].copy_from_slice(&is.reset.to_le_bytes());
        }
        Ok(self.end())
    }
}

fn header(name: [u8; 4], revision: u8, length: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&name);
    header[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    header[8] = revision;
    header[10..16].copy_from_slice(b"SEAMRK");
    header[16..24].copy_from_slice(b"TD      ");
    header[24] = 1;
    header[28..32].copy_from_slice(b"SMRK");
    header[32] = 1;
    header
}

/// Returns the checksum that makes the sum of all bytes zero. The checksum byte itself must be zero.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests;
