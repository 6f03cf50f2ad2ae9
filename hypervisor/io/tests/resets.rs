//! Resets and errors.

mod model;

use io::{Clock, Health, Reset, ResetError};
use model::server::{drive, root_port};
use model::{Behaviour, Config, Model, at};

const PORT: io::Address = at(0, 0, 1, 0);
const DRIVE: io::Address = at(0, 1, 0, 0);

fn with(config: Config) -> Model {
    let model = Model::default();
    model.add(PORT, root_port(1, 1));
    model.add(DRIVE, config);
    model
}

#[test]
fn a_function_level_reset_keeps_the_registers_and_stops_the_master() {
    let model = with(drive(0x12_3400_0000));
    let mut inventory = model.inventory();
    model.with(DRIVE, |config| config.set(4, config.get(4) | 6));
    let before = model.with(DRIVE, |config| (config.get(0x10), config.get(0x14)));
    assert_eq!(model.reset(&mut inventory, DRIVE), Ok(Reset::Function));
    model.with(DRIVE, |config| {
        assert_eq!(config.resets, 1);
        assert_eq!((config.get(0x10), config.get(0x14)), before);
        assert_eq!(config.command() & 7, 3, "decodes, is no master");
    });
    assert_eq!(model.decoded_writes.get(), 0);
}

#[test]
fn a_slow_function_is_awaited_and_a_dead_one_is_not_for_ever() {
    let slow = Behaviour {
        reset_us: 30_000_000,
        ..Behaviour::default()
    };
    let model = with(drive(1 << 32).behaving(slow));
    let mut inventory = model.inventory();
    assert_eq!(model.reset(&mut inventory, DRIVE), Ok(Reset::Function));
    let dead = Behaviour {
        never_returns: true,
        ..Behaviour::default()
    };
    let model = with(drive(1 << 32).behaving(dead));
    let mut inventory = model.inventory();
    let start = model.us();
    let error = model.reset(&mut inventory, DRIVE);
    assert_eq!(error, Err(ResetError::NotBack(DRIVE)));
    assert!(model.us() - start < 65_000_000);
}

#[test]
fn the_power_state_resets_what_forgets_its_state() {
    let nic = || Config::new(0x8086, 0x100E, 0x02_0000).memory32(0, 0x9000_0000, 0x2_0000);
    let model = with(nic().power(false));
    let mut inventory = model.inventory();
    assert_eq!(inventory.resets(DRIVE), [Reset::Power, Reset::Bus(PORT)]);
    assert_eq!(model.reset(&mut inventory, DRIVE), Ok(Reset::Power));
    assert_eq!(
        model.with(DRIVE, |config| (config.resets, config.get(0x10))),
        (1, 0x9000_0000)
    );
    let model = with(nic().power(true));
    assert_eq!(model.inventory().resets(DRIVE), [Reset::Bus(PORT)]);
}

#[test]
fn a_bus_is_reset_with_all_of_the_group_or_not_at_all() {
    let plain = || {
        Config::new(0x10DE, 0x1EB8, 0x03_0200)
            .memory32(0, 0x9000_0000, 0x100_0000)
            .express(0, false)
    };
    let model = with(plain().multi_function());
    model.add(at(0, 1, 0, 1), plain());
    let mut inventory = model.inventory();
    assert_eq!(inventory.resets(DRIVE), [Reset::Bus(PORT)]);
    assert_eq!(model.reset(&mut inventory, DRIVE), Ok(Reset::Bus(PORT)));
    for place in [DRIVE, at(0, 1, 0, 1)] {
        assert_eq!(
            model.with(place, |c| (c.resets, c.get(0x10))),
            (1, 0x9000_0000)
        );
    }
    // The second function is isolated from the first: a reset of one would hit the other's owner.
    let model = with(plain().access_control(0).multi_function());
    model.add(at(0, 1, 0, 1), plain().access_control(0));
    let mut inventory = model.inventory();
    assert_eq!(inventory.resets(DRIVE), []);
    assert_eq!(
        model.reset(&mut inventory, DRIVE),
        Err(ResetError::NoWay(DRIVE))
    );
    assert!(
        inventory
            .refusals(&model, DRIVE)
            .contains(&io::Refusal::NoReset)
    );
}

#[test]
fn a_function_whose_reset_hangs_is_not_reset_that_way() {
    let nic = Config::new(0x8086, 0x1502, 0x02_0000).express(0, true);
    assert_eq!(with(nic).inventory().resets(DRIVE), [Reset::Bus(PORT)]);
}

#[test]
fn another_device_after_the_reset_is_an_error() {
    let model = with(drive(1 << 32));
    let mut inventory = model.inventory();
    model.with(DRIVE, |config| config.set(0, 0x1234_8086));
    let error = model.reset(&mut inventory, DRIVE);
    assert_eq!(error, Err(ResetError::Changed(DRIVE)));
}

#[test]
fn errors_are_read_named_and_cleared() {
    let model = with(drive(1 << 32).errors(1 << 14 | 1 << 18, 1 << 6));
    let inventory = model.inventory();
    let function = inventory.find(DRIVE).unwrap();
    let Health::Errors(errors) = function.health(&model) else {
        panic!("no errors");
    };
    assert_eq!(
        errors.names(),
        ["completion timeout", "malformed TLP", "bad TLP"]
    );
    assert!(errors.is_serious());
    function.clear(&model, errors);
    assert_eq!(function.health(&model), Health::Good);
    model.with(DRIVE, |config| config.behaviour.vanishes_after = Some(0));
    assert_eq!(function.health(&model), Health::Gone);
}
