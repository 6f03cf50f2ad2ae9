//! The devices of a TD and their addresses. The host emulates the devices, and the firmware describes them to the
//! operating system.
//!
//! The addresses are those of QEMU's q35.

use core::ops::Range;

/// The I/O APIC's registers.
pub const IO_APIC: u32 = 0xFEC0_0000;
/// The first port of COM1.
pub const SERIAL: u16 = 0x3F8;
/// COM1's interrupt line.
pub const SERIAL_INTERRUPT: u8 = 4;
/// The port that selects a register of the real-time clock. The next port reads and writes that register.
pub const CLOCK: u16 = 0x70;
/// The clock's register that holds the century.
pub const CENTURY: u8 = 0x32;
/// The first ACPI power-management port, that of the event block.
pub const POWER: u16 = 0x600;
/// The interrupt line of ACPI's events (SCI).
pub const POWER_INTERRUPT: u8 = 9;
/// PM1 control, as an offset in bytes from [`POWER`].
pub const POWER_CONTROL: u16 = 4;
/// The power-management timer, as an offset in bytes from [`POWER`].
pub const POWER_TIMER: u16 = 8;
/// The chipset's reset-control register.
pub const RESET: u16 = 0xCF9;
/// The port on which a kernel reports that it has panicked (pvpanic).
pub const PANIC: u16 = 0x505;
/// The memory-mapped configuration space of the PCI bus of a directly booted TD, and its size in bytes: one bus.
pub const PCI_CONFIG: u64 = 0xE000_0000;
/// See [`PCI_CONFIG`].
pub const PCI_CONFIG_BYTES: u64 = 1 << 20;
/// Addresses for the memory of PCI functions below 4 GiB, in the hole of a TD's memory.
pub const PCI_LOW: Range<u64> = 0xC000_0000..PCI_CONFIG;
/// Addresses for the memory of PCI functions above 4 GiB, beyond any TD's memory.
pub const PCI_HIGH: Range<u64> = 1 << 45..1 << 46;
/// The port that selects a register of the PCI configuration space. The port four further reads and writes it.
pub const PCI_ADDRESS: u16 = 0xCF8;
