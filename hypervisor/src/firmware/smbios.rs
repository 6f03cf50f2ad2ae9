//! The SMBIOS tables: which machine this is.
//!
//! Firmware wrote them, so no address, length or string is trusted: what is wrong is left out.
//!
//! Source: DMTF DSP0134, System Management BIOS Reference Specification 3.7, sections 5.2, 7.1 and 7.2.

use alloc::string::{String, ToString};

use uuid::Uuid;

use super::tables::Physical;

/// Size in bytes of the entry point of SMBIOS 3.0, and of the older one.
const ENTRY_3: usize = 24;
const ENTRY_2: usize = 31;
/// Maximum size of the structures in bytes.
const MAX_BYTES: usize = 1 << 20;
/// Maximum length of a string in characters.
const MAX_TEXT: usize = 64;

/// The machine, as far as the tables name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// System Information, Manufacturer.
    pub manufacturer: Option<String>,
    /// System Information, Product Name.
    pub model: Option<String>,
    /// System Information, Serial Number.
    pub serial_number: Option<String>,
    /// System Information, UUID.
    pub uuid: Option<String>,
    /// BIOS Information, BIOS Version.
    pub firmware: Option<String>,
}

/// Reads the tables from the entry point at `entry` on.
pub fn read(memory: &impl Physical, entry: u64) -> System {
    let mut system = System::default();
    let structures = place(memory, entry)
        .and_then(|(pa, bytes)| memory.copy(pa, bytes.min(MAX_BYTES)))
        .unwrap_or_default();
    for structure in Structures(&structures) {
        match structure.kind() {
            0 if system.firmware.is_none() => system.firmware = structure.text(5),
            1 if system.model.is_none() => {
                system.manufacturer = structure.text(4);
                system.model = structure.text(5);
                system.serial_number = structure.text(7);
                system.uuid = structure.uuid();
            }
            _ => {}
        }
    }
    system
}

/// Returns the address and the size of the structures.
fn place(memory: &impl Physical, entry: u64) -> Option<(u64, usize)> {
    let is_valid = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0;
    let anchor = memory.copy(entry, 5)?;
    if anchor == b"_SM3_" {
        let bytes = memory
            .copy(entry, ENTRY_3)
            .filter(|bytes| is_valid(bytes))?;
        let size = u32::from_le_bytes(bytes[12..16].try_into().ok()?);
        let pa = u64::from_le_bytes(bytes[16..24].try_into().ok()?);
        return Some((pa, size as usize));
    }
    if !anchor.starts_with(b"_SM_") {
        return None;
    }
    let bytes = memory
        .copy(entry, ENTRY_2)
        .filter(|bytes| is_valid(bytes))?;
    let size = u16::from_le_bytes(bytes[22..24].try_into().ok()?);
    let pa = u32::from_le_bytes(bytes[24..28].try_into().ok()?);
    Some((pa.into(), size.into()))
}

/// The structures that are left.
struct Structures<'a>(&'a [u8]);

/// One structure.
struct Structure<'a> {
    /// The formatted area.
    fields: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Iterator for Structures<'a> {
    type Item = Structure<'a>;

    fn next(&mut self) -> Option<Structure<'a>> {
        let bytes = self.0;
        let (kind, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
        // Type 127 ends the table.
        if kind == 127 || length < 4 {
            return None;
        }
        let fields = bytes.get(..length)?;
        let strings = &bytes[length..];
        let end = strings.windows(2).position(|pair| pair == [0, 0])?;
        self.0 = &strings[end + 2..];
        Some(Structure {
            fields,
            strings: &strings[..end],
        })
    }
}

impl Structure<'_> {
    fn kind(&self) -> u8 {
        self.fields[0]
    }

    /// Returns the string that the byte at `offset` names.
    fn text(&self, offset: usize) -> Option<String> {
        let number = usize::from(*self.fields.get(offset)?).checked_sub(1)?;
        let bytes = self.strings.split(|byte| *byte == 0).nth(number)?;
        let text: String = bytes
            .iter()
            .filter(|byte| matches!(byte, b' '..=b'~'))
            .take(MAX_TEXT)
            .map(|byte| char::from(*byte))
            .collect();
        Some(String::from(text.trim())).filter(|text| !text.is_empty())
    }

    /// Returns the UUID, whose first three fields are little-endian. All zeroes or all ones mean that there is none.
    fn uuid(&self) -> Option<String> {
        let uuid = Uuid::from_bytes_le(self.fields.get(8..24)?.try_into().ok()?);
        (!uuid.is_nil() && !uuid.is_max()).then(|| uuid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::{Physical, System, read};

    struct Ram(Vec<u8>);

    impl Physical for Ram {
        fn copy(&self, pa: u64, bytes: usize) -> Option<Vec<u8>> {
            let start = usize::try_from(pa).ok()?;
            self.0.get(start..start.checked_add(bytes)?).map(Into::into)
        }
    }

    fn structures() -> Vec<u8> {
        let mut bytes = vec![0, 6, 0, 0, 1, 2];
        bytes.extend(b"EDK II\x002.70\0\0");
        bytes.extend([1, 27, 1, 0, 1, 2, 0, 3]);
        bytes.extend(0..16);
        bytes.extend([6, 0, 0]);
        bytes.extend(b"QEMU\0Standard\x07 PC\0 123 \0\0");
        bytes.extend([127, 4, 2, 0, 0, 0]);
        bytes
    }

    fn summed(mut entry: Vec<u8>, at: usize) -> Vec<u8> {
        entry[at] = entry.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        entry
    }

    fn entry_3(pa: u64, size: usize) -> Vec<u8> {
        let mut entry = b"_SM3_".to_vec();
        entry.extend([0, 24, 3, 7, 0, 1, 0]);
        entry.extend((size as u32).to_le_bytes());
        entry.extend(pa.to_le_bytes());
        summed(entry, 5)
    }

    fn entry_2(pa: u32, size: usize) -> Vec<u8> {
        let mut entry = b"_SM_".to_vec();
        entry.resize(22, 0);
        entry.extend((size as u16).to_le_bytes());
        entry.extend(pa.to_le_bytes());
        entry.resize(31, 0);
        summed(entry, 4)
    }

    fn expected() -> System {
        System {
            manufacturer: Some("QEMU".into()),
            model: Some("Standard PC".into()),
            serial_number: Some("123".into()),
            uuid: Some("03020100-0504-0706-0809-0a0b0c0d0e0f".into()),
            firmware: Some("2.70".into()),
        }
    }

    #[test]
    fn both_entry_points_lead_to_the_machine() {
        let structures = structures();
        for entry in [entry_3(64, structures.len()), entry_2(64, structures.len())] {
            let mut ram = entry;
            ram.resize(64, 0);
            ram.extend(&structures);
            assert_eq!(read(&Ram(ram), 0), expected());
        }
    }

    #[test]
    fn what_is_not_there_or_wrong_is_left_out() {
        assert_eq!(read(&Ram(vec![]), 0), System::default());
        let mut wrong = entry_3(24, 10);
        wrong[8] ^= 1;
        assert_eq!(read(&Ram(wrong), 0), System::default());
        assert_eq!(read(&Ram(entry_3(1 << 60, 10)), 0), System::default());
        let mut ram = entry_3(24, 27);
        ram.extend([1, 24, 0, 0, 0, 0, 0, 9]);
        ram.extend([0xFF; 16]);
        ram.extend([0, 0, 0]);
        assert_eq!(read(&Ram(ram), 0), System::default());
    }

    proptest! {
        #[test]
        fn any_structures_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut ram = entry_3(24, bytes.len());
            ram.extend(bytes);
            read(&Ram(ram), 0);
        }
    }
}
