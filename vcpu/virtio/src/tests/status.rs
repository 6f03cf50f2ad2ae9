//! The transport's registers: order of initialisation, what can be written when, and reset.

use std::sync::Arc;

use devices::pci::{Function, Served};
use devices::{Effect, Now, Place as At};
use virtio_spec::DeviceStatus;

use super::console::Screen;
use super::{Driver, Ram, std};
use crate::{Console, Fault, Place};

fn driver(ram: &Ram) -> Driver<'_, Console> {
    Driver::new(
        Console::new(Arc::<Screen>::default(), Arc::<Screen>::default()),
        ram,
    )
}

#[test]
fn the_function_is_a_modern_one_with_its_structures() {
    let ram = Ram::new(1);
    let mut driver = driver(&ram);
    let config = driver.function.config();
    assert_eq!(config.read(0, 4), 0x1043_1AF4);
    assert!(config.read(8, 1) >= 1 && config.read(0x2E, 2) >= 0x40);
    let mut found = std::vec::Vec::new();
    let mut at = config.read(0x34, 1) as usize;
    while at != 0 {
        if config.read(at, 1) == 9 {
            let words = [8, 12].map(|offset| config.read(at + offset, 4));
            found.push((config.read(at + 3, 1), words[0], words[1]));
            assert_eq!(config.read(at + 4, 1), 0, "the register");
        }
        at = config.read(at + 1, 1) as usize;
    }
    let expected = [(1, 0, 56), (3, 0x1000, 1), (4, 0x2000, 12), (2, 0x3000, 24)];
    assert_eq!(found, expected);
}

#[test]
fn a_driver_that_does_not_know_what_a_td_needs_gets_no_features() {
    let ram = Ram::new(1);
    let mut driver = driver(&ram);
    for (low, high, fits) in [(0, 1, false), (0, 2, false), (0, 3, true), (1, 3, false)] {
        driver.write(0x14, 1, 0);
        driver.write(0x14, 1, 3);
        driver.write(8, 4, 0);
        driver.write(0xC, 4, low);
        driver.write(8, 4, 1);
        driver.write(0xC, 4, high);
        driver.write(0x14, 1, 0xB);
        assert_eq!(driver.status().contains(DeviceStatus::FEATURES_OK), fits);
        assert_eq!(driver.read(0xC, 4), high);
        driver.write(0xC, 4, 0);
        assert_eq!(driver.read(0xC, 4), if fits { high } else { 0 });
    }
    driver.write(0x14, 1, 0);
    assert_eq!(driver.write(0x14, 1, 0xF), Effect::None, "no features");
    assert!(!driver.status().contains(DeviceStatus::DRIVER_OK));
}

#[test]
fn a_queue_is_enabled_once_and_keeps_its_place() {
    let ram = Ram::new(16);
    let mut driver = driver(&ram);
    driver.write(0x1C, 2, 1);
    assert_eq!(driver.read(0x1C, 2), 0, "before the features are agreed");
    driver.negotiate(0);
    assert_eq!(driver.read(0x18, 2), 64);
    for size in [0, 3, 128, 0x8000] {
        driver.write(0x18, 2, size);
        assert_eq!(driver.read(0x18, 2), 64, "{size}");
    }
    driver.set_up(0, 8, 0);
    driver.write(0x18, 2, 16);
    driver.write(0x20, 4, 0x5000);
    driver.write(0x1C, 2, 0);
    let read = [(0x18, 2), (0x20, 4), (0x1C, 2)].map(|(at, size)| driver.read(at, size));
    assert_eq!(read, [8, 0, 1]);
    driver.ready();
    driver.write(0x16, 2, 1);
    driver.write(0x1C, 2, 1);
    assert_eq!(driver.read(0x1C, 2), 0, "after the driver is ready");
    driver.write(0x16, 2, 6);
    assert_eq!(driver.read(0x18, 2), 0, "no such queue");
    driver.write(0x14, 1, 0);
    driver.write(0x16, 2, 0);
    assert_eq!((driver.read(0x1C, 2), driver.read(0x18, 2)), (0, 64));
    assert_eq!(driver.read(0x1A, 2), 0xFFFF);
}

#[test]
fn a_vector_that_does_not_exist_is_none() {
    let ram = Ram::new(1);
    let mut driver = driver(&ram);
    for at in [0x10, 0x1A] {
        for (vector, expected) in [(6, 6), (7, 0xFFFF), (0xFFFF, 0xFFFF)] {
            driver.write(at, 2, vector);
            assert_eq!(driver.read(at, 2), expected);
        }
    }
}

#[test]
fn a_queue_outside_shared_memory_stops_the_device_at_once() {
    let ram = Ram::new(16);
    let mut driver = driver(&ram);
    driver.negotiate(0);
    driver.set_up(0, 8, 0);
    driver.set_up(1, 8, 0x4000);
    ram.unshare(6);
    driver.ready();
    assert_eq!(driver.function.fault(), Some(Fault::NotShared(0x6000)));
    assert!(driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    assert_eq!(driver.interrupts(), [0x30], "of the configuration");
    assert_eq!(driver.read(0x1000, 1), 2, "ISR");
    assert_eq!(driver.read(0x1000, 1), 0, "reading clears it");
    driver.write(0x3000, 2, 0);
    assert_eq!(driver.serve(), Served::default(), "it rests");
    // A reset is enough.
    ram.share_all();
    driver.negotiate(0);
    assert_eq!(driver.function.fault(), None);
    driver.set_up(0, 8, 0);
    driver.ready();
    assert!(!driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
}

#[test]
fn a_place_that_no_queue_can_have_stops_the_device() {
    let ram = Ram::new(16);
    let good = Place {
        size: 8,
        descriptors: 0,
        available: 0x1000,
        used: 0x2000,
    };
    for wrong in [
        Place {
            descriptors: 8,
            ..good
        },
        Place {
            available: 1,
            ..good
        },
        Place { used: 2, ..good },
        Place { used: !3, ..good },
    ] {
        let mut driver = driver(&ram);
        driver.negotiate(0);
        driver.place(0, wrong);
        driver.write(0x1C, 2, 1);
        driver.write(0x14, 1, 0xF);
        assert_eq!(driver.function.fault(), Some(Fault::Place(wrong)));
        assert!(driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    }
}

#[test]
fn without_bus_mastering_memory_is_left_alone() {
    let ram = Ram::new(16);
    let mut driver = driver(&ram);
    driver.function.config().write(4, 2, 2);
    driver.negotiate(0);
    let mut ring = driver.set_up(1, 8, 0);
    driver.write(0x14, 1, 0xF);
    ring.offer(&ram, &[(0x8000, 4, false)]).unwrap();
    driver.kick(1);
    assert_eq!((ring.take(&ram), driver.interrupts().len()), (None, 0));
    driver.function.config().write(4, 2, 6);
    assert_eq!(driver.function.configured(4..6), Effect::Work);
    driver.serve();
    assert!(ring.take(&ram).is_some());
    assert_eq!(driver.interrupts(), [0x41]);
}

#[test]
fn only_whole_registers_are_accessed() {
    let ram = Ram::new(1);
    let mut driver = driver(&ram);
    driver.write(0x16, 4, 1);
    assert_eq!(driver.read(0x16, 2), 0);
    driver.write(0x20, 8, 0x1234_5678_9ABC_DEF0);
    assert_eq!(driver.read(0x24, 4), 0x1234_5678);
    assert_eq!(driver.read(0x20, 8), 0x1234_5678_9ABC_DEF0);
    assert_eq!(driver.read(0x22, 4), 0);
    let beyond = At {
        offset: 0x3FFC,
        size: 8,
    };
    assert_eq!(driver.function.load(0, beyond, Now::default()), u64::MAX);
}
