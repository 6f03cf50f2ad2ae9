//! The devices' view of shared memory: it equals the guest's, and no frame changes hands that a device reaches.

use core::ops::Range;
use proptest::prelude::*;
use spin::Mutex;

use super::*;

/// The tables of devices, by page of 4 KiB.
#[derive(Debug, Default)]
pub struct Devices(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    pages: BTreeMap<u64, (u64, bool)>,
    /// The answers of the next calls, which do nothing else: the number of calls before that succeed.
    maps: Option<(u64, MirrorError)>,
    unmaps: Option<(u64, MirrorError)>,
    /// The ranges of the calls of `unmap`.
    unmapped: Vec<Range<u64>>,
}

fn next(plan: &mut Option<(u64, MirrorError)>) -> Result<(), MirrorError> {
    match plan {
        Some((0, error)) => Err(*error),
        Some((left, _)) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl Devices {
    /// Returns whether devices reach a part of this frame.
    pub fn reach(&self, hpa: Hpa, size: PageSize) -> bool {
        let frame = hpa.0..hpa.0 + size.bytes();
        let tables = self.0.lock();
        tables.pages.values().any(|(hpa, _)| frame.contains(hpa))
    }

    fn refuse_maps_after(&self, calls: u64, error: MirrorError) {
        self.0.lock().maps = Some((calls, error));
    }

    fn refuse_unmaps_after(&self, calls: u64, error: MirrorError) {
        self.0.lock().unmaps = Some((calls, error));
    }

    fn refuse_nothing(&self) {
        let mut tables = self.0.lock();
        (tables.maps, tables.unmaps) = (None, None);
    }

    fn unmapped(&self) -> Vec<Range<u64>> {
        core::mem::take(&mut self.0.lock().unmapped)
    }
}

impl Mirror for Devices {
    fn map(&self, gpa: Gpa, page: Page) -> Result<(), MirrorError> {
        let mut tables = self.0.lock();
        next(&mut tables.maps)?;
        for offset in (0..page.size.bytes()).step_by(PAGE_4K as usize) {
            let entry = (page.hpa.0 + offset, page.is_read_only);
            let before = tables.pages.insert(gpa.0 + offset, entry);
            assert_eq!(before, None, "{:#x} is mapped twice", gpa.0 + offset);
        }
        Ok(())
    }

    fn unmap(&self, range: Range<u64>) -> Result<(), MirrorError> {
        let mut tables = self.0.lock();
        tables.unmapped.push(range.clone());
        let whole = tables.pages.range(range.clone()).count() as u64;
        assert_eq!(whole, (range.end - range.start) / PAGE_4K, "{range:#x?}");
        next(&mut tables.unmaps)?;
        tables.pages.retain(|gpa, _| !range.contains(gpa));
        Ok(())
    }
}

fn mirrored(host: &Host) -> (SharedMap, Arc<Devices>) {
    let devices = Arc::<Devices>::default();
    *host.devices.borrow_mut() = Some(devices.clone());
    (map(host).with_mirror(devices.clone()), devices)
}

/// Checks that devices reach exactly what the guest does, below `end`.
fn compare(host: &Host, map: &SharedMap, devices: &Devices, end: u64) {
    let tables = devices.0.lock();
    for gpa in (0..end).step_by(PAGE_4K as usize) {
        let there = map.leaf(host, Gpa(gpa)).map(|(word, level)| {
            let entry = Entry::load(word);
            let hpa = entry.hpa().0 + gpa % level_bytes(level);
            (hpa, entry.is_lent())
        });
        assert_eq!(there, tables.pages.get(&gpa).copied(), "{gpa:#x}");
    }
}

#[test]
fn devices_reach_what_the_guest_shares_and_no_more() {
    let host = Host::default();
    let (map, devices) = mirrored(&host);
    map.map(&host, Gpa(PAGE_4K), PageSize::Size4K).unwrap();
    map.map(&host, Gpa(PAGE_2M), PageSize::Size2M).unwrap();
    map.lend(&host, Gpa(2 * PAGE_2M), Hpa(0x7000), 0x2000)
        .unwrap();
    let bar = DeviceMemory {
        gpa: Gpa(3 * PAGE_2M),
        hpa: Hpa(0xF0_0000_0000),
        bytes: PAGE_2M,
    };
    compare(&host, &map, &devices, 3 * PAGE_2M);
    map.map_io(&host, bar).unwrap();
    map.unmap_io(&host, 0..8 * PAGE_2M);
    compare(&host, &map, &devices, 4 * PAGE_2M);
    // A large page is split.
    let part = PAGE_2M + PAGE_4K..PAGE_2M + 3 * PAGE_4K;
    assert_eq!(map.unmap(&host, part.clone(), &host), Ok(2 * PAGE_4K));
    compare(&host, &map, &devices, 3 * PAGE_2M);
    assert_eq!(devices.unmapped(), [part]);
    // The devices are told of what is there, without the hole.
    let block = PAGE_2M..2 * PAGE_2M;
    assert_eq!(map.unmap(&host, block.clone(), &host), Ok(510 * PAGE_4K));
    let hole = PAGE_2M + PAGE_4K..PAGE_2M + 3 * PAGE_4K;
    let around = [block.start..hole.start, hole.end..block.end];
    assert_eq!(devices.unmapped(), around);
    // Lent pages stay.
    assert_eq!(map.unmap(&host, 2 * PAGE_2M..3 * PAGE_2M, &host), Ok(0));
    compare(&host, &map, &devices, 3 * PAGE_2M);
    devices.0.lock().pages.clear();
    assert_eq!(map.dissolve(&host), 0);
    assert!(host.out.borrow().is_empty());
    assert_eq!(Arc::strong_count(&devices), 2, "the map lets go of it");
}

#[test]
fn memory_that_devices_cannot_reach_is_not_shared() {
    let host = Host::default();
    let (map, devices) = mirrored(&host);
    map.prepare(&host, Gpa(0)).unwrap();
    let before = host.out.borrow().clone();
    for error in [MirrorError::NoMemory, MirrorError::NoAnswer] {
        devices.refuse_maps_after(0, error);
        let refused = Err(SharedError::Mirror(error));
        for size in [PageSize::Size4K, PageSize::Size2M] {
            let gpa = Gpa(size.bytes() * 4);
            assert_eq!(map.map(&host, gpa, size), refused);
            assert!(!map.has(&host, gpa));
        }
        assert_eq!(map.lend(&host, Gpa(0), Hpa(0x7000), 1), refused);
        assert_eq!(map.holding().pages, [0, 0]);
        assert_eq!(*host.out.borrow(), before, "no frame is lost");
    }
    devices.refuse_nothing();
    map.map(&host, Gpa(0), PageSize::Size4K).unwrap();
    devices.0.lock().pages.clear();
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn without_a_table_to_split_a_devices_page_everything_stays_shared() {
    let host = Host::default();
    let (map, devices) = mirrored(&host);
    map.map(&host, Gpa(0), PageSize::Size2M).unwrap();
    devices.refuse_unmaps_after(0, MirrorError::NoMemory);
    let refused = Err(SharedError::Mirror(MirrorError::NoMemory));
    assert_eq!(map.unmap(&host, 0..PAGE_4K, &host), refused);
    assert_eq!(host.flushes.get(), 0);
    compare(&host, &map, &devices, PAGE_2M);
    assert_eq!(map.holding().pages, [512, 0]);
    devices.refuse_nothing();
    assert_eq!(map.unmap(&host, 0..PAGE_4K, &host), Ok(PAGE_4K));
    compare(&host, &map, &devices, PAGE_2M);
    devices.0.lock().pages.clear();
    map.dissolve(&host);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn frames_that_devices_may_still_reach_are_never_freed() {
    let host = Host::default();
    let (map, devices) = mirrored(&host);
    for page in [0, 1, 3, 4] {
        map.map(&host, Gpa(page * PAGE_4K), PageSize::Size4K)
            .unwrap();
    }
    // The first run of pages comes back, the second does not.
    devices.refuse_unmaps_after(1, MirrorError::NoAnswer);
    let refused = Err(SharedError::Mirror(MirrorError::NoAnswer));
    assert_eq!(map.unmap(&host, 0..PAGE_2M, &host), refused);
    assert_eq!(host.flushes.get(), 1);
    assert_eq!(map.holding().pages, [2, 0]);
    compare(&host, &map, &devices, PAGE_2M);
    // Nothing more is done with this memory, whether the unit answers again or not.
    devices.refuse_nothing();
    let bar = DeviceMemory {
        gpa: Gpa(PAGE_2M),
        hpa: Hpa(0xF0_0000_0000),
        bytes: PAGE_2M,
    };
    assert_eq!(map.unmap(&host, 0..PAGE_2M, &host), refused);
    assert_eq!(map.map(&host, Gpa(0), PageSize::Size4K), refused.map(drop));
    assert_eq!(map.prepare(&host, Gpa(0)), refused.map(drop));
    assert_eq!(map.map_io(&host, bar), refused.map(drop));
    assert_eq!(map.dissolve(&host), 2 * PAGE_4K);
    assert_eq!(*host.quarantined.borrow(), [PAGE_4K; 2]);
    assert!(host.out.borrow().is_empty(), "the tables are freed");
    assert_eq!((map.dissolve(&host), map.quarantine(&host)), (0, 0));
}

#[test]
fn a_cpu_that_does_not_answer_leaves_memory_to_guest_and_devices() {
    let host = Host::default();
    let (map, devices) = mirrored(&host);
    map.map(&host, Gpa(0), PageSize::Size2M).unwrap();
    host.silent.set(true);
    let silent = Err(SharedError::NoAnswer(NoAnswer { cpu: 3 }));
    for range in [0..PAGE_2M, PAGE_4K..3 * PAGE_4K] {
        assert_eq!(map.unmap(&host, range, &host), silent);
        compare(&host, &map, &devices, PAGE_2M);
    }
    // Now the devices can't get it back.
    devices.refuse_maps_after(0, MirrorError::NoMemory);
    assert_eq!(map.unmap(&host, 0..PAGE_4K, &host), silent);
    assert!(map.has(&host, Gpa(0)));
    host.silent.set(false);
    let astray = Err(SharedError::Mirror(MirrorError::NoMemory));
    assert_eq!(map.unmap(&host, 0..PAGE_4K, &host), astray);
    // No device reaches more than it may, so the memory is free once they are gone.
    devices.0.lock().pages.clear();
    assert_eq!(map.dissolve(&host), 0);
    assert!(host.out.borrow().is_empty());
}

#[test]
fn memory_of_devices_that_do_not_stop_is_put_away() {
    let host = Host::default();
    let (map, _) = mirrored(&host);
    map.map(&host, Gpa(0), PageSize::Size4K).unwrap();
    map.map(&host, Gpa(PAGE_2M), PageSize::Size2M).unwrap();
    map.lend(&host, Gpa(2 * PAGE_2M), Hpa(0x7000), 1).unwrap();
    assert_eq!(map.quarantine(&host), PAGE_4K + PAGE_2M);
    assert_eq!(*host.quarantined.borrow(), [PAGE_4K, PAGE_2M]);
    assert!(host.out.borrow().is_empty());
    assert_eq!(map.holding(), Holding::default());
}

#[derive(Clone, Debug)]
enum Action {
    Map(u64, bool),
    Unmap(Range<u64>),
    RefuseMaps(u64),
    RefuseUnmaps(u64, bool),
    Silence,
    Mend,
}

/// Pages of 4 KiB that the actions are about.
const PAGES: u64 = 1536;

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..PAGES, any::<bool>()).prop_map(|(page, is_large)| Action::Map(page, is_large)),
        4 => (0..PAGES, 1..512_u64).prop_map(|(from, pages)| {
            let end = (from / 512 + 1) * 512;
            Action::Unmap(from * PAGE_4K..(from + pages).min(end) * PAGE_4K)
        }),
        1 => (0..3_u64).prop_map(Action::RefuseMaps),
        1 => (0..3_u64, any::<bool>()).prop_map(|(after, lost)| Action::RefuseUnmaps(after, lost)),
        1 => Just(Action::Silence),
        3 => Just(Action::Mend),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_fails_the_views_are_equal_and_no_frame_is_lost(
        actions in proptest::collection::vec(action(), 1..40),
    ) {
        let host = Host::default();
        let (map, devices) = mirrored(&host);
        for action in actions {
            match action {
                Action::Map(page, false) => {
                    _ = map.map(&host, Gpa(page * PAGE_4K), PageSize::Size4K);
                }
                Action::Map(page, true) => {
                    _ = map.map(&host, Gpa(page / 512 * PAGE_2M), PageSize::Size2M);
                }
                // A frame that devices reach must not change hands, which the host checks.
                Action::Unmap(range) => _ = map.unmap(&host, range, &host),
                Action::RefuseMaps(after) => {
                    devices.refuse_maps_after(after, MirrorError::NoMemory);
                }
                Action::RefuseUnmaps(after, is_lost) => {
                    let error = [MirrorError::NoMemory, MirrorError::NoAnswer][usize::from(is_lost)];
                    devices.refuse_unmaps_after(after, error);
                }
                Action::Silence => host.silent.set(true),
                Action::Mend => {
                    host.silent.set(false);
                    devices.refuse_nothing();
                }
            }
            if map.state.read().is_astray != Some(MirrorError::NoMemory) {
                compare(&host, &map, &devices, PAGES * PAGE_4K);
            }
        }
        let [small, large] = map.holding().pages;
        let is_lost = map.state.read().is_astray == Some(MirrorError::NoAnswer);
        if !is_lost {
            devices.0.lock().pages.clear();
        }
        let kept = map.dissolve(&host);
        let all = small * PAGE_4K + large * PAGE_2M;
        prop_assert_eq!(kept, if is_lost { all } else { 0 });
        prop_assert_eq!(host.quarantined.borrow().iter().sum::<u64>(), kept);
        prop_assert!(host.out.borrow().is_empty());
    }
}
