use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};
use core::cell::{Cell, RefCell};

use super::*;

mod io;
mod mirror;

/// Frames from a counter, each with its words. Only allocated frames may be freed.
#[derive(Default)]
struct Host {
    next: Cell<u64>,
    left: Cell<Option<u64>>,
    out: RefCell<BTreeMap<u64, PageSize>>,
    words: RefCell<BTreeMap<u64, &'static Words>>,
    flushes: Cell<u64>,
    silent: Cell<bool>,
    quarantined: RefCell<Vec<u64>>,
    devices: RefCell<Option<Arc<mirror::Devices>>>,
}

impl Frames for Host {
    fn take(&self, size: PageSize) -> Option<Hpa> {
        match self.left.get() {
            Some(0) => return None,
            left => self.left.set(left.map(|n| n - 1)),
        }
        let at = self.next.get().max(1 << 30).next_multiple_of(size.bytes());
        self.next.set(at + size.bytes());
        self.out.borrow_mut().insert(at, size);
        Some(Hpa(at))
    }

    fn give(&self, hpa: Hpa, size: PageSize) {
        if let Some(devices) = &*self.devices.borrow() {
            assert!(!devices.reach(hpa, size), "{hpa:?} changes hands");
        }
        assert_eq!(self.out.borrow_mut().remove(&hpa.0), Some(size));
    }

    fn quarantine(&self, hpa: Hpa, size: PageSize) {
        assert_eq!(self.out.borrow_mut().remove(&hpa.0), Some(size));
        self.quarantined.borrow_mut().push(size.bytes());
    }

    fn split(&self, hpa: Hpa) {
        let mut out = self.out.borrow_mut();
        assert_eq!(out.remove(&hpa.0), Some(PageSize::Size2M));
        out.extend((0..512).map(|part| (hpa.0 + part * PAGE_4K, PageSize::Size4K)));
    }

    fn words(&self, hpa: Hpa) -> &Words {
        let mut words = self.words.borrow_mut();
        words
            .entry(hpa.0)
            .or_insert_with(|| Box::leak(Box::new([const { AtomicU64::new(0) }; ENTRIES])))
    }
}

impl Flush for Host {
    fn flush(&self) -> Result<(), NoAnswer> {
        self.flushes.set(self.flushes.get() + 1);
        if self.silent.get() {
            Err(NoAnswer { cpu: 3 })
        } else {
            Ok(())
        }
    }
}

const SHARED: u64 = 1 << 47;

fn map(host: &Host) -> SharedMap {
    SharedMap::new(host, Levels::Four, SHARED).unwrap()
}

/// Returns the page that the CPU finds for `gpa`, walking as the manual describes.
fn walk(host: &Host, map: &SharedMap, gpa: u64) -> Option<u64> {
    let address = gpa | SHARED;
    let mut table = map.root().0;
    for shift in [39, 30, 21, 12] {
        let entry = host.words(Hpa(table))[(address >> shift) as usize % 512].load(SeqCst);
        if entry & 7 == 0 {
            assert_eq!(entry >> 63, 0, "the guest must get #VE");
            return None;
        }
        let next = entry & 0x000f_ffff_ffff_f000;
        if shift == 12 || entry >> 7 & 1 != 0 {
            assert_eq!(entry & 0x7f, 0x33, "write-back, read and write");
            return Some(next + (gpa & ((1 << shift) - 1)));
        }
        table = next;
    }
    None
}

#[test]
fn a_reader_finds_what_is_mapped_also_where_it_found_something_before() {
    let host = Host::default();
    let map = map(&host);
    for (gpa, size) in [
        (0, PageSize::Size4K),
        (2 * PAGE_4K, PageSize::Size4K),
        (PAGE_2M, PageSize::Size2M),
    ] {
        map.map(&host, Gpa(gpa), size).unwrap();
    }
    map.lend(&host, Gpa(3 * PAGE_4K), Hpa(0x1234_5000), PAGE_4K)
        .unwrap();
    let reader = map.reader(&host);
    for _ in 0..2 {
        for gpa in [
            0,
            PAGE_4K,
            2 * PAGE_4K,
            3 * PAGE_4K,
            PAGE_2M,
            PAGE_2M + 5 * PAGE_4K,
            2 * PAGE_2M,
            1 << 40,
        ] {
            let found = reader.page(Gpa(gpa));
            // Lent memory is not the guest's.
            let is_lent = gpa == 3 * PAGE_4K;
            let expected = (!is_lent).then(|| walk(&host, &map, gpa)).flatten();
            let expected = expected.map(|hpa| host.words(Hpa(hpa)).as_ptr());
            assert_eq!(found.map(|words| words.as_ptr()), expected, "{gpa:#x}");
        }
    }
}

#[test]
fn lent_memory_is_readable_by_the_guest_and_never_freed() {
    let host = Host::default();
    let map = map(&host);
    let (gpa, hpa) = (SHARED - (1 << 39), 0x1234_5000);
    map.lend(&host, Gpa(gpa), Hpa(hpa), 0x2001).unwrap();
    let entry = |gpa: u64| {
        let mut table = map.root().0;
        for shift in [39, 30, 21] {
            let index = ((gpa | SHARED) >> shift) as usize % 512;
            table = host.words(Hpa(table))[index].load(SeqCst) & 0x000f_ffff_ffff_f000;
        }
        host.words(Hpa(table))[(gpa >> 12) as usize % 512].load(SeqCst)
    };
    // Write-back and read-only; three pages.
    assert_eq!(entry(gpa), hpa | 0x31);
    assert_eq!(entry(gpa + 0x2000), (hpa + 0x2000) | 0x31);
    assert_eq!(entry(gpa + 0x3000), 0);
    assert!(!map.has(&host, Gpa(gpa)) && !map.has_block(&host, Gpa(gpa)));
    assert_eq!(
        map.with_page(&host, Gpa(gpa), |_| ()),
        Err(SharedError::NotMapped)
    );
    assert_eq!(
        map.map(&host, Gpa(gpa), PageSize::Size4K),
        Err(SharedError::Occupied)
    );
    assert_eq!(
        map.lend(&host, Gpa(gpa), Hpa(0), 1),
        Err(SharedError::Occupied)
    );
    assert_eq!(map.unmap(&host, gpa..gpa + PAGE_4K, &host), Ok(0));
    assert_eq!(entry(gpa), hpa | 0x31);
    assert_eq!(
        map.lend(&host, Gpa(gpa + 1), Hpa(0), 1),
        Err(SharedError::BadRange)
    );
    assert_eq!(
        map.lend(&host, Gpa(SHARED - 0x1000), Hpa(0), 0x1001),
        Err(SharedError::BadRange)
    );
    assert_eq!(map.holding().pages, [0, 0]);
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn the_cpu_finds_what_was_mapped_and_nothing_else() {
    let host = Host::default();
    let map = map(&host);
    map.map(&host, Gpa(0x5000), PageSize::Size4K).unwrap();
    map.map(&host, Gpa(PAGE_2M), PageSize::Size2M).unwrap();
    assert!(walk(&host, &map, 0x5000).is_some());
    assert_eq!(walk(&host, &map, 0x4000), None);
    let large = walk(&host, &map, PAGE_2M).unwrap();
    assert_eq!(
        walk(&host, &map, PAGE_2M + 0x12_3456),
        Some(large + 0x12_3456)
    );
    assert!(map.has(&host, Gpa(0x5000)) && !map.has(&host, Gpa(0x6000)));
    assert!(map.has_block(&host, Gpa(0x6000)) && !map.has_block(&host, Gpa(2 * PAGE_2M)));
    assert_eq!(
        map.holding(),
        Holding {
            pages: [1, 1],
            tables: 4
        }
    );
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn present_memory_is_not_mapped_again() {
    let host = Host::default();
    let map = map(&host);
    map.map(&host, Gpa(0), PageSize::Size2M).unwrap();
    let before = map.holding();
    for size in [PageSize::Size4K, PageSize::Size2M] {
        assert_eq!(map.map(&host, Gpa(0), size), Err(SharedError::Occupied));
    }
    for (gpa, size) in [
        (0x800, PageSize::Size4K),
        (PAGE_4K, PageSize::Size2M),
        (0, PageSize::Size1G),
        (SHARED, PageSize::Size4K),
    ] {
        assert_eq!(map.map(&host, Gpa(gpa), size), Err(SharedError::BadRange));
    }
    assert_eq!(map.holding(), before);
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn a_large_page_is_split_where_a_part_is_removed() {
    let host = Host::default();
    let map = map(&host);
    map.map(&host, Gpa(0), PageSize::Size2M).unwrap();
    let last = walk(&host, &map, PAGE_2M - PAGE_4K);
    assert_eq!(
        map.unmap(&host, PAGE_4K..3 * PAGE_4K, &host),
        Ok(2 * PAGE_4K)
    );
    assert_eq!(host.flushes.get(), 1);
    assert_eq!(walk(&host, &map, PAGE_4K), None);
    assert_eq!(walk(&host, &map, PAGE_2M - PAGE_4K), last);
    assert_eq!(map.holding().pages, [510, 0]);
    assert_eq!(map.unmap(&host, 0..PAGE_4K, &host), Ok(PAGE_4K));
    assert_eq!(
        map.unmap(&host, 0..PAGE_2M, &host),
        Ok(509 * PAGE_4K),
        "the first one is gone"
    );
    assert_eq!(map.unmap(&host, 0..PAGE_2M, &host), Ok(0));
    assert_eq!(host.flushes.get(), 3, "nothing to flush the last time");
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn a_frame_stays_the_guests_when_a_cpu_does_not_answer() {
    let host = Host::default();
    let map = map(&host);
    map.map(&host, Gpa(0), PageSize::Size2M).unwrap();
    let (before, out) = (map.holding(), host.out.borrow().clone());
    host.silent.set(true);
    let silent = Err(SharedError::NoAnswer(NoAnswer { cpu: 3 }));
    assert_eq!(map.unmap(&host, 0..PAGE_2M, &host), silent);
    assert_eq!((map.holding(), host.out.borrow().clone()), (before, out));
    assert!(walk(&host, &map, 0).is_some());
    host.silent.set(false);
    assert_eq!(map.unmap(&host, 0..PAGE_2M, &host), Ok(PAGE_2M));
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn a_host_without_frames_reports_it_and_loses_nothing() {
    for left in 0..4 {
        let host = Host::default();
        let map = map(&host);
        host.left.set(Some(left));
        let none = Err(SharedError::NoFrames(PageSize::Size4K));
        assert_eq!(map.map(&host, Gpa(0), PageSize::Size4K), none, "{left}");
        host.left.set(None);
        map.map(&host, Gpa(0), PageSize::Size4K).unwrap();
        map.dissolve(&host);
        assert!(host.out.borrow().is_empty());
    }
}

#[test]
fn a_prepared_page_is_mapped_with_one_more_frame() {
    let host = Host::default();
    let map = map(&host);
    host.left.set(Some(3));
    map.prepare(&host, Gpa(PAGE_2M)).unwrap();
    assert_eq!(map.holding().pages, [0, 0]);
    assert!(!map.has(&host, Gpa(PAGE_2M)));
    map.prepare(&host, Gpa(PAGE_2M + PAGE_4K)).unwrap();
    host.left.set(Some(1));
    map.map(&host, Gpa(PAGE_2M), PageSize::Size4K).unwrap();
    host.left.set(None);
    map.map(&host, Gpa(0), PageSize::Size2M).unwrap();
    let occupied = Err(SharedError::Occupied);
    assert_eq!(map.prepare(&host, Gpa(PAGE_4K)), occupied);
    let beyond = Gpa(map.shared_bit());
    assert_eq!(map.prepare(&host, beyond), Err(SharedError::BadRange));
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
    assert_eq!(map.prepare(&host, Gpa(0)), Err(SharedError::BadRange));
}

#[test]
fn host_and_guest_see_the_same_words() {
    let host = Host::default();
    let map = map(&host);
    map.map(&host, Gpa(PAGE_2M), PageSize::Size2M).unwrap();
    let gpa = PAGE_2M + 7 * PAGE_4K;
    map.with_page(&host, Gpa(gpa), |words| words[1].store(42, SeqCst))
        .unwrap();
    let page = walk(&host, &map, gpa).unwrap();
    assert_eq!(host.words(Hpa(page))[1].load(SeqCst), 42);
    let none = map.with_page(&host, Gpa(0), |_| ());
    assert_eq!(none, Err(SharedError::NotMapped));
    map.dissolve(&host);
}

#[test]
fn five_levels_reach_the_wide_shared_bit() {
    let host = Host::default();
    let wide = SharedMap::new(&host, Levels::Five, 1 << 51).unwrap();
    wide.map(&host, Gpa(1 << 40), PageSize::Size4K).unwrap();
    assert!(wide.has(&host, Gpa(1 << 40)));
    wide.dissolve(&host);
    let narrow = SharedMap::new(&host, Levels::Four, 1 << 51);
    assert_eq!(narrow.err(), Some(SharedError::BadRange));
    let all: Vec<_> = host.out.borrow().keys().copied().collect();
    assert_eq!(all, []);
}
