use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const ROOT: u64 = 0x10_0000;
/// Room for the whole of the tables in a test.
const ALL: u32 = 1 << 24;

/// Tables in memory, whose pages are handed out in order, and forbidden pages.
struct Fake {
    words: BTreeMap<u64, u64>,
    forbidden: Vec<Range<u64>>,
    next: u64,
}

impl Memory for Fake {
    fn read(&self, pa: u64) -> u64 {
        self.words.get(&pa).copied().unwrap_or(0)
    }

    fn forbidden(&self, pages: Range<u64>) -> Option<u64> {
        let overlaps = |f: &&Range<u64>| f.start < pages.end && pages.start < f.end;
        let first = self.forbidden.iter().filter(overlaps);
        first.map(|f| f.start.max(pages.start)).min()
    }
}

impl Fake {
    fn new(forbidden: &[Range<u64>]) -> Self {
        Self {
            words: BTreeMap::new(),
            forbidden: forbidden.to_vec(),
            next: ROOT + PAGE,
        }
    }

    /// Returns the table that the entry at `at` names, after making one with these flags if there is none.
    fn below(&mut self, at: u64, flags: u64) -> u64 {
        let next = self.next;
        let entry = self.words.entry(at).or_insert_with(|| next | flags);
        if *entry & ADDRESS == next {
            self.next += PAGE;
        }
        *entry & ADDRESS
    }

    fn context(&mut self, requester: u16) -> u64 {
        let table = self.below(ROOT + u64::from(requester >> 8) * 16, PRESENT);
        table + u64::from(requester & 0xFF) * 16
    }

    /// Maps a page of the level in four levels.
    fn map(&mut self, requester: u16, address: u64, pa: u64, level: u32) {
        let context = self.context(requester);
        let mut table = self.below(context, PRESENT);
        self.words.insert(context + 8, 2);
        for above in (level + 1..=4).rev() {
            let index = address >> (12 + 9 * (above - 1)) & 511;
            table = self.below(table + index * 8, READ_WRITE);
        }
        let index = address >> (12 + 9 * (level - 1)) & 511;
        let large = if level > 1 { LARGE } else { 0 };
        self.words
            .insert(table + index * 8, pa | large | READ_WRITE);
    }

    fn turn(&self, watch: &mut Watch, budget: u32) -> Vec<Reach> {
        let mut found = Vec::new();
        watch.turn(ROOT, budget, self, |reach| found.push(reach));
        found
    }
}

const PRIVATE: Range<u64> = 0x4000_5000..0x4000_6000;

#[test]
fn a_leaf_to_a_private_page_is_reported_once_until_it_changes() {
    let mut fake = Fake::new(&[PRIVATE]);
    fake.map(0x0100, 0x1000, 0x4000_4000, 1);
    fake.map(0x0208, 0x7000, 0x4000_5000, 1);
    let mut watch = Watch::default();
    let reach = Reach {
        requester: 0x0208,
        device_address: 0x7000,
        pa: 0x4000_5000,
    };
    assert_eq!(fake.turn(&mut watch, ALL), [reach]);
    assert_eq!(fake.turn(&mut watch, ALL), []);
    fake.map(0x0208, 0x7000, 0x4000_4000, 1);
    assert_eq!(fake.turn(&mut watch, ALL), []);
    let read_only = fake
        .words
        .values_mut()
        .find(|w| **w == 0x4000_4000 | READ_WRITE);
    *read_only.unwrap() = 0x4000_5000 | 1;
    assert_eq!(fake.turn(&mut watch, ALL).len(), 1);
}

#[test]
fn a_large_leaf_is_reported_with_the_page_in_it() {
    for level in [2, 3] {
        let mut fake = Fake::new(&[PRIVATE]);
        fake.map(0xFFFF, 0x80_0000_0000, 0x4000_0000, level);
        let reach = Reach {
            requester: 0xFFFF,
            device_address: 0x80_0000_5000,
            pa: 0x4000_5000,
        };
        assert_eq!(fake.turn(&mut Watch::default(), ALL), [reach]);
    }
}

#[test]
fn a_function_that_passes_the_unit_reaches_all() {
    let mut fake = Fake::new(&[PRIVATE]);
    let context = fake.context(0x00F8);
    fake.words.insert(context, 2 << 2 | PRESENT);
    let found = fake.turn(&mut Watch::default(), ALL);
    assert_eq!(found[0].pa, PRIVATE.start);
}

#[test]
fn a_table_in_a_private_page_is_reported_and_not_read() {
    let mut fake = Fake::new(&[PRIVATE]);
    fake.words.insert(ROOT, PRIVATE.start | PRESENT);
    assert_eq!(fake.turn(&mut Watch::default(), ALL).len(), 1);
    let mut fake = Fake::new(&[PRIVATE]);
    fake.map(0x0100, 0, 0, 1);
    let context = fake.context(0x0100);
    fake.words.insert(context, PRIVATE.start | PRESENT);
    assert_eq!(fake.turn(&mut Watch::default(), ALL).len(), 1);
}

#[test]
fn what_is_not_present_reaches_nothing() {
    let mut fake = Fake::new(&[PRIVATE]);
    fake.map(0x0100, 0x7000, PRIVATE.start, 1);
    let context = fake.context(0x0100);
    *fake.words.get_mut(&context).unwrap() &= !PRESENT;
    assert_eq!(fake.turn(&mut Watch::default(), ALL), []);
}

#[test]
fn tables_that_lead_back_to_themselves_end() {
    let mut fake = Fake::new(&[PRIVATE]);
    let context = fake.context(0x0100);
    fake.words.insert(context, 0x20_0000 | PRESENT);
    fake.words.insert(context + 8, 3);
    for index in 0..512 {
        fake.words
            .insert(0x20_0000 + index * 8, 0x20_0000 | READ_WRITE);
    }
    assert_eq!(fake.turn(&mut Watch::default(), 100_000), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However short the turns are, they find each leaf, and no turn is longer than its budget.
    #[test]
    fn turns_find_what_a_whole_pass_finds(
        maps in prop::collection::vec((any::<u16>(), 0u64..1 << 36, 0u64..64, 1u32..4), 1..12),
        forbidden in prop::collection::vec(0u64..64, 0..5),
        budget in 20u32..5000,
    ) {
        let forbidden: Vec<_> = forbidden
            .iter()
            .map(|page| (1 << 40) + page * PAGE..(1 << 40) + (page + 1) * PAGE)
            .collect();
        let mut fake = Fake::new(&forbidden);
        for (requester, page, target, level) in maps {
            let size = PAGE << (9 * (level - 1));
            let address = (page * PAGE) & !(size - 1);
            let pa = ((1 << 40) + target * PAGE) & !(size - 1);
            fake.map(requester, address, pa, level);
        }
        let whole = fake.turn(&mut Watch::default(), ALL);
        let mut watch = Watch::default();
        let mut found = Vec::new();
        // Each turn reads at least one entry; the number of entries limits the number of turns.
        for _ in 0..40_000 / budget + 100 {
            found.extend(fake.turn(&mut watch, budget));
        }
        let key = |reach: &Reach| (reach.requester, reach.device_address, reach.pa);
        found.sort_by_key(key);
        let mut whole = whole;
        whole.sort_by_key(key);
        prop_assert_eq!(found, whole);
    }
}
