//! A VT-d unit that has blocked something, as the console shows it.

extern crate std;

use alloc::vec;

use super::Terminal;
use crate::host::{
    Hex,
    iommu::{Dma, Faults, Interrupts, Iommu, Reserved, Unit},
};

/// Returns the report.
pub fn units() -> Iommu {
    Iommu {
        dma: Dma {
            blocked_by_vtd: true,
            why_not: None,
        },
        units: vec![Unit {
            base: Hex(0xFED9_0000),
            segment: 0,
            works: true,
            problem: None,
            remaps_interrupts: true,
            taken_over: false,
            has_rest: true,
            named: 3,
            capability: Some(Hex(0xD2_008C_222F_0686)),
            extended_capability: Some(Hex(0xF0_0F5A)),
        }],
        interrupts: Some(Interrupts {
            used: 2,
            entries: 4096,
            extended: true,
        }),
        faults: vec![Faults {
            function: "0000:01:00.0".into(),
            accesses: 513,
            interrupts: 0,
            untold: 505,
            muted: true,
            last: "a write to 0x100000: the function has no domain (0x2)".into(),
        }],
        other_faults: 0,
        lost: 1,
        reserved: vec![Reserved {
            function: "0000:00:14.0".into(),
            start: Hex(0x7B80_0000),
            end: Hex(0x7B88_0000),
            blocked: Some("the TDX module has memory from 0x7b800000 on".into()),
        }],
    }
}

#[test]
fn units_and_what_they_blocked_are_shown() {
    assert_eq!(
        Terminal::default().run("iommu"),
        "DMA          blocked by VT-d\r\n\
         interrupts   remapped: 2 of 4096 entries used, destinations of 32 bits\r\n\
         faults lost  1 time\r\n\
         \r\n\
         \x20     UNIT  SEGMENT  STATE  INTERRUPTS  NAMES\r\n\
         0xfed90000        0  on     remapped        3  + all\r\n\
         \r\n\
         \x20    BLOCKED  ACCESSES  INTERRUPTS  NOT LOGGED  LAST\r\n\
         0000:01:00.0       513           0         505  a write to 0x100000: the function has no domain (0x2)  muted\r\n\
         \r\n\
         RESERVED FOR       START         END  ACCESS\r\n\
         0000:00:14.0  0x7b800000  0x7b880000  blocked: the TDX module has memory from 0x7b800000 on\r\n"
    );
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let json = terminal.json("iommu");
    assert_eq!(json["dma"]["blocked_by_vtd"], true, "{json}");
    assert_eq!(json["units"][0]["base"], "0xfed90000", "{json}");
    assert_eq!(json["faults"][0]["muted"], true, "{json}");
}

#[test]
fn tdx_says_what_keeps_devices_from_memory() {
    let mut terminal = Terminal::default();
    assert!(terminal.run("tdx").contains("blocked by VT-d\r\n"));
    terminal.machine.without_tdx = true;
    let words =
        "rests on the devices' bus-master bits alone: the firmware reports no VT-d unit\r\n";
    assert!(terminal.run("tdx").contains(words));
}
