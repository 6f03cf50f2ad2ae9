//! The unit of each function: scopes, resolved over the machine's buses.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::{
    Function, Source,
    dmar::{Dmar, Scope, ScopeKind},
};

/// The machine's PCI buses.
pub trait Buses {
    /// Returns the buses behind `bridge`, from its secondary to its subordinate bus; `None` if it is no bridge.
    fn behind(&self, bridge: Function) -> Option<RangeInclusive<u8>>;
}

/// The interrupts that one unit remaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The unit's segment.
    segment: u16,
    /// True if it has what no other unit of the segment names.
    all: bool,
    /// Functions, and bridges themselves.
    functions: Vec<Source>,
    /// Buses behind bridges.
    buses: Vec<RangeInclusive<u8>>,
    /// I/O APICs and HPETs by kind and enumeration id.
    numbered: Vec<(ScopeKind, u8, Source)>,
}

impl Coverage {
    /// Returns true if a scope names the function itself.
    fn names(&self, function: Function) -> bool {
        self.segment == function.segment && self.functions.contains(&function.source)
    }

    /// Returns true if a scope names a bridge above the function.
    fn is_above(&self, function: Function) -> bool {
        let bus = function.source.bus();
        self.segment == function.segment && self.buses.iter().any(|buses| buses.contains(&bus))
    }

    /// Returns the requester id of an I/O APIC or HPET.
    #[must_use]
    pub fn numbered(&self, kind: ScopeKind, id: u8) -> Option<Source> {
        let mut found = self.numbered.iter();
        found
            .find(|(of, number, _)| (*of, *number) == (kind, id))
            .map(|(_, _, source)| *source)
    }

    /// Returns the number of functions and bridges that scopes name.
    #[must_use]
    pub fn named(&self) -> usize {
        self.functions.len()
    }

    /// Returns true if the unit has what no other unit of its segment names.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.all
    }
}

/// Resolves the scopes of each unit, in the table's order. A scope whose path leads nowhere is left out.
#[must_use]
pub fn coverage(dmar: &Dmar, buses: &impl Buses) -> Vec<Coverage> {
    let units = dmar.units.iter();
    units
        .map(|unit| {
            let mut coverage = Coverage {
                segment: unit.segment,
                all: unit.all,
                ..Coverage::default()
            };
            for scope in &unit.scopes {
                if let Some(function) = resolve(scope, unit.segment, buses) {
                    coverage.add(scope, function, buses);
                }
            }
            coverage
        })
        .collect()
}

impl Coverage {
    fn add(&mut self, scope: &Scope, function: Function, buses: &impl Buses) {
        match scope.kind {
            ScopeKind::Endpoint => self.functions.push(function.source),
            ScopeKind::Bridge => {
                self.functions.push(function.source);
                self.buses.extend(buses.behind(function));
            }
            kind @ (ScopeKind::IoApic | ScopeKind::Hpet | ScopeKind::Acpi) => {
                self.numbered.push((kind, scope.id, function.source));
                self.functions.push(function.source);
            }
            ScopeKind::Other(_) => {}
        }
    }
}

/// Returns the index of the unit that remaps the function's requests.
#[must_use]
pub fn unit_of(units: &[Coverage], function: Function) -> Option<usize> {
    let first = |has: &dyn Fn(&Coverage) -> bool| units.iter().position(has);
    first(&|unit| unit.names(function))
        .or_else(|| first(&|unit| unit.is_above(function)))
        .or_else(|| first(&|unit| unit.all && unit.segment == function.segment))
}

/// Follows a scope's path over the bridges that it names. Returns `None` if one of them is no bridge.
#[must_use]
pub fn resolve(scope: &Scope, segment: u16, buses: &impl Buses) -> Option<Function> {
    let (last, bridges) = scope.path.split_last()?;
    let mut bus = scope.bus;
    for (device, number) in bridges {
        let bridge = Function::new(segment, Source::new(bus, *device, *number));
        bus = *buses.behind(bridge)?.start();
    }
    Some(Function::new(segment, Source::new(bus, last.0, last.1)))
}
