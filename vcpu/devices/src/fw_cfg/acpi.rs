//! The files of the ACPI tables: the tables, the RSDP, and the commands that link them once the firmware has placed
//! them.
//!
//! Firmware adds the processors' wakeup and the event log itself.

use alloc::{boxed::Box, sync::Arc, vec};
use core::ops::Range;

use arrayvec::ArrayVec;
use td_acpi::{CHECKSUM, FACS_BYTES, Pci, Place, RSDP_BYTES, Td, WINDOWS, Written};

use super::loader::{self, Loader};
use crate::pci::Bus;

/// The files: the commands, the tables, and the RSDP.
const NAMES: [&str; 3] = ["etc/table-loader", TABLES, ROOT];
const TABLES: &str = "etc/acpi/tables";
const ROOT: &str = "etc/acpi/rsdp";

/// Bytes of all tables without the processors, at most.
const WITHOUT_PROCESSORS: usize = 2048;
/// Bytes of a processor in its table.
const PROCESSOR: usize = 16;
/// Offsets of the RSDP's fields: two checksums, and the address of the XSDT.
const ROOT_CHECKSUM: usize = 8;
const ROOT_XSDT: usize = 24;
const ROOT_CHECKSUM_OF_ALL: usize = 32;
/// Bytes that the first checksum of the RSDP covers.
const ROOT_FIRST_PART: Range<usize> = 0..20;

/// End of the addresses for the memory of functions below 4 GiB: those of the I/O APIC follow.
const LOW_END: u64 = 0xFC00_0000;
const FOUR_GIB: u64 = 1 << 32;
/// End of the private addresses of a TD.
const END: u64 = 1 << 47;
/// The window above 4 GiB has a start and an end that are multiples of this.
const HIGH_STEP: u64 = 1 << 30;

/// The files.
#[derive(Debug)]
pub struct Acpi {
    processors: u32,
    bus: Arc<Bus>,
    /// The number of the first file's item.
    first: u16,
    files: [Box<[u8]>; NAMES.len()],
}

impl Acpi {
    pub fn new(processors: u32, bus: &Arc<Bus>) -> Self {
        let tables = WITHOUT_PROCESSORS + processors as usize * PROCESSOR;
        let sizes = [loader::BYTES, tables.next_multiple_of(4096), RSDP_BYTES];
        Self {
            processors,
            bus: bus.clone(),
            first: 0,
            files: sizes.map(|bytes| vec![0; bytes].into_boxed_slice()),
        }
    }

    pub fn numbered_from(self, first: u16) -> Self {
        Self { first, ..self }
    }

    /// Returns names and sizes in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, usize)> + '_ {
        NAMES
            .into_iter()
            .zip(self.files.iter().map(|file| file.len()))
    }

    /// Returns the number of the file that is item `key`.
    pub fn file_of(&self, key: u16) -> Option<usize> {
        let file = usize::from(key.checked_sub(self.first)?);
        (file < NAMES.len()).then_some(file)
    }

    pub fn content(&self, file: usize) -> &[u8] {
        &self.files[file]
    }

    /// Renders all files, for the bus as it is now.
    pub fn render(&mut self) {
        let td = Td {
            processors: self.processors,
            wakeup: None,
            facs: 0,
            log: None,
            pci: pci(&self.bus),
        };
        let [loader, tables, root] = &mut self.files;
        tables.fill(0);
        tables[..FACS_BYTES].copy_from_slice(&td_acpi::facs());
        // Pointers are offsets until the firmware adds the address of the file.
        let place = Place {
            memory: &mut *tables,
            at: 0,
            from: FACS_BYTES,
        };
        // There is room for the processors that the TD has.
        let written = td_acpi::write(place, &td).unwrap_or_default();
        root.copy_from_slice(&td_acpi::root(written.xsdt));
        for table in &written.tables {
            tables[table.start + CHECKSUM] = 0;
        }
        for checksum in [ROOT_CHECKSUM, ROOT_CHECKSUM_OF_ALL] {
            root[checksum] = 0;
        }
        link(&mut Loader::new(loader), &written);
    }
}

/// Writes the commands: place the files, add their addresses to the pointers, then make the checksums.
fn link(loader: &mut Loader<'_>, written: &Written) {
    loader.allocate(TABLES, FACS_BYTES as u32, loader::Zone::High);
    loader.allocate(ROOT, 16, loader::Zone::Legacy);
    for pointer in &written.pointers {
        loader.add_pointer([TABLES, TABLES], pointer.at, pointer.bytes);
    }
    loader.add_pointer([ROOT, TABLES], ROOT_XSDT, 8);
    for table in &written.tables {
        loader.add_checksum(TABLES, table.start + CHECKSUM, table.clone());
    }
    loader.add_checksum(ROOT, ROOT_CHECKSUM, ROOT_FIRST_PART);
    loader.add_checksum(ROOT, ROOT_CHECKSUM_OF_ALL, 0..RSDP_BYTES);
}

/// Returns the addresses of the bus: its configuration space where the firmware has put it, everything else between
/// memory and the I/O APIC, and above 4 GiB as far as its functions have memory there.
fn pci(bus: &Bus) -> Pci {
    let config = bus.config_window();
    let low_start = bus.memory().filter(|range| range.start < FOUR_GIB);
    let low_start = low_start.map(|range| range.end).fold(0, u64::max);
    let low = low_start.max(1 << 31)..LOW_END;
    let hole = config.clone().unwrap_or(LOW_END..LOW_END);
    let around = [
        low.start..low.end.min(hole.start),
        low.start.max(hole.end)..low.end,
    ];
    let mut windows: ArrayVec<_, WINDOWS> = around
        .into_iter()
        .filter(|window| window.start < window.end)
        .collect();
    windows.extend(high(bus));
    let config = config.map(|window| window.start);
    Pci { config, windows }
}

/// Returns the window above 4 GiB: from the lowest to the highest memory of a function.
fn high(bus: &Bus) -> Option<Range<u64>> {
    let ends = bus
        .claims()
        .filter(|range| range.start >= FOUR_GIB && range.end <= END);
    let hull = ends.reduce(|all, range| all.start.min(range.start)..all.end.max(range.end))?;
    let start = hull.start / HIGH_STEP * HIGH_STEP;
    Some(start..hull.end.next_multiple_of(HIGH_STEP))
}
