//! Construction of TDVF images, for our own guests.

use alloc::vec::Vec;
use core::ops::Range;

use super::locate::{
    ENTRY_BYTES, HEADER_BYTES, METADATA_GUID, PREFIX_GUID, SECTION_BYTES, SIGNATURE, TABLE_GUID,
    TAIL, VERSION,
};

/// Bytes of an image's tail. The last 16 hold the reset vector.
pub const TAIL_BYTES: usize = TAIL;

/// A section as the metadata describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Range of file bytes that the section holds.
    pub data: Range<u32>,
    /// First GPA.
    pub gpa: u64,
    /// Size in guest memory, in bytes.
    pub bytes: u64,
    /// Type of the section, a [`super::Kind`].
    pub kind: u32,
    /// Bit 0: extended into MRTD; bit 1: added by TDH.MEM.PAGE.AUG.
    pub attributes: u32,
}

/// Returns the bytes that [`write()`] puts between firmware and tail for this number of sections.
pub const fn metadata_bytes(sections: usize) -> usize {
    PREFIX_GUID.len() + HEADER_BYTES + SECTION_BYTES * sections + OFFSET_ENTRY_BYTES + ENTRY_BYTES
}

/// Bytes of the table entry that locates the metadata.
const OFFSET_ENTRY_BYTES: usize = size_of::<u32>() + ENTRY_BYTES;

/// Builds an image: `firmware`, metadata that lists `sections`, a GUID table in OVMF's format, and `tail`.
pub fn write(firmware: &[u8], sections: &[Entry], tail: &[u8; TAIL_BYTES]) -> Vec<u8> {
    let mut file = firmware.to_vec();
    file.extend(PREFIX_GUID);
    file.extend(descriptor(sections));

    let from_descriptor = metadata_bytes(sections.len()) - PREFIX_GUID.len() + TAIL;
    file.extend((from_descriptor as u32).to_le_bytes());
    file.extend((OFFSET_ENTRY_BYTES as u16).to_le_bytes());
    file.extend(METADATA_GUID);
    file.extend(((OFFSET_ENTRY_BYTES + ENTRY_BYTES) as u16).to_le_bytes());
    file.extend(TABLE_GUID);

    file.extend(tail);
    file
}

/// Builds a 'TDVF' descriptor.
pub(super) fn descriptor(sections: &[Entry]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend(((HEADER_BYTES + SECTION_BYTES * sections.len()) as u32).to_le_bytes());
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((sections.len() as u32).to_le_bytes());
    for section in sections {
        bytes.extend(section.data.start.to_le_bytes());
        bytes.extend((section.data.end - section.data.start).to_le_bytes());
        bytes.extend(section.gpa.to_le_bytes());
        bytes.extend(section.bytes.to_le_bytes());
        bytes.extend(section.kind.to_le_bytes());
        bytes.extend(section.attributes.to_le_bytes());
    }
    bytes
}
