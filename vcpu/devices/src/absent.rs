//! Devices of a PC that a TD does not have, as far as guests must be told so.

use core::ops::Range;

use crate::{Device, Effect, Now, Place, pm};

/// The ports of a PC's interval timer.
pub const TIMER: Range<u64> = 0x40..0x44;
/// The keyboard controller's command port.
pub const KEYBOARD: Range<u64> = 0x64..0x65;

/// The interval timer: its counters read as zero. Linux detects its absence from the first byte. It would read an open
/// bus 100,000 times.
#[derive(Debug)]
pub struct Timer;

impl Device for Timer {
    fn read(&mut self, _: Place, _: Now) -> u64 {
        0
    }

    fn write(&mut self, _: Place, _: u64, _: Now) -> Effect {
        Effect::None
    }
}

/// The keyboard controller. Only its reset command works. The status reads as all ones, so guests detect no controller.
#[derive(Debug)]
pub struct Keyboard;

impl Device for Keyboard {
    fn read(&mut self, _: Place, _: Now) -> u64 {
        u64::MAX
    }

    fn write(&mut self, _: Place, value: u64, _: Now) -> Effect {
        /// Pulse the reset line.
        const PULSE_RESET: u8 = 0xFE;
        pm::reset_if(value as u8 == PULSE_RESET)
    }
}
