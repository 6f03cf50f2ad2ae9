//! Reports of the host's SEAMCALLs: counts, outcomes, times.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

/// Counts since the start.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stats {
    /// SEAMCALLs by leaf, over all CPUs; leafs that were never called are left out.
    pub leafs: Vec<LeafStats>,
    /// The sum over all leafs.
    pub total: LeafStats,
    /// Tries after the first, by reason; reasons that never occurred are left out.
    pub retries: Vec<RetryStats>,
    /// SEAMCALLs that no module answered.
    pub faults: u64,
    /// Exits of all vCPUs of all living TDs, by reason.
    pub exits: Vec<ExitStats>,
    /// Pages that the host dropped although the module may own them. Any value but 0 is a defect of this program.
    pub lost_pages: u64,
    /// HKIDs that the host dropped although the module may use them. Any value but 0 is a defect of this program.
    pub lost_hkids: u64,
}

/// Counts of one leaf.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LeafStats {
    /// The leaf, as the specification names it; "all" for their sum.
    pub leaf: &'static str,
    /// Number of calls; every try counts.
    pub calls: u64,
    /// Calls that found something busy or short.
    pub busy: u64,
    /// Calls that an interrupt stopped.
    pub interrupted: u64,
    /// Calls that the module refused and that should not have been made.
    pub illegal: u64,
}

/// Counts of one reason to try again.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RetryStats {
    /// The reason.
    pub reason: &'static str,
    /// Tries after the first.
    pub retries: u64,
    /// Calls that were abandoned.
    pub given_up: u64,
}

/// Exits of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExitStats {
    /// The reason of the exits.
    pub what: &'static str,
    /// Their number.
    pub count: u64,
}

/// The times that SEAMCALLs take.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SeamBench {
    /// The frequency in Hz of the time-stamp counter, whose ticks are counted.
    pub tsc_hz: u64,
    /// Number of lives of a TD that were measured.
    pub rounds: u32,
    /// One entry for each leaf and page size.
    pub leafs: Vec<LeafTime>,
    /// The parts that could not be measured, and the reason.
    pub problem: Option<String>,
}

/// The times of one leaf, in ticks.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LeafTime {
    /// The leaf, as the specification names it.
    pub leaf: &'static str,
    /// Size in bytes of the page that the calls were about, if it matters.
    pub page_bytes: Option<u64>,
    /// Number of calls that were measured.
    pub calls: usize,
    /// The minimum.
    pub min: u64,
    /// The median.
    pub median: u64,
    /// The 99th percentile.
    pub p99: u64,
}
