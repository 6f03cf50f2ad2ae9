//! Device memory in a shared map.

use super::*;

const HPA: u64 = 0xF0_0000_0000;

fn memory(gpa: u64, bytes: u64) -> DeviceMemory {
    DeviceMemory {
        gpa: Gpa(gpa),
        hpa: Hpa(HPA + gpa % (1 << 30)),
        bytes,
    }
}

/// Returns the leaf that the CPU finds for `gpa`, and the number of its address bits.
fn leaf(host: &Host, map: &SharedMap, gpa: u64) -> Option<(u64, u32)> {
    let mut table = map.root().0;
    for shift in [39, 30, 21, 12] {
        let index = ((gpa | SHARED) >> shift) as usize % 512;
        let entry = host.words(Hpa(table))[index].load(SeqCst);
        if entry & 7 == 0 {
            return None;
        }
        if shift == 12 || entry >> 7 & 1 != 0 {
            return Some((entry, shift));
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    None
}

#[test]
fn device_memory_is_uncached_and_in_large_pages_where_it_can_be() {
    let host = Host::default();
    let map = map(&host);
    let gpa = 0xC000_0000;
    map.map_io(&host, memory(gpa, 2 * PAGE_2M + PAGE_4K))
        .unwrap();
    // Read and write, memory type 0.
    assert_eq!(leaf(&host, &map, gpa), Some((HPA | 1 << 7 | 3, 21)));
    let last = 2 * PAGE_2M;
    assert_eq!(leaf(&host, &map, gpa + last), Some(((HPA + last) | 3, 12)));
    assert_eq!(leaf(&host, &map, gpa + last + PAGE_4K), None);
    // The same memory at an address that is not aligned to 2 MiB.
    let odd = DeviceMemory {
        gpa: Gpa(0x8000_1000),
        hpa: Hpa(HPA),
        bytes: PAGE_2M,
    };
    map.map_io(&host, odd).unwrap();
    assert_eq!(leaf(&host, &map, 0x8000_1000), Some((HPA | 3, 12)));
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty(), "it was not freed as a frame");
}

#[test]
fn device_memory_is_not_the_guests() {
    let host = Host::default();
    let map = map(&host);
    let gpa = 4 * PAGE_2M;
    map.map_io(&host, memory(gpa, PAGE_2M)).unwrap();
    let before = leaf(&host, &map, gpa);
    assert!(!map.has(&host, Gpa(gpa)) && !map.has_block(&host, Gpa(gpa)));
    assert!(map.is_mapped(&host, Gpa(gpa)));
    let none = map.with_page(&host, Gpa(gpa), |_| ());
    assert_eq!(none, Err(SharedError::NotMapped));
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let occupied = Err(SharedError::Occupied);
        assert_eq!(map.map(&host, Gpa(gpa), size), occupied);
    }
    assert_eq!(map.unmap(&host, gpa..gpa + PAGE_2M, &host), Ok(0));
    assert_eq!(map.unmap(&host, gpa..gpa + PAGE_4K, &host), Ok(0));
    assert_eq!(leaf(&host, &map, gpa), before);
    assert_eq!(map.holding().pages, [0, 0]);
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn device_memory_goes_where_nothing_is_or_nowhere() {
    let host = Host::default();
    let map = map(&host);
    map.map(&host, Gpa(PAGE_4K), PageSize::Size4K).unwrap();
    map.lend(&host, Gpa(PAGE_2M + PAGE_4K), Hpa(0x5000), 1)
        .unwrap();
    for (gpa, bytes) in [(0, 2 * PAGE_4K), (PAGE_2M, PAGE_2M), (0, 2 * PAGE_2M)] {
        let occupied = Err(SharedError::Occupied);
        assert_eq!(map.map_io(&host, memory(gpa, bytes)), occupied);
        assert_eq!(leaf(&host, &map, gpa), None, "no part of it");
    }
    for (gpa, bytes) in [
        (1, PAGE_4K),
        (0, 0x800),
        (0, 0),
        (SHARED - PAGE_4K, 2 * PAGE_4K),
        (!0xFFF, 2 * PAGE_4K),
    ] {
        let bad = Err(SharedError::BadRange);
        assert_eq!(map.map_io(&host, memory(gpa, bytes)), bad);
    }
    map.dissolve(&host);
    let bad = Err(SharedError::BadRange);
    assert_eq!(map.map_io(&host, memory(0, PAGE_4K)), bad);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn device_memory_goes_and_comes_back_elsewhere() {
    let host = Host::default();
    let map = map(&host);
    let (from, to) = (PAGE_2M, 5 * PAGE_2M);
    map.map_io(&host, memory(from, PAGE_2M + PAGE_4K)).unwrap();
    map.map(&host, Gpa(from + 2 * PAGE_2M), PageSize::Size4K)
        .unwrap();
    map.unmap_io(&host, 0..4 * PAGE_2M);
    assert_eq!(leaf(&host, &map, from), None);
    assert_eq!(leaf(&host, &map, from + PAGE_2M), None);
    assert!(map.has(&host, Gpa(from + 2 * PAGE_2M)), "the guest's stays");
    map.map_io(&host, memory(to, PAGE_2M)).unwrap();
    assert!(map.is_mapped(&host, Gpa(to)));
    // Small pages before, a large one now, in a table that stayed.
    map.map_io(&host, memory(from + PAGE_2M, PAGE_2M)).unwrap();
    let found = leaf(&host, &map, from + PAGE_2M).unwrap();
    assert_eq!(found.1, 12);
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn a_guest_that_moves_its_devices_gets_no_more_than_so_many_tables() {
    let host = Host::default();
    let map = map(&host);
    let mut mapped = 0;
    for block in (0..2 * MOST_IO_TABLES).map(|block| block << 30) {
        if map.map_io(&host, memory(block, PAGE_4K)).is_ok() {
            mapped += 1;
            map.unmap_io(&host, block..block + PAGE_4K);
        }
    }
    assert!(mapped > MOST_IO_TABLES / 4);
    assert!(map.holding().tables <= MOST_IO_TABLES + 1);
    // Where tables are, it still can.
    map.map_io(&host, memory(0, PAGE_4K)).unwrap();
    // And its own memory does not suffer.
    map.map(&host, Gpa(1 << 46), PageSize::Size4K).unwrap();
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn a_host_without_frames_maps_no_part_of_device_memory() {
    for left in 0..4 {
        let host = Host::default();
        let map = map(&host);
        host.left.set(Some(left));
        // Two page tables are needed.
        let across = memory(PAGE_2M - PAGE_4K, 2 * PAGE_4K);
        let none = Err(SharedError::NoFrames(PageSize::Size4K));
        assert_eq!(map.map_io(&host, across), none, "{left}");
        assert_eq!(leaf(&host, &map, PAGE_2M - PAGE_4K), None);
        host.left.set(None);
        map.map_io(&host, across).unwrap();
        map.dissolve(&host);
        assert!(host.out.borrow().is_empty());
    }
}
