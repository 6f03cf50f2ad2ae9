//! QEMU's VT-d unit: its registers, which the monitor traps, and the check of its tables.
#![expect(unsafe_code, reason = "reads and writes the unit's registers")]

use core::ops::Range;

use spin::Mutex;
use stub_rom::dma::{self, Watch};

use super::lp::Lp;
use super::machine::{Physical, word};
use crate::memory::PAGE;
use crate::report;

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
    /// doorbell since the last look. `lp` is the processor that has accessed the unit's registers.
    #[inline(never)]
    pub fn look(&self, lp: &Lp) {
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
        let memory = Memory(lp.physical(), lp);
        seen.watch.turn(root, budget, &memory, |reach| {
            report::line(
                "violation",
                format_args!(
                    r#""class":"dma_reach","lp":{},"rip":"{:#x}","pa":"{:#x}","requester":"{:#x}","device_address":"{:#x}""#,
                    lp.number, lp.vmcb.save.rip, reach.pa, reach.requester, reach.device_address
                ),
            );
        });
    }
}

/// Physical memory as the unit reaches it.
struct Memory<'a>(Physical, &'a Lp);

impl dma::Memory for Memory<'_> {
    fn read(&self, pa: u64) -> u64 {
        match self.1.world.ram_or_nothing(pa) {
            same if same == pa => word(pa),
            _ => 0,
        }
    }

    fn forbidden(&self, pages: Range<u64>) -> Option<u64> {
        const REGION: u64 = 1 << 21;
        let world = self.1.world;
        let (seam, end) = (world.seamrr.0, world.seamrr.0 + world.seamrr.1);
        let mut at = pages.start;
        while at < pages.end {
            if (seam..end).contains(&at) {
                return Some(at);
            }
            // What is beyond RAM is open as a whole.
            if at >= world.end_of_ram() && at >= end {
                return None;
            }
            if at.is_multiple_of(REGION) && world.npt.maps_region(at) {
                at += REGION;
            } else if !world.npt.maps(at) && self.0.is_private(at) {
                return Some(at);
            } else {
                at += PAGE as u64;
            }
        }
        None
    }
}

/// Returns whether the physical address is in the page of the unit's registers, on a machine that has one.
pub fn has(lp: &Lp, pa: u64) -> bool {
    lp.world.iommu.is_some() && (BASE..BASE + PAGE as u64).contains(&pa)
}

/// Looks at the unit's tables, on a machine that has one.
pub fn look(lp: &Lp) {
    if let Some(iommu) = &lp.world.iommu {
        iommu.look(lp);
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
