//! The machine's identity, by which it finds a configuration of its own: the address of the network card that it booted
//! from, and the UUID and the serial number in SMBIOS.
//!
//! Source: DMTF DSP0134 (SMBIOS 3.6), sections 5.2, 6.1 and 7.2.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::slice;

use uefi::table::cfg::ConfigTableEntry;
use uuid::Uuid;

/// Maximum size in bytes of the tables that are read.
const MAX_TABLES: usize = 1 << 20;

/// The identity of a machine, as far as its firmware tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// The system's UUID, in the usual notation.
    pub uuid: Option<String>,
    /// The system's serial number.
    pub serial: Option<String>,
}

impl Identity {
    /// Reads the firmware's SMBIOS tables.
    pub fn read() -> Self {
        tables()
            .and_then(|tables| system(&tables))
            .unwrap_or_default()
    }

    /// Returns the names of this machine's configuration files, best first. `mac` is the address of the network card that
    /// it booted from. The last one is common to all machines.
    pub fn config_names(&self, mac: Option<&[u8]>) -> Vec<String> {
        let mac = mac.map(|mac| {
            let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            bytes.join("-")
        });
        let own = [mac, self.uuid.clone(), self.serial.clone()];
        let own = own.iter().flatten();
        let own = own.filter_map(|identity| config::host_file_name(identity));
        own.chain([config::FILE_NAME.into()]).collect()
    }
}

/// Copies the SMBIOS tables.
fn tables() -> Option<Vec<u8>> {
    let (address, is_new) = uefi::system::with_config_table(|tables| {
        let find = |guid| tables.iter().find(|t| t.guid == guid).map(|t| t.address);
        let new = find(ConfigTableEntry::SMBIOS3_GUID).map(|at| (at as usize, true));
        new.or_else(|| find(ConfigTableEntry::SMBIOS_GUID).map(|at| (at as usize, false)))
    })?;
    if address == 0 {
        return None;
    }
    // SAFETY: the firmware says that an entry point of this kind is there, in memory that it maps.
    let entry =
        unsafe { slice::from_raw_parts(address as *const u8, if is_new { 24 } else { 31 }) };
    let (at, bytes) = entry_point(entry)?;
    // SAFETY: the entry point says that the tables are there; the firmware maps them, and nobody writes to them.
    Some(unsafe { slice::from_raw_parts(at as *const u8, bytes) }.to_vec())
}

/// Returns the address and the size of the tables.
fn entry_point(entry: &[u8]) -> Option<(usize, usize)> {
    let number = |at: usize, size: usize| {
        let bytes = entry.get(at..at + size)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0usize, |n, b| n << 8 | usize::from(*b)),
        )
    };
    let (at, bytes) = if entry.starts_with(b"_SM3_") {
        (number(16, 8)?, number(12, 4)?)
    } else if entry.starts_with(b"_SM_") {
        (number(24, 4)?, number(22, 2)?)
    } else {
        return None;
    };
    (at != 0 && (1..=MAX_TABLES).contains(&bytes)).then_some((at, bytes))
}

/// Finds the structure that describes the system (type 1).
fn system(mut tables: &[u8]) -> Option<Identity> {
    const SYSTEM: u8 = 1;
    loop {
        let length = usize::from(*tables.get(1)?);
        let structure = tables.get(..length).filter(|s| s.len() >= 4)?;
        let strings = &tables[length..];
        // The strings end with an empty one; without any, there are two zeros.
        let end = strings.windows(2).position(|pair| pair == [0, 0])?;
        if structure[0] == SYSTEM {
            let text = &strings[..end];
            return Some(Identity {
                uuid: structure.get(8..24).and_then(uuid),
                serial: structure.get(7).and_then(|index| string(text, *index)),
            });
        }
        tables = &strings[end + 2..];
    }
}

/// Returns a structure's string by its number; 0 is none.
fn string(strings: &[u8], index: u8) -> Option<String> {
    let index = usize::from(index).checked_sub(1)?;
    let bytes = strings.split(|b| *b == 0).nth(index)?;
    let text = core::str::from_utf8(bytes).ok()?.trim().to_string();
    (!text.is_empty()).then_some(text)
}

/// Formats a UUID, whose first three fields are little-endian. One of zeros or ones is none.
fn uuid(bytes: &[u8]) -> Option<String> {
    let uuid = Uuid::from_bytes_le(bytes.try_into().ok()?);
    (!uuid.is_nil() && !uuid.is_max()).then(|| uuid.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A BIOS structure, then the system's.
    fn sample() -> Vec<u8> {
        let mut tables = vec![0, 5, 0, 0, 1];
        tables.extend(b"Maker\0\0");
        tables.extend([1, 27, 1, 0, 1, 2, 0, 3]);
        tables.extend([
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD,
            0xEE, 0xFF,
        ]);
        tables.extend([6, 0, 0]);
        tables.extend(b"Maker\0Server\0 SN-42\0\0");
        tables.extend([127, 4, 2, 0, 0, 0]);
        tables
    }

    #[test]
    fn the_system_has_a_uuid_and_a_serial_number() {
        let identity = system(&sample()).unwrap();
        assert_eq!(
            identity.uuid.as_deref(),
            Some("00112233-4455-6677-8899-aabbccddeeff")
        );
        assert_eq!(identity.serial.as_deref(), Some("SN-42"));
    }

    #[test]
    fn the_card_s_address_comes_first() {
        let names = system(&sample())
            .unwrap()
            .config_names(Some(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        assert_eq!(
            names,
            [
                "seamark-52-54-00-12-34-56.toml",
                "seamark-00112233-4455-6677-8899-aabbccddeeff.toml",
                "seamark-SN-42.toml",
                "seamark.toml"
            ]
        );
        let unknown = Identity::default();
        assert_eq!(unknown.config_names(None), ["seamark.toml"]);
    }

    #[test]
    fn a_serial_number_that_is_a_path_is_not_used() {
        let identity = Identity {
            uuid: None,
            serial: Some("../../secret".into()),
        };
        assert_eq!(identity.config_names(Some(&[])), ["seamark.toml"]);
    }

    #[test]
    fn both_entry_points_lead_to_the_tables() {
        let mut new = [0; 24];
        new[..5].copy_from_slice(b"_SM3_");
        new[12..16].copy_from_slice(&500u32.to_le_bytes());
        new[16..24].copy_from_slice(&0x7F00_0000u64.to_le_bytes());
        assert_eq!(entry_point(&new), Some((0x7F00_0000, 500)));
        let mut old = [0; 31];
        old[..4].copy_from_slice(b"_SM_");
        old[22..24].copy_from_slice(&400u16.to_le_bytes());
        old[24..28].copy_from_slice(&0x6F00_0000u32.to_le_bytes());
        assert_eq!(entry_point(&old), Some((0x6F00_0000, 400)));
        assert_eq!(entry_point(&[0; 31]), None);
        new[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(entry_point(&new), None);
    }

    proptest! {
        #[test]
        fn any_tables_are_survived(bytes: Vec<u8>, at in 0usize..60, byte: u8) {
            system(&bytes);
            let mut near = sample();
            near[at] = byte;
            system(&near);
        }
    }
}
