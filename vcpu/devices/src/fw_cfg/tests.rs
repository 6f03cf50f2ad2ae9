use alloc::{collections::BTreeMap, format, string::ToString, vec};
use core::cell::{Cell, RefCell};

mod hostile;

use super::*;
use crate::{Devices, NotShared, Power, SharedMemory, pci::Config, pci::Function, pci::Identity};
use sync::Mutex;

const PAGE: u64 = 4096;

/// Shared memory: some pages, and the work that was done on them.
#[derive(Default)]
struct Memory {
    pages: RefCell<BTreeMap<u64, [u8; PAGE as usize]>>,
    touched: Cell<u64>,
}

impl Memory {
    fn of(pages: impl IntoIterator<Item = u64>) -> Self {
        let pages = pages.into_iter().map(|page| (page * PAGE, [0xAA; 4096]));
        Self {
            pages: RefCell::new(pages.collect()),
            touched: Cell::new(0),
        }
    }

    fn each(
        &self,
        gpa: u64,
        bytes: usize,
        mut work: impl FnMut(usize, &mut u8),
    ) -> Result<(), NotShared> {
        for at in 0..bytes {
            let gpa = gpa.checked_add(at as u64).ok_or(NotShared)?;
            let mut pages = self.pages.borrow_mut();
            let page = pages.get_mut(&(gpa / PAGE * PAGE)).ok_or(NotShared)?;
            work(at, &mut page[(gpa % PAGE) as usize]);
            self.touched.set(self.touched.get() + 1);
        }
        Ok(())
    }

    fn get(&self, gpa: u64, bytes: usize) -> Vec<u8> {
        let mut got = vec![0; bytes];
        self.read(gpa, &mut got).unwrap();
        got
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        self.write(gpa, bytes).unwrap();
    }

    /// Writes a descriptor.
    fn describe(&self, gpa: u64, control: u32, bytes: u32, at: u64) {
        self.put(gpa, &control.to_be_bytes());
        self.put(gpa + 4, &bytes.to_be_bytes());
        self.put(gpa + 8, &at.to_be_bytes());
    }
}

impl SharedMemory for Memory {
    fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), NotShared> {
        self.each(gpa, to.len(), |at, byte| to[at] = *byte)
    }

    fn write(&self, gpa: u64, from: &[u8]) -> Result<(), NotShared> {
        self.each(gpa, from.len(), |at, byte| *byte = from[at])
    }
}

/// A function with memory.
#[derive(Debug)]
struct Card(Config);

impl Function for Card {
    fn config(&mut self) -> &mut Config {
        &mut self.0
    }
}

fn facts() -> Facts {
    Facts {
        vcpus: 3,
        uuid: uuid::Uuid::from_bytes(core::array::from_fn(|at| at as u8)),
        boot_order: Vec::from(["/pci@i0cf8/a@1", "/pci@i0cf8/b@2"].map(ToString::to_string)),
    }
}

fn devices() -> Devices {
    let identity = Identity {
        vendor: 0x1AF4,
        device: 0x1042,
        class: 0x01_0000,
        revision: 1,
        subsystem: 0,
    };
    let card = Card(Config::of(identity).with_memory(0, 16 << 10, false));
    let card: Arc<Mutex<dyn Function>> = Arc::new(Mutex::new(card));
    Devices::new([0..2 << 30, 4 << 30..5 << 30], Vec::from([card])).with_fw_cfg(&facts())
}

fn output(devices: &Devices, port: u16, size: u8, value: u64) -> Effect {
    devices.output(port, size, value, Now::default).unwrap()
}

/// Reads the first bytes of an item by port.
fn item(devices: &Devices, key: u16, bytes: usize) -> Vec<u8> {
    output(devices, 0x510, 2, key.into());
    let byte = |_| devices.input(0x511, 1, Now::default).unwrap() as u8;
    (0..bytes).map(byte).collect()
}

/// Returns the key and the content of a file.
fn file(devices: &Devices, name: &str) -> Option<(u16, Vec<u8>)> {
    let count = u32::from_be_bytes(item(devices, 0x19, 4).try_into().unwrap()) as usize;
    let directory = item(devices, 0x19, 4 + 64 * count);
    let mut entries = directory[4..].chunks(64);
    let entry = entries.find(|entry| entry[8..].starts_with(format!("{name}\0").as_bytes()))?;
    let bytes = u32::from_be_bytes(entry[..4].try_into().unwrap());
    let key = u16::from_be_bytes(entry[4..6].try_into().unwrap());
    Some((key, item(devices, key, bytes as usize)))
}

fn content(devices: &Devices, name: &str) -> Vec<u8> {
    file(devices, name).expect("the file").1
}

fn transfer(devices: &Devices, at: u64, memory: &Memory) -> Outcome {
    output(
        devices,
        0x514,
        4,
        u64::from(((at >> 32) as u32).swap_bytes()),
    );
    let effect = output(devices, 0x518, 4, u64::from((at as u32).swap_bytes()));
    assert_eq!(effect, Effect::Transfer(at));
    devices.transfer(at, memory)
}

/// Configures the bus as firmware does: PCIEXBAR, and the card's memory.
fn place_bus(devices: &Devices, pciexbar: u32, card: u64) {
    let set = |register: u32, value: u64| {
        output(devices, 0xCF8, 4, (1 << 31 | register).into());
        output(devices, 0xCFC, 4, value);
    };
    set(0x60, pciexbar.into());
    set(0x810, card & 0xFFFF_FFFF);
    set(0x814, card >> 32);
}

#[test]
fn a_td_without_firmware_of_its_own_has_no_such_device() {
    let devices = Devices::new([], Vec::new());
    assert_eq!(devices.input(0x511, 1, Now::default), None);
    assert_eq!(devices.transfer(0, &Memory::of([0])), Outcome::Refused);
}

#[test]
fn items_tell_the_machine() {
    let devices = devices();
    assert_eq!(item(&devices, 0, 5), *b"QEMU\0");
    assert_eq!(item(&devices, 1, 4), [3, 0, 0, 0]);
    assert_eq!(item(&devices, 5, 2), [3, 0]);
    assert_eq!(item(&devices, 0x0B, 4), [0; 4], "no initial file system");
    assert_eq!(item(&devices, 0xFFFF, 4), [0; 4]);
    let ram = content(&devices, "etc/e820");
    let words: Vec<u64> = [0, 8, 20, 28]
        .map(|at| u64::from_le_bytes(ram[at..at + 8].try_into().unwrap()))
        .into();
    assert_eq!((words, ram.len()), (vec![0, 2 << 30, 4 << 30, 1 << 30], 40));
    assert_eq!(
        content(&devices, "bootorder"),
        *b"/pci@i0cf8/a@1\n/pci@i0cf8/b@2\0"
    );
    assert_eq!(content(&devices, "etc/system-states").len(), 6);
    assert_eq!(file(&devices, "etc/none"), None);
    assert_eq!(file(&devices, "etc/e820").unwrap().0, 0x20, "the first one");
    assert_eq!(
        devices.input(0x514, 4, Now::default),
        Some(u64::from(u32::from_le_bytes(*b"QEMU")))
    );
}

#[test]
fn other_sizes_and_places_do_nothing() {
    let devices = devices();
    item(&devices, 0, 1);
    for (port, size) in [(0x510, 1), (0x511, 1), (0x511, 2), (0x514, 2), (0x518, 1)] {
        assert_eq!(output(&devices, port, size, 5), Effect::None);
    }
    for (port, size) in [(0x510, 1), (0x510, 2), (0x511, 2), (0x512, 1), (0x516, 2)] {
        let ones = Some(open_bus(size));
        assert_eq!(devices.input(port, size, Now::default), ones, "{port:#x}");
    }
    assert_eq!(devices.input(0x511, 1, Now::default), Some(b'E'.into()));
    assert_eq!(devices.input(0x51C, 1, Now::default), None);
    assert_ne!(Effect::Transfer(0), Effect::Power(Power::Off));
}

#[test]
fn smbios_has_the_uuid_and_adds_up() {
    let devices = devices();
    let anchor = content(&devices, "etc/smbios/smbios-anchor");
    let tables = content(&devices, "etc/smbios/smbios-tables");
    assert_eq!(anchor.len(), 24);
    assert_eq!(
        anchor.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    assert_eq!(anchor[12..16], (tables.len() as u32).to_le_bytes());
    assert_eq!(
        tables[8..24],
        [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]
    );
    assert!(tables.ends_with(&[0, 0, 127, 4, 0, 0x7F, 0, 0]));
}

/// Links the tables as firmware does: at these addresses, by the commands. Returns the files by name.
fn linked(devices: &Devices, mut at: u64) -> BTreeMap<String, (u64, Vec<u8>)> {
    let loader = content(devices, "etc/table-loader");
    let mut files: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
    for command in loader.chunks(128) {
        let word = |at: usize| u32::from_le_bytes(command[at..at + 4].try_into().unwrap());
        let name = |at: usize| {
            let bytes = command[at..at + 56]
                .split(|byte| *byte == 0)
                .next()
                .unwrap();
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        match word(0) {
            1 => {
                let content = content(devices, &name(4));
                at = at.next_multiple_of(word(60).into());
                let end = at + content.len() as u64;
                files.insert(name(4), (at, content));
                at = end;
            }
            2 => {
                let start = files[&name(60)].0;
                let (_, content) = files.get_mut(&name(4)).unwrap();
                let (offset, size) = (word(116) as usize, usize::from(command[120]));
                let pointer = &mut content[offset..offset + size];
                let mut value = [0; 8];
                value[..size].copy_from_slice(pointer);
                let sum = u64::from_le_bytes(value) + start;
                pointer.copy_from_slice(&sum.to_le_bytes()[..size]);
            }
            3 => {
                let (_, content) = files.get_mut(&name(4)).unwrap();
                let (byte, from, bytes) = (word(60) as usize, word(64) as usize, word(68) as usize);
                let sum = content[from..from + bytes]
                    .iter()
                    .fold(0u8, |sum, b| sum.wrapping_sub(*b));
                content[byte] = sum;
            }
            0 => assert!(command.iter().all(|byte| *byte == 0)),
            other => panic!("command {other}"),
        }
    }
    files
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Returns the linked tables by name.
fn tables(devices: &Devices) -> BTreeMap<[u8; 4], Vec<u8>> {
    let files = linked(devices, 0x7F00_0123);
    let (start, memory) = &files["etc/acpi/tables"];
    let table = |at: u64| {
        let table = &memory[(at - start) as usize..];
        let table = &table[..long(table, 4) as u32 as usize];
        assert_eq!(
            table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        table.to_vec()
    };
    let (_, root) = &files["etc/acpi/rsdp"];
    for part in [&root[..20], &root[..]] {
        assert_eq!(
            part.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
    }
    let xsdt = table(long(root, 24));
    let listed: Vec<_> = xsdt[36..].chunks(8).map(|at| table(long(at, 0))).collect();
    let fadt = listed
        .iter()
        .find(|table| table.starts_with(b"FACP"))
        .unwrap();
    let facs = u64::from(long(fadt, 36) as u32);
    assert!(memory[(facs - start) as usize..].starts_with(b"FACS"));
    let dsdt = table(long(fadt, 140));
    assert_eq!(long(fadt, 40) as u32, long(fadt, 140) as u32);
    let named = |table: Vec<u8>| (*table.first_chunk().unwrap(), table);
    listed
        .clone()
        .into_iter()
        .chain([dsdt])
        .map(named)
        .collect()
}

#[test]
fn firmware_links_the_tables_and_finds_them_whole() {
    let devices = devices();
    let tables = tables(&devices);
    let names: Vec<_> = tables.keys().collect();
    assert_eq!(
        names,
        [b"APIC", b"DSDT", b"FACP"],
        "no MCFG before there is a window"
    );
    let madt = &tables[b"APIC"];
    assert_eq!(madt.len(), 44 + 3 * 16 + 12 + 10, "no wakeup structure");
}

#[test]
fn tables_show_where_the_bus_is_when_they_are_read() {
    let devices = devices();
    let card = 0x7000_0000_0000u64;
    for (pciexbar, config) in [(0xB000_0001u32, 0xB000_0000u64), (0xE000_0001, 0xE000_0000)] {
        place_bus(&devices, pciexbar, card);
        let tables = tables(&devices);
        assert_eq!(long(&tables[b"MCFG"], 44), config);
        let has = |range: Range<u64>| {
            let words = [range.start, range.end - 1].map(u64::to_le_bytes);
            let part = words.as_flattened().to_vec();
            tables[b"DSDT"].windows(16).any(|found| found == part)
        };
        assert!(has(2 << 30..config) && has(config + (256 << 20)..0xFC00_0000));
        assert!(has(card..card + (1 << 30)));
    }
}

#[test]
fn a_transfer_selects_skips_and_reads_across_pages() {
    let (devices, memory) = (devices(), Memory::of([1, 2]));
    let to = 2 * PAGE - 3;
    memory.describe(PAGE, 5 << 16 | 1 << 3, 0, 0);
    assert_eq!(transfer(&devices, PAGE, &memory), Outcome::Done);
    assert_eq!(memory.get(PAGE, 4), [0; 4]);
    memory.describe(PAGE, 1 << 3 | 1 << 2, 1, u64::MAX);
    assert_eq!(transfer(&devices, PAGE, &memory), Outcome::Done);
    memory.describe(PAGE, 1 << 1, 5, to);
    assert_eq!(transfer(&devices, PAGE, &memory), Outcome::Done);
    assert_eq!(memory.get(to - 1, 7), *b"\xAAEMU\0\0\xAA");
    memory.describe(PAGE, 1 << 4, 4, to);
    assert_eq!(transfer(&devices, PAGE, &memory), Outcome::Refused);
    assert_eq!(memory.get(PAGE, 4), [0, 0, 0, 1], "nothing is writable");
}

#[test]
fn hostile_descriptors_are_refused_and_cost_little() {
    let devices = devices();
    for (descriptor, control, bytes, at) in [
        // The descriptor is private, partly private, or wraps round.
        (0x9000, 2, 4, PAGE),
        (3 * PAGE - 8, 2, 4, PAGE),
        (u64::MAX - 3, 2, 4, PAGE),
        // So is the memory to transfer to.
        (PAGE, 2, 4, 0x9000),
        (PAGE, 2, 8, 3 * PAGE - 4),
        (PAGE, 2, 8, u64::MAX - 3),
        // It is huge.
        (PAGE, 2, u32::MAX, PAGE),
        (PAGE, 2, 64 * 1024 + 1, PAGE),
    ] {
        let memory = Memory::of([1, 2]);
        if descriptor / PAGE == 1 {
            memory.describe(descriptor, control, bytes, at);
        }
        memory.touched.set(0);
        assert_eq!(transfer(&devices, descriptor, &memory), Outcome::Refused);
        assert!(
            memory.touched.get() <= 16 + 8 + 4,
            "{descriptor:#x} {at:#x}"
        );
    }
    // The descriptor overwrites itself: the copy counts.
    let memory = Memory::of([1]);
    memory.describe(PAGE, 0xFFFF << 16 | 2 | 8, 16, PAGE);
    assert_eq!(transfer(&devices, PAGE, &memory), Outcome::Done);
    let mut expected = [0; 16];
    expected[..4].copy_from_slice(&0u32.to_be_bytes());
    assert_eq!(memory.get(PAGE, 16), expected);
}
