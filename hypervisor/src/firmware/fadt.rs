//! Fixed registers: the FADT.
//!
//! Source: ACPI Specification 6.5, section 5.2.9.

/// The parts of the FADT that are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fadt {
    /// The register that resets the machine, and the value to write.
    pub reset: Option<(Register, u8)>,
    /// I/O port of PM1a control.
    pub pm1a_control: Option<u16>,
    /// I/O port of PM1b control.
    pub pm1b_control: Option<u16>,
    /// I/O port of the power-management timer.
    pub pm_timer: Option<u16>,
    /// True if the timer has 32 bits instead of 24.
    pub pm_timer_32: bool,
    /// The port and the value that switch the machine to ACPI mode.
    pub enable: Option<(u16, u8)>,
    /// The ISA interrupt of ACPI's events.
    pub event_interrupt: u8,
    /// PM1 event registers, a and b: the status ports. The enable port follows at half the length.
    pub pm1_events: [Option<Events>; 2],
    /// General-purpose event registers, 0 and 1.
    pub general_events: [Option<Events>; 2],
    /// True if the power button is in the PM1 event registers. Otherwise it is a device that only AML can drive.
    pub has_power_button: bool,
}

/// A block of event registers: status ports, then as many enable ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// The first status port.
    pub status: u16,
    /// The first enable port.
    pub enable: u16,
}

/// The place of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// An I/O port.
    Port(u16),
    /// A physical address.
    Memory(u64),
    /// A register in the configuration space of a function on PCI bus 0: device, function, offset.
    Pci(u8, u8, u8),
}

const FLAG_BUTTON_IS_DEVICE: u32 = 1 << 4;
const FLAG_PM_TIMER_32: u32 = 1 << 8;
const FLAG_RESET: u32 = 1 << 10;

/// Parses the FADT.
#[must_use]
pub fn parse(table: &[u8]) -> Fadt {
    let byte = |at: usize| table.get(at).copied().unwrap_or(0);
    let u32_at = |at: usize| u32::from_le_bytes(core::array::from_fn(|i| byte(at + i)));
    let u64_at = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| byte(at + i)));
    // A generic address structure: space, width, offset, access, address.
    let generic = |at: usize| match (byte(at), u64_at(at + 4)) {
        (_, 0) => None,
        (0, pa) => Some(Register::Memory(pa)),
        (1, port) => u16::try_from(port).ok().map(Register::Port),
        (2, pci) => Some(Register::Pci(
            (pci >> 32) as u8,
            (pci >> 16) as u8,
            pci as u8,
        )),
        _ => None,
    };
    // The extended address is used if it is an I/O port, else the old one.
    let port = |extended: usize, old: usize| match generic(extended) {
        Some(Register::Port(port)) => Some(port),
        _ => u16::try_from(u32_at(old)).ok().filter(|p| *p != 0),
    };
    let events = |extended: usize, old: usize, length: usize| {
        let status = port(extended, old)?;
        let half = u16::from(byte(length)) / 2;
        let enable = status.checked_add(half)?;
        (half > 0 && enable.checked_add(half).is_some()).then_some(Events { status, enable })
    };
    let flags = u32_at(112);
    Fadt {
        reset: generic(116)
            .filter(|_| flags & FLAG_RESET != 0)
            .map(|register| (register, byte(128))),
        pm1a_control: port(172, 64),
        pm1b_control: port(184, 68),
        pm_timer: port(208, 76),
        pm_timer_32: flags & FLAG_PM_TIMER_32 != 0,
        enable: u16::try_from(u32_at(48))
            .ok()
            .filter(|port| *port != 0 && byte(52) != 0)
            .map(|port| (port, byte(52))),
        event_interrupt: byte(46),
        pm1_events: [events(148, 56, 88), events(160, 60, 88)],
        general_events: [events(220, 80, 92), events(232, 84, 93)],
        has_power_button: flags & FLAG_BUTTON_IS_DEVICE == 0,
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn q35() -> Vec<u8> {
        let mut t = vec![0; 244];
        t[46] = 9;
        t[56..58].copy_from_slice(&0x600u16.to_le_bytes());
        t[80..82].copy_from_slice(&0x620u16.to_le_bytes());
        t[88] = 4;
        t[92] = 16;
        t[48..50].copy_from_slice(&0xB2u16.to_le_bytes());
        t[52] = 2;
        t[64..66].copy_from_slice(&0x604u16.to_le_bytes());
        t[76..78].copy_from_slice(&0x608u16.to_le_bytes());
        t[112..116].copy_from_slice(&(FLAG_RESET | 0xA5).to_le_bytes());
        t[116] = 1;
        t[120..122].copy_from_slice(&0xCF9u16.to_le_bytes());
        t[128] = 0x0F;
        t
    }

    #[test]
    fn the_registers_are_found() {
        let fadt = parse(&q35());
        assert_eq!(fadt.reset, Some((Register::Port(0xCF9), 0x0F)));
        assert_eq!(fadt.pm1a_control, Some(0x604));
        assert_eq!(fadt.pm1b_control, None);
        assert_eq!(fadt.pm_timer, Some(0x608));
        assert_eq!(fadt.enable, Some((0xB2, 2)));
        let events = |status, enable| Some(Events { status, enable });
        assert_eq!(fadt.pm1_events, [events(0x600, 0x602), None]);
        assert_eq!(fadt.general_events, [events(0x620, 0x628), None]);
        assert!(fadt.has_power_button && fadt.event_interrupt == 9);
    }

    #[test]
    fn a_reset_register_counts_only_with_its_flag() {
        let mut t = q35();
        t[113] = 0;
        assert_eq!(parse(&t).reset, None);
    }

    #[test]
    fn an_extended_port_comes_first() {
        let mut t = q35();
        t[172] = 1;
        t[176..178].copy_from_slice(&0x404u16.to_le_bytes());
        assert_eq!(parse(&t).pm1a_control, Some(0x404));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
