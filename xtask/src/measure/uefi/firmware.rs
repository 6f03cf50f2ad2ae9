//! OVMF with measured boot: what it extends into RTMR0 before it starts a program.
//!
//! Source: edk2-stable202502, OvmfPkg/IntelTdx/TdxHelperLib, OvmfPkg/Tcg/TdTcg2Dxe, OvmfPkg/AcpiPlatformDxe; and the
//! logs of boots.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use host::td::plan;
use lzma_rust2::LzmaReader;
use tdvf::{Kind as SectionKind, TdImage};

use super::{Machine, acpi, variables};
use crate::measure::event::{Event, Kind, Register};

/// The section of a firmware volume that LZMA compresses (EE4E5898-3914-4259-9D6E-DC7BD79403CF).
const LZMA_SECTION: [u8; 16] = [
    0x98, 0x58, 0x4E, 0xEE, 0x14, 0x39, 0x59, 0x42, 0x9D, 0x6E, 0xDC, 0x7B, 0xD7, 0x94, 0x03, 0xCF,
];
/// The driver that measures (TdTcg2Dxe, F062221E-C607-44C2-B0B4-C3886331D351).
const MEASURING_DRIVER: [u8; 16] = [
    0x1E, 0x22, 0x62, 0xF0, 0x07, 0xC6, 0xC2, 0x44, 0xB0, 0xB4, 0xC3, 0x88, 0x63, 0x31, 0xD3, 0x51,
];
/// Memory for the decompression in KiB.
const MEMORY_KIB: u32 = 256 << 10;
/// Largest size of the decompressed volumes.
const VOLUMES: u64 = 64 << 20;
/// Bytes of the end of the list of memory, which are not measured.
const END_OF_LIST: usize = 8;

/// Returns whether OVMF measures what it starts: it contains the driver for that.
///
/// # Errors
/// The image has no volumes as OVMF has them.
pub fn measures(image: &[u8]) -> Result<bool> {
    let at = image
        .windows(LZMA_SECTION.len())
        .position(|window| window == LZMA_SECTION);
    let at = at.context("it has no compressed volumes: it is no OVMF")?;
    // The section's header ends with the offset of the data from its start, and attributes.
    let offset = image.get(at + 16..at + 18).context("it is cut off")?;
    let offset = usize::from(u16::from_le_bytes([offset[0], offset[1]]));
    let data = image.get(at - 4 + offset..).context("it is cut off")?;
    let volumes = LzmaReader::new_mem_limit(data, MEMORY_KIB, None);
    let volumes = volumes.context("its volumes can't be decompressed")?;
    let mut content = Vec::new();
    let read = volumes.take(VOLUMES).read_to_end(&mut content);
    read.context("its volumes can't be decompressed")?;
    let driver = |window: &[u8]| window == MEASURING_DRIVER;
    Ok(content.windows(MEASURING_DRIVER.len()).any(driver))
}

/// Returns the events up to the first program.
///
/// # Errors
/// The machine has something whose measurement is not predicted.
pub fn events(machine: &Machine<'_>, image: &TdImage<'_>) -> Result<Vec<Event>> {
    let rtmr0 = |kind, name: &str, content: &[u8]| Event::of(Register::Rtmr0, kind, name, content);
    let list = plan::uefi_list(machine.td, image).context("it has too much memory")?;
    let list = &list[..list.len() - END_OF_LIST];
    let mut settings = image.sections().iter();
    let settings = settings.find(|section| section.kind == SectionKind::Cfv);
    let settings = settings.context("the firmware has no volume for variables")?;
    ensure!(
        machine.td.boot_order.is_empty(),
        "boot_order is set, whose effect on the boot entries is not predicted"
    );
    let mut events = vec![
        rtmr0(Kind::HANDOFF_TABLES, "list of memory (TD HOB)", list),
        rtmr0(
            Kind::FIRMWARE_BLOB,
            "variables' volume (CFV)",
            settings.data,
        ),
    ];
    events.extend(variables::of_secure_boot());
    events.push(rtmr0(Kind::SEPARATOR, "separator", &[0; 4]));
    for (name, content) in acpi::files(machine)? {
        events.push(rtmr0(Kind::PLATFORM_CONFIG, name, &content));
    }
    events.extend(variables::of_boot(machine));
    Ok(events)
}
