//! The firmware's ACPI tables.
//!
//! The pure modules below find and parse the tables. They accept any bytes and trust no address or length. Only the
//! copying of physical memory is here.
#![expect(
    unsafe_code,
    reason = "ACPI tables are found through physical addresses that the firmware gives"
)]

pub mod aml;
pub mod fadt;
pub mod hest;
pub mod madt;
pub mod mcfg;
pub mod spcr;
pub mod tables;
pub mod wdat;

use alloc::{format, string::String, vec::Vec};
use core::slice;

use self::{
    fadt::Fadt,
    hest::Hest,
    madt::Madt,
    mcfg::Segment,
    spcr::Spcr,
    tables::{Physical, Signature, Tables},
    wdat::Wdat,
};
use crate::memory;

/// The contents of the tables.
#[derive(Debug, Default)]
pub struct Firmware {
    /// CPUs and interrupt controllers.
    pub madt: Madt,
    /// The proximity domains of memory: first address, first address behind it, domain.
    pub memory_nodes: Vec<(u64, u64, u32)>,
    /// Fixed registers.
    pub fadt: Fadt,
    /// The values to write for sleep state S5, if the tables give them.
    pub s5: Option<aml::SleepType>,
    /// PCI configuration space in memory.
    pub pci: Vec<Segment>,
    /// The firmware's own reports of hardware errors.
    pub hest: Hest,
    /// The watchdog timer.
    pub watchdog: Option<Wdat>,
    /// Missing or malformed tables, one sentence each.
    pub problems: Vec<String>,
}

/// Reads the tables from the RSDP at `rsdp` on.
pub fn read(rsdp: Option<u64>) -> Firmware {
    let mut firmware = Firmware::default();
    let problems = &mut firmware.problems;
    let Some(rsdp) = rsdp else {
        problems.push("the firmware has no ACPI tables".into());
        return firmware;
    };
    let tables = match Tables::find(&Windows, rsdp) {
        Ok(tables) => tables,
        Err(problem) => {
            problems.push(format!("the ACPI tables can't be used: {problem}"));
            return firmware;
        }
    };
    match tables.table(Signature(*b"APIC"), problems) {
        Some(bytes) => firmware.madt = madt::parse(&bytes),
        None => problems.push("there is no MADT: other CPUs are not known".into()),
    }
    if let Some(bytes) = tables.table(Signature(*b"SRAT"), problems) {
        madt::add_nodes(&mut firmware.madt.processors, &bytes);
        firmware.memory_nodes = madt::memory_nodes(&bytes);
    }
    match tables.table(Signature(*b"FACP"), problems) {
        Some(bytes) => {
            firmware.fadt = fadt::parse(&bytes);
            match tables.dsdt(&bytes) {
                Ok(dsdt) => firmware.s5 = aml::s5(&dsdt),
                Err(problem) => problems.push(problem),
            }
        }
        None => problems.push("there is no FADT: reset and power-off may not work".into()),
    }
    if let Some(bytes) = tables.table(Signature(*b"MCFG"), problems) {
        firmware.pci = mcfg::parse(&bytes);
    }
    if let Some(bytes) = tables.table(Signature(*b"HEST"), problems) {
        firmware.hest = hest::parse(&bytes);
        problems.extend(firmware.hest.problem.take());
    }
    if let Some(bytes) = tables.table(Signature(*b"WDAT"), problems) {
        firmware.watchdog = wdat::parse(&bytes);
    }
    firmware
}

/// Reads the firmware's console port while the firmware still runs and memory is identity-mapped. Only tables in `ram`,
/// as first and last address plus one, are read.
pub fn console(rsdp: u64, ram: &[(u64, u64)]) -> Option<Spcr> {
    let memory = Identity(ram);
    let tables = Tables::find(&memory, rsdp).ok()?;
    // The problems are reported when all tables are read.
    let table = tables.table(Signature(*b"SPCR"), &mut Vec::new())?;
    spcr::parse(&table)
}

/// Identity-mapped ranges of RAM.
struct Identity<'a>(&'a [(u64, u64)]);

impl Physical for Identity<'_> {
    fn copy(&self, pa: u64, bytes: usize) -> Option<Vec<u8>> {
        let end = pa.checked_add(bytes as u64)?;
        let inside = |&(from, to): &(u64, u64)| pa != 0 && from <= pa && end <= to;
        self.0.iter().any(inside).then(|| {
            // SAFETY: the range is RAM, which the firmware has identity-mapped; the firmware does not run now.
            unsafe { slice::from_raw_parts(pa as *const u8, bytes) }.to_vec()
        })
    }
}

/// Physical memory, read through windows.
struct Windows;

impl Physical for Windows {
    fn copy(&self, pa: u64, bytes: usize) -> Option<Vec<u8>> {
        let max_pa = core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xFF;
        let end = pa.checked_add(bytes as u64)?;
        if pa == 0 || end > 1 << max_pa.min(52) {
            return None;
        }
        let at = memory::window(pa, bytes as u64).ok()?;
        // SAFETY: the window maps that many bytes there, which are RAM or firmware storage that nobody writes.
        Some(unsafe { slice::from_raw_parts(at as *const u8, bytes) }.to_vec())
    }
}
