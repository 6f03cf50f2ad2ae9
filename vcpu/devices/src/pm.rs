//! ACPI power management: the timer, the power button, and the registers by which a guest powers itself off or resets
//! itself.
//!
//! The registers are where QEMU's q35 has them, because guest firmware expects them there: the event block at 0x600,
//! the control register at 0x604, the timer at 0x608. Source: ACPI Specification 6.5, sections 4.8.2 and 4.8.3; QEMU
//! hw/acpi/ich9.c.

use core::ops::Range;

use td_base::board;

use crate::{Device, Effect, Now, Place, open_bus};

/// The first port of the register block.
pub const BASE: u16 = board::POWER;
/// The ports of the register block.
pub const PORTS: Range<u64> = BASE as u64..BASE as u64 + 0xC;
/// The port of the chipset's reset-control register, among the ports of the PCI bus.
pub const RESET_PORTS: Range<u64> = board::RESET as u64..board::RESET as u64 + 1;

const STATUS: u64 = 0;
const ENABLE: u64 = 2;
const CONTROL: u64 = board::POWER_CONTROL as u64;
const TIMER: u64 = board::POWER_TIMER as u64;
/// Frequency of the timer (ACPI Specification 6.5, section 4.8.2.1).
const TIMER_HZ: u64 = 3_579_545;
/// The timer has 24 bits.
const TIMER_MASK: u64 = 0xFF_FFFF;
/// PM1 status and enable: the power button.
const BUTTON: u16 = 1 << 8;
/// PM1 control: ACPI mode enabled, sleep enable, and sleep type. The type of state S5 is 0.
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP: u16 = 1 << 13;
const SLEEP_TYPE: u16 = 7 << 10;
/// Reset control: reset the CPU.
const RESET_CPU: u8 = 1 << 2;

/// A power request of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Power off.
    Off,
    /// Reset.
    Reset,
}

/// The power-management registers.
#[derive(Debug, Default)]
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
}

impl PowerManagement {
    /// Presses the power button. Returns `false` if the guest does not listen to it; the press is lost then.
    pub fn press(&mut self) -> bool {
        let listens = self.enable & BUTTON != 0;
        if listens {
            self.status |= BUTTON;
        }
        listens
    }
}

impl Device for PowerManagement {
    fn read(&mut self, place: Place, now: Now) -> u64 {
        match place.offset {
            STATUS => u64::from(self.status) | u64::from(self.enable) << 16,
            ENABLE => self.enable.into(),
            CONTROL => (self.control | SCI_ENABLE).into(),
            TIMER => {
                let ticks = u128::from(now.monotonic_us) * u128::from(TIMER_HZ) / 1_000_000;
                ticks as u64 & TIMER_MASK
            }
            _ => open_bus(place.size),
        }
    }

    fn write(&mut self, place: Place, value: u64, _: Now) -> Effect {
        let upper = (value >> 16) as u16;
        let value = value as u16;
        match place.offset {
            STATUS => {
                // A one clears the bit.
                self.status &= !value;
                if place.size == 4 {
                    self.enable = upper;
                }
            }
            ENABLE => self.enable = value,
            CONTROL => {
                self.control = value & !SLEEP;
                if value & SLEEP != 0 && value & SLEEP_TYPE == 0 {
                    return Effect::Power(Power::Off);
                }
            }
            _ => {}
        }
        Effect::None
    }
}

/// The chipset's reset-control register, a byte that reads as zero.
#[derive(Debug)]
pub struct ResetControl;

impl Device for ResetControl {
    fn read(&mut self, _: Place, _: Now) -> u64 {
        0
    }

    fn write(&mut self, _: Place, value: u64, _: Now) -> Effect {
        reset_if(value as u8 & RESET_CPU != 0)
    }
}

/// Resets the TD if the guest `wants` it.
pub const fn reset_if(wants: bool) -> Effect {
    match wants {
        true => Effect::Power(Power::Reset),
        false => Effect::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_counts_at_its_frequency_in_24_bits() {
        let mut pm = PowerManagement::default();
        let mut at = |monotonic_us| {
            let now = Now {
                monotonic_us,
                ..Now::default()
            };
            let place = Place { offset: 8, size: 4 };
            pm.read(place, now)
        };
        assert_eq!(at(1_000_000), 3_579_545);
        assert_eq!(at(5_000_000), (5 * 3_579_545) & 0xFF_FFFF);
        assert!(at(u64::MAX) < 1 << 24);
    }

    /// Returns true while an event that the guest listens to is pending.
    fn is_pending(pm: &PowerManagement) -> bool {
        pm.status & pm.enable != 0
    }

    #[test]
    fn a_press_is_seen_by_a_guest_that_listens_until_it_clears_it() {
        let mut pm = PowerManagement::default();
        let at = |offset| Place { offset, size: 2 };
        assert!(!pm.press() && !is_pending(&pm), "nobody listens");
        pm.write(at(2), 0x100, Now::default());
        assert!(!is_pending(&pm), "the press before was lost");
        assert!(pm.press() && is_pending(&pm));
        let both = Place { offset: 0, size: 4 };
        assert_eq!(pm.read(both, Now::default()), 0x100_0100);
        pm.write(at(0), 0x8000, Now::default());
        assert!(is_pending(&pm), "another bit");
        pm.write(at(0), 0x100, Now::default());
        assert!(!is_pending(&pm));
        assert_eq!(pm.read(at(0), Now::default()) & 0xFFFF, 0);
        pm.press();
        pm.write(both, 0, Now::default());
        assert!(!is_pending(&pm) && !pm.press(), "no longer enabled");
    }

    #[test]
    fn sleep_type_0_is_off_and_nothing_else_is() {
        let mut pm = PowerManagement::default();
        let mut control = |value| {
            let place = Place { offset: 4, size: 2 };
            pm.write(place, value, Now::default())
        };
        assert_eq!(control(0x2000), Effect::Power(Power::Off));
        assert_eq!(control(0x2001), Effect::Power(Power::Off));
        for other in [0, 1, 0x1C00, 0x2400] {
            assert_eq!(control(other), Effect::None);
        }
        let place = Place { offset: 0, size: 1 };
        let reset = |value| ResetControl.write(place, value, Now::default());
        assert_eq!(reset(6), Effect::Power(Power::Reset));
        assert_eq!(reset(2), Effect::None);
    }
}
