//! Domains: any sequence of map, unmap, flush, attach, detach, access, queue error and lack of memory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use stub_vtd::{Machine, UnitShape};
use vtd::{Access, Domain, Error, Function, Iommu, LIMIT_US, Wait};

use super::{at, nothing_wrong, start};

const PAGE: u64 = 4096;
const LARGE: u64 = 512;

#[test]
fn a_large_page_is_used_and_split() {
    let (machine, iommu) = start(&[UnitShape::new(0xFED9_0000)]);
    let device = at(1, 0, 0);
    let mut domain = iommu.domain().expect("a domain");
    let before = machine.taken_frames();
    domain
        .map(1 << 30, 2 << 30, 1 << 30, Access::Read)
        .expect("mapped");
    // Two tables lead to a page of 1 GiB.
    assert_eq!(machine.taken_frames(), before + 1);
    iommu.attach(&mut domain, device).expect("attached");
    assert_eq!(
        machine.dma(device, (1 << 30) + 5 * PAGE, false),
        Ok((2 << 30) + 5 * PAGE)
    );
    domain.unmap((1 << 30) + 5 * PAGE, PAGE).expect("unmapped");
    iommu.flush(&mut domain).expect("flushed");
    assert_eq!(machine.dma(device, (1 << 30) + 5 * PAGE, false), Err(6));
    assert_eq!(
        machine.dma(device, (1 << 30) + 6 * PAGE, false),
        Ok((2 << 30) + 6 * PAGE)
    );
    assert_eq!(machine.dma(device, (2 << 30) - 1, false), Ok((3 << 30) - 1));
    assert_eq!(domain.mapped_bytes(), (1 << 30) - PAGE);
    nothing_wrong(&machine);
}

#[test]
fn what_was_unmapped_is_reachable_until_the_flush_and_not_after() {
    let (machine, iommu) = start(&[UnitShape::like_qemu(0xFED9_0000)]);
    let device = at(1, 0, 0);
    let mut domain = iommu.domain().expect("a domain");
    domain
        .map(0x1000, 0x5000, PAGE, Access::ReadWrite)
        .expect("mapped");
    iommu.attach(&mut domain, device).expect("attached");
    assert_eq!(machine.dma(device, 0x1000, true), Ok(0x5000));
    domain.unmap(0x1000, PAGE).expect("unmapped");
    // This is why a flush comes first: the unit has it in its cache.
    assert_eq!(machine.dma(device, 0x1000, true), Ok(0x5000));
    iommu.flush(&mut domain).expect("flushed");
    assert_eq!(machine.dma(device, 0x1000, true), Err(5));
    nothing_wrong(&machine);
}

#[test]
fn a_unit_that_stops_answering_fails_the_flush_and_is_not_asked_again() {
    let base = 0xFED9_0000;
    let (machine, iommu) = start(&[UnitShape::new(base)]);
    let device = at(1, 0, 0);
    let mut domain = iommu.domain().expect("a domain");
    domain
        .map(0x1000, 0x5000, PAGE, Access::Read)
        .expect("mapped");
    iommu.attach(&mut domain, device).expect("attached");
    domain.unmap(0x1000, PAGE).expect("unmapped");
    machine.silence_queue(0);
    let silent = Error::NoAnswer(base, Wait::Invalidation);
    let start = machine.now();
    assert_eq!(iommu.flush(&mut domain), Err(silent.clone()));
    assert!(machine.now() < start + 2 * LIMIT_US);
    let start = machine.now();
    assert_eq!(iommu.flush(&mut domain), Err(silent.clone()));
    assert_eq!(iommu.detach(&mut domain, device), Err(silent.clone()));
    assert_eq!(iommu.attach(&mut domain, at(2, 0, 0)), Err(silent.clone()));
    assert_eq!(machine.now(), start, "nobody waits for it again");
    assert!(!iommu.blocks_all() && iommu.problems() == [silent.to_string()]);
    // Its tables are never freed: the unit may read them.
    assert!(iommu.end(domain).is_err());
    nothing_wrong(&machine);
}

#[test]
fn a_queue_that_is_refused_once_is_started_again_and_twice_is_the_end() {
    let (machine, iommu) = start(&[UnitShape::new(0xFED9_0000)]);
    let mut domain = iommu.domain().expect("a domain");
    machine.refuse(0, 1);
    iommu.attach(&mut domain, at(1, 0, 0)).expect("attached");
    machine.refuse(0, 2);
    let refused = iommu.detach(&mut domain, at(1, 0, 0));
    assert_eq!(refused, Err(Error::Queue(0xFED9_0000)));
    nothing_wrong(&machine);
}

#[test]
fn ranges_that_can_t_be_mapped_are_refused() {
    let (_machine, iommu) = start(&[UnitShape::like_qemu(0xFED9_0000)]);
    let mut domain = iommu.domain().expect("a domain");
    for (iova, pa, bytes) in [
        (0, 0, 0),
        (1, 0, PAGE),
        (0, 1, PAGE),
        (0, 0, PAGE + 1),
        (u64::MAX - PAGE + 1, 0, PAGE),
        (1 << 48, 0, PAGE),
        ((1 << 48) - PAGE, 0, 2 * PAGE),
        (0, 1 << 46, PAGE),
        (0, u64::MAX - PAGE + 1, 2 * PAGE),
    ] {
        let refused = domain.map(iova, pa, bytes, Access::Read);
        assert!(
            matches!(refused, Err(Error::Range(..))),
            "{iova:#x} {pa:#x}"
        );
    }
    domain
        .map((1 << 48) - PAGE, (1 << 46) - PAGE, PAGE, Access::Read)
        .expect("the last page");
    assert_eq!(domain.unmap(0, PAGE), Err(Error::NotMapped(0)));
    assert_eq!(domain.translate(1 << 50), None);
}

#[test]
fn domain_ids_end_and_come_back() {
    let (_machine, iommu) = start(&[UnitShape {
        domain_bits: 4,
        ..UnitShape::new(0xFED9_0000)
    }]);
    let mut domains: Vec<Domain<Machine>> =
        (0..15).map(|_| iommu.domain().expect("an id")).collect();
    assert!(matches!(iommu.domain(), Err(Error::NoDomainId)));
    assert!(domains.iter().all(|domain| domain.id() != 0));
    assert!(iommu.end(domains.swap_remove(7)).is_ok());
    assert!(iommu.domain().is_ok());
}

#[test]
fn a_function_has_one_domain() {
    let (_machine, iommu) = start(&[UnitShape::new(0xFED9_0000)]);
    let (mut one, mut other) = (iommu.domain().unwrap(), iommu.domain().unwrap());
    let device = at(1, 0, 0);
    iommu.attach(&mut one, device).expect("attached");
    for domain in [&mut one, &mut other] {
        let refused = iommu.attach(domain, device);
        assert_eq!(refused, Err(Error::Attached(device)));
    }
    let refused = iommu.detach(&mut other, device);
    assert_eq!(refused, Err(Error::NotAttached(device)));
    let Err(one) = iommu.end(one) else {
        panic!("the domain has a function");
    };
    assert_eq!(one.functions().collect::<Vec<_>>(), [device]);
}

#[test]
fn reserved_memory_is_kept_at_its_own_addresses() {
    let (machine, iommu) = start(&[UnitShape::new(0xFED9_0000)]);
    let device = at(0, 0x14, 0);
    let ranges = [(0x7B80_0000, 0x7B88_0000), (0x7C00_0000, 0x7C00_1000)];
    iommu.keep(device, &ranges).expect("kept");
    assert_eq!(machine.dma(device, 0x7B87_FFFF, true), Ok(0x7B87_FFFF));
    assert_eq!(machine.dma(device, 0x7C00_0000, true), Ok(0x7C00_0000));
    assert!(machine.dma(device, 0x7B88_0000, true).is_err());
    assert!(machine.dma(at(0, 0x15, 0), 0x7B80_0000, true).is_err());
    // Ranges that overlap are refused, and the function stays blocked.
    let (other, taken) = (at(0, 0x16, 0), machine.taken_frames());
    let overlapping = [(0x1000, 0x3000), (0x2000, 0x4000)];
    assert_eq!(iommu.keep(other, &overlapping), Err(Error::Mapped(0x2000)));
    assert!(machine.dma(other, 0x1000, true).is_err());
    assert_eq!(machine.taken_frames(), taken);
    nothing_wrong(&machine);
}

/// An operation on domains. Pages are numbers of a small space with room for large pages.
#[derive(Clone, Debug)]
enum Action {
    Map {
        domain: usize,
        page: u64,
        pa: u64,
        pages: u64,
        writes: bool,
    },
    Unmap {
        domain: usize,
        page: u64,
        pages: u64,
    },
    Flush(usize),
    Attach(usize, usize),
    Detach(usize, usize),
    Access {
        device: usize,
        page: u64,
        writes: bool,
    },
    Refuse(usize),
    Starve(usize),
    Serve,
}

/// Number of pages of device addresses that are used.
const SPACE: u64 = 3 * LARGE;
const DEVICES: [Function; 3] = [at(1, 0, 0), at(8, 0, 1), at(8, 0, 2)];

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), 2u64..20, Just(LARGE), 1..SPACE]
}

fn page() -> impl Strategy<Value = u64> {
    prop_oneof![0..SPACE, (0u64..3).prop_map(|large| large * LARGE)]
}

fn action() -> impl Strategy<Value = Action> {
    let domain = 0usize..2;
    let device = 0usize..DEVICES.len();
    prop_oneof![
        4 => (domain.clone(), page(), page(), pages(), any::<bool>())
            .prop_map(|(domain, page, pa, pages, writes)| Action::Map { domain, page, pa, pages, writes }),
        4 => (domain.clone(), page(), pages()).prop_map(|(domain, page, pages)| Action::Unmap { domain, page, pages }),
        3 => domain.clone().prop_map(Action::Flush),
        2 => (domain.clone(), device.clone()).prop_map(|(domain, device)| Action::Attach(domain, device)),
        1 => (domain, device.clone()).prop_map(|(domain, device)| Action::Detach(domain, device)),
        8 => (device, page(), any::<bool>()).prop_map(|(device, page, writes)| Action::Access { device, page, writes }),
        1 => (0usize..2).prop_map(Action::Refuse),
        1 => (0usize..3).prop_map(Action::Starve),
        1 => Just(Action::Serve),
    ]
}

/// The target of a device address, and its permission to write.
type Target = (u64, bool);

/// The expected state of one domain.
#[derive(Default)]
struct Shadow {
    now: BTreeMap<u64, Target>,
    /// The pages mapped since the last flush, which may still be cached.
    earlier: BTreeMap<u64, BTreeSet<Target>>,
    /// Pages mapped since the last flush, which a unit may not know.
    fresh: BTreeSet<u64>,
    devices: BTreeSet<usize>,
}

impl Shadow {
    fn range(&self, page: u64, pages: u64) -> usize {
        self.now.range(page..page + pages).count()
    }

    fn remove(&mut self, page: u64) {
        if let Some(target) = self.now.remove(&page) {
            self.earlier.entry(page).or_default().insert(target);
        }
    }

    fn flushed(&mut self) {
        self.earlier.clear();
        self.fresh.clear();
    }

    /// Returns true if an access of the page may reach this.
    fn allows(&self, page: u64, writes: bool, reached: Result<u64, u8>) -> bool {
        let now = self.now.get(&page);
        let mut possible = now
            .into_iter()
            .chain(self.earlier.get(&page).into_iter().flatten());
        match reached {
            Ok(pa) => possible.any(|target| target.0 == pa && (target.1 || !writes)),
            Err(_) => {
                let blocked_now = now.is_none_or(|target| writes && !target.1);
                let was_other = self
                    .earlier
                    .get(&page)
                    .is_some_and(|earlier| earlier.iter().any(|target| writes && !target.1));
                blocked_now || was_other || self.fresh.contains(&page)
            }
        }
    }
}

fn shapes(kind: usize) -> [UnitShape; 2] {
    let one = UnitShape {
        sources: 0x100..=0x107,
        ..UnitShape::like_qemu(0xFED9_0000)
    };
    let other = UnitShape::new(0xFED9_2000);
    match kind {
        0 => [one, other],
        1 => [
            UnitShape {
                caches_absent: true,
                ..one
            },
            UnitShape {
                buffers: true,
                is_coherent: false,
                ..other
            },
        ],
        _ => [
            UnitShape {
                page_selective: None,
                highest_leaf: 1,
                ..one
            },
            UnitShape {
                caches_absent: true,
                page_selective: Some(0),
                ..other
            },
        ],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens, a device reaches what its domain maps, or mapped since the last flush, and nothing else.
    #[test]
    fn devices_reach_what_is_mapped(kind in 0usize..3, actions in prop::collection::vec(action(), 1..120)) {
        let (machine, iommu) = start(&shapes(kind));
        let mut domains = [iommu.domain().unwrap(), iommu.domain().unwrap()];
        let mut shadows = [Shadow::default(), Shadow::default()];
        let start_us = machine.now();
        for action in &actions {
            step(&machine, &iommu, (&mut domains, &mut shadows), action)?;
            machine.limit_frames(usize::MAX / 2);
        }
        // Everything can be given back. Context tables stay the units'.
        for (domain, shadow) in domains.into_iter().zip(&shadows) {
            let mut domain = domain;
            prop_assert_eq!(domain.mapped_bytes(), shadow.now.len() as u64 * PAGE);
            for device in &shadow.devices {
                iommu.detach(&mut domain, DEVICES[*device]).unwrap();
                prop_assert!(machine.dma(DEVICES[*device], 0, false).is_err());
            }
            prop_assert!(iommu.end(domain).is_ok());
        }
        // Interrupt table; for each unit its root, its queue with status, at most two context tables.
        prop_assert!(machine.taken_frames() <= 16 + 2 * 3 + 2 * 2);
        prop_assert!(machine.now() < start_us + LIMIT_US, "nothing was waited for in vain");
        prop_assert_eq!(machine.violations(), [""; 0]);
    }
}

fn step(
    machine: &Machine,
    iommu: &Iommu<Machine>,
    (domains, shadows): (&mut [Domain<Machine>; 2], &mut [Shadow; 2]),
    action: &Action,
) -> Result<(), TestCaseError> {
    match *action {
        Action::Map {
            domain,
            page,
            pa,
            pages,
            writes,
        } => {
            let access = if writes {
                Access::ReadWrite
            } else {
                Access::Read
            };
            let shadow = &mut shadows[domain];
            let outcome = domains[domain].map(page * PAGE, pa * PAGE, pages * PAGE, access);
            let is_free = shadow.range(page, pages) == 0;
            prop_assert_eq!(outcome.is_ok(), is_free, "{:?}", outcome);
            if is_free {
                for i in 0..pages {
                    shadow.now.insert(page + i, ((pa + i) * PAGE, writes));
                    shadow.fresh.insert(page + i);
                }
            }
        }
        Action::Unmap {
            domain,
            page,
            pages,
        } => {
            let shadow = &mut shadows[domain];
            let outcome = domains[domain].unmap(page * PAGE, pages * PAGE);
            let is_whole = shadow.range(page, pages) as u64 == pages;
            prop_assert_eq!(outcome.is_ok(), is_whole, "{:?}", outcome);
            if is_whole {
                (page..page + pages).for_each(|page| shadow.remove(page));
            }
        }
        Action::Flush(domain) => {
            prop_assert_eq!(iommu.flush(&mut domains[domain]), Ok(()));
            shadows[domain].flushed();
        }
        Action::Attach(domain, device) => {
            let outcome = iommu.attach(&mut domains[domain], DEVICES[device]);
            let is_free = shadows
                .iter()
                .all(|shadow| !shadow.devices.contains(&device));
            prop_assert_eq!(outcome.is_ok(), is_free);
            if is_free {
                shadows[domain].devices.insert(device);
            }
        }
        Action::Detach(domain, device) => {
            let outcome = iommu.detach(&mut domains[domain], DEVICES[device]);
            prop_assert_eq!(outcome.is_ok(), shadows[domain].devices.remove(&device));
        }
        Action::Access {
            device,
            page,
            writes,
        } => {
            let reached = machine.dma(DEVICES[device], page * PAGE, writes);
            let owner = shadows
                .iter()
                .find(|shadow| shadow.devices.contains(&device));
            let is_right = match owner {
                Some(shadow) => shadow.allows(page, writes, reached),
                None => reached.is_err(),
            };
            prop_assert!(is_right, "page {} reached {:x?}", page, reached);
        }
        Action::Refuse(unit) => machine.refuse(unit, 1),
        Action::Starve(left) => {
            // A mapping that lacks memory leaves nothing behind.
            machine.limit_frames(left);
            let far = 1 << 40;
            match domains[0].map(far, 0, LARGE * PAGE * 2 + PAGE, Access::Read) {
                Ok(()) => domains[0].unmap(far, LARGE * PAGE * 2 + PAGE).unwrap(),
                Err(error) => prop_assert_eq!(error, Error::NoMemory),
            }
            prop_assert_eq!(domains[0].translate(far), None);
        }
        Action::Serve => iommu.serve(&mut |_| {}),
    }
    Ok(())
}
