//! The files with ACPI tables that OVMF reads by fw_cfg, from the device that TDs have.

use std::sync::Arc;

use anyhow::{Context, Result};
use devices::pci::{Config, Function, Identity};
use devices::{Devices, Now};
use host::td::{firmware_facts, memory::Layout};
use spin::Mutex;

use super::Machine;

/// The files, in the order in which OVMF measures them.
const FILES: [&str; 3] = ["etc/table-loader", "etc/acpi/tables", "etc/acpi/rsdp"];

/// The TD's first function, device 1, as an address in the configuration space.
const FIRST_FUNCTION: u64 = 1 << 11;
/// Registers of a function: base addresses, in the configuration space.
const BAR: u64 = 0x10;
/// The host bridge's register with the address of the configuration space.
const PCIEXBAR: u64 = 0x60;
/// The address of the configuration space that OVMF 2025.02 chooses, and the bit that enables it.
const CONFIGURATION: u64 = 0xE000_0000;
const ENABLED: u64 = 1;

/// Bytes of a drive's registers.
const DRIVE_BYTES: u64 = 16 << 10;
/// Bits of the addresses that OVMF 2025.02 uses at most.
const MOST_BITS: u8 = 46;

/// Returns the first address that OVMF gives to a function with a 64-bit register: it keeps the last eighth of the
/// addresses for them. The TD is taken to have pages of 1 GiB, and as many address bits as OVMF uses unless `maxpa` says
/// less.
fn first_place(td: &config::Td) -> u64 {
    7 << (td.maxpa.unwrap_or(MOST_BITS).min(MOST_BITS) - 3)
}

/// A drive: the memory of its registers is what the tables depend on.
#[derive(Debug)]
struct Drive(Config);

impl Function for Drive {
    fn config(&mut self) -> &mut Config {
        &mut self.0
    }
}

/// Returns the names and the contents of the files as OVMF finds them once it has placed the PCI bus.
///
/// # Errors
/// The TD has more memory than there are addresses.
pub fn files(machine: &Machine<'_>) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let layout = Layout::of(machine.td, machine.td.memory).context("it has too much memory")?;
    let identity = Identity {
        vendor: 0x1B36,
        device: 0x10,
        class: 0x01_0802,
        revision: 2,
        subsystem: 0,
    };
    let drive = Config::of(identity).with_memory(0, DRIVE_BYTES, false);
    let devices = Devices::new(layout.parts(), vec![Arc::new(Mutex::new(Drive(drive)))]);
    let devices = devices.with_fw_cfg(&firmware_facts(machine.td));
    let port = Port(&devices);
    port.set(0, PCIEXBAR, CONFIGURATION | ENABLED);
    let place = first_place(machine.td);
    port.set(FIRST_FUNCTION, BAR, place & 0xFFFF_FFFF);
    port.set(FIRST_FUNCTION, BAR + 4, place >> 32);
    let read = |name| {
        let content = port.file(name);
        Ok((
            name,
            content.with_context(|| format!("fw_cfg has no {name}"))?,
        ))
    };
    FILES.into_iter().map(read).collect()
}

/// The devices, as firmware reaches them: by ports.
struct Port<'a>(&'a Devices);

impl Port<'_> {
    /// Writes a register of a function's configuration space.
    fn set(&self, function: u64, register: u64, value: u64) {
        self.0
            .output(0xCF8, 4, 1 << 31 | function | register, Now::default);
        self.0.output(0xCFC, 4, value, Now::default);
    }

    /// Returns the first bytes of an item of fw_cfg.
    fn item(&self, key: u16, bytes: usize) -> Vec<u8> {
        self.0.output(0x510, 2, key.into(), Now::default);
        let byte = |_| self.0.input(0x511, 1, Now::default).unwrap_or(0) as u8;
        (0..bytes).map(byte).collect()
    }

    /// Returns a file of fw_cfg.
    fn file(&self, name: &str) -> Option<Vec<u8>> {
        const DIRECTORY: u16 = 0x19;
        const ENTRY: usize = 64;
        let count = u32::from_be_bytes(self.item(DIRECTORY, 4).try_into().ok()?);
        let directory = self.item(DIRECTORY, 4 + ENTRY * count as usize);
        let named =
            |entry: &&[u8]| entry[8..].split(|byte| *byte == 0).next() == Some(name.as_bytes());
        let entry = directory[4..].chunks_exact(ENTRY).find(named)?;
        let bytes = u32::from_be_bytes(entry[..4].try_into().ok()?);
        let key = u16::from_be_bytes(entry[4..6].try_into().ok()?);
        Some(self.item(key, bytes as usize))
    }
}
