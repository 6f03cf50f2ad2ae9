//! Access to the configuration space by ports.

use alloc::sync::Arc;
use core::ops::Range;

use super::{Bus, Register};
use crate::{Device, Effect, Now, Place, open_bus};

/// The port that selects a register, which only 32-bit accesses reach, and the four that read and write the selected
/// register.
pub const PORTS: Range<u64> = 0xCF8..0xD00;
/// Offset of the first data port.
const DATA: u64 = 4;
/// The selected register: accesses to the data ports are configuration accesses.
const ENABLE: u32 = 1 << 31;
/// The bits that exist.
const DEFINED: u32 = ENABLE | 0xFF_FFFC;

/// The ports.
#[derive(Debug)]
pub struct Ports {
    bus: Arc<Bus>,
    address: u32,
}

impl Ports {
    /// Creates the ports of a bus.
    pub fn of(bus: &Arc<Bus>) -> Self {
        let (bus, address) = (bus.clone(), 0);
        Self { bus, address }
    }

    /// Returns the register that the data port at `offset` accesses, if there is one.
    fn selected(&self, offset: u64) -> Option<Register> {
        let address = u64::from(self.address);
        (offset >= DATA && self.address & ENABLE != 0).then_some(Register {
            bus: address >> 16 & 0xFF,
            function: (address >> 8) as u8,
            offset: address & 0xFC | offset & 3,
        })
    }
}

impl Device for Ports {
    fn read(&mut self, place: Place, _: Now) -> u64 {
        match (place.offset, place.size, self.selected(place.offset)) {
            (0, 4, _) => self.address.into(),
            (_, size, Some(register)) => self.bus.read(register, size),
            (_, size, None) => open_bus(size),
        }
    }

    fn write(&mut self, place: Place, value: u64, _: Now) -> Effect {
        match (place.offset, place.size, self.selected(place.offset)) {
            (0, 4, _) => self.address = value as u32 & DEFINED,
            (_, size, Some(register)) => return self.bus.write(register, size, value),
            _ => {}
        }
        Effect::None
    }
}
