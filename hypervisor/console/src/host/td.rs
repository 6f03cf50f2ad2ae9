//! The console's interface to TDs: the [`Tds`] trait and the reports that it returns.

use alloc::{string::String, vec::Vec};
use core::fmt;

use super::{Hex, device::TdDevice, failure::Failure, pci::TdPci, seam::ExitStats};
use serde::Serialize;

/// The TDs that the host knows by name.
///
/// TDs are identified by their numbers. A method that waits here waits for the machine's other CPUs and for the TDX
/// module; the machine continues meanwhile. A `String` in `Err` is one sentence for the operator: which TD, what is
/// wrong, and what to do.
pub trait Tds {
    /// Returns the names, in the order of the numbers.
    fn names(&self) -> Vec<String>;

    /// Returns the numbers, ascending. By default there are no gaps.
    fn ids(&self) -> Vec<u32> {
        (1..).take(self.names().len()).collect()
    }

    /// Returns the name of the TD of this number.
    fn name(&self, id: u32) -> Option<String> {
        let at = self.ids().iter().position(|own| *own == id)?;
        self.names().into_iter().nth(at)
    }

    /// Returns each TD in a line.
    fn list(&self) -> Vec<TdLine>;

    /// Returns all details of one TD.
    ///
    /// # Errors
    /// There is no TD of that number; this holds for all methods below.
    fn show(&self, id: u32) -> Result<TdReport, Failure>;

    /// Builds the TD. It is paused afterwards.
    ///
    /// # Errors
    /// The reason why it can't be built. Everything taken for it was given back.
    fn create(&self, id: u32) -> Result<TdBuilt, Failure>;

    /// Lets the TD run. Builds it first if necessary.
    ///
    /// # Errors
    /// As [`Self::create`].
    fn start(&self, id: u32) -> Result<TdNow, Failure>;

    /// Pauses the TD.
    ///
    /// # Errors
    /// The TD does not run, or does not stop; in the latter case it runs on.
    fn pause(&self, id: u32) -> Result<TdNow, Failure>;

    /// Lets the TD run again.
    ///
    /// # Errors
    /// The TD is not paused.
    fn resume(&self, id: u32) -> Result<TdNow, Failure>;

    /// Terminates the TD and frees its key. Its memory is reclaimed afterwards, in the background.
    ///
    /// # Errors
    /// The obstacle, and whether the termination continues from there.
    fn terminate(&self, id: u32) -> Result<TdEnded, Failure>;

    /// Terminates the TD and reclaims all of its memory; with `dynamic`, page by page and before its key is freed.
    ///
    /// # Errors
    /// As [`Self::terminate`].
    fn destroy(&self, id: u32, dynamic: bool) -> Result<TdEnded, Failure>;

    /// Continues a termination that got stuck.
    ///
    /// # Errors
    /// Nothing is stuck, or the termination got stuck again.
    fn retry(&self, id: u32) -> Result<TdEnded, Failure>;

    /// Terminates the TD and builds it again. It runs if it did before.
    ///
    /// # Errors
    /// As [`Self::destroy`] and [`Self::create`].
    fn reset(&self, id: u32) -> Result<TdNow, Failure>;

    /// Takes memory from the TD so that `bytes` are left.
    ///
    /// # Errors
    /// The TD is not built, or can't have that size.
    fn shrink(&self, id: u32, bytes: u64) -> Result<TdShrunk, Failure>;

    /// Copies a port's output from byte number `from` on, or from the oldest byte that is kept. The numbers
    /// only grow, also over the TD's successive lives.
    ///
    /// # Errors
    /// The TD has no such port, or was never started.
    fn output(&self, id: u32, port: TdPort, from: u64, into: &mut [u8])
    -> Result<Excerpt, Failure>;

    /// Types a byte at a port of the TD. Returns `false` if the port takes none now; the byte is lost.
    fn type_byte(&self, id: u32, port: TdPort, byte: u8) -> bool;

    /// Returns the exits of the TD's vCPUs, by reason, since it was started.
    ///
    /// # Errors
    /// There is no TD of that number.
    fn exits(&self, id: u32) -> Result<Vec<ExitStats>, Failure>;

    /// Reads the registers of a vCPU.
    ///
    /// # Errors
    /// The TD is no debug TD, or does not live.
    fn registers(&self, id: u32, vcpu: u16) -> Result<Registers, Failure>;

    /// Reads the TD's private memory from `gpa` on. `gpa` and the length are multiples of 8 bytes.
    ///
    /// # Errors
    /// The TD is no debug TD, does not live, or has no memory there.
    fn memory(&self, id: u32, gpa: u64, into: &mut [u8]) -> Result<(), Failure>;

    /// Returns the TDs whose memory is being reclaimed.
    fn reclaims(&self) -> Vec<TdReclaim>;
}

/// The state of a TD in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TdState {
    /// The TD is configured, and nothing was allocated for it.
    Created,
    /// The TD is being built.
    Building,
    /// The TD is built, and its vCPUs may run.
    Runnable,
    /// The TD is built, and none of its vCPUs may run.
    Paused,
    /// The TD's key is being freed. No vCPU runs, and the TD can't be used.
    Terminating,
    /// The TD's key is free, and its memory is being reclaimed.
    Teardown,
    /// All resources of the TD are reclaimed.
    Reclaimed,
}

impl TdState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Building,
        Self::Runnable,
        Self::Paused,
        Self::Terminating,
        Self::Teardown,
        Self::Reclaimed,
    ];

    /// Completes the sentence "the TD is ..." for this state.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Building => "being built",
            Self::Runnable => "runnable",
            Self::Paused => "paused",
            Self::Terminating => "terminating",
            Self::Teardown => "in teardown",
            Self::Reclaimed => "reclaimed",
        }
    }
}

impl fmt::Display for TdState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Building => "building",
            Self::Runnable => "runnable",
            Self::Paused => "paused",
            Self::Terminating => "terminating",
            Self::Teardown => "teardown",
            Self::Reclaimed => "reclaimed",
        })
    }
}

/// A port of a TD at which the operator reads and writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdPort {
    /// The console.
    Console,
    /// The port of the virtio console for scripts.
    Script,
}

impl TdPort {
    /// Returns the port's name within a sentence.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Script => "script port",
        }
    }
}

/// The range of a TD's console output that was copied. Bytes are numbered from 0, the first byte that the TD ever
/// wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The number of the first byte of the present life, even if it is not written yet.
    pub began: u64,
    /// The number of the first byte that was copied.
    pub from: u64,
    /// Number of bytes that were copied.
    pub count: usize,
}

/// A TD in one line.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdLine {
    /// The TD's number.
    pub id: u32,
    /// The TD's name.
    pub name: String,
    /// The TD's state.
    pub state: TdState,
    /// The TD's HKID while it has one.
    pub hkid: Option<u16>,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// Bytes of private memory that the TD has now.
    pub private_bytes: u64,
    /// Bytes of memory that the TD may have.
    pub memory_bytes: u64,
    /// A problem that needs the operator, or the reason why the TD ended.
    pub problem: Option<String>,
}

/// All details of a TD.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdReport {
    /// The TD's line in the list.
    #[serde(flatten)]
    pub line: TdLine,
    /// The `[[file]]` that the TD starts from.
    pub image: String,
    /// True if the TD starts with the host.
    pub autostart: bool,
    /// True if the TD may name other TDs in hypercalls.
    pub control: bool,
    /// True if the host may inspect the TD.
    pub debug: bool,
    /// True if the TD's TDVMCALLs can't pass RBP.
    pub no_rbp_mod: bool,
    /// The TD's share of the CPUs.
    pub shares: u32,
    /// The TD's limit of CPU time, in percent of one CPU.
    pub cap: Option<u32>,
    /// The TD's pages of host memory.
    pub pages: Pages,
    /// Number of pages of 2 MiB that were split and are whole again.
    pub made_whole: u64,
    /// MRTD in hexadecimal, once it is closed.
    pub mrtd: Option<String>,
    /// The PCI functions of the machine that the TD has while it lives.
    pub pci: Vec<TdPci>,
    /// The TD's virtual devices, once it was started.
    pub devices: Vec<TdDevice>,
    /// Microseconds for which CPUs that had nothing else to do worked for the virtual devices, beside the time of its vCPUs.
    pub devices_helped_us: u64,
    /// The vCPUs.
    pub cpus: Vec<TdVcpu>,
    /// The work that building the TD took.
    pub built: Option<Work>,
    /// The work that ending the TD took.
    pub ended: Option<Work>,
    /// The progress of reclaiming the TD's memory.
    pub reclaim: Option<TdReclaim>,
    /// The keys of the definition that were set since the TD was built, and apply when it is built again.
    pub pending: Vec<&'static str>,
    /// The state of a request to shut down.
    pub shutdown: Option<String>,
    /// The accesses of the TD's guest that nothing answered since its start.
    pub unanswered: Unanswered,
}

/// Accesses that nothing answered.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Unanswered {
    /// The first places that were accessed, in that order.
    pub places: Vec<UnansweredPlace>,
    /// Number of accesses to other places.
    pub others: u64,
}

/// The accesses to one place where nothing answers.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UnansweredPlace {
    /// The kind of the place.
    pub kind: PlaceKind,
    /// The port, the guest address of a page of 4 KiB, or the number of the MSR.
    pub at: Hex,
    /// The part of a PC that has its registers there, and that no TD has, if it is known.
    pub part: Option<&'static str>,
    /// Number of reads.
    pub reads: u64,
    /// Number of writes.
    pub writes: u64,
}

/// The kind of a place that a guest accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PlaceKind {
    /// A port.
    Port,
    /// Memory-mapped registers.
    Memory,
    /// An MSR that the guest does not have, or may not write so.
    Msr,
}

impl fmt::Display for PlaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Port => "port",
            Self::Memory => "memory",
            Self::Msr => "MSR",
        })
    }
}

/// Pages of a TD, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pages {
    /// Private pages of 4 KiB.
    pub private_4k: u64,
    /// Private pages of 2 MiB.
    pub private_2m: u64,
    /// Private pages of 1 GiB.
    pub private_1g: u64,
    /// Pages of the S-EPT.
    pub sept: u64,
}

/// One vCPU.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdVcpu {
    /// The vCPU's number.
    pub index: u16,
    /// The CPU that the vCPU runs on or is associated with.
    pub cpu: Option<u32>,
    /// True if a CPU runs the vCPU now.
    pub running: bool,
    /// Microseconds that the vCPU ran. This and the next three fields are `None` if the vCPU is not scheduled.
    pub run_us: Option<u64>,
    /// Microseconds that the vCPU waited for an event of its own: an interrupt, a timer.
    pub wait_us: Option<u64>,
    /// Microseconds that the vCPU could have run but had no CPU.
    pub steal_us: Option<u64>,
    /// Number of entries.
    pub entries: Option<u64>,
}

/// An operation, in phases.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Work {
    /// Elapsed microseconds. Phases may overlap, so that this is not their sum.
    pub us: u64,
    /// CPU time in microseconds, summed over CPUs.
    pub cpu_us: u64,
    /// SEAMCALLs of all phases.
    pub calls: u64,
    /// The phases, in order.
    pub phases: Vec<Phase>,
    /// SEAMCALLs by leaf.
    pub leafs: Vec<LeafCalls>,
}

/// One phase of an operation.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Phase {
    /// The phase's name.
    pub name: String,
    /// Elapsed microseconds; `None` if the phase runs within the one before it.
    pub us: Option<u64>,
    /// CPU time in microseconds, summed over CPUs. If CPUs only answer the leader, only the leader's time counts.
    pub cpu_us: u64,
    /// SEAMCALLs.
    pub calls: u64,
}

/// SEAMCALLs of one leaf.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LeafCalls {
    /// The leaf, as the specification names it.
    pub leaf: &'static str,
    /// Number of calls; every try counts.
    pub calls: u64,
}

/// A TD that was just built.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdBuilt {
    /// The TD's state now.
    #[serde(flatten)]
    pub now: TdNow,
    /// The TD's HKID.
    pub hkid: Option<u16>,
    /// MRTD in hexadecimal.
    pub mrtd: Option<String>,
    /// The TD's pages.
    pub pages: Pages,
    /// The work that it took.
    pub work: Work,
}

/// The state of a TD after a command.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdNow {
    /// The TD's number.
    pub id: u32,
    /// The TD's name.
    pub name: String,
    /// The TD's state.
    pub state: TdState,
}

/// A TD that was ended.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdEnded {
    /// The TD's state now.
    #[serde(flatten)]
    pub now: TdNow,
    /// True if there was nothing to do: the TD had ended before, or never begun.
    pub already: bool,
    /// The pages that the TD had when its vCPUs had stopped; none if there was nothing to do.
    pub pages: Pages,
    /// Their size in bytes.
    pub bytes: u64,
    /// The work that it took so far.
    pub work: Work,
}

/// A TD that was shrunk.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdShrunk {
    /// The TD's state now.
    #[serde(flatten)]
    pub now: TdNow,
    /// Bytes of memory that the TD may have now.
    pub memory_bytes: u64,
    /// The pages that were taken from it.
    pub taken: Pages,
    /// Maximum number of TLB-tracking rounds.
    pub batches: u64,
    /// The reason why the memory is not reclaimed yet; `None` if it is.
    pub left_to: Option<&'static str>,
    /// Elapsed microseconds.
    pub us: u64,
}

/// The progress of reclaiming a TD's memory.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdReclaim {
    /// The TD's number.
    pub id: u32,
    /// The TD's name.
    pub name: String,
    /// Bytes of private memory that the TD had.
    pub total_bytes: u64,
    /// Bytes that are reclaimed.
    pub done_bytes: u64,
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Elapsed microseconds.
    pub us: u64,
    /// Microseconds that the rest takes; `None` while unknown.
    pub left_us: Option<u64>,
    /// SEAMCALLs.
    pub calls: u64,
    /// Number of pages of 4 KiB in quarantine.
    pub quarantined: u64,
    /// The reason why the reclaim does not continue.
    pub stuck: Option<String>,
}

/// An HKID.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HkidLine {
    /// The HKID's number.
    pub hkid: u16,
    /// The HKID's owner.
    pub holder: HkidHolder,
    /// The TD that has or had the HKID.
    pub td: Option<String>,
    /// The reason why the HKID is in quarantine.
    pub reason: Option<String>,
}

/// The owner of an HKID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HkidHolder {
    /// The TDX module itself owns it.
    Module,
    /// A TD owns it.
    Td,
    /// It is in quarantine.
    Quarantine,
}

/// The HKIDs of the machine.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HkidReport {
    /// The first private HKID.
    pub first: u16,
    /// Number of private HKIDs.
    pub total: usize,
    /// Number of HKIDs that a TD can have now.
    pub free: usize,
    /// Number of HKIDs that TDs and the module have.
    pub used: usize,
    /// Number of HKIDs that can't be used again for now.
    pub quarantined: usize,
    /// The HKIDs that are not free.
    pub taken: Vec<HkidLine>,
}

/// Registers of a vCPU of a debug TD.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Registers {
    /// The TD's name.
    pub name: String,
    /// The vCPU.
    pub vcpu: u16,
    /// The registers, by name.
    pub registers: Vec<Register>,
}

/// A register.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Register {
    /// The register's name.
    pub name: &'static str,
    /// The register's value.
    pub value: Hex,
}
