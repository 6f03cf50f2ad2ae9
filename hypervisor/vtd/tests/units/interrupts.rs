//! Interrupt remapping: each source raises its own entries and nothing else.

use proptest::prelude::*;
use stub_vtd::{Delivered, UnitShape};
use vtd::{
    Error, Event, Origin,
    interrupt::{Handle, Posting, Route},
    unit::Request,
};

use super::{IO_APIC, at, nothing_wrong, start};

fn route(vector: u8, destination: u32) -> Route {
    Route {
        vector,
        destination,
        is_level: false,
    }
}

fn delivered(route: &Route) -> Delivered {
    Delivered::ToCpu {
        vector: route.vector,
        destination: route.destination,
        is_level: route.is_level,
    }
}

#[test]
fn an_io_apic_s_input_reaches_its_cpu_and_a_device_can_t_raise_it() {
    let (machine, iommu) = start(&[UnitShape::like_qemu(0xFED9_0000)]);
    let level = Route {
        is_level: true,
        ..route(0x41, 0x1_0002)
    };
    let handle = iommu.route(Origin::IoApic(2), &level).expect("routed");
    let entry = handle.redirection(&level, true);
    assert_eq!(machine.io_apic(IO_APIC, entry), Ok(delivered(&level)));
    let device = at(1, 0, 0);
    assert_eq!(machine.interrupt(device, handle.message()), Err(0x26));
    let mut told = Vec::new();
    iommu.serve(&mut |event| told.push(*event));
    let [Event::Fault(fault)] = told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(fault.function, device);
    assert_eq!(fault.request, Request::Interrupt(handle.index()));
    nothing_wrong(&machine);
}

#[test]
fn an_interrupt_in_compatibility_format_is_blocked() {
    for has_extended_mode in [true, false] {
        let (machine, iommu) = start(&[UnitShape {
            has_extended_mode,
            ..UnitShape::new(0xFED9_0000)
        }]);
        assert!(iommu.remaps_interrupts());
        assert_eq!(iommu.has_extended_destinations(), has_extended_mode);
        let message = (0xFEE0_0000, 0x41);
        assert_eq!(machine.interrupt(at(1, 0, 0), message), Err(0x25));
        assert_eq!(machine.io_apic(IO_APIC, [0x41, 0]), Err(0x25));
    }
}

#[test]
fn without_extended_mode_in_every_unit_ids_have_eight_bits() {
    let old = UnitShape {
        sources: 0x800..=0x807,
        has_extended_mode: false,
        ..UnitShape::new(0xFED9_0000)
    };
    let (machine, iommu) = start(&[old, UnitShape::new(0xFED9_2000)]);
    let device = Origin::Function(at(8, 0, 0));
    for id in [255, 256, u32::MAX] {
        let refused = iommu.route(device, &route(0x50, id));
        assert_eq!(refused, Err(Error::Destination(id)));
    }
    let handle = iommu.route(device, &route(0x50, 254)).expect("routed");
    let reached = machine.interrupt(at(8, 0, 0), handle.message());
    assert_eq!(reached, Ok(delivered(&route(0x50, 254))));
    nothing_wrong(&machine);
}

#[test]
fn sources_without_a_scope_or_a_unit_that_remaps_are_refused() {
    let silent = UnitShape {
        sources: 0x800..=0x807,
        remaps_interrupts: false,
        ..UnitShape::new(0xFED9_0000)
    };
    let (_, iommu) = start(&[silent, UnitShape::new(0xFED9_2000)]);
    let refused = |origin| iommu.route(origin, &route(0x50, 0));
    assert_eq!(
        refused(Origin::IoApic(3)),
        Err(Error::NoSource("I/O APIC", 3))
    );
    assert_eq!(refused(Origin::Hpet(0)), Err(Error::NoSource("HPET", 0)));
    let device = at(8, 0, 0);
    assert_eq!(
        refused(Origin::Function(device)),
        Err(Error::NoRemapping(device.source))
    );
}

#[test]
fn all_entries_can_be_used_and_used_again() {
    let (machine, iommu) = start(&[UnitShape::new(0xFED9_0000)]);
    let device = at(1, 0, 0);
    let (_, all) = iommu.entries().expect("a table");
    let handles: Vec<Handle> = (0..all)
        .map(|_| {
            let handle = iommu.route(Origin::Function(device), &route(0x50, 1));
            handle.expect("an entry is free")
        })
        .collect();
    let none = iommu.route(Origin::Function(device), &route(0x50, 1));
    assert_eq!(none, Err(Error::NoEntry));
    let last = handles[all - 1];
    assert!(machine.interrupt(device, last.message()).is_ok());
    iommu.unroute(last).expect("freed");
    assert_eq!(machine.interrupt(device, last.message()), Err(0x22));
    assert_eq!(iommu.unroute(last), Err(Error::NotRouted(last.index())));
    let again = iommu.route(Origin::Function(device), &route(0x51, 1));
    assert_eq!(again, Ok(last));
    nothing_wrong(&machine);
}

#[test]
fn a_posted_interrupt_reaches_its_descriptor_where_every_unit_posts() {
    use vtd::Platform;
    let device = at(1, 0, 0);
    for posts in [true, false] {
        let (machine, iommu) = start(&[UnitShape {
            posts,
            ..UnitShape::new(0xFED9_0000)
        }]);
        let posting = Posting {
            vector: 0x83,
            descriptor: machine.take(0).expect("memory") + 0x40,
        };
        let posted = iommu.post(Origin::Function(device), &posting);
        let Ok(handle) = posted else {
            assert!(!posts && posted == Err(Error::CannotPost));
            continue;
        };
        assert!(posts && iommu.posts());
        let raised = machine.interrupt(device, handle.message());
        assert_eq!(raised, Ok(Delivered::Posted(posting.descriptor)));
        assert_eq!(machine.load(posting.descriptor + 16), 1 << 3);
        assert_eq!(machine.load(posting.descriptor + 32), 1);
        assert_eq!(machine.interrupt(at(2, 0, 0), handle.message()), Err(0x26));
        let unaligned = Posting {
            descriptor: posting.descriptor + 8,
            ..posting
        };
        let refused = iommu.post(Origin::Function(device), &unaligned);
        assert_eq!(refused, Err(Error::Range(unaligned.descriptor, 64)));
        iommu.unroute(handle).expect("freed");
        assert_eq!(machine.interrupt(device, handle.message()), Err(0x22));
        nothing_wrong(&machine);
    }
}

/// Acts on interrupts.
#[derive(Clone, Debug)]
enum Action {
    Route(usize, u8, u32),
    Reroute(usize, u8, u32),
    Unroute(usize),
    Raise(usize, usize),
    Refuse,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0usize..3, 32u8.., 0u32..0x2_0000).prop_map(|(d, v, to)| Action::Route(d, v, to)),
        2 => (any::<usize>(), 32u8.., 0u32..0x2_0000).prop_map(|(h, v, to)| Action::Reroute(h, v, to)),
        1 => any::<usize>().prop_map(Action::Unroute),
        5 => (any::<usize>(), 0usize..3).prop_map(|(h, d)| Action::Raise(h, d)),
        1 => Just(Action::Refuse),
    ]
}

proptest! {
    /// Whatever happens, an interrupt reaches the destination of its route, and only from its own source.
    #[test]
    fn interrupts_go_where_they_are_routed(
        actions in prop::collection::vec(action(), 1..80),
        caches_absent: bool,
    ) {
        let (machine, iommu) = start(&[UnitShape { caches_absent, ..UnitShape::like_qemu(0xFED9_0000) }]);
        let devices = [at(1, 0, 0), at(1, 0, 1), at(2, 0, 0)];
        let mut live: Vec<(Handle, usize, Route)> = Vec::new();
        let mut dead: Vec<Handle> = Vec::new();
        for action in actions {
            match action {
                Action::Route(device, vector, to) => {
                    let new = route(vector, to);
                    let handle = iommu.route(Origin::Function(devices[device]), &new).unwrap();
                    prop_assert!(live.iter().all(|(used, ..)| *used != handle));
                    dead.retain(|freed| *freed != handle);
                    live.push((handle, device, new));
                }
                Action::Reroute(index, vector, to) if !live.is_empty() => {
                    let index = index % live.len();
                    let entry = &mut live[index];
                    entry.2 = route(vector, to);
                    iommu.reroute(entry.0, &entry.2).unwrap();
                }
                Action::Unroute(index) if !live.is_empty() => {
                    let (handle, ..) = live.swap_remove(index % live.len());
                    iommu.unroute(handle).unwrap();
                    dead.push(handle);
                }
                Action::Raise(index, device) => {
                    if let Some((handle, owner, to)) = live.get(index % live.len().max(1)) {
                        let expected = if *owner == device { Ok(delivered(to)) } else { Err(0x26) };
                        prop_assert_eq!(machine.interrupt(devices[device], handle.message()), expected);
                    }
                    for handle in &dead {
                        prop_assert_eq!(machine.interrupt(devices[device], handle.message()), Err(0x22));
                    }
                }
                Action::Refuse => machine.refuse(0, 1),
                Action::Reroute(..) | Action::Unroute(_) => {}
            }
        }
        prop_assert_eq!(machine.violations(), [""; 0]);
    }
}
