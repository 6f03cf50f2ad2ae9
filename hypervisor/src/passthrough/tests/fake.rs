//! A machine with two functions, whose units are the software model.

extern crate std;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    string::{String, ToString},
    sync::{Arc, Mutex, MutexGuard},
    vec::Vec,
};

use io::{Address, Clock, Inventory, Space, scan};
use stub_vtd::UnitShape;
use sync::IrqLock;
use vtd::{
    Iommu, Source,
    dmar::{Dmar, UnitEntry},
    scope::Buses,
};

use super::super::machine::Machine;
use crate::cpu::line::{Line, Lines};

/// A drive with MSI-X.
pub const DRIVE: Address = at(3);
/// A card with MSI.
pub const CARD: Address = at(4);
/// Physical address of the drive's memory: registers, the MSI-X table at 8 KiB, pending bits at 12 KiB.
pub const MEMORY: u64 = 0x8_0000_0000;
pub const TABLE: u64 = MEMORY + 0x2000;
/// Number of the drive's vectors.
pub const VECTORS: u16 = 64;
/// Offsets in the drive's configuration space.
pub const MSIX: u16 = 0x40;
pub const EXPRESS: u16 = 0x50;
pub const AER: u16 = 0x100;
/// Offset of MSI in the card's configuration space.
pub const MSI: u16 = 0x40;

pub const fn at(device: u8) -> Address {
    Address {
        segment: 0,
        bus: 0,
        device,
        function: 0,
    }
}

/// Returns the function as units name it.
pub fn function(at: Address) -> vtd::Function {
    vtd::Function::new(at.segment, Source(at.requester()))
}

/// Configuration space, and the memory of base address registers, by words.
#[derive(Debug, Default)]
pub struct Registers {
    words: Mutex<BTreeMap<(Address, u16), u32>>,
    memory: Mutex<BTreeMap<u64, u32>>,
    now: AtomicU64,
    /// The functions do not come back from a reset.
    pub never_returns: AtomicBool,
    /// Command registers that were written with bus mastering on.
    pub masters: AtomicU64,
}

impl Registers {
    fn words(&self) -> MutexGuard<'_, BTreeMap<(Address, u16), u32>> {
        self.words.lock().unwrap()
    }

    /// Returns the word at this offset of configuration space.
    pub fn get(&self, at: Address, offset: u16) -> u32 {
        *self.words().get(&(at, offset)).unwrap_or(&0)
    }

    /// Sets it, as the device does.
    pub fn set(&self, at: Address, offset: u16, value: u32) {
        self.words().insert((at, offset), value);
    }

    /// Returns all of the configuration space that is not zero.
    pub fn all(&self) -> BTreeMap<(Address, u16), u32> {
        let mut words = self.words().clone();
        words.retain(|_, word| *word != 0);
        words
    }

    /// Returns a word of memory.
    pub fn memory(&self, pa: u64) -> u32 {
        *self.memory.lock().unwrap().get(&pa).unwrap_or(&0)
    }

    /// Lets the time pass between two looks for problems.
    pub fn now_passes(&self) {
        self.now.fetch_add(20_000, SeqCst);
    }

    fn reset(&self, at: Address) {
        let never = self.never_returns.load(SeqCst);
        let mut words = self.words();
        let registers = [(4, 0x10_0000), (MSIX, 0)];
        for (offset, value) in registers {
            let word = words.entry((at, offset)).or_default();
            *word = if offset == 4 {
                value
            } else {
                *word & 0x0FFF_FFFF
            };
        }
        words.insert((at, 0x10), 0xC);
        words.insert((at, 0x14), 0);
        if never {
            words.insert((at, 0), u32::MAX);
        }
        self.memory.lock().unwrap().clear();
    }
}

impl Space for Registers {
    fn read(&self, at: Address, offset: u16) -> u32 {
        let exists = self.words().contains_key(&(at, 0));
        if exists {
            self.get(at, offset)
        } else {
            u32::MAX
        }
    }

    fn write(&self, at: Address, offset: u16, value: u32) {
        let old = self.get(at, offset);
        let is_drive = at == DRIVE;
        let value = match offset {
            0 | 8 | 0x2C | 0x34 | 0x54 => old,
            0x44 | 0x48 if is_drive => old,
            4 => {
                self.masters.fetch_add(u64::from(value >> 2 & 1), SeqCst);
                old & 0xFFFF_0000 | value & 0x547
            }
            0x10 if is_drive => value & 0xFFFF_C000 | 0xC,
            0x10 => value & 0xFFFF_F000,
            0x14 if is_drive => value,
            0x14..0x28 => 0,
            MSIX if is_drive => old & 0x3FFF_FFFF | value & 0xC000_0000,
            // The status bits are cleared by ones.
            0x104 | 0x110 if is_drive => old & !value,
            0x58 if is_drive => {
                if value & 1 << 15 != 0 {
                    self.reset(at);
                }
                old & 0xFFFF_0000 & !value | value & 0x7FFF
            }
            _ => value,
        };
        if value != old {
            self.set(at, offset, value);
        }
    }

    fn write16(&self, at: Address, offset: u16, value: u16) {
        let shift = offset % 4 * 8;
        // Bits of the other half that ones would clear are written as zeros.
        let kept = self.get(at, offset & !3) & !(0xFFFF << shift);
        let kept = if offset & !3 == 0x58 { 0 } else { kept };
        self.write(at, offset & !3, kept | u32::from(value) << shift);
    }

    fn write8(&self, at: Address, offset: u16, value: u8) {
        let shift = offset % 4 * 8;
        let kept = self.get(at, offset & !3) & !(0xFF << shift);
        self.write(at, offset & !3, kept | u32::from(value) << shift);
    }
}

impl Clock for Registers {
    fn us(&self) -> u64 {
        self.now.load(SeqCst)
    }

    fn relax(&self) {
        self.now.fetch_add(1000, SeqCst);
    }
}

/// The machine. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Fake(Arc<Parts>);

pub struct Parts {
    pub registers: Registers,
    pub units: stub_vtd::Machine,
    inventory: IrqLock<Inventory>,
    iommu: Iommu<stub_vtd::Machine>,
    lines: Lines,
    /// The longest rest that was asked for, in microseconds.
    pub rest_us: AtomicU64,
    /// Windows, drains fail.
    pub has_no_windows: AtomicBool,
    pub drains_nothing: AtomicBool,
    pub wakes: AtomicU64,
}

impl core::fmt::Debug for Parts {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Parts")
    }
}

impl core::ops::Deref for Fake {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

struct Idle;

impl vcpu::Executor for Idle {
    fn notify(&self, _: u32) {}
    fn interrupt(&self, _: u32) {}
    fn woken(&self) {}
}

struct NoBridges;

impl Buses for NoBridges {
    fn behind(&self, _: vtd::Function) -> Option<RangeInclusive<u8>> {
        None
    }
}

impl Fake {
    /// Creates a machine of two CPUs whose unit has this shape.
    pub fn new(shape: &UnitShape) -> Self {
        let units = stub_vtd::Machine::new(core::slice::from_ref(shape));
        let dmar = Dmar {
            address_bits: 46,
            remaps_interrupts: true,
            units: std::vec![UnitEntry {
                base: shape.base,
                segment: 0,
                all: true,
                scopes: Vec::new(),
            }],
            ..Dmar::default()
        };
        let iommu = Iommu::start(&units, &dmar, &NoBridges).expect("there is memory");
        let registers = Registers::default();
        add_drive(&registers);
        add_card(&registers);
        let functions = scan::segment(&registers, 0, 0..=0);
        let inventory = Inventory::new(&registers, functions, |_| false);
        Self(Arc::new(Parts {
            registers,
            units,
            inventory: IrqLock::new(inventory),
            iommu,
            lines: Lines::new([Some(5), Some(6)]),
            rest_us: AtomicU64::new(0),
            has_no_windows: AtomicBool::new(false),
            drains_nothing: AtomicBool::new(false),
            wakes: AtomicU64::new(0),
        }))
    }

    pub fn like_qemu() -> Self {
        Self::new(&UnitShape::like_qemu(0xFED9_0000))
    }

    /// Returns what must be the same after a life: configuration space, frames of tables, lines, interrupt entries.
    pub fn books(&self) -> (BTreeMap<(Address, u16), u32>, u64, usize, usize) {
        let entries = self.iommu.entries().expect("a table").0;
        let frames = self.units.taken_frames();
        (self.registers.all(), frames, self.lines.used(), entries)
    }
}

fn add_drive(registers: &Registers) {
    let words = [
        (0x00, 0x0010_1B36),
        (0x04, 0x0010_0002),
        (0x08, 0x0108_0202),
        (0x10, MEMORY as u32 | 0xC),
        (0x14, (MEMORY >> 32) as u32),
        (0x2C, 0x1100_1AF4),
        (0x34, MSIX.into()),
        (
            MSIX,
            u32::from(VECTORS - 1) << 16 | u32::from(EXPRESS) << 8 | 0x11,
        ),
        (MSIX + 4, 0x2000),
        (MSIX + 8, 0x3000),
        (EXPRESS, 0x0002_0010),
        (EXPRESS + 4, 1 << 28),
        (EXPRESS + 8, 0x283F),
        (AER, 0x0001_0001),
        (AER + 8, 0x0040_0000),
    ];
    words
        .into_iter()
        .for_each(|(offset, value)| registers.set(DRIVE, offset, value));
}

fn add_card(registers: &Registers) {
    let words = [
        (0x00, 0x100E_8086),
        (0x04, 0x0010_0002),
        (0x08, 0x0200_0003),
        (0x10, 0x9000_0000),
        (0x34, MSI.into()),
        (MSI, 0x0080_6005),
        (0x60, 0x0002_0001),
    ];
    words
        .into_iter()
        .for_each(|(offset, value)| registers.set(CARD, offset, value));
}

impl Clock for Fake {
    fn us(&self) -> u64 {
        self.registers.us()
    }

    fn relax(&self) {
        self.registers.relax();
    }
}

impl Machine for Fake {
    type Space = Registers;
    type Platform = stub_vtd::Machine;

    fn space(&self) -> &Registers {
        &self.registers
    }

    fn inventory(&self) -> &IrqLock<Inventory> {
        &self.inventory
    }

    fn iommu(&self) -> Result<&Iommu<stub_vtd::Machine>, &'static str> {
        Ok(&self.iommu)
    }

    fn window(&self, pa: u64, _: u64) -> Result<u64, String> {
        match self.has_no_windows.load(SeqCst) {
            true => Err("there is RAM".to_string()),
            false => Ok(pa),
        }
    }

    fn load(&self, at: u64, size: u8) -> u64 {
        assert!(at.is_multiple_of(size.into()));
        u64::from(self.registers.memory(at & !3))
    }

    fn store(&self, at: u64, size: u8, value: u64) {
        assert!(at.is_multiple_of(size.into()));
        let mut memory = self.registers.memory.lock().unwrap();
        memory.insert(at & !3, value as u32);
    }

    fn lines(&self) -> &Lines {
        &self.lines
    }

    fn rest(&self, us: u64) {
        self.rest_us.fetch_max(us, SeqCst);
    }

    fn drain(&self, _: &[Line]) -> Result<(), String> {
        match self.drains_nothing.load(SeqCst) {
            true => Err("no answer from CPU 1".to_string()),
            false => Ok(()),
        }
    }

    fn executor(&self) -> Option<&dyn vcpu::Executor> {
        Some(&Idle)
    }

    fn wake(&self) {
        self.wakes.fetch_add(1, SeqCst);
    }
}
