//! Devices that deviate from the specification.
//!
//! Source: Linux, `drivers/pci/quirks.c` and `drivers/pci/controller/vmd.c`.

use crate::{Address, Function};

const INTEL: u16 = 0x8086;
const AMD: u16 = 0x1022;
const MARVELL: u16 = 0x1B4B;
const HIGHPOINT: u16 = 0x1103;
const JMICRON: u16 = 0x197B;
const RICOH: u16 = 0x1180;
const GLENFLY: u16 = 0x6766;

/// Returns the address whose requester id the function also uses for its DMA.
pub fn alias(function: &Function) -> Option<Address> {
    let identity = &function.identity;
    let number = match (identity.vendor, identity.device) {
        (
            MARVELL,
            0x9120 | 0x9123 | 0x9125 | 0x9128 | 0x9130 | 0x9170 | 0x9172 | 0x917A | 0x9182 | 0x9183
            | 0x91A0 | 0x9215 | 0x9220 | 0x9230 | 0x9235,
        )
        | (HIGHPOINT, 0x0642 | 0x0645)
        | (JMICRON, 0x2392) => 1,
        (RICOH, 0xE832 | 0xE476) | (GLENFLY, 0x3D40 | 0x3D41) => 0,
        _ => return None,
    };
    (function.address.function != number).then(|| function.address.sibling(number))
}

/// Returns true for Intel's Volume Management Device, which hides the functions behind it in a segment of its own.
pub fn is_volume_management(function: &Function) -> bool {
    let identity = &function.identity;
    identity.vendor == INTEL
        && matches!(
            identity.device,
            0x201D | 0x28C0 | 0x467F | 0x4C3D | 0x7D0B | 0x9A0B | 0xA77F | 0xAD0B | 0xB06F | 0xB60B
        )
}

/// Returns true if a function-level reset, which the function offers, makes it hang.
pub fn hangs_at_function_reset(function: &Function) -> bool {
    let identity = &function.identity;
    matches!(
        (identity.vendor, identity.device),
        (INTEL, 0x1502 | 0x1503) | (AMD, 0x1487 | 0x148C | 0x149C | 0x7901)
    )
}

/// Returns true if the base address registers of the function must not be written, since the machine needs what they
/// locate at every moment, or since they do not behave like such registers.
pub fn keeps_its_bars(function: &Function) -> bool {
    let identity = &function.identity;
    // The power control units and uncore devices of Haswell and Broadwell servers have other registers there.
    let is_uncore = identity.vendor == INTEL
        && matches!(
            identity.device,
            0x2F30 | 0x2F34 | 0x2FA0 | 0x2FC0 | 0x6F30 | 0x6F60 | 0x6FA0 | 0x6FC0
        );
    // Memory controllers apart from CXL devices, bridges, interrupt controllers, timers and IOMMUs, processors apart from
    // coprocessors, SMBus controllers, performance counters.
    is_uncore
        || match (identity.class.base, identity.class.sub) {
            (0x05, sub) => sub != 0x02,
            (0x0B, sub) => sub != 0x40,
            (0x0C, sub) => sub == 0x05,
            (0x11, sub) => sub == 0x01,
            (base, _) => matches!(base, 0x06 | 0x08),
        }
}
