//! The books of one CPU: counts of its errors, and the last ones in full.
//!
//! Handlers write them, and each may interrupt the one before, so a writer claims its entry first. A reader that meets
//! a writer leaves the entry out.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use arrayvec::ArrayVec;

use crate::{
    bank::{Reading, Status},
    verdict::{Occasion, Verdict},
};

/// Number of errors that are kept in full.
pub const KEPT: usize = 8;

/// One CPU's books.
#[derive(Debug)]
pub struct Books {
    corrected: AtomicU64,
    lost: AtomicU64,
    signals: AtomicU64,
    checks: AtomicU64,
    next: AtomicU32,
    entries: [Entry; KEPT],
}

#[derive(Debug)]
struct Entry {
    /// The number of the error in it, from 1; 0 while it is empty or written.
    number: AtomicU32,
    /// Bank in bits 7:0, verdict in 15:8, occasion in 23:16, validity of address and misc in 24 and 25.
    kind: AtomicU32,
    tsc: AtomicU64,
    status: AtomicU64,
    address: AtomicU64,
    misc: AtomicU64,
}

impl Entry {
    const fn new() -> Self {
        Self {
            number: AtomicU32::new(0),
            kind: AtomicU32::new(0),
            tsc: AtomicU64::new(0),
            status: AtomicU64::new(0),
            address: AtomicU64::new(0),
            misc: AtomicU64::new(0),
        }
    }
}

/// The counts of one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Errors that hardware corrected, as far as the banks counted them.
    pub corrected: u64,
    /// Errors that hardware could not correct.
    pub uncorrected: u64,
    /// Corrected-error interrupts.
    pub signals: u64,
    /// Machine checks.
    pub machine_checks: u64,
}

/// An error in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The CPU's number of the error, from 1.
    pub number: u32,
    /// The time-stamp counter when the error was read.
    pub tsc: u64,
    /// The bank.
    pub reading: Reading,
    /// The name of the verdict.
    pub verdict: &'static str,
    /// True if the error is from before the CPU's start.
    pub is_stale: bool,
}

/// The verdicts' names in the order of their numbers in an entry.
const VERDICTS: [&str; 6] = [
    Verdict::Corrected.name(),
    Verdict::NotHere.name(),
    Verdict::NoAction.name(),
    Verdict::Optional.name(),
    Verdict::Required.name(),
    "fatal",
];

const fn number_of(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Corrected => 0,
        Verdict::NotHere => 1,
        Verdict::NoAction => 2,
        Verdict::Optional => 3,
        Verdict::Required => 4,
        Verdict::Fatal(_) => 5,
    }
}

const STALE: u32 = 1 << 16;
const HAS_ADDRESS: u32 = 1 << 24;
const HAS_MISC: u32 = 1 << 25;

impl Default for Books {
    fn default() -> Self {
        Self::new()
    }
}

impl Books {
    /// Creates empty books.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            corrected: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            signals: AtomicU64::new(0),
            checks: AtomicU64::new(0),
            next: AtomicU32::new(0),
            entries: [const { Entry::new() }; KEPT],
        }
    }

    /// Counts a corrected-error interrupt.
    pub fn count_signal(&self) {
        self.signals.fetch_add(1, Relaxed);
    }

    /// Counts a machine check.
    pub fn count_machine_check(&self) {
        self.checks.fetch_add(1, Relaxed);
    }

    /// Enters an error. An error that stays in its bank for another CPU is that CPU's to enter.
    pub fn enter(&self, tsc: u64, reading: &Reading, verdict: Verdict, occasion: Occasion) {
        let status = reading.status;
        match verdict {
            Verdict::NotHere => return,
            Verdict::Corrected => {
                // A bank that does not count has seen one error.
                let errors = u64::from(status.corrected().max(1));
                self.corrected.fetch_add(errors, Relaxed);
            }
            _ => {
                self.lost.fetch_add(1, Relaxed);
            }
        }
        let number = self.next.fetch_add(1, Relaxed).wrapping_add(1);
        let entry = &self.entries[number as usize % KEPT];
        let stale = if occasion == Occasion::Start {
            STALE
        } else {
            0
        };
        let address = reading.address.map_or(0, |_| HAS_ADDRESS);
        let misc = reading.misc.map_or(0, |_| HAS_MISC);
        let kind = u32::from(reading.bank) | number_of(verdict) << 8 | stale | address | misc;
        entry.number.store(0, Release);
        core::sync::atomic::fence(Release);
        entry.kind.store(kind, Relaxed);
        entry.tsc.store(tsc, Relaxed);
        entry.status.store(status.0, Relaxed);
        entry.address.store(reading.address.unwrap_or(0), Relaxed);
        entry.misc.store(reading.misc.unwrap_or(0), Relaxed);
        entry.number.store(number, Release);
    }

    /// Returns the counts.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            corrected: self.corrected.load(Relaxed),
            uncorrected: self.lost.load(Relaxed),
            signals: self.signals.load(Relaxed),
            machine_checks: self.checks.load(Relaxed),
        }
    }

    /// Returns the number of the last error that was entered; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u32 {
        self.next.load(Relaxed)
    }

    /// Returns the errors after number `seen` that are still kept, oldest first.
    pub fn since(&self, seen: u32) -> ArrayVec<Kept, KEPT> {
        let mut kept: ArrayVec<Kept, KEPT> = self
            .entries
            .iter()
            .filter_map(Entry::read)
            .filter(|kept| kept.number > seen)
            .collect();
        kept.sort_unstable_by_key(|kept| kept.number);
        kept
    }
}

impl Entry {
    fn read(&self) -> Option<Kept> {
        let number = self.number.load(Acquire);
        let kind = self.kind.load(Relaxed);
        let when = |bit: u32, value: &AtomicU64| (kind & bit != 0).then(|| value.load(Relaxed));
        let kept = Kept {
            number,
            tsc: self.tsc.load(Relaxed),
            reading: Reading {
                bank: kind as u8,
                status: Status(self.status.load(Relaxed)),
                address: when(HAS_ADDRESS, &self.address),
                misc: when(HAS_MISC, &self.misc),
            },
            verdict: VERDICTS.get((kind >> 8 & 0xFF) as usize)?,
            is_stale: kind & STALE != 0,
        };
        core::sync::atomic::fence(Acquire);
        (number != 0 && self.number.load(Relaxed) == number).then_some(kept)
    }
}
