//! SMBIOS: the TD's UUID. Firmware adds what describes itself.
//!
//! Source: DMTF DSP0134 (SMBIOS) 3.4, sections 5.2.2 (entry point), 7.2 (type 1), 7.46 (type 127).

use alloc::vec::Vec;

use uuid::Uuid;

const ANCHOR_BYTES: usize = 24;
/// Offset of the checksum in the entry point.
const CHECKSUM: usize = 5;
const VERSION: [u8; 3] = [3, 4, 0];

/// Returns the entry point, in version 3. The firmware places the structures.
pub fn anchor(uuid: Uuid) -> Vec<u8> {
    const REVISION: u8 = 1;
    let mut anchor = b"_SM3_\0".to_vec();
    anchor.push(ANCHOR_BYTES as u8);
    anchor.extend(VERSION);
    anchor.extend([REVISION, 0]);
    anchor.extend((tables(uuid).len() as u32).to_le_bytes());
    anchor.resize(ANCHOR_BYTES, 0);
    anchor[CHECKSUM] = anchor.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    anchor
}

/// Returns the structures: the system, and the end.
pub fn tables(uuid: Uuid) -> Vec<u8> {
    const SYSTEM: u8 = 1;
    const SYSTEM_BYTES: u8 = 27;
    const POWER_SWITCH: u8 = 6;
    const END: u8 = 127;
    let mut tables = Vec::from([SYSTEM, SYSTEM_BYTES, 0, 1]);
    // The manufacturer and the product are the first two strings. There is no version and no serial number.
    tables.extend([1, 2, 0, 0]);
    tables.extend(uuid.to_bytes_le());
    tables.extend([POWER_SWITCH, 0, 0]);
    tables.extend(b"Seamark\0TD\0\0");
    tables.extend([END, 4, 0, 0x7F, 0, 0]);
    tables
}
