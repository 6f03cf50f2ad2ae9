//! The start: units of all kinds, from every state that firmware leaves, and units that do not answer.

use stub_vtd::{Firmware, Machine, Silence, UnitShape};
use vtd::{Access, Error, Function, Iommu, LIMIT_US, Source, UnitState, Wait};

use super::{NoBridges, at, dmar_of, nothing_wrong, start};

const BASE: u64 = 0xFED9_0000;

/// Returns units that differ in everything that the driver reads from a unit.
fn kinds() -> Vec<UnitShape> {
    let server = UnitShape::new(BASE);
    vec![
        server.clone(),
        UnitShape::like_qemu(BASE),
        UnitShape {
            caches_absent: true,
            ..UnitShape::like_qemu(BASE)
        },
        UnitShape {
            buffers: true,
            is_coherent: false,
            ..server.clone()
        },
        UnitShape {
            levels: 3..=3,
            highest_leaf: 1,
            address_bits: 39,
            page_selective: None,
            domain_bits: 4,
            has_extended_mode: false,
            ..server.clone()
        },
        UnitShape {
            levels: 5..=5,
            remaps_interrupts: false,
            ..server
        },
    ]
}

#[test]
fn every_kind_of_unit_blocks_everything_and_then_lets_pass_what_is_mapped() {
    for shape in kinds() {
        let (machine, iommu) = start(std::slice::from_ref(&shape));
        assert!(iommu.blocks_all() && machine.translates(0), "{shape:?}");
        let device = at(3, 0, 0);
        assert!(machine.dma(device, 0x1000, true).is_err());
        let mut domain = iommu.domain().expect("a domain");
        domain
            .map(0x20_0000, 0x80_0000, 0x20_1000, Access::ReadWrite)
            .expect("mapped");
        iommu.attach(&mut domain, device).expect("attached");
        iommu.flush(&mut domain).expect("flushed");
        assert_eq!(machine.dma(device, 0x20_0123, true), Ok(0x80_0123));
        assert_eq!(machine.dma(device, 0x40_0FFF, false), Ok(0xA0_0FFF));
        assert!(machine.dma(device, 0x40_1000, false).is_err());
        assert!(machine.dma(at(3, 0, 1), 0x20_0000, false).is_err());
        iommu.detach(&mut domain, device).expect("detached");
        assert!(machine.dma(device, 0x20_0000, false).is_err());
        assert!(iommu.end(domain).is_ok());
        nothing_wrong(&machine);
    }
}

#[test]
fn every_state_that_firmware_leaves_is_taken_over() {
    for bits in 0..64u32 {
        let firmware = Firmware {
            translates: bits & 1 != 0,
            is_scalable: bits & 2 != 0,
            has_queue: bits & 4 != 0,
            remaps: bits & 8 != 0,
            passes_compatibility: bits & 16 != 0,
            protects: bits & 32 != 0,
        };
        let shape = UnitShape {
            firmware,
            ..UnitShape::new(BASE)
        };
        let machine = Machine::new(std::slice::from_ref(&shape));
        let dmar = dmar_of(&[shape]);
        let device = at(3, 0, 0);
        // A request that the firmware's tables let pass is cached, and one that they block is recorded.
        let _ = machine.dma(device, 0x5000, true);
        let _ = machine.dma(at(3, 1, 0), 0x5000, true);
        let iommu = Iommu::start(&machine, &dmar, &NoBridges).expect("there is memory");
        assert_eq!(machine.dma(device, 0x5000, true), Err(2), "{firmware:?}");
        assert_eq!(iommu.units()[0].taken_over, firmware.translates);
        let mut news = 0;
        iommu.serve(&mut |_| news += 1);
        assert_eq!(news, 1, "what was blocked for the firmware is not told");
        assert!(machine.interrupt(device, (0xFEE0_0000, 0x41)).is_err());
        let mut domain = iommu.domain().expect("a domain");
        domain
            .map(0x5000, 0x9000, 0x1000, Access::Read)
            .expect("mapped");
        iommu.attach(&mut domain, device).expect("attached");
        // Protected memory regions block even what is mapped.
        assert_eq!(machine.dma(device, 0x5000, false), Ok(0x9000));
        assert_eq!(machine.dma(device, 0x5000, true), Err(5));
        nothing_wrong(&machine);
    }
}

/// Returns each silence, and the wait that must name it.
fn silences() -> Vec<(Silence, Firmware, Option<Wait>)> {
    let command = |bit: u32| Silence::Command(1 << bit);
    let none = Firmware::default();
    let all = Firmware {
        translates: true,
        is_scalable: true,
        has_queue: true,
        remaps: true,
        passes_compatibility: true,
        protects: true,
    };
    vec![
        (Silence::Absent, none, None),
        (command(31), none, Some(Wait::TranslationOn)),
        (command(31), all, Some(Wait::TranslationOff)),
        (command(30), none, Some(Wait::RootTable)),
        (command(27), none, Some(Wait::WriteBuffer)),
        (command(26), none, Some(Wait::QueueOn)),
        (command(26), all, Some(Wait::QueueOff)),
        (command(25), none, Some(Wait::RemappingOn)),
        (command(25), all, Some(Wait::RemappingOff)),
        (command(24), none, Some(Wait::InterruptTable)),
        (command(23), all, Some(Wait::CompatibilityBlocked)),
        (Silence::Queue, none, Some(Wait::Invalidation)),
        (Silence::ProtectedRegions, all, Some(Wait::ProtectedRegions)),
    ]
}

#[test]
fn a_unit_that_never_answers_is_named_and_the_others_go_on() {
    for (silence, firmware, wait) in silences() {
        let silent = UnitShape {
            sources: 0x0800..=0x0807,
            buffers: true,
            firmware,
            silence,
            ..UnitShape::new(BASE)
        };
        let good = UnitShape::new(BASE + 0x2000);
        let (machine, iommu) = start(&[silent, good]);
        assert!(machine.now() < 2 * LIMIT_US, "{silence:?}");
        let expected = match wait {
            Some(wait) => Error::NoAnswer(BASE, wait),
            None => Error::Absent(BASE),
        };
        let units = iommu.units();
        assert_eq!(
            units[0].state,
            UnitState::Failed(expected.to_string()),
            "{silence:?}"
        );
        assert_eq!(units[1].state, UnitState::On);
        assert!(!iommu.blocks_all());
        assert_eq!(iommu.problems(), [expected.to_string()]);
        // Its own functions are refused at once; the others' are served.
        let (its, other) = (at(8, 0, 0), at(9, 0, 0));
        let before = machine.now();
        assert!(!iommu.covers(its) && iommu.covers(other));
        let mut domain = iommu.domain().expect("a domain");
        domain
            .map(0x1000, 0x1000, 0x1000, Access::Read)
            .expect("mapped");
        assert_eq!(iommu.attach(&mut domain, its), Err(Error::NotCovered(its)));
        iommu.attach(&mut domain, other).expect("attached");
        assert_eq!(machine.dma(other, 0x1000, false), Ok(0x1000));
        assert!(machine.now() < before + LIMIT_US / 10);
        nothing_wrong(&machine);
    }
}

#[test]
fn the_firmware_s_queue_that_never_runs_empty_is_named() {
    let shape = UnitShape {
        firmware: Firmware {
            has_queue: true,
            ..Firmware::default()
        },
        silence: Silence::Queue,
        ..UnitShape::new(BASE)
    };
    let machine = Machine::new(std::slice::from_ref(&shape));
    // The firmware has submitted something.
    let registers = vtd::Platform::registers(&machine, BASE, 0x1000).expect("registers");
    vtd::Registers::write64(&registers, 0x88, 0x20);
    let iommu = Iommu::start(&machine, &dmar_of(&[shape]), &NoBridges).expect("there is memory");
    let named = Error::NoAnswer(BASE, Wait::QueueEmpty).to_string();
    assert_eq!(iommu.problems(), [named]);
}

#[test]
fn a_unit_without_a_queue_is_refused_untouched() {
    let shape = UnitShape {
        has_queue: false,
        ..UnitShape::new(BASE)
    };
    let (machine, iommu) = start(&[shape]);
    assert!(iommu.problems()[0].contains("queued invalidation"));
    assert!(!machine.translates(0));
}

#[test]
fn a_unit_whose_registers_are_no_device_s_is_named() {
    let machine = Machine::new(&[]);
    let dmar = dmar_of(&[UnitShape::new(BASE)]);
    let iommu = Iommu::start(&machine, &dmar, &NoBridges).expect("no memory is needed");
    assert!(iommu.problems()[0].contains("can't be reached: there is RAM"));
    assert!(!iommu.blocks_all());
}

#[test]
fn too_little_memory_is_an_error_and_loses_none() {
    for frames in 0..24 {
        let shape = UnitShape::new(BASE);
        let machine = Machine::new(std::slice::from_ref(&shape));
        machine.limit_frames(frames);
        match Iommu::start(&machine, &dmar_of(&[shape]), &NoBridges) {
            Err(error) => assert_eq!((error, machine.taken_frames()), (Error::NoMemory, 0)),
            Ok(iommu) if iommu.blocks_all() => assert!(frames >= 19),
            // The interrupt table is there.
            Ok(iommu) => {
                assert_eq!(machine.taken_frames(), 16);
                assert_eq!(iommu.problems(), [Error::NoMemory.to_string()]);
            }
        }
        nothing_wrong(&machine);
    }
}

#[test]
fn segments_and_units_are_told_apart() {
    let other_segment = UnitShape {
        segment: 1,
        ..UnitShape::new(BASE)
    };
    let shapes = [other_segment, UnitShape::new(BASE + 0x1000)];
    let machine = Machine::new(&shapes);
    let mut dmar = dmar_of(&shapes);
    (dmar.units[0].all, dmar.units[0].scopes) = (true, vec![]);
    let iommu = Iommu::start(&machine, &dmar, &NoBridges).expect("there is memory");
    let (here, there) = (
        Function::new(0, Source(0x100)),
        Function::new(1, Source(0x100)),
    );
    let mut domain = iommu.domain().expect("a domain");
    domain
        .map(0x1000, 0x2000, 0x1000, Access::ReadWrite)
        .expect("mapped");
    iommu.attach(&mut domain, there).expect("attached");
    assert_eq!(machine.dma(there, 0x1000, true), Ok(0x2000));
    assert!(machine.dma(here, 0x1000, true).is_err());
    let nowhere = Function::new(2, Source(0x100));
    assert_eq!(
        iommu.attach(&mut domain, nowhere),
        Err(Error::NotCovered(nowhere))
    );
    nothing_wrong(&machine);
}
