//! Places that keep a crash report over a reset, as the boot path finds them.

use alloc::vec::Vec;

/// Size in bytes of the memory area that keeps a report.
pub const AREA_BYTES: u64 = 36 << 10;

/// Maximum number of the firmware's variables that keep a report.
pub const MAX_VARIABLES: u16 = 40;

/// The vendor of the variables, a random GUID: 5B912C6E-4A0D-4FE7-A358-C41B779E02D6.
pub const VENDOR: [u8; 16] = [
    0x6E, 0x2C, 0x91, 0x5B, 0x0D, 0x4A, 0xE7, 0x4F, 0xA3, 0x58, 0xC4, 0x1B, 0x77, 0x9E, 0x02, 0xD6,
];

/// Length of a variable's name in UCS-2 units, including the final zero.
pub const NAME_LEN: usize = 15;

/// Returns the name of the variable with this number: `SeamarkCrash00` and so on.
#[must_use]
pub fn name(number: u16) -> [u16; NAME_LEN] {
    let mut name = [0; NAME_LEN];
    for (to, from) in name.iter_mut().zip(b"SeamarkCrash") {
        *to = u16::from(*from);
    }
    name[12] = u16::from(b'0') + number / 10 % 10;
    name[13] = u16::from(b'0') + number % 10;
    name
}

/// The places, and what was found in them. Anything may have written it.
#[derive(Debug, Default)]
pub struct Keep {
    /// The values of the firmware's variables, from number 0 on without a gap.
    pub variables: Vec<Vec<u8>>,
    /// The bytes that memory kept.
    pub memory: Vec<Vec<u8>>,
    /// Physical address of the [`AREA_BYTES`] of memory that are reserved for the next report, if there was room.
    pub area: Option<u64>,
    /// The firmware's service that sets variables, if it can be called after the boot.
    pub runtime: Option<Runtime>,
}

/// The firmware's runtime services, for calls at physical addresses.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Physical address of SetVariable.
    pub set_variable: u64,
    /// The memory and the devices that the services use: ascending, page-aligned, without overlaps.
    pub regions: Vec<RuntimeRegion>,
}

/// A region that the firmware's runtime services use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeRegion {
    /// Physical start address.
    pub start: u64,
    /// Physical end address, exclusive.
    pub end: u64,
    /// True if it is memory, false if it is a device's registers.
    pub is_memory: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbered_and_end_with_a_zero() {
        let name = String::from_utf16(&name(37)).unwrap();
        assert_eq!(name, "SeamarkCrash37\0");
    }
}
