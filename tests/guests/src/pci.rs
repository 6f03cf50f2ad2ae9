//! Configuration space of the TD's PCI bus, through ports.
//!
//! Source: PCI Local Bus 3.0, chapter 6 and section 3.2.2.3.2 (configuration mechanism #1).

use guest_kit::vmcall;

const ADDRESS_PORT: u16 = 0xCF8;
const DATA_PORT: u16 = 0xCFC;

/// Offset of the command register.
pub const COMMAND: u8 = 4;
/// In the command register: memory is decoded, and the function is a bus master.
pub const ON: u32 = 6;

/// Reads four bytes of the configuration space of function 0 of a device; ones if there is none.
pub fn config(device: u32, offset: u8) -> u32 {
    select(device, offset);
    vmcall::io_in(DATA_PORT, 4).unwrap_or(u32::MAX)
}

/// Writes four bytes of the configuration space of function 0 of a device.
pub fn set_config(device: u32, offset: u8, value: u32) {
    select(device, offset);
    // The host answers all ports of the bus.
    let _ = vmcall::io_out(DATA_PORT, 4, value);
}

fn select(device: u32, offset: u8) {
    let address = 1 << 31 | device << 11 | u32::from(offset & 0xFC);
    let _ = vmcall::io_out(ADDRESS_PORT, 4, address);
}
