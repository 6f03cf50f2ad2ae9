//! What the firmware's ACPI tables say of the machine.
//!
//! The crate `acpi` finds the tables and checks their sums; what is in them is taken apart by the pure modules below,
//! which take any bytes and never trust a length.
#![expect(
    unsafe_code,
    reason = "ACPI tables are found through physical addresses that the firmware gives"
)]

pub mod aml;
pub mod fadt;
pub mod madt;
pub mod mcfg;
pub mod power;

use alloc::{format, string::String, vec::Vec};
use core::{ptr::NonNull, slice};

use acpi::{
    AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping,
    sdt::{SdtHeader, Signature},
};

use self::{fadt::Fadt, madt::Madt, mcfg::Segment};
use crate::memory;

/// What the tables say.
#[derive(Debug, Default)]
pub struct Firmware {
    /// CPUs and interrupt controllers.
    pub madt: Madt,
    /// The proximity domains of memory: first address, first address behind it, domain.
    pub memory_nodes: Vec<(u64, u64, u32)>,
    /// Fixed registers.
    pub fadt: Fadt,
    /// What to write to sleep in S5, where the tables say.
    pub s5: Option<aml::SleepType>,
    /// PCI configuration space in memory.
    pub pci: Vec<Segment>,
    /// What is missing or wrong, one sentence each.
    pub problems: Vec<String>,
}

/// Reads the tables from the RSDP at `rsdp`.
pub fn read(rsdp: Option<u64>) -> Firmware {
    let mut firmware = Firmware::default();
    let problems = &mut firmware.problems;
    let Some(rsdp) = rsdp else {
        problems.push("the firmware has no ACPI tables".into());
        return firmware;
    };
    // SAFETY: the firmware's configuration table says that the RSDP is there; the handler maps whatever it is asked
    // for, and the crate checks signature and sum before it follows anything.
    let tables = match unsafe { AcpiTables::from_rsdp(Handler, rsdp as usize) } {
        Ok(tables) => tables,
        Err(e) => {
            problems.push(format!("the ACPI tables can't be used: {e:?}"));
            return firmware;
        }
    };
    match bytes_of::<MadtTable>(&tables) {
        Some(bytes) => firmware.madt = madt::parse(&bytes),
        None => problems.push("there is no MADT: other CPUs are not known".into()),
    }
    if let Some(bytes) = bytes_of::<SratTable>(&tables) {
        madt::add_nodes(&mut firmware.madt.processors, &bytes);
        firmware.memory_nodes = madt::memory_nodes(&bytes);
    }
    match bytes_of::<FadtTable>(&tables) {
        Some(bytes) => firmware.fadt = fadt::parse(&bytes),
        None => problems.push("there is no FADT: reset and power-off may not work".into()),
    }
    if let Some(bytes) = bytes_of::<McfgTable>(&tables) {
        firmware.pci = mcfg::parse(&bytes);
    }
    firmware.s5 = tables.dsdt().ok().and_then(|dsdt| {
        aml::s5(&copy(
            dsdt.address as u64,
            u64::from(dsdt.length).min(MAX_TABLE),
        )?)
    });
    firmware
}

/// No table is larger, in bytes: 16 MiB.
const MAX_TABLE: u64 = 16 << 20;

/// A copy of the table, header included; `None` where there is none with a good sum.
fn bytes_of<T: AcpiTable>(tables: &AcpiTables<Handler>) -> Option<Vec<u8>> {
    let mapping = tables.find_table::<T>().ok()?;
    let len = mapping.get().header().length;
    copy(
        mapping.physical_start() as u64,
        u64::from(len).min(MAX_TABLE),
    )
}

fn copy(pa: u64, len: u64) -> Option<Vec<u8>> {
    let at = memory::window(pa, len).ok()?;
    // SAFETY: the window maps `len` bytes there, which are RAM or firmware storage that nobody writes.
    Some(unsafe { slice::from_raw_parts(at as *const u8, len as usize) }.to_vec())
}

macro_rules! tables {
    ($($name:ident = $signature:ident;)*) => {
        $(
            #[repr(transparent)]
            struct $name(SdtHeader);

            // SAFETY: a table starts with its header, which is all of this type.
            unsafe impl AcpiTable for $name {
                const SIGNATURE: Signature = Signature::$signature;
                fn header(&self) -> &SdtHeader {
                    &self.0
                }
            }
        )*
    };
}

tables! {
    MadtTable = MADT;
    SratTable = SRAT;
    FadtTable = FADT;
    McfgTable = MCFG;
}

#[derive(Clone, Copy)]
struct Handler;

impl AcpiHandler for Handler {
    unsafe fn map_physical_region<T>(
        &self,
        physical_address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        // The interface has no way to fail. A window fails only when no memory is left for a page table.
        let at = memory::window(physical_address as u64, size as u64)
            .unwrap_or_else(|e| panic!("ACPI table at {physical_address:#x}: {e}"));
        let at = NonNull::new(at as *mut T).expect("no window is at address 0");
        // SAFETY: the window maps `size` bytes there, for good.
        unsafe { PhysicalMapping::new(physical_address, at, size, size, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}
