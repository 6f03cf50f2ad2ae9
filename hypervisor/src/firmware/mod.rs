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
pub mod smbios;
pub mod spcr;
pub mod tables;
pub mod wdat;

use alloc::{format, string::String, vec::Vec};
use core::slice;

use crashlog::erst::Erst;
use vtd::dmar::{self, Dmar};

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
    /// The units that remap DMA and interrupts; `None` if the firmware reports none.
    pub dmar: Option<Dmar>,
    /// The firmware's own reports of hardware errors.
    pub hest: Hest,
    /// The store of error records.
    pub erst: Option<Erst>,
    /// The watchdog timer.
    pub watchdog: Option<Wdat>,
    /// Missing or malformed tables, one sentence each.
    pub problems: Vec<String>,
}

/// Reads the tables from the RSDP at `rsdp` on.
pub fn read(rsdp: Option<u64>) -> Firmware {
    gather(&Windows, rsdp)
}

/// Reads the tables in `memory` from the RSDP at `rsdp` on.
fn gather(memory: &impl Physical, rsdp: Option<u64>) -> Firmware {
    let mut firmware = Firmware::default();
    let problems = &mut firmware.problems;
    let Some(rsdp) = rsdp else {
        problems.push("the firmware has no ACPI tables".into());
        return firmware;
    };
    let tables = match Tables::find(memory, rsdp) {
        Ok(tables) => tables,
        Err(problem) => {
            problems.push(format!("the ACPI tables can't be used: {problem}"));
            return firmware;
        }
    };
    match tables.table(Signature(*b"APIC"), problems) {
        Some(bytes) => {
            firmware.madt = madt::parse(&bytes);
            if firmware.madt.processors.len() == madt::MAX_PROCESSORS {
                problems.push(format!(
                    "the MADT lists {} CPUs or more; the others are not used",
                    madt::MAX_PROCESSORS
                ));
            }
        }
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
    if let Some(bytes) = tables.table(Signature(*b"DMAR"), problems) {
        let mut dmar = dmar::parse(&bytes);
        problems.append(&mut dmar.problems);
        firmware.dmar = Some(dmar);
    }
    if let Some(bytes) = tables.table(Signature(*b"HEST"), problems) {
        firmware.hest = hest::parse(&bytes);
        problems.extend(firmware.hest.problem.take());
    }
    if let Some(bytes) = tables.table(Signature(*b"ERST"), problems) {
        firmware.erst = Erst::parse(&bytes);
    }
    if let Some(bytes) = tables.table(Signature(*b"WDAT"), problems) {
        firmware.watchdog = wdat::parse(&bytes);
    }
    firmware
}

/// Reads which machine this is from the SMBIOS entry point at `smbios` on.
pub fn system(smbios: Option<u64>) -> smbios::System {
    smbios.map_or_else(Default::default, |entry| smbios::read(&Windows, entry))
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
        if pa == 0 {
            return None;
        }
        let mut copy = Vec::new();
        copy.try_reserve_exact(bytes).ok()?;
        let at = memory::window(pa, bytes as u64).ok()?;
        // SAFETY: the window maps that many bytes there, which are RAM or firmware storage that nobody writes.
        copy.extend_from_slice(unsafe { slice::from_raw_parts(at as *const u8, bytes) });
        Some(copy)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0x7F00_0000;
    /// The names of the tables that are read, and of their lists.
    const NAMES: [&[u8; 4]; 8] = [
        b"APIC", b"SRAT", b"FACP", b"MCFG", b"DSDT", b"XSDT", b"ERST", b"DMAR",
    ];

    struct Ram(Vec<u8>);

    impl Physical for Ram {
        fn copy(&self, pa: u64, bytes: usize) -> Option<Vec<u8>> {
            let at = usize::try_from(pa.checked_sub(BASE)?).ok()?;
            Some(self.0.get(at..at.checked_add(bytes)?)?.to_vec())
        }
    }

    fn seal(table: &mut [u8], checksum: usize) {
        table[checksum] = 0;
        let sum = table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
        table[checksum] = sum.wrapping_neg();
    }

    /// Lays out tables with these bodies behind an RSDP, all with good checksums, so that every parser sees its body.
    fn machine(bodies: &[(usize, Vec<u8>)]) -> Ram {
        let mut ram = vec![0; 0x100];
        let mut entries = Vec::new();
        for (name, body) in bodies {
            entries.extend((BASE + ram.len() as u64).to_le_bytes());
            let mut table = vec![0; 36];
            table[..4].copy_from_slice(NAMES[*name]);
            table.extend(body);
            let len = table.len() as u32;
            table[4..8].copy_from_slice(&len.to_le_bytes());
            if NAMES[*name] == b"FACP" && table.len() >= 148 {
                // One time in two, the FADT points to what follows it.
                let next = BASE + (ram.len() + table.len()) as u64;
                if table[36] & 1 != 0 {
                    table[140..148].copy_from_slice(&next.to_le_bytes());
                }
            }
            seal(&mut table, 9);
            ram.extend(table);
        }
        let list = ram.len();
        let mut xsdt = vec![0; 36];
        xsdt[..4].copy_from_slice(b"XSDT");
        xsdt.extend(entries);
        let len = xsdt.len() as u32;
        xsdt[4..8].copy_from_slice(&len.to_le_bytes());
        seal(&mut xsdt, 9);
        ram.extend(xsdt);
        ram[..8].copy_from_slice(b"RSD PTR ");
        ram[15] = 2;
        ram[24..32].copy_from_slice(&(BASE + list as u64).to_le_bytes());
        seal(&mut ram[..20], 8);
        seal(&mut ram[..36], 32);
        Ram(ram)
    }

    fn bodies() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
        let body = prop::collection::vec(any::<u8>(), 0..400);
        // Bodies of short entries reach further than noise.
        let entries = prop::collection::vec((0u8..12, 0u8..50, any::<[u8; 40]>()), 0..30).prop_map(
            |entries| {
                let mut body = vec![0; 12];
                for (kind, len, rest) in entries {
                    body.extend([kind, len]);
                    body.extend(&rest[..usize::from(len).saturating_sub(2).min(40)]);
                }
                body
            },
        );
        prop::collection::vec((0..NAMES.len(), prop_oneof![body, entries]), 0..9)
    }

    proptest! {
        #[test]
        fn any_tables_are_survived(bodies in bodies(), rsdp in any::<Option<u64>>()) {
            let ram = machine(&bodies);
            gather(&ram, rsdp);
            let firmware = gather(&ram, Some(BASE));
            for isa in 0..=255 {
                prop_assert_eq!(firmware.madt.isa(isa).isa, isa);
            }
            prop_assert!(firmware.madt.processors.iter().all(|p| p.apic_id != u32::MAX));
            prop_assert!(firmware.pci.iter().all(|s| s.first_bus <= s.last_bus));
            prop_assert!(firmware.memory_nodes.iter().all(|(start, end, _)| start < end));
        }
    }

    #[test]
    fn a_machine_without_tables_has_a_sentence() {
        assert_eq!(gather(&Ram(vec![]), None).problems.len(), 1);
        assert_eq!(gather(&Ram(vec![]), Some(BASE)).problems.len(), 1);
    }
}
