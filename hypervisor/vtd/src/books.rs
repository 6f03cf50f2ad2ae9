//! The books of faults: how many each function made, which are told, and when a function is muted.
//!
//! A fault is told if its function has not made the same one before and tells less than [`TOLD`] in
//! [`INTERVAL_US`]. A function with more than [`FLOOD`] blocked accesses in that time is muted: its unit reports none of
//! them any more. They are blocked all the same.

use alloc::vec::Vec;

use crate::{
    Function,
    unit::{Fault, Request},
};

/// Number of faults of one function that are told in [`INTERVAL_US`].
pub const TOLD: u32 = 8;
/// Number of blocked accesses of one function in [`INTERVAL_US`] that mutes it.
pub const FLOOD: u32 = 512;
/// The interval in microseconds.
pub const INTERVAL_US: u64 = 10_000_000;
/// Maximum number of functions with an entry; faults of others are counted together.
pub const FUNCTIONS: usize = 256;
/// Number of the last faults of a function that are not told again.
const KNOWN: usize = 16;

/// The faults of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The function.
    pub function: Function,
    /// Blocked reads and writes that its unit reported.
    pub accesses: u64,
    /// Blocked interrupts that its unit reported.
    pub interrupts: u64,
    /// The last fault.
    pub last: Fault,
    /// True if its unit reports none of its faults any more.
    pub is_muted: bool,
    /// Faults that were not told, because too many came.
    pub untold: u64,
    known: Vec<Fault>,
    since_us: u64,
    /// Accesses and told faults since then.
    recent: u32,
    told: u32,
}

/// The action that a fault requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Tell it.
    Tell,
    /// Count it alone.
    Count,
    /// Tell that its function is muted, and mute it.
    Mute,
}

/// The books.
#[derive(Debug, Default)]
pub struct Books {
    entries: Vec<Entry>,
    /// Faults of functions without an entry.
    others: u64,
    /// Number of times that a unit lost faults.
    lost: u64,
}

impl Books {
    /// Creates empty books.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
            others: 0,
            lost: 0,
        }
    }

    /// Returns the functions that made faults.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the number of faults of functions without an entry.
    #[must_use]
    pub fn others(&self) -> u64 {
        self.others
    }

    /// Returns how often a unit lost faults, because they came faster than they were read.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Notes that a unit lost faults.
    pub fn note_lost(&mut self) {
        self.lost += 1;
    }

    /// Notes a fault.
    pub fn note(&mut self, fault: &Fault, now_us: u64) -> Verdict {
        let function = fault.function;
        let index = self.entries.iter().position(|e| e.function == function);
        let index = match index {
            Some(index) => index,
            None if self.entries.len() < FUNCTIONS => {
                self.entries.push(Entry::new(fault, now_us));
                self.entries.len() - 1
            }
            None => {
                self.others += 1;
                return Verdict::Count;
            }
        };
        self.entries[index].note(fault, now_us)
    }

    /// Notes that a function is no longer muted.
    pub fn unmute(&mut self, function: Function) {
        for entry in self.entries.iter_mut().filter(|e| e.function == function) {
            entry.is_muted = false;
            entry.recent = 0;
        }
    }
}

impl Entry {
    fn new(fault: &Fault, now_us: u64) -> Self {
        Self {
            function: fault.function,
            accesses: 0,
            interrupts: 0,
            last: *fault,
            is_muted: false,
            untold: 0,
            known: Vec::with_capacity(KNOWN),
            since_us: now_us,
            recent: 0,
            told: 0,
        }
    }

    fn note(&mut self, fault: &Fault, now_us: u64) -> Verdict {
        if now_us.saturating_sub(self.since_us) > INTERVAL_US {
            (self.since_us, self.recent, self.told) = (now_us, 0, 0);
        }
        match fault.request {
            // A unit can't mute the interrupts of a function.
            Request::Interrupt(_) => self.interrupts += 1,
            Request::Read(_) | Request::Write(_) => {
                self.accesses += 1;
                self.recent = self.recent.saturating_add(1);
            }
        }
        self.last = *fault;
        if self.recent > FLOOD && !self.is_muted {
            self.is_muted = true;
            return Verdict::Mute;
        }
        if self.known.contains(fault) {
            return Verdict::Count;
        }
        if self.told >= TOLD {
            self.untold += 1;
            return Verdict::Count;
        }
        if self.known.len() == KNOWN {
            self.known.remove(0);
        }
        self.known.push(*fault);
        self.told += 1;
        Verdict::Tell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Source, unit::Reason};

    fn fault(source: u16, page: u64) -> Fault {
        Fault {
            function: Function::new(0, Source(source)),
            request: Request::Write(page << 12),
            reason: Reason(2),
        }
    }

    #[test]
    fn a_fault_is_told_once() {
        let mut books = Books::new();
        assert_eq!(books.note(&fault(8, 1), 0), Verdict::Tell);
        assert_eq!(books.note(&fault(8, 1), 0), Verdict::Count);
        assert_eq!(books.note(&fault(8, 2), 0), Verdict::Tell);
        assert_eq!(books.note(&fault(9, 1), 0), Verdict::Tell);
        assert_eq!(books.entries()[0].accesses, 3);
    }

    #[test]
    fn a_flood_of_different_faults_is_counted_and_then_muted() {
        let mut books = Books::new();
        let verdicts: Vec<_> = (0..=u64::from(FLOOD))
            .map(|page| books.note(&fault(8, page), page))
            .collect();
        let told = verdicts.iter().filter(|v| **v == Verdict::Tell).count();
        assert_eq!(told, TOLD as usize);
        assert_eq!(verdicts.last(), Some(&Verdict::Mute));
        let entry = &books.entries()[0];
        assert!(entry.is_muted && entry.untold == u64::from(FLOOD - TOLD));
        assert_eq!(entry.accesses, u64::from(FLOOD) + 1);
        // Records that waited in the unit.
        assert_eq!(books.note(&fault(8, 0), 600), Verdict::Count);
        // Another function is told as before.
        assert_eq!(books.note(&fault(9, 0), 600), Verdict::Tell);
    }

    #[test]
    fn slow_faults_are_all_told() {
        let mut books = Books::new();
        for page in 0..1000 {
            let verdict = books.note(&fault(8, page), page * (INTERVAL_US / 4));
            assert_eq!(verdict, Verdict::Tell);
        }
    }

    #[test]
    fn the_books_do_not_grow_without_end() {
        let mut books = Books::new();
        for source in 0..=u16::MAX {
            books.note(&fault(source, 1), 0);
        }
        assert_eq!(books.entries().len(), FUNCTIONS);
        assert_eq!(books.others(), 65536 - FUNCTIONS as u64);
    }
}
