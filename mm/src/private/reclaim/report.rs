//! Counts of reclaimed pages, and records of the pages that the module refused.

use alloc::vec::Vec;
use core::fmt;

use seam::abi::PageSize;
use seam::address::Hpa;

use crate::private::error::Error;
use sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The clock of the CPUs that work.
pub trait Clock {
    /// Returns nanoseconds since some moment in the past, the same for all CPUs.
    fn ns(&self) -> u64;
}

/// Pages taken back, with the calls and the time spent on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Private pages of 4 KiB, 2 MiB and 1 GiB.
    pub pages: [u64; 3],
    /// Pages of the S-EPT.
    pub sept: u64,
    /// Control pages: those of the vCPUs, the TDCX, the TDR.
    pub control: u64,
    /// Calls of TDH.PHYMEM.PAGE.RECLAIM, every try counted.
    pub reclaim_calls: u64,
    /// Calls of TDH.PHYMEM.PAGE.WBINVD, every try counted.
    pub wbinvd_calls: u64,
    /// Bytes cleared.
    pub cleared: u64,
    /// Nanoseconds spent in those calls and on bookkeeping, summed over all CPUs.
    pub reclaim_ns: u64,
    /// Nanoseconds spent clearing and freeing frames, summed over all CPUs.
    pub clear_ns: u64,
}

impl Reclaimed {
    /// Returns the bytes of private memory.
    pub fn bytes(&self) -> u64 {
        let all = self.pages.iter().zip(PageSize::ALL);
        all.map(|(pages, size)| pages * size.bytes()).sum()
    }

    /// Returns the number of SEAMCALLs.
    pub const fn calls(&self) -> u64 {
        self.reclaim_calls + self.wbinvd_calls
    }
}

/// [`Reclaimed`] as one CPU counts it, in a cache line of its own. Any CPU may read it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tally {
    cells: [AtomicU64; CELLS],
}

const CELLS: usize = 10;

impl Tally {
    pub fn add(&self, step: &Reclaimed) {
        for (cell, count) in self.cells.iter().zip(cells(step)) {
            if count > 0 {
                cell.fetch_add(count, Relaxed);
            }
        }
    }

    pub fn add_to(&self, sum: &mut Reclaimed) {
        let mut all = cells(sum);
        for (count, cell) in all.iter_mut().zip(&self.cells) {
            *count += cell.load(Relaxed);
        }
        let [
            p0,
            p1,
            p2,
            sept,
            control,
            reclaim_calls,
            wbinvd_calls,
            cleared,
            reclaim_ns,
            clear_ns,
        ] = all;
        *sum = Reclaimed {
            pages: [p0, p1, p2],
            sept,
            control,
            reclaim_calls,
            wbinvd_calls,
            cleared,
            reclaim_ns,
            clear_ns,
        };
    }
}

const fn cells(counts: &Reclaimed) -> [u64; CELLS] {
    let [p0, p1, p2] = counts.pages;
    [
        p0,
        p1,
        p2,
        counts.sept,
        counts.control,
        counts.reclaim_calls,
        counts.wbinvd_calls,
        counts.cleared,
        counts.reclaim_ns,
        counts.clear_ns,
    ]
}

/// Progress of a reclaim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pages taken back so far.
    pub reclaimed: Reclaimed,
    /// Bytes of private memory that the TD had.
    pub total: u64,
    /// 4 KiB pages in quarantine.
    pub quarantined: u64,
    /// Nanoseconds since the beginning.
    pub elapsed_ns: u64,
    /// True if every page is back or in quarantine.
    pub is_done: bool,
    /// True if the work has stopped with pages left that the module may release later.
    pub is_stuck: bool,
}

impl Progress {
    /// Returns the bytes of private memory taken back per second, so far.
    pub fn rate(&self) -> u64 {
        let bytes = u128::from(self.reclaimed.bytes()) * 1_000_000_000;
        (bytes / u128::from(self.elapsed_ns.max(1))) as u64
    }

    /// Returns the nanoseconds that the rest takes at this rate; `None` while that is unknown.
    pub fn left_ns(&self) -> Option<u64> {
        if self.is_done {
            return Some(0);
        }
        let done = u128::from(self.reclaimed.bytes());
        let left = u128::from(self.total).saturating_sub(done);
        let ns = (left * u128::from(self.elapsed_ns)).checked_div(done)?;
        u64::try_from(ns).ok()
    }
}

/// A page that the module refused to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its address.
    pub hpa: Hpa,
    /// Its size.
    pub size: PageSize,
    /// The reason: [`Error::NotEmpty`] for a TDR whose TD has pages in quarantine.
    pub why: Error,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.size.bytes() >> 10;
        write!(f, "{kib} KiB at {:#x}: {}", self.hpa.0, self.why)
    }
}

/// Maximum number of quarantined pages recorded in detail.
const MAX_LISTED: usize = 256;

/// All refusals of a reclaim.
#[derive(Debug)]
pub(super) struct Refusals {
    listed: Vec<Refusal>,
    quarantined: u64,
    last: Option<Refusal>,
}

impl Refusals {
    pub const fn new() -> Self {
        Self {
            listed: Vec::new(),
            quarantined: 0,
            last: None,
        }
    }

    /// Records a page that goes to quarantine.
    pub fn quarantine(&mut self, refusal: Refusal) {
        self.quarantined += refusal.size.pages();
        if self.listed.len() < MAX_LISTED && self.listed.try_reserve(1).is_ok() {
            self.listed.push(refusal);
        }
    }

    /// Records a page that the module may release later.
    pub const fn leave(&mut self, refusal: Refusal) {
        self.last = Some(refusal);
    }

    /// Returns the number of 4 KiB pages in quarantine.
    pub const fn quarantined(&self) -> u64 {
        self.quarantined
    }

    /// Returns the first of the pages in quarantine.
    pub fn listed(&self) -> &[Refusal] {
        &self.listed
    }

    /// Returns the last page that the module may release later.
    pub const fn last(&self) -> Option<Refusal> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_cpus_add_up() {
        let step = Reclaimed {
            pages: [1, 2, 3],
            sept: 4,
            control: 5,
            reclaim_calls: 6,
            wbinvd_calls: 7,
            cleared: 8,
            reclaim_ns: 9,
            clear_ns: 10,
        };
        let tallies = [Tally::default(), Tally::default()];
        tallies[0].add(&step);
        tallies[1].add(&step);
        let mut sum = Reclaimed::default();
        for tally in &tallies {
            tally.add_to(&mut sum);
        }
        assert_eq!(cells(&sum), cells(&step).map(|count| count * 2));
    }

    #[test]
    fn the_time_left_follows_from_the_rate() {
        let mut progress = Progress {
            reclaimed: Reclaimed::default(),
            total: 4 << 30,
            quarantined: 0,
            elapsed_ns: 500_000_000,
            is_done: false,
            is_stuck: false,
        };
        assert_eq!((progress.rate(), progress.left_ns()), (0, None));
        progress.reclaimed.pages = [0, 0, 1];
        assert_eq!(progress.rate(), 2 << 30);
        assert_eq!(progress.left_ns(), Some(1_500_000_000));
    }
}
