//! The firmware configuration device (fw_cfg), by which PC firmware such as OVMF learns what machine it runs on: items,
//! some of which are files with names in a directory.
//!
//! The firmware selects an item, and reads it byte by byte or by transfers to memory that it shares. Nothing is
//! writable. Every item has a fixed size; the ACPI tables are rendered when the firmware selects one of their files,
//! because they show where it has placed the PCI bus.
//!
//! Source: QEMU docs/specs/fw_cfg.rst, include/standard-headers/linux/qemu_fw_cfg.h.

mod acpi;
mod items;
mod loader;
mod name;
mod smbios;
#[cfg(test)]
mod tests;
mod transfer;

use alloc::{string::String, sync::Arc, vec::Vec};
use core::ops::Range;

use uuid::Uuid;

use crate::{Device, Effect, Now, Place, open_bus, pci::Bus};
use items::Items;
pub use transfer::Outcome;

/// The ports: selector, data, and from the fourth on the address of a transfer, in eight bytes.
pub const PORTS: Range<u64> = 0x510..0x51C;

const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const UPPER_ADDRESS: u64 = 4;
const LOWER_ADDRESS: u64 = 8;
/// The bytes that the address ports read as.
const SIGNATURE: [u32; 2] = [u32::from_le_bytes(*b"QEMU"), u32::from_le_bytes(*b" CFG")];

/// The facts that firmware is told, beside the memory and the PCI bus.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Number of vCPUs.
    pub vcpus: u16,
    /// The TD's UUID in the order in which it is written; zero if it has none.
    pub uuid: Uuid,
    /// The devices to boot from, as `OpenFirmware` device paths, the first one first. Empty if the firmware is to find
    /// one itself.
    pub boot_order: Vec<String>,
}

/// The device.
#[derive(Debug)]
pub struct FwCfg {
    items: Items,
    /// Offset of the next byte in the selected item.
    offset: u64,
    /// The upper half of a transfer's address.
    upper: u32,
}

impl FwCfg {
    /// Creates the device of a TD with this PCI bus and these memory ranges.
    pub fn new(facts: &Facts, memory: &[Range<u64>], bus: &Arc<Bus>) -> Self {
        Self {
            items: Items::new(facts, memory, bus),
            offset: 0,
            upper: 0,
        }
    }

    fn select(&mut self, key: u16) {
        self.items.select(key);
        self.offset = 0;
    }

    /// Copies the next bytes of the selected item, with zeros behind its end.
    fn copy(&mut self, to: &mut [u8]) {
        let content = self.items.selected();
        let start = content.len().min(self.offset as usize);
        let there = to.len().min(content.len() - start);
        to[..there].copy_from_slice(&content[start..start + there]);
        to[there..].fill(0);
        self.skip(to.len() as u64);
    }

    const fn skip(&mut self, bytes: u64) {
        self.offset = self.offset.saturating_add(bytes);
    }
}

impl Device for FwCfg {
    fn read(&mut self, place: Place, _: Now) -> u64 {
        match (place.offset, place.size) {
            (DATA, 1) => {
                let mut byte = [0];
                self.copy(&mut byte);
                byte[0].into()
            }
            (UPPER_ADDRESS, 4) => SIGNATURE[0].into(),
            (LOWER_ADDRESS, 4) => SIGNATURE[1].into(),
            (_, size) => open_bus(size),
        }
    }

    fn write(&mut self, place: Place, value: u64, _: Now) -> Effect {
        match (place.offset, place.size) {
            (SELECTOR, 2) => self.select(value as u16),
            // The address is big-endian.
            (UPPER_ADDRESS, 4) => self.upper = (value as u32).swap_bytes(),
            (LOWER_ADDRESS, 4) => {
                let upper = core::mem::take(&mut self.upper);
                let lower = (value as u32).swap_bytes();
                return Effect::Transfer(u64::from(upper) << 32 | u64::from(lower));
            }
            _ => {}
        }
        Effect::None
    }
}
