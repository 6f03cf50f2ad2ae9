//! The serial port that the firmware uses as its console: the SPCR.
//!
//! Source: Microsoft, Serial Port Console Redirection Table, revision 4.

use uart::Baud;

/// A console's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spcr {
    /// The place of its registers.
    pub place: Place,
    /// Its speed.
    pub baud: Baud,
    /// Its interrupt, if the table names one.
    pub interrupt: Option<Interrupt>,
}

/// The place of a port's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// I/O ports from this one on.
    Io(u16),
    /// Memory.
    Memory {
        /// Physical address of the first register.
        pa: u64,
        /// Distance of two registers and width of an access, in bytes: 1, 2 or 4.
        step: u8,
    },
}

/// An interrupt of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// An interrupt of the ISA bus.
    Isa(u8),
    /// An input of an I/O APIC, as a global system interrupt.
    Gsi(u32),
}

/// Interface types that are 16550-compatible: full, subset, and with the parameters of the address structure.
const COMPATIBLE: [u8; 3] = [0x00, 0x01, 0x12];
const ISA_INTERRUPT: u8 = 1 << 0;
const GSI_INTERRUPT: u8 = 1 << 1;

/// Parses the SPCR. Returns `None` if it names no 16550-compatible port.
#[must_use]
pub fn parse(table: &[u8]) -> Option<Spcr> {
    let byte = |at: usize| table.get(at).copied().unwrap_or(0);
    let u32_at = |at: usize| u32::from_le_bytes(core::array::from_fn(|i| byte(at + i)));
    let address = u64::from(u32_at(44)) | u64::from(u32_at(48)) << 32;
    if !COMPATIBLE.contains(&byte(36)) || address == 0 {
        return None;
    }
    let place = match byte(40) {
        0 => Place::Memory {
            pa: address,
            step: step(byte(41), byte(43)),
        },
        1 => Place::Io(u16::try_from(address).ok()?),
        _ => return None,
    };
    let interrupt = match byte(52) {
        types if types & GSI_INTERRUPT != 0 => Some(Interrupt::Gsi(u32_at(54))),
        types if types & ISA_INTERRUPT != 0 => Some(Interrupt::Isa(byte(53))),
        _ => None,
    };
    Some(Spcr {
        place,
        baud: baud(table.get(8).copied(), byte(58), u32_at(80)),
        interrupt,
    })
}

/// Returns the distance of registers in memory. The access size comes first; without it the register's width counts.
const fn step(bit_width: u8, access: u8) -> u8 {
    match (access, bit_width) {
        (1, _) => 1,
        (2, _) => 2,
        (3, _) => 4,
        (_, 16) => 2,
        (_, 32) => 4,
        _ => 1,
    }
}

/// Returns the speed: since revision 4 it may be stated in full.
fn baud(revision: Option<u8>, code: u8, precise: u32) -> Baud {
    match (revision, code, precise) {
        (Some(4..), _, 1..) => Baud::Rate(precise),
        (_, 3, _) => Baud::Rate(9_600),
        (_, 4, _) => Baud::Rate(19_200),
        (_, 6, _) => Baud::Rate(57_600),
        (_, 7, _) => Baud::Rate(115_200),
        _ => Baud::AsIs,
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    /// A table of revision 2 with a port at `address` of the address space `space`.
    fn table(space: u8, address: u64) -> Vec<u8> {
        let mut table = vec![0; 80];
        table[8] = 2;
        table[40..44].copy_from_slice(&[space, 8, 0, 1]);
        table[44..52].copy_from_slice(&address.to_le_bytes());
        table[52..54].copy_from_slice(&[ISA_INTERRUPT, 3]);
        table[58] = 7;
        table
    }

    #[test]
    fn a_port_on_the_isa_bus_is_read() {
        let expected = Spcr {
            place: Place::Io(0x2F8),
            baud: Baud::Rate(115_200),
            interrupt: Some(Interrupt::Isa(3)),
        };
        assert_eq!(parse(&table(1, 0x2F8)), Some(expected));
    }

    #[test]
    fn a_port_in_memory_is_read() {
        let mut table = table(0, 0xFE03_4000);
        table[36] = 0x12;
        table[41..44].copy_from_slice(&[32, 0, 3]);
        table[52..58].copy_from_slice(&[GSI_INTERRUPT | ISA_INTERRUPT, 4, 16, 0, 0, 0]);
        table[58] = 0;
        let expected = Spcr {
            place: Place::Memory {
                pa: 0xFE03_4000,
                step: 4,
            },
            baud: Baud::AsIs,
            interrupt: Some(Interrupt::Gsi(16)),
        };
        assert_eq!(parse(&table), Some(expected));
    }

    #[test]
    fn a_later_table_states_the_speed_in_full() {
        let mut table = table(1, 0x3F8);
        table[8] = 4;
        table.extend(1_500_000u32.to_le_bytes());
        assert_eq!(parse(&table).unwrap().baud, Baud::Rate(1_500_000));
    }

    #[test]
    fn other_devices_and_no_address_give_no_port() {
        assert_eq!(parse(&table(1, 0)), None);
        assert_eq!(parse(&table(2, 0x3F8)), None);
        assert_eq!(parse(&table(1, 0x1_0000)), None);
        let mut arm = table(0, 0x900_0000);
        arm[36] = 3;
        assert_eq!(parse(&arm), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
