//! The memory that devices can reach through the tables of a VT-d unit.
//!
//! Nested paging never sees a device's access, so the tables are what can be checked: no leaf may lead to a private page
//! or to the SEAM range, and neither may a table. A [`Watch`] goes over the tables in turns of a limited length, each of
//! which begins where the one before ended. A mapping that appears is found at the latest when the turns have been
//! around once.
//!
//! Source: Intel VT-d 4.1, sections 9.1 (root entry), 9.3 (context entry) and 9.8 (second-stage entries), legacy mode.

use alloc::vec::Vec;
use core::ops::Range;

const PAGE: u64 = 1 << 12;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const PRESENT: u64 = 1;
/// A second-stage entry that allows reads or writes is present.
const READ_WRITE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const BUSES: u16 = 256;
const FUNCTIONS: u16 = 256;

/// Physical memory, and who may reach what.
pub trait Memory {
    /// Reads an aligned word of a table. Where no memory is, zero.
    fn read(&self, pa: u64) -> u64;

    /// Returns the first address in a range, which begins and ends at page boundaries, that no device may reach.
    fn forbidden(&self, pages: Range<u64>) -> Option<u64>;
}

/// A way for a device to memory that it must not reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The requester id of the device; the first one if several share the table.
    pub requester: u16,
    /// The address that the device uses; if a table is what is reached, any.
    pub device_address: u64,
    /// The physical address that it reaches, the first one if there are several.
    pub pa: u64,
}

/// The place at which a turn goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    bus: u16,
    function: u16,
    device_address: u64,
}

impl Place {
    /// Describes how the function here reaches `pa` at an address.
    fn reaches(self, device_address: u64, pa: u64) -> Reach {
        Reach {
            requester: self.bus << 8 | self.function,
            device_address,
            pa,
        }
    }
}

/// The state between turns.
#[derive(Debug, Default)]
pub struct Watch {
    next: Place,
    /// The entries that were reported, and their values. They are not reported again until they change.
    reported: Vec<(u64, u64)>,
}

/// Maximum number of entries that are remembered as reported.
const MAX_REPORTED: usize = 64;

impl Watch {
    /// Reads up to `budget` entries of the tables under `root`, the unit's root table address register, and calls
    /// `report` for each entry that leads to forbidden memory. A turn ends early if it has been around once.
    pub fn turn(
        &mut self,
        root: u64,
        budget: u32,
        memory: &impl Memory,
        mut report: impl FnMut(Reach),
    ) {
        let mut turn = Turn {
            memory,
            left: budget,
            last_table: None,
            reported: &mut self.reported,
            report: &mut report,
        };
        let start = self.next;
        let mut is_around = false;
        while turn.left > 0 && !(is_around && self.next >= start) {
            self.next = turn.step(root & ADDRESS, self.next);
            if self.next.bus == BUSES {
                self.next = Place::default();
                if is_around || start == Place::default() {
                    break;
                }
                is_around = true;
            }
        }
    }

    /// Starts from the beginning: the tables are others.
    pub fn restart(&mut self) {
        self.next = Place::default();
    }
}

/// One turn.
struct Turn<'a, M, R> {
    memory: &'a M,
    left: u32,
    /// The second-stage table that was gone over last: functions often share one.
    last_table: Option<u64>,
    reported: &'a mut Vec<(u64, u64)>,
    report: &'a mut R,
}

/// An entry of a table.
#[derive(Clone, Copy)]
struct Entry {
    at: u64,
    value: u64,
}

impl Entry {
    /// Returns the address of the table that it names.
    fn table(self) -> u64 {
        self.value & ADDRESS
    }
}

impl<M: Memory, R: FnMut(Reach)> Turn<'_, M, R> {
    fn read(&mut self, at: u64) -> Entry {
        self.left = self.left.saturating_sub(1);
        let value = self.memory.read(at);
        Entry { at, value }
    }

    /// Looks at the functions from `place` on, up to the end of the bus. Returns the next place.
    fn step(&mut self, root: u64, place: Place) -> Place {
        let next_bus = Place {
            bus: place.bus + 1,
            ..Place::default()
        };
        let entry = self.read(root + u64::from(place.bus) * 16);
        if entry.value & PRESENT == 0 || !self.admits_table(entry, place) {
            return next_bus;
        }
        let mut here = place;
        while here.function < FUNCTIONS {
            if self.left == 0 {
                return here;
            }
            let context = self.read(entry.table() + u64::from(here.function) * 16);
            if context.value & PRESENT != 0
                && let Some(device_address) = self.function(context, here)
            {
                return Place {
                    device_address,
                    ..here
                };
            }
            here = Place {
                function: here.function + 1,
                device_address: 0,
                ..here
            };
        }
        next_bus
    }

    /// Looks at what a present context entry lets a function reach, from the address of `place` on. Returns the address
    /// at which the budget ended.
    fn function(&mut self, context: Entry, place: Place) -> Option<u64> {
        const PASS_THROUGH: u64 = 2;
        if context.value >> 2 & 3 == PASS_THROUGH {
            // All of memory; the unit's addresses are physical ones.
            if let Some(pa) = self.memory.forbidden(0..1 << 48) {
                self.found(context, place.reaches(pa, pa));
            }
            return None;
        }
        let levels = (self.read(context.at + 8).value & 7) as u32 + 2;
        let is_known = self.last_table == Some(context.table());
        if levels > 5 || is_known || !self.admits_table(context, place) {
            return None;
        }
        let table = Table {
            pa: context.table(),
            level: levels,
            base: 0,
        };
        let stopped = self.table(table, place);
        self.last_table = stopped.is_none().then_some(table.pa);
        stopped
    }

    /// Goes through a second-stage table from the address of `place` on. Returns the address at which the budget ended.
    fn table(&mut self, table: Table, place: Place) -> Option<u64> {
        let shift = 12 + 9 * (table.level - 1);
        let first = place.device_address.saturating_sub(table.base) >> shift;
        for index in first.min(512)..512 {
            let base = table.base + (index << shift);
            if self.left == 0 {
                return Some(base);
            }
            let entry = self.read(table.pa + index * 8);
            if entry.value & READ_WRITE == 0 {
                continue;
            }
            let below = Table {
                pa: entry.table(),
                level: table.level - 1,
                base,
            };
            if table.level == 1 || table.level <= 3 && entry.value & LARGE != 0 {
                self.leaf(entry, 1 << shift, place, base);
            } else if self.admits_table(entry, place)
                && let Some(stopped) = self.table(below, place)
            {
                return Some(stopped);
            }
        }
        None
    }

    fn leaf(&mut self, entry: Entry, size: u64, place: Place, base: u64) {
        const REGION: u64 = 1 << 21;
        let pa = entry.table() & !(size - 1);
        // A large leaf takes as long as the regions in it.
        self.left = self.left.saturating_sub((size / REGION) as u32);
        if let Some(reached) = self.memory.forbidden(pa..pa + size) {
            self.found(entry, place.reaches(base + (reached - pa), reached));
        }
    }

    /// Returns whether the table that an entry names may be read by a unit, and reports it if not.
    fn admits_table(&mut self, entry: Entry, place: Place) -> bool {
        let table = entry.table();
        let forbidden = self.memory.forbidden(table..table + PAGE);
        if let Some(pa) = forbidden {
            self.found(entry, place.reaches(place.device_address, pa));
        }
        forbidden.is_none()
    }

    fn found(&mut self, Entry { at, value }: Entry, reach: Reach) {
        if self.reported.contains(&(at, value)) {
            return;
        }
        self.reported.retain(|(known, _)| *known != at);
        if self.reported.len() == MAX_REPORTED {
            self.reported.remove(0);
        }
        self.reported.push((at, value));
        (self.report)(reach);
    }
}

/// A second-stage table.
#[derive(Clone, Copy)]
struct Table {
    pa: u64,
    /// 1 is the last level.
    level: u32,
    /// The first device address that it maps.
    base: u64,
}

#[cfg(test)]
mod tests;
