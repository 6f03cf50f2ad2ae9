//! The list of a segment's functions.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::{
    Address, Defect, Function, Header, Space, extended, space::register::HEADER, sriov::Virtual,
};

/// Finds the functions on `buses` of a segment, in the order of their addresses. Nothing is written.
///
/// Every bus is looked at, whatever the bridges say: firmware may leave functions behind a bridge that is set up wrongly,
/// and a server has several root buses in a segment.
pub fn segment(space: &impl Space, number: u16, buses: RangeInclusive<u8>) -> Vec<Function> {
    let mut found = Vec::new();
    for bus in buses {
        let first = Address {
            segment: number,
            bus,
            device: 0,
            function: 0,
        };
        self::bus(space, first, &mut found);
    }
    let mut virtuals = Vec::new();
    for function in &mut found {
        // A virtual function has the header of an ordinary one, and so has its physical function.
        if function.header == Header::Endpoint {
            let (at, capabilities) = (function.address, &function.capabilities);
            function.virtuals = Virtual::read(space, at, capabilities);
            virtuals.extend(virtual_functions(space, function));
        }
    }
    // An address may have been read already: some firmware lets virtual functions answer with an id.
    found.extend(virtuals);
    found.sort_by_key(|function| (function.address, function.physical.is_none()));
    found.dedup_by_key(|function| function.address);
    found
}

/// Adds the functions of the bus of `first`, its first function.
fn bus(space: &impl Space, first: Address, found: &mut Vec<Function>) {
    let start = found.len();
    for device in 0..32 {
        self::device(space, Address { device, ..first }, found);
    }
    // With alternative routing, all 256 functions of the bus are one device's, and any may be missing.
    let has_alternative_routing = found.get(start).is_some_and(|function| {
        function.address == first && function.capabilities.extended(extended::ARI).is_some()
    });
    if has_alternative_routing {
        for id in 0..=255 {
            let at = Address::of_requester(first.segment, u16::from(first.bus) << 8 | id);
            if found[start..].iter().all(|known| known.address != at) {
                found.extend(Function::read(space, at));
            }
        }
    }
}

/// Adds the functions of the device of `first`, its first function.
fn device(space: &impl Space, first: Address, found: &mut Vec<Function>) {
    const MULTI_FUNCTION: u32 = 1 << 23;
    let Some(function) = Function::read(space, first) else {
        return;
    };
    found.push(function);
    if space.read(first, HEADER) & MULTI_FUNCTION != 0 {
        let others = (1..8).map(|number| first.sibling(number));
        found.extend(others.filter_map(|at| Function::read(space, at)));
    }
}

/// Reads the virtual functions of `physical`.
fn virtual_functions(space: &impl Space, physical: &mut Function) -> Vec<Function> {
    let mut found = Vec::new();
    let Some(virtuals) = physical.virtuals else {
        return found;
    };
    for number in 0..virtuals.enabled {
        let Some(address) = virtuals.address(physical.address, number) else {
            physical.defects.push(Defect::VirtualFunctions);
            break;
        };
        let mut function = Function {
            address,
            express: None,
            bars: Vec::new(),
            physical: Some(physical.address),
            virtuals: None,
            defects: Vec::new(),
            ..physical.clone()
        };
        function.identity.device = virtuals.device;
        if !function.answers(space) {
            function.defects.push(Defect::Vanished);
        }
        function.read_further(space);
        found.push(function);
    }
    found
}
