//! The crash report that an earlier run left, and the places for the next one, while the firmware runs.
//!
//! Sources: UEFI Specification 2.10, sections 4.6 (EFI_RT_PROPERTIES_TABLE), 7.2 (memory descriptors with
//! EFI_MEMORY_RUNTIME), 8.2 (variable services).

use alloc::{vec, vec::Vec};
use core::{ptr, slice};

use crashlog::piece::Piece;
use uefi::{
    CStr16, Guid,
    boot::{self as services, AllocateType, MemoryAttribute, MemoryDescriptor, MemoryType},
    guid,
    runtime::{self, VariableVendor},
    table,
};

use crate::keep::{AREA_BYTES, Keep, MAX_VARIABLES, Runtime, RuntimeRegion, VENDOR, name};

/// Addresses at which the area may be, in the order in which they are tried: firmware rarely uses memory there, so that
/// a report survives until the next run reads it.
const PLACES: [u64; 8] = [
    64 << 20,
    96 << 20,
    128 << 20,
    192 << 20,
    256 << 20,
    384 << 20,
    512 << 20,
    768 << 20,
];

/// Maximum size in bytes of a variable's value that is read.
const MAX_VALUE: usize = 4096;
/// Maximum number of regions of the runtime services.
const MAX_REGIONS: usize = 512;

/// Reads what an earlier run left, and reserves memory for the next report. `map` is the firmware's memory map.
pub(super) fn find(map: impl Iterator<Item = MemoryDescriptor>) -> Keep {
    let free: Vec<(u64, u64)> = map
        .filter(|entry| entry.ty == MemoryType::CONVENTIONAL)
        .map(|entry| {
            let bytes = entry.page_count.saturating_mul(4096);
            (entry.phys_start, entry.phys_start.saturating_add(bytes))
        })
        .collect();
    let is_free = |pa: u64| {
        let inside = |&(start, end): &(u64, u64)| start <= pa && pa + AREA_BYTES <= end;
        free.iter().any(inside)
    };
    let free: Vec<u64> = PLACES.into_iter().filter(|pa| is_free(*pa)).collect();
    let memory: Vec<Vec<u8>> = free.iter().filter_map(|pa| take_piece(*pa)).collect();
    let area = free.into_iter().find(|pa| reserve(*pa));
    let newest = memory
        .iter()
        .max_by_key(|bytes| Piece::decode(bytes).map(|piece| piece.of));
    if let (Some(area), Some(piece)) = (area, newest) {
        // The report stays where the next run looks for it, until the operator drops it.
        // SAFETY: the area was just allocated, and is larger than a piece that was found in one.
        unsafe { ptr::copy_nonoverlapping(piece.as_ptr(), area as *mut u8, piece.len()) };
    }
    Keep {
        variables: variables(),
        memory,
        area,
        runtime: None,
    }
}

/// Copies the piece in the area at `pa`, which is free memory, and wipes it there.
fn take_piece(pa: u64) -> Option<Vec<u8>> {
    // SAFETY: the firmware identity-maps its free memory, nothing uses it now, and any of its bytes is a `u8`.
    let area = unsafe { slice::from_raw_parts_mut(pa as *mut u8, AREA_BYTES as usize) };
    let len = crashlog::piece::HEADER + Piece::decode(area)?.part.len();
    let piece = area[..len].to_vec();
    area[..8].fill(0);
    Some(piece)
}

fn reserve(pa: u64) -> bool {
    let pages = (AREA_BYTES / 4096) as usize;
    services::allocate_pages(AllocateType::Address(pa), MemoryType::LOADER_DATA, pages).is_ok()
}

fn variables() -> Vec<Vec<u8>> {
    let vendor = VariableVendor(Guid::from_bytes(VENDOR));
    let mut value = vec![0; MAX_VALUE];
    let one = |number| {
        let name = name(number);
        let name = CStr16::from_u16_with_nul(&name).ok()?;
        let (value, _) = runtime::get_variable(name, &vendor, &mut value).ok()?;
        Some(value.to_vec())
    };
    (0..MAX_VARIABLES).map_while(one).collect()
}

/// Returns the service that sets variables. `map` is the final memory map.
pub(super) fn runtime(map: impl Iterator<Item = MemoryDescriptor>) -> Option<Runtime> {
    /// "RUNTSERV", in memory order.
    const SIGNATURE: u64 = u64::from_le_bytes(*b"RUNTSERV");
    let table = table::system_table_raw()?;
    // SAFETY: the system table and the table of runtime services outlast boot services, and nothing writes them now.
    let services = unsafe { (*table.as_ptr()).runtime_services.as_ref() }?;
    let set_variable = services.set_variable as usize as u64;
    let regions = regions(map)?;
    let is_known = services.header.signature == SIGNATURE
        && regions
            .iter()
            .any(|r| r.is_memory && (r.start..r.end).contains(&set_variable));
    is_known.then_some(Runtime {
        set_variable,
        regions,
    })
}

/// Returns false if the firmware says that its variables can't be set after the boot. It must be asked before the end of
/// boot services.
pub(super) fn sets_variables() -> bool {
    const PROPERTIES: Guid = guid!("eb66918a-7eef-402a-842e-931d21c38ae9");
    const SET_VARIABLE: u32 = 0x40;
    uefi::system::with_config_table(|tables| {
        let table = tables.iter().find(|t| t.guid == PROPERTIES);
        let table = table
            .map(|t| t.address.cast::<u32>())
            .filter(|t| t.is_aligned() && !t.is_null());
        // SAFETY: the firmware's table has a version and a length of 16 bits each, then the mask.
        table.is_none_or(|table| unsafe { table.add(1).read() } & SET_VARIABLE != 0)
    })
}

/// Converts the entries for runtime services. Returns `None` if they overlap, wrap or are too many.
fn regions(map: impl Iterator<Item = MemoryDescriptor>) -> Option<Vec<RuntimeRegion>> {
    let entries = map.filter(|entry| entry.att.contains(MemoryAttribute::RUNTIME));
    let mut regions: Vec<RuntimeRegion> = entries
        .map(|entry| {
            let bytes = entry.page_count.checked_mul(4096)?;
            Some(RuntimeRegion {
                start: entry.phys_start / 4096 * 4096,
                end: entry.phys_start.checked_add(bytes)?,
                is_memory: !matches!(entry.ty, MemoryType::MMIO | MemoryType::MMIO_PORT_SPACE)
                    && entry.att.contains(MemoryAttribute::WRITE_BACK),
            })
        })
        .collect::<Option<_>>()?;
    regions.sort_unstable_by_key(|r| r.start);
    let is_sound = regions.len() <= MAX_REGIONS
        && regions.iter().all(|r| r.start < r.end && r.start != 0)
        && regions.windows(2).all(|pair| pair[0].end <= pair[1].start);
    is_sound.then_some(regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ty: MemoryType, phys_start: u64, page_count: u64, att: u64) -> MemoryDescriptor {
        MemoryDescriptor {
            ty,
            phys_start,
            page_count,
            att: MemoryAttribute::from_bits_retain(att),
            ..MemoryDescriptor::default()
        }
    }

    const RUNTIME: u64 = 1 << 63;
    const WRITE_BACK: u64 = 8;

    #[test]
    fn the_regions_of_runtime_services_are_those_with_the_attribute() {
        let code = MemoryType::RUNTIME_SERVICES_CODE;
        let map = [
            entry(MemoryType::MMIO, 0xFFC0_0000, 0x400, RUNTIME | 1),
            entry(MemoryType::CONVENTIONAL, 0x10_0000, 1, WRITE_BACK),
            entry(code, 0x20_0000, 2, RUNTIME | WRITE_BACK),
        ];
        let region = |start, end, is_memory| RuntimeRegion {
            start,
            end,
            is_memory,
        };
        assert_eq!(
            regions(map.into_iter()).unwrap(),
            [
                region(0x20_0000, 0x20_2000, true),
                region(0xFFC0_0000, 0x1_0000_0000, false)
            ]
        );
    }

    #[test]
    fn regions_that_can_not_be_are_refused() {
        let code = |start, pages| {
            let ty = MemoryType::RUNTIME_SERVICES_CODE;
            entry(ty, start, pages, RUNTIME | WRITE_BACK)
        };
        for map in [
            vec![code(0, 1)],
            vec![code(0x1000, 0)],
            vec![code(0x1000, u64::MAX)],
            vec![code(u64::MAX - 0xFFF, 2)],
            vec![code(0x1000, 2), code(0x2000, 1)],
        ] {
            assert_eq!(regions(map.clone().into_iter()), None, "{map:?}");
        }
    }
}
