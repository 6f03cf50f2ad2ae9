//! What the console asks of the machine: the [`Host`] trait and the reports that it answers with.
//!
//! Reports are plain data, and the only truth about a reply: the tables that an operator reads and the JSON that a
//! script reads are both made from them. Nothing here touches hardware, so the console runs in host tests.

pub mod absent;
pub mod seam;
pub mod td;

use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::fmt;

use serde::{Serialize, Serializer};

/// A physical address or a bit mask: hexadecimal in tables, and a string such as `"0x8000"` in JSON, whose numbers are
/// not safe above 2^53.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:#x}", self.0))
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What was built, from what.
#[derive(Clone, Debug, Serialize)]
pub struct Build {
    /// The version of the program, as in its manifest.
    pub version: String,
    /// The commit that it was built from, where the build knew it.
    pub commit: Option<String>,
    /// The compiler that built it, where the build knew it.
    pub compiler: Option<String>,
}

/// How this boot went.
#[derive(Clone, Debug, Serialize)]
pub struct Boot {
    /// Where the image came from, for people: "disk (EFI\BOOT\BOOTX64.EFI)", "PXE from 10.0.2.2".
    pub loaded_from: String,
    /// The configuration file that was read; `None` where there was none.
    pub config: Option<String>,
    /// What is wrong with the configuration: file, line and reason; `None` when it was read without a complaint.
    pub config_problem: Option<String>,
    /// What else did not go as it should, one sentence each: a CPU that never started, a missing x2APIC.
    pub problems: Vec<String>,
    /// Microseconds from the first line of the hypervisor to the first prompt, less those that TDX bring-up took;
    /// `None` before the first prompt.
    pub to_prompt_us: Option<u64>,
    /// Microseconds since the first line of the hypervisor.
    pub uptime_us: u64,
}

/// One logical processor that the firmware lists as enabled.
#[derive(Clone, Debug, Serialize)]
pub struct Cpu {
    /// The hypervisor's own number, from 0 without holes.
    pub index: u32,
    /// The (x2)APIC id.
    pub apic_id: u32,
    /// The package, as CPUID 0x1F/0xB reports it.
    pub package: u32,
    /// The core within its package.
    pub core: u32,
    /// The thread within its core.
    pub thread: u32,
    /// The proximity domain from the SRAT, where there is one.
    pub numa_node: Option<u32>,
    /// Whether this is the CPU that the firmware booted on.
    pub bootstrap: bool,
    /// What it is doing.
    pub state: CpuState,
    /// What there is to say about the state: why it did not start, which vector stopped it.
    pub detail: Option<String>,
}

/// What a CPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuState {
    /// Started, and executing something.
    Online,
    /// Started, and halted until an interrupt arrives.
    Idle,
    /// It was sent INIT-SIPI-SIPI and has not reported within its time.
    NeverStarted,
    /// Not asked to start, because the machine can't start it (no x2APIC).
    NotUsed,
    /// Stopped after a fatal exception, an NMI or a machine check.
    Stopped,
}

impl fmt::Display for CpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Online => "online",
            Self::Idle => "idle",
            Self::NeverStarted => "never started",
            Self::NotUsed => "not used",
            Self::Stopped => "stopped",
        })
    }
}

/// The machine's memory and who has it.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// One entry for each frame size that the allocator serves, ascending.
    pub frames: Vec<FrameCount>,
    /// The frame ledger in bytes.
    pub ledger: Ledger,
    /// The hypervisor's own heap.
    pub heap: Heap,
    /// The firmware's memory map, ascending.
    pub regions: Vec<Region>,
}

/// Frames of one size: how many, and where.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FrameCount {
    /// Bytes a frame: 4 KiB, 2 MiB or 1 GiB.
    pub frame_bytes: u64,
    /// Frames that stand free as this size (the largest that they can be handed out as).
    pub free: u64,
    /// Frames handed out as this size.
    pub used: u64,
    /// Frames of this size that are not handed out, because they may still be the TDX module's.
    pub quarantined: u64,
}

/// The frame ledger: every managed byte is free, used or quarantined.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ledger {
    /// Bytes that the allocator was given at boot.
    pub total_bytes: u64,
    /// Bytes free now.
    pub free_bytes: u64,
    /// Bytes handed out now.
    pub used_bytes: u64,
    /// Bytes in quarantine.
    pub quarantined_bytes: u64,
    balanced: bool,
}

impl Ledger {
    /// The ledger of these four sums, each counted on its own; it balances when the last three make up the first.
    #[must_use]
    pub fn new(total_bytes: u64, free_bytes: u64, used_bytes: u64, quarantined_bytes: u64) -> Self {
        let accounted = [free_bytes, used_bytes, quarantined_bytes]
            .into_iter()
            .try_fold(0u64, u64::checked_add);
        Self {
            total_bytes,
            free_bytes,
            used_bytes,
            quarantined_bytes,
            balanced: accounted == Some(total_bytes),
        }
    }

    /// Whether no byte is lost and none is counted twice.
    #[must_use]
    pub fn balanced(&self) -> bool {
        self.balanced
    }
}

/// The hypervisor's own heap, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Heap {
    /// Its size.
    pub total_bytes: u64,
    /// What is allocated now.
    pub used_bytes: u64,
}

/// One region of the firmware's memory map.
#[derive(Clone, Debug, Serialize)]
pub struct Region {
    /// The first physical address.
    pub start: Hex,
    /// The first physical address behind it.
    pub end: Hex,
    /// What the firmware calls it: "conventional", "ACPI NVS", "reserved".
    pub kind: String,
}

/// TDX on this machine: what was found, what is missing, how far its bring-up got.
#[derive(Clone, Debug, Serialize)]
pub struct Tdx {
    /// How far it is.
    pub state: TdxState,
    /// Why it is not further: one entry for each thing that is missing, with what to do; empty when `state` is ready.
    pub reasons: Vec<String>,
    /// The KeyIDs that firmware set aside for TDX; `None` where the machine has no such partition.
    pub hkids: Option<Hkids>,
    /// What the module says of itself; `None` where none answered.
    pub module: Option<Module>,
    /// The convertible memory regions, ascending; empty where no module answered.
    pub cmrs: Vec<Cmr>,
    /// The memory that the module was given; `None` before it was.
    pub memory: Option<TdxMemory>,
    /// The steps of the bring-up that were begun, in order.
    pub bring_up: Vec<BringUpStep>,
    /// Microseconds that the whole bring-up took; `None` unless `state` is ready.
    pub bring_up_us: Option<u64>,
}

/// How far TDX is on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TdxState {
    /// Something that it needs is missing; nothing was started.
    Unavailable,
    /// A module answered and was initialised on every CPU; it has no memory yet.
    Initialised,
    /// The module is configured, has its memory and its global key: TDs can be built.
    Ready,
    /// A step of the bring-up failed; TDX can't be used before the next reset.
    Failed,
}

impl TdxState {
    /// The state in a sentence.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Unavailable => "TDX is unavailable",
            Self::Initialised => "TDX is initialised",
            Self::Ready => "TDX is ready",
            Self::Failed => "TDX failed",
        }
    }
}

impl fmt::Display for TdxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unavailable => "unavailable",
            Self::Initialised => "initialised",
            Self::Ready => "ready",
            Self::Failed => "failed",
        })
    }
}

/// The private KeyIDs (`IA32_MKTME_KEYID_PARTITIONING`, MSR 0x87).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Hkids {
    /// The first private HKID.
    pub first: u32,
    /// How many there are; one of them is the module's global one.
    pub total: u32,
    /// How many TDs hold now, the global one included.
    pub used: u32,
    /// How many are never handed out again, because a cache write-back did not complete.
    pub quarantined: u32,
}

/// What the TDX module says of itself (global metadata, TDX Module ABI 1.5, TDH.SYS.RD).
#[derive(Clone, Debug, Serialize)]
pub struct Module {
    /// MAJOR_VERSION.
    pub major: u16,
    /// MINOR_VERSION.
    pub minor: u16,
    /// UPDATE_VERSION.
    pub update: u16,
    /// BUILD_NUM.
    pub build_number: u16,
    /// BUILD_DATE as the module encodes it: decimal yyyymmdd.
    pub build_date: u32,
    /// VENDOR_ID: 0x8086 for Intel.
    pub vendor: Hex,
    /// TDX_FEATURES0.
    pub features0: Hex,
    /// The names of the bits that are set in TDX_FEATURES0; a bit without a known name is "bit N".
    pub features: Vec<String>,
    /// MAX_TDMRS.
    pub max_tdmrs: u16,
    /// MAX_RESERVED_PER_TDMR.
    pub max_reserved_per_tdmr: u16,
    /// MAX_VCPUS_PER_TD; `None` where the module has no such field.
    pub max_vcpus_per_td: Option<u16>,
    /// PAMT_4K_ENTRY_SIZE, bytes for each 4 KiB page.
    pub pamt_4k_entry_bytes: u16,
    /// PAMT_2M_ENTRY_SIZE, bytes for each 2 MiB page.
    pub pamt_2m_entry_bytes: u16,
    /// PAMT_1G_ENTRY_SIZE, bytes for each 1 GiB page.
    pub pamt_1g_entry_bytes: u16,
}

/// One convertible memory region (TDX Module ABI 1.5, CMR_INFO).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cmr {
    /// The first physical address.
    pub base: Hex,
    /// Bytes.
    pub size: u64,
}

/// What TDs can have of the memory, and what that costs.
#[derive(Clone, Debug, Serialize)]
pub struct TdxMemory {
    /// Bytes that can be a TD's.
    pub private_bytes: u64,
    /// Bytes that the module keeps as PAMT, its record of every page.
    pub pamt_bytes: u64,
    /// The TDMRs, ascending.
    pub tdmrs: Vec<Tdmr>,
    /// Free memory that no TD can have, ascending.
    pub left_out: Vec<LeftOut>,
}

/// One TDMR (TDX Module ABI 1.5, TDMR_INFO).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Tdmr {
    /// The first physical address.
    pub base: Hex,
    /// Bytes; a multiple of 1 GiB.
    pub size: u64,
    /// The proximity domain that most of it is in, where the SRAT names one.
    pub numa_node: Option<u32>,
    /// Areas in it that are not the module's to hand out.
    pub reserved_areas: usize,
    /// Bytes of its PAMT.
    pub pamt_bytes: u64,
}

/// Free memory that no TD can have.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// The first physical address.
    pub start: Hex,
    /// The first physical address behind it.
    pub end: Hex,
    /// Why.
    pub why: String,
}

/// One step of the bring-up of the TDX module.
#[derive(Clone, Debug, Serialize)]
pub struct BringUpStep {
    /// The leaf, as the specification names it: "TDH.SYS.LP.INIT".
    pub name: String,
    /// How often the leaf was called, over all CPUs.
    pub calls: u64,
    /// Microseconds from its first call to its last return.
    pub us: u64,
    /// What went wrong: the decoded status, the CPU; `None` when it went well.
    pub error: Option<String>,
}

/// One record of the log.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LogRecord<'a> {
    /// Microseconds since the hypervisor's first line.
    pub us: u64,
    /// The CPU that logged it.
    pub cpu: u32,
    /// How serious it is.
    #[serde(serialize_with = "level_name")]
    pub level: log::Level,
    /// The module that logged it.
    pub target: &'a str,
    /// What it says.
    pub message: &'a str,
}

fn level_name<S: Serializer>(level: &log::Level, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&level.as_str().to_ascii_lowercase())
}

/// The way out of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerAction {
    /// Reset the machine.
    Reboot,
    /// Switch it off.
    PowerOff,
}

/// The machine, as the console sees it.
///
/// But for those that say otherwise, no method waits for anything but a bounded cross-CPU call. A `String` in `Err` is one sentence for the operator:
/// what is wrong, where, and what to do.
pub trait Host {
    /// What was built, from what.
    fn build(&self) -> Build;

    /// How this boot went.
    fn boot(&self) -> Boot;

    /// Every CPU that the firmware lists as enabled, in the order of `index`.
    fn cpus(&self) -> Vec<Cpu>;

    /// The machine's memory and who has it.
    fn memory(&self) -> Memory;

    /// TDX on this machine.
    fn tdx(&self) -> Tdx;

    /// The TDs.
    ///
    /// # Errors
    /// When this machine can have none.
    fn tds(&self) -> Result<Box<dyn td::Tds + '_>, String>;

    /// The HKIDs, and who has them.
    ///
    /// # Errors
    /// When there is no TDX module that would know them.
    fn hkids(&self) -> Result<td::HkidReport, String>;

    /// SEAMCALLs, retries and exits since the start.
    fn stats(&self) -> seam::Stats;

    /// Measures SEAMCALLs, on a TD of its own among others. That takes a while; the machine goes on meanwhile.
    ///
    /// # Errors
    /// When nothing could be measured.
    fn seam_bench(&self) -> Result<seam::SeamBench, String>;

    /// Shows `visit` every record that the log's ring still holds, oldest first, and returns how many it has lost to
    /// newer ones.
    fn log_records(&self, visit: &mut dyn FnMut(&LogRecord<'_>)) -> u64;

    /// What is logged: records at this level and more serious ones.
    fn log_level(&self) -> log::LevelFilter;

    /// Sets what is logged from now on.
    fn set_log_level(&mut self, level: log::LevelFilter);

    /// Reads the 64 bytes at `line`, a multiple of 64, as eight loads of 8 bytes, lowest address first.
    ///
    /// This is the operator's own risk: device registers may change when they are read, and memory that belongs to the
    /// TDX module or to a TD may answer with a machine check.
    ///
    /// # Errors
    /// When the address can't be mapped (it exceeds what the CPU's physical addresses can hold).
    fn peek(&mut self, line: u64) -> Result<[u8; 64], String>;

    /// Checks that the machine can do `action`, and arranges for it: the host does it as soon as the call of the
    /// console that led here has returned, so that the reply is out first. Returns how it will be done: "ACPI reset
    /// register".
    ///
    /// # Errors
    /// When the machine offers no way to do it; nothing was arranged then.
    fn request_power(&mut self, action: PowerAction) -> Result<String, String>;
}
