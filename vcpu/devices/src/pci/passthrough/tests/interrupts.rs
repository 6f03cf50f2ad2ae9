//! Interrupts as the guest programs them.

use super::*;
use crate::pci::PhysicalBar;
use crate::{Message, Trigger};

const MSI: u64 = 0x05;
const MSIX: u64 = 0x11;
const ON: u64 = 1 << 15;
const ALL_MASKED: u64 = 1 << 14;
const ENTRY: u64 = 16;

fn fixed(vector: u8, destination: u8) -> Option<Message> {
    Some(Message {
        trigger: Trigger::Fixed,
        vector,
        destination,
        is_logical: false,
    })
}

impl Guest {
    fn table(&self) -> u64 {
        HOMES[0].1 + TABLE
    }

    /// Programs and unmasks an entry for vCPU 1.
    fn program(&self, vector: u64, interrupt: u64) {
        let entry = self.table() + vector * ENTRY;
        self.store(entry, 8, 0xFEE0_1000);
        self.store(entry + 8, 4, interrupt);
        self.store(entry + 12, 4, 0);
    }

    fn mask(&self, vector: u64, is_masked: bool) {
        let control = self.table() + vector * ENTRY + 12;
        self.store(control, 4, is_masked.into());
    }

    fn directed(&self, vector: usize) -> Option<Message> {
        self.fake.state().directed[vector]
    }
}

#[test]
fn the_guests_table_is_a_shadow_and_each_change_is_directed_once() {
    let guest = Guest::new();
    guest.switch_on();
    let at = guest.capability(MSIX);
    assert_eq!(guest.read(at + 2, 2), 8, "nine vectors, off");
    assert_eq!(guest.read(at + 4, 4), TABLE);
    assert_eq!(guest.read(at + 8, 4), PENDING);
    guest.program(3, 0x53);
    assert_eq!(guest.load(guest.table() + 3 * ENTRY, 8), 0xFEE0_1000);
    assert_eq!(guest.load(guest.table() + 3 * ENTRY + 8, 8), 0x53);
    assert_eq!(guest.fake.state().directions, 0, "MSI-X is off");
    guest.write(at + 2, 2, ON | ALL_MASKED);
    assert!(guest.fake.state().interrupts_on);
    assert_eq!(guest.directed(3), None);
    guest.write(at + 2, 2, ON);
    assert_eq!(guest.directed(3), fixed(0x53, 1));
    assert_eq!(guest.fake.state().directions, 1);
    // Masked, changed, unmasked.
    guest.mask(3, true);
    assert_eq!(guest.directed(3), None);
    guest.store(guest.table() + 3 * ENTRY + 8, 4, 0x54);
    assert_eq!(guest.fake.state().directions, 2);
    guest.mask(3, false);
    guest.mask(3, false);
    assert_eq!(guest.directed(3), fixed(0x54, 1));
    assert_eq!(guest.fake.state().directions, 3);
    // An entry that is no message sends none.
    guest.store(guest.table() + 3 * ENTRY, 8, 0x1000);
    assert_eq!(guest.directed(3), None);
    guest.write(at + 2, 2, 0);
    assert!(!guest.fake.state().interrupts_on);
}

#[test]
fn vectors_are_directed_before_the_function_may_interrupt() {
    let guest = Guest::new();
    guest.switch_on();
    let at = guest.capability(MSIX);
    for vector in 0..9 {
        guest.program(vector, 0x60 + vector);
    }
    guest.write(at + 2, 2, ON);
    for vector in 0..9 {
        assert_eq!(guest.directed(vector), fixed(0x60 + vector as u8, 1));
    }
    guest.write(at + 2, 2, 0);
    assert!(guest.fake.state().directed.iter().all(Option::is_none));
    assert!(!guest.fake.state().interrupts_on);
    // A reset forgets them.
    guest.write(at + 2, 2, ON);
    guest.write(u64::from(EXPRESS_AT) + 8, 2, RESET);
    guest.settle(false);
    guest.fake.come_back();
    guest.switch_on();
    assert_eq!(guest.load(guest.table() + 8, 8), 1 << 32, "masked");
    guest.write(at + 2, 2, ON);
    assert!(guest.fake.state().directed.iter().all(Option::is_none));
}

#[test]
fn a_vector_for_which_the_host_has_no_interrupt_is_silent_and_counted() {
    let guest = Guest::new();
    guest.fake.state().most = 2;
    guest.switch_on();
    let at = guest.capability(MSIX);
    guest.write(at + 2, 2, ON);
    for vector in 0..3 {
        guest.program(vector, 0x60 + vector);
    }
    assert_eq!(guest.directed(2), None);
    assert_eq!(guest.counts.refused(), 1);
    // Another gives its own up.
    guest.mask(0, true);
    guest.mask(2, true);
    guest.mask(2, false);
    assert_eq!(guest.directed(2), fixed(0x62, 1));
    assert_eq!(guest.counts.refused(), 1);
}

#[test]
fn accesses_that_touch_the_table_do_not_reach_the_function() {
    let guest = Guest::new();
    guest.switch_on();
    let end = guest.table() + 9 * ENTRY;
    for (gpa, size) in [
        (guest.table(), 1),
        (guest.table() + 2, 2),
        (guest.table() + 4, 8),
        (end - 1, 1),
    ] {
        assert_eq!(guest.load(gpa, size), open_bus(size));
        guest.store(gpa, size, u64::MAX);
    }
    // One that begins before, and ends in it.
    guest.store(guest.table() - 4, 8, u64::MAX);
    assert_eq!(guest.load(guest.table() - 4, 8), u64::MAX);
    assert_eq!(guest.load(guest.table(), 8), 0);
    assert_eq!(guest.fake.state().accesses, []);
    guest.store(end, 4, 1);
    assert_eq!(guest.fake.state().accesses.len(), 1);
}

#[test]
fn a_table_that_is_nowhere_is_not_shown() {
    for (vectors, table, pending) in [
        (0, (0, 0), (0, 0x1000)),
        (2049, (4, 0), (4, 0x10_0000)),
        (9, (1, 0), (0, 0)),
        (9, (0, 0x3F80), (0, 0)),
        (9, (0, 0x3004), (0, 0)),
        (9, (0, 0), (0, 0x4000)),
        (9, (0, u64::MAX - 7), (0, 0)),
    ] {
        let fake = Fake::with(Interrupts::Msix {
            vectors,
            table,
            pending,
        });
        let guest = Guest::with(fake);
        assert!(guest.capabilities().iter().all(|(_, id)| *id != MSIX));
    }
}

#[test]
fn the_vectors_of_msi_are_the_low_bits_of_its_data() {
    let guest = Guest::with(Fake::with(Interrupts::Msi(6)));
    let at = guest.capability(MSI);
    assert_eq!(guest.read(at + 2, 2), 0x84, "four of them, 64 bits");
    guest.write(at + 4, 4, 0xFEE0_2003);
    guest.write(at + 8, 4, 0);
    guest.write(at + 12, 2, 0x4F);
    assert_eq!(guest.fake.state().directions, 0);
    guest.write(at + 2, 2, 1);
    assert!(guest.fake.state().interrupts_on);
    assert_eq!(guest.directed(0), fixed(0x4F, 2));
    assert_eq!(guest.directed(1), None);
    guest.write(at + 2, 2, 2 << 4 | 1);
    for vector in 0..4 {
        assert_eq!(guest.directed(vector), fixed(0x4C + vector as u8, 2));
    }
    // More than it can have.
    guest.write(at + 2, 2, 7 << 4 | 1);
    assert_eq!(guest.directed(5), None);
    guest.write(at + 12, 2, 0x0D);
    assert!(guest.fake.state().directed.iter().all(Option::is_none));
    guest.write(at + 2, 2, 0);
    assert!(!guest.fake.state().interrupts_on);
}

#[test]
fn a_function_without_interrupts_has_no_capability_of_them() {
    for interrupts in [Interrupts::None, Interrupts::Msi(0), Interrupts::Msi(33)] {
        let guest = Guest::with(Fake::with(interrupts));
        let ids: Vec<_> = guest.capabilities().iter().map(|(_, id)| *id).collect();
        assert_eq!(ids, [0x01, 0x03, 0x09, 0x10]);
    }
}

#[test]
fn a_function_without_room_for_the_capability_has_its_table_kept_from_the_guest() {
    let mut fake = Fake::new();
    fake.shape_mut().capabilities = [(0x09, 0x40)].into();
    fake.state().config[0x42] = 0xC0;
    fake.shape_mut().memory.push(PhysicalBar {
        index: 5,
        is_wide: false,
        is_prefetchable: false,
        range: 0..0x1000,
    });
    let guest = Guest::with(fake);
    assert_eq!(guest.capabilities(), [(0x40, 0x09)]);
    guest.switch_on();
    guest.program(0, 0x41);
    assert_eq!(guest.load(guest.table(), 8), 0xFEE0_1000, "a shadow");
    assert_eq!(guest.fake.state().directions, 0);
}
