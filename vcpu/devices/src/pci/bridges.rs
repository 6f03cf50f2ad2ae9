//! The bridges that every TD has.
//!
//! Source: Intel 3 Series Express Chipset Family data sheet, section 5.1 (PCIEXBAR); Intel I/O Controller Hub 9 data
//! sheet, sections 10.1 (RCBA) and 13.1 (PMBASE, ACPI_CNTL, PIRQ).

use super::{Config, Function, Identity};
use crate::pm;

/// Places of the bridges: device and function number in one byte.
pub const HOST_AT: u8 = 0x00;
pub const ISA_AT: u8 = 0x1F << 3;

/// Register of the host bridge: the address of the memory-mapped configuration space, in eight bytes.
pub const PCIEXBAR: usize = 0x60;
/// Registers of the ISA bridge: base port of power management, its enable register, routes of interrupt lines, which
/// have no effect, and the address of the chipset's registers, which do not exist.
const PMBASE: usize = 0x40;
const ACPI_CNTL: usize = 0x44;
const ROUTES: [usize; 2] = [0x60, 0x68];
const RCBA: usize = 0xF0;

/// A bridge, which has a configuration space and nothing else.
#[derive(Debug)]
pub struct Bridge(Config);

impl Function for Bridge {
    fn config(&mut self) -> &mut Config {
        &mut self.0
    }
}

/// The host bridge of Intel's Q35.
pub fn host() -> Bridge {
    const Q35: Identity = Identity {
        vendor: 0x8086,
        device: 0x29C0,
        class: 0x06_0000,
        revision: 0,
        subsystem: QEMU,
    };
    // Enable bit, number of buses, and base address, a multiple of 64 MiB.
    Bridge(always_on(Q35).with_writable(PCIEXBAR, &[0x07, 0, 0, 0xFC, 0x0F]))
}

/// The ISA bridge of Intel's ICH9. The power-management ports are at their fixed base, and enabled.
pub fn isa() -> Bridge {
    const ICH9: Identity = Identity {
        vendor: 0x8086,
        device: 0x2918,
        class: 0x06_0100,
        revision: 2,
        subsystem: QEMU,
    };
    let mut config = always_on(ICH9)
        .with(PMBASE, u32::from(pm::BASE) | 1)
        .with(ACPI_CNTL, 1 << 7)
        .with_writable(RCBA, &[0x01, 0xC0, 0xFF, 0xFF]);
    for routes in ROUTES {
        config = config.with_writable(routes, &[0x8F; 4]);
    }
    Bridge(config)
}

/// QEMU as the subsystem's vendor.
const QEMU: u32 = 0x1100_1AF4;

/// The guest can't switch a bridge off.
fn always_on(identity: Identity) -> Config {
    const COMMAND: usize = 0x04;
    const ON: u32 = 7;
    Config::of(identity)
        .with(COMMAND, ON)
        .with_fixed(COMMAND, 2)
}
