//! The boot parameters (zero page) of a Linux kernel.
//!
//! Source: Linux Documentation/arch/x86/zero-page.rst and boot.rst, section "64-bit boot protocol".

use core::ops::Range;

use arrayvec::ArrayVec;

use crate::places::{COMMAND_LINE, LEGACY, Places, Ranges, put_in_order};
use td_base::kernel::{HEAD_BYTES, HEADER, Kernel};

/// Size in bytes of the boot parameters.
pub const BYTES: usize = 0x1000;

/// The kind of a range of memory, as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Free memory.
    Ram = 1,
    /// Memory that must not be used.
    Reserved = 2,
    /// ACPI tables; free once they have been read.
    Acpi = 3,
    /// ACPI's non-volatile storage.
    Nvs = 4,
}

/// Maximum number of entries in the memory map of the boot parameters.
pub const MAX_ENTRIES: usize = 128;
/// The memory map.
pub type Map = ArrayVec<(Range<u64>, Kind), MAX_ENTRIES>;

/// Builds the map of a TD's memory and of the firmware's range, which is reserved. `kept` lists the parts of both that
/// have another kind.
pub fn map(ranges: &Ranges, firmware: Range<u64>, kept: &[(Range<u64>, Kind)]) -> Map {
    let mut map = Map::new();
    let mut taken: ArrayVec<Range<u64>, 16> = kept.iter().map(|(range, _)| range.clone()).collect();
    taken.push(LEGACY);
    put_in_order(&mut taken, |range| range.start);
    let ram = ranges.iter().map(|range| (range, Kind::Ram));
    for (range, kind) in ram.chain([(&firmware, Kind::Reserved)]) {
        let mut at = range.start;
        for taken in &taken {
            if taken.start < range.end && taken.end > at {
                push(&mut map, at..taken.start, kind);
                at = taken.end;
            }
        }
        push(&mut map, at..range.end, kind);
    }
    for (range, kind) in kept {
        push(&mut map, range.clone(), *kind);
    }
    put_in_order(&mut map, |(range, _)| range.start);
    map
}

/// Adds a range. It always fits: there are only a few entries for each of 32 ranges.
fn push(map: &mut Map, range: Range<u64>, kind: Kind) {
    if range.start < range.end {
        let _ = map.try_push((range, kind));
    }
}

/// The content of the boot parameters.
#[derive(Debug)]
pub struct Told<'a> {
    /// The first bytes of the kernel's file.
    pub head: &'a [u8; HEAD_BYTES],
    /// The header in them.
    pub kernel: &'a Kernel,
    /// The places of the kernel and its initial file system.
    pub places: &'a Places,
    /// Size in bytes of the initial file system.
    pub initrd_bytes: u64,
    /// The address of the ACPI tables' RSDP.
    pub rsdp: u64,
    /// The memory map.
    pub map: &'a Map,
}

/// Writes the boot parameters.
pub fn write(page: &mut [u8; BYTES], told: &Told<'_>) {
    const RSDP: usize = 0x070;
    const MAP_ENTRIES: usize = 0x1E8;
    const LOADER: usize = 0x210;
    const INITRD: usize = 0x218;
    const INITRD_BYTES: usize = 0x21C;
    const COMMAND_LINE_AT: usize = 0x228;
    const MAP: usize = 0x2D0;
    const ENTRY_BYTES: usize = 20;
    /// The type of a loader without an assigned number.
    const UNKNOWN_LOADER: u8 = 0xFF;
    page.fill(0);
    page[HEADER..told.kernel.header_end]
        .copy_from_slice(&told.head[HEADER..told.kernel.header_end]);
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(RSDP, &told.rsdp.to_le_bytes());
    put(LOADER, &[UNKNOWN_LOADER]);
    if told.initrd_bytes != 0 {
        // Both fit into 32 bits, because the kernel's limit does.
        put(INITRD, &(told.places.initrd as u32).to_le_bytes());
        put(INITRD_BYTES, &(told.initrd_bytes as u32).to_le_bytes());
    }
    put(COMMAND_LINE_AT, &(COMMAND_LINE as u32).to_le_bytes());
    put(MAP_ENTRIES, &[told.map.len() as u8]);
    for (at, (range, kind)) in (MAP..).step_by(ENTRY_BYTES).zip(told.map) {
        put(at, &range.start.to_le_bytes());
        put(at + 8, &(range.end - range.start).to_le_bytes());
        put(at + 16, &(*kind as u32).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::head;
    use crate::places;

    const TOP: u64 = 256 << 20;

    fn ranges() -> Ranges {
        [0..TOP, 4 << 30..5 << 30].into_iter().collect()
    }

    #[test]
    fn what_is_kept_is_not_free() {
        let kept = [
            (TOP - 0x1000..TOP, Kind::Reserved),
            (0xFFC0_4000..0xFFC0_6000, Kind::Acpi),
            (0xFFC0_6000..0xFFC0_9000, Kind::Nvs),
        ];
        assert_eq!(
            map(&ranges(), 0xFFC0_0000..1 << 32, &kept)[..],
            [
                (0..0xA_0000, Kind::Ram),
                (0x10_0000..TOP - 0x1000, Kind::Ram),
                kept[0].clone(),
                (0xFFC0_0000..0xFFC0_4000, Kind::Reserved),
                kept[1].clone(),
                kept[2].clone(),
                (0xFFC0_9000..1 << 32, Kind::Reserved),
                (4 << 30..5 << 30, Kind::Ram),
            ]
        );
    }

    #[test]
    fn parameters_hold_the_header_and_what_the_loader_says() {
        let head = head();
        let kernel = Kernel::read(&head, 11_655_104).unwrap();
        let places = places::find(&ranges(), &kernel, 0x5000, 4).unwrap();
        let told = Told {
            head: &head,
            kernel: &kernel,
            places: &places,
            initrd_bytes: 0x5000,
            rsdp: 0xFFC0_0000,
            map: &map(&ranges(), 0xFFC0_0000..1 << 32, &[]),
        };
        let mut page = [0xAA; BYTES];
        write(&mut page, &told);
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        assert_eq!(page[0x202..0x206], *b"HdrS");
        assert_eq!((word(0x70), page[0x210]), (0xFFC0_0000, 0xFF));
        assert_eq!((word(0x218), word(0x21C)), (places.initrd as u32, 0x5000));
        assert_eq!(word(0x228), 0x1_1000);
        assert_eq!(page[0x1E8], 4);
        assert_eq!(
            (word(0x2D0 + 20), word(0x2D0 + 28)),
            (0x10_0000, TOP as u32 - 0x10_0000)
        );
        assert_eq!(word(0x2D0 + 36), 1);
        assert!(page[..0x70].iter().all(|byte| *byte == 0));
    }
}
