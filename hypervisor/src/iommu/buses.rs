//! The machine's PCI functions as the units' scopes name them.

use core::ops::RangeInclusive;

use io::Address;
use vtd::{Function, Source, scope::Buses};

use crate::pci;

/// The buses behind the machine's bridges.
pub(super) struct Bridges;

impl Buses for Bridges {
    fn behind(&self, bridge: Function) -> Option<RangeInclusive<u8>> {
        let inventory = pci::get()?.inventory.lock();
        let at = Address::of_requester(bridge.segment, bridge.source.0);
        let buses = inventory.find(at)?.behind()?;
        Some(buses.secondary..=buses.subordinate)
    }
}

/// Returns the machine's PCI functions for which `is_wanted`.
pub(super) fn functions(is_wanted: impl Fn(Function) -> bool) -> alloc::vec::Vec<Function> {
    let Some(pci) = pci::get() else {
        return alloc::vec::Vec::new();
    };
    let inventory = pci.inventory.lock();
    let functions = inventory.functions().iter().map(|function| {
        let at = function.address;
        Function::new(at.segment, Source(at.requester()))
    });
    functions.filter(|function| is_wanted(*function)).collect()
}
