//! The firmware's table of units: the DMAR.
//!
//! Firmware wrote it, so no length, address or scope is trusted. A wrong structure is left out, with a sentence that
//! says what is wrong with it; if its length is wrong, what follows it can't be read.
//!
//! Source: VT-d specification, chapter 8 (BIOS Considerations).

mod read;
mod scope;

use alloc::{format, string::String, vec::Vec};

pub use scope::{Scope, ScopeKind};

use read::{Structure, structures};

/// The contents of the DMAR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dmar {
    /// Width of DMA addresses in bits.
    pub address_bits: u8,
    /// INTR_REMAP: the platform supports interrupt remapping.
    pub remaps_interrupts: bool,
    /// The units (DRHD), in the firmware's order.
    pub units: Vec<UnitEntry>,
    /// Memory that devices use for the firmware (RMRR).
    pub reserved: Vec<Reserved>,
    /// Root ports whose devices may translate addresses themselves (ATSR).
    pub root_ports: Vec<RootPorts>,
    /// Proximity domains of units (RHSA): the unit's address, and its domain.
    pub affinity: Vec<(u64, u32)>,
    /// Devices without a PCI address of their own (ANDD).
    pub named: Vec<Named>,
    /// Integrated devices that translate addresses themselves (SATC).
    pub translating: Vec<Devices>,
    /// Integrated devices with other properties (SIDP).
    pub properties: Vec<Devices>,
    /// The mistakes of the table, one sentence each.
    pub problems: Vec<String>,
}

/// A unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitEntry {
    /// Physical address of its registers.
    pub base: u64,
    /// Its PCI segment.
    pub segment: u16,
    /// INCLUDE_PCI_ALL: it has every function of the segment that no other unit's scope names.
    pub all: bool,
    /// The functions, bridges and interrupt controllers that it has.
    pub scopes: Vec<Scope>,
}

/// Memory that devices use for the firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
    /// The PCI segment of its devices.
    pub segment: u16,
    /// Its devices.
    pub scopes: Vec<Scope>,
}

/// Root ports whose devices may translate addresses themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootPorts {
    /// Their PCI segment.
    pub segment: u16,
    /// ALL_PORTS: it is every root port of the segment.
    pub all: bool,
    /// The root ports.
    pub scopes: Vec<Scope>,
}

/// A device that a scope names by a number, and ACPI by a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The number, to which a scope's enumeration id refers.
    pub number: u8,
    /// The name in the ACPI namespace, without what is no printable ASCII.
    pub name: String,
}

/// Devices of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// Their PCI segment.
    pub segment: u16,
    /// The structure's flags.
    pub flags: u8,
    /// The devices.
    pub scopes: Vec<Scope>,
}

/// Size in bytes of the header, before the first structure.
const HEADER: usize = 48;
/// Maximum number of structures of one kind. The firmware of the largest machines lists fewer.
const MAX: usize = 1024;
/// Addresses have at most so many bits.
const ADDRESS_BITS: u8 = 52;
const PAGE: u64 = 4096;

/// Parses the DMAR. `table` begins with its header.
#[must_use]
pub fn parse(table: &[u8]) -> Dmar {
    let mut dmar = Dmar::default();
    let Some(header) = table.get(..HEADER) else {
        let length = table.len();
        dmar.problems
            .push(format!("the DMAR has {length} bytes, less than its header"));
        return dmar;
    };
    dmar.address_bits = header[36].saturating_add(1).min(ADDRESS_BITS);
    dmar.remaps_interrupts = header[37] & 1 != 0;
    for structure in structures(&table[HEADER..]) {
        match structure {
            Ok(structure) => {
                if let Err(why) = dmar.add(&structure) {
                    let number = structure.number;
                    dmar.problems
                        .push(format!("structure {number} of the DMAR {why}"));
                }
            }
            Err(problem) => dmar.problems.push(problem),
        }
    }
    if dmar.units.is_empty() {
        dmar.problems.push("the DMAR lists no unit".into());
    }
    dmar
}

impl Dmar {
    /// Adds a structure. A structure of an unknown kind is ignored, as the specification demands.
    fn add(&mut self, structure: &Structure<'_>) -> Result<(), String> {
        match structure.kind {
            0 => self.add_unit(structure),
            1 => self.add_reserved(structure),
            2 => structure.whole(8).and_then(|()| {
                let ports = RootPorts {
                    segment: structure.u16(6),
                    all: structure.u8(4) & 1 != 0,
                    scopes: structure.scopes(8)?,
                };
                push(&mut self.root_ports, ports)
            }),
            3 => structure.whole(20).and_then(|()| {
                let affinity = (structure.u64(8), structure.u32(16));
                push(&mut self.affinity, affinity)
            }),
            4 => structure.whole(9).and_then(|()| {
                let named = Named {
                    number: structure.u8(7),
                    name: structure.text(8),
                };
                push(&mut self.named, named)
            }),
            5 => structure
                .devices()
                .and_then(|devices| push(&mut self.translating, devices)),
            6 => structure
                .devices()
                .and_then(|devices| push(&mut self.properties, devices)),
            _ => Ok(()),
        }
    }

    fn add_unit(&mut self, structure: &Structure<'_>) -> Result<(), String> {
        structure.whole(16)?;
        let unit = UnitEntry {
            base: structure.u64(8),
            segment: structure.u16(6),
            all: structure.u8(4) & 1 != 0,
            scopes: structure.scopes(16)?,
        };
        let base = unit.base;
        if base == 0 || !base.is_multiple_of(PAGE) || base >> ADDRESS_BITS != 0 {
            return Err(format!("names a unit at {base:#x}"));
        }
        if self.units.iter().any(|other| other.base == base) {
            return Err(format!("names the unit at {base:#x} again"));
        }
        let segment = unit.segment;
        let mut others = self.units.iter().filter(|other| other.segment == segment);
        if unit.all && others.any(|other| other.all) {
            return Err(format!(
                "gives the unit at {base:#x} all of segment {segment}, which another unit has"
            ));
        }
        push(&mut self.units, unit)
    }

    fn add_reserved(&mut self, structure: &Structure<'_>) -> Result<(), String> {
        structure.whole(24)?;
        let (start, last) = (structure.u64(8), structure.u64(16));
        let end = last.checked_add(1).filter(|end| {
            start < *end && (start | end).is_multiple_of(PAGE) && end >> ADDRESS_BITS == 0
        });
        let Some(end) = end else {
            return Err(format!("reserves memory from {start:#x} to {last:#x}"));
        };
        let reserved = Reserved {
            start,
            end,
            segment: structure.u16(6),
            scopes: structure.scopes(24)?,
        };
        push(&mut self.reserved, reserved)
    }
}

fn push<T>(list: &mut Vec<T>, value: T) -> Result<(), String> {
    if list.len() == MAX {
        return Err(format!("is one of more than {MAX} of its kind"));
    }
    list.push(value);
    Ok(())
}
