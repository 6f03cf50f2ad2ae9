//! The port at which a guest's kernel reports a panic. Linux's pvpanic-mmio driver finds it by its ACPI name, QEMU0001.
//!
//! Source: QEMU docs/specs/pvpanic.rst.

use core::ops::Range;

use td_base::board;

use crate::{Device, Effect, Now, Place};

/// The port, as in QEMU.
pub const PORTS: Range<u64> = board::PANIC as u64..board::PANIC as u64 + 1;

/// Event bit: the kernel has panicked, and no crash kernel takes over. Reads return the supported events, which is this
/// bit alone.
const PANICKED: u8 = 1 << 0;

/// The device. Unknown events are ignored.
#[derive(Debug)]
pub struct Panic;

impl Device for Panic {
    fn read(&mut self, _: Place, _: Now) -> u64 {
        PANICKED.into()
    }

    fn write(&mut self, _: Place, value: u64, _: Now) -> Effect {
        if value as u8 & PANICKED != 0 {
            Effect::Panicked
        } else {
            Effect::None
        }
    }
}
