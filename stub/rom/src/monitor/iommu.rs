//! QEMU's VT-d unit: its registers, which the monitor traps, and when its tables are checked.
#![expect(unsafe_code, reason = "reads and writes the unit's registers")]

use spin::Mutex;
use stub_rom::dma::{self, Reach, Watch};

/// The place of the unit's registers on QEMU's q35.
pub const BASE: u64 = 0xFED9_0000;

const VERSION: u64 = 0x00;
const GLOBAL_STATUS: u64 = 0x1C;
const ROOT_TABLE: u64 = 0x20;
const QUEUE_TAIL: u64 = 0x88;
/// In the global status: translation is on.
const TRANSLATES: u32 = 1 << 31;

/// The number of table entries that are read when the queue's doorbell rings.
const DOORBELL_BUDGET: u32 = 1 << 12;
/// The number of table entries that are read when translation is switched on, or the root table changes.
const START_BUDGET: u32 = 1 << 20;

/// The unit.
pub struct Iommu(Mutex<Seen>);

/// The unit's registers at the last look, and the state of the watch.
#[derive(Default)]
struct Seen {
    translates: bool,
    root: u64,
    tail: u64,
    watch: Watch,
}

impl Iommu {
    /// Returns the unit if the machine has one.
    pub fn find() -> Option<Self> {
        const MAJOR: u32 = 0xF0;
        // Where nothing is, zeros or ones are read.
        (read32(VERSION) & MAJOR == 0x10).then(|| Self(Mutex::default()))
    }

    /// Checks the tables if the software has switched translation on, has set the root table, or has rung the queue's
    /// doorbell since the last look. Calls `report` for each way to forbidden memory.
    #[inline(never)]
    pub fn look(&self, memory: &impl dma::Memory, report: impl FnMut(Reach)) {
        let translates = read32(GLOBAL_STATUS) & TRANSLATES != 0;
        let (root, tail) = (read64(ROOT_TABLE), read64(QUEUE_TAIL));
        let mut seen = self.0.lock();
        let starts = translates && (!seen.translates || root != seen.root);
        let rings = translates && tail != seen.tail;
        (seen.translates, seen.root, seen.tail) = (translates, root, tail);
        if starts {
            seen.watch.restart();
        } else if !rings {
            return;
        }
        let budget = if starts {
            START_BUDGET
        } else {
            DOORBELL_BUDGET
        };
        seen.watch.turn(root, budget, memory, report);
    }
}

/// Reads a register of the unit, of 1, 2, 4 or 8 bytes, at an offset in its page.
pub fn load(offset: u64, size: usize) -> u64 {
    // SAFETY: the monitor identity-maps the unit's page; the unit answers reads of any size.
    unsafe {
        match size {
            1 => ((BASE + offset) as *const u8).read_volatile().into(),
            2 => ((BASE + offset) as *const u16).read_volatile().into(),
            4 => ((BASE + offset) as *const u32).read_volatile().into(),
            _ => ((BASE + offset) as *const u64).read_volatile(),
        }
    }
}

/// Writes a register of the unit, of 1, 2, 4 or 8 bytes, at an offset in its page.
pub fn store(offset: u64, value: u64, size: usize) {
    // SAFETY: as for `load`. The software above could have written there itself, and the unit reaches what the software
    // names: the tables and the queue are checked afterwards.
    unsafe {
        match size {
            1 => ((BASE + offset) as *mut u8).write_volatile(value as u8),
            2 => ((BASE + offset) as *mut u16).write_volatile(value as u16),
            4 => ((BASE + offset) as *mut u32).write_volatile(value as u32),
            _ => ((BASE + offset) as *mut u64).write_volatile(value),
        }
    }
}

fn read32(offset: u64) -> u32 {
    load(offset, 4) as u32
}

fn read64(offset: u64) -> u64 {
    load(offset, 8)
}
