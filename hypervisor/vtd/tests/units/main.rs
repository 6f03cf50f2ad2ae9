//! The driver on the software model of VT-d units.

mod dmar;
mod domains;
mod faults;
mod interrupts;
mod start;
mod table;

use std::ops::RangeInclusive;

use stub_vtd::{Machine, UnitShape};
use vtd::{
    Function, Iommu, Source,
    dmar::{Dmar, Scope, ScopeKind, UnitEntry},
    scope::Buses,
};

/// Buses without a bridge.
struct NoBridges;

impl Buses for NoBridges {
    fn behind(&self, _: Function) -> Option<RangeInclusive<u8>> {
        None
    }
}

/// The requester id of I/O APIC 2, which belongs to the last unit.
const IO_APIC: Function = at(0xF0, 0x1F, 7);

const fn at(bus: u8, device: u8, function: u8) -> Function {
    Function::new(0, Source::new(bus, device, function))
}

/// Returns a table of these units. The last has everything that is not another's.
fn dmar_of(shapes: &[UnitShape]) -> Dmar {
    let last = shapes.len() - 1;
    let units = shapes.iter().enumerate().map(|(index, shape)| UnitEntry {
        base: shape.base,
        segment: shape.segment,
        all: index == last,
        scopes: if index == last {
            vec![Scope {
                kind: ScopeKind::IoApic,
                id: 2,
                bus: 0xF0,
                path: vec![(0x1F, 7)],
            }]
        } else {
            // Sources of a unit that is not the last are the functions of one device on a bus.
            let functions = shape.sources.clone().map(|source| Scope {
                kind: ScopeKind::Endpoint,
                id: 0,
                bus: (source >> 8) as u8,
                path: vec![((source >> 3 & 31) as u8, (source & 7) as u8)],
            });
            functions.collect()
        },
    });
    Dmar {
        address_bits: 46,
        remaps_interrupts: true,
        units: units.collect(),
        ..Dmar::default()
    }
}

/// Starts the driver on a machine with these units.
fn start(shapes: &[UnitShape]) -> (Machine, Iommu<Machine>) {
    let machine = Machine::new(shapes);
    let iommu = Iommu::start(&machine, &dmar_of(shapes), &NoBridges).expect("there is memory");
    (machine, iommu)
}

/// Checks that the driver did nothing that it must not do.
#[track_caller]
fn nothing_wrong(machine: &Machine) {
    assert_eq!(machine.violations(), [""; 0]);
}
