//! UEFI variables that OVMF measures: those of Secure Boot, which do not exist, and the boot entries.
//!
//! Source: UEFI Specification 2.10, sections 3.1.3 (load options) and 10.3 (device paths); TCG PC Client Platform Firmware
//! Profile 1.06, section 10.2.5 (UEFI_VARIABLE_DATA).

use super::Machine;
use crate::measure::event::{Event, Kind, Register, utf16};

/// EFI_GLOBAL_VARIABLE (8BE4DF61-93CA-11D2-AA0D-00E098032B8C).
const GLOBAL: [u8; 16] = [
    0x61, 0xDF, 0xE4, 0x8B, 0xCA, 0x93, 0xD2, 0x11, 0xAA, 0x0D, 0x00, 0xE0, 0x98, 0x03, 0x2B, 0x8C,
];
/// EFI_IMAGE_SECURITY_DATABASE (D719B2CB-3D3A-4596-A3BC-DAD00E67656F).
const DATABASE: [u8; 16] = [
    0xCB, 0xB2, 0x19, 0xD7, 0x3A, 0x3D, 0x96, 0x45, 0xA3, 0xBC, 0xDA, 0xD0, 0x0E, 0x67, 0x65, 0x6F,
];
/// The firmware volume with OVMF's programs (7CB8BDC9-F8EB-4F34-AAEA-3EE4AF6516A1), and two of them: the menu
/// (462CAA21-7614-4503-836E-8AB6F4662331) and the shell (7C04A583-9E3E-4F1C-AD65-E05268D0B4D1).
const VOLUME: [u8; 16] = [
    0xC9, 0xBD, 0xB8, 0x7C, 0xEB, 0xF8, 0x34, 0x4F, 0xAA, 0xEA, 0x3E, 0xE4, 0xAF, 0x65, 0x16, 0xA1,
];
const MENU: [u8; 16] = [
    0x21, 0xAA, 0x2C, 0x46, 0x14, 0x76, 0x03, 0x45, 0x83, 0x6E, 0x8A, 0xB6, 0xF4, 0x66, 0x23, 0x31,
];
const SHELL: [u8; 16] = [
    0x83, 0xA5, 0x04, 0x7C, 0x3E, 0x9E, 0x1C, 0x4F, 0xAD, 0x65, 0xE0, 0x52, 0x68, 0xD0, 0xB4, 0xD1,
];
/// The mark of a boot entry that the firmware made for a device (8108AC4E-9F11-4D59-850E-E21A522C59B2).
const AUTOMATIC: [u8; 16] = [
    0x4E, 0xAC, 0x08, 0x81, 0x11, 0x9F, 0x59, 0x4D, 0x85, 0x0E, 0xE2, 0x1A, 0x52, 0x2C, 0x59, 0xB2,
];

/// Attributes of a load option: it is active; it is hidden, and a program rather than a system.
const ACTIVE: u32 = 1;
const HIDDEN: u32 = 1 << 3;
const PROGRAM: u32 = 1 << 8;

/// Device number of the TD's first PCI function.
const FIRST_DEVICE: u8 = 1;

/// Returns the events of Secure Boot's variables. OVMF has none without keys, and measures that.
pub fn of_secure_boot() -> impl Iterator<Item = Event> {
    let variables = [
        ("SecureBoot", &GLOBAL),
        ("PK", &GLOBAL),
        ("KEK", &GLOBAL),
        ("db", &DATABASE),
        ("dbx", &DATABASE),
    ];
    variables.into_iter().map(|(name, vendor)| {
        let content = record(vendor, name, &[]);
        Event::of(Register::Rtmr0, Kind::VARIABLE_CONFIG, name, &content)
    })
}

/// Returns a variable as it is measured with its name: UEFI_VARIABLE_DATA.
pub fn record(vendor: &[u8; 16], name: &str, content: &[u8]) -> Vec<u8> {
    let mut letters = utf16(name);
    letters.truncate(2 * name.len());
    let mut record = vendor.to_vec();
    record.extend((name.len() as u64).to_le_bytes());
    record.extend((content.len() as u64).to_le_bytes());
    record.extend(letters);
    record.extend(content);
    record
}

/// Returns the events of the boot order and the boot entries: the menu, the drive, and the shell.
pub fn of_boot(machine: &Machine<'_>) -> impl Iterator<Item = Event> {
    let in_volume = |file: &[u8; 16]| [node(4, 7, &VOLUME), node(4, 6, file), end()].concat();
    let drive = machine.drive;
    let drive_name = format!("UEFI {} {} 1", drive.model, drive.serial);
    let entries = [
        option(ACTIVE | HIDDEN | PROGRAM, "UiApp", &in_volume(&MENU)),
        [
            option(ACTIVE, &drive_name, &path_of_drive()),
            AUTOMATIC.to_vec(),
        ]
        .concat(),
        option(ACTIVE, "EFI Internal Shell", &in_volume(&SHELL)),
    ];
    let order: Vec<u8> = (0..entries.len() as u16)
        .flat_map(u16::to_le_bytes)
        .collect();
    let boot =
        |name: &str, content: &[u8]| Event::of(Register::Rtmr0, Kind::VARIABLE_BOOT, name, content);
    let mut events = vec![boot("BootOrder", &order)];
    for (number, entry) in entries.iter().enumerate() {
        events.push(boot(&format!("Boot{number:04X}"), entry));
    }
    events.into_iter()
}

/// Returns a load option.
fn option(attributes: u32, name: &str, path: &[u8]) -> Vec<u8> {
    let mut option = attributes.to_le_bytes().to_vec();
    option.extend((path.len() as u16).to_le_bytes());
    option.extend(utf16(name));
    option.extend(path);
    option
}

/// Returns the device path of the first namespace of the drive: root bridge 0, the function, the namespace without an
/// EUI-64.
fn path_of_drive() -> Vec<u8> {
    const ROOT_BRIDGE: [u8; 8] = [0xD0, 0x41, 0x03, 0x0A, 0, 0, 0, 0];
    let namespace = [&1u32.to_le_bytes()[..], &[0; 8]].concat();
    [
        node(2, 1, &ROOT_BRIDGE),
        node(1, 1, &[0, FIRST_DEVICE]),
        node(3, 0x17, &namespace),
        end(),
    ]
    .concat()
}

/// Returns a node of a device path.
fn node(kind: u8, sub: u8, content: &[u8]) -> Vec<u8> {
    let bytes = (4 + content.len() as u16).to_le_bytes();
    [&[kind, sub, bytes[0], bytes[1]], content].concat()
}

fn end() -> Vec<u8> {
    node(0x7F, 0xFF, &[])
}
