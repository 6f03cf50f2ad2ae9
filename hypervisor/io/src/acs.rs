//! Access control services: whether a port or function keeps requests between devices away from the IOMMU.

use crate::{Function, Port, Space, extended};

/// Source validation, request redirect, completion redirect and upstream forwarding: with these on, every request goes
/// to the root complex, under the requester's own id.
const NEEDED: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;
const CAPABILITY: u16 = 4;
const CONTROL: u16 = 6;

/// Switches the needed services on that `function` has. They are off after a reset of the machine.
pub fn enable(space: &impl Space, function: &Function) {
    let Some(offset) = function.capabilities.extended(extended::ACS) else {
        return;
    };
    let has = space.read16(function.address, offset + CAPABILITY);
    let control = space.read16(function.address, offset + CONTROL);
    let wanted = control | has & NEEDED;
    if wanted != control {
        space.write16(function.address, offset + CONTROL, wanted);
    }
}

/// Returns true if requests that pass this port, or that this function makes, reach no other function before the IOMMU.
/// `is_single` says that the function is the only one of its device.
pub fn isolates(space: &impl Space, function: &Function, is_single: bool) -> bool {
    let Some(port) = function.port() else {
        return false;
    };
    let services = || {
        let offset = function.capabilities.extended(extended::ACS)?;
        let value = space.read(function.address, offset + CAPABILITY);
        // A function that vanished reads as ones.
        (value != u32::MAX).then_some((value as u16, (value >> 16) as u16))
    };
    match port {
        // A port turns requests around between the devices behind it unless all services are on.
        Port::Root | Port::Downstream => {
            services().is_some_and(|(_, control)| control & NEEDED == NEEDED)
        }
        // Functions of one device exchange requests inside it unless they redirect them. One without the ability to
        // exchange them has the capability without the services.
        Port::Endpoint | Port::Upstream | Port::Integrated | Port::EventCollector => {
            is_single
                || services().is_some_and(|(has, control)| {
                    let needed = has & NEEDED;
                    control & needed == needed
                })
        }
        Port::ToPci | Port::FromPci | Port::Unknown(_) => false,
    }
}
