//! The port at which a guest's kernel reports a panic. Linux's pvpanic-mmio driver finds it by its ACPI name, QEMU0001.
//!
//! Source: QEMU docs/specs/pvpanic.rst.

use td_base::board;

use super::Effect;

/// The port, as in QEMU.
pub const PORT: u16 = board::PANIC;

/// Event bit: the kernel has panicked, and no crash kernel takes over. Reads return the supported events, which is this
/// bit alone.
pub const PANICKED: u8 = 1 << 0;

/// Handles a write. Unknown events are ignored.
pub const fn write(value: u8) -> Effect {
    if value & PANICKED != 0 {
        Effect::Panicked
    } else {
        Effect::None
    }
}
