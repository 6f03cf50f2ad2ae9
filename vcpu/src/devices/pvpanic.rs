//! The port at which a guest's kernel says that it has panicked. Linux's driver pvpanic-mmio finds it by its ACPI name, QEMU0001.
//!
//! Source: QEMU docs/specs/pvpanic.rst.

use td_base::board;

use super::Effect;

/// Where QEMU has it.
pub const PORT: u16 = board::PANIC;

/// What is told here: the kernel has panicked, and no crash kernel takes over. It is what reads give, and what is written then.
pub const PANICKED: u8 = 1 << 0;

/// A write. What is not understood is ignored.
pub const fn write(value: u8) -> Effect {
    if value & PANICKED != 0 {
        Effect::Panicked
    } else {
        Effect::None
    }
}
