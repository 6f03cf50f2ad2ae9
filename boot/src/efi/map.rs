//! The firmware's memory map, converted to the hypervisor's terms.
//!
//! Firmware wrote the map, so nothing about it is trusted: entries may overlap, wrap, or be in any order. Where two
//! entries disagree, the stricter one counts.
//!
//! Source: UEFI Specification 2.10, section 7.2 (EFI_BOOT_SERVICES.GetMemoryMap).

use alloc::vec::Vec;

use uefi::boot::{MemoryAttribute, MemoryDescriptor, MemoryType};

use crate::{Region, RegionKind};

const PAGE: u64 = 4096;

/// Converts the entries of the firmware's memory map: regions in ascending order, without overlaps, equal neighbours joined.
pub(super) fn regions(entries: impl Iterator<Item = MemoryDescriptor>) -> Vec<Region> {
    let entries: Vec<Region> = entries.filter_map(|entry| region(&entry)).collect();
    let mut ends: Vec<u64> = entries.iter().flat_map(|r| [r.start, r.end]).collect();
    ends.sort_unstable();
    ends.dedup();
    let mut regions: Vec<Region> = Vec::new();
    for ends in ends.windows(2) {
        let (start, end) = (ends[0], ends[1]);
        let covering = entries.iter().filter(|r| r.start <= start && end <= r.end);
        let Some(kind) = covering
            .map(|r| r.kind)
            .max_by_key(|kind| strictness(*kind))
        else {
            continue;
        };
        match regions.last_mut() {
            Some(last) if last.end == start && last.kind == kind => last.end = end,
            _ => regions.push(Region { start, end, kind }),
        }
    }
    regions
}

/// Converts one entry. An entry that is empty or wraps has no region.
fn region(entry: &MemoryDescriptor) -> Option<Region> {
    let kind = kind(entry.ty, entry.att);
    let bytes = entry.page_count.checked_mul(PAGE)?;
    let end = entry.phys_start.checked_add(bytes)?;
    // A part of a page is not free.
    let (start, end) = if kind.is_free() {
        (
            entry.phys_start.checked_next_multiple_of(PAGE)?,
            end / PAGE * PAGE,
        )
    } else {
        (
            entry.phys_start / PAGE * PAGE,
            end.checked_next_multiple_of(PAGE)?,
        )
    };
    (start < end).then_some(Region { start, end, kind })
}

/// Returns the kind of memory of this type with these attributes. The attributes count for memory that would be free.
fn kind(ty: MemoryType, attributes: MemoryAttribute) -> RegionKind {
    match ty {
        MemoryType::CONVENTIONAL => free(RegionKind::Conventional, attributes),
        MemoryType::BOOT_SERVICES_CODE | MemoryType::BOOT_SERVICES_DATA => {
            free(RegionKind::BootServices, attributes)
        }
        MemoryType::LOADER_CODE | MemoryType::LOADER_DATA => RegionKind::Loader,
        MemoryType::RUNTIME_SERVICES_CODE | MemoryType::RUNTIME_SERVICES_DATA => {
            RegionKind::RuntimeServices
        }
        MemoryType::ACPI_RECLAIM => RegionKind::AcpiReclaim,
        MemoryType::ACPI_NON_VOLATILE => RegionKind::AcpiNvs,
        MemoryType::MMIO | MemoryType::MMIO_PORT_SPACE => RegionKind::Mmio,
        MemoryType::PERSISTENT_MEMORY => RegionKind::Persistent,
        MemoryType::UNUSABLE => RegionKind::Unusable,
        _ => RegionKind::Reserved,
    }
}

/// Returns `plain`, unless an attribute says that the memory is not ordinary.
fn free(plain: RegionKind, attributes: MemoryAttribute) -> RegionKind {
    match () {
        () if attributes.contains(MemoryAttribute::NON_VOLATILE) => RegionKind::Persistent,
        () if attributes
            .intersects(MemoryAttribute::SPECIAL_PURPOSE | MemoryAttribute::HOT_PLUGGABLE) =>
        {
            RegionKind::SpecificPurpose
        }
        // Memory that can't be cached write-back is not RAM for a TD, nor for page tables.
        () if !attributes.contains(MemoryAttribute::WRITE_BACK) => RegionKind::Reserved,
        () => plain,
    }
}

/// Orders the kinds: of two entries for the same memory, the one with the higher number counts.
fn strictness(kind: RegionKind) -> u8 {
    match kind {
        RegionKind::Conventional => 0,
        RegionKind::BootServices => 1,
        RegionKind::AcpiReclaim => 2,
        RegionKind::AcpiNvs => 3,
        RegionKind::RuntimeServices => 4,
        RegionKind::Loader => 5,
        RegionKind::SpecificPurpose => 6,
        RegionKind::Persistent => 7,
        RegionKind::Reserved => 8,
        RegionKind::Mmio => 9,
        RegionKind::Unusable => 10,
    }
}

/// Returns the ranges of RAM, whoever uses it. They are final, while the kinds of regions may still change.
pub(super) fn ram_extents(regions: &[Region]) -> Vec<(u64, u64)> {
    let mut extents: Vec<(u64, u64)> = Vec::new();
    for r in regions.iter().filter(|r| r.kind.is_ram()) {
        match extents.last_mut() {
            Some(last) if last.1 == r.start => last.1 = r.end,
            _ => extents.push((r.start, r.end)),
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WB: MemoryAttribute = MemoryAttribute::WRITE_BACK;

    fn entry(
        ty: MemoryType,
        phys_start: u64,
        page_count: u64,
        att: MemoryAttribute,
    ) -> MemoryDescriptor {
        MemoryDescriptor {
            ty,
            phys_start,
            page_count,
            att,
            ..MemoryDescriptor::default()
        }
    }

    fn kinds(entries: &[MemoryDescriptor]) -> Vec<(u64, u64, RegionKind)> {
        let regions = regions(entries.iter().copied());
        regions.iter().map(|r| (r.start, r.end, r.kind)).collect()
    }

    #[test]
    fn ram_is_joined_whoever_uses_it() {
        let region = |start, end, kind| Region { start, end, kind };
        let map = [
            region(0, 0x9000, RegionKind::Conventional),
            region(0x9000, 0xA000, RegionKind::BootServices),
            region(0xA000, 0xB000, RegionKind::Reserved),
            region(0xB000, 0xC000, RegionKind::AcpiNvs),
            region(0xD000, 0xE000, RegionKind::Loader),
        ];
        assert_eq!(
            ram_extents(&map),
            [(0, 0xA000), (0xB000, 0xC000), (0xD000, 0xE000)]
        );
    }

    #[test]
    fn memory_that_is_not_ordinary_is_not_free() {
        let conventional = MemoryType::CONVENTIONAL;
        for (attributes, expected) in [
            (WB, RegionKind::Conventional),
            (
                WB | MemoryAttribute::MORE_RELIABLE | MemoryAttribute::CPU_CRYPTO,
                RegionKind::Conventional,
            ),
            (
                WB | MemoryAttribute::SPECIAL_PURPOSE,
                RegionKind::SpecificPurpose,
            ),
            (
                WB | MemoryAttribute::HOT_PLUGGABLE,
                RegionKind::SpecificPurpose,
            ),
            (WB | MemoryAttribute::NON_VOLATILE, RegionKind::Persistent),
            (MemoryAttribute::UNCACHEABLE, RegionKind::Reserved),
        ] {
            assert_eq!(kind(conventional, attributes), expected, "{attributes:?}");
            assert!(expected == RegionKind::Conventional || !expected.is_ram());
        }
        // UEFI 2.9's unaccepted memory, and types that do not exist yet.
        for ty in [15, 16, 0x7000_0000, u32::MAX] {
            assert_eq!(kind(MemoryType(ty), WB), RegionKind::Reserved);
        }
    }

    #[test]
    fn the_stricter_of_two_entries_counts() {
        let map = [
            entry(MemoryType::CONVENTIONAL, 0x10_0000, 0x10, WB),
            entry(MemoryType::RESERVED, 0x10_4000, 2, WB),
            entry(MemoryType::CONVENTIONAL, 0, 0x10, WB),
        ];
        assert_eq!(
            kinds(&map),
            [
                (0, 0x1_0000, RegionKind::Conventional),
                (0x10_0000, 0x10_4000, RegionKind::Conventional),
                (0x10_4000, 0x10_6000, RegionKind::Reserved),
                (0x10_6000, 0x11_0000, RegionKind::Conventional),
            ]
        );
    }

    #[test]
    fn a_part_of_a_page_is_not_free() {
        let map = [
            entry(MemoryType::CONVENTIONAL, 0x1800, 2, WB),
            entry(MemoryType::RESERVED, 0x1_0800, 1, WB),
        ];
        assert_eq!(
            kinds(&map),
            [
                (0x2000, 0x3000, RegionKind::Conventional),
                (0x1_0000, 0x1_2000, RegionKind::Reserved)
            ]
        );
    }

    fn any_entry() -> impl Strategy<Value = MemoryDescriptor> {
        let start = prop_oneof![0u64..0x20_0000, any::<u64>()];
        let pages = prop_oneof![0u64..0x100, any::<u64>()];
        (0u32..18, start, pages, any::<u64>()).prop_map(|(ty, start, pages, att)| {
            entry(
                MemoryType(ty),
                start,
                pages,
                MemoryAttribute::from_bits_retain(att),
            )
        })
    }

    proptest! {
        #[test]
        fn any_map_becomes_one_without_overlaps(
            entries in prop::collection::vec(any_entry(), 0..40)
        ) {
            let regions = regions(entries.iter().copied());
            for pair in regions.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start);
            }
            for r in &regions {
                prop_assert!(r.start < r.end);
                let aligned = (r.start | r.end).is_multiple_of(PAGE);
                prop_assert!(aligned);
                // Free memory is free by every entry that covers it.
                if r.kind.is_free() {
                    let contrary = entries.iter().filter_map(super::region).any(|other| {
                        !other.kind.is_free() && other.start < r.end && r.start < other.end
                    });
                    prop_assert!(!contrary);
                }
            }
        }
    }
}
