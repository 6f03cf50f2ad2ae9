//! The tables as a processor walks them, checked against the owners of the pages.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const RAM: u64 = 5 * GIB;
/// Two regions in different GiB.
const FIRST: u64 = 3 * REGION;
const SECOND: u64 = 4 * GIB + 7 * REGION;

impl Nested {
    /// Walks to `pa` as a processor does, and sets the accessed bit.
    fn walk(&self, pa: u64) -> Option<u64> {
        let directory = &self.directories[(pa / GIB) as usize];
        assert_eq!(
            self.root.0[(pa / GIB) as usize].load(Ordering::SeqCst),
            directory.link()
        );
        let slot = self.slot((pa / REGION) as usize);
        let entry = slot.load(Ordering::SeqCst);
        if entry & LARGE != 0 {
            slot.fetch_or(ACCESSED, Ordering::SeqCst);
            return Some((entry & !0xFFF) + pa % REGION);
        }
        let table = self
            .spares
            .iter()
            .find(|spare| entry == spare.table.link())?
            .table;
        let entry = entry_of(table, pa);
        let value = entry.load(Ordering::SeqCst);
        (value != 0).then(|| {
            entry.fetch_or(ACCESSED, Ordering::SeqCst);
            (value & !0xFFF) + pa % PAGE
        })
    }

    fn reaches(&self, pa: u64) -> bool {
        let found = self.walk(pa);
        assert!(
            found.is_none_or(|found| found == pa),
            "{pa:#x} is at {found:x?}"
        );
        let fixed = self.regions.get((pa / REGION) as usize) == Some(&Region::Fixed);
        assert!(
            fixed || self.view().maps(pa) == found.is_some(),
            "{pa:#x} is at {found:x?}"
        );
        found.is_some()
    }
}

fn page(pa: u64) -> Range<u64> {
    pa..pa + PAGE
}

#[test]
fn hidden_pages_stay_hidden_and_their_neighbours_do_not() {
    let mut nested = Nested::new(RAM, 0);
    nested.hide(0x7C00_0000, 32 << 20);
    nested.hide(0xFEE0_0000, PAGE);
    assert_eq!(nested.walk(0x7C00_0000), None);
    assert_eq!(nested.walk(0x7DFF_F000), None);
    assert!(nested.reaches(0x7E00_0000));
    for pa in [0x7C00_0000, 0xFEE0_0000, 0xFEE0_1000] {
        assert_eq!(nested.fault(pa, |_| false), Fault::Foreign);
    }
    assert_eq!(nested.fault(6 * GIB, |_| false), Fault::Foreign);
}

#[test]
fn device_memory_is_no_td_s_and_stays_mapped() {
    let mut nested = Nested::new(RAM, 1);
    let _ = nested.close(page(FIRST));
    let view = nested.view();
    // Between the parts of RAM, and above it.
    for pa in [0xC000_0000, 0xFE80_4000, 6 * GIB, 1 << 45] {
        assert!(view.maps(pa), "{pa:#x}");
    }
    assert!(!view.maps(FIRST));
}

#[test]
fn a_page_is_blocked_and_unblocked() {
    let mut nested = Nested::new(RAM, 1);
    let _ = nested.close(page(FIRST));
    assert!(!nested.reaches(FIRST) && nested.reaches(FIRST + PAGE));
    assert_eq!(nested.fault(FIRST, |pa| pa == FIRST), Fault::Private);
    nested.open(page(FIRST));
    assert!(nested.reaches(FIRST));
    assert_eq!(nested.regions[3], Region::Open);
}

#[test]
fn only_used_mappings_need_a_flush() {
    let mut nested = Nested::new(RAM, 2);
    assert!(!nested.close(page(FIRST)));
    assert!(!nested.close(page(FIRST + PAGE)));
    assert!(nested.reaches(FIRST + 2 * PAGE) && nested.reaches(FIRST + 3 * PAGE));
    assert!(nested.close(page(FIRST + 2 * PAGE)));
    // That flush has covered this page, too.
    assert!(!nested.close(page(FIRST + 3 * PAGE)));
    assert!(nested.reaches(SECOND));
    assert!(nested.close(SECOND..SECOND + REGION));
}

#[test]
fn without_a_table_a_region_is_blocked_and_looked_up_again() {
    let mut nested = Nested::new(RAM, 1);
    let _ = nested.close(page(FIRST));
    let _ = nested.close(page(SECOND));
    let is_private = |pa| pa == FIRST || pa == SECOND;
    assert!(!nested.reaches(SECOND + PAGE));
    assert_eq!(nested.fault(SECOND + PAGE, is_private), Fault::NoTable);
    let tables = nested.retire_some();
    // The table is not free before every processor has flushed.
    assert!(!nested.reaches(FIRST + PAGE));
    assert_eq!(nested.fault(SECOND + PAGE, is_private), Fault::NoTable);
    nested.release(tables);
    assert_eq!(nested.fault(SECOND + PAGE, is_private), Fault::Mapped);
    assert!(nested.reaches(SECOND + PAGE) && !nested.reaches(SECOND));
    // The use of the region before it was closed is unknown.
    assert!(nested.close(page(SECOND + PAGE)));
    assert!(nested.close(page(FIRST + PAGE)));
}

#[test]
fn a_region_returned_to_the_host_needs_no_table() {
    let mut nested = Nested::new(RAM, 1);
    let _ = nested.close(FIRST..FIRST + REGION);
    assert_eq!(nested.fault(FIRST, |_| false), Fault::Mapped);
    assert_eq!(nested.regions[3], Region::Open);
    assert_eq!(nested.free.len(), 1);
}

#[test]
fn a_range_is_split_at_regions() {
    let mut nested = Nested::new(RAM, 4);
    let range = FIRST - PAGE..FIRST + REGION + PAGE;
    let _ = nested.close(range.clone());
    assert!(nested.reaches(range.start - PAGE) && nested.reaches(range.end));
    for pa in [range.start, FIRST, FIRST + REGION - PAGE, range.end - PAGE] {
        assert!(!nested.reaches(pa));
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Take { region: u64, page: u64, whole: bool },
    Return { region: u64, page: u64, whole: bool },
    Touch { region: u64, page: u64 },
    Recycle,
}

fn action() -> impl Strategy<Value = Action> {
    let place = || (0..4u64, prop_oneof![0..6u64, Just(511)]);
    prop_oneof![
        4 => (place(), prop::bool::weighted(0.2)).prop_map(|((region, page), whole)| Action::Take { region, page, whole }),
        4 => (place(), prop::bool::weighted(0.2)).prop_map(|((region, page), whole)| Action::Return { region, page, whole }),
        6 => place().prop_map(|(region, page)| Action::Touch { region, page }),
        1 => Just(Action::Recycle),
    ]
}

proptest! {
    #[test]
    fn a_private_page_is_never_reached_and_any_other_can_be(actions in vec(action(), 1..200), spares in 0..4u16) {
        let mut nested = Nested::new(RAM, spares.max(1));
        let mut private = BTreeSet::new();
        // Translations in a TLB from before the last flush.
        let mut tlb = BTreeSet::new();
        let pages = |region: u64, page: u64, whole: bool| {
            let start = FIRST + region * REGION;
            if whole { start..start + REGION } else { start + page * PAGE..start + (page + 1) * PAGE }
        };
        for action in actions {
            match action {
                Action::Take { region, page, whole } => {
                    let range = pages(region, page, whole);
                    if range.clone().step_by(PAGE as usize).any(|pa| private.contains(&pa)) {
                        continue;
                    }
                    private.extend(range.clone().step_by(PAGE as usize));
                    if nested.close(range) {
                        tlb.clear();
                    }
                    prop_assert!(tlb.is_disjoint(&private));
                }
                Action::Return { region, page, whole } => {
                    let range = pages(region, page, whole);
                    if range.clone().step_by(PAGE as usize).any(|pa| !private.contains(&pa)) {
                        continue;
                    }
                    private.retain(|pa| !range.contains(pa));
                    nested.open(range);
                }
                Action::Touch { region, page } => {
                    let pa = pages(region, page, false).start;
                    if !nested.reaches(pa) {
                        let mut fault = nested.fault(pa, |pa| private.contains(&pa));
                        if fault == Fault::NoTable {
                            let tables = nested.retire_some();
                            tlb.clear();
                            nested.release(tables);
                            fault = nested.fault(pa, |pa| private.contains(&pa));
                        }
                        let expected = if private.contains(&pa) { Fault::Private } else { Fault::Mapped };
                        prop_assert_eq!(fault, expected);
                    }
                    prop_assert_eq!(nested.reaches(pa), !private.contains(&pa));
                    if !private.contains(&pa) {
                        tlb.insert(pa);
                    }
                }
                Action::Recycle => {
                    let tables = nested.retire_some();
                    tlb.clear();
                    nested.release(tables);
                }
            }
            for pa in &private {
                prop_assert!(!nested.reaches(*pa));
            }
            let linked = nested.spares.iter().filter(|spare| spare.region.is_some()).count();
            prop_assert_eq!(linked + nested.free.len() + nested.retired.len(), nested.spares.len());
        }
    }
}
