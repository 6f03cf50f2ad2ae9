//! The TD HOB list, which describes a TD's memory and what to boot to its firmware.
//!
//! Format: Platform Initialization Specification 1.7, volume 3, hand-off blocks. Requirements of a TDVF: Intel TDX
//! Virtual Firmware Design Guide, section 4.2.

use alloc::vec::Vec;
use core::ops::Range;

use td_base::hob::{
    END_OF_HOB_LIST, GUID_EXTENSION, HANDOFF, HEADER_BYTES, MEMORY_UNACCEPTED, RESOURCE_DESCRIPTOR,
    RESOURCE_DESCRIPTOR_BYTES, SYSTEM_MEMORY,
};
use td_base::payload::{self, Payload};

/// Bytes of the first block, including the header.
const HANDOFF_BYTES: usize = 0x38;
/// EFI_HOB_HANDOFF_TABLE_VERSION.
const HANDOFF_VERSION: u32 = 9;
/// EFI_RESOURCE_ATTRIBUTE_PRESENT, INITIALIZED, TESTED.
const ORDINARY: u32 = 7;

/// A kind of memory range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory that the guest already has as part of the image (EFI_RESOURCE_SYSTEM_MEMORY).
    Added = SYSTEM_MEMORY as isize,
    /// Memory that the guest must accept first (EFI_RESOURCE_MEMORY_UNACCEPTED).
    Unaccepted = MEMORY_UNACCEPTED as isize,
}

/// Builds the list for guest address `at`.
#[must_use]
pub fn list(at: u64, memory: &[(Range<u64>, Kind)], payload: Option<&Payload<'_>>) -> Vec<u8> {
    let payload = payload.map(block).unwrap_or_default();
    let bytes =
        HANDOFF_BYTES + memory.len() * RESOURCE_DESCRIPTOR_BYTES + payload.len() + HEADER_BYTES;
    let mut list = Vec::with_capacity(bytes);
    header(&mut list, HANDOFF, HANDOFF_BYTES);
    word(&mut list, HANDOFF_VERSION);
    // BootMode: with full configuration. The firmware finds top, bottom and free memory by itself.
    word(&mut list, 0);
    list.extend([0; 4 * 8]);
    long(&mut list, at + bytes as u64);
    for (range, kind) in memory {
        header(&mut list, RESOURCE_DESCRIPTOR, RESOURCE_DESCRIPTOR_BYTES);
        // The zero GUID: no owner.
        list.extend([0; 16]);
        word(&mut list, *kind as u32);
        word(&mut list, ORDINARY);
        long(&mut list, range.start);
        long(&mut list, range.end - range.start);
    }
    list.extend(payload);
    header(&mut list, END_OF_HOB_LIST, HEADER_BYTES);
    list
}

/// Builds the block that describes what to boot.
fn block(payload: &Payload<'_>) -> Vec<u8> {
    let head = payload.head();
    let line = payload.command_line;
    let bytes = HEADER_BYTES + payload::GUID.len() + head.len() + line.len();
    let bytes = bytes.next_multiple_of(8);
    let mut block = Vec::with_capacity(bytes);
    header(&mut block, GUID_EXTENSION, bytes);
    block.extend(payload::GUID);
    block.extend(head);
    block.extend(line);
    block.resize(bytes, 0);
    block
}

fn header(list: &mut Vec<u8>, hob: u16, bytes: usize) {
    list.extend(hob.to_le_bytes());
    list.extend((bytes as u16).to_le_bytes());
    list.extend([0; 4]);
}

fn word(list: &mut Vec<u8>, value: u32) {
    list.extend(value.to_le_bytes());
}

fn long(list: &mut Vec<u8>, value: u64) {
    list.extend(value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_at(list: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(list[at..at + 8].try_into().unwrap())
    }

    fn word_at(list: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(list[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_list_begins_with_the_handoff_and_ends_where_it_says() {
        let memory = [
            (0..0x1000, Kind::Added),
            (0x1000..0x20_0000, Kind::Unaccepted),
        ];
        let list = list(0x80_9000, &memory, None);
        assert_eq!(list.len(), 0x38 + 2 * 0x30 + 8);
        assert_eq!(list[..8], [1, 0, 0x38, 0, 0, 0, 0, 0]);
        assert_eq!(word_at(&list, 8), 9);
        assert_eq!(long_at(&list, 0x30), 0x80_9000 + list.len() as u64);
        assert_eq!(list[list.len() - 8..], [0xFF, 0xFF, 8, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_firmware_reads_what_is_to_be_booted_and_the_memory() {
        let memory = [(0..0x20_0000, Kind::Unaccepted)];
        let file = |page: u64, bytes| payload::File {
            gpa: payload::WINDOW + page * 0x1000,
            bytes,
        };
        let line = [b'x'; payload::COMMAND_LINE_MAX];
        for length in [0, 13, 2047] {
            let payload = Payload {
                kernel: file(0, 0x5001),
                initrd: file(6, 7),
                command_line: &line[..length],
            };
            let list = list(0x1000, &memory, Some(&payload));
            assert_eq!(long_at(&list, 0x30), 0x1000 + list.len() as u64);
            let block = td_base::hob::named(&list, &payload::GUID);
            assert_eq!(Payload::read(block.unwrap().unwrap()), Ok(payload));
            let ranges = td_base::hob::memory::<4>(&list).unwrap();
            assert_eq!(ranges[0], (0..0x20_0000, td_base::hob::Kind::Unaccepted));
        }
    }

    #[test]
    fn each_range_has_a_descriptor_with_its_kind() {
        let memory = [
            (0..0x1000, Kind::Added),
            (0x1000..0x20_0000, Kind::Unaccepted),
        ];
        let list = list(0, &memory, None);
        for (at, (range, kind)) in [0x38, 0x68].into_iter().zip(memory) {
            assert_eq!(list[at..at + 8], [3, 0, 0x30, 0, 0, 0, 0, 0]);
            assert_eq!(word_at(&list, at + 24), kind as u32);
            assert_eq!(word_at(&list, at + 28), 7);
            assert_eq!(long_at(&list, at + 32), range.start);
            assert_eq!(long_at(&list, at + 40), range.end - range.start);
        }
    }
}
