//! Access to configuration space, and the registers of its header.

use crate::Address;

/// Offsets and bits of the registers that functions of every kind have.
pub mod register {
    /// Vendor in bits 15:0, device in bits 31:16.
    pub const ID: u16 = 0x00;
    /// The command register, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// In the command register: I/O ports are decoded.
    pub const IO_SPACE: u16 = 1 << 0;
    /// In the command register: memory is decoded.
    pub const MEMORY_SPACE: u16 = 1 << 1;
    /// In the command register: the function may read and write memory and send messages.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// In the command register: the function may report errors to the root complex.
    pub const SYSTEM_ERRORS: u16 = 1 << 8;
    /// The status register, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// In the status register: there is a list of capabilities.
    pub const HAS_CAPABILITIES: u16 = 1 << 4;
    /// Revision in bits 7:0, class in bits 31:8.
    pub const CLASS: u16 = 0x08;
    /// Cache line size, latency timer, header type in bits 23:16, self-test.
    pub const HEADER: u16 = 0x0C;
    /// The first base address register.
    pub const BASE: u16 = 0x10;
    /// A bridge's primary, secondary and subordinate bus in bits 7:0, 15:8 and 23:16.
    pub const BUSES: u16 = 0x18;
    /// Subsystem vendor in bits 15:0, subsystem in bits 31:16; not in bridges.
    pub const SUBSYSTEM: u16 = 0x2C;
    /// The expansion ROM's base address; not in bridges.
    pub const ROM: u16 = 0x30;
    /// The offset of the first capability, in bits 7:0.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line and pin. In a bridge, bits 31:16 are its control register.
    pub const INTERRUPT: u16 = 0x3C;
    /// A bridge's control register, 16 bits.
    pub const BRIDGE_CONTROL: u16 = 0x3E;
    /// In a bridge's control register: the secondary bus is held in reset.
    pub const BUS_RESET: u16 = 1 << 6;
}

/// The configuration space of the machine's functions.
///
/// A read where nothing answers returns ones, and a write there has no effect. So do accesses beyond offset 0xFF where
/// only the legacy ports reach. Reads of the registers that this crate reads have no side effect.
pub trait Space {
    /// Reads the 32 bits at `offset`, a multiple of 4.
    fn read(&self, at: Address, offset: u16) -> u32;

    /// Writes the 32 bits at `offset`, a multiple of 4.
    fn write(&self, at: Address, offset: u16, value: u32);

    /// Writes the 16 bits at `offset`, a multiple of 2, and no others.
    fn write16(&self, at: Address, offset: u16, value: u16);

    /// Writes the 8 bits at `offset`, and no others.
    fn write8(&self, at: Address, offset: u16, value: u8);

    /// Reads the 16 bits at `offset`, a multiple of 2.
    fn read16(&self, at: Address, offset: u16) -> u16 {
        (self.read(at, offset & !3) >> (offset % 4 * 8)) as u16
    }
}
