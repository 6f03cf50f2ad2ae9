//! The report of VT-d units.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

use super::Hex;

/// The protection of memory from devices, and of interrupts.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Serialize)]
pub struct Iommu {
    /// The protection of memory from devices.
    pub dma: Dma,
    /// The units that the firmware reports.
    pub units: Vec<Unit>,
    /// Interrupt remapping; `None` if no unit remaps interrupts.
    pub interrupts: Option<Interrupts>,
    /// The functions whose requests were blocked, by the first of them.
    pub faults: Vec<Faults>,
    /// Faults of functions beyond those, which are counted together.
    pub other_faults: u64,
    /// Number of times that a unit lost faults, because they came faster than they were read.
    pub lost: u64,
    /// Memory that the firmware reserved for functions (RMRR).
    pub reserved: Vec<Reserved>,
}

/// The protection of memory from devices.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Serialize)]
pub struct Dma {
    /// True if VT-d units block what no domain allows. False: it rests on the functions' bus-master bits alone.
    pub blocked_by_vtd: bool,
    /// The reason, if VT-d does not block everything.
    pub why_not: Option<String>,
}

/// A unit.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Serialize)]
pub struct Unit {
    /// Physical address of its registers.
    pub base: Hex,
    /// Its PCI segment.
    pub segment: u16,
    /// True if it blocks what no domain allows.
    pub works: bool,
    /// The reason why it does not work, as a sentence.
    pub problem: Option<String>,
    /// True if it remaps interrupts.
    pub remaps_interrupts: bool,
    /// True if the firmware's translation was on when the unit was taken over.
    pub taken_over: bool,
    /// True if it has every function of its segment that no other unit names.
    pub has_rest: bool,
    /// Number of functions, bridges and interrupt controllers that it names.
    pub named: usize,
    /// CAP_REG; `None` if it could not be read.
    pub capability: Option<Hex>,
    /// ECAP_REG.
    pub extended_capability: Option<Hex>,
}

/// Interrupt remapping.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Interrupts {
    /// Entries in use.
    pub used: usize,
    /// All entries.
    pub entries: usize,
    /// True if destinations have 32 bits (extended interrupt mode), 8 otherwise.
    pub extended: bool,
}

/// The blocked requests of one function.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Serialize)]
pub struct Faults {
    /// Its address: segment, bus, device, function.
    pub function: String,
    /// Blocked reads and writes that were reported.
    pub accesses: u64,
    /// Blocked interrupts that were reported.
    pub interrupts: u64,
    /// Faults that were not logged, because too many came.
    pub untold: u64,
    /// True if its unit reports its accesses no longer, because too many came. It blocks them all the same.
    pub muted: bool,
    /// The last blocked request.
    pub last: String,
}

/// Memory that the firmware reserved for a function.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Serialize)]
pub struct Reserved {
    /// The function.
    pub function: String,
    /// The first address.
    pub start: Hex,
    /// The first address behind it.
    pub end: Hex,
    /// The reason why the function is blocked from it; `None` if it keeps it.
    pub blocked: Option<String>,
}
