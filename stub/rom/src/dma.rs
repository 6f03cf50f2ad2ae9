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
    /// The address that the device uses.
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
            reported: &mut self.reported,
            report: &mut report,
        };
        let start = self.next;
        let mut is_around = false;
        let mut last_table = None;
        while turn.left > 0 && !(is_around && self.next >= start) {
            self.next = turn.step(root & ADDRESS, self.next, &mut last_table);
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
    reported: &'a mut Vec<(u64, u64)>,
    report: &'a mut R,
}

impl<M: Memory, R: FnMut(Reach)> Turn<'_, M, R> {
    fn read(&mut self, pa: u64) -> u64 {
        self.left = self.left.saturating_sub(1);
        self.memory.read(pa)
    }

    /// Looks at the function at `place`. Returns the next place. `last_table` is the second-stage table that was gone
    /// over last: functions often share one.
    fn step(&mut self, root: u64, place: Place, last_table: &mut Option<u64>) -> Place {
        let next_bus = Place {
            bus: place.bus + 1,
            ..Place::default()
        };
        let at = root + u64::from(place.bus) * 16;
        let entry = self.read(at);
        let requester = place.bus << 8 | place.function;
        if entry & PRESENT == 0 || !self.admits_table(at, entry, requester) {
            return next_bus;
        }
        let mut function = place.function;
        while function < FUNCTIONS && self.left > 0 {
            let at = (entry & ADDRESS) + u64::from(function) * 16;
            let low = self.read(at);
            if low & PRESENT != 0 {
                let here = Place { function, ..place };
                let from = if function == place.function {
                    place.device_address
                } else {
                    0
                };
                let stopped = self.function(at, low, here, from, last_table);
                if let Some(device_address) = stopped {
                    return Place {
                        device_address,
                        ..here
                    };
                }
            }
            function += 1;
        }
        if function < FUNCTIONS {
            Place {
                function,
                device_address: 0,
                ..place
            }
        } else {
            next_bus
        }
    }

    /// Looks at what a present context entry lets a function reach, from an address on. Returns the address at which the
    /// budget ended.
    fn function(
        &mut self,
        at: u64,
        low: u64,
        place: Place,
        from: u64,
        last_table: &mut Option<u64>,
    ) -> Option<u64> {
        const PASS_THROUGH: u64 = 2;
        let requester = place.bus << 8 | place.function;
        if low >> 2 & 3 == PASS_THROUGH {
            // All of memory; the unit's addresses are physical ones.
            if let Some(pa) = self.memory.forbidden(0..1 << 48) {
                self.found(at, low, requester, pa, pa);
            }
            return None;
        }
        let levels = (self.read(at + 8) & 7) as u32 + 2;
        let table = low & ADDRESS;
        if levels > 5 || *last_table == Some(table) || !self.admits_table(at, low, requester) {
            return None;
        }
        let mut walk = Walk {
            turn: self,
            requester,
            from,
        };
        let stopped = walk.table(table, levels, 0);
        *last_table = stopped.is_none().then_some(table);
        stopped
    }

    /// Returns whether the table that an entry names may be read by a unit, and reports it if not.
    fn admits_table(&mut self, at: u64, entry: u64, requester: u16) -> bool {
        let table = entry & ADDRESS;
        match self.memory.forbidden(table..table + PAGE) {
            Some(pa) => {
                self.found(at, entry, requester, 0, pa);
                false
            }
            None => true,
        }
    }

    fn found(&mut self, at: u64, entry: u64, requester: u16, device_address: u64, pa: u64) {
        if self.reported.contains(&(at, entry)) {
            return;
        }
        self.reported.retain(|(known, _)| *known != at);
        if self.reported.len() == MAX_REPORTED {
            self.reported.remove(0);
        }
        self.reported.push((at, entry));
        (self.report)(Reach {
            requester,
            device_address,
            pa,
        });
    }
}

/// The way through one function's second-stage tables.
struct Walk<'a, 'b, M, R> {
    turn: &'a mut Turn<'b, M, R>,
    requester: u16,
    /// The device address from which on the tables are looked at.
    from: u64,
}

impl<M: Memory, R: FnMut(Reach)> Walk<'_, '_, M, R> {
    /// Goes through a table of this level, 1 being the last, that maps the addresses from `base` on. Returns the address
    /// at which the budget ended.
    fn table(&mut self, table: u64, level: u32, base: u64) -> Option<u64> {
        let shift = 12 + 9 * (level - 1);
        let first = self.from.saturating_sub(base) >> shift;
        for index in first.min(512)..512 {
            let address = base + (index << shift);
            if self.turn.left == 0 {
                return Some(address);
            }
            let at = table + index * 8;
            let entry = self.turn.read(at);
            if entry & READ_WRITE == 0 {
                continue;
            }
            let is_leaf = level == 1 || level <= 3 && entry & LARGE != 0;
            if is_leaf {
                self.leaf(at, entry, address, 1 << shift);
            } else if self.turn.admits_table(at, entry, self.requester)
                && let Some(stopped) = self.table(entry & ADDRESS, level - 1, address)
            {
                return Some(stopped);
            }
        }
        None
    }

    fn leaf(&mut self, at: u64, entry: u64, address: u64, size: u64) {
        const REGION: u64 = 1 << 21;
        let pa = entry & ADDRESS & !(size - 1);
        // A large leaf takes as long as the regions in it.
        self.turn.left = self.turn.left.saturating_sub((size / REGION) as u32);
        if let Some(reached) = self.turn.memory.forbidden(pa..pa + size) {
            let device_address = address + (reached - pa);
            (self.turn).found(at, entry, self.requester, device_address, reached);
        }
    }
}

#[cfg(test)]
mod tests;
