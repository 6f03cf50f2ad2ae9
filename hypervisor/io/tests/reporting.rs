//! Reports of errors while a TD has a function, and the errors that end the TD.

mod model;

use io::{Function, Inventory, Space, Trouble};
use model::server::{drive, root_port};
use model::{Config, Model, at};

const DRIVE: io::Address = at(0, 1, 0, 0);
const UNSUPPORTED: u32 = 1 << 20;
/// Offset of the AER capability, which is the first extended one.
const AER: u16 = 0x100;
/// Offset of the device control and status registers: the PCI Express capability is the first.
const DEVICE: u16 = 0x48;

fn with(config: Config) -> (Model, Inventory) {
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 1));
    model.add(DRIVE, config);
    let inventory = model.inventory();
    (model, inventory)
}

fn drive_of(inventory: &Inventory) -> &Function {
    inventory.find(DRIVE).unwrap()
}

/// Returns the mask of unsupported requests, their report, and the function's leave to report errors.
fn reports(model: &Model) -> (bool, bool, bool) {
    (
        model.read(DRIVE, AER + 8) & UNSUPPORTED != 0,
        model.read16(DRIVE, DEVICE) & 8 != 0,
        model.read16(DRIVE, 4) & 0x100 != 0,
    )
}

#[test]
fn reports_are_off_while_a_td_has_the_function_and_as_before_afterwards() {
    for (masked, reported, system_errors) in [
        (false, true, true),
        (false, false, true),
        (true, true, false),
        (true, false, false),
    ] {
        let (model, inventory) = with(drive(1 << 32).errors(1 << 14, 1));
        let function = drive_of(&inventory);
        model.write(
            DRIVE,
            AER + 8,
            1 << 16 | if masked { UNSUPPORTED } else { 0 },
        );
        model.write16(DRIVE, DEVICE, 0x2810 | u16::from(reported) << 3);
        model.write16(DRIVE, 4, 3 | u16::from(system_errors) << 8);
        let before = reports(&model);
        assert_eq!(before, (masked, reported, system_errors));
        let reporting = function.quiet(&model);
        assert_eq!(reports(&model), (true, false, false));
        assert_eq!(function.trouble(&model), None, "old errors are cleared");
        function.unquiet(&model, reporting);
        assert_eq!(reports(&model), before);
        assert_eq!(model.read(DRIVE, AER + 8) & !UNSUPPORTED, 1 << 16);
        assert_eq!(model.read16(DRIVE, DEVICE) & !8, 0x2810);
    }
}

#[test]
fn serious_errors_are_trouble_and_unsupported_requests_are_not() {
    let trouble = |uncorrectable, summary: u32| {
        let (model, inventory) = with(drive(1 << 32).errors(uncorrectable, 1 << 6));
        model.with(DRIVE, |config| {
            config.set(DEVICE, config.get(DEVICE) | summary << 16);
        });
        drive_of(&inventory)
            .trouble(&model)
            .map(|trouble| trouble.to_string())
    };
    assert_eq!(trouble(0, 0b0001), None, "corrected errors");
    assert_eq!(trouble(UNSUPPORTED, 0b1010), None);
    assert_eq!(
        trouble(UNSUPPORTED | 1 << 14, 0b1010).as_deref(),
        Some("it reported an error: completion timeout")
    );
}

#[test]
fn errors_that_the_firmware_masks_are_no_trouble() {
    let (model, inventory) = with(drive(1 << 32).errors(1 << 16 | 1 << 18, 0));
    model.write(DRIVE, AER + 8, 1 << 16);
    let trouble = drive_of(&inventory).trouble(&model).unwrap();
    assert_eq!(trouble.to_string(), "it reported an error: malformed TLP");
}

#[test]
fn without_aer_the_summary_decides() {
    let trouble = |summary: u32| {
        let (model, inventory) = with(drive(1 << 32));
        model.with(DRIVE, |config| {
            config.set(DEVICE, config.get(DEVICE) | summary << 16);
        });
        drive_of(&inventory)
            .trouble(&model)
            .map(|trouble| trouble.to_string())
    };
    assert_eq!(trouble(0b0001), None);
    assert_eq!(trouble(0b1010), None, "an unsupported request");
    assert_eq!(
        trouble(0b0010).as_deref(),
        Some("it reported an error: non-fatal error")
    );
    assert_eq!(
        trouble(0b1110).as_deref(),
        Some("it reported an error: fatal error")
    );
}

#[test]
fn a_function_that_has_vanished_is_trouble() {
    let (model, inventory) = with(drive(1 << 32));
    model.with(DRIVE, |config| config.behaviour.vanishes_after = Some(0));
    assert_eq!(drive_of(&inventory).trouble(&model), Some(Trouble::Gone));
}
