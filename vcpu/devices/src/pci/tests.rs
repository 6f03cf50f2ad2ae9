//! Tests of the bus as a guest sees it: the bridges, a card with memory and interrupts, and any access at all.

use alloc::vec;

use proptest::prelude::*;

use super::*;
use crate::{Devices, Memory, Message, Page, Trigger, Unshared};

const ADDRESS: u16 = 0xCF8;
const DATA: u16 = 0xCFC;
const ENABLE: u32 = 1 << 31;
/// Functions by their number on the bus.
const HOST: u32 = 0;
const CARD: u32 = 1 << 3;
const ISA: u32 = 0xF8;
/// Memory of the TD, and of the card's base address registers 0 and 2.
const RAM: [Range<u64>; 2] = [0..0x8000_0000, 0x1_0000_0000..0x1_8000_0000];
const TABLE: u64 = 0xC000_0000;
const CARD_MEMORY: u64 = 0x2_0000_0000;
const CARD_BYTES: u64 = 1 << 16;
/// COMMAND, and two of its bits.
const COMMAND: u16 = 4;
const MEMORY_ON: u64 = 2;
const MASTER: u64 = 4;

/// Offset of the card's doorbells in its second memory.
const DOORBELLS: u64 = 0x800;

/// A function with interrupts in its first memory, and a register in the second that raises the interrupt whose number
/// is written.
#[derive(Debug)]
struct Card {
    config: Config,
    msix: Msix,
    last: u64,
    /// Number of times that it took news. It raises its first interrupt for them.
    news: u32,
    /// Behind the register.
    doorbells: Doorbells,
}

impl Card {
    fn new() -> Self {
        let identity = Identity {
            vendor: 0x1AF4,
            device: 0x1041,
            class: 0x02_0000,
            revision: 1,
            subsystem: 0x40_1AF4,
        };
        let config = Config::of(identity)
            .with_memory(0, Msix::BYTES, false)
            .with_memory(2, CARD_BYTES, true);
        let (config, msix) = Msix::add_to(config, 0, 4);
        Self {
            config,
            msix,
            last: 0,
            news: 0,
            doorbells: Doorbells::new(2, DOORBELLS, 4),
        }
    }
}

impl Function for Card {
    fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    fn configured(&mut self, _: Range<usize>) -> Effect {
        self.msix.configured(&self.config)
    }

    fn load(&mut self, bar: usize, place: Place, _: Now) -> u64 {
        match bar {
            0 => self.msix.load(place),
            _ => self.last,
        }
    }

    fn store(&mut self, bar: usize, place: Place, value: u64, _: Now) -> Effect {
        match bar {
            0 => self.msix.store(place, value),
            _ => {
                self.last = value;
                self.msix.raise(value as u16)
            }
        }
    }

    fn doorbells(&self) -> Option<Doorbells> {
        Some(self.doorbells.clone())
    }

    fn take_message(&mut self) -> Option<Message> {
        self.msix.take()
    }

    fn serve(&mut self, _: &dyn Memory, _: Now) -> Served {
        self.news()
    }

    fn news(&mut self) -> Served {
        self.news += 1;
        Served {
            has_messages: self.msix.raise(0) == Effect::Signal,
            ..Served::default()
        }
    }
}

/// A guest that shares nothing.
struct NoMemory;

impl Memory for NoMemory {
    fn page(&self, gpa: u64) -> Result<&Page, Unshared> {
        Err(Unshared(gpa))
    }
}

/// A guest with a card on its bus.
struct Guest(Devices);

impl Guest {
    fn new() -> Self {
        Self(Devices::new(RAM, vec![Arc::new(Mutex::new(Card::new()))]))
    }

    fn without_card() -> Self {
        Self(Devices::new(RAM, Vec::new()))
    }

    fn select(&self, function: u32, register: u16) {
        let address = ENABLE | function << 8 | u32::from(register) & !3;
        self.output(ADDRESS, 4, address.into());
    }

    fn output(&self, port: u16, size: u8, value: u64) -> Effect {
        self.0.output(port, size, value, Now::default).unwrap()
    }

    fn input(&self, port: u16, size: u8) -> u64 {
        self.0.input(port, size, Now::default).unwrap()
    }

    fn read(&self, function: u32, register: u16, size: u8) -> u64 {
        self.select(function, register);
        self.input(DATA + register % 4, size)
    }

    fn write(&self, function: u32, register: u16, size: u8, value: u64) -> Effect {
        self.select(function, register);
        self.output(DATA + register % 4, size, value)
    }

    fn load(&self, gpa: u64, size: u8) -> Option<u64> {
        self.0.load(gpa, size, Now::default())
    }

    fn store(&self, gpa: u64, size: u8, value: u64) -> Option<Effect> {
        self.0.store(gpa, size, value, Now::default())
    }

    /// Writes a base address.
    fn place(&self, bar: u16, gpa: u64) {
        self.write(CARD, 0x10 + 4 * bar, 4, gpa & 0xFFFF_FFFF);
        self.write(CARD, 0x14 + 4 * bar, 4, gpa >> 32);
    }

    /// Gives the card its addresses and switches it on.
    fn switch_card_on(&self) {
        self.place(0, TABLE);
        self.place(2, CARD_MEMORY);
        self.write(CARD, COMMAND, 2, MEMORY_ON);
    }
}

#[test]
fn firmware_finds_a_q35_with_its_power_management() {
    const PMBASE: u16 = 0x40;
    const ACPI_CNTL: u16 = 0x44;
    let guest = Guest::new();
    assert_eq!(guest.read(HOST, 2, 2), 0x29C0);
    assert_eq!(guest.read(HOST, 0xA, 2), 0x0600);
    assert_eq!(guest.read(ISA, 0, 4), 0x2918_8086);
    assert_eq!(guest.read(ISA, 0xB, 1), 0x06);
    assert_eq!(guest.read(ISA, 0xE, 1), 0, "one function");
    // The ports can't be moved, and neither they nor the bridges can be switched off.
    guest.write(ISA, PMBASE, 4, 0xB001);
    guest.write(ISA, ACPI_CNTL, 1, 0);
    guest.write(HOST, COMMAND, 2, 0);
    assert_eq!(guest.read(ISA, PMBASE, 4), 0x601);
    assert_eq!(guest.read(ISA, ACPI_CNTL, 1), 0x80);
    assert_eq!(guest.read(HOST, COMMAND, 2), 7);
}

#[test]
fn there_is_nothing_else_on_the_bus_and_no_other_bus() {
    let guest = Guest::without_card();
    for function in (0..0x1_0000).filter(|at| ![HOST, ISA].contains(at)) {
        assert_eq!(guest.read(function, 0, 4), 0xFFFF_FFFF, "{function:#x}");
        guest.write(function, 4, 4, 0);
    }
    for bar in (0x10..0x28).step_by(4) {
        guest.write(HOST, bar, 4, u64::MAX);
        assert_eq!(guest.read(HOST, bar, 4), 0, "no base address");
    }
    assert_eq!(guest.read(HOST, 0x34, 1), 0, "no capabilities");
}

#[test]
fn the_address_is_a_double_word_and_leads_nowhere_when_it_is_off() {
    let guest = Guest::new();
    guest.select(HOST, 0);
    for (port, size) in [(ADDRESS, 1), (ADDRESS, 2), (ADDRESS + 3, 1)] {
        assert_eq!(guest.input(port, size), open_bus(size));
        guest.output(port, size, 0);
    }
    assert_eq!(guest.input(ADDRESS, 4), 0x8000_0000);
    assert_eq!(guest.input(DATA, 4), 0x29C0_8086);
    guest.output(ADDRESS, 4, 0x7F00_0003);
    assert_eq!(guest.input(ADDRESS, 4), 0);
    assert_eq!(guest.input(DATA, 4), 0xFFFF_FFFF);
}

#[test]
fn an_access_stays_within_its_double_word() {
    let guest = Guest::new();
    guest.write(HOST, 0x60, 4, 0xB000_0001);
    assert_eq!(guest.read(HOST, 3, 2), 0xFFFF);
    assert_eq!(guest.read(HOST, 1, 4), 0xFFFF_FFFF);
    assert_eq!(guest.load(0xB000_0000, 8), Some(u64::MAX));
    guest.store(0xB000_0000, 8, 0);
    assert_eq!(guest.read(HOST, 0, 4), 0x29C0_8086);
}

#[test]
fn registers_are_in_memory_where_the_guest_puts_them() {
    let guest = Guest::new();
    assert_eq!(guest.load(0xB000_0000, 4), None);
    guest.write(HOST, 0x64, 4, 0);
    guest.write(HOST, 0x60, 4, 0xB000_0001);
    assert_eq!(guest.load(0xAFFF_FFFF, 1), None);
    assert_eq!(guest.load(0xC000_0000, 4), None);
    assert_eq!(guest.load(0xB00F_8040, 4), Some(0x601));
    guest.store(0xB000_003C, 1, 0x5A);
    assert_eq!(guest.read(HOST, 0x3C, 1), 0x5A);
    // Beyond conventional configuration space, another function, another bus.
    for offset in [0x100, 0x1000, 0x10_0000, 0xFFF_FFFF] {
        assert_eq!(
            guest.load(0xB000_0000 + offset, 1),
            Some(0xFF),
            "{offset:#x}"
        );
    }
}

#[test]
fn a_card_tells_the_size_of_its_memory_and_answers_once_it_is_on() {
    let guest = Guest::new();
    guest.place(2, u64::MAX);
    let low = guest.read(CARD, 0x18, 4);
    assert_eq!(
        low,
        !(CARD_BYTES - 1) & 0xFFFF_FFFF | 0xC,
        "64 bits, prefetchable"
    );
    assert_eq!(guest.read(CARD, 0x1C, 4), 0xFFFF_FFFF);
    guest.place(2, CARD_MEMORY);
    assert_eq!(guest.load(CARD_MEMORY, 4), None, "its decoding is off");
    guest.write(CARD, COMMAND, 2, MEMORY_ON);
    guest.store(CARD_MEMORY + 8, 4, 0x1234);
    assert_eq!(guest.load(CARD_MEMORY, 4), Some(0x1234));
    let last = CARD_MEMORY + CARD_BYTES - 4;
    assert!(guest.load(last, 4).is_some());
    assert_eq!(guest.load(last, 8), None, "beyond its end");
    // It moves, and goes.
    guest.place(2, 2 * CARD_MEMORY);
    assert_eq!(guest.load(CARD_MEMORY, 4), None);
    assert!(guest.load(2 * CARD_MEMORY, 4).is_some());
    guest.write(CARD, COMMAND, 2, 0);
    assert_eq!(guest.load(2 * CARD_MEMORY, 4), None);
}

#[test]
fn a_card_gets_neither_the_memory_of_the_td_nor_the_apics() {
    let guest = Guest::new();
    guest.write(CARD, COMMAND, 2, MEMORY_ON);
    for gpa in [
        0,
        0x1000_0000,
        0x1_7FFF_0000,
        0xFEC0_0000,
        0xFEE0_0000,
        !0xFFFF,
    ] {
        guest.place(2, gpa);
        guest.store(gpa + 0x100, 4, 7);
        assert_ne!(guest.load(gpa + 0x100, 4), Some(7), "{gpa:#x}");
    }
}

#[test]
fn what_masks_a_cards_interrupts_is_in_its_memory_and_its_registers() {
    let guest = Guest::new();
    guest.switch_card_on();
    let capability = guest.read(CARD, 0x34, 1) as u16;
    guest.write(CARD, capability + 2, 2, 1 << 15);
    guest.store(TABLE + 16, 8, 0xFEE0_2000);
    guest.store(TABLE + 24, 8, 0x52);
    let message = Message {
        trigger: Trigger::Fixed,
        vector: 0x52,
        destination: 2,
        is_logical: false,
    };
    assert_eq!(guest.store(CARD_MEMORY, 4, 1), Some(Effect::Signal));
    assert_eq!(guest.0.pci().take_message(), Some(message));
    assert_eq!(guest.0.pci().take_message(), None);
    // Masked as a whole, raised, and unmasked.
    guest.write(CARD, capability + 2, 2, 3 << 14);
    assert_eq!(guest.store(CARD_MEMORY, 4, 1), Some(Effect::None));
    assert_eq!(
        guest.write(CARD, capability + 2, 2, 1 << 15),
        Effect::Signal
    );
    assert_eq!(guest.0.pci().take_message(), Some(message));
}

/// Returns a card whose interrupt is vector 0x61, and its guest.
fn card_with_interrupt() -> (Arc<Mutex<Card>>, Guest) {
    let card = Arc::new(Mutex::new(Card::new()));
    let guest = Guest(Devices::new(RAM, vec![card.clone()]));
    guest.switch_card_on();
    let capability = guest.read(CARD, 0x34, 1) as u16;
    guest.write(CARD, capability + 2, 2, 1 << 15);
    guest.store(TABLE, 8, 0xFEE0_0000);
    guest.store(TABLE + 8, 8, 0x61);
    (card, guest)
}

#[test]
fn a_card_signalled_from_outside_is_asked_for_its_messages() {
    let (card, guest) = card_with_interrupt();
    assert_eq!(card.lock().msix.raise(0), Effect::Signal);
    guest.0.pci().signal(1);
    assert_eq!(guest.0.pci().take_message().unwrap().vector, 0x61);
}

#[test]
fn news_for_a_card_are_delivered_by_the_teller_or_by_the_cpu_that_has_the_card() {
    let (card, guest) = card_with_interrupt();
    let bus = guest.0.pci();
    let tell = |device| {
        let mut vectors = Vec::new();
        let has_more = bus.tell(device, &mut |message| vectors.push(message.vector));
        assert!(!has_more);
        vectors
    };
    assert_eq!((tell(1), tell(2)), (vec![0x61], vec![]));
    assert_eq!((card.lock().news, bus.has_work()), (1, false));
    // Another CPU has the card: nobody waits, and that CPU finds the news when it is done.
    {
        let held = card.lock();
        assert_eq!(tell(1), vec![]);
        assert_eq!(
            bus.serve(&NoMemory, Now::default()),
            Some(Served::default())
        );
        drop(held);
    }
    assert_eq!((card.lock().news, bus.has_work()), (1, false));
    guest.read(CARD, 0, 4);
    assert!(bus.has_work());
    let served = bus.serve(&NoMemory, Now::default());
    assert!(served.is_some_and(|served| served.has_messages));
    assert_eq!((card.lock().news, bus.has_work()), (2, false));
    assert_eq!(bus.take_message().unwrap().vector, 0x61);
}

#[test]
fn a_teller_leaves_news_that_keep_coming_to_the_guest() {
    let (card, guest) = card_with_interrupt();
    let bus = guest.0.pci();
    let mut told = 0;
    // Whenever it has delivered an interrupt, another CPU has news for the card, which is in use.
    let has_more = bus.tell(1, &mut |_| {
        told += 1;
        assert!(told < 100, "it has no end");
        assert!(!bus.tell(1, &mut |_| panic!("the card is in use")));
    });
    assert!(has_more && bus.has_work());
    assert_eq!((told, card.lock().news), (4, 4));
    let served = bus.serve(&NoMemory, Now::default());
    assert!(served.is_some_and(|served| served.has_messages));
    assert_eq!((card.lock().news, bus.has_work()), (5, false));
}

#[test]
fn a_doorbell_is_rung_while_another_cpu_has_the_card() {
    let card = Arc::new(Mutex::new(Card::new()));
    let guest = Guest(Devices::new(RAM, vec![card.clone()]));
    guest.switch_card_on();
    let bus = guest.0.pci();
    let held = card.lock();
    for queue in [3, 1, 3] {
        let gpa = CARD_MEMORY + DOORBELLS + 4 * queue;
        assert_eq!(guest.store(gpa, 2, 9), Some(Effect::Work));
    }
    assert!(bus.has_work());
    let bells = held.doorbells.clone();
    assert_eq!((bells.take(), bells.take(), bells.count()), (0b1010, 0, 3));
    drop(held);
    // Other registers are the card's matter.
    assert!(!bells.ring(
        0,
        Place {
            offset: DOORBELLS,
            size: 4
        }
    ));
    assert_eq!(guest.store(CARD_MEMORY, 4, 7), Some(Effect::None));
    assert_eq!((bells.take(), card.lock().last), (0, 7));
}

#[test]
fn work_of_a_card_that_another_cpu_has_is_left_and_not_lost() {
    let card = Arc::new(Mutex::new(Card::new()));
    let guest = Guest(Devices::new(RAM, vec![card.clone()]));
    let bus = guest.0.pci();
    bus.rouse();
    let held = card.lock();
    let mut served = Vec::new();
    // The bridges have none.
    for _ in 0..3 {
        served.push(bus.serve(&NoMemory, Now::default()).is_some());
    }
    served.sort_unstable();
    assert_eq!((served, bus.has_work()), (vec![false, true, true], true));
    drop(held);
    assert!(bus.serve(&NoMemory, Now::default()).is_some());
    assert_eq!((card.lock().news, bus.has_work()), (1, false));
}

#[test]
fn bus_mastering_is_what_the_guest_says() {
    let card = Arc::new(Mutex::new(Card::new()));
    let guest = Guest(Devices::new(RAM, vec![card.clone()]));
    assert!(!card.lock().config().is_master());
    guest.write(CARD, COMMAND, 2, MASTER);
    assert!(card.lock().config().is_master());
    assert_eq!(card.lock().config().memory(2), None);
}

/// An access of a guest: port or address, size, and what is written if anything is.
fn access(guest: &Guest, (way, at, log, value): (u8, u64, u8, u64)) {
    let size = 1 << log;
    let port = (u64::from(ADDRESS) + at % 8) as u16;
    let gpa = [0xB000_0000, TABLE, CARD_MEMORY, 0, at][(value % 5) as usize];
    let gpa = gpa.wrapping_add(at & 0x1F_FFFF);
    let narrow = size.min(4);
    match way {
        0 => assert_eq!(guest.input(port, narrow) & !open_bus(narrow), 0),
        1 => _ = guest.output(port, narrow, value),
        // Half of the accesses by ports are to a function that exists.
        2 => {
            _ = guest.write(
                [HOST, CARD, ISA][(at % 3) as usize],
                at as u16 & 0xFC,
                4,
                value,
            )
        }
        3 => _ = guest.store(gpa, size, value),
        _ => {
            let read = guest.load(gpa, size).unwrap_or(0);
            assert_eq!(read & !open_bus(size), 0);
        }
    }
    while guest.0.pci().take_message().is_some() {}
}

proptest! {
    #[test]
    fn any_access_has_an_answer_of_its_size_and_changes_no_name(
        accesses in proptest::collection::vec((0u8..5, any::<u64>(), 0u8..4, any::<u64>()), 1..200),
    ) {
        let guest = Guest::new();
        guest.write(HOST, 0x60, 4, 0xB000_0001);
        guest.switch_card_on();
        for what in accesses {
            access(&guest, what);
        }
        for (function, id) in [(HOST, 0x29C0_8086), (CARD, 0x1041_1AF4), (ISA, 0x2918_8086)] {
            prop_assert_eq!(guest.read(function, 0, 4), id);
        }
        for ram in RAM {
            for slot in &guest.0.pci().slots {
                for bar in &slot.bars {
                    let start = bar.start.load(Relaxed);
                    prop_assert!(start == 0 || start >= ram.end || start + bar.bytes <= ram.start);
                }
            }
        }
    }
}

/// Makes ten million accesses; `cargo test -p devices --release -- --ignored`.
#[test]
#[ignore = "takes minutes; run by name"]
fn ten_million_accesses_hurt_nobody() {
    let guest = Guest::new();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        // xorshift64*, as in Vigna, "An experimental exploration of Marsaglia's xorshift generators".
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    };
    for _ in 0..10_000_000 {
        let (way, at, value) = (next(), next() >> (next() % 64), next());
        access(&guest, ((way % 5) as u8, at, (way >> 8) as u8 % 4, value));
    }
    assert_eq!(guest.read(CARD, 0, 4), 0x1041_1AF4);
}
