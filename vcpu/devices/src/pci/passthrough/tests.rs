//! Tests of a physical function as a guest sees it.

mod fake;
mod fuzz;
mod interrupts;

use alloc::vec;

use sync::Mutex;

use super::*;
use crate::Devices;
use crate::pci::{Interrupts, Piece};
use fake::{EXPRESS_AT, Fake, MEMORY, PENDING, POWER_AT, TABLE, VENDOR_AT, VITAL_DATA_AT};

const RAM: [Range<u64>; 2] = [0..0x8000_0000, 0x1_0000_0000..0x1_8000_0000];
/// The registers of device 1 in the memory-mapped configuration space.
const ECAM: u64 = 0xB000_0000;
const CONFIG: u64 = ECAM + (8 << 12);
/// Addresses that the guest gives to the memory of base address registers.
const HOMES: [(usize, u64); 4] = [
    (0, 0x2_0000_0000),
    (2, 0xC000_0000),
    (3, 0xC010_0000),
    (4, 0x4_0000_0000),
];
const COMMAND: u64 = 4;
const MEMORY_ON: u64 = 2;
const MASTER: u64 = 4;
const RESET: u64 = 1 << 15;
const NOW: Now = Now {
    monotonic_us: 0,
    unix_seconds: 0,
};

/// A guest that has the function as device 1.
struct Guest {
    devices: Devices,
    fake: Arc<Fake>,
    counts: Arc<Counts>,
}

impl Guest {
    fn new() -> Self {
        Self::with(Fake::new())
    }

    fn with(fake: Fake) -> Self {
        let fake = Arc::new(fake);
        let model = Passthrough::new(fake.clone());
        let counts = model.counts();
        let devices = Devices::new(RAM, vec![Arc::new(Mutex::new(model))]);
        // The memory-mapped configuration space.
        devices.output(0xCF8, 4, 0x8000_0060, Now::default);
        devices.output(0xCFC, 4, ECAM | 1, Now::default);
        Self {
            devices,
            fake,
            counts,
        }
    }

    fn read(&self, register: u64, size: u8) -> u64 {
        self.load(CONFIG + register, size)
    }

    fn write(&self, register: u64, size: u8, value: u64) -> Effect {
        self.store(CONFIG + register, size, value)
    }

    /// Loads; an address where nothing answers reads as all ones.
    fn load(&self, gpa: u64, size: u8) -> u64 {
        let read = self.devices.load(gpa, size, NOW);
        read.unwrap_or(open_bus(size))
    }

    fn store(&self, gpa: u64, size: u8, value: u64) -> Effect {
        let stored = self.devices.store(gpa, size, value, NOW);
        stored.unwrap_or(Effect::None)
    }

    /// Gives the function its addresses, and switches it on.
    fn switch_on(&self) {
        for (bar, gpa) in HOMES {
            self.place(bar, gpa);
        }
        self.write(COMMAND, 2, MEMORY_ON);
    }

    fn place(&self, bar: usize, gpa: u64) {
        let register = 0x10 + 4 * bar as u64;
        self.write(register, 4, gpa & 0xFFFF_FFFF);
        let (_, is_wide, ..) = MEMORY.iter().find(|(index, ..)| *index == bar).unwrap();
        if *is_wide {
            self.write(register + 4, 4, gpa >> 32);
        }
    }

    fn pieces(&self) -> Vec<Piece> {
        self.devices.pci().pieces().collect()
    }

    /// Returns offset and id of each capability.
    fn capabilities(&self) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        let mut at = self.read(0x34, 1);
        while at != 0 {
            all.push((at, self.read(at, 1)));
            at = self.read(at + 1, 1);
            assert!(all.len() < 48, "{all:x?}");
        }
        all
    }

    /// Returns the offset of a capability.
    fn capability(&self, id: u64) -> u64 {
        let all = self.capabilities();
        let found = all.iter().find(|(_, there)| *there == id);
        found.expect("it is shown").0
    }

    /// Does what the caller of [`Effect::Windows`] does.
    fn settle(&self, is_mapped: bool) {
        self.devices.pci().settle(|_| is_mapped);
    }
}

#[test]
fn a_guest_sees_the_functions_names_and_registers_of_its_own() {
    let guest = Guest::new();
    assert_eq!(guest.read(0, 4), 0x0010_1B36);
    assert_eq!(guest.read(8, 4), 0x0108_0202);
    assert_eq!(guest.read(0x2C, 4), 0x1100_1AF4);
    assert_eq!(guest.read(COMMAND, 2), 0);
    assert_eq!(guest.read(6, 2), 0x10, "there are capabilities");
    assert_eq!(guest.read(0xC, 4), 0, "one function, no self test");
    for register in [0x28, 0x30, 0x38] {
        guest.write(register, 4, u64::MAX);
        assert_eq!(guest.read(register, 4), 0, "{register:#x}");
    }
    guest.write(0x3C, 2, 0xFFFF);
    assert_eq!(guest.read(0x3C, 2), 0x00FF, "no pin");
    guest.write(COMMAND, 2, 0xFFFF);
    assert_eq!(guest.read(COMMAND, 2), 0x406);
    assert_eq!(guest.read(0x100, 4), 0xFFFF_FFFF, "nothing beyond 256");
}

#[test]
fn base_address_registers_keep_their_places_sizes_and_widths() {
    let guest = Guest::new();
    for register in (0x10..0x28).step_by(4) {
        guest.write(register, 4, u64::MAX);
    }
    let sizes = [0, 1, 2, 3, 4, 5].map(|bar| guest.read(0x10 + 4 * bar, 4));
    let expected = [
        0xFFFF_C004,
        0xFFFF_FFFF,
        0xFFFF_E000,
        0xFFFF_FF00,
        0xFFC0_000C,
        0xFFFF_FFFF,
    ];
    assert_eq!(sizes, expected);
}

#[test]
fn capabilities_that_reach_beyond_the_function_are_hidden() {
    let guest = Guest::new();
    let at = |at: u16| u64::from(at);
    let shown = [
        (at(POWER_AT), 0x01),
        (at(VITAL_DATA_AT), 0x03),
        (at(VENDOR_AT), 0x09),
        // Interrupts, where there is room.
        (0x60, 0x11),
        (at(EXPRESS_AT), 0x10),
    ];
    assert_eq!(guest.capabilities(), shown);
    for hidden in (0xAC..0x100).step_by(4) {
        assert_eq!(guest.read(hidden, 4), 0, "{hidden:#x}");
    }
}

#[test]
fn capabilities_that_lie_hurt_nobody() {
    for (id, at, byte) in [
        (0x09, 0xFC, 0xFF),
        (0x09, 0x50, 0),
        (0x09, 0x50, 1),
        (0x10, 0xE0, 2),
        (0x01, 0x3C, 0),
        (0x01, 0x41, 0),
        (0x03, 0xFF8, 0),
        (0x10, 0x48, 2),
    ] {
        let mut fake = Fake::new();
        fake.shape_mut().capabilities = [(0x01, 0x50), (id, at), (id, at)].into();
        if let Some(bytes) = fake.state().config.get_mut(usize::from(at) + 2) {
            *bytes = byte;
        }
        let guest = Guest::with(fake);
        for register in 0..0x100 {
            guest.read(register, 1);
        }
        assert!(guest.capabilities().len() <= 3, "{id:#x} {at:#x}");
    }
}

#[test]
fn memory_that_cannot_be_is_not_shown() {
    for (index, is_wide, range) in [
        (5, true, 0..0x1000),
        (6, false, 0..0x1000),
        (1, false, 0..0x1000),
        (2, false, 0..0x1800),
        (2, false, 0..8),
        (2, false, 0..0x1_0000_0000),
        (
            2,
            false,
            Range {
                start: 0x1000,
                end: 0,
            },
        ),
    ] {
        let mut fake = Fake::new();
        fake.shape_mut().memory.truncate(1);
        fake.shape_mut().memory.push(crate::pci::PhysicalBar {
            index,
            is_wide,
            is_prefetchable: false,
            range,
        });
        let guest = Guest::with(fake);
        for register in (0x18..0x28).step_by(4) {
            guest.write(register, 4, u64::MAX);
            assert_eq!(guest.read(register, 4), 0);
        }
    }
}

#[test]
fn decoding_is_virtual_and_bus_mastering_has_a_door_of_its_own() {
    let guest = Guest::new();
    let before = guest.fake.state().config.clone();
    guest.switch_on();
    let (_, home) = HOMES[1];
    guest.store(home + 8, 4, 7);
    assert_eq!(guest.load(home + 8, 4), 7);
    assert_eq!(guest.write(COMMAND, 2, MASTER), Effect::Windows);
    assert!(guest.fake.state().is_master);
    assert_eq!(guest.load(home + 8, 4), 0xFFFF_FFFF, "it does not answer");
    guest.store(home + 8, 4, 9);
    assert!(guest.pieces().iter().all(|piece| piece.gpa.is_none()));
    assert_eq!(guest.write(COMMAND, 2, MEMORY_ON), Effect::Windows);
    assert!(!guest.fake.state().is_master);
    assert_eq!(guest.load(home + 8, 4), 7, "it never noticed");
    assert_eq!(guest.fake.state().config, before);
}

#[test]
fn what_the_guest_reaches_by_itself_leaves_out_table_and_pending_bits() {
    let guest = Guest::new();
    let (_, _, first, _) = MEMORY[0];
    let (_, _, second, bytes) = MEMORY[1];
    let (_, _, last, large) = MEMORY[3];
    let pieces = |gpas: [Option<u64>; 3]| {
        let all = [(first, TABLE), (second, bytes), (last, large)];
        let all = all.into_iter().zip(gpas);
        all.map(|((hpa, bytes), gpa)| Piece {
            function: 1,
            hpa,
            bytes,
            gpa,
        })
        .collect::<Vec<_>>()
    };
    // The third one is smaller than a page: others may share its page.
    assert_eq!(guest.pieces(), pieces([None; 3]));
    guest.switch_on();
    let [one, two, _, three] = HOMES.map(|(_, gpa)| Some(gpa));
    assert_eq!(guest.pieces(), pieces([one, two, three]));
    // One moves, and one lies over the TD's memory.
    guest.place(2, 0xC800_0000);
    guest.place(4, 0x1_0000_0000);
    assert_eq!(guest.pieces(), pieces([one, Some(0xC800_0000), None]));
    assert_eq!(guest.write(0x18, 4, 0xC800_0000), Effect::None, "no move");
    assert_eq!(guest.write(0x18, 4, 0xC900_0000), Effect::Windows);
    assert_eq!(guest.write(0x1C, 4, 0xC000_0100), Effect::Windows);
}

#[test]
fn a_table_at_an_odd_place_takes_its_pages_and_no_more() {
    for (vectors, table, pending, expected) in [
        (
            9,
            (0, 0x1800),
            (0, 0x1900),
            vec![(0, 0, 0x1000), (0, 0x2000, 0x2000)],
        ),
        (512, (0, 0x1000), (0, 0x3000), vec![(0, 0, 0x1000)]),
        (
            9,
            (2, 0),
            (0, 0),
            vec![(0, 0x1000, 0x3000), (2, 0x1000, 0x1000)],
        ),
    ] {
        let fake = Fake::with(Interrupts::Msix {
            vectors,
            table,
            pending,
        });
        let model = Passthrough::new(Arc::new(fake));
        let direct = model.direct().into_iter().filter(|direct| direct.bar < 3);
        let direct: Vec<_> = direct
            .map(|direct| (direct.bar, direct.offset, direct.bytes))
            .filter(|(bar, ..)| *bar == 0 || table.0 == 2)
            .collect();
        assert_eq!(direct, expected);
    }
}

#[test]
fn other_registers_of_those_pages_are_accessed_width_for_width() {
    let guest = Guest::new();
    guest.switch_on();
    let (_, home) = HOMES[0];
    let beside = TABLE + 0x100;
    for size in [1, 2, 4, 8] {
        guest.store(home + beside, size, 0x1122_3344_5566_7788);
        let expected = 0x1122_3344_5566_7788 & open_bus(size);
        assert_eq!(guest.load(home + beside, size), expected);
        let place = Place {
            offset: beside,
            size,
        };
        let accesses = core::mem::take(&mut guest.fake.state().accesses);
        assert_eq!(accesses, [(0, place), (0, place)]);
    }
    // Across registers, the bus would split an access.
    for (offset, size) in [(1, 2), (2, 4), (4, 8)] {
        guest.store(home + beside + offset, size, 1);
        assert_eq!(guest.load(home + beside + offset, size), open_bus(size));
    }
    // Pending bits are read, and not written.
    guest.load(home + PENDING, 8);
    guest.store(home + PENDING, 8, u64::MAX);
    assert_eq!(guest.fake.state().accesses.len(), 1);
    assert_eq!(guest.counts.memory(), 9);
}

#[test]
fn vital_product_data_is_read_and_the_vendors_registers_are_live() {
    let guest = Guest::new();
    let at = u64::from(VITAL_DATA_AT);
    guest.write(at + 2, 2, 0x0124);
    assert_eq!(guest.read(at + 2, 2), 0x8124, "it has answered");
    assert_eq!(guest.read(at + 4, 4), 0x5000_0124);
    // A write of data is one more read.
    guest.write(at + 4, 4, 0xDEAD_BEEF);
    guest.write(at, 4, 0x8004_0000);
    assert_eq!(guest.read(at + 4, 4), 0x5000_0004);

    let vendor = u64::from(VENDOR_AT);
    assert_eq!(guest.read(vendor, 4) & 0xFF_00FF, 0x10_0009);
    guest.write(vendor + 4, 4, 0);
    for _ in 0..2 {
        let bytes: Vec<u64> = (0..4)
            .map(|byte| guest.read(vendor + 4 + byte, 1))
            .collect();
        let physical = guest.fake.state().config[usize::from(VENDOR_AT) + 4..][..4].to_vec();
        assert!(
            bytes
                .iter()
                .copied()
                .eq(physical.into_iter().map(u64::from))
        );
        guest.fake.state().config[usize::from(VENDOR_AT) + 5] = 0x77;
    }
    // Id and link are the guest's; the rest of the double word is the function's.
    assert_eq!(guest.read(vendor + 1, 1), 0x60, "the next that is shown");
}

#[test]
fn power_state_and_the_devices_control_are_virtual() {
    let guest = Guest::new();
    let power = u64::from(POWER_AT);
    assert_eq!(guest.read(power + 2, 2), 3, "no event wakes the host");
    guest.write(power + 4, 2, 0xFFFF);
    assert_eq!(guest.read(power + 4, 2), 0xB);
    let express = u64::from(EXPRESS_AT);
    assert_eq!(guest.read(express + 2, 2), 0x92, "no link, no port");
    assert_eq!(guest.read(express + 4, 4), 0x1000_8FE7);
    let control = 0x2F3F & 0x79F0;
    assert_eq!(guest.read(express + 8, 4), control);
    guest.write(express + 8, 4, 0xFFFF_0000 | 0x7FFF);
    assert_eq!(guest.read(express + 8, 4), control, "fixed");
    for link in (0xC..0x3C).step_by(4) {
        guest.write(express + link, 4, u64::MAX);
        assert_eq!(guest.read(express + link, 4), 0);
    }
}

#[test]
fn a_reset_waits_until_the_guest_has_lost_the_memory_and_reads_as_ones() {
    let guest = Guest::new();
    let express = u64::from(EXPRESS_AT);
    guest.switch_on();
    guest.write(COMMAND, 2, MEMORY_ON | MASTER);
    guest.write(0x3C, 1, 0xB);
    let (_, home) = HOMES[1];
    assert_eq!(guest.write(express + 8, 2, RESET), Effect::Windows);
    let is_gone = || {
        assert_eq!(guest.read(0, 4), 0xFFFF_FFFF);
        assert_eq!(guest.write(COMMAND, 2, MEMORY_ON | MASTER), Effect::None);
        assert_eq!(guest.write(express + 8, 2, RESET), Effect::None);
        assert_eq!(guest.load(home, 4), 0xFFFF_FFFF);
        guest.store(home, 4, 1);
    };
    is_gone();
    assert!(!guest.fake.state().is_master);
    guest.settle(true);
    assert_eq!(guest.fake.state().resets, 0, "it is still mapped");
    guest.settle(false);
    guest.settle(false);
    assert_eq!(guest.fake.state().resets, 1);
    is_gone();
    guest.fake.come_back();
    assert_eq!(guest.read(0, 4), 0x0010_1B36);
    assert_eq!(guest.read(COMMAND, 2), 0);
    assert_eq!(guest.read(0x18, 4), 0, "its addresses are gone");
    assert_eq!(guest.read(0x3C, 1), 0);
    assert_eq!(guest.read(express + 8, 2) & RESET, 0);
    guest.switch_on();
    assert_eq!(guest.load(home, 4), 0);
}

#[test]
fn a_function_that_is_lost_reads_as_ones_where_it_was() {
    let guest = Guest::new();
    guest.switch_on();
    guest.fake.state().is_away = true;
    for (_, home) in HOMES {
        guest.store(home, 4, 1);
        assert_eq!(guest.load(home, 4), 0xFFFF_FFFF);
    }
    guest.store(HOMES[0].1 + TABLE, 4, 1);
    assert_eq!(guest.write(COMMAND, 2, MASTER), Effect::None);
    assert_eq!(guest.read(0, 4), 0xFFFF_FFFF);
    guest.fake.come_back();
    assert_eq!(guest.read(COMMAND, 2), MEMORY_ON);
    assert_eq!(guest.load(HOMES[0].1 + TABLE, 4), 0);
}

#[test]
fn a_function_without_reset_shows_none() {
    let mut fake = Fake::new();
    fake.shape_mut().has_reset = false;
    let guest = Guest::with(fake);
    let express = u64::from(EXPRESS_AT);
    assert_eq!(guest.read(express + 4, 4), 0x8FE7);
    assert_eq!(guest.write(express + 8, 2, 0xFFFF), Effect::None);
    guest.settle(false);
    assert_eq!(guest.fake.state().resets, 0);
    assert_eq!(guest.read(express + 8, 2), 0x2F3F & 0x79F0);
}

#[test]
fn accesses_are_counted() {
    let guest = Guest::new();
    let before = guest.counts.config();
    guest.read(0, 4);
    guest.write(COMMAND, 2, MEMORY_ON);
    assert_eq!(guest.counts.config(), before + 2);
    guest.place(2, 0xC000_0000);
    guest.load(0xC000_0000, 4);
    guest.store(0xC000_0000, 4, 0);
    assert_eq!(guest.counts.memory(), 2);
    guest.counts.note_message();
    assert_eq!((guest.counts.messages(), guest.counts.refused()), (1, 0));
}
