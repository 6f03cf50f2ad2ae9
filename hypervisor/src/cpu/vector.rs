//! The vectors of the interrupts that CPUs receive. `trap.rs` serves them.

use core::ops::RangeInclusive;

/// The vector of calls from other CPUs.
pub const CALL_VECTOR: u8 = 0xE0;
/// The vector of a CPU's own timer.
pub const TIMER_VECTOR: u8 = 0xE1;
/// The vector that tells a CPU in a TD that an interrupt was posted for the vCPU. Outside a TD it has no effect: the
/// CPU checks before it enters one.
pub const NOTIFICATION_VECTOR: u8 = 0xE2;
/// The vector of corrected machine checks (CMCI).
pub const CMCI_VECTOR: u8 = 0xE3;
/// The vector by which the TDX module tells of a fatal error.
pub const MODULE_VECTOR: u8 = 0xE4;
/// The vector of faults that VT-d units signal.
pub const FAULT_VECTOR: u8 = 0xE5;
/// The vectors of interrupts of PCI functions that TDs have.
pub const FUNCTION_VECTORS: RangeInclusive<u8> = 0x50..=0xDF;
/// The vector of the serial port.
pub const SERIAL_VECTOR: u8 = 0x40;
/// The vector of ACPI's events.
pub const ACPI_VECTOR: u8 = 0x41;
