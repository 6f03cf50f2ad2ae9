//! Counts of what the host does, from which the console computes rates, and the facts about the machine.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

use super::{Heap, Ledger, td::TdState};

/// The host's work up to a point in time. All times and counts are sums since the start.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Microseconds since the hypervisor's first line.
    pub us: u64,
    /// The packages with the CPUs that run, ascending.
    pub packages: Vec<PackageSample>,
    /// SEAMCALLs.
    pub calls: u64,
    /// The frame ledger.
    pub memory: Ledger,
    /// The hypervisor's heap.
    pub heap: Heap,
    /// The TDs.
    pub tds: Vec<TdSample>,
}

/// The CPUs of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackageSample {
    /// The package.
    pub package: u32,
    /// Number of CPUs that run the hypervisor.
    pub cpus: u32,
    /// Microseconds in which these CPUs were halted, summed over them.
    pub idle_us: u64,
}

/// A TD.
#[derive(Clone, Debug)]
pub struct TdSample {
    /// The TD's number.
    pub id: u32,
    /// The TD's name.
    pub name: String,
    /// The TD's state.
    pub state: TdState,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// Times and exits of all vCPUs together.
    pub spent: Spent,
    /// Bytes of private memory that the TD has now.
    pub private_bytes: u64,
    /// Bytes of memory that the TD may have.
    pub memory_bytes: u64,
}

/// The time of vCPUs by its use, summed over vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Spent {
    /// Microseconds that they ran.
    pub run_us: u64,
    /// Microseconds that they waited for an event.
    pub wait_us: u64,
    /// Microseconds that they could have run but had no CPU.
    pub steal_us: u64,
    /// Exits to the host.
    #[serde(rename = "all_exits")]
    pub exits: u64,
}

/// The machine.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Facts {
    /// The manufacturer, as the SMBIOS tables name it; `None` if they do not. This holds for the next four, too.
    pub manufacturer: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// The serial number.
    pub serial_number: Option<String>,
    /// The UUID, in its usual form.
    pub uuid: Option<String>,
    /// The firmware's version.
    pub firmware: Option<String>,
    /// The boot CPU's name, family, model, stepping and microcode.
    pub cpu: String,
    /// The microcode's revision.
    pub microcode: super::Hex,
    /// Microseconds since the hypervisor's first line.
    pub uptime_us: u64,
    /// Seconds since 1970-01-01 00:00 UTC, by the real-time clock.
    pub unix_seconds: u64,
}
