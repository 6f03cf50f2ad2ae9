//! Isolation groups and requester ids.

mod model;

use io::{Address, Defect, Inventory};
use model::server::{drive, four_sockets, root_port};
use model::{Config, Model, at};

fn together(inventory: &Inventory, a: Address, b: Address) -> bool {
    let group = |place| inventory.group(place).unwrap_or_else(|| panic!("{place}"));
    group(a) == group(b)
}

#[test]
fn access_control_makes_groups_of_single_functions() {
    let inventory = four_sockets().inventory();
    for (segment, first) in [(0, 0), (0, 0x80), (1, 0), (1, 0x80)] {
        let alone = [
            at(segment, first + 0x17, 0, 0),
            at(segment, first + 0x17, 0, 1),
            at(segment, first + 0x33, 0, 0),
            at(segment, first + 0x34, 0, 0),
        ];
        for place in alone {
            let group = inventory.group(place).unwrap();
            let members: Vec<_> = inventory.members(group).map(|f| f.address).collect();
            assert_eq!(members, [place]);
        }
    }
}

#[test]
fn a_switch_without_access_control_is_one_group_with_all_behind_it() {
    let inventory = four_sockets().inventory();
    let group = inventory.group(at(1, 0xC3, 0, 0)).unwrap();
    let members: Vec<_> = inventory.members(group).map(|f| f.address).collect();
    assert_eq!(
        members,
        [
            at(1, 0xC2, 1, 0),
            at(1, 0xC2, 2, 0),
            at(1, 0xC3, 0, 0),
            at(1, 0xC4, 0, 0)
        ]
    );
}

#[test]
fn a_port_without_access_control_spoils_all_below_it() {
    let model = Model::default();
    model.add(
        at(0, 0, 1, 0),
        Config::bridge(0x3420, 1, 4).express(4, false),
    );
    model.add(
        at(0, 1, 0, 0),
        Config::bridge(0x8747, 2, 4).express(5, false),
    );
    for (device, bus) in [(0, 3), (1, 4)] {
        let port = Config::bridge(0x8747, bus, bus)
            .express(6, false)
            .access_control(0x1D);
        model.add(at(0, 2, device, 0), port);
        model.add(at(0, bus, 0, 0), drive(u64::from(bus) << 32));
    }
    let inventory = model.inventory();
    assert!(together(&inventory, at(0, 3, 0, 0), at(0, 4, 0, 0)));
    assert!(together(&inventory, at(0, 3, 0, 0), at(0, 0, 1, 0)));
}

#[test]
fn a_port_that_can_not_switch_all_services_on_does_not_isolate() {
    for missing in [0, 2, 3, 4] {
        let model = Model::default();
        let port = Config::bridge(0x3420, 1, 1)
            .express(4, false)
            .access_control(0x1D & !(1 << missing));
        model.add(at(0, 0, 1, 0), port);
        model.add(at(0, 1, 0, 0), drive(1 << 32));
        let inventory = model.inventory();
        assert!(
            together(&inventory, at(0, 1, 0, 0), at(0, 0, 1, 0)),
            "{missing}"
        );
    }
}

#[test]
fn functions_of_one_device_are_together_unless_they_have_access_control() {
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 1));
    model.add(at(0, 1, 0, 0), drive(1 << 32).multi_function());
    model.add(at(0, 1, 0, 1), drive(2 << 32));
    model.add(at(0, 1, 0, 2), drive(3 << 32).access_control(0));
    let inventory = model.inventory();
    assert!(together(&inventory, at(0, 1, 0, 0), at(0, 1, 0, 1)));
    assert!(!together(&inventory, at(0, 1, 0, 0), at(0, 1, 0, 2)));
    assert!(!together(&inventory, at(0, 1, 0, 0), at(0, 0, 1, 0)));
}

#[test]
fn everything_behind_a_bridge_to_pci_has_the_bridges_id() {
    let inventory = four_sockets().inventory();
    let display = at(0, 3, 0, 0);
    assert!(together(&inventory, display, at(0, 2, 0, 0)));
    assert!(
        !together(&inventory, display, at(0, 0, 0x1C, 0)),
        "the port above has access control"
    );
    assert_eq!(inventory.requesters(display), [0x0300]);
    let model = Model::default();
    // A conventional bridge on the root bus.
    model.add(at(0, 0, 0x1E, 0), Config::bridge(0x244E, 1, 1));
    model.add(at(0, 1, 2, 0), Config::new(0x1000, 0x0030, 0x01_0000));
    model.add(at(0, 1, 3, 0), Config::new(0x8086, 0x100E, 0x02_0000));
    let inventory = model.inventory();
    assert!(together(&inventory, at(0, 1, 2, 0), at(0, 1, 3, 0)));
    assert_eq!(inventory.requesters(at(0, 1, 2, 0)), [0x0110, 0x00F0]);
}

#[test]
fn a_device_that_uses_another_functions_id_is_in_its_group() {
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 1));
    let sata = Config::new(0x1B4B, 0x9230, 0x01_0601)
        .express(0, false)
        .access_control(0);
    model.add(at(0, 1, 0, 0), sata.multi_function());
    model.add(at(0, 1, 0, 1), drive(1 << 32).access_control(0));
    let inventory = model.inventory();
    assert_eq!(inventory.requesters(at(0, 1, 0, 0)), [0x0100, 0x0101]);
    assert!(together(&inventory, at(0, 1, 0, 0), at(0, 1, 0, 1)));
}

#[test]
fn a_bus_that_two_bridges_claim_isolates_nothing() {
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 1));
    model.add(at(0, 0, 2, 0), root_port(1, 1));
    model.add(at(0, 1, 0, 0), drive(1 << 32));
    // This bridge claims a bus that can't be behind it, and this drive is in the middle of another's buses.
    model.add(at(0, 8, 0, 0), root_port(8, 9));
    model.add(at(0, 0, 3, 0), root_port(0x10, 0x20));
    model.add(at(0, 0x18, 0, 0), drive(2 << 32));
    let inventory = model.inventory();
    let defects = |place| inventory.find(place).unwrap().defects.clone();
    assert_eq!(defects(at(0, 1, 0, 0)), [Defect::Unreachable]);
    assert_eq!(defects(at(0, 8, 0, 0)), [Defect::Buses]);
    assert_eq!(defects(at(0, 0x18, 0, 0)), [Defect::Unreachable]);
    assert!(together(&inventory, at(0, 1, 0, 0), at(0, 0, 2, 0)));
    assert!(together(&inventory, at(0, 0x18, 0, 0), at(0, 0, 3, 0)));
}

#[test]
fn segments_do_not_mix() {
    let model = Model::default();
    model.add(
        at(0, 0, 1, 0),
        Config::bridge(0x3420, 1, 1).express(4, false),
    );
    model.add(at(1, 1, 0, 0), drive(1 << 32));
    let inventory = model.inventory();
    assert!(!together(&inventory, at(1, 1, 0, 0), at(0, 0, 1, 0)));
    assert_eq!(inventory.find(at(1, 1, 0, 0)).unwrap().defects, []);
}
