//! An I/O APIC: turns device interrupt lines into messages to a vCPU.
//!
//! All lines are edge-triggered, whatever the guest programs: the host can't see a TD's end of interrupt, so it could
//! never clear a level. Devices here raise their line anew for each request.
//!
//! Source: Intel 82093AA data sheet, section 3.

use core::ops::Range;

use td_base::board;

use crate::{Device, Effect, Message, Now, Place, Trigger};

/// Guest-physical addresses of the registers.
pub const REGISTERS: Range<u64> = board::IO_APIC as u64..board::IO_APIC as u64 + 0x20;

const PINS: usize = 24;
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const ID: u8 = 0;
const VERSION: u8 = 1;
const FIRST_ENTRY: u8 = 0x10;
/// Version 0x11, and the number of the last pin.
const VERSION_VALUE: u32 = (PINS as u32 - 1) << 16 | 0x11;

/// Bits of a redirection entry.
const VECTOR: u64 = 0xFF;
const DELIVERY_MODE: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
const READ_ONLY: u64 = 1 << 12 | 1 << 14;
const MASKED: u64 = 1 << 16;
const DEFINED: u64 = 0xFF << 56 | 0x1_FFFF;

/// The interrupt controller.
#[derive(Debug)]
pub struct IoApic {
    select: u8,
    id: u8,
    entries: [u64; PINS],
    raised: u32,
}

impl Default for IoApic {
    /// Returns the reset state: all pins are masked.
    fn default() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [MASKED; PINS],
            raised: 0,
        }
    }
}

impl IoApic {
    /// Sets the level of line `pin`. Returns the message to send, if any.
    pub fn set_line(&mut self, pin: u8, raised: bool) -> Option<Message> {
        let entry = *self.entries.get(usize::from(pin))?;
        let was_raised = self.raised >> pin & 1 != 0;
        self.raised = self.raised & !(1 << pin) | u32::from(raised) << pin;
        if !raised || was_raised || entry & MASKED != 0 {
            return None;
        }
        Some(Message {
            trigger: Trigger::of_mode((entry & DELIVERY_MODE) >> 8)?,
            vector: (entry & VECTOR) as u8,
            destination: (entry >> 56) as u8,
            is_logical: entry & LOGICAL != 0,
        })
    }

    /// Programs the redirection entry of a pin.
    pub fn program(&mut self, pin: u8, entry: u64) {
        if let Some(old) = self.entries.get_mut(usize::from(pin)) {
            *old = entry & DEFINED & !READ_ONLY;
        }
    }

    fn register(&self) -> u32 {
        match self.select {
            ID => u32::from(self.id) << 24,
            VERSION => VERSION_VALUE,
            other => match self.half(other) {
                Some((pin, shift)) => (self.entries[pin] >> shift) as u32,
                None => 0,
            },
        }
    }

    fn set_register(&mut self, value: u32) {
        match self.select {
            ID => self.id = (value >> 24 & 0xF) as u8,
            other => {
                if let Some((pin, shift)) = self.half(other) {
                    let kept = self.entries[pin] & !(0xFFFF_FFFF << shift);
                    self.program(pin as u8, kept | u64::from(value) << shift);
                }
            }
        }
    }

    /// Returns the pin and the bit shift of the entry half that `register` selects.
    fn half(&self, register: u8) -> Option<(usize, u32)> {
        let half = usize::from(register.checked_sub(FIRST_ENTRY)?);
        (half / 2 < PINS).then_some((half / 2, half as u32 % 2 * 32))
    }
}

impl Device for IoApic {
    fn read(&mut self, place: Place, _: Now) -> u64 {
        match place.offset {
            SELECT => self.select.into(),
            WINDOW => self.register().into(),
            _ => 0,
        }
    }

    fn write(&mut self, place: Place, value: u64, _: Now) -> Effect {
        match place.offset {
            SELECT => self.select = value as u8,
            WINDOW => self.set_register(value as u32),
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(apic: &mut IoApic, register: u8, value: u32) {
        let at = |offset| Place { offset, size: 4 };
        apic.write(at(SELECT), register.into(), Now::default());
        apic.write(at(WINDOW), value.into(), Now::default());
    }

    fn get(apic: &mut IoApic, register: u8) -> u32 {
        let at = |offset| Place { offset, size: 4 };
        apic.write(at(SELECT), register.into(), Now::default());
        apic.read(at(WINDOW), Now::default()) as u32
    }

    #[test]
    fn an_entry_is_two_registers() {
        let mut apic = IoApic::default();
        assert_eq!(get(&mut apic, 1), 0x17_0011);
        set(&mut apic, 0x18, 0x0000_0031);
        set(&mut apic, 0x19, 0x0200_0000);
        assert_eq!(
            (get(&mut apic, 0x18), get(&mut apic, 0x19)),
            (0x31, 0x0200_0000)
        );
        let message = apic.set_line(4, true).unwrap();
        assert_eq!((message.vector, message.destination), (0x31, 2));
        assert_eq!(
            (message.trigger, message.is_logical),
            (Trigger::Fixed, false)
        );
    }

    #[test]
    fn only_a_rising_line_that_is_not_masked_sends() {
        let mut apic = IoApic::default();
        assert_eq!(apic.set_line(4, true), None, "masked after a reset");
        apic.program(4, 0x31);
        assert_eq!(apic.set_line(4, true), None, "it is up already");
        assert_eq!(apic.set_line(4, false), None);
        assert!(apic.set_line(4, true).is_some());
        assert_eq!(apic.set_line(24, true), None, "there is no such pin");
    }

    #[test]
    fn no_register_beyond_the_last_entry() {
        let mut apic = IoApic::default();
        for register in 0..=255 {
            set(&mut apic, register, u32::MAX);
            let beyond = !(0x10..0x40).contains(&register);
            assert!(!beyond || get(&mut apic, register) <= 0x0F00_0000);
        }
    }
}
