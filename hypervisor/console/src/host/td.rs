//! What the console asks about TDs and has done with them: the [`Tds`] trait and the reports that it answers with.

use alloc::{string::String, vec::Vec};
use core::fmt;

use super::Hex;
use serde::Serialize;

/// The TDs that the configuration names.
///
/// They are asked for by their numbers. Whoever waits here waits for the machine's other CPUs and for the TDX module; the
/// machine goes on meanwhile. A `String` in `Err` is one sentence for the operator: which TD, what is wrong, and what to do.
pub trait Tds {
    /// The names, in the order of the numbers, which begin with 1.
    fn names(&self) -> Vec<String>;

    /// Each of them in a line.
    fn list(&self) -> Vec<TdLine>;

    /// All that is known of one.
    ///
    /// # Errors
    /// When there is no TD of that number; so it is everywhere below.
    fn show(&self, id: u32) -> Result<TdReport, String>;

    /// Builds it. It is paused afterwards.
    ///
    /// # Errors
    /// Why it can't be built; nothing that was taken for it is missing.
    fn create(&self, id: u32) -> Result<TdBuilt, String>;

    /// Lets it run; builds it first, if it is not built.
    ///
    /// # Errors
    /// As [`Self::create`].
    fn start(&self, id: u32) -> Result<TdNow, String>;

    /// Keeps it from running.
    ///
    /// # Errors
    /// When it does not run, or does not stop; then it runs on.
    fn pause(&self, id: u32) -> Result<TdNow, String>;

    /// Lets it run again.
    ///
    /// # Errors
    /// When it is not paused.
    fn resume(&self, id: u32) -> Result<TdNow, String>;

    /// Ends it and gives its key back. Its memory comes back after that, as CPUs have time for it.
    ///
    /// # Errors
    /// What is in the way, and whether it goes on from there.
    fn terminate(&self, id: u32) -> Result<TdEnded, String>;

    /// Ends it and takes all of its memory back; with `dynamic`, before its key goes and page by page.
    ///
    /// # Errors
    /// As [`Self::terminate`].
    fn destroy(&self, id: u32, dynamic: bool) -> Result<TdEnded, String>;

    /// Goes on with an end that got stuck.
    ///
    /// # Errors
    /// When nothing is stuck, or it is so again.
    fn retry(&self, id: u32) -> Result<TdEnded, String>;

    /// Ends it and builds it again; it runs if it did.
    ///
    /// # Errors
    /// As [`Self::destroy`] and [`Self::create`].
    fn reset(&self, id: u32) -> Result<TdNow, String>;

    /// Takes memory from it, so that `bytes` are left.
    ///
    /// # Errors
    /// When it is not built, or can't have that size.
    fn shrink(&self, id: u32, bytes: u64) -> Result<TdShrunk, String>;

    /// Copies what it wrote to its console from byte number `from` on, or from the oldest one that is kept, in whichever
    /// of its lives that was. The numbers only grow.
    ///
    /// # Errors
    /// When it has no console: it was never started.
    fn output(&self, id: u32, from: u64, into: &mut [u8]) -> Result<Excerpt, String>;

    /// Types a byte on its console. `false` when it takes none now: the byte is lost.
    fn type_byte(&self, id: u32, byte: u8) -> bool;

    /// Registers of a vCPU.
    ///
    /// # Errors
    /// When it is no debug TD, or does not live.
    fn registers(&self, id: u32, vcpu: u16) -> Result<Registers, String>;

    /// Reads its private memory from `gpa` on, both multiples of 8 bytes.
    ///
    /// # Errors
    /// When it is no debug TD, does not live, or has no memory there.
    fn memory(&self, id: u32, gpa: u64, into: &mut [u8]) -> Result<(), String>;

    /// The TDs whose memory is being taken back.
    fn reclaims(&self) -> Vec<TdReclaim>;
}

/// Where a TD is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TdState {
    /// It is known, and nothing was taken for it.
    Created,
    /// It is being built.
    Building,
    /// It is built, and its vCPUs may run.
    Runnable,
    /// It is built, and none of its vCPUs may run.
    Paused,
    /// It is to give its key back. No vCPU runs, and nothing of it can be used.
    Terminating,
    /// Its key is back, and its memory is being taken back.
    Teardown,
    /// Nothing of it is left.
    Reclaimed,
}

impl TdState {
    /// What a TD in this state "is", in a sentence.
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

/// Which bytes of a TD's console were copied. Bytes are numbered from the first that the TD ever wrote on, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The number of the first byte of the present life, whether that is written already or not.
    pub began: u64,
    /// The number of the first byte that was copied.
    pub from: u64,
    /// How many were.
    pub count: usize,
}

/// A TD in one line.
#[derive(Clone, Debug, Serialize)]
pub struct TdLine {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: TdState,
    /// Its HKID while it has one.
    pub hkid: Option<u16>,
    /// How many vCPUs it has.
    pub vcpus: u16,
    /// Bytes of private memory that it has now.
    pub private_bytes: u64,
    /// Bytes of memory that it may have.
    pub memory_bytes: u64,
    /// What does not go on by itself, or why it ended.
    pub problem: Option<String>,
}

/// What there is to say of a TD.
#[derive(Clone, Debug, Serialize)]
pub struct TdReport {
    /// Its line in the list.
    #[serde(flatten)]
    pub line: TdLine,
    /// The `[[file]]` that it starts from.
    pub image: String,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// Whether it may name other TDs in hypercalls.
    pub control: bool,
    /// Whether the host may look into it.
    pub debug: bool,
    /// Whether its TDVMCALLs can't pass RBP.
    pub no_rbp_mod: bool,
    /// Its share of the CPUs.
    pub shares: u32,
    /// The most that it gets of the CPUs, in percent of one.
    pub cap: Option<u32>,
    /// What it owns of the host's memory.
    pub pages: Pages,
    /// Pages of 2 MiB that had been split and are whole again.
    pub made_whole: u64,
    /// MRTD in hexadecimal, once it is closed.
    pub mrtd: Option<String>,
    /// Its vCPUs.
    pub cpus: Vec<TdVcpu>,
    /// How it was built.
    pub built: Option<Work>,
    /// How it ended.
    pub ended: Option<Work>,
    /// How far the reclaim of its memory is.
    pub reclaim: Option<TdReclaim>,
}

/// Pages of a TD, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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
pub struct TdVcpu {
    /// Its number.
    pub index: u16,
    /// The CPU that has it, or that it is associated with.
    pub cpu: Option<u32>,
    /// Whether a CPU runs it now.
    pub running: bool,
    /// Microseconds that it ran; `None` where it is not scheduled. So it is with the next two.
    pub run_us: Option<u64>,
    /// Microseconds that it waited for something of its own: an interrupt, a timer.
    pub wait_us: Option<u64>,
    /// Microseconds that it could have run and had no CPU.
    pub steal_us: Option<u64>,
    /// How often it was entered.
    pub entries: Option<u64>,
}

/// Something that was done, in phases.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Work {
    /// Elapsed microseconds. Phases may overlap, so that this is not their sum.
    pub us: u64,
    /// Microseconds that CPUs were busy with it, added up.
    pub cpu_us: u64,
    /// SEAMCALLs of all phases.
    pub calls: u64,
    /// The phases, in order.
    pub phases: Vec<Phase>,
    /// SEAMCALLs by leaf.
    pub leafs: Vec<LeafCalls>,
}

/// A part of it.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// Elapsed microseconds; `None` of a phase that runs within the one before it.
    pub us: Option<u64>,
    /// Microseconds that CPUs were busy with it, added up. Where CPUs only answer the one that leads, its time alone.
    pub cpu_us: u64,
    /// SEAMCALLs.
    pub calls: u64,
}

/// SEAMCALLs of one leaf.
#[derive(Clone, Debug, Serialize)]
pub struct LeafCalls {
    /// The leaf, as the specification names it.
    pub leaf: &'static str,
    /// How many, every try counted.
    pub calls: u64,
}

/// A TD that was just built.
#[derive(Clone, Debug, Serialize)]
pub struct TdBuilt {
    /// What it is now.
    #[serde(flatten)]
    pub now: TdNow,
    /// Its HKID.
    pub hkid: Option<u16>,
    /// MRTD in hexadecimal.
    pub mrtd: Option<String>,
    /// Its pages.
    pub pages: Pages,
    /// What it took.
    pub work: Work,
}

/// What a TD is after a command.
#[derive(Clone, Debug, Serialize)]
pub struct TdNow {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: TdState,
}

/// A TD that was ended.
#[derive(Clone, Debug, Serialize)]
pub struct TdEnded {
    /// What it is now.
    #[serde(flatten)]
    pub now: TdNow,
    /// Whether there was nothing to do: it had ended before, or never begun.
    pub already: bool,
    /// The pages that it had.
    pub pages: Pages,
    /// Bytes of them.
    pub bytes: u64,
    /// What it took, as far as it is done.
    pub work: Work,
}

/// A TD that has less memory.
#[derive(Clone, Debug, Serialize)]
pub struct TdShrunk {
    /// What it is now.
    #[serde(flatten)]
    pub now: TdNow,
    /// Bytes of memory that it may have now.
    pub memory_bytes: u64,
    /// What was taken from it.
    pub taken: Pages,
    /// TLB-tracking rounds at most.
    pub batches: u64,
    /// Why the memory is not back yet; `None` when it is.
    pub left_to: Option<&'static str>,
    /// Microseconds.
    pub us: u64,
}

/// How far the reclaim of a TD's memory is.
#[derive(Clone, Debug, Serialize)]
pub struct TdReclaim {
    /// The TD's number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Bytes of private memory that it had.
    pub total_bytes: u64,
    /// Bytes that are back.
    pub done_bytes: u64,
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// Microseconds that it took so far.
    pub us: u64,
    /// Microseconds that the rest takes; `None` while that can't be said.
    pub left_us: Option<u64>,
    /// SEAMCALLs.
    pub calls: u64,
    /// Pages of 4 KiB that are in quarantine.
    pub quarantined: u64,
    /// Why it does not go on.
    pub stuck: Option<String>,
}

/// An HKID.
#[derive(Clone, Debug, Serialize)]
pub struct HkidLine {
    /// Its number.
    pub hkid: u16,
    /// Who has it.
    pub holder: HkidHolder,
    /// The TD that has it, or had it.
    pub td: Option<String>,
    /// Why it is in quarantine.
    pub reason: Option<String>,
}

/// Who has an HKID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HkidHolder {
    /// The TDX module itself.
    Module,
    /// A TD.
    Td,
    /// Nobody can have it.
    Quarantine,
}

/// The HKIDs of the machine.
#[derive(Clone, Debug, Serialize)]
pub struct HkidReport {
    /// The first private HKID.
    pub first: u16,
    /// How many there are.
    pub total: usize,
    /// How many a TD can have now.
    pub free: usize,
    /// How many TDs and the module have.
    pub used: usize,
    /// How many can't be used again for now.
    pub quarantined: usize,
    /// Those that are not free.
    pub taken: Vec<HkidLine>,
}

/// Registers of a vCPU of a debug TD.
#[derive(Clone, Debug, Serialize)]
pub struct Registers {
    /// The TD's name.
    pub name: String,
    /// The vCPU.
    pub vcpu: u16,
    /// Name and value of each.
    pub registers: Vec<Register>,
}

/// A register.
#[derive(Clone, Debug, Serialize)]
pub struct Register {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: Hex,
}
