//! Enumeration: what is found, measured and left alone.

mod model;

use io::{Address, BarKind, Defect, Header, Owner, Port, Refusal, Stopped, scan};
use model::server::{drive, four_sockets, root_port};
use model::{Behaviour, Config, Model, at};

#[test]
fn all_functions_of_all_segments_are_found_in_order() {
    let model = four_sockets();
    let inventory = model.inventory();
    let found: Vec<Address> = inventory.functions().iter().map(|f| f.address).collect();
    let there: Vec<Address> = model.functions.borrow().keys().copied().collect();
    assert_eq!(found, there);
    assert!(inventory.functions().iter().all(|f| f.defects.is_empty()));
    assert!(
        model
            .functions
            .borrow()
            .values()
            .all(|f| f.command() & 4 == 0)
    );
}

#[test]
fn registers_are_measured_undecoded_and_restored() {
    let model = four_sockets();
    let before = model.with(at(0, 0x17, 0, 1), |card| (card.get(0x10), card.get(0x14)));
    let inventory = model.inventory();
    assert_eq!(model.decoded_writes.get(), 0);
    assert_eq!(*model.offended.borrow(), []);
    let card = inventory.find(at(0, 0x17, 0, 1)).unwrap();
    assert_eq!(card.bars.len(), 1);
    assert_eq!(card.bars[0].kind, BarKind::Memory64);
    assert_eq!(card.bars[0].size, Some(0x200_0000));
    assert_eq!(card.bars[0].address, 0x1200_0000);
    assert!(card.bars[0].prefetchable);
    let after = model.with(at(0, 0x17, 0, 1), |card| (card.get(0x10), card.get(0x14)));
    assert_eq!(before, after);
    assert_eq!(model.with(at(0, 0x17, 0, 1), |card| card.command()), 3);
    let display = inventory.find(at(0, 3, 0, 0)).unwrap();
    assert_eq!(display.bars[1].kind, BarKind::Io);
    assert_eq!(display.bars[1].size, Some(0x80));
    // The chipset's registers are listed with their addresses only.
    let lpc = inventory.find(at(0, 0, 0x1F, 0)).unwrap();
    assert_eq!((lpc.bars[0].address, lpc.bars[0].size), (0xFB00_0000, None));
}

#[test]
fn a_function_that_the_machine_needs_is_not_measured() {
    let model = Model::default();
    let port = Config::new(0x1D0F, 0x8250, 0x07_0002)
        .memory32(0, 0x8000_0000, 0x1000)
        .behaving(Behaviour {
            untouchable: true,
            ..Behaviour::default()
        });
    model.add(at(0, 0, 4, 0), port);
    let found = scan::segment(&model, 0, 0..=255);
    let mut inventory = io::Inventory::new(&model, found, |function| {
        function.bars.iter().any(|bar| bar.contains(0x8000_0000))
    });
    inventory.measure(&model, at(0, 0, 4, 0));
    assert_eq!(*model.offended.borrow(), []);
    let found = inventory.behind_address(0x8000_0000, false).unwrap();
    assert_eq!(found.address, at(0, 0, 4, 0));
    assert!(inventory.behind_address(0x8000_0000, true).is_none());
    let why = inventory.refusals(&model, found.address);
    let said = "the host keeps it: it needs it at every moment";
    assert_eq!(why[0].to_string(), said);
}

#[test]
fn buses_outside_the_range_are_not_looked_at() {
    let model = four_sockets();
    let found = scan::segment(&model, 0, 3..=3);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].address, at(0, 3, 0, 0));
}

#[test]
fn a_function_that_vanishes_is_reported_at_whichever_read_that_happens() {
    for reads in 0..120 {
        let model = Model::default();
        model.add(at(0, 0, 1, 0), root_port(1, 1));
        let vanishing = drive(0x1_0000_0000).behaving(Behaviour {
            vanishes_after: Some(reads),
            ..Behaviour::default()
        });
        model.add(at(0, 1, 0, 0), vanishing);
        model.add(at(0, 2, 0, 0), drive(0x2_0000_0000));
        let inventory = model.inventory();
        assert!(inventory.find(at(0, 2, 0, 0)).is_some());
        let has_vanished = model.with(at(0, 1, 0, 0), |function| function.reads >= reads);
        let why = inventory.refusals(&model, at(0, 1, 0, 0));
        assert!(!has_vanished || why.contains(&Refusal::Gone), "{reads}");
        assert!(has_vanished || why.is_empty(), "{reads}");
    }
}

#[test]
fn a_loop_of_capabilities_ends_and_is_a_defect() {
    let model = Model::default();
    let mut looping = drive(0x1_0000_0000);
    let power = 0x40 + 20;
    looping.set(power, looping.get(power) & !0xFF00 | 0x40 << 8);
    model.add(at(0, 1, 0, 0), looping);
    let mut low = drive(0x2_0000_0000);
    low.set(0x34, 0x10);
    model.add(at(0, 2, 0, 0), low);
    let mut looping = drive(0x3_0000_0000).errors(0, 0);
    looping.set(0x100, looping.get(0x100) | 0x100 << 20);
    model.add(at(0, 3, 0, 0), looping);
    let inventory = model.inventory();
    let defects = |bus| inventory.find(at(0, bus, 0, 0)).unwrap().defects.clone();
    assert_eq!(defects(1), [Defect::Capabilities(0x40)]);
    assert_eq!(defects(2), [Defect::Capabilities(0x10)]);
    assert_eq!(defects(3), [Defect::Capabilities(0x100)]);
    let why = inventory.refusals(&model, at(0, 1, 0, 0));
    assert!(why.contains(&Refusal::Defect(Defect::Capabilities(0x40))));
}

#[test]
fn the_legacy_ports_reach_no_extended_list_and_that_is_no_defect() {
    let mut model = four_sockets();
    model.is_legacy = true;
    let inventory = model.inventory();
    let port = inventory.find(at(0, 0x16, 2, 0)).unwrap();
    assert_eq!(port.port(), Some(Port::Root));
    assert!(port.defects.is_empty() && port.capabilities.extended.is_empty());
}

#[test]
fn virtual_functions_are_found_with_their_slices() {
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 2));
    let mut physical = Config::new(0x8086, 0x1572, 0x02_0000).express(0, true);
    let mut words = [0; 15];
    words[1] = 1 << 0 | 1 << 3; // enabled, memory decoded
    words[3] = 4 << 16; // NumVFs in the word's low half follows
    let sriov = physical.extended(0x10, &words);
    physical.set(sriov + 0x10, 3);
    physical.set(sriov + 0x14, 2 << 16 | 0xFF);
    physical.set(sriov + 0x18, 0x154C << 16);
    physical.set(sriov + 0x24, 0x9000_0004);
    physical.set(sriov + 0x28, 0x1);
    let physical = physical
        .writable_at(sriov + 0x24, !0x3FFF)
        .writable_at(sriov + 0x28, u32::MAX);
    let physical = physical.writable_at(sriov + 8, 0x1F);
    model.add(at(0, 1, 0, 0), physical);
    // 01:00.0 + 0xFF is 01:1f.7, then 02:00.1 and 02:00.3.
    for place in [at(0, 1, 31, 7), at(0, 2, 0, 1), at(0, 2, 0, 3)] {
        let mut virtual_function = Config::new(0xFFFF, 0xFFFF, 0x02_0000).express(0, true);
        virtual_function.set(4, virtual_function.get(4) | 4);
        model.add(place, virtual_function);
    }
    let inventory = model.inventory();
    let last = inventory.find(at(0, 2, 0, 3)).unwrap();
    assert_eq!(last.physical, Some(at(0, 1, 0, 0)));
    assert_eq!(
        (last.identity.vendor, last.identity.device),
        (0x8086, 0x154C)
    );
    assert_eq!(last.bars[0].address, 0x1_9000_8000);
    assert_eq!(last.bars[0].size, Some(0x4000));
    assert!(last.express.is_some_and(|express| express.function_reset));
    assert_eq!(
        model.with(at(0, 2, 0, 3), |f| f.command() & 4),
        0,
        "stopped, too"
    );
    let why = inventory.refusals(&model, at(0, 1, 0, 0));
    assert_eq!(why, [Refusal::VirtualFunctions(3)]);
    assert_eq!(inventory.refusals(&model, at(0, 1, 31, 7)), []);
}

#[test]
fn functions_with_alternative_routing_are_found_behind_gaps() {
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 1));
    for place in [at(0, 1, 0, 0), at(0, 1, 3, 5)] {
        let mut function = drive(0x1_0000_0000);
        function.extended(0xE, &[0]);
        model.add(place, function);
    }
    let inventory = model.inventory();
    assert!(inventory.find(at(0, 1, 3, 5)).is_some());
    let group = |place| inventory.group(place).unwrap();
    assert_eq!(
        group(at(0, 1, 0, 0)),
        group(at(0, 1, 3, 5)),
        "one device without access control"
    );
}

#[test]
fn a_function_whose_bus_mastering_is_hard_wired_is_told() {
    let model = Model::default();
    let stuck = Behaviour {
        keeps_mastering: true,
        ..Behaviour::default()
    };
    model.add(
        at(0, 0, 0, 0),
        Config::new(0x8086, 0x1237, 0x06_0000).behaving(stuck.clone()),
    );
    model.add(
        at(0, 2, 3, 0),
        Config::new(0x8086, 0x0953, 0x01_0400).behaving(stuck),
    );
    let found = scan::segment(&model, 0, 0..=255);
    let stopped: Vec<_> = found
        .iter()
        .map(|f| (f.stop(&model), f.is_harmless_bridge()))
        .collect();
    assert_eq!(
        stopped,
        [(Stopped::Refused, true), (Stopped::Refused, false)]
    );
}

#[test]
fn a_path_of_firmwares_tables_leads_through_bridges() {
    let inventory = four_sockets().inventory();
    let found = inventory
        .follow(0, 0x30, &[(1, 0), (0, 0), (8, 0), (0, 0)])
        .unwrap();
    assert_eq!(found.address, at(0, 0x33, 0, 0));
    assert!(inventory.follow(0, 0x30, &[(1, 0), (5, 0)]).is_none());
    assert!(
        inventory.follow(0, 0x33, &[(0, 0), (0, 0)]).is_none(),
        "a drive leads nowhere"
    );
    assert!(inventory.follow(0, 0, &[]).is_none());
}

#[test]
fn what_the_host_keeps_and_why_is_told() {
    let model = four_sockets();
    let inventory = model.inventory();
    let said = |place| -> Vec<String> {
        let why = inventory.refusals(&model, place);
        why.iter().map(ToString::to_string).collect()
    };
    assert_eq!(said(at(0, 0x17, 0, 0)), [""; 0]);
    assert_eq!(said(at(0, 0x33, 0, 0)), [""; 0]);
    assert_eq!(
        said(at(0, 0, 0x1F, 5)),
        [
            "it offers no reset that the host can use",
            "it can't be isolated from 0000:00:1f.0, which the host keeps: it is a bridge of the chipset"
        ]
    );
    assert!(said(at(0, 0x80, 0, 5))[0].contains("VMD"));
    assert_eq!(
        inventory.volume_managers().collect::<Vec<_>>(),
        [at(0, 0x80, 0, 5)]
    );
    let port = inventory.find(at(0, 0x16, 2, 0)).unwrap();
    assert!(matches!(port.header, Header::Bridge(buses) if buses.secondary == 0x17));
    assert!(matches!(
        inventory.owner(port.address),
        Some(Owner::Host(_))
    ));
    assert_eq!(inventory.owner(at(0, 0x33, 0, 0)), Some(&Owner::Nobody));
}
