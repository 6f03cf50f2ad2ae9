//! What the console tells of the SEAMCALLs that the host makes: how often, how they ended, how long they take.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

/// Counts since the start.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// SEAMCALLs by leaf, over all CPUs; leafs that were never called are left out.
    pub leafs: Vec<LeafStats>,
    /// All of them.
    pub total: LeafStats,
    /// Tries after the first, by reason; reasons that never came are left out.
    pub retries: Vec<RetryStats>,
    /// SEAMCALLs that no module answered.
    pub faults: u64,
    /// Exits of all vCPUs of all TDs that live, by what they were for.
    pub exits: Vec<ExitStats>,
    /// Pages that the host dropped while they may have been the module's: a defect of this program, if it is not 0.
    pub lost_pages: u64,
    /// HKIDs of which the same is to be said.
    pub lost_hkids: u64,
}

/// Counts of one leaf.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LeafStats {
    /// The leaf, as the specification names it; "all" for their sum.
    pub leaf: &'static str,
    /// Calls, every try counted.
    pub calls: u64,
    /// Those that found something busy or short.
    pub busy: u64,
    /// Those that an interrupt stopped.
    pub interrupted: u64,
    /// Those that the module refused and that should not have been made.
    pub illegal: u64,
}

/// Counts of one reason to try again.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RetryStats {
    /// The reason.
    pub reason: &'static str,
    /// Tries after the first.
    pub retries: u64,
    /// Calls that were given up.
    pub given_up: u64,
}

/// Exits of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ExitStats {
    /// What they were for.
    pub what: &'static str,
    /// How many.
    pub count: u64,
}

/// How long SEAMCALLs take.
#[derive(Clone, Debug, Serialize)]
pub struct SeamBench {
    /// The frequency of the time-stamp counter, whose ticks are counted.
    pub tsc_hz: u64,
    /// Lives of a TD of its own that were measured.
    pub rounds: u32,
    /// One for each leaf and size of page.
    pub leafs: Vec<LeafTime>,
    /// What could not be measured, and why.
    pub problem: Option<String>,
}

/// Ticks of one leaf.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LeafTime {
    /// The leaf, as the specification names it.
    pub leaf: &'static str,
    /// Bytes of the page that it was about, where that makes a difference.
    pub page_bytes: Option<u64>,
    /// Calls that were measured.
    pub calls: usize,
    /// The shortest.
    pub min: u64,
    /// The median.
    pub median: u64,
    /// The 99th percentile.
    pub p99: u64,
}
