//! A driver that breaks every rule. Nothing but its own device stops, and a reset is enough to start again.

use std::eprintln;
use std::sync::Arc;
use std::vec::Vec;

use devices::pci::Function;
use devices::{Now, Place as At};
use virtio_spec::DeviceStatus;

use super::console::Screen;
use super::{Driver, Ram, Ring, std};
use crate::access::{field, set_field, write};
use crate::queue::Limits;
use crate::{Chain, Console, Device, Fault, LONGEST, Queue};

/// Number of operations of the random driver.
const OPERATIONS: u32 = 1_000_000;
/// Pages of its memory.
const PAGES: u64 = 64;

/// The chains that a device takes.
const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    segments: LONGEST,
};

/// Returns the fault of a queue of eight descriptors, of which the driver has made the first one available.
fn fault(descriptors: &[(u64, u32, u16, u16)]) -> Option<Fault> {
    let ram = Ram::new(16);
    let ring = Ring::alone(8, true);
    for (at, (gpa, bytes, flags, next)) in (0..).step_by(16).zip(descriptors) {
        set_field(&ram, at, 8, *gpa).unwrap();
        let more = u64::from(*bytes) | u64::from(*flags) << 32 | u64::from(*next) << 48;
        set_field(&ram, at + 8, 8, more).unwrap();
    }
    set_field(&ram, ring.place.available + 2, 2, 1).unwrap();
    let mut queue = Queue::new(ring.place, true, LIMITS).unwrap();
    queue.take(&ram, &mut Chain::default()).err()
}

#[test]
fn a_chain_that_breaks_a_rule_is_refused() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let all: Vec<_> = (1..=8).map(|next| (0x4000, 1, NEXT, next % 8)).collect();
    for (descriptors, expected) in [
        (&[(0x4000, 8, 0, 0)][..], None),
        (&[(0x4000, 8, 0, 99)], None),
        (&[(0x4000, 8, NEXT, 0)], Some(Fault::Endless)),
        (&all, Some(Fault::Endless)),
        (&[(0x4000, 8, NEXT, 8)], Some(Fault::Descriptor(8))),
        (
            &[(0x4000, 8, NEXT, 0xFFFF)],
            Some(Fault::Descriptor(0xFFFF)),
        ),
        (&[(0x4000, 8, INDIRECT, 0)], Some(Fault::Flags(INDIRECT))),
        (&[(0x4000, 8, 0x8000, 0)], Some(Fault::Flags(0x8000))),
        (
            &[(0x4000, 8, NEXT | WRITE, 1), (0x4000, 8, 0, 0)],
            Some(Fault::Order),
        ),
        (&[(u64::MAX, 8, 0, 0)], Some(Fault::Bytes(8))),
        (&[(0x4000, 0x10_0001, 0, 0)], Some(Fault::Bytes(0x10_0001))),
        (
            &[(0, 0x10_0000, NEXT, 1), (0, 1, 0, 0)],
            Some(Fault::Bytes(0x10_0001)),
        ),
    ] {
        assert_eq!(fault(descriptors), expected, "{descriptors:x?}");
    }
}

#[test]
fn an_index_too_far_ahead_is_refused() {
    let ram = Ram::new(16);
    let ring = Ring::alone(8, true);
    for (index, expected) in [
        (8, None),
        (9, Some(Fault::Index(9))),
        (0xFFFF, Some(Fault::Index(0xFFFF))),
    ] {
        let mut queue = Queue::new(ring.place, true, LIMITS).unwrap();
        set_field(&ram, ring.place.available + 2, 2, index).unwrap();
        assert_eq!(queue.take(&ram, &mut Chain::default()).err(), expected);
        let mut queue = Queue::new(ring.place, true, LIMITS).unwrap();
        assert_eq!(queue.request_notification(&ram).err(), expected);
    }
}

/// Starts a driver of a console with one chain of `bytes` bytes from page 9 on.
fn with_chain(ram: &Ram, bytes: u32) -> (Driver<'_, Console>, Arc<Screen>) {
    let screen = Arc::new(Screen::default());
    let mut driver = Driver::new(Console::new(screen.clone(), Arc::<Screen>::default()), ram);
    driver.negotiate(1 << 29);
    driver.set_up(0, 8, 0);
    let mut ring = driver.set_up(1, 8, 0x4000);
    driver.ready();
    ring.offer(ram, &[(0x9000, bytes, false)]).unwrap();
    (driver, screen)
}

#[test]
fn memory_converted_at_any_access_stops_the_device_alone() {
    for page in [4, 5, 6, 9, 10] {
        let mut accesses = 0;
        loop {
            let ram = Ram::new(16);
            let (mut driver, screen) = with_chain(&ram, 0x1800);
            ram.convert_after(accesses, page);
            driver.kick(1);
            let Some(fault) = driver.function.fault() else {
                // It was all done before.
                assert_eq!(screen.written.lock().unwrap().len(), 0x1800);
                assert!(accesses > 1, "page {page}");
                break;
            };
            let Fault::NotShared(gpa) = fault else {
                panic!("{fault}");
            };
            assert_eq!(gpa / 0x1000, page as u64);
            assert!(!*screen.is_attached.lock().unwrap());
            ram.share_all();
            driver.negotiate(0);
            accesses += 1;
        }
    }
}

/// A step of a driver.
type Step = &'static dyn Fn(&mut Driver<'_, Console>);

#[test]
fn a_reset_is_possible_at_every_point() {
    for steps in 0..8 {
        let ram = Ram::new(16);
        let (mut driver, screen) = with_chain(&ram, 8);
        let all: [Step; 8] = [
            &|driver| driver.negotiate(0),
            &|driver| _ = driver.set_up(0, 8, 0),
            &|driver| _ = driver.set_up(1, 8, 0x4000),
            &|driver| _ = driver.write(0x14, 1, 0xF),
            &|driver| _ = driver.serve(),
            &|driver| _ = driver.write(0x3004, 2, 1),
            &|driver| _ = driver.serve(),
            &|driver| _ = driver.interrupts(),
        ];
        all[..steps].iter().for_each(|step| step(&mut driver));
        driver.write(0x14, 1, 0);
        assert!(driver.status().is_empty());
        assert!(!*screen.is_attached.lock().unwrap());
        driver.serve();
        let mut rest = with_chain(&ram, 8);
        rest.0.kick(1);
        assert_eq!(rest.1.written.lock().unwrap().len(), 8);
    }
}

/// Makes one random access of a hostile guest: to registers, to rings, to the pages that are shared.
fn operate<D: Device>(driver: &mut Driver<'_, D>, rings: &[u64], random: &mut fastrand::Rng) {
    let ram = driver.ram;
    let ring = rings[random.usize(..rings.len())];
    let gpa = random.u64(..PAGES * 4096);
    match random.u32(..16) {
        // Registers: any, or those that matter most.
        0 => {
            let at = At {
                offset: random.u64(..0x4000),
                size: 1 << random.u8(..4),
            };
            driver.function.store(0, at, random.u64(..), Now::default());
            driver.function.load(0, at, Now::default());
        }
        1 => {
            let at = At {
                offset: random.u64(..0x1_0000),
                size: 4 << random.u8(..2),
            };
            driver.function.store(2, at, random.u64(..), Now::default());
        }
        2 => {
            _ = driver.write(
                0x14,
                1,
                random.choice([0, 1, 3, 0xB, 0xF, 0x40, 0xFF]).unwrap(),
            )
        }
        3 => _ = driver.write(0x3000 + 4 * random.u64(..4), 2, 0),
        // A descriptor: mostly a small buffer, with flags that mostly exist.
        4..=7 => {
            let at = ring + 16 * random.u64(..8);
            let bytes = random.u64(..) >> random.u32(40..64) & 0xFFFF_FFFF;
            let flags = random.choice([0, 1, 1, 2, 2, 3, 4, 0x8000]).unwrap();
            let target = random
                .choice([gpa, gpa, gpa, u64::MAX - gpa, 1 << 47 | gpa])
                .unwrap();
            _ = set_field(ram, at, 8, target);
            _ = set_field(ram, at + 8, 8, bytes | flags << 32 | random.u64(..9) << 48);
        }
        8 | 9 => {
            let at = ring + 0x1000 + 2 * random.u64(2..14);
            _ = set_field(ram, at, 2, random.u64(..9));
        }
        10 | 11 => {
            let at = ring + 0x1002;
            let more = random.choice([1, 1, 1, 2, 8, 9, 0x8000]).unwrap();
            if let Ok(index) = field(ram, at, 2) {
                _ = set_field(ram, at, 2, index + more);
            }
        }
        12 => _ = write(ram, gpa, &random.u64(..).to_le_bytes()),
        13 => ram.convert_after(random.u64(..20), random.usize(..PAGES as usize)),
        14 => ram.share_all(),
        _ => driver
            .function
            .config()
            .write(4, 2, random.choice([6, 6, 6, 0, 2]).unwrap()),
    }
}

/// Lets a hostile guest make `operations` operations on a device, with a queue at each of `rings`, each followed by
/// the device's work. Whatever it does, a reset starts the device anew.
pub fn torment<D: Device>(device: D, rings: &[u64], operations: u32) {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let ram = Ram::new(PAGES as usize);
    let mut driver = Driver::new(device, &ram);
    let (mut faults, mut served) = (0, 0);
    for _ in 0..operations {
        if driver.function.fault().is_some() || random.u32(..2000) == 0 {
            faults += u32::from(driver.function.fault().is_some());
            ram.share_all();
            driver.function.config().write(4, 2, 6);
            driver.negotiate(random.u64(..));
            for (queue, gpa) in (0..).zip(rings) {
                driver.set_up(queue, 8, *gpa);
            }
            driver.ready();
        }
        operate(&mut driver, rings, &mut random);
        if random.bool() {
            driver.write(0x3000 + 4 * random.u64(..rings.len() as u64), 2, 0);
        }
        let mut parts = 0;
        while driver.serve().has_more {
            parts += 1;
            assert!(parts < 1000, "the work has no end");
        }
        served += parts;
        driver.interrupts();
    }
    driver.function.config().write(4, 2, 6);
    ram.share_all();
    driver.negotiate(0);
    assert!(!driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    eprintln!("{faults} faults, {served} parts of work left over");
    assert!(faults > operations / 1000, "the guest was too kind");
}

#[test]
fn a_million_operations_on_a_console_hurt_nobody() {
    let console = Console::new(Arc::<Screen>::default(), Arc::<Screen>::default());
    torment(console, &[0, 0x4000], OPERATIONS);
}

#[test]
fn a_million_operations_on_ports_hurt_nobody() {
    let console = Console::new(Arc::<Screen>::default(), Arc::<Screen>::default());
    let rings = [0, 0x4000, 0x8000, 0xC000, 0x1_0000, 0x1_4000];
    torment(console, &rings, OPERATIONS);
}
