//! The DSDT: the devices that a guest does not find by itself.

use arrayvec::ArrayVec;
use td_base::board;

use crate::{Pci, WINDOWS, aml};

/// Builds the content of the table: power-off, the serial port, the clock, the panic device, the PCI bus, and the
/// memory of the bus's configuration space, which is no device's.
pub fn devices(pci: &Pci) -> aml::Term {
    let mut terms = aml::name(*b"_S5_", &aml::package(&[0, 0, 0, 0]));
    let device = |name, id: &[u8], resources: &[&[u8]]| {
        let resources = aml::template(resources);
        aml::device(
            name,
            &[&aml::name(*b"_HID", id), &aml::name(*b"_CRS", &resources)],
        )
    };
    let serial = [
        aml::ports(board::SERIAL, 8),
        aml::interrupt(board::SERIAL_INTERRUPT),
    ];
    let [serial_ports, serial_interrupt] = &serial;
    let config = pci.config.map(|at| {
        let bytes = board::PCI_CONFIG_BYTES;
        let config = match u32::try_from(at) {
            Ok(at) => aml::fixed_memory(at, bytes as u32),
            Err(_) => aml::memory(at..at.saturating_add(bytes)),
        };
        device(*b"PCFG", &aml::pnp(0x0C02), &[&config])
    });
    let scope = aml::scope(
        *b"_SB_",
        &[
            &device(
                *b"COM1",
                &aml::pnp(0x0501),
                &[serial_ports, serial_interrupt],
            ),
            &device(*b"RTC0", &aml::pnp(0x0B00), &[&aml::ports(board::CLOCK, 2)]),
            &device(
                *b"PEVT",
                &aml::string("QEMU0001"),
                &[&aml::ports(board::PANIC, 1)],
            ),
            &config.unwrap_or_default(),
            &bus(pci),
        ],
    );
    terms
        .try_extend_from_slice(&scope)
        .expect("the devices have room");
    terms
}

/// Builds the host bridge of the PCI bus, a PCI Express one that conventional systems know too. It has no interrupt
/// lines, and so no routes of them.
fn bus(pci: &Pci) -> aml::Term {
    let windows = pci.windows.iter().cloned().map(aml::memory);
    let windows: ArrayVec<_, WINDOWS> = windows.collect();
    let (buses, ports) = (aml::buses(0, 0), aml::ports(board::PCI_ADDRESS, 8));
    let first = [&buses[..], &ports[..]].into_iter();
    let resources: ArrayVec<&[u8], { WINDOWS + 2 }> = first
        .chain(windows.iter().map(|window| &window[..]))
        .collect();
    let resources = aml::template(&resources);
    aml::device(
        *b"PCI0",
        &[
            &aml::name(*b"_HID", &aml::pnp(0x0A08)),
            &aml::name(*b"_CID", &aml::pnp(0x0A03)),
            &aml::name(*b"_UID", &aml::byte(0)),
            &aml::name(*b"_SEG", &aml::byte(0)),
            &aml::name(*b"_BBN", &aml::byte(0)),
            &aml::name(*b"_CRS", &resources),
        ],
    )
}
