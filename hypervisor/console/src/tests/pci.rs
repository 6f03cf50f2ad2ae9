//! Two PCI functions.

use alloc::vec;

use crate::host::{
    Hex,
    pci::{PciBar, PciHealth, PciLine, PciReport},
};

pub const SATA: &str = "0000:00:1f.2";
pub const DRIVE: &str = "0000:01:00.0";

/// Returns the report of one of them.
pub fn show(address: &str) -> PciReport {
    if address == SATA { sata() } else { drive() }
}

fn sata() -> PciReport {
    let bar = |index, kind, address, size| PciBar {
        index,
        kind,
        address: Hex(address),
        size: Some(size),
    };
    PciReport {
        line: PciLine {
            address: SATA.into(),
            id: "8086:2922".into(),
            device: "SATA controller",
            group: 3,
            owner: "none".into(),
            health: PciHealth::Good,
            refusals: vec![
                "it offers no reset that the host can use".into(),
                "it can't be isolated from 0000:00:1f.0, which the host keeps: it is a bridge of the chipset".into(),
            ],
        },
        class: "010601".into(),
        subsystem: Some("1af4:1100".into()),
        port: None,
        bridge: None,
        physical: None,
        group_members: vec!["0000:00:1f.0".into()],
        requesters: vec![Hex(0xFA)],
        bars: vec![
            bar(4, "ports", 0xC040, 32),
            bar(5, "memory", 0x8100_4000, 4096),
        ],
        capabilities: vec!["MSI".into(), "0x12".into()],
        resets: vec![],
        errors: vec![],
    }
}

fn drive() -> PciReport {
    PciReport {
        line: PciLine {
            address: DRIVE.into(),
            id: "8086:0a54".into(),
            device: "NVMe drive",
            group: 5,
            owner: "none".into(),
            health: PciHealth::Errors,
            refusals: vec![],
        },
        class: "010802".into(),
        subsystem: Some("8086:4702".into()),
        port: Some("endpoint"),
        bridge: Some("0000:00:02.0".into()),
        physical: None,
        group_members: vec![],
        requesters: vec![Hex(0x100)],
        bars: vec![PciBar {
            index: 0,
            kind: "memory",
            address: Hex(0x8000_0000),
            size: Some(0x4000),
        }],
        capabilities: vec!["PCI Express".into(), "MSI-X".into(), "AER".into()],
        resets: vec!["function-level".into()],
        errors: vec!["completion timeout"],
    }
}
