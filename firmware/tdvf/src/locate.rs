//! Location of the metadata in an image.
//!
//! The metadata is found through an entry of the GUID table that ends 32 bytes before the image's end (OVMF), or
//! through an offset stored at that point (td-shim).

use super::Malformed;

/// GUID of the table's own entry, 96b582de-1fb2-45f7-baea-a366c55a082d, in file byte order.
pub(super) const TABLE_GUID: [u8; 16] = [
    0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
];
/// GUID of the entry that locates the metadata, e47a6535-984a-4798-865e-4685a7bf8ec2, in file byte order.
pub(super) const METADATA_GUID: [u8; 16] = [
    0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2,
];
/// GUID in front of the descriptor, e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae, in file byte order.
pub(super) const PREFIX_GUID: [u8; 16] = [
    0xf3, 0xf9, 0xea, 0xe9, 0x8e, 0x16, 0xd5, 0x44, 0xa8, 0xeb, 0x7f, 0x4d, 0x87, 0x38, 0xf6, 0xae,
];
/// Distance from the image's end to the end of the GUID table, or to td-shim's offset.
pub(super) const TAIL: usize = 32;
pub(super) const SIGNATURE: &[u8] = b"TDVF";
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const SECTION_BYTES: usize = 32;
/// Bytes of a GUID table entry besides its data: a two-byte length and the GUID.
pub(super) const ENTRY_BYTES: usize = 18;

/// Returns the file from the 'TDVF' descriptor on.
pub(super) fn descriptor(file: &[u8]) -> Result<&[u8], Malformed> {
    let tail = file.len().checked_sub(TAIL).ok_or(Malformed::TooShort)?;
    let at = match table_entry(&file[..tail], &METADATA_GUID)? {
        // OVMF counts from the end of the image.
        Some(entry) => u32_at(entry, 0).and_then(|back| file.len().checked_sub(back as usize)),
        // td-shim counts from the start.
        None => u32_at(file, tail).map(|at| at as usize),
    };
    at.and_then(|at| file.get(at..))
        .filter(|found| found.starts_with(SIGNATURE))
        .ok_or(Malformed::NoMetadata)
}

/// Returns the data of entry `guid` in the GUID table that ends where `file` ends, if table and entry exist.
///
/// An entry consists of its data, a two-byte length, and its GUID; the length covers all three. The last entry stands
/// for the table itself, and its length is that of the table.
fn table_entry<'a>(file: &'a [u8], guid: &[u8; 16]) -> Result<Option<&'a [u8]>, Malformed> {
    let Some((rest, &TABLE_GUID)) = file.split_last_chunk::<16>() else {
        return Ok(None);
    };
    let (rest, table_bytes) = rest.split_last_chunk::<2>().ok_or(Malformed::BrokenTable)?;
    let entries_bytes = usize::from(u16::from_le_bytes(*table_bytes))
        .checked_sub(ENTRY_BYTES)
        .ok_or(Malformed::BrokenTable)?;
    let start = rest
        .len()
        .checked_sub(entries_bytes)
        .ok_or(Malformed::BrokenTable)?;
    let mut entries = &rest[start..];
    while !entries.is_empty() {
        let (before, name) = entries
            .split_last_chunk::<16>()
            .ok_or(Malformed::BrokenTable)?;
        let (before, length) = before
            .split_last_chunk::<2>()
            .ok_or(Malformed::BrokenTable)?;
        let data_bytes = usize::from(u16::from_le_bytes(*length))
            .checked_sub(ENTRY_BYTES)
            .ok_or(Malformed::BrokenTable)?;
        let start = before
            .len()
            .checked_sub(data_bytes)
            .ok_or(Malformed::BrokenTable)?;
        if name == guid {
            return Ok(Some(&before[start..]));
        }
        entries = &before[..start];
    }
    Ok(None)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
