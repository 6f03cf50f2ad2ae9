//! The items: those with a fixed number, and the files, which the directory lists.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::ops::Range;

use super::{Facts, acpi::Acpi, name::name_bytes, smbios};
use crate::pci::Bus;

/// Numbers of items.
mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const FEATURES: u16 = 0x01;
    pub const UUID: u16 = 0x02;
    pub const CPUS: u16 = 0x05;
    pub const MOST_CPUS: u16 = 0x0F;
    pub const DIRECTORY: u16 = 0x19;
    /// The first file.
    pub const FILES: u16 = 0x20;
}

/// Features: reading by port, and by transfers.
const BY_PORT_AND_TRANSFER: u32 = 3;
/// Type of a range in `etc/e820`: memory.
const RAM: u32 = 1;
/// States of power, by number: the type that PM1 control wants for it, and whether the machine has it.
const HAS: u8 = 1 << 7;
const SYSTEM_STATES: [u8; 6] = [HAS, 0, 0, 1, 2, HAS];

/// The items of one TD.
#[derive(Debug)]
pub struct Items {
    fixed: Vec<Item>,
    acpi: Acpi,
    selected: Selected,
}

/// An item whose content never changes.
#[derive(Debug)]
struct Item {
    key: u16,
    content: Box<[u8]>,
}

/// The selected item.
#[derive(Clone, Copy, Debug)]
enum Selected {
    /// There is no item of that number. It reads as zeros.
    None,
    Fixed(usize),
    /// Number of an ACPI file.
    Acpi(usize),
}

/// A file's name and content.
type File = (&'static str, Vec<u8>);

impl Items {
    pub fn new(facts: &Facts, memory: &[Range<u64>], bus: &Arc<Bus>) -> Self {
        let acpi = Acpi::new(facts.vcpus.into(), bus);
        // Firmware searches the directory from its start, byte by byte, first for the memory.
        let mut files: Vec<File> = Vec::from([
            ("etc/e820", e820(memory)),
            ("etc/system-states", SYSTEM_STATES.to_vec()),
            ("etc/smbios/smbios-anchor", smbios::anchor(facts.uuid)),
            ("etc/smbios/smbios-tables", smbios::tables(facts.uuid)),
        ]);
        if !facts.boot_order.is_empty() {
            let mut order = facts.boot_order.join("\n").into_bytes();
            order.push(0);
            files.push(("bootorder", order));
        }
        let first_acpi = key::FILES + files.len() as u16;
        let directory = directory(&files, &acpi);
        let cpus = facts.vcpus.to_le_bytes().to_vec();
        let mut fixed: Vec<_> = [
            (key::SIGNATURE, b"QEMU".to_vec()),
            (key::FEATURES, BY_PORT_AND_TRANSFER.to_le_bytes().to_vec()),
            (key::UUID, facts.uuid.as_bytes().to_vec()),
            (key::CPUS, cpus.clone()),
            (key::MOST_CPUS, cpus),
            (key::DIRECTORY, directory),
        ]
        .into_iter()
        .map(Item::from)
        .collect();
        let numbered = (key::FILES..).zip(files);
        fixed.extend(numbered.map(|(key, (_, content))| Item::from((key, content))));
        Self {
            fixed,
            acpi: acpi.numbered_from(first_acpi),
            selected: Selected::None,
        }
    }

    /// Selects an item. The ACPI tables are rendered if it is one of their files.
    pub fn select(&mut self, key: u16) {
        let fixed = || self.fixed.iter().position(|item| item.key == key);
        self.selected = match self.acpi.file_of(key) {
            Some(file) => Selected::Acpi(file),
            None => fixed().map_or(Selected::None, Selected::Fixed),
        };
        if matches!(self.selected, Selected::Acpi(_)) {
            self.acpi.render();
        }
    }

    /// Returns the content of the selected item.
    pub fn selected(&self) -> &[u8] {
        match self.selected {
            Selected::None => &[],
            Selected::Fixed(at) => &self.fixed[at].content,
            Selected::Acpi(file) => self.acpi.content(file),
        }
    }
}

impl From<(u16, Vec<u8>)> for Item {
    fn from((key, content): (u16, Vec<u8>)) -> Self {
        let content = content.into_boxed_slice();
        Self { key, content }
    }
}

/// Returns the directory: the number of files, and size, number and name of each.
fn directory(files: &[File], acpi: &Acpi) -> Vec<u8> {
    let own = files.iter().map(|(name, content)| (*name, content.len()));
    let all: Vec<_> = own.chain(acpi.files()).collect();
    let mut directory = (all.len() as u32).to_be_bytes().to_vec();
    for (key, (name, bytes)) in (key::FILES..).zip(all) {
        directory.extend((bytes as u32).to_be_bytes());
        directory.extend(key.to_be_bytes());
        directory.extend([0; 2]);
        directory.extend(name_bytes(name));
    }
    directory
}

/// Returns the memory map: start, size and type of each range.
fn e820(memory: &[Range<u64>]) -> Vec<u8> {
    let mut map = Vec::new();
    for range in memory {
        map.extend(range.start.to_le_bytes());
        map.extend((range.end - range.start).to_le_bytes());
        map.extend(RAM.to_le_bytes());
    }
    map
}
